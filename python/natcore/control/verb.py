"""Verbs: what a client of the control socket may ask. Each is a function over a `Context`, known by its name.

    @verb("ports")
    def ports(context: Context, *, outside: str | None = None) -> Answer:
        for row in ...:
            yield {"outside_ip": ...}
        return {"rows": ...}

Keyword arguments are the request's; their annotations are checked. The function yields rows (a mapping, or a list of them), and
returns the summary. It yields an empty list to let others have their turn, and None where nothing is there to tell now: it is
asked again a moment later. Rows are taken as the client reads them, so that an answer of any length needs little memory.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from natcore.control.protocol import Row
from natcore.errors import ControlError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra
from natcore.internal.parts import parts_of

with extra("cli"):
    import msgspec

if TYPE_CHECKING:
    from natcore.control.history import History
    from natcore.gateway import Gateway

Answer = Generator[Row | list[Row] | None, None, Mapping[str, Any] | None]
Function = Callable[..., Answer | Mapping[str, Any]]

# The modules that have verbs; imported when a server starts.
MODULES = (
    "natcore.control.verbs.about",
    "natcore.control.verbs.tables",
    "natcore.control.verbs.find",
    "natcore.control.verbs.change",
    "natcore.control.verbs.watch",
    "natcore.control.verbs.reload",
    "natcore.control.verbs.measure",
    "natcore.control.verbs.past",
)


@dataclass(frozen=True)
class Peer:
    """The process at the other end, as the kernel knows it (SO_PEERCRED, SO_PEERGROUPS).

    Parameters
    ----------
    pid
        Its number; 0: it is in a namespace that this process does not see.
    uid
        Its user.
    groups
        Its groups, all of them.
    writer
        Whether it may use verbs that change something.
    """

    pid: int
    uid: int
    groups: frozenset[int]
    writer: bool


@dataclass(frozen=True)
class Context:
    """What a verb works with.

    Parameters
    ----------
    gateway
        The gateway.
    service
        The `natcore run` around it (`natcore.service.run.Service`); None: another program's gateway.
    peer
        Who asks.
    control
        Counters of the control socket itself, by name.
    history
        What the gateway counted over the last hour; for verbs that are not slow.
    """

    gateway: Gateway
    service: Any
    peer: Peer
    history: History
    control: Mapping[str, int] = field(default_factory=dict)

    def require_service(self) -> Any:
        """Return the service. Raises ControlError: the gateway is not one of `natcore run`."""
        if self.service is None:
            raise ControlError("this gateway belongs to another program than `natcore run`; ask that program")
        return self.service


@dataclass(frozen=True)
class Verb:
    """A verb.

    Parameters
    ----------
    name
        What a request says.
    function
        What answers it.
    writes
        For writers alone: it changes something, shows what packets hold, or makes packets wait.
    slow
        It may wait: it runs in a thread of its own.
    changes
        It changes the gateway in several steps: one such verb at a time, and none during a reload. It is slow, and writes.
    standby
        It is answered by the standby of a pair too, which has no packets and no sessions of its own.
    arguments
        A msgspec struct of its keyword arguments.
    """

    name: str
    function: Function
    writes: bool
    slow: bool
    changes: bool
    standby: bool
    arguments: type[msgspec.Struct]

    def start(self, context: Context, given: Mapping[str, Any]) -> Answer:
        """Check the arguments, and begin the answer. Raises ControlError."""
        try:
            checked = msgspec.convert(given, self.arguments)
        except msgspec.ValidationError as error:
            raise ControlError(f"{self.name}: {_in_words(self, str(error))}", ExitCode.USAGE) from None
        values = {name: getattr(checked, name) for name in self.arguments.__struct_fields__}
        if self.changes:
            return _alone(context.gateway, lambda: self.function(context, **values))
        return _answer(self.function(context, **values))


def _answer(given: Answer | Mapping[str, Any]) -> Answer:
    return given if isinstance(given, Generator) else _only(given)


def _alone(gateway: Gateway, function: Callable[[], Answer | Mapping[str, Any]]) -> Answer:
    """Answer when nothing else changes the gateway; in one thread from its first row to its end."""
    lock = parts_of(gateway).one_at_a_time
    while not lock.acquire(blocking=False):
        yield None
    try:
        return (yield from _answer(function()))
    finally:
        lock.release()


def _only(summary: Mapping[str, Any]) -> Answer:
    yield []
    return summary


def _in_words(asked: Verb, text: str) -> str:
    if "unknown field" in text:
        name = text.partition("`")[2].partition("`")[0]
        known = ", ".join(asked.arguments.__struct_fields__) or "none"
        return f"unknown argument {name!r}; known are {known}"
    return text


_verbs: dict[str, Verb] = {}


def verb(
    name: str, *, writes: bool = False, slow: bool = False, changes: bool = False, standby: bool = False
) -> Callable[[Function], Function]:
    """Make a function a verb.

    Parameters
    ----------
    name
        What requests say.
    writes
        For writers alone: it changes something, shows what packets hold, or makes packets wait.
    slow
        It may wait: it runs in a thread of its own.
    changes
        It changes the gateway in several steps: one such verb at a time, and none during a reload. It is slow, and writes.
    standby
        It is answered by the standby of a pair too, which has no packets and no sessions of its own.
    """

    def register(function: Function) -> Function:
        hints = typing.get_type_hints(function)
        columns = []
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            kind = hints[parameter.name]
            bare = parameter.default is parameter.empty
            columns.append((parameter.name, kind) if bare else (parameter.name, kind, parameter.default))
        arguments = msgspec.defstruct(name, columns, frozen=True, forbid_unknown_fields=True, kw_only=True)
        if name in _verbs and _verbs[name].function.__module__ != function.__module__:
            raise ValueError(f"verb {name!r} is there already, of {_verbs[name].function.__module__}")
        _verbs[name] = Verb(name, function, writes or changes, slow or changes, changes, standby, arguments)
        return function

    return register


def verbs() -> Mapping[str, Verb]:
    """Return all verbs by name."""
    for module in MODULES:
        import_module(module)
    return _verbs
