"""What a network returns, from the numbers of its heads: tensors of any shape, in tuples, lists and dicts.

An element of an output is a sum of elements of heads, each times a gain, and a constant. So reshapes, permutations, slices,
concatenations and sums after the last weight layer, which only move or add numbers, are lists of places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer.frozen import freeze_fields, thawed


@dataclass(frozen=True, eq=False)
class Part:
    """Elements of one head, and their gains.

    Attributes:
        head: index of the head.
        index: int32 of the output's shape, flat: elements of the flattened head; −1 for nothing.
        gain: float64, likewise, or None for 1.
    """

    head: int
    index: Tensor
    gain: Tensor | None = None

    def __post_init__(self) -> None:
        freeze_fields(self)


@dataclass(frozen=True, eq=False)
class Output:
    """A tensor of this shape (without the batch): the sum of its parts and of `shift`, float64, flat, or None for 0."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        freeze_fields(self)

    def of(self, heads: Sequence[Tensor]) -> Tensor:
        """[B, *shape] float64 of the numbers of all heads, [B, ...] float64."""
        total: Tensor | None = None if self.shift is None else thawed(self.shift).expand(len(heads[0]), -1)
        for part in self.parts:
            index = thawed(part.index).long()
            chosen = heads[part.head].flatten(1)[:, index.clamp_min(0)]
            if part.gain is not None:
                chosen = chosen * thawed(part.gain)
            chosen = torch.where(index >= 0, chosen, 0.0)
            total = chosen if total is None else total + chosen
        assert total is not None
        return total.reshape(-1, *self.shape)


@dataclass(frozen=True)
class Group:
    """A "tuple", "list" or "dict" of outputs by their index, of other groups, and of None; `keys` are those of a dict."""

    kind: str
    items: tuple[Any, ...]
    keys: tuple[str | int, ...] = ()


@dataclass(frozen=True, eq=False)
class Readout:
    """The outputs, and how they are grouped: a group, or the index of the only output."""

    outputs: tuple[Output, ...]
    tree: Group | int

    def of(self, heads: Sequence[Tensor]) -> Any:
        """The network's result, in float32, of the numbers of all heads, [B, ...] float64."""
        tensors = [output.of(heads).to(torch.float32) for output in self.outputs]
        return _filled(self.tree, tensors)


def _filled(tree: Any, tensors: list[Tensor]) -> Any:
    if not isinstance(tree, Group):
        return None if tree is None else tensors[tree]
    items = [_filled(item, tensors) for item in tree.items]
    if tree.kind == "dict":
        return dict(zip(tree.keys, items, strict=True))
    return tuple(items) if tree.kind == "tuple" else items


def grouped(value: Any, outputs: list[Any]) -> Group | int | None:
    """The tree of a network's result; appends its tensors to `outputs`.

    Raises:
        TypeError: the result has something else in it; its type is the argument.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        outputs.append(value)
        return len(outputs) - 1
    if isinstance(value, dict) and all(isinstance(key, (str, int)) for key in value):
        return Group("dict", tuple(grouped(item, outputs) for item in value.values()), tuple(value))
    if isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple"
        return Group(kind, tuple(grouped(item, outputs) for item in value))
    raise TypeError(type(value).__name__)


def groups_fit(tree: Any, count: int) -> bool:
    """Whether the indices in a tree are those of so many outputs."""
    if isinstance(tree, Group):
        fits = len(tree.keys) == (len(tree.items) if tree.kind == "dict" else 0) and len(set(tree.keys)) == len(tree.keys)
        return fits and all(groups_fit(item, count) for item in tree.items)
    return tree is None or 0 <= tree < count
