"""The arguments of a torch function for readers: the call, its layer, and what is known of its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nbsnn.integer.affine import Affine, ValueTable
from nbsnn.integer.arrangement import Arrangement, Form, as_affine, no_affine
from nbsnn.integer.nodes import Pair
from nbsnn.quant.layers import WeightQuantizer


@dataclass(frozen=True)
class Context:
    """A function call: known tensors, values, the layer's name and quantizer, and the function's result."""

    known: Mapping[Tensor, Form]
    values: ValueTable
    place: str
    layer: WeightQuantizer | None
    result: Any

    def of(self, tensor: Any) -> Form | None:
        """The form behind a tensor, or None for a constant."""
        return self.known[tensor] if isinstance(tensor, Tensor) and tensor in self.known else None

    def input(self, args: Any, kwargs: Mapping[str, Any]) -> Affine:
        """The affine function behind the first argument.

        Raises:
            NoForm: it is an arrangement that is none.
        """
        x = self.form(args, kwargs)
        found = as_affine(x, self.values)
        if found is None:
            assert isinstance(x, Arrangement)
            raise no_affine(x)
        return found

    def form(self, args: Any, kwargs: Mapping[str, Any]) -> Form:
        """The form behind the first argument."""
        x = self.of(args[0] if args else arguments("input", args, kwargs)["input"])
        assert x is not None  # the audit raises an error for a current anywhere else
        return x


Reader = Callable[[Context, Callable[..., Any], Any, Mapping[str, Any]], Form | list[Form]]


def arguments(names: str, args: Any, kwargs: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Positional and keyword arguments by name; `self` and `input` are the same."""
    given = {("input" if key == "self" else key): value for key, value in kwargs.items()}
    return defaults | dict(zip(names.split(), args, strict=False)) | given


def pair(value: Any) -> Pair:
    """A pair from a number or a pair."""
    first, *rest = value if isinstance(value, (tuple, list)) else (value,)
    return int(first), int(rest[0] if rest else first)


def sides(value: Any, alone: int, lines: bool) -> Pair:
    """The numbers of rows and columns; lines have one row, for which it is `alone`."""
    return (alone, pair(value)[0]) if lines else pair(value)


def shape_of(result: Tensor) -> tuple[int, ...]:
    """The shape without the batch."""
    return tuple(result.shape[1:])
