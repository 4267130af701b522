"""Attributes that a caller may read and not set; and the mark of an argument that was not given."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, Generic, NoReturn, Self, TypeVar, overload

Value = TypeVar("Value")


class Unset(Enum):
    """The type of UNSET, which stands for an argument that was not given where None is a mistake."""

    UNSET = "not given"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET


class ReadOnly(Generic[Value]):
    """A public attribute that its object alone sets, as the private one of the same name.

    AttributeError on setting and deleting: a change would be believed, and do nothing.
    """

    def __init__(self, doc: str, instead: str = "it is set when the object is made") -> None:
        self.__doc__ = doc
        self._instead = instead
        self._name = self._private = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name, self._private = f"{owner.__name__}.{name}", f"_{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Any, owner: type) -> Value: ...
    def __get__(self, instance: Any, owner: type) -> Value | Self:
        if instance is None:
            return self
        value: Value = getattr(instance, self._private)
        return value

    def __set__(self, instance: Any, value: NoReturn) -> NoReturn:
        raise AttributeError(f"{self._name} is read-only: {self._instead}")

    def __delete__(self, instance: Any) -> NoReturn:
        raise AttributeError(f"{self._name} is read-only: {self._instead}")
