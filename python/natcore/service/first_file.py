"""A first configuration file for a machine: its interfaces, and every other key as a comment."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from ipaddress import IPv4Network

from natcore.errors import ConfigurationError
from natcore.service.keys import Key, keys
from natcore.service.machine import Interface, Sides, sides
from natcore.service.tables import TABLES

_WIDE = 116
_UNKNOWN = Sides(("lan0",), "wan0", (IPv4Network("10.0.0.0/16"),))


def text_for(there: Sequence[Interface], hostname: str) -> str:
    """Return the file's text: good TOML, which `natcore check` takes. there: the machine's interfaces.

    Where they do not tell which are inside and outside, the file says so, with names to change.
    """
    chosen, why_not = _UNKNOWN, ""
    try:
        chosen = sides(there)
    except ConfigurationError as error:
        why_not = str(error)
    by_table: dict[str, list[Key]] = {}
    for key in keys():
        by_table.setdefault(key.heading, []).append(key)
    inside = list(chosen.inside) if len(chosen.inside) > 1 else chosen.inside[0]
    given: dict[str, dict[str, object]] = {
        "[gateway]": {"instance": re.sub(r"[^A-Za-z0-9._-]", "-", hostname) or "natcore"},
        "[plane]": {"inside": inside, "outside": chosen.outside},
    }
    lines = [
        "# A configuration of natcore. A key in a comment shows its default, or an example: `natcore config` says more.",
        "# `natcore check --here FILE` says what is wrong, `natcore run FILE` forwards, `natcore reload` takes changes.",
        "",
        "# Interfaces of this machine that are up:",
        *(f"#   {each.name}: {', '.join(map(str, each.addresses)) or 'no IPv4 address'}" for each in there),
        *(_commented(f"Change the interfaces below: {why_not}") if why_not else ()),
    ]
    for heading in ("[plane]", "[gateway]"):
        lines += ["", heading, *_keys(by_table.pop(heading), given[heading])]
    for network in chosen.networks:
        values: dict[str, object] = {"source": network, "pool": "interface"}
        lines += ["", "[[snat]]", *_keys(by_table["[[snat]]"], values)]
    del by_table["[[snat]]"]
    for heading, found in by_table.items():
        commented = (line if line.startswith("#") else f"# {line}" for line in _keys(found, {}))
        lines += ["", *(f"# {part}" for part in heading.split(" ", 1)), *commented]
    return "\n".join(lines) + "\n"


def _commented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDE, initial_indent="# ", subsequent_indent="# ")


def _keys(found: list[Key], given: dict[str, object]) -> list[str]:
    lines: list[str] = []
    for key in found:
        if f"{key.table}.{key.name}" in TABLES and key.type == "table":
            continue  # it stands below
        meaning = key.meaning.partition(". ")[0].rstrip(".")
        unit = f" ({key.unit})" if key.unit and key.unit.lower() not in meaning.lower() else ""
        lines += _commented(f"{meaning}{unit}.") if meaning else []
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
