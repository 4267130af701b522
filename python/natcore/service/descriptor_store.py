"""Packet rings that outlive `systemctl restart`: the manager keeps their sockets between two processes (FDSTORE, sd_notify(3)).

The old process ends before the new one is started. What it leaves with the manager are the rings of its plane, so that packets
that come meanwhile wait in them; the sessions are in the state file. A manager that keeps nothing closes what it is given, and
one that stops the unit closes it then.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from natcore.plane.left_plane import LeftInterface, LeftPlane
from natcore.service.notify import Notifier

VERSION = 1  # of what is kept
_NAME = "natcore-ring-"  # and a number: in which order they were given
_FIRST = 3  # SD_LISTEN_FDS_START
_MOST_BYTES = 1 << 20  # of the description


def keep(left: LeftPlane, notifier: Notifier) -> None:
    """Leave a plane's rings with the manager, and close them here."""
    with left:
        described = {
            "version": VERSION, "kind": left.kind, "interfaces": [each.encode() for each in left.interfaces.values()]
        }  # fmt: skip
        first = os.memfd_create("natcore-rings", os.MFD_CLOEXEC)
        try:
            os.write(first, json.dumps(described).encode())
            rings = [each for interface in left.interfaces.values() for each in interface.descriptors()[1:]]
            notifier.keep({f"{_NAME}{number}": descriptor for number, descriptor in enumerate((first, *rings))})
        finally:
            os.close(first)


def taken(notifier: Notifier) -> LeftPlane | None:
    """Return what a process before has left with the manager, which forgets it; None: nothing that can be used."""
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    count, process = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    if process != str(os.getpid()) or not count.isdecimal() or len(names) != int(count):
        return None
    given = dict(zip(names, range(_FIRST, _FIRST + int(count)), strict=True))
    own = {name: number for name, number in given.items() if name.startswith(_NAME)}
    for descriptor in own.values():
        os.set_inheritable(descriptor, False)
    notifier.forget(own)
    try:
        return _plane_of([own[f"{_NAME}{number}"] for number in range(len(own))])
    except (ValueError, KeyError, TypeError, OSError):  # another version's, or the manager has lost one
        for descriptor in own.values():
            with suppress(OSError):
                os.close(descriptor)
        return None


def _plane_of(descriptors: Sequence[int]) -> LeftPlane:
    """Raises ValueError, KeyError, TypeError, OSError; nothing is closed then."""
    if not descriptors:
        raise ValueError("nothing was kept")
    first, *rings = descriptors
    described = json.loads(os.pread(first, _MOST_BYTES, 0))
    if described["version"] != VERSION:
        raise ValueError("another version's")
    if len(rings) != 3 * sum(len(made["places"]) for made in described["interfaces"]):
        raise ValueError("the manager has lost some, or has others too")
    interfaces: dict[str, LeftInterface] = {}
    for made in described["interfaces"]:
        if not all(_is_of(each, made["name"]) for each in rings[: 3 * len(made["places"])]):
            raise ValueError("no ring of the interface: that was removed or renamed since")
        own, rings = rings[: 3 * len(made["places"])], rings[3 * len(made["places"]) :]
        interfaces[made["name"]] = LeftInterface.decode(made, [-1, *own])
    driver, at_once, workers, unit = described["kind"]
    os.close(first)
    return LeftPlane((driver, at_once, workers, unit), None, interfaces)


def _is_of(descriptor: int, name: str) -> bool:
    """Whether it is a packet socket bound to the interface that has this name now. One of an interface that was removed is
    bound to none, and no frame would ever come. Raises OSError: it is no socket."""
    with socket.socket(fileno=os.dup(descriptor)) as found:
        return found.family == socket.AF_PACKET and found.getsockname()[0] == name
