"""Objects of which a module keeps track without keeping them: what is left at the program's end is ended then."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

Object = TypeVar("Object")


class Alive(Generic[Object]):
    """Weak references. A thread may add one, and the garbage collector remove one, while another thread looks at them:
    a WeakSet raises RuntimeError then. No lock, so that a fork finds none held."""

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[Object]] = {}

    def add(self, it: Object) -> None:
        key = id(it)
        self._references[key] = weakref.ref(it, lambda _: self._references.pop(key, None))

    def discard(self, it: Object) -> None:
        self._references.pop(id(it), None)

    def clear(self) -> None:
        self._references.clear()

    def __iter__(self) -> Iterator[Object]:
        for reference in list(self._references.values()):  # in one step of the interpreter
            it = reference()
            if it is not None:
                yield it
