"""The reference says all: each argument of what is public has its description, by its name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest

import natcore
from natcore import sinks
from natcore.plane.plane import Plane
from natcore.sessionlog.session_log import SessionLog
from natcore.testing import SlsServer
from natcore.who.query import who

MADE = [
    natcore.Gateway,
    natcore.Policy,
    natcore.Behaviour,
    natcore.Timeouts,
    natcore.Link,
    natcore.SnatEntry,
    natcore.DnatEntry,
    natcore.NoNatEntry,
    natcore.Eip,
    natcore.DeliveryPolicy,
    natcore.FlowLog,
    natcore.Event,
    natcore.Generated,
    SlsServer,
    *(getattr(sinks, name) for name in sinks.__all__ if name.endswith("Sink") and name not in ("BaseSink", "Sink")),
]


def described(thing: Callable[..., Any]) -> list[str]:
    """The names in the section Parameters."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n---|\Z)", inspect.getdoc(thing) or "", re.S | re.M)
    names = re.findall(r"^(\w[\w, ]*)$", section[1], re.M) if section else []
    return [name for line in names for name in line.split(", ")]


def taken(thing: Callable[..., Any]) -> list[str]:
    """The names of its arguments."""
    return [name for name in inspect.signature(thing).parameters if name != "self"]


def calls(kind: type) -> list[Callable[..., Any]]:
    """The public methods of a class."""
    return [member for name, member in vars(kind).items() if inspect.isfunction(member) and not name.startswith("_")]


CALLED = [who, *(call for kind in (natcore.Gateway, Plane, SessionLog) for call in calls(kind) if described(call))]


@pytest.mark.parametrize("thing", [*MADE, *CALLED], ids=lambda thing: thing.__qualname__)
def test_each_argument_is_described(thing: Callable[..., Any]) -> None:
    assert sorted(described(thing)) == sorted(taken(thing))


def test_a_call_of_a_gateway_with_arguments_describes_them() -> None:
    assert not [call.__qualname__ for call in calls(natcore.Gateway) if taken(call) and not described(call)]


@pytest.mark.parametrize(
    "kind",
    [natcore.Side, natcore.Verdict, natcore.SessionState, natcore.RecordKind, natcore.RecordFlag, natcore.GapReason],
    ids=lambda kind: kind.__name__,
)
def test_each_code_is_described(kind: type[Enum]) -> None:
    section = (inspect.getdoc(kind) or "").partition("Attributes\n----------\n")[2]
    assert re.findall(r"^(\w+)$", section, re.M) == [member.name for member in kind]
