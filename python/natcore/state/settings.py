"""A gateway's arguments and entries as JSON, and back: whatever is read is checked as an argument of a new gateway is."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from natcore.config import (
    AnyEntry,
    Behaviour,
    DnatEntry,
    Eip,
    Link,
    NoNatEntry,
    OutsideInterface,
    Policy,
    SnatEntry,
    Timeouts,
)
from natcore.errors import Error, RfcWarning, StateError
from natcore.internal.gateway_arguments import GatewayArguments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.entries.table import Entry
    from natcore.sessionlog.collector import Account

PLAIN = (
    "instance", "vpc_id", "region", "kind", "eip_bind_mode", "billing", "max_sessions", "max_mappings", "max_subscribers",
    "workers", "window", "records", "decrement_ttl", "framing", "seed", "huge_pages", "numa_node",
)  # fmt: skip
_MOST_BYTES = 1 << 28  # of the JSON: 65,536 outside addresses are some 3 MB
_PROTOCOLS = ("tcp", "udp", "icmp")
_RUN = re.compile(r"[0-9a-zA-Z-]{1,64}")


class SavedEntry(NamedTuple):
    """An entry with its number and the numbers of its outside addresses."""

    id: int
    entry: AnyEntry
    addresses: list[int]


class SavedEntries(NamedTuple):
    """What a gateway knows of its entries.

    rows: in force. draining: taken out of force, with sessions still. last_id: the highest number ever given. interface: the
    outside interface's addresses (host order). hosts: by such an address its host's TCP and UDP ports, as bits. followed: a
    plane has told them.
    """

    rows: list[SavedEntry]
    draining: list[SavedEntry]
    last_id: int
    interface: tuple[int, ...]
    hosts: dict[int, tuple[int, int]]
    followed: bool


class SavedSettings(NamedTuple):
    """The arguments of a gateway, and its entries. account: of session logs that were handed over."""

    arguments: dict[str, Any]
    entries: SavedEntries
    account: Account | None


def encode(arguments: Mapping[str, Any], entries: SavedEntries, account: Account | None = None) -> bytes:
    """Return arguments of Gateway and its entries as JSON."""
    policy, timeouts = arguments["policy"], arguments["timeouts"]
    made = {
        "gateway": {name: arguments[name] for name in PLAIN},
        "policy": {name: _behaviour(getattr(policy, name)) for name in Policy.__annotations__},
        "timeouts": {name: getattr(timeouts, name) for name in Timeouts.__annotations__},
        **{side: _link(arguments[side]) for side in ("inside", "outside")},
        "entries": [_entry(row) for row in entries.rows],
        "draining": [_entry(row) for row in entries.draining],
        "last_id": entries.last_id,
        "interface": list(entries.interface),
        "hosts": {str(address): [hex(bits) for bits in ports] for address, ports in entries.hosts.items()},
        "followed": entries.followed,
        "account": account,
    }
    return json.dumps(made, separators=(",", ":")).encode()


def decode(data: bytes, where: str) -> SavedSettings:
    """Return what `encode` was given. Raises StateError: it is none, or no gateway can have it."""
    if len(data) > _MOST_BYTES:
        raise StateError(f"{where} is damaged: its settings have {len(data):,} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RfcWarning)  # whoever made the gateway has seen them
            arguments, entries, account = _made(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Error) as error:
        raise StateError(f"{where} is damaged: its settings are none of a gateway: {error}") from None
    numbers = [row.id for row in (*entries.rows, *entries.draining)]
    if len(set(numbers)) < len(numbers) or not all(0 < number <= entries.last_id for number in numbers):
        raise StateError(f"{where} is damaged: entries must have numbers of their own, from 1 to {entries.last_id}")
    return SavedSettings(arguments, entries, account)


def _made(made: Mapping[str, Any]) -> tuple[dict[str, Any], SavedEntries, Account | None]:
    arguments = {name: made["gateway"][name] for name in PLAIN}
    policy = dict(made["policy"])
    for name in _PROTOCOLS:
        policy[name] = None if policy[name] is None else Behaviour(**policy[name])
    arguments["policy"], arguments["timeouts"] = Policy(**policy), Timeouts(**made["timeouts"])
    for side in ("inside", "outside"):
        arguments[side] = Link(**made[side])
    GatewayArguments(**arguments, epoch=0.0)
    entries = SavedEntries(
        [_entry_of(each) for each in made["entries"]],
        [_entry_of(each) for each in made["draining"]],
        _number(made["last_id"]),
        tuple(_address(each) for each in made["interface"]),
        {_address(int(at)): (_ports(tcp), _ports(udp)) for at, (tcp, udp) in made["hosts"].items()},
        bool(made["followed"]),
    )
    return arguments, entries, None if made["account"] is None else _account(*made["account"])


def _account(
    run: str,
    next_number: int,
    facts: int,
    entries: Sequence[int],
    logs: Sequence[str],
    blocks: int,
    inode: int,
    events: int = 0,
    tells_events: bool = False,
    born: int = 0,
) -> Account:
    from natcore.sessionlog.collector import Account

    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise ValueError(f"{run!r} names no run")
    if not all(isinstance(each, int) and 0 <= each < 1 << 53 for each in (next_number, facts, blocks, events)):
        raise ValueError(f"{next_number!r}, {facts!r}, {blocks!r} and {events!r} are no numbers of rows")
    if not (isinstance(inode, int) and isinstance(born, int)):
        raise ValueError(f"{inode!r} and {born!r} are no file's number and time")
    if not all(isinstance(name, str) for name in logs):
        raise ValueError(f"{logs!r} are no names of session logs")
    if not isinstance(tells_events, bool):
        raise ValueError(f"{tells_events!r} is neither true nor false")
    return Account(
        run,
        next_number,
        facts,
        tuple(_number(each) for each in entries),
        tuple(logs),
        blocks,
        inode,
        events,
        tells_events,
        born,
    )


def entry_kinds(entries: SavedEntries) -> NDArray[np.uint8]:
    """Return what each number of an entry is, uint8 (numbers,): EntryKind of natcore/workers/state_rows.pxd; 0: none."""
    rows = (*entries.rows, *entries.draining)
    kinds = np.zeros(max((row.id for row in rows), default=0) + 1, np.uint8)
    for row in rows:
        kinds[row.id] = 1 if isinstance(row.entry, SnatEntry) else 2 if isinstance(row.entry, DnatEntry) else 3
    return kinds


def saved_entry(row: Entry) -> SavedEntry:
    """Return an entry with its numbers."""
    return SavedEntry(row.id, row.entry, list(row.addresses))


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r} is no number")
    return value


def _address(value: object) -> int:
    return int(IPv4Address(value)) if isinstance(value, int) and not isinstance(value, bool) else _number("no address")


def _ports(value: str) -> int:
    bits = int(value, 16)
    if not 0 <= bits < 1 << 65536:
        raise ValueError("more ports than there are")
    return bits


def _behaviour(value: object) -> object:
    if isinstance(value, Behaviour):
        return {"mapping": value.mapping, "filtering": value.filtering}
    return value


def _link(link: Link) -> dict[str, object]:
    return {"address": None if link.address is None else str(link.address), "mtu": link.mtu}


def _outside(value: Eip | OutsideInterface | IPv4Address) -> object:
    if isinstance(value, Eip):
        return [str(value.address), None if value.private_ip is None else str(value.private_ip)]
    if isinstance(value, OutsideInterface):
        return {"interface": None if value.addresses is None else [str(address) for address in value.addresses]}
    return str(value)


def _outside_of(value: object) -> Any:
    if isinstance(value, dict):
        return OutsideInterface(value["interface"])
    if isinstance(value, list):
        address, private_ip = value
        return Eip(address, private_ip)
    return value


def _entry(row: SavedEntry) -> dict[str, object]:
    entry, common = row.entry, {"id": row.id, "addresses": row.addresses, "name": row.entry.name}
    if isinstance(entry, SnatEntry):
        return {"snat": str(entry.source), "pool": [_outside(each) for each in entry.pool], **common}
    if isinstance(entry, NoNatEntry):
        return {"no_nat": str(entry.source), "destination": str(entry.destination), **common}
    return {
        "dnat": _outside(entry.external_ip),
        "external_port": entry.external_port,
        "internal_ip": [[str(address), weight] for address, weight in entry.internal_ip],
        "internal_port": entry.internal_port,
        "protocol": entry.protocol,
        **common,
    }


def _port(value: object) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _entry_of(saved: Mapping[str, Any]) -> SavedEntry:
    makers: dict[str, Callable[[], AnyEntry]] = {
        "snat": lambda: SnatEntry(saved["snat"], [_outside_of(each) for each in saved["pool"]], saved["name"]),
        "no_nat": lambda: NoNatEntry(saved["no_nat"], saved["destination"], saved["name"]),
        "dnat": lambda: DnatEntry(
            _outside_of(saved["dnat"]), _port(saved["external_port"]), _targets(saved["internal_ip"]),
            _port(saved["internal_port"]), saved["protocol"], saved["name"],
        ),
    }  # fmt: skip
    [kind] = [kind for kind in makers if kind in saved]
    return SavedEntry(_number(saved["id"]), makers[kind](), [_number(number) for number in saved["addresses"]])


def _targets(value: Sequence[Sequence[Any]]) -> list[tuple[Any, int]]:
    return [(address, weight) for address, weight in value]
