"""Thread-local attributes of shared objects."""

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload
from weakref import WeakKeyDictionary

Value = TypeVar("Value")


class PerThread(Generic[Value]):
    """An attribute with one value per object and thread: other threads do not see the value that a thread sets.

    The object itself does not hold the value, so it is copied and pickled without it.

    Args:
        default: makes the initial value of a thread.
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
