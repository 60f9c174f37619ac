"""A spiking network: the quantized module tree with neurons for activations, and the stepping of time around it."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.errors import ConversionError
from nbsnn.inputs import as_images, to_network
from nbsnn.precision import full_float32
from nbsnn.spiking.functional import fold, unfold
from nbsnn.spiking.neuron import Clock, IFNeuron, Neuron, Schedule


class SpikingNetwork(nn.Module):
    """Result of `nbsnn.to_spiking`. Called on images [B, C, H, W], it returns logits [B, classes], averaged over T.

    In evaluation mode it computes in full float32 (`nbsnn.full_float32`): TF32 would break what the exact schedules promise.

    Attributes:
        network: the module tree; its state dict is the quantized network's, and so is this object's own.
        timesteps: T, the steps in which the image is shown.
        image_shape: (C, H, W) of the example that the audit ran.
        depth: neurons on the longest path from image to head.
        steps: [B] int64, steps that each image of the last call took: T ("fixed"), until the last neuron was silent
            ("settle"), or (depth + 1)·T ("barrier").
    """

    def __init__(
        self,
        network: nn.Module,
        clock: Clock,
        *,
        neuron: Neuron,
        schedule: Schedule,
        depth: int,
        image_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.network = network
        self.neuron, self.schedule, self.depth = neuron, schedule, depth
        self.image_shape = image_shape
        self.steps = torch.zeros(0, dtype=torch.int64)
        self._clock = clock
        self.training = network.training
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    @property
    def timesteps(self) -> int:
        """T = 2^b − 1."""
        return self._clock.timesteps

    def forward(self, images: Tensor) -> Tensor:
        evaluated = not self.training and not torch.compiler.is_compiling()
        # An image of NaN makes no spike, and would pass for a black one.
        images = to_network(as_images(images, ranks=(len(self.image_shape) + 1,), finite=evaluated), self.network)
        try:
            with full_float32() if evaluated else nullcontext():
                total = self._settle(images) if self.schedule == "settle" else self._drive(images)
        finally:
            for module in self.network.modules():
                if isinstance(module, IFNeuron):
                    module.reset()
        return total / self.timesteps

    def _drive(self, images: Tensor) -> Tensor:
        """T steps with the image as a constant current; returns the head's summed current [B, classes]."""
        taken = (self.depth + 1) * self.timesteps if self.schedule == "barrier" else self.timesteps
        self.steps = torch.full((len(images),), taken)
        self._clock.begin("drive")
        return self._run(images)

    def _settle(self, images: Tensor) -> Tensor:
        """Drive, then step on without image and bias until a wholly silent step: from there on nothing can happen."""
        T = self.timesteps
        self._clock.begin("rest")
        bias: Tensor = self.network(torch.zeros_like(images[:1]))
        total: Tensor = self._drive(images)
        nothing = torch.zeros_like(images)
        done, longest = T, T + (self.depth - 1) * (T - 1) + 1
        while True:
            self._clock.begin("drain")
            total = total + self._run(nothing) - T * bias
            activity = self._clock.activity().cpu()
            last = (activity * torch.arange(1, T + 1)[:, None]).amax(0)  # 0: silent throughout
            self.steps = torch.where(last > 0, done + last, self.steps)
            done += T
            if not bool(activity.any(1).all()):
                return total
            if done > longest + T:
                raise ConversionError(f"still firing after {done} steps, where {longest} suffice: run it in float64")

    def _run(self, images: Tensor) -> Tensor:
        folded = fold(images.unsqueeze(0).expand(self.timesteps, *images.shape))
        current: Tensor = self.network(folded)
        total: Tensor = unfold(current, self.timesteps).sum(0)
        return total

    def extra_repr(self) -> str:
        return f"T={self.timesteps}, neuron={self.neuron}, schedule={self.schedule}, depth={self.depth}"


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    inner = f"{prefix}network."
    for key in [k for k in state if k.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    inner = f"{prefix}network."
    for key in [k for k in state if k.startswith(prefix) and not k.startswith(inner)]:
        state[inner + key.removeprefix(prefix)] = state.pop(key)
