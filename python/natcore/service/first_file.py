"""A first configuration file for a machine: its interfaces, and every other key as a comment."""

from __future__ import annotations

import ipaddress
import re
import socket
import textwrap
from dataclasses import dataclass

from natcore.internal.extras import extra
from natcore.service.keys import Key, keys
from natcore.service.tables import TABLES

_WIDE = 116
_EXAMPLE_POOL = "203.0.113.1"  # RFC 5737: no host's
_POOL = (
    "# The pool is an example. Its addresses are routed to this machine, or of its outside network; they are not the machine's",
    "# own: natcore answers ARP for them.",
)


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface that is up: its name and IPv4 addresses with their prefix lengths."""

    name: str
    addresses: tuple[ipaddress.IPv4Interface, ...]

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(map(str, self.addresses)) or 'no IPv4 address'}"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a file is written for. default_by: the interface of the IPv4 default route; None: there is no such route."""

    hostname: str
    interfaces: tuple[Interface, ...]
    default_by: str | None

    @property
    def outside(self) -> str:
        """The interface that leads outside: the default route's, else the last one."""
        names = [each.name for each in self.interfaces]
        return self.default_by or (names[-1] if names else "wan0")

    @property
    def inside(self) -> list[str]:
        """The other interfaces that have an address."""
        return [each.name for each in self.interfaces if each.name != self.outside and each.addresses] or ["lan0"]


def this_machine() -> Machine:
    """Return this machine. Raises MissingExtraError."""
    with extra("plane"):
        from pyroute2 import IPRoute

    with IPRoute() as route:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in route.get_links() if link["flags"] & 1}
        addresses: dict[int, list[ipaddress.IPv4Interface]] = {}
        for found in route.get_addr(family=socket.AF_INET):
            text = f"{found.get_attr('IFA_ADDRESS')}/{found['prefixlen']}"
            addresses.setdefault(found["index"], []).append(ipaddress.IPv4Interface(text))
        defaults = [each.get_attr("RTA_OIF") for each in route.get_default_routes(family=socket.AF_INET)]
    interfaces = tuple(
        Interface(name, tuple(addresses.get(index, ()))) for index, name in names.items() if name != "lo"
    )
    return Machine(socket.gethostname(), interfaces, next((names[each] for each in defaults if each in names), None))


def text_for(machine: Machine) -> str:
    """Return the file's text: good TOML, which `natcore check` takes."""
    sources = [
        str(address.network) for each in machine.interfaces if each.name in machine.inside for address in each.addresses
    ]
    instance = re.sub(r"[^A-Za-z0-9._-]", "-", machine.hostname) or "natcore"
    by_table: dict[str, list[Key]] = {}
    for key in keys():
        by_table.setdefault(key.heading, []).append(key)
    inside = machine.inside if len(machine.inside) > 1 else machine.inside[0]
    given: dict[str, dict[str, object]] = {
        "[gateway]": {"instance": instance},
        "[plane]": {"inside": inside, "outside": machine.outside},
    }
    lines = [
        "# A configuration of natcore. A key in a comment shows its default, or an example: `natcore config` says more.",
        "# `natcore check --here FILE` says what is wrong, `natcore run FILE` forwards, `natcore reload` takes changes.",
        "",
        "# Interfaces of this machine that are up:",
        *(f"#   {each}" for each in machine.interfaces),
        "# Inside hosts have their default route by this machine.",
    ]
    for heading in ("[plane]", "[gateway]"):
        lines += ["", heading, *_keys(by_table.pop(heading), given[heading])]
    for source in sources or ["10.0.0.0/16"]:
        values: dict[str, object] = {"source": source, "pool": _EXAMPLE_POOL}
        lines += ["", "[[snat]]", *_POOL, *_keys(by_table["[[snat]]"], values)]
    del by_table["[[snat]]"]
    for heading, found in by_table.items():
        commented = (line if line.startswith("#") else f"# {line}" for line in _keys(found, {}))
        lines += ["", *(f"# {part}" for part in heading.split(" ", 1)), *commented]
    return "\n".join(lines) + "\n"


def _keys(found: list[Key], given: dict[str, object]) -> list[str]:
    lines: list[str] = []
    for key in found:
        if f"{key.table}.{key.name}" in TABLES and key.type == "table":
            continue  # it stands below
        meaning = key.meaning.partition(". ")[0].rstrip(".")
        unit = f" ({key.unit})" if key.unit and key.unit.lower() not in meaning.lower() else ""
        lines += (
            textwrap.wrap(f"{meaning}{unit}.", _WIDE, initial_indent="# ", subsequent_indent="# ") if meaning else []
        )
        if key.name in given:
            lines.append(f"{key.name} = {_toml(given[key.name])}")
        else:
            lines.append(f"# {key.name} = {key.default or _example(key)}")
    return lines


def _example(key: Key) -> str:
    """Return a value of a key that has no default."""
    if key.allowed:
        return f'"{key.allowed[0]}"'
    return {"whole number": "1", "number": "1.0", "true or false": "true"}.get(key.type, "…")


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
