"""Places a saved state anew: among another number of workers, in smaller tables, or under a policy that not all of it fits.

Slots and lists get a new order then, which no packet can tell but by which of two equally good choices it meets. What does not
fit ends, with its last rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from natcore.config import BLOCKED, Policy
from natcore.dtypes import END, RECORD, WINDOW
from natcore.entries.live import SCHEME_FREE
from natcore.errors import CapacityError
from natcore.internal.affinity import lane_of_inside
from natcore.state import rows as state
from natcore.state.rows import NONE, NUMBERS, SECTIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.sinks.base import Records
    from natcore.state.rows import Rows

    Column = NDArray[Any]

Tables = list[list[Any]]  # [[rows of each section], by worker]
PROTOCOLS = {6: ("tcp", 0), 17: ("udp", 1), 1: ("icmp", 2)}
KINDS = np.full(256, 3)  # ProtocolKind of natcore/tables/sessions.pxd
KINDS[[6, 17, 1]] = 0, 1, 2
SPACES = np.full(256, 2, np.uint8)  # PortSpace of natcore/tables/ports.pxd
SPACES[[6, 17]] = 0, 1


class Sizes(NamedTuple):
    """How many workers a gateway has, and how large its tables are."""

    workers: int
    max_sessions: int
    max_mappings: int
    max_subscribers: int


class _All(NamedTuple):
    """The tables of all workers together; references are indexes into these."""

    sessions: Rows
    mappings: Rows
    subscribers: Rows
    mapping_of: Column  # of each session
    subscriber_of: Column  # of each mapping; -1: none
    syns: dict[int, Column]  # by session


def needs_placing(tables: Tables, sizes: Sizes, policy: Policy, *, listed: bool) -> bool:
    """Whether tables have no place as they are. listed: the gateway keeps lists of each subscriber's mappings."""
    if len(tables) != sizes.workers:
        return True
    for name, most in (
        ("sessions", sizes.max_sessions),
        ("mappings", sizes.max_mappings),
        ("subscribers", sizes.max_subscribers),
    ):
        if sum(len(_of(own, name)) for own in tables) > most or any(_used(own, name) > most for own in tables):
            return True
    filtered = _has_filters(policy)
    for own in tables:
        if listed and len(_of(own, "mapping-lists")) != len(_of(own, "mappings")):
            return True
        if filtered and len(_of(own, "filter-lists")) != len(_of(own, "sessions")):
            return True
    return False


def place(tables: Tables, sizes: Sizes, policy: Policy, keep: Column | None = None) -> Tables:
    """Return the tables for other workers or sizes. keep: which mappings stay, of all workers in turn; None: all.

    Raises CapacityError: they are more than the sizes allow.
    """
    everything = _together(tables)
    kept_mapping = np.ones(len(everything.mappings), bool) if keep is None else keep
    kept_session = kept_mapping[everything.mapping_of] if len(everything.mapping_of) else np.zeros(0, bool)
    sessions, mappings = everything.sessions[kept_session], everything.mappings[kept_mapping]
    renumbered = np.cumsum(kept_mapping) - 1
    mapping_of = renumbered[everything.mapping_of[kept_session]] if len(sessions) else np.zeros(0, np.int64)
    subscriber_of = everything.subscriber_of[kept_mapping]
    has_mapping = np.zeros(len(everything.subscribers), bool)
    has_mapping[subscriber_of[subscriber_of >= 0]] = True
    kept_subscriber = has_mapping | (everything.subscribers["opened"] > 0)
    subscribers = everything.subscribers[kept_subscriber]
    subscriber_of = np.where(subscriber_of >= 0, (np.cumsum(kept_subscriber) - 1)[subscriber_of], -1)
    for what, found, most in (
        ("max_sessions", sessions, sizes.max_sessions),
        ("max_mappings", mappings, sizes.max_mappings),
        ("max_subscribers", subscribers, sizes.max_subscribers),
    ):
        if len(found) > most:
            raise CapacityError(
                f"{what} must be at least {len(found):,}, of which the saved state has as many, got {most:,}"
            )
    stay = np.flatnonzero(kept_session).tolist()
    synced = {at: everything.syns[old] for at, old in enumerate(stay) if old in everything.syns}
    return _divide(
        tables, _All(sessions, mappings, subscribers, mapping_of, subscriber_of, synced), sizes.workers, policy
    )


def fitting(tables: Tables, before: Policy, after: Policy) -> Column:
    """Return which mappings, of all workers in turn, can be under the policy after; drop ports at rest that cannot."""
    mappings = _joined([_of(own, "mappings") for own in tables])
    keep = np.ones(len(mappings), bool)
    drawn = (mappings["flags"] & (state.STATIC | state.PORTLESS)) == 0
    dynamic = (mappings["flags"] & state.STATIC) == 0
    for number in range(256):
        protocol = PROTOCOLS.get(number, ("other", 2))[0]
        space = "icmp" if protocol == "other" else protocol
        if before.behaviour(space).mapping != after.behaviour(space).mapping:  # type: ignore[arg-type]
            keep &= ~(dynamic & (mappings["protocol"] == number))
    scheme = before.ports != after.ports and not {before.ports, after.ports} <= SCHEME_FREE
    if after.ports in BLOCKED:
        scheme = scheme or before.block_size != after.block_size or before.port_ranges != after.port_ranges
    allowed = np.zeros(65536, bool)
    for first, last in () if scheme else after.drawn_ranges:
        allowed[first : last + 1] = True
    keep &= ~drawn | allowed[mappings["outside_port"].astype(np.int64)]
    held = _of(tables[0], "held-down")
    tables[0][NUMBERS["held-down"]] = held[allowed[held["port"]]]
    if scheme:
        _keep_blocks(tables, np.zeros(len(_of(tables[0], "blocks")), bool))
    return keep


def settle_blocks(tables: Tables, policy: Policy) -> None:
    """Return the blocks that have no port any more, after mappings have ended."""
    blocks = _of(tables[0], "blocks")
    if policy.ports != "block" or not len(blocks):
        return
    block_of, at = np.full(65536, NONE, np.int64), 0
    for first, last in policy.drawn_ranges:
        block_of[first : last + 1] = (at + np.arange(last - first + 1)) // policy.block_size
        at += last - first + 1
    used = set()
    for own in tables:
        mappings = _of(own, "mappings")
        mappings = mappings[(mappings["flags"] & (state.STATIC | state.PORTLESS)) == 0]
        used |= set(
            zip(mappings["address"].tolist(), block_of[mappings["outside_port"].astype(int)].tolist(), strict=True)
        )
    held = _of(tables[0], "held-down")
    used |= set(zip(held["address"].tolist(), block_of[held["port"]].tolist(), strict=True))
    keep = [(int(row["address"]), int(row["block"])) in used for row in blocks]
    _keep_blocks(tables, np.array(keep, bool))


def _keep_blocks(tables: Tables, keep: Column) -> None:
    """Keep some blocks, and count the others as released."""
    tables[0][NUMBERS["blocks"]] = _of(tables[0], "blocks")[keep]
    gateway = tables[0][NUMBERS["gateway"]] = _of(tables[0], "gateway").copy()
    gateway["blocks_released"] += np.uint64(len(keep) - keep.sum())


def hold_down(tables: Tables, keep: Column, policy: Policy) -> None:
    """Hold the ports of mappings that do not stay down for their hosts (RFC 6888 REQ-8), where the policy allocates them."""
    mappings = _joined([_of(own, "mappings") for own in tables])
    allowed = np.zeros(65536, bool)
    for first, last in policy.drawn_ranges:
        allowed[first : last + 1] = True
    drawn = (mappings["flags"] & (state.STATIC | state.PORTLESS)) == 0
    gone = mappings[drawn & ~keep & allowed[mappings["outside_port"].astype(np.int64)]]
    if policy.ports in ("block", "deterministic", "overload") or not policy.hold_down or not len(gone):
        return  # a block is its host's anyway, and an overloaded port is not held down
    held = np.zeros(len(gone), state.HELD_DOWN_STATE)
    held["address"], held["owner"], held["port"] = gone["address"], gone["inside_ip"], gone["outside_port"]
    held["space"] = SPACES[gone["protocol"]]
    now_ms = int(_of(tables[0], "gateway")["now_ns"][0]) // 1_000_000
    held["until_ms"] = (now_ms + round(policy.hold_down * 1000)) & 0xFFFFFFFF
    tables[0][NUMBERS["held-down"]] = _joined([_of(tables[0], "held-down"), held])


def end(tables: Tables, keep: Column, timeouts_ms: list[int], window_ns: int) -> int:
    """Write the last rows of the sessions of mappings that do not stay, and count them as ended; return how many there are.

    They end at the moment of the state, or at their deadlines before it.
    """
    everything = _together(tables)
    if not len(everything.sessions):
        return 0
    gone = ~keep[everything.mapping_of]
    sessions, mappings = everything.sessions[gone], everything.mappings[everything.mapping_of[gone]]
    gateway = _of(tables[0], "gateway")
    now_ns = int(gateway["now_ns"][0])
    place = 0
    for own in tables:
        mine = gone[place : place + len(_of(own, "sessions"))]
        place += len(mine)
        protocols = everything.mappings["protocol"][everything.mapping_of[place - len(mine) : place][mine]]
        worker = own[NUMBERS["worker"]] = _of(own, "worker").copy()
        worker["ended"] += np.uint64(mine.sum())
        worker["ended_of"][0] += np.bincount(KINDS[protocols], minlength=4).astype(np.uint64)
    idle_ms = (np.uint32((now_ns // 1_000_000) & 0xFFFFFFFF) - sessions["last_seen"]).astype(np.int64)
    over_ms = idle_ms - np.array(timeouts_ms)[sessions["timeout_class"]]
    end_ns = now_ns - np.maximum(0, over_ms) * 1_000_000
    logged = (sessions["flags"] & state.UNLOGGED) == 0
    rows = _last_rows(
        sessions[logged], mappings[logged], end_ns[logged], window_ns, int(gateway["epoch_ns"][0]), _eips(tables)
    )
    gateway = tables[0][NUMBERS["gateway"]] = gateway.copy()
    rows["number"] = np.uint64(gateway["journal_order"][0]) + np.arange(len(rows), dtype=np.uint64)
    gateway["journal_order"] += np.uint64(len(rows))
    tables[0][NUMBERS["rows"]] = _joined([_of(tables[0], "rows"), rows])
    return len(sessions)


def set_windows(tables: Tables, window_ns: int) -> None:
    """Let open windows end when they do with another length."""
    for own in tables:
        sessions = own[NUMBERS["sessions"]] = _of(own, "sessions").copy()
        ends = (sessions["window_start_ns"] + np.uint64(window_ns)) // np.uint64(1_000_000_000)
        is_open = (sessions["flags"] & state.NO_WINDOW) == 0
        sessions["window_end"] = np.where(is_open, ends & np.uint64(0xFFFF), sessions["window_end"])


# ---- tables ----------------------------------------------------------------------------------------------------------


def _of(own: list[Any], name: str) -> Any:
    return own[NUMBERS[name]]


def _joined(parts: list[Any]) -> Any:
    """Return rows one behind another as they are: numpy by itself would change the byte order, and leave padding out."""
    whole = np.dtype((np.void, parts[0].dtype.itemsize))
    return np.concatenate([np.ascontiguousarray(part).view(whole) for part in parts]).view(parts[0].dtype)


def _used(own: list[Any], name: str) -> int:
    """Return how many slots of a table were ever used."""
    return len(_of(own, name)) + len(_of(own, f"free-{name}"))


def _slots(own: list[Any], name: str) -> Column:
    """Return, by slot, the index of a table's row; -1: the slot is free."""
    free = _of(own, f"free-{name}")
    fresh = _used(own, name)
    is_free = np.zeros(fresh, bool)
    is_free[free[free < fresh]] = True
    found = np.cumsum(~is_free) - 1
    found[is_free] = -1
    return found


def _refer(slots: Column, wanted: Column, base: int) -> Column:
    """Return the index of each row that is referred to by its slot, from base on; -1: there is none."""
    inside = wanted < len(slots)
    found = slots[np.where(inside, wanted, 0)] if len(slots) else np.full(len(wanted), -1)
    return np.where(inside & (found >= 0), found + base, -1)


def _together(tables: Tables) -> _All:
    mapping_of, subscriber_of = [], []
    syns: dict[int, Column] = {}
    sessions = mappings = subscribers = 0
    for own in tables:
        mapping_of.append(_refer(_slots(own, "mappings"), _of(own, "sessions")["mapping"], mappings))
        subscriber_of.append(_refer(_slots(own, "subscribers"), _of(own, "mappings")["subscriber"], subscribers))
        syns |= {int(row["session"]) + sessions: row["syn"] for row in _of(own, "syns")}
        sessions += len(_of(own, "sessions"))
        mappings += len(_of(own, "mappings"))
        subscribers += len(_of(own, "subscribers"))
    if any((references < 0).any() for references in mapping_of):
        raise IndexError("a session has no mapping")
    joined = {name: _joined([_of(own, name) for own in tables]) for name in ("sessions", "mappings", "subscribers")}
    return _All(**joined, mapping_of=np.concatenate(mapping_of), subscriber_of=np.concatenate(subscriber_of), syns=syns)


def _worker_of(addresses: Column, workers: int) -> Column:
    """Return the worker that owns each inside address (worker_of_inside of natcore/workers/worker.pxd)."""
    return lane_of_inside(addresses.astype(np.uint32)).astype(np.int64) % workers


def _ranks(owners: Column, workers: int) -> Column:
    """Return each row's slot: its place among those of its worker."""
    ranks = np.zeros(len(owners), np.int64)
    for worker in range(workers):
        mine = owners == worker
        ranks[mine] = np.arange(mine.sum())
    return ranks


def _rings(groups: Column, order: Column, slots: Column) -> tuple[Column, Column]:
    """Return for each row the slot of the next one of its group, the highest in the order first, and the group's first row."""
    at = np.lexsort((-order, groups))
    sorted_groups = groups[at]
    begins = np.concatenate([[True], sorted_groups[1:] != sorted_groups[:-1]]) if len(at) else np.zeros(0, bool)
    starts = np.flatnonzero(begins)
    first = np.repeat(starts, np.diff(np.append(starts, len(at)))) if len(at) else np.zeros(0, np.int64)
    after = np.arange(1, len(at) + 1)
    is_last = np.append(begins[1:], True) if len(at) else np.zeros(0, bool)
    after[is_last] = first[is_last]
    next_slot = np.zeros(len(at), np.int64)
    next_slot[at] = slots[at[after]] if len(at) else 0
    return next_slot, at[starts]


def _has_filters(policy: Policy) -> bool:
    return any(policy.behaviour(each).filtering == "address-dependent" for each in ("tcp", "udp"))


def _divide(before: Tables, all_: _All, workers: int, policy: Policy) -> Tables:
    """Give each worker its rows, in the order of session numbers."""
    ids = all_.sessions["id_low"].astype(np.int64) + (all_.sessions["id_high"].astype(np.int64) << 32)
    by_id = np.argsort(ids, kind="stable")
    sessions, mapping_of, ids = all_.sessions[by_id].copy(), all_.mapping_of[by_id], ids[by_id]
    syns = {int(at): all_.syns[int(old)] for at, old in enumerate(by_id) if int(old) in all_.syns} if all_.syns else {}
    mappings, subscribers = all_.mappings.copy(), all_.subscribers.copy()
    mapping_worker = _worker_of(mappings["inside_ip"], workers)
    subscriber_worker = _worker_of(subscribers["ip"], workers)
    session_worker = mapping_worker[mapping_of] if len(sessions) else np.zeros(0, np.int64)
    session_slot, mapping_slot = _ranks(session_worker, workers), _ranks(mapping_worker, workers)
    subscriber_slot = _ranks(subscriber_worker, workers)
    if len(sessions):
        sessions["next"], firsts = _rings(mapping_of, ids, session_slot)
        mappings["first"][mapping_of[firsts]] = session_slot[firsts]
        sessions["mapping"] = mapping_slot[mapping_of]
    owned = all_.subscriber_of >= 0
    lists = np.full(len(mappings), NONE, np.int64)
    subscribers["first"], subscribers["examined"] = NONE, 0
    mappings["subscriber"] = NONE
    if owned.any():
        mine = np.flatnonzero(owned)
        mappings["subscriber"][mine] = subscriber_slot[all_.subscriber_of[mine]]
        lists[mine], firsts = _rings(all_.subscriber_of[mine], mapping_slot[mine], mapping_slot[mine])
        subscribers["first"][all_.subscriber_of[mine][firsts]] = mapping_slot[mine][firsts]
    made: Tables = []
    for worker in range(workers):
        own: list[Any] = [np.zeros(0, dtype) for _, dtype in SECTIONS]
        mine = session_worker == worker
        own[NUMBERS["sessions"]] = sessions[mine]
        noted = [(int(session_slot[at]), syn) for at, syn in syns.items() if mine[at]]
        own[NUMBERS["syns"]] = np.array(sorted(noted, key=lambda each: each[0]), state.SYN_STATE)
        own[NUMBERS["mappings"]] = mappings[mapping_worker == worker]
        own[NUMBERS["mapping-lists"]] = lists[mapping_worker == worker].astype("<u4")
        own[NUMBERS["subscribers"]] = subscribers[subscriber_worker == worker]
        if _has_filters(policy):
            _filter(own, policy)
        made.append(own)
    _own_rows(before, made)
    return made


def _filter(own: list[Any], policy: Policy) -> None:
    """Make filter entries of a worker's sessions (address-dependent filtering)."""
    sessions = _of(own, "sessions")
    mappings = _of(own, "mappings")[sessions["mapping"]]
    filtered = np.zeros(256, bool)
    for number, (protocol, _) in PROTOCOLS.items():
        filtered[number] = protocol != "icmp" and policy.behaviour(protocol).filtering == "address-dependent"  # type: ignore[arg-type]
    mine = np.flatnonzero(filtered[mappings["protocol"]])
    keys = np.zeros(len(mine), state.FILTER_STATE)
    keys["remote_ip"] = sessions["remote_ip"][mine]
    for name in ("outside_ip", "outside_port", "protocol"):
        keys[name] = mappings[name][mine]
    kinds, groups = np.unique(keys.view(np.dtype((np.void, keys.itemsize))), return_inverse=True)
    filters = kinds.view(state.FILTER_STATE).copy()
    lists = np.full(len(sessions), NONE, np.int64)
    lists[mine], firsts = _rings(groups.reshape(-1), np.arange(len(mine)), mine)
    if len(mine):
        filters["first"][groups.reshape(-1)[firsts]] = mine[firsts]
    own[NUMBERS["filters"]], own[NUMBERS["filter-lists"]] = filters, lists.astype("<u4")


def _own_rows(before: Tables, made: Tables) -> None:
    """Give workers their counters, cursors at the begin, and the first one what is the gateway's."""
    if len(before) == len(made):
        for old, own in zip(before, made, strict=True):
            own[NUMBERS["worker"]] = _of(old, "worker").copy()
    else:
        rows = _joined([_of(old, "worker") for old in before])
        for at, own in enumerate(made):
            row = own[NUMBERS["worker"]] = np.zeros(1, state.WORKER_STATE)
            for name in state.WORKER_STATE.names or ():
                if at == 0 and rows[name].dtype == np.uint64:
                    row[name][0] = rows[name].sum(axis=0, dtype=np.uint64)
            row["now_ns"] = rows["now_ns"].max()
            for name in ("ticked_ns", "swept_ns", "complete_ns"):
                row[name] = rows[name].min()
            row["lingering"] = rows["lingering"].max()
    for own in made:
        for name in ("sweep_at", "reap_at", "swept_for"):
            _of(own, "worker")[name] = 0
    for name in [name for name, _ in SECTIONS if name not in state.OF_WORKER]:
        made[0][NUMBERS[name]] = _of(before[0], name).copy()
    for name in ("reclaim_table", "reclaim_line"):
        _of(made[0], "gateway")[name] = 0


# ---- rows of what ends -----------------------------------------------------------------------------------------------


def _eips(tables: Tables) -> dict[int, int]:
    """Return the EIP of each outside address, by its number."""
    addresses = _of(tables[0], "addresses")
    return dict(zip(addresses["number"].tolist(), addresses["eip"].tolist(), strict=True))


def _last_rows(
    sessions: Rows, mappings: Rows, end_ns: Column, window_ns: int, epoch_ns: int, eips: dict[int, int]
) -> Records:
    """Return the last window's row and the end row of each session."""
    rows = np.zeros((len(sessions), 2), RECORD)
    for at, kind in ((0, WINDOW), (1, END)):
        row = rows[:, at]
        row["kind"] = kind
        row["protocol"] = mappings["protocol"]
        row["pri_ip"], row["pri_port"] = mappings["inside_ip"], mappings["inside_port"]
        row["pub_ip"], row["pub_port"] = sessions["remote_ip"], sessions["remote_port"]
        row["nat_ip"], row["nat_port"] = mappings["outside_ip"], mappings["outside_port"]
        row["eip"] = [eips.get(number, 0) for number in mappings["address"].tolist()]
        row["session"] = sessions["id_low"].astype(np.uint64) | sessions["id_high"].astype(np.uint64) << np.uint64(32)
        row["flags"] = sessions["flags"] & state.OPENED_OUTSIDE
    is_open = (sessions["flags"] & state.NO_WINDOW) == 0
    shift = np.uint64(32)
    window, ended = rows[:, 0], rows[:, 1]
    for direction, side in ((0, "vpc"), (1, "pub")):
        for unit, name, carry in (("bytes", "bytes", "carry_bytes"), ("pkts", "packets", "carry_packets")):
            now = sessions[name][:, direction].astype(np.uint64) + (
                sessions[carry][:, direction].astype(np.uint64) << shift
            )
            window[f"{unit}_from_{side}"] = now
            ended[f"{unit}_from_{side}"] = sessions[f"total_{name}"][:, direction] + np.where(is_open, now, 0)
    start = sessions["window_start_ns"].astype(np.int64)
    window["start_time"], ended["start_time"] = (
        _micros(start, epoch_ns),
        _micros(sessions["birth_ns"].astype(np.int64), epoch_ns),
    )
    window["end_time"], ended["end_time"] = (
        _micros(np.minimum(end_ns, start + window_ns), epoch_ns),
        _micros(end_ns, epoch_ns),
    )
    return _chosen(rows.reshape(-1), np.stack([is_open, np.ones(len(sessions), bool)], axis=1).reshape(-1))


def _chosen(rows: Records, which: Column) -> Records:
    made: Records = rows.view(state.WHOLE_ROW)[which].view(RECORD)
    return made


def _micros(ns: Column, epoch_ns: int) -> Column:
    return (ns + epoch_ns) // 1000
