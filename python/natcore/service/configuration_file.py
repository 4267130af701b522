"""gateway.toml: its tables become the constructors' arguments; an error names file, line, key, value and what is expected."""

from __future__ import annotations

import inspect
import os
import tomllib
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from natcore import sinks
from natcore.choices import Gap, LogRows
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
from natcore.control.socket_file import group_number
from natcore.entries.changes import Add, check_entries
from natcore.entries.table import EntryConflict
from natcore.errors import ConfigurationError, MissingExtraError
from natcore.gateway import Gateway
from natcore.internal.gateway_arguments import GatewayArguments
from natcore.internal.validation import check_choice, check_number, check_path, either
from natcore.service.problems import MOST_ERRORS, Problems
from natcore.service.problems import SettingsError as SettingsError
from natcore.service.tables import UNSET, DeliveryTable, FileTables, SnatTable, convert, convert_file, given
from natcore.sessionlog.collector import ON_FAILURE, check_name, check_sink

if TYPE_CHECKING:
    from natcore.peer.pair import PeerSettings

# Arguments that are never written into the file: from <argument>_file or the environment variable NATCORE_<ARGUMENT>.
SECRETS = frozenset({"access_key_id", "access_key_secret", "security_token", "password"})
NOT_IN_FILES = frozenset({"clock", "wall", "credentials"})  # arguments of sinks that are callables
LOG_OPTIONS = ("name", "spool", "redact_destination", "rows", "refusals", "labels", "on_failure")
_LARGEST_FILE_BYTES, _LARGEST_SECRET_BYTES = 64 << 20, 64 << 10


@dataclass(frozen=True, slots=True)
class LogSettings:
    """One [[log]]: which sink, its arguments, and those of Gateway.start_session_log."""

    source: Path
    key: str
    raw: dict[str, Any] = field(repr=False)  # as the arguments
    sink: Callable[..., Any]
    arguments: dict[str, Any] = field(repr=False)  # it may hold secrets
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The log's name: the file's, or made from its sink."""
        return str(self.options["name"])

    def make_sink(self) -> Any:
        """Return the sink, not opened yet. Raises SettingsError."""
        with Problems(self.source).named(self.key, self.raw):
            return self.sink(**self.arguments)

    def start(self, gateway: Gateway, *, at_once: bool = True) -> Any:
        """Start the session log. at_once: with its spool, which on_failure = "refuse" asks for anyway. Raises SettingsError."""
        at_once = at_once or self.options.get("on_failure") == "refuse"
        with Problems(self.source).named(self.key, self.raw):
            return gateway.start_session_log(self.sink(**self.arguments), **self.options, at_once=at_once)


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
    control: dict[str, Any]
    metrics: dict[str, Any] | None
    state: dict[str, Any] | None
    peer: PeerSettings | None
    warnings: tuple[str, ...]

    @property
    def entries(self) -> list[AnyEntry]:
        """Its entries, in the order in which a new gateway numbers them from 1."""
        return [*self.snat, *self.dnat, *self.no_nat]

    def key_of(self, position: int) -> tuple[str, Mapping[str, Any]]:
        """Return the key of an entry by its position in `entries`, and its table as the file has it."""
        for kind in ("snat", "dnat", "no_nat"):
            tables = self.raw.get(kind, [])
            if position < len(tables):
                return f"{kind}[{position}]", tables[position]
            position -= len(tables)
        raise IndexError(position)

    def make_gateway(self) -> Gateway:
        """Make the gateway with its entries. Raises SettingsError if entries conflict."""
        problems = Problems(self.source)
        with problems.named("gateway", self.raw.get("gateway", {})):
            gateway = Gateway(**self.gateway)
        try:
            try:
                gateway.apply(gateway.plan([Add(entry) for entry in self.entries]))
            except EntryConflict as error:
                with problems.named(*self.key_of(error.entry.id - 1)):
                    raise
        except BaseException:
            gateway.close()
            raise
        return gateway


def driver_of(path: str | os.PathLike[str]) -> str:
    """Return the driver of a file's plane; no sink is imported for it. Raises SettingsError."""
    source = Path(check_path("file", path))
    plane = _parse(source, _read(source)).get("plane")
    driver = plane.get("driver") if isinstance(plane, dict) else None
    return driver if isinstance(driver, str) else "af_packet"


def control_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a file's [control] as it is; no sink is imported for it. Raises SettingsError."""
    source = Path(check_path("file", path))
    control = _parse(source, _read(source)).get("control")
    return control if isinstance(control, dict) else {}


def load(path: str | os.PathLike[str], *, to_run: bool = False) -> Settings:
    """Read and check a gateway.toml. Raises SettingsError, with every error of the file.

    to_run: its plane and the sinks of its session logs are checked too, as far as that goes without opening them: what
    `natcore run` refuses is refused here. Else they need not be of this machine.
    """
    source = Path(check_path("file", path))
    text = _read(source)
    raw = _parse(source, text)
    problems = Problems(source, text)
    tables = convert_file(problems, raw)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        gateway = _gateway_arguments(problems, raw, tables)
    settings = Settings(
        source=source,
        raw=raw,
        gateway=gateway,
        snat=_made(
            table and _snat(problems, f"snat[{n}]", raw["snat"][n], table) for n, table in enumerate(tables.snat)
        ),
        dnat=_made(
            table and problems.made(DnatEntry, f"dnat[{n}]", raw["dnat"][n], given(table))
            for n, table in enumerate(tables.dnat)
        ),
        no_nat=_made(
            table and problems.made(NoNatEntry, f"no_nat[{n}]", raw["no_nat"][n], given(table))
            for n, table in enumerate(tables.no_nat)
        ),
        logs=_logs(problems, tables.log),
        plane=None if tables.plane is UNSET else given(tables.plane),
        control=given(tables.control),
        metrics=None if tables.metrics is UNSET else _metrics(problems, raw, given(tables.metrics)),
        state=None if tables.state is UNSET else _state(problems, raw, given(tables.state)),
        peer=None if tables.peer is UNSET else _peer(problems, raw, given(tables.peer)),
        warnings=tuple(str(warning.message) for warning in caught),
    )
    if not problems.errors:  # a conflict may follow from what is wrong
        _check_entries(problems, settings)
    if to_run:
        _check_plane(problems, settings)
        _check_sinks(problems, settings)
        _check_peer(problems, settings)
        problems.made(_check_control, "control", raw.get("control", {}), settings.control)
    problems.raise_any()
    return settings


def _made(entries: typing.Iterable[typing.Any]) -> tuple[Any, ...]:
    """Return the values without those that could not be made."""
    return tuple(entry for entry in entries if entry is not None)


def _read(source: Path) -> str:
    try:
        return _text_of(source, _LARGEST_FILE_BYTES)
    except OSError as error:
        raise SettingsError(source, "", None, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(source, "", None, f"not TOML: {error}") from None


def _parse(source: Path, text: str) -> dict[str, Any]:
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


def _gateway_arguments(problems: Problems, raw: dict[str, Any], tables: FileTables) -> dict[str, Any]:
    arguments = given(tables.gateway)
    for side in ("inside", "outside"):
        if side in arguments:
            arguments[side] = problems.made(Link, f"gateway.{side}", raw["gateway"][side], given(arguments[side]))
    if tables.policy is not UNSET:
        policy = given(tables.policy)
        for protocol in ("tcp", "udp", "icmp"):
            if protocol in policy:
                key = f"policy.{protocol}"
                policy[protocol] = problems.made(Behaviour, key, raw["policy"][protocol], given(policy[protocol]))
        arguments["policy"] = problems.made(Policy, "policy", raw["policy"], policy)
    if tables.timeouts is not UNSET:
        arguments["timeouts"] = problems.made(Timeouts, "timeouts", raw["timeouts"], given(tables.timeouts))
    problems.made(_check_gateway, "gateway", raw.get("gateway", {}), arguments)
    return arguments


def _check_gateway(**arguments: Any) -> None:
    """Raise ConfigurationError if a gateway cannot be made with the arguments; none is made."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(Gateway).parameters.items()}
    GatewayArguments(**{**defaults, **arguments})


def _snat(problems: Problems, key: str, raw: dict[str, Any], table: SnatTable) -> SnatEntry | None:
    arguments = given(table)
    is_list = isinstance(table.pool, list)
    elements: list[Any] = list(table.pool) if is_list else [table.pool]  # type: ignore[arg-type]
    given_pool: Any = raw.get("pool")  # the table has another one where this is wrong
    pool: list[Any] = []
    for position, element in enumerate(elements):
        where, source = (f"{key}.pool[{position}]", given_pool[position]) if is_list else (f"{key}.pool", given_pool)
        pool.append(element if isinstance(element, str) else problems.made(Eip, where, source, given(element)))
    if None in pool:  # told already
        arguments["pool"] = "192.0.2.1"
        problems.made(SnatEntry, key, raw, arguments)
        return None
    return problems.made(SnatEntry, key, raw, {**arguments, "pool": pool})


def _check_entries(problems: Problems, settings: Settings) -> None:
    """Add the conflicts among the entries."""
    arguments = settings.gateway
    book = (
        arguments.get("kind", "internet"),
        arguments.get("eip_bind_mode", "NAT"),
        arguments.get("policy") or Policy(),
    )
    entries = dict(enumerate(settings.entries, 1))
    while entries and len(problems.errors) <= MOST_ERRORS:
        try:
            return check_entries(entries, *book)
        except EntryConflict as error:
            del entries[error.entry.id]
            with problems.noting(), problems.named(*settings.key_of(error.entry.id - 1)):
                raise


def _metrics(problems: Problems, raw: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    from natcore.metrics.endpoint import parse_listen

    problems.made(parse_listen, "metrics", raw["metrics"], arguments)
    return arguments


def _state(problems: Problems, raw: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    problems.made(_check_state, "state", raw["state"], arguments)
    return arguments


def _check_state(*, path: str, save_every: float = 60.0, gap: str = "count") -> None:
    """Raise ConfigurationError for a file or a time that cannot be."""
    check_path("path", path)
    if save_every:
        check_number("save_every", save_every, 1, 86_400, unit="seconds")
    check_choice("gap", gap, typing.get_args(Gap))


def _peer(problems: Problems, raw: dict[str, Any], arguments: dict[str, Any]) -> PeerSettings | None:
    from natcore.service.peer_settings import FILES, settings_of

    found = {name: str(_loaded(value)) if name in FILES and value else value for name, value in arguments.items()}
    return problems.made(settings_of, "peer", raw["peer"], found)


def _check_peer(problems: Problems, settings: Settings) -> None:
    from natcore.service.peer_settings import check_files

    if settings.peer is not None:
        problems.made(check_files, "peer", settings.raw["peer"], {"credentials": settings.peer.credentials})


def _check_plane(problems: Problems, settings: Settings) -> None:
    if settings.plane is None:
        problems.add("plane", None, "missing; `run` needs its inside and outside interfaces")
        return
    from natcore.plane.checks import check_arguments

    gateway: dict[str, Any] = {
        name: settings.gateway[name] for name in ("workers", "framing") if name in settings.gateway
    }
    problems.made(check_arguments, "plane", settings.raw["plane"], {**settings.plane, **gateway})


def _check_control(
    *,
    enabled: bool = True,
    path: str | None = None,
    group: str | int | None = None,
    write_group: str | int | None = None,
) -> None:
    """Raise ConfigurationError for a group that this system does not have, which would be found when no one looks."""
    for name, value in (("group", group), ("write_group", write_group)):
        if value is not None:
            group_number(name, value)
    if path is not None:
        check_path("path", path)


def _check_sinks(problems: Problems, settings: Settings) -> None:
    """Make the sinks, without opening them, and add what keeps their logs from being started."""
    claimed: dict[tuple[str, ...], str] = {}
    for log in settings.logs:
        try:
            sink = problems.made(log.sink, log.key, log.raw, log.arguments)
        except MissingExtraError as error:
            problems.add(f"{log.key}.sink", log.raw["sink"], str(error))
            continue
        if sink is None:
            continue
        with problems.noting(), problems.named(log.key, log.raw):
            check_sink(sink, settings.gateway.get("billing", "by-usage"), settings.gateway.get("region", ""))
        if callable(getattr(sink, "claim", None)):
            destination = (sink.delivery_type, *map(str, sink.destination.values()))
            other = claimed.setdefault(destination, log.key)
            if other != log.key:
                problems.add(log.key, None, f"its destination must be one log's, and is that of {other}")


def _logs(problems: Problems, tables: list[dict[str, Any]]) -> tuple[LogSettings, ...]:
    logs: list[LogSettings] = []
    for position, raw in enumerate(tables):
        log = _log(problems, f"log[{position}]", raw)
        if log is None:
            continue
        with problems.noting(), problems.named(log.key, raw):
            used = {other.options["name"] for other in logs}
            log.options["name"] = check_name(log.options.get("name"), raw["sink"], used)
            logs.append(log)
    return tuple(logs)


def new_log(source: Path, raw: dict[str, Any]) -> LogSettings:
    """Return a session log that a file could have: its [[log]], with secrets of the environment. Raises SettingsError."""
    problems = Problems(source)
    log = _log(problems, "log", raw)
    problems.raise_any()
    assert log is not None
    return log


def _log(problems: Problems, key: str, raw: dict[str, Any]) -> LogSettings | None:
    arguments = dict(raw)
    kind = arguments.pop("sink", None)
    if not isinstance(kind, str) or kind not in sinks.DELIVERY_TYPES:
        problems.add(f"{key}.sink", kind, f"must be {either(sinks.DELIVERY_TYPES)}")
        return None
    before = len(problems.errors)
    options: dict[str, Any] = {name: arguments.pop(name) for name in LOG_OPTIONS if name in arguments}
    sink = sink_of(kind)
    parameters = sink_parameters(sink)
    if "rows" in options and "rows" in parameters:  # an SlsSink has rows of its own
        arguments["rows"] = "all" if options["rows"] == "blocks" else options.pop("rows")
    problems.made(_check_options, key, raw, dict(options))
    if "labels" in options and not getattr(sink, "labels", False) and arguments.get("label") is not True:
        more = " unless label = true" if "label" in parameters else ""
        problems.add(f"{key}.labels", None, f"sink {kind!r} takes no labels{more}")
    if "delivery" in arguments:
        delivery = arguments.pop("delivery")
        table = convert(problems, f"{key}.delivery", delivery, DeliveryTable)
        if table is not None:
            options["delivery"] = problems.made(DeliveryPolicy, f"{key}.delivery", delivery, given(table))
    arguments = _with_secrets(problems, key, arguments, set(parameters) & SECRETS)
    for name in arguments:
        if name not in parameters:
            known = ", ".join(sorted({"sink", "delivery", *LOG_OPTIONS} | (set(parameters) - SECRETS)))
            problems.add(f"{key}.{name}", None, f"unknown key; known ones are {known}")
    for name, parameter in parameters.items():
        if name not in arguments and parameter.default is parameter.empty:
            problems.add(f"{key}.{name}", None, f"missing; sink {kind!r} needs it")
    return None if len(problems.errors) > before else LogSettings(problems.source, key, raw, sink, arguments, options)


def _check_options(
    *, name: object = None, spool: object = None, redact_destination: object = False, rows: object = "all",
    refusals: object = False, labels: object = None, on_failure: object = "forward",
) -> None:  # fmt: skip
    """Raise ConfigurationError; names are checked together."""
    check_choice("redact_destination", redact_destination, (True, False))
    check_choice("rows", rows, get_args(LogRows))
    check_choice("refusals", refusals, (True, False))
    if labels is not None:
        check_path("labels", labels)
    check_choice("on_failure", on_failure, ON_FAILURE)
    if spool is not None:
        check_path("spool", spool)


def sink_of(kind: str) -> Callable[..., Any]:
    """Return the sink that a word of DELIVERY_TYPES names. MissingExtraError: its library is not installed."""
    sink: Callable[..., Any] = getattr(sinks, sinks.DELIVERY_TYPES[kind])
    return sink


def sink_parameters(sink: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a sink that a file may have."""
    return {name: each for name, each in inspect.signature(sink).parameters.items() if name not in NOT_IN_FILES}


def _with_secrets(problems: Problems, key: str, arguments: dict[str, Any], secrets: set[str]) -> dict[str, Any]:
    """Add secrets from their files or the environment; one in the configuration itself is refused, and not repeated."""
    for name in sorted(secrets):
        variable = f"NATCORE_{name.upper()}"
        if name in arguments:
            problems.add(f"{key}.{name}", None, f"a secret; give {name}_file or ${variable} instead")
            continue
        file = arguments.pop(f"{name}_file", None)
        if file is not None:
            arguments[name] = ""  # an error of its own tells what is wrong with it
            try:
                arguments[name] = _text_of(_loaded(check_path(f"{name}_file", file)), _LARGEST_SECRET_BYTES).strip()
            except UnicodeDecodeError:
                problems.add(f"{key}.{name}_file", None, "must be a file of UTF-8")
            except ConfigurationError:
                problems.add(f"{key}.{name}_file", None, "must be the name of a file")
            except (OSError, ValueError) as error:
                problems.add(f"{key}.{name}_file", None, f"{file}: cannot be read: {error}")
        elif variable in os.environ:
            arguments[name] = os.environ[variable]
    return arguments


def credential(path: Path) -> str:
    """Return the name under which a unit loads a file that the configuration names (systemd.exec(5), LoadCredential)."""
    return str(path.absolute()).strip("/").replace("/", "-")


def _loaded(path: str | os.PathLike[str]) -> Path:
    """Return where a file of the configuration's is read: where systemd loaded it for this service, if it did."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    loaded = Path(folder, credential(Path(path))) if folder else None
    return loaded if loaded is not None and loaded.is_file() else Path(path)
