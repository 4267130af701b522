"""Printers for gdb of the core's main structs: `gdb -x .ci/gdb.py --args build/debug/venv/bin/python PROGRAM`.

`print *session` shows endpoints, counters and state in one line; `print/r` shows the fields. Read by gdb, in gdb's own Python.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import Any

import gdb  # type: ignore[import-not-found]

PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP"}
NONE = 0xFFFFFFFF
FLAGS = {
    1: "opened outside",
    2: "unlogged",
    4: "no window",
    8: "hairpinned",
    16: "untranslated",
    32: "SYN out",
    64: "SYN in",
    128: "free",
}


def quad(value: Any) -> str:
    """An address that lies big-endian in memory."""
    return socket.inet_ntoa(struct.pack("=I", int(value)))


def host_quad(value: Any) -> str:
    """An address in host order."""
    return socket.inet_ntoa(struct.pack("!I", int(value)))


def port(value: Any) -> int:
    """A port that lies big-endian in memory."""
    return socket.ntohs(int(value))


def protocol(value: Any) -> str:
    """TCP, UDP, ICMP, or the number."""
    return PROTOCOLS.get(int(value), f"protocol {int(value)}")


def flags(value: Any) -> str:
    """A session's flags in words."""
    return ", ".join(word for bit, word in FLAGS.items() if int(value) & bit) or "-"


def session(of: Any) -> str:
    """The hot line."""
    ends = [f"{quad(of['ip'][role])}:{port(of['port'][role])}" for role in range(3)]  # inside, remote, outside
    return (
        f"{protocol(of['protocol'])} {ends[0]} as {ends[2]} to {ends[1]}, state {int(of['state'])}, "
        f"seen at {int(of['last_seen'])} ms, out {int(of['packets'][0])}/{int(of['bytes'][0])} "
        f"in {int(of['packets'][1])}/{int(of['bytes'][1])} in this window; {flags(of['flags'])}"
    )


def mapping(of: Any) -> str:
    """A mapping, whatever it depends on."""
    inside, outside = (f"{quad(of[f'{side}_ip'])}:{port(of[f'{side}_port'])}" for side in ("inside", "outside"))
    return f"{protocol(of['protocol'])} {inside} as {outside}, {int(of['sessions'])} sessions, entry {int(of['entry'])}"


def subscriber(of: Any) -> str:
    """An inside host."""
    return f"{quad(of['ip'])}: {int(of['mappings'])} mappings, {int(of['sessions'])} sessions"


def dnat_entry(of: Any) -> str:
    """A DNAT or 1:1 entry."""
    targets = ", ".join(quad(of["targets"][at]["ip"]) for at in range(min(4, int(of["target_count"]))))
    return f"entry {int(of['entry'])}: {quad(of['outside_ip'])}:{int(of['outside_port'])} to {targets}:{int(of['inside_port'])}"


def snat_entry(of: Any) -> str:
    """An SNAT entry."""
    pool = of["pool"]
    return f"entry {int(pool['entry'])}: from {host_quad(pool['first'])} on, {int(pool['size'])} outside addresses"


def plain_entry(of: Any) -> str:
    """A no-NAT entry."""
    ends = (f"{host_quad(of[end])}/{int(of[f'{end}_mask']).bit_count()}" for end in ("source", "destination"))
    return f"entry {int(of['entry'])}: {' to '.join(ends)}, untranslated"


def worker(of: Any) -> str:
    """A worker: its tables, its clock, its lock."""
    held = next(name for name in ("locked", "held", "lock") if name in {field.name for field in of.type.fields()})
    return (
        f"worker {int(of['number'])}: {int(of['sessions']['slots']['live'])} sessions, "
        f"{int(of['mappings']['mapping_slots']['live'])} mappings, now {int(of['now_ns']) / 1e9:.3f} s, "
        f"{'locked' if int(of[held]) else 'free'}"
    )


PRINTERS = {
    "Session": session, "Mapping": mapping, "Subscriber": subscriber, "Worker": worker,
    "SnatRule": snat_entry, "DnatRule": dnat_entry, "NoNatRule": plain_entry,
}  # fmt: skip


class Line:
    """What gdb wants of a printer."""

    def __init__(self, value: Any, words: Any) -> None:
        self._value, self._words = value, words

    def to_string(self) -> str:
        """The line."""
        return str(self._words(self._value))


def look_up(value: Any) -> Line | None:
    """The printer of a struct of the core, by its name in C."""
    name = re.fullmatch(r"(?:struct )?__pyx_t_7natcore_\w+_([A-Z]\w*?)", str(value.type.unqualified().strip_typedefs()))
    words = PRINTERS.get(name[1]) if name else None
    return Line(value, words) if words else None


gdb.pretty_printers.append(look_up)
