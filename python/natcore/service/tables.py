"""The tables of gateway.toml: their keys are the constructors' arguments; and their conversion, with every error."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import fields
from typing import Any, TypeVar

from natcore.config import Behaviour, DeliveryPolicy, Policy, Timeouts
from natcore.internal.extras import extra
from natcore.service.problems import STAND_INS, Problems

with extra("cli"):
    import msgspec
    from msgspec import UNSET as UNSET
    from msgspec import Struct, UnsetType

Table = TypeVar("Table", bound=Struct)


def _table_of(values: type) -> type[Struct]:
    """The table with the fields of a dataclass as keys; a nested dataclass is a nested table. All may be left out."""
    hints = typing.get_type_hints(values)
    columns = [(item.name, _optional(hints[item.name]), UNSET) for item in fields(values)]
    return msgspec.defstruct(values.__name__, columns, frozen=True, forbid_unknown_fields=True)


def _optional(hint: Any) -> Any:
    """Return the type of a key: TOML has no None, and a nested dataclass is a table."""
    parts = tuple(str if typing.get_origin(part) is typing.Literal else part for part in _parts(hint))
    return typing.Union[*(TABLES_OF.get(part, part) for part in parts if part is not types.NoneType), UnsetType]


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union; of another type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


TABLES_OF: dict[type, type[Struct]] = {}
TABLES_OF[Behaviour] = _table_of(Behaviour)
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
    fast_path: bool | int | UnsetType = UNSET
    steering: str | UnsetType = UNSET


class ControlTable(Struct, frozen=True, forbid_unknown_fields=True):
    """[control]: the control socket of `natcore run`, and the arguments of Gateway.serve_control.

    Parameters
    ----------
    enabled
        Whether there is one; left out: true.
    path
        The socket's file, at most 107 bytes; left out: /run/natcore/INSTANCE.sock, or natcore.sock without a name.
    group
        The group that may connect and look, by name or number; left out: natcore, where the system has it.
    write_group
        The group of those who may change something, by name or number; left out: there is none.
    """

    enabled: bool | UnsetType = UNSET
    path: str | UnsetType = UNSET
    group: str | int | UnsetType = UNSET
    write_group: str | int | UnsetType = UNSET


class MetricsTable(Struct, frozen=True, forbid_unknown_fields=True):
    """[metrics]: where /metrics, /healthz and /readyz are served.

    Parameters
    ----------
    listen
        Address and port, such as "127.0.0.1:9468" or "[::1]:9468"; whoever reaches it can read the metrics.
    """

    listen: str


class StateTable(Struct, frozen=True, forbid_unknown_fields=True):
    """[state]: sessions outlive the process of `natcore run`.

    Parameters
    ----------
    path
        The file; a relative one lies in the folder where natcore was started, of a unit /var/lib/natcore.
    save_every
        Seconds between two snapshots, 1 to 86,400, or 0: none but at the end. Packets wait while one is copied.
    gap
        What the time between two runs does: "count", sessions are idle meanwhile; "freeze", their deadlines move by it.
    """

    path: str
    save_every: float = 60.0
    gap: str = "count"


class PeerTable(Struct, frozen=True, forbid_unknown_fields=True):
    """[peer]: this gateway is one of two, of which one translates and the other one is its warm standby.

    Parameters
    ----------
    name
        Of this gateway, 1 to 64 letters, digits, ".", "_" and "-".
    peer_name
        Of the other one; different.
    listen
        Where it answers the other one: address and port, such as "192.0.2.1:7411" or "[2001:db8::1]:7411".
    peer
        Where the other one answers, likewise.
    certificate_file
        This gateway's certificate, PEM.
    key_file
        Its key, PEM, without a password.
    authority_file
        The certificate, PEM, of the authority that signed both gateways' certificates (and the witness's) and no others.
    witness
        Where `natcore witness` answers, at a third place; left out: a take-over is by command alone.
    lease
        Seconds that a vote is lent, 0.1 to 60; the same at both gateways and the witness. About one of them, and 0.1 to 0.2 s,
        pass between the death of the active gateway and the first packet through the other one.
    prefer
        Whether this gateway goes first where neither has sessions to go on with; needs a witness.
    fence
        A command and its arguments that switches the other machine off, and ends with status 0 only if that is off; without a
        witness, and within 60 s.
    defer
        "ack": a session's first packet leaves when the standby has the session, so that no connection that was answered is lost
        with the active gateway. Left out: it leaves at once.
    defer_wait
        Seconds that such a packet waits at most, 0.001 to 1; left out: 0.02. Without a standby it does not wait.
    """

    name: str
    peer_name: str
    listen: str
    peer: str
    certificate_file: str
    key_file: str
    authority_file: str
    witness: str | UnsetType = UNSET
    lease: float = 0.3
    prefer: bool = False
    fence: list[str] | UnsetType = UNSET
    defer: str | UnsetType = UNSET
    defer_wait: float | UnsetType = UNSET


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
    control: ControlTable = ControlTable()
    metrics: MetricsTable | UnsetType = UNSET
    state: StateTable | UnsetType = UNSET
    peer: PeerTable | UnsetType = UNSET


# The tables by their paths, without positions.
TABLES: dict[str, type[Struct]] = {
    "": FileTables,
    "gateway": GatewayTable,
    "gateway.inside": LinkTable,
    "gateway.outside": LinkTable,
    "policy": PolicyTable,
    "policy.tcp": TABLES_OF[Behaviour],
    "policy.udp": TABLES_OF[Behaviour],
    "policy.icmp": TABLES_OF[Behaviour],
    "timeouts": TimeoutsTable,
    "snat": SnatTable,
    "snat.pool": EipTable,
    "dnat": DnatTable,
    "no_nat": NoNatTable,
    "plane": PlaneTable,
    "control": ControlTable,
    "metrics": MetricsTable,
    "state": StateTable,
    "peer": PeerTable,
    "log.delivery": DeliveryTable,
}


_WORDS = {"object": "a table", "array": "a list", "str": "a string", "int": "a whole number", "float": "a number",
          "bool": "true or false", "null": "nothing"}  # fmt: skip


def convert_file(problems: Problems, raw: dict[str, Any]) -> FileTables:
    """Return the file's tables. Every error has been added to the problems; what cannot be used is None, or left out."""
    try:
        return msgspec.convert(raw, FileTables)
    except RecursionError:
        problems.add("", None, "tables or lists are nested too deep")
        return FileTables()
    except msgspec.ValidationError:
        pass
    usable: dict[str, Any] = {}
    for field in msgspec.structs.fields(FileTables):
        value, table, element = raw.get(field.name), *_kinds(field.type)
        if isinstance(value, dict) and table is not None:
            usable[field.name] = convert(problems, field.name, value, table)
        elif isinstance(value, list) and isinstance(element, type) and issubclass(element, Struct):
            usable[field.name] = [
                convert(problems, f"{field.name}[{position}]", each, element) for position, each in enumerate(value)
            ]
        elif field.name in raw:
            before = len(problems.errors)
            _look_into(problems, field.name, value, field.type)
            if len(problems.errors) == before:
                usable[field.name] = value
    _refuse_unknown(problems, "", raw, FileTables)
    return FileTables(**{name: value for name, value in usable.items() if value is not None})


def convert(problems: Problems, key: str, raw: object, table: type[Table]) -> Table | None:
    """Return the table. Every error has been added to the problems: then it has no wrong keys, or is None."""
    try:
        return msgspec.convert(raw, table)
    except msgspec.ValidationError:
        usable = _look_into(problems, key, raw, table)
    except RecursionError:
        problems.add(key, None, "tables or lists are nested too deep")
        return None
    try:
        return msgspec.convert(usable, table)
    except msgspec.ValidationError:
        return None


def _kinds(kind: Any) -> tuple[type[Struct] | None, Any]:
    """Return the table that a key's type is, or may be; and the type of a list's elements."""
    parts = _parts(kind)
    table = next((part for part in parts if isinstance(part, type) and issubclass(part, Struct)), None)
    elements = (typing.get_args(part)[0] for part in parts if typing.get_origin(part) is list)
    return table, next(elements, None)


def _look_into(problems: Problems, key: str, raw: object, kind: Any) -> object:
    """Add every error of a value: msgspec tells the first one only. Return it without the keys that are wrong."""
    table, element = _kinds(kind)
    if table is not None and isinstance(raw, dict):
        return _look_into_table(problems, key, raw, table)
    if element is not None and isinstance(raw, list):
        for position, each in enumerate(raw):
            _look_into(problems, f"{key}[{position}]", each, element)
        return raw
    try:
        msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        expected = re.match(r"Expected `([^`]*)`", str(error))
        words = [_WORDS.get(word, word) for word in (expected[1] if expected else "").split(" | ")]
        is_path = " - at `$" in str(error)  # of a pair of ports, or of a target with its weight
        problem = f"must be {' or '.join(words)}" if expected and not is_path else _in_words(str(error))
        problems.add(key, raw, problem)
    except RecursionError:
        problems.add(key, None, "tables or lists are nested too deep")
    return raw


def _look_into_table(problems: Problems, key: str, raw: dict[str, Any], table: type[Struct]) -> dict[str, Any]:
    _refuse_unknown(problems, key, raw, table)
    usable = {}
    for field in msgspec.structs.fields(table):
        name, before = field.name, len(problems.errors)
        if name in raw:
            value = _look_into(problems, f"{key}.{name}".lstrip("."), raw[name], field.type)
            if len(problems.errors) == before:
                usable[name] = value
        elif field.required:
            problems.add(f"{key}.{name}".lstrip("."), None, "missing")
        if len(problems.errors) > before and field.required and name in STAND_INS:
            usable[name] = STAND_INS[name]
    return usable


def _refuse_unknown(problems: Problems, key: str, raw: dict[str, Any], table: type[Struct]) -> None:
    known = table.__struct_fields__
    for name in raw:
        if name not in known:  # its value may be a secret under a misspelt name
            listed = ", ".join(sorted(known))
            problems.add(f"{key}.{name}".lstrip("."), None, f"unknown key; known ones are {listed}")


def _in_words(message: str) -> str:
    """Return msgspec's message without its path and in TOML's words."""
    text, _, path = message.partition(" - at `$")
    place = path.rstrip("`").lstrip(".")
    text = re.sub(r"`([^`]*)`", lambda match: _WORDS.get(match[1], match[1]), text)
    return f"{text[:1].lower()}{text[1:]}" + (f" at {place}" if place else "")


def given(table: Struct | UnsetType) -> dict[str, Any]:
    """Return the keys that the file has; the constructor's defaults serve for the rest."""
    names: tuple[str, ...] = getattr(table, "__struct_fields__", ())
    return {name: value for name in names if (value := getattr(table, name)) is not UNSET}
