"""Every key of gateway.toml: type, unit, default and meaning, read from the tables and the docstrings of what they make."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from natcore import choices, sinks
from natcore.config import Behaviour, DeliveryPolicy, DnatEntry, Eip, Link, NoNatEntry, Policy, SnatEntry, Timeouts
from natcore.gateway import Gateway
from natcore.internal.extras import extra
from natcore.service.configuration_file import LOG_OPTIONS, SECRETS, sink_of, sink_parameters
from natcore.service.tables import TABLES

with extra("cli"):
    import msgspec
    from msgspec import UNSET, Struct, UnsetType

# What a table's keys are arguments of: its docstring says what they mean. Else the table has the docstring.
_MADE: dict[str, Callable[..., Any]] = {
    "gateway": Gateway, "gateway.inside": Link, "gateway.outside": Link, "policy": Policy, "policy.tcp": Behaviour,
    "policy.udp": Behaviour, "policy.icmp": Behaviour, "timeouts": Timeouts, "snat": SnatEntry, "snat.pool": Eip,
    "dnat": DnatEntry, "no_nat": NoNatEntry, "plane": Gateway.forward, "log": Gateway.start_session_log,
    "log.delivery": DeliveryPolicy,
}  # fmt: skip
_LISTS = {"snat", "dnat", "no_nat", "log"}  # [[snat]]: any number of them
_WORDS: dict[object, str] = {str: "string", int: "whole number", float: "number", bool: "true or false"}
_UNITS = {"unix": "Unix seconds", "icmp": "a second", "days": "days"} | {
    word: word for word in ("seconds", "bytes", "rows", "ports", "sessions", "mappings")
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the file.

    table: such as "gateway.inside", or "log" of a `sink`. type: in words. unit: "": it has none, or the meaning says it.
    default: as in the file; None: it must be given; "": the meaning says what holds without it. allowed: its values, if they
    are words. sink: "": of every one.
    """

    table: str
    name: str
    type: str
    unit: str
    default: str | None
    meaning: str
    allowed: tuple[str, ...] = ()
    sink: str = ""

    @property
    def heading(self) -> str:
        """The table's line in a file."""
        if self.table == "snat.pool":
            return "[[snat]] pool = {}"
        heading = f"[[{self.table}]]" if self.table in _LISTS else f"[{self.table}]"
        return f'{heading} sink = "{self.sink}"' if self.sink else heading


def keys() -> list[Key]:
    """Return every key, in the order of the tables."""
    found: list[Key] = []
    for table, struct in TABLES.items():
        if table == "":
            continue
        if table == "log.delivery":
            found += _log_keys()
        found += _of_struct(table, struct, _MADE.get(table, struct))
    return found


def _of_struct(table: str, struct: type[Struct], made: Callable[..., Any]) -> Iterator[Key]:
    meanings, defaults = parameters(made), inspect.signature(made).parameters
    for field in msgspec.structs.fields(struct):
        parameter = defaults.get(field.name)
        default = field.default if made is struct else parameter.default if parameter else UNSET
        yield Key(
            table, field.name, _type(field.type), _unit(table, field.name, _type(field.type), meanings.get(field.name, "")),
            None if field.required else _value(default), meanings.get(field.name, ""), _allowed(parameter),
        )  # fmt: skip


def _log_keys() -> Iterator[Key]:
    """Yield the keys of [[log]], then those of each sink."""
    kinds = {kind: sink_of(kind) for kind in sinks.DELIVERY_TYPES}
    yield Key(
        "log", "sink", "string", "", None, "Where the rows go; the sink has keys of its own.", tuple(sorted(kinds))
    )
    start = Gateway.start_session_log
    for name in LOG_OPTIONS:
        yield _of_parameter("", name, inspect.signature(start).parameters[name], parameters(start)[name])
    for kind, sink in sorted(kinds.items()):
        meanings = parameters(sink)
        for name, parameter in sink_parameters(sink).items():
            meaning = meanings.get(name, "")
            if name in SECRETS:
                told = f"A file that holds it; without, the environment variable NATCORE_{name.upper()}. {meaning}"
                yield Key("log", f"{name}_file", "string", "", "", told, sink=kind)
            else:
                yield _of_parameter(kind, name, parameter, meaning)


def _of_parameter(sink: str, name: str, parameter: inspect.Parameter, meaning: str) -> Key:
    default = None if parameter.default is parameter.empty else _value(parameter.default)
    kind = _type_named(str(parameter.annotation))
    return Key("log", name, kind, _unit("log", name, kind, meaning), default, meaning, _allowed(parameter), sink)


def parameters(made: Callable[..., Any]) -> dict[str, str]:
    """Return what the section Parameters of a docstring says of each, in one line."""
    found = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n---|\Z)", inspect.getdoc(made) or "", re.S | re.M)
    meanings: dict[str, str] = {}
    for names, text in re.findall(r"^(\w[\w, ]*)\n((?:    .*\n?|\n)+)", found[1] if found else "", re.M):
        meanings |= dict.fromkeys(names.split(", "), _in_toml(" ".join(text.split())))
    return meanings


def _in_toml(text: str) -> str:
    """Return a meaning in the words of a file, where an argument that is None is left out."""
    text = re.sub(r"(^|[.] )None: ", r"\1Left out: ", text)
    text = re.sub(r"\bNone: ", "left out: ", text)
    text = re.sub(r"\b(True|False)\b", lambda match: match[1].lower(), text)
    return re.sub(r"\((first, last|address, weight)\)", r"[\1]", text)


def _unit(table: str, name: str, kind: str, meaning: str) -> str:
    if kind not in ("number", "whole number"):
        return ""
    if table == "timeouts":
        return "seconds"
    first = re.match(r"\w+", meaning)
    return _UNITS.get(first[0].lower() if first else "") or _UNITS.get(name.rpartition("_")[2], "")


def _value(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return f'"{default}"'
    if isinstance(default, int | float):
        return f"{default:_}" if isinstance(default, int) and default >= 10_000 else f"{default}"
    if isinstance(default, tuple) and default:
        return "[" + ", ".join(map(_value, default)) + "]"
    return ""


def _allowed(parameter: inspect.Parameter | None) -> tuple[str, ...]:
    """Return the words of natcore.choices that an argument takes."""
    named = re.search(r"choices\.(\w+)", str(parameter.annotation)) if parameter is not None else None
    words = typing.get_args(getattr(choices, named[1])) if named else ()
    return tuple(word for word in words if isinstance(word, str))


def _type(kind: Any) -> str:
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    parts = [part for part in (typing.get_args(kind) if is_union else (kind,)) if part is not UnsetType]
    return " or ".join(dict.fromkeys(map(_of_one, parts)))


def _of_one(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return "list of tables" if _type(inner[0]) == "table" else f"list of {_plural(_type(inner[0]))}"
    if origin is tuple:
        return f"pair of {_type(inner[0])} and {_type(inner[1])}" if inner[0] != inner[1] else "pair of numbers"
    if isinstance(kind, type) and issubclass(kind, Struct):
        return "table"
    return "list of pairs" if "Sequence" in str(kind) else "table"


def _plural(words: str) -> str:
    return " or ".join(word if word.startswith(("pair", "true")) else f"{word}s" for word in words.split(" or "))


def _type_named(annotation: str) -> str:
    """Return the type of an annotation of a sink's argument."""
    if "Tls" in annotation:
        return "true or false or table"
    for word, kind in (
        ("choices.", str),
        ("LabelSource", str),
        ("str", str),
        ("bool", bool),
        ("float", float),
        ("int", int),
    ):
        if word in annotation and "Mapping" not in annotation:
            return _WORDS[kind]
    return "table"
