"""Read-only tensors for the numbers of an integer network.

Backends cache weights in their own layouts. A write in place would silently reach one backend and not another, so it raises an
error; to change weights, make another network.
"""

from dataclasses import fields
from typing import Any, NoReturn
from weakref import ref

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from nbsnn.errors import LoweringError


class FrozenTensor(Tensor):
    """A tensor that torch functions can read and not write.

    Results of functions are ordinary tensors, views are frozen too, and conversions such as `numpy()` copy.
    """

    _plain: Tensor  # the same memory
    _self: "ref[FrozenTensor]"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        for index, argument in enumerate(func._schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write:
                tree_map_only(FrozenTensor, _refuse, value)
        result = func(*tree_map(thawed, args), **tree_map(thawed, kwargs))
        is_view = any(returned.alias_info is not None for returned in func._schema.returns)
        return tree_map(_viewed, result) if is_view else result

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return repr(self._plain)

    def numpy(self, *, force: bool = False) -> NDArray[Any]:
        array: NDArray[Any] = self._plain.numpy(force=force).copy()
        array.flags.writeable = False
        return array

    def __array__(self, dtype: Any = None, **options: Any) -> NDArray[Any]:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, **options: Any) -> Any:
        return self._plain.clone().__dlpack__(**options)

    def untyped_storage(self) -> NoReturn:
        _refuse(self)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        _refuse(self)

    def __deepcopy__(self, memo: Any) -> "FrozenTensor":
        return self

    def tolist(self) -> Any:
        return self._plain.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return frozen, (self._plain,)


def frozen(tensor: Tensor) -> FrozenTensor:
    """A read-only copy; a frozen tensor is returned unchanged."""
    return tensor if isinstance(tensor, FrozenTensor) else _viewed(tensor.detach().clone(memory_format=torch.contiguous_format))


def thawed(value: Any) -> Any:
    """A frozen tensor's memory as an ordinary tensor, for code that does not write to it; other values unchanged."""
    return value._plain if isinstance(value, FrozenTensor) else value


def freeze_fields(self: Any) -> None:
    """Freeze the tensors among the fields of a frozen dataclass, in its `__post_init__`."""
    for field in fields(self):
        if isinstance(value := getattr(self, field.name), Tensor):
            object.__setattr__(self, field.name, frozen(value))


def _viewed(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    result = Tensor._make_subclass(FrozenTensor, value)
    result._plain = value
    result._self = ref(result)  # torch.utils.swap_tensors swaps no tensor that has a weak reference
    return result


def _refuse(_value: Any) -> NoReturn:
    raise LoweringError(
        "the numbers of an integer network cannot be changed in place; make another one: "
        "IntegerNetwork(dataclasses.replace(network.program, ...)), or change the quantized network and lower it again"
    )
