"""gateway.toml: its tables become the constructors' arguments; an error names file, key, value and what is expected."""

from __future__ import annotations

import inspect
import os
import re
import tomllib
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from natcore import sinks
from natcore.config import (
    AnyEntry,
    Behaviour,
    DeliveryPolicy,
    DnatEntry,
    Eip,
    Link,
    NoNatEntry,
    Policy,
    SnatEntry,
    Timeouts,
)
from natcore.entries.changes import Add
from natcore.entries.table import EntryConflict
from natcore.errors import ConfigurationError
from natcore.gateway import Gateway
from natcore.internal.extras import extra
from natcore.internal.redaction import is_secret, plain, printable, redact, show, show_text
from natcore.internal.validation import check_choice, check_path, either

with extra("cli"):
    import msgspec
    from msgspec import UNSET, Struct, UnsetType

# Arguments that are never written into the file: from <argument>_file or the environment variable NATCORE_<ARGUMENT>.
SECRETS = frozenset({"access_key_id", "access_key_secret", "security_token", "password"})


Table = TypeVar("Table", bound=Struct)
Made = TypeVar("Made")
_NOT_IN_FILES = frozenset({"clock", "wall", "credentials"})  # arguments of sinks that are callables


class SettingsError(ConfigurationError):
    """A file that is not a configuration.

    source: the file. key: dotted, such as "snat[1].pool". value: as the file has it, redacted; None: missing, or unknown.
    problem: "must be …", or what else is wrong.
    """

    def __init__(self, source: Path, key: str, value: object, problem: str) -> None:
        if any(is_secret(part) for part in key.split(".")):
            value = None
        key, problem = show_text(key), redact(printable(problem))
        if not key:
            text = problem
        elif problem.startswith("must "):
            text = f"{key} {problem}" if value is None or ", got " in problem else f"{key} {problem}, got {show(value)}"
        else:
            text = f"{key}: {problem}" if value is None else f"{key} = {show(value)}: {problem}"
        super().__init__(f"{printable(str(source))}: {text}")
        self.source, self.key, self.value, self.problem = source, key, plain(value), problem


def _table_of(values: type) -> type[Struct]:
    """The table with the fields of a dataclass as keys; a nested dataclass is a nested table. All may be left out."""
    hints = typing.get_type_hints(values)
    columns = [(item.name, _optional(hints[item.name]), UNSET) for item in fields(values)]
    return msgspec.defstruct(values.__name__, columns, frozen=True, forbid_unknown_fields=True)


def _optional(hint: Any) -> Any:
    """Return the type of a key: TOML has no None, and a nested dataclass is a table."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    parts = tuple(str if typing.get_origin(part) is typing.Literal else part for part in parts)
    return typing.Union[*(_TABLES_OF.get(part, part) for part in parts if part is not types.NoneType), UnsetType]


_TABLES_OF: dict[type, type[Struct]] = {}
_TABLES_OF[Behaviour] = _table_of(Behaviour)
PolicyTable, TimeoutsTable, DeliveryTable = _table_of(Policy), _table_of(Timeouts), _table_of(DeliveryPolicy)


class LinkTable(Struct, frozen=True, forbid_unknown_fields=True):
    address: str | UnsetType = UNSET
    mtu: int | UnsetType = UNSET


class GatewayTable(Struct, frozen=True, forbid_unknown_fields=True):
    """[gateway]: the arguments of Gateway that are not a table of their own."""

    instance: str | UnsetType = UNSET
    vpc_id: str | UnsetType = UNSET
    region: str | UnsetType = UNSET
    kind: str | UnsetType = UNSET
    eip_bind_mode: str | UnsetType = UNSET
    billing: str | UnsetType = UNSET
    max_sessions: int | UnsetType = UNSET
    max_mappings: int | UnsetType = UNSET
    max_subscribers: int | UnsetType = UNSET
    workers: int | UnsetType = UNSET
    window: float | UnsetType = UNSET
    records: int | UnsetType = UNSET
    epoch: float | UnsetType = UNSET
    inside: LinkTable | UnsetType = UNSET
    outside: LinkTable | UnsetType = UNSET
    decrement_ttl: bool | UnsetType = UNSET
    framing: str | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    huge_pages: str | UnsetType = UNSET
    numa_node: int | UnsetType = UNSET


class EipTable(Struct, frozen=True, forbid_unknown_fields=True):
    address: str
    private_ip: str | UnsetType = UNSET


class SnatTable(Struct, frozen=True, forbid_unknown_fields=True):
    """[[snat]]: the arguments of SnatEntry; a pool element with a private address is a table."""

    source: str
    pool: str | EipTable | list[str | EipTable]
    name: str | UnsetType = UNSET


class DnatTable(Struct, frozen=True, forbid_unknown_fields=True):
    """[[dnat]]: the arguments of DnatEntry; a pair of ports is an array, so is a target with its weight."""

    external_ip: str
    external_port: int | str | tuple[int, int]
    internal_ip: str | list[tuple[str, int]]
    internal_port: int | str | tuple[int, int]
    protocol: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class NoNatTable(Struct, frozen=True, forbid_unknown_fields=True):
    """[[no_nat]]: the arguments of NoNatEntry."""

    source: str
    destination: str
    name: str | UnsetType = UNSET


class PlaneTable(Struct, frozen=True, forbid_unknown_fields=True):
    """[plane]: the arguments of Gateway.forward."""

    inside: str | list[str]
    outside: str
    driver: str | UnsetType = UNSET
    favour: str | UnsetType = UNSET
    cpus: list[int] | UnsetType = UNSET
    block_when_stopped: bool | UnsetType = UNSET


class FileTables(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    gateway: GatewayTable = GatewayTable()
    policy: PolicyTable | UnsetType = UNSET  # type: ignore[valid-type]
    timeouts: TimeoutsTable | UnsetType = UNSET  # type: ignore[valid-type]
    snat: list[SnatTable] = []
    dnat: list[DnatTable] = []
    no_nat: list[NoNatTable] = []
    log: list[dict[str, Any]] = []
    plane: PlaneTable | UnsetType = UNSET


_LARGEST_FILE_BYTES, _LARGEST_SECRET_BYTES = 64 << 20, 64 << 10
_LOG_OPTIONS = ("name", "spool", "redact_destination", "on_failure")

# The table of a key, by its path without positions: to name the known keys in errors.
_TABLES: dict[str, type[Struct]] = {
    "": FileTables,
    "gateway": GatewayTable,
    "gateway.inside": LinkTable,
    "gateway.outside": LinkTable,
    "policy": PolicyTable,
    "policy.tcp": _TABLES_OF[Behaviour],
    "policy.udp": _TABLES_OF[Behaviour],
    "policy.icmp": _TABLES_OF[Behaviour],
    "timeouts": TimeoutsTable,
    "snat": SnatTable,
    "snat.pool": EipTable,
    "dnat": DnatTable,
    "no_nat": NoNatTable,
    "plane": PlaneTable,
    "log.delivery": DeliveryTable,
}


@dataclass(frozen=True, slots=True)
class LogSettings:
    """One [[log]]: which sink, its arguments, and those of Gateway.start_session_log."""

    source: Path
    key: str
    raw: dict[str, Any] = field(repr=False)  # as the arguments
    sink: Callable[..., Any]
    arguments: dict[str, Any] = field(repr=False)  # it may hold secrets
    options: dict[str, Any]

    def make_sink(self) -> Any:
        """Return the sink, not opened yet. Raises SettingsError."""
        with _named(self.source, self.key, self.raw):
            return self.sink(**self.arguments)

    def start(self, gateway: Gateway) -> Any:
        """Start the session log. Raises SettingsError."""
        with _named(self.source, self.key, self.raw):
            return gateway.start_session_log(self.sink(**self.arguments), **self.options)


@dataclass(frozen=True, slots=True)
class Settings:
    """A file that was read and checked; nothing is opened yet."""

    source: Path
    raw: dict[str, Any] = field(repr=False)  # a sink's options may hold secrets
    gateway: dict[str, Any]
    snat: tuple[SnatEntry, ...]
    dnat: tuple[DnatEntry, ...]
    no_nat: tuple[NoNatEntry, ...]
    logs: tuple[LogSettings, ...]
    plane: dict[str, Any] | None
    warnings: tuple[str, ...]

    def make_gateway(self) -> Gateway:
        """Make the gateway with its entries. Raises SettingsError if entries conflict."""
        with _named(self.source, "gateway", self.raw.get("gateway", {})):
            gateway = Gateway(**self.gateway)
        kinds: dict[str, tuple[AnyEntry, ...]] = {"snat": self.snat, "dnat": self.dnat, "no_nat": self.no_nat}
        places = [(key, position, entry) for key, entries in kinds.items() for position, entry in enumerate(entries)]
        try:
            try:
                gateway.apply(gateway.plan([Add(entry) for _, _, entry in places]))  # numbered from 1 in this order
            except EntryConflict as error:
                key, position, _ = places[error.entry.id - 1]
                with _named(self.source, f"{key}[{position}]", self.raw[key][position]):
                    raise
        except BaseException:
            gateway.close()
            raise
        return gateway


def driver_of(path: str | os.PathLike[str]) -> str:
    """Return the driver of a file's plane; no sink is imported for it. Raises SettingsError."""
    plane = _read(Path(check_path("file", path))).get("plane")
    driver = plane.get("driver") if isinstance(plane, dict) else None
    return driver if isinstance(driver, str) else "af_packet"


def load(path: str | os.PathLike[str]) -> Settings:
    """Read and check a gateway.toml. Raises SettingsError."""
    source = Path(check_path("file", path))
    raw = _read(source)
    tables = _convert(source, "", raw, FileTables)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        gateway = _gateway_arguments(source, raw, tables)
    return Settings(
        source=source,
        raw=raw,
        gateway=gateway,
        snat=tuple(_snat(source, f"snat[{n}]", raw["snat"][n], table) for n, table in enumerate(tables.snat)),
        dnat=tuple(_entry(DnatEntry, source, f"dnat[{n}]", raw["dnat"][n], t) for n, t in enumerate(tables.dnat)),
        no_nat=tuple(
            _entry(NoNatEntry, source, f"no_nat[{n}]", raw["no_nat"][n], t) for n, t in enumerate(tables.no_nat)
        ),
        logs=tuple(_log(source, f"log[{n}]", table) for n, table in enumerate(tables.log)),
        plane=None if isinstance(tables.plane, UnsetType) else _given(tables.plane),
        warnings=tuple(str(warning.message) for warning in caught),
    )


def _read(source: Path) -> dict[str, Any]:
    try:
        text = _text_of(source, _LARGEST_FILE_BYTES)
    except OSError as error:
        raise SettingsError(source, "", None, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(source, "", None, f"not TOML: {error}") from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise SettingsError(source, "", None, "tables or lists are nested too deep") from None
    except ValueError as error:  # among them a number of more than 4,300 digits, or February 30
        raise SettingsError(source, "", None, f"not TOML: {error}") from None


def _text_of(source: Path, most_bytes: int) -> str:
    """Raises OSError, ValueError."""
    with source.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"more than {most_bytes:,} bytes")
    return content.decode()


def _gateway_arguments(source: Path, raw: dict[str, Any], tables: FileTables) -> dict[str, Any]:
    arguments = _given(tables.gateway)
    for side in ("inside", "outside"):
        if side in arguments:
            key = f"gateway.{side}"
            with _named(source, key, raw["gateway"][side]):
                arguments[side] = Link(**_given(arguments[side]))
    if tables.policy is not UNSET:
        policy = _given(tables.policy)
        for protocol in ("tcp", "udp", "icmp"):
            if protocol in policy:
                with _named(source, f"policy.{protocol}", raw["policy"][protocol]):
                    policy[protocol] = Behaviour(**_given(policy[protocol]))
        with _named(source, "policy", raw["policy"]):
            arguments["policy"] = Policy(**policy)
    if tables.timeouts is not UNSET:
        with _named(source, "timeouts", raw["timeouts"]):
            arguments["timeouts"] = Timeouts(**_given(tables.timeouts))
    return arguments


def _snat(source: Path, key: str, raw: dict[str, Any], table: SnatTable) -> SnatEntry:
    if isinstance(table.pool, list):
        pool = [
            _pool_element(source, f"{key}.pool[{position}]", raw["pool"][position], element)
            for position, element in enumerate(table.pool)
        ]
    else:
        pool = [_pool_element(source, f"{key}.pool", raw["pool"], table.pool)]
    with _named(source, key, raw):
        return SnatEntry(table.source, pool=pool, name=None if isinstance(table.name, UnsetType) else table.name)


def _entry(kind: Callable[..., Made], source: Path, key: str, raw: dict[str, Any], table: Struct) -> Made:
    with _named(source, key, raw):
        return kind(**_given(table))


def _pool_element(source: Path, key: str, raw: Any, element: str | EipTable) -> str | Eip:
    if isinstance(element, str):
        return element
    with _named(source, key, raw):
        return Eip(**_given(element))


def _log(source: Path, key: str, raw: dict[str, Any]) -> LogSettings:
    kinds = sink_kinds()
    arguments = dict(raw)
    kind = arguments.pop("sink", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise SettingsError(source, f"{key}.sink", kind, f"must be {either(sorted(kinds))}")
    options: dict[str, Any] = {name: arguments.pop(name) for name in _LOG_OPTIONS if name in arguments}
    with _named(source, key, raw):
        check_choice("redact_destination", options.get("redact_destination", False), (True, False))
        if "spool" in options:
            check_path("spool", options["spool"])
    if "delivery" in arguments:
        delivery = arguments.pop("delivery")
        table = _convert(source, f"{key}.delivery", delivery, DeliveryTable)
        with _named(source, f"{key}.delivery", delivery):
            options["delivery"] = DeliveryPolicy(**_given(table))
    sink = kinds[kind]
    parameters = {n: p for n, p in inspect.signature(sink).parameters.items() if n not in _NOT_IN_FILES}
    arguments = _with_secrets(source, key, arguments, set(parameters) & SECRETS)
    for name in arguments:
        if name not in parameters:
            known = _listed({"sink", "delivery", *_LOG_OPTIONS} | (set(parameters) - SECRETS))
            raise SettingsError(source, f"{key}.{name}", None, f"unknown key; known ones are {known}")
    for name, parameter in parameters.items():
        if name not in arguments and parameter.default is parameter.empty:
            raise SettingsError(source, f"{key}.{name}", None, f"missing; sink {kind!r} needs it")
    return LogSettings(source, key, raw, sink, arguments, options)


def sink_kinds() -> dict[str, Callable[..., Any]]:
    """Return the exported sinks by their delivery type, which is the word for `sink = …`."""
    names = (name for name in sinks.__all__ if name.endswith("Sink") and name not in ("BaseSink", "MemorySink", "Sink"))
    made = [getattr(sinks, name) for name in names]
    return {sink.delivery_type: sink for sink in made}


def _with_secrets(source: Path, key: str, arguments: dict[str, Any], secrets: set[str]) -> dict[str, Any]:
    """Add secrets from their files or the environment; one in the configuration itself is refused, and not repeated."""
    for name in sorted(secrets):
        variable = f"NATCORE_{name.upper()}"
        if name in arguments:
            raise SettingsError(source, f"{key}.{name}", None, f"a secret; give {name}_file or ${variable} instead")
        file = arguments.pop(f"{name}_file", None)
        if file is not None:
            try:
                arguments[name] = _text_of(Path(check_path(f"{name}_file", file)), _LARGEST_SECRET_BYTES).strip()
            except UnicodeDecodeError:
                raise SettingsError(source, f"{key}.{name}_file", None, "must be a file of UTF-8") from None
            except ConfigurationError:
                raise SettingsError(source, f"{key}.{name}_file", None, "must be the name of a file") from None
            except (OSError, ValueError) as error:
                raise SettingsError(source, f"{key}.{name}_file", None, f"{file}: cannot be read: {error}") from None
        elif variable in os.environ:
            arguments[name] = os.environ[variable]
    return arguments


def _given(table: Struct | UnsetType) -> dict[str, Any]:
    """Return the keys that the file has; the constructor's defaults serve for the rest."""
    names: tuple[str, ...] = getattr(table, "__struct_fields__", ())
    return {name: value for name in names if (value := getattr(table, name)) is not UNSET}


def _listed(words: typing.Iterable[str]) -> str:
    return ", ".join(sorted(words))


_WORDS = {"object": "a table", "array": "a list", "str": "a string", "int": "a whole number", "float": "a number",
          "bool": "true or false", "null": "nothing"}  # fmt: skip


def _convert(source: Path, prefix: str, raw: object, table: type[Table]) -> Table:
    try:
        return msgspec.convert(raw, table)
    except msgspec.ValidationError as error:
        raise _validation_error(source, prefix, raw, str(error)) from None
    except RecursionError:
        raise SettingsError(source, prefix, None, "tables or lists are nested too deep") from None


def _validation_error(source: Path, prefix: str, raw: object, message: str) -> SettingsError:
    """Convert msgspec's error, which names the path and the expected type, to TOML's words and the value."""
    text, _, path = message.partition(" - at `$")
    inner = path.rstrip("`").lstrip(".")
    key = ".".join(part for part in (prefix, inner) if part)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        known = _TABLES[re.sub(r"\[\d+\]", "", key)].__struct_fields__
        name = unknown[1]
        # its value may be a secret under a misspelt name
        return SettingsError(source, f"{key}.{name}".lstrip("."), None, f"unknown key; known ones are {_listed(known)}")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return SettingsError(source, f"{key}.{missing[1]}".lstrip("."), None, "missing")
    if expected := re.match(r"Expected `([^`]*)`, got", text):
        words = (_WORDS.get(word, word) for word in expected[1].split(" | "))
        text = f"must be {' or '.join(words)}"
    return SettingsError(source, key, _value_at(raw, inner), text)


def _value_at(raw: Any, path: str) -> Any:
    for name, position in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        raw = raw[int(position)] if position else raw[name]
    return raw


@contextmanager
def _named(source: Path, key: str, raw: dict[str, Any]) -> Iterator[None]:
    """Turn a constructor's ConfigurationError ("Class.field must be …, got value") into one that names the file's key."""
    try:
        yield
    except SettingsError:
        raise
    except ConfigurationError as error:
        message = str(error)
        match = re.match(r"(?:[A-Z]\w*\.)?([a-z]\w*)(?: (?=must )|=|: )", message)
        if match is None:
            raise SettingsError(source, key, None, message) from None
        value, rest = raw.get(match[1]), message[match.end() :]
        rest = rest.removeprefix(f"{show(value)}: ").removesuffix(f", got {show(value)}")
        raise SettingsError(source, f"{key}.{match[1]}", value, rest) from None
    except (TypeError, ValueError, OverflowError, AttributeError) as error:  # a sink that does not check its arguments
        raise SettingsError(source, key, None, f"cannot be used: {type(error).__name__}: {error}") from None
