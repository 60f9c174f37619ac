"""One training step: the gradients of a batch, then the optimizer. On CUDA they are captured once as a graph, and replayed.

A step of a small network is hundreds of short kernels: launching them one by one takes several times longer than running them.
    A CUDA graph launches all of them at once, and computes the same bits.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nbsnn.distributed import world
from nbsnn.recipe import OptimSpec, Phase
from nbsnn.sums import norm
from nbsnn.training.ema import WeightEMA
from nbsnn.training.execution import Execution
from nbsnn.training.loss import Loss
from nbsnn.training.optim import keep_positive_, make_optimizer, set_learning_rate_

_WARM_UP = 3  # steps before capturing, in which libraries choose kernels and compilers compile


def _together(model: nn.Module) -> nn.Module:
    """The network in distributed training: gradients are averaged over processes during the backward pass.

    Each process has the batch norm statistics of its own images; rank 0's are saved.
    """
    # A weight with one input channel or a 1×1 kernel has the same layout with two sets of strides.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    return nn.parallel.DistributedDataParallel(model)


class Step:
    """Trains a network on one batch at a time.

    Args:
        model: changed in place.
        spec, phase: the optimizer's settings; the learning rate is given with each batch.
        execution: whether steps are compiled or replayed as a CUDA graph, and the type of the forward pass.
        loss: of logits, labels and images.
        batch: images of a full batch over all processes; batches of other sizes run eagerly.
    """

    def __init__(
        self, model: nn.Module, *, spec: OptimSpec, phase: Phase, execution: Execution, loss: Loss, batch: int
    ) -> None:
        self.model, self.spec, self.execution, self.loss, self.batch = model, spec, execution, loss, batch
        self.optimizer = make_optimizer(model, phase, spec)
        self.ema = WeightEMA(model, phase.ema_decay) if phase.ema_decay else None
        self.world = world()
        self.model_of_all = _together(model) if self.world.size > 1 else model
        self.compiled = torch.compile(self.model_of_all) if execution.compiled else self.model_of_all
        self.cuda_graph = _CudaGraph(model, next(model.parameters()).device) if execution.cuda_graph else None

    def __call__(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """Train on a batch.

        Args:
            images: [B, C, H, W] float32, channels last.
            labels: [B].
            lr: the learning rate.
        Returns:
            [sum of the losses, hits] float32, on the device; not synchronized.
        """
        set_learning_rate_(self.optimizer, lr)
        # The last batch of an epoch is smaller: not worth a second compilation or capture.
        if len(images) * self.world.size != self.batch:
            sums = self._gradients(images, labels, full=False)
        elif self.cuda_graph:
            sums = self.cuda_graph(partial(self._gradients, full=True), images, labels)
        else:
            sums = self._gradients(images, labels, full=True)
        if self.spec.clip_norm:
            trained = [p for p in self.model.parameters() if p.grad is not None]
            length = norm(p.grad for p in trained if p.grad is not None)
            nn.utils.clip_grads_with_norm_(trained, self.spec.clip_norm, length.float())
        self.optimizer.step()
        keep_positive_(self.model)
        if self.ema:
            self.ema.update_()
        return sums

    def _gradients(self, images: Tensor, labels: Tensor, *, full: bool) -> Tensor:
        """Gradients of the mean loss over all parts of the batch; returns the sum of the losses and the hits."""
        self.optimizer.zero_grad(set_to_none=True)
        compiled = full and len(images) % self.spec.accumulate == 0
        forward = self.compiled if compiled else self.model_of_all
        count = min(self.spec.accumulate, max(1, len(images) // 2))  # batch norm needs at least two images
        parts = list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))
        sums = torch.zeros(2, device=images.device)
        for index, (part, answers) in enumerate(parts):
            # Gradients are averaged over processes once, with the last part.
            wait = self.world.size > 1 and index < len(parts) - 1
            with self.model_of_all.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with self.execution.precision(images.device):
                    logits = forward(part)
                logits = logits.float()
                loss = self.loss(logits, answers, part, compiled=compiled)
                (loss if len(parts) == 1 else loss * (len(part) / len(images))).backward()  # type: ignore[no-untyped-call]
            hits = (logits.detach().argmax(1) == answers).sum()
            sums += torch.stack([loss.detach() * len(part), hits.float()])
        return sums


class _Graph(NamedTuple):
    """A CUDA graph of the gradients of a batch, and its input and output tensors."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    sums: Tensor
    gradients: list[Tensor | None]


class _CudaGraph:
    """Gradients of batches of one shape, by a CUDA graph that is captured after a few eager steps.

    Capturing does not run the kernels, and a replay runs those of the eager step, so the weights do not depend on which of the
    two was used. No reference to the captured function is held, so that the graph's memory is freed with the step.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.steps = 0
        self.graph: _Graph | None = None

    def __call__(self, gradients: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """Compute the same as `gradients`."""
        self.steps += 1
        with torch.cuda.device(self.device):
            if self.steps <= _WARM_UP:
                return self._run(gradients, images, labels)
            self.graph = self.graph or self._capture(gradients, images, labels)
            return self._replay(self.graph, images, labels)

    def _run(self, gradients: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            sums = gradients(images, labels)
        torch.cuda.current_stream().wait_stream(self.stream)
        return sums

    def _capture(self, gradients: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> _Graph:
        images, labels, graph = images.clone(), labels.clone(), torch.cuda.CUDAGraph()
        for parameter in self.parameters:
            parameter.grad = None  # so that the first gradient is written, not added
        # Other threads, such as loaders of photographs, may continue meanwhile.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            sums = gradients(images, labels)
        return _Graph(graph, images, labels, sums, [parameter.grad for parameter in self.parameters])

    def _replay(self, captured: _Graph, images: Tensor, labels: Tensor) -> Tensor:
        captured.images.copy_(images)
        captured.labels.copy_(labels)
        for parameter, gradient in zip(self.parameters, captured.gradients, strict=True):
            parameter.grad = gradient  # an eager step in between set another one
        captured.graph.replay()
        return captured.sums.clone()
