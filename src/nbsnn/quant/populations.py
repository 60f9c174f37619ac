"""Which tensors of a dry run are outputs of neurons, and of which: max pools are exact on those alone.

A max pool chooses between neurons by their counts, so all neurons of a channel must have the same threshold: they must be of
one layer. Sums, averages and weights make currents, which have no counts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from nbsnn.pooling import pool_oddity, pooled_axes
from nbsnn.quant.operations import ARRANGING, DROPOUT, Refusal
from nbsnn.tracing import LIKE, tensors_in


class Populations:
    """The number of the neuron layer behind each value of each tensor that holds outputs of neurons; 0 for padding."""

    def __init__(self) -> None:
        self._layers = 0
        # Tensor → numbers of its shape, and its version then: a later write in place makes it something else.
        self._numbers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def add(self, output: Tensor) -> None:
        """Note the output of a neuron layer."""
        self._layers += 1
        self._note(output, torch.full_like(output, self._layers))

    def follow(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any], sources: list[Tensor], result: Any
    ) -> None:
        """Note the result of a function, if it only arranges outputs of neurons."""
        if name not in ARRANGING | DROPOUT:
            return
        numbers = [self._of(source) for source in sources]
        given = [t for t in tensors_in(args[:1] if name in LIKE else (args, kwargs)) if t.is_floating_point()]
        if len(given) > len(sources) or any(n is None for n in numbers) or not _pads_with_zeros(name, args, kwargs):
            return
        if name in DROPOUT:
            self._note(result, numbers[0])
            return
        replaced = {id(source): number for source, number in zip(sources, numbers, strict=True)}
        own_args, own_kwargs = pytree.tree_map(lambda x: replaced.get(id(x), x), (tuple(args), dict(kwargs)))
        arranged = func(*own_args, **own_kwargs)
        for tensor, number in zip(tensors_in(result), tensors_in(arranged), strict=True):
            self._note(tensor, number)

    def pool(self, pool: nn.Module, x: Tensor, output: Any) -> Refusal | None:
        """Note the output of a max pool on x, or return why it is not exact."""
        kind = type(pool).__name__
        if (oddity := pool_oddity(pool)) is not None:
            return Refusal(f"{kind} {oddity}", "use nn.MaxPool2d or nn.MaxPool1d itself, without return_indices")
        numbers = self._of(x)
        if numbers is None:
            return Refusal(
                f"{kind} pools what is not the output of neurons",
                "put the pool next to the activation, before sums, averages and weight layers; nbsnn.prepare does it",
            )
        if x.dim() != pooled_axes(pool) + 2:
            return Refusal(f"{kind} pools a tensor of shape {list(x.shape)}", f"give it {pooled_axes(pool) + 2} axes")
        channels = numbers.transpose(0, 1).flatten(1)
        if not bool(((channels == channels.amax(1, keepdim=True)) | (channels == 0)).all()):
            return Refusal(
                f"{kind} compares neurons of several activations",
                "concatenate them along the channels, with dim=1, or pool before",
            )
        pooled = pool.forward(numbers)
        if bool(pooled.isinf().any()):
            return Refusal(f"a window of {kind} lies in the padding alone", "use less padding or dilation")
        self._note(output, pooled)
        return None

    def _note(self, tensor: Tensor, numbers: Tensor | None) -> None:
        self._numbers[tensor] = (numbers, tensor._version)

    def _of(self, tensor: Tensor) -> Tensor | None:
        if tensor not in self._numbers:
            return None
        numbers, version = self._numbers[tensor]
        return numbers if version == tensor._version else None


def _pads_with_zeros(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a function, if it is `pad`, adds zeros or values of the tensor."""
    value = args[3] if len(args) > 3 else kwargs.get("value")
    return name != "pad" or value is None or value == 0
