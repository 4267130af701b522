"""Frozen dataclasses that are cheap to define: the standard library's decorator compiles six functions for each class.

Defining 18 of them was a third of what `import natcore` cost. `dataclass` and `field` here stand in for the standard
library's at run time; type checkers, and the reference's generator, see those:

    if not TYPE_CHECKING:
        from natcore.internal.values import dataclass
    else:
        from dataclasses import dataclass

The functions are shared by all classes. What says more about a class (`dataclasses.fields`, `replace` and `asdict`,
`inspect.signature`) is asked of a standard dataclass with the same fields, made when it is asked for first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    import dataclasses
    import inspect

T = TypeVar("T")
_set = object.__setattr__
_twins: dict[type, type] = {}


class field:
    """How a field is treated: `repr` and `compare` as in `dataclasses.field`. It has no default."""

    __slots__ = ("compare", "repr")

    def __init__(self, *, repr: bool = True, compare: bool = True) -> None:
        self.repr, self.compare = repr, compare


class _Late:
    """An attribute of the class and of its objects that its standard twin has."""

    def __init__(self, take: Callable[[type], Any]) -> None:
        self._take = take

    def __get__(self, it: object, owner: type) -> Any:
        return self._take(_twin(owner))


def _fields_of(twin: type) -> dict[str, dataclasses.Field[Any]]:
    found: dict[str, dataclasses.Field[Any]] = twin.__dataclass_fields__  # type: ignore[attr-defined]
    return found


def _signature_of(twin: type) -> inspect.Signature:
    import inspect

    return inspect.signature(twin)


class _Value:
    """What all such classes share."""

    __slots__ = ()
    if TYPE_CHECKING:
        _names: tuple[str, ...]  # of all fields, in order
        _defaults: dict[str, object]
        _own: dict[str, field]  # those with a treatment of their own
        _positional: int  # how many arguments may be given without a name

    def __init__(self, *given: object, **named: object) -> None:
        names = self._names
        if len(given) > self._positional:
            raise TypeError(f"{type(self).__name__}() takes {self._positional} positional arguments, got {len(given)}")
        values = {**self._defaults, **dict(zip(names, given, strict=False)), **named}
        for name in names:
            if name not in values:
                raise TypeError(f"{type(self).__name__}() needs the argument '{name}'")
            _set(self, name, values[name])
        if named:
            for name in named:
                if name not in names:
                    raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument '{name}'")
                if name in names[: len(given)]:
                    raise TypeError(f"{type(self).__name__}() got the argument '{name}' twice")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check and convert the fields."""

    def __repr__(self) -> str:
        shown = [name for name in self._names if name not in self._own or self._own[name].repr]
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[object, ...]:
        compared = [name for name in self._names if name not in self._own or self._own[name].compare]
        return tuple([getattr(self, name) for name in compared])

    def __setattr__(self, name: str, value: object) -> NoReturn:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __replace__(self: T, /, **changes: object) -> T:
        from dataclasses import replace

        return replace(self, **changes)  # type: ignore[type-var]

    def __getstate__(self) -> list[object]:
        return [getattr(self, name) for name in self._names]

    def __setstate__(self, state: list[object]) -> None:
        for name, value in zip(self._names, state, strict=True):
            _set(self, name, value)

    __dataclass_fields__ = _Late(_fields_of)
    __signature__ = _Late(_signature_of)


def dataclass(*, frozen: bool, slots: bool, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """As `dataclasses.dataclass(frozen=True, slots=True)` for a class without a base that has fields."""
    if not (frozen and slots):
        raise TypeError("dataclass must be frozen and have slots")

    def define(cls: type[T]) -> type[T]:
        names = tuple(cls.__annotations__)
        space = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        given = {name: space.pop(name) for name in names if name in space}
        space |= {
            "__slots__": names,
            "__qualname__": cls.__qualname__,
            "__match_args__": () if kw_only else names,
            "_names": names,
            "_defaults": {name: value for name, value in given.items() if not isinstance(value, field)},
            "_own": {name: value for name, value in given.items() if isinstance(value, field)},
            "_positional": 0 if kw_only else len(names),
        }
        return type(cls.__name__, (_Value,), space)

    return define


def _twin(cls: Any) -> type:
    """Return the standard dataclass with the same fields."""
    if cls not in _twins:
        from dataclasses import MISSING, make_dataclass
        from dataclasses import field as standard

        rows = []
        for name in getattr(cls, "_names", ()):
            own = cls._own.get(name, field())
            default = cls._defaults.get(name, MISSING)
            rows.append(
                (name, cls.__annotations__[name], standard(default=default, repr=own.repr, compare=own.compare))
            )
        kw_only = bool(rows) and cls._positional == 0
        _twins[cls] = make_dataclass(cls.__name__, rows, frozen=True, slots=True, kw_only=kw_only)
    return _twins[cls]
