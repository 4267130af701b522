"""Makes a gateway of a saved state, and lets it become what is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, get_args

import numpy as np

from natcore import choices
from natcore.api.state import State
from natcore.config import BLOCKED, AnyEntry, Link, Policy, Timeouts
from natcore.entries.live import check_live
from natcore.errors import ConfigurationError, RestartNeededError, StateError
from natcore.events import event_of
from natcore.internal import files
from natcore.internal.arguments import timeouts_ms
from natcore.internal.gateway_arguments import GatewayArguments
from natcore.internal.parts import parts_of
from natcore.internal.redaction import show
from natcore.internal.validation import MAX_TIME, check_choice, check_number, check_path, to_ns
from natcore.state import placing
from natcore.state.file_format import HEADER, SETTINGS, Saved, read, read_header
from natcore.state.rows import NUMBERS, OF_WORKER, SECTIONS
from natcore.state.settings import PLAIN, SavedSettings, decode, entry_kinds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.gateway import Gateway
    from natcore.sessionlog.collector import Account
    from natcore.state.placing import Tables

Made = TypeVar("Made", bound="Gateway")
FIXED = ("kind", "framing", "seed", "epoch")  # arguments that cannot change
FIRST = ("instance", "vpc_id", "region", "billing", "max_sessions", "max_mappings", "max_subscribers", "workers", "window",
         "records", "inside", "outside", "decrement_ttl", "huge_pages", "numa_node")  # fmt: skip
MAX_TIME_NS = int(MAX_TIME) * 10**9
MOST_SESSIONS = (1 << 48) - (1 << 40)  # ever created: numbers have 48 bits, and some must be left


class SavedGateway(NamedTuple):
    """A saved state that has been read and checked as far as it can be without tables. where: the file, for messages."""

    where: str
    settings: SavedSettings
    tables: Tables
    now_ns: int  # of the gateway's clock
    epoch_ns: int

    @property
    def wall_ns(self) -> int:
        """When it was saved, by the gateway's own labels: ns since 1970."""
        return self.now_ns + self.epoch_ns


def read_state(file: str | os.PathLike[str] | BinaryIO) -> SavedGateway:
    """Read a saved state. Raises StateError, UntrustedFileError, OSError."""
    if callable(getattr(file, "read", None)):
        where, data = "the saved state", file.read()  # type: ignore[union-attr]
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ConfigurationError(f"file must be opened for bytes, got {show(data)}")
    else:
        path = Path(check_path("file", file))
        where = show(str(path))
        data = files.read_trusted(path, HEADER.size, lambda head, size: read_header(head, size, where))
    saved = read(np.frombuffer(data, np.uint8), where)
    settings = decode(saved.sections[SETTINGS, 0].tobytes(), where)
    tables = _tables(saved)
    if any(len(own[NUMBERS["worker"]]) != 1 for own in tables) or len(tables[0][NUMBERS["gateway"]]) != 1:
        raise StateError(f"{where} is damaged: a worker, or the gateway, must have one row")
    gateway = tables[0][NUMBERS["gateway"]][0]
    now_ns, epoch_ns = int(gateway["now_ns"]), int(gateway["epoch_ns"])
    if now_ns > MAX_TIME_NS or abs(epoch_ns) > MAX_TIME_NS or saved.workers != settings.arguments["workers"]:
        raise StateError(f"{where} is damaged: its clock or its workers are none of a gateway")
    if wrong := _wrong_count(tables):
        raise StateError(f"{where} is damaged: {wrong}")
    for row in tables[0][NUMBERS["events"]]:
        try:
            event_of(tuple(int(row[name]) for name in _EVENT))  # type: ignore[arg-type]
        except (ValueError, KeyError, IndexError):
            raise StateError(f"{where} is damaged: an event has an unknown reason") from None
    return SavedGateway(where, settings, tables, now_ns, epoch_ns)


def _wrong_count(tables: Tables) -> str:
    """Return which count or clock no gateway has; empty: none."""
    row = {name: tables[0][NUMBERS["gateway"]][name][0].tolist() for name in _COUNTS}
    if row["blocks_taken"] - row["blocks_released"] != len(tables[0][NUMBERS["blocks"]]):
        return "more or fewer blocks are assigned than it has"
    blocks = tables[0][NUMBERS["blocks"]]
    numbers = np.unique(blocks["number"])
    if len(numbers) < len(blocks) or (len(numbers) and not 1 <= numbers[0] <= numbers[-1] <= row["blocks_taken"]):
        return "two blocks have one number, or one has none that was given"
    if (blocks["born_ns"] > MAX_TIME_NS).any():
        return "a block was assigned at no time of a gateway"
    created = int(tables[0][NUMBERS["gateway"]]["created"][0])
    if max(created, *(int(own[NUMBERS["worker"]]["created"][0]) for own in tables)) > MOST_SESSIONS:
        return "more sessions were created than there are numbers for"
    for own in tables:
        sessions = own[NUMBERS["sessions"]]
        numbers = sessions["id_low"].astype(np.uint64) | sessions["id_high"].astype(np.uint64) << np.uint64(32)
        if (sessions["birth_ns"] > MAX_TIME_NS).any():
            return "a session began at no time of a gateway"
        if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= created:
            return "a session has no number that was given"
    for name in ("lost", "lifecycle_lost"):
        if not row[f"reported_{name}"] <= row[f"journal_{name}"] <= _MOST_ROWS:
            return "more lost rows are reported than were lost"
    clocks = ("now_ns", "ticked_ns", "swept_ns", "complete_ns")
    if any(int(own[NUMBERS["worker"]][name][0]) > MAX_TIME_NS for own in tables for name in clocks):
        return "a worker's clock is none"
    return ""


_MOST_ROWS = (1 << 53) - 1
_COUNTS = ("blocks_taken", "blocks_released", "journal_lost", "journal_lifecycle_lost", "reported_lost",
           "reported_lifecycle_lost")  # fmt: skip
_EVENT = ("at_ns", "reason", "subscriber", "destination", "port", "protocol", "count", "limit")


def restore(
    cls: type[Made],
    saved: SavedGateway,
    *,
    gap: choices.Gap = "count",
    wall: float | None = None,
    entries: Sequence[AnyEntry] | None = None,
    changes: Mapping[str, Any],
) -> Made:
    """Make a gateway of a saved one; arguments and errors as those of Gateway.restore."""
    check_choice("gap", gap, get_args(choices.Gap))
    before = saved.settings.arguments
    wanted = _wanted(before, changes)
    gap_ns = 0
    if wall is not None:
        gap_ns = max(0, to_ns(check_number("wall", wall, 0, MAX_TIME, unit="seconds"), "wall") - saved.wall_ns)
        gap_ns = min(gap_ns, MAX_TIME_NS - saved.now_ns)
    base = {**before, **{name: wanted[name] for name in FIRST}}
    tables, is_live = saved.tables, True
    try:
        check_live(before["policy"], wanted["policy"])
    except RestartNeededError:
        base["policy"], is_live = wanted["policy"], False
    try:
        tables = _fitted(tables, before, base, is_live=is_live)
    except (IndexError, KeyError, OverflowError, ValueError) as error:
        raise StateError(f"{saved.where} is damaged: {error}") from None
    made = cls(**base)
    parts = parts_of(made)
    state = State(parts.core.log_rows)
    gateway = tables[0][NUMBERS["gateway"]][0]
    state.set_key(*(int(word) for word in gateway["hash_key"]))
    if not _is_listed(base["policy"]) and any(len(own[NUMBERS["mapping-lists"]]) for own in tables):
        parts.core.keep_lists()
    addresses = tables[0][NUMBERS["addresses"]]
    placed = sorted((int(row["number"]), int(row["ip"]), int(row["eip"])) for row in addresses)
    kinds = entry_kinds(saved.settings.entries)
    try:
        try:
            parts.table.restore(saved.settings.entries, placed)
        except ConfigurationError as error:
            raise StateError(f"its entries cannot be together: {error}") from None
        except MemoryError:
            last = saved.settings.entries.last_id
            raise StateError(f"for {last:,} numbers of entries there is no memory") from None
        state.restore(_raw(tables), kinds, gap_ns, gap == "freeze", made.seed is not None)
    except StateError as error:
        told = f", in section {SECTIONS[error.section][0]!r}, row {error.row}" if error.section >= 0 else ""
        raise StateError(f"{saved.where} is damaged: {error}{told}", error.section, error.row) from None
    if gap_ns:
        parts.advance_ns(saved.now_ns + gap_ns)
    settled = tuple(wanted[name] for name in ("policy", "timeouts", "eip_bind_mode"))
    if entries is not None or settled != (made.policy, made.timeouts, made.eip_bind_mode):
        parts.become(entries, *settled)
    return made


def account_of(saved: SavedGateway, file: str | os.PathLike[str] | BinaryIO, made: Gateway) -> Account | None:
    """Return the account that the session logs of a restored gateway go on with, which is taken out of the file; None: there is
    none, or the file is a copy: its rows would have names that others have."""
    account = saved.settings.account
    if account is None or callable(getattr(file, "read", None)):
        return account
    path = Path(check_path("file", file))
    with path.open("rb") as opened:
        inode, born = files.identity(opened.fileno())
    is_copy = inode != account.inode or (born != account.born and bool(born and account.born))
    try:
        made.save(path)
    except OSError:  # no space for it: the account goes with the file, or both stay
        try:
            path.unlink()
            files.sync_folder(path.parent)
        except OSError:
            return None
    return None if is_copy else account


def _wanted(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the restored gateway."""
    defaults: dict[str, Any] = {"policy": Policy(), "timeouts": Timeouts(), "inside": Link(), "outside": Link()}
    wanted = dict(before)
    for name, value in changes.items():
        if name not in (*PLAIN, *defaults, "epoch"):
            raise ConfigurationError(f"changes must be arguments of Gateway, got {show(name)}")
        value = defaults[name] if name in defaults and value is None else value
        if name in FIXED and value != before.get(name, value):
            raise ConfigurationError(
                f"{name} must stay {show(before.get(name))} in a restored gateway, got {show(value)}"
            )
        wanted[name] = value
    if "max_sessions" in changes:
        for name in ("max_mappings", "max_subscribers"):
            if before[name] == before["max_sessions"] and changes.get(name) is None:
                wanted[name] = changes["max_sessions"]
    for name in ("max_mappings", "max_subscribers"):
        wanted[name] = wanted["max_sessions"] if wanted[name] is None else wanted[name]
    GatewayArguments(**{"epoch": 0.0, **wanted})
    wanted.pop("epoch", None)
    return wanted


def _tables(saved: Saved) -> Tables:
    """Return the sections as rows."""
    return [
        [
            saved.sections[name, worker if name in OF_WORKER else 0].view(dtype)
            if worker == 0 or name in OF_WORKER
            else np.zeros(0, dtype)
            for name, dtype in SECTIONS
        ]
        for worker in range(saved.workers)
    ]


def _raw(tables: Tables) -> list[list[NDArray[np.uint8]]]:
    return [[np.ascontiguousarray(rows).view(np.uint8).reshape(-1) for rows in own] for own in tables]


def _is_listed(policy: Policy) -> bool:
    """Whether a new gateway keeps lists of each subscriber's mappings."""
    quotas = policy.sessions_per_subscriber, policy.ports_per_subscriber
    return policy.ports in BLOCKED or any(quota is not None for quota in quotas)


def _fitted(tables: Tables, before: Mapping[str, Any], base: Mapping[str, Any], *, is_live: bool) -> Tables:
    """Return the tables as a gateway with the arguments `base` can have them; what it cannot have ends."""
    policy: Policy = base["policy"]
    sizes = placing.Sizes(*(base[name] for name in placing.Sizes._fields))
    window_ns = to_ns(before["window"], "window")
    if not is_live:
        tables = [list(own) for own in tables]
        keep = placing.fitting(tables, before["policy"], policy)
        placing.end(tables, keep, timeouts_ms(before["timeouts"]), window_ns)
        placing.hold_down(tables, keep, policy)
        tables = placing.place(tables, sizes, policy, keep)
        placing.settle_blocks(tables, policy)
    elif placing.needs_placing(tables, sizes, policy, listed=_is_listed(policy)):
        tables = placing.place(tables, sizes, policy)
    if base["window"] != before["window"]:
        tables = [list(own) for own in tables]
        placing.set_windows(tables, to_ns(base["window"], "window"))
    return tables
