"""What belongs to a thread: values that every caller of a shared object has for itself."""

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload
from weakref import WeakKeyDictionary

Value = TypeVar("Value")


class PerThread(Generic[Value]):
    """An attribute with a value per object and thread: what one thread sets no other one sees.

    The object itself holds nothing, so that it is copied and pickled as if the attribute was not there.

    Args:
        default: makes the value of a thread that has set none.
    """

    def __init__(self, default: Callable[[], Value]) -> None:
        self._default, self._local = default, threading.local()

    def _values(self) -> "WeakKeyDictionary[Any, Value]":
        if not hasattr(self._local, "values"):
            self._local.values = WeakKeyDictionary()
        values: WeakKeyDictionary[Any, Value] = self._local.values
        return values

    @overload
    def __get__(self, instance: None, owner: type) -> "PerThread[Value]": ...
    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...
    def __get__(self, instance: object | None, owner: type) -> "PerThread[Value] | Value":
        if instance is None:
            return self
        values = self._values()
        return values[instance] if instance in values else self._default()

    def __set__(self, instance: object, value: Value) -> None:
        self._values()[instance] = value
