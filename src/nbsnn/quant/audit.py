"""The audit: a dry run that raises an error for operations that would make spikes differ from activations.

Only affine functions are allowed between two activations: they commute with the mean over time. The audit intercepts every
    torch function on tensors that depend on the image. The error names the layer of the first one that is not affine, and says
    what to write instead. `to_spiking` and `lower` run it first, so both accept the same networks. `quantize` runs it if it has
    images, so that a network that cannot be converted is not trained.

Max pools are allowed on the outputs of neurons; `quant/populations.py` knows which tensors are that.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from nbsnn.errors import ConversionError
from nbsnn.finite import check_logits
from nbsnn.pooling import MAX_POOLS
from nbsnn.quant.flow import BATCH, Flow
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.quant.operations import (
    AFFINE,
    DROPOUT,
    MOVING_AXES,
    PRODUCTS,
    QUOTIENTS,
    batch_statistics,
    moves_batch_axis,
    refused_function,
)
from nbsnn.quant.populations import Populations
from nbsnn.structure import odd_output
from nbsnn.surgery import evaluation_mode
from nbsnn.tracing import tensors_in

_UNSEEN = (
    "does not descend from the image by torch functions the audit can see; compute it from the image in forward, without "
    "NumPy, TorchScript or a torch.autograd.Function"
)


def audit(quantized: nn.Module, example: Tensor) -> Flow:
    """Run a quantized network on an example [B, ...], and raise an error if it cannot be converted.

    Returns:
        The data flow of the run; its `depth` is the number of neurons on the longest path from image to head.
    Raises:
        ConversionError: names the layer and what to write instead.
    """
    _check_quantized(quantized)
    run = _Audit(quantized)
    output = run.run(example, ConversionError)
    outputs = list(tensors_in(output))
    if (odd := odd_output(output)) is not None or not outputs:
        raise ConversionError(
            f"the network returns a {odd or 'result without a tensor'}; return tensors, in tuples, lists or dicts"
        )
    if any(tensor not in run.known for tensor in outputs):
        raise ConversionError(f"the network's output {_UNSEEN}")
    run.check_overwritten(outputs)
    if run.depth == 0:
        raise ConversionError("no quantized activation lies between image and output; call one in forward: x = self.act(x)")
    run.check_loose()
    if any(tensor.dim() < 2 for tensor in outputs):
        raise ConversionError("the network returns one axis, that of the batch; return [B, 1], without a squeeze at the end")
    _check_images_stay_apart(quantized, example[:1])
    return run


def _check_quantized(network: nn.Module) -> None:
    """Raise an error for a network without a quantized activation."""
    modules = list(network.modules())
    if not any(isinstance(module, QuantReLU) for module in modules):
        if any(isinstance(module, WeightQuantizer) for module in modules):
            raise ConversionError(
                "the network has quantized weights but no quantized activation; quantize the float network that it was made "
                "from with act_bits < 32"
            )
        raise ConversionError("the network has no quantized activation; call nbsnn.quantize on it first, with act_bits < 32")


@torch.no_grad()
def _check_images_stay_apart(quantized: nn.Module, image: Tensor) -> None:
    """Raise an error if a result depends on other images of the batch: with time folded into the batch, steps would mix.

    The audit finds most such operations by name; this check also finds a constant matrix over the batch axis, or an index into
    it.
    """
    with evaluation_mode(quantized):
        try:
            results = (quantized(torch.cat([image, other])) for other in (-image, torch.zeros_like(image)))
            first, second = (list(tensors_in(result)) for result in results)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConversionError(f"the network does not run on a batch of 2 images ({reason}); keep axis 0 free") from error
        for logits in first:
            check_logits(logits, ConversionError, network=quantized, images=torch.cat([image, -image]))
    if not all(torch.allclose(a[0], b[0], rtol=1e-4, atol=1e-4) for a, b in zip(first, second, strict=True)):
        raise ConversionError(
            "the result for an image depends on the other images of its batch; keep axis 0 first and untouched "
            "(no indexing, matrix product or permutation over it)"
        )


class _Audit(Flow):
    opaque = (QuantReLU, *MAX_POOLS)

    def __init__(self, quantized: nn.Module) -> None:
        super().__init__(quantized, activations=QuantReLU)
        self.populations = Populations()
        # Memory address → activation that worked in place in the float network, and its input, to which a reference is held.
        self.overwritten: dict[int, list[tuple[str, Tensor]]] = {}

    def check_loose(self) -> None:
        """Raise an error if a quantized layer's weight is used without a call of the layer: it would not be quantized."""
        for parameter, function in self.loose.items():
            if isinstance(self.layer_of(parameter), WeightQuantizer):
                raise ConversionError(f"{parameter} is used in {function}() without a call of its layer; call the layer")

    def entered(self, name: str, module: nn.Module, inputs: list[Tensor]) -> None:
        if isinstance(module, QuantReLU):
            if name in self.seen:
                raise ConversionError(
                    f"{name} is called more than once, and a neuron has one place; use a separate nn.ReLU for each call"
                )
            if not any(t in self.known for t in inputs):
                raise ConversionError(f"the current of {name} {_UNSEEN}")
            self.check_overwritten(inputs)
            if module.inplace:
                self.overwritten.setdefault(inputs[0].untyped_storage().data_ptr(), []).append((name, inputs[0]))
        super().entered(name, module, inputs)

    def left(self, name: str, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        super().left(name, module, inputs, output)
        if isinstance(module, QuantReLU):
            self.populations.add(output)
        elif isinstance(module, MAX_POOLS) and any(t in self.known for t in inputs):
            if (refusal := self.populations.pool(module, inputs[0], output)) is not None:
                self._refuse(*refusal)
            self.note(output, inputs)

    def called(self, func: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any], sources: list[Tensor]) -> Any:
        for parameter in self.parameters_in(args, kwargs):
            if isinstance(self.layer_of(parameter), QuantReLU):
                self._refuse(f"{parameter} is used in {name}() without a call of its activation", "call that: self.act(x)")
        self._check(func, name, args, kwargs, sources)
        self.check_overwritten(sources)
        stride, shape = sources[0].stride(0), list(sources[0].shape)  # before the call: it may work in place
        result = super().called(func, name, args, kwargs, sources)
        self.populations.follow(func, name, args, kwargs, sources, result)
        self._check_batch_axis(name, stride, shape, result, reduced=_reduces_first_axis(name, args, kwargs))
        return result

    def check_overwritten(self, tensors: list[Tensor]) -> None:
        """Raise an error if a tensor that an in-place ReLU overwrote is used: the quantized activation does not change it."""
        for tensor in tensors:
            for name, written in self.overwritten.get(tensor.untyped_storage().data_ptr(), ()):
                if _overlap(tensor, written):
                    self._refuse(f"{name} worked in place, and what it overwrote is used", "use its result: write x = act(x)")

    def _check(self, func: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any], sources: list[Tensor]) -> None:
        if moves_batch_axis(name, sources[0].dim()):
            self._refuse(f".{name} moves the batch axis", "keep the batch axis first; use x.transpose(1, 2) and the like")
        later = list(tensors_in((args[1:], {k: v for k, v in kwargs.items() if k not in ("input", "self")})))
        weighted = name in QUOTIENTS or name.startswith("conv") or name in ("linear", "batch_norm")
        if (name in PRODUCTS and len(sources) > 1) or (weighted and any(t in self.known for t in later)):
            self._refuse(f"{name}() of two currents", "multiply or divide currents by constants or parameters only")
        if name in DROPOUT:
            if _argument(func, args, kwargs, "training"):
                self._refuse("dropout is active in evaluation mode", "use nn.Dropout, or give F.dropout training=self.training")
            return
        if name == "batch_norm":
            if _argument(func, args, kwargs, "training"):
                self._refuse(*batch_statistics(self.innermost))
            return
        if name not in AFFINE:
            self._refuse(*refused_function(name, self.innermost))
        if kwargs.get("rounding_mode") is not None:
            self._refuse(f"{name}() rounds currents", "leave rounding to the quantized activations")
        if name == "index_select" and _argument_at(args, kwargs, 1, "dim") in (0, -args[0].dim()):
            self._refuse("index_select() selects from the batch axis", "keep axis 0 first and untouched")
        if name == "getitem" and not _keeps_first_axis(args[1]):
            self._refuse("indexing selects from the batch axis", "index as x[:, ...]")

    def _check_batch_axis(self, name: str, stride: int, shape: list[int], result: Any, *, reduced: bool) -> None:
        for output in tensors_in(result):
            if not output.is_floating_point():
                self._refuse(f"{name}() turns currents into {output.dtype}", "keep them in floating point")
            moved = name in MOVING_AXES and output.stride(0) != stride
            if output.dim() == 0 or output.shape[0] != BATCH or moved or reduced:
                self._refuse(
                    f"{name}() turns shape {shape} into {list(output.shape)}, which does not keep the batch axis",
                    "keep axis 0 first and untouched, as x.flatten(1) does",
                )

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise ConversionError(f"{what} at {self.place}; {remedy}")


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors in one storage share elements."""
    size = first.untyped_storage().nbytes() // first.element_size()
    places = torch.zeros(size, dtype=torch.bool)
    torch.as_strided(places, first.shape, first.stride(), first.storage_offset()).fill_(True)
    return bool(torch.as_strided(places, second.shape, second.stride(), second.storage_offset()).any())


def _argument(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    try:
        bound = inspect.signature(func).bind(*args, **kwargs)
    except ValueError:  # a builtin, such as torch.dropout: its one flag before the last says "training"
        return any(value is True for value in (*args[:6], kwargs.get("train"), kwargs.get(name)))
    bound.apply_defaults()
    return bound.arguments.get(name)


def _argument_at(args: Any, kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _reduces_first_axis(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    if name not in ("mean", "sum"):
        return False
    axes = _argument_at(args, kwargs, 1, "dim")
    chosen = axes if isinstance(axes, (tuple, list)) else [axes]
    return any(axis is None or axis % args[0].dim() == 0 for axis in chosen)


def _keeps_first_axis(index: Any) -> bool:
    first = index[0] if isinstance(index, tuple) else index
    return first is Ellipsis or first == slice(None)
