"""A session log's rows about itself: until when it is complete, entries and time-outs in force, clock changes.

Facts are rows of the log (kinds cover, entry, setting, clock). They count no session, so `number` is not theirs: it is the
number of the gateway's next row, and `pkts_from_vpc` numbers the facts of a run. start_time and end_time are labels of the
gateway's clock, microseconds since 1970. The other fields:

cover     every row of a session that began by end_time, and of what ended by start_time, has a lower number.
          flags: of the log and its gateway; bytes_from_pub: the gateway held nothing before this
          time; bytes_from_vpc: rows with a lower number tell of nothing after this time. session: how many rows of port
          blocks there are before it, plus one (as of a clock row); 0: they are not told. pkts_from_pub: 1 in a log of port
          blocks alone, which has no rows of sessions.
entry     an entry in force since start_time, or no more (REMOVED). session: its id; flags: its type; pkts_from_pub: the
          place in its pool; nat_ip to pub_ip: outside addresses; eip: of the first; nat_port to pub_port: outside ports;
          protocol, 0: any; pri_ip, pri_port: the inside address and port, of SNAT the prefix and its length;
          bytes_from_vpc to bytes_from_pub: the destinations of a no-NAT entry.
setting   session: a code of SETTINGS; bytes_from_pub: its value.
clock     labels before this row were by a clock that said start_time when the one after it says end_time.
          flags: SUSPENDED: the machine slept meanwhile, and both are right; bytes_from_vpc: the last time that was
          surely before its sleep.

Rows of port blocks (kinds block-allocated, block-released) come from the core. They are no facts, but are numbered like
these: `pkts_from_vpc` counts them by run, and `number` is that of the session's row that comes next. A block is assigned from
start_time on, and an allocated row is of that moment, a released one of the block's end (end_time). session: the number of
the assignment; nat_ip, eip, nat_port to pub_port: the block; pri_ip: the subscriber. A cover row with BLOCKS begins a list of
all that are assigned (flags: ASSIGNED_BEFORE), made when a log starts: their number is not known to a log without it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from natcore.config import PORT_POLICIES, AnyEntry, DnatEntry, Policy, SnatEntry, Timeouts
from natcore.dtypes import CLOCK, COVER, ENTRY, RECORD, SETTING, copied, format_ipv4, is_fact
from natcore.internal.protocols import NUMBERS, TCP, UDP

# Flags of a cover row. STARTED: a log starts here; all that is in force follows. EMPTY: there had been no session before.
# STOPPED: a log stops here. CLOSED: the gateway closes; every session has ended. ALONE: no log ran just before.
# BLOCKS: rows of the port blocks that are assigned follow.
STARTED, EMPTY, STOPPED, CLOSED, ALONE, BLOCKS = 1, 2, 4, 8, 16, 32
SNAT, DNAT, ONE_TO_ONE, NO_NAT = 1, 2, 3, 4  # types of an entry row
REMOVED = 0x100
SUSPENDED = 1  # flag of a clock row
_TYPES = {SNAT: "SNAT", DNAT: "DNAT", ONE_TO_ONE: "1:1", NO_NAT: "no-NAT"}
_TIMEOUTS = ("udp", "tcp_established", "tcp_transitory", "icmp", "unreplied", "other", "fragment")
WINDOW_CODE, PORTS_CODE, BLOCK_CODE, RANGE_CODE = 20, 21, 22, 30  # settings behind the time-outs; ranges count up
_MICRO = 1_000_000

Records = NDArray[np.void]


class Cover(NamedTuple):
    """Until when the rows before `number` are complete. made: beginnings; swept: ends. sequence: of the fact.

    since: rows before `number` tell of nothing later. born: the gateway held nothing before. blocks: rows of port blocks before
    it; -1: not told. sparse: the log has no rows of sessions."""

    number: int
    sequence: int
    made: int
    swept: int
    flags: int
    born: int = 0
    since: int = 0
    blocks: int = -1
    sparse: bool = False


class Clock(NamedTuple):
    """The clock was set: what was called `before` is called `after`. right: when it was last seen to be right; labels from
    then to `before` may be from before the machine slept or after. blocks: as of a cover."""

    number: int
    sequence: int
    before: int
    after: int
    flags: int
    right: int
    blocks: int = -1

    @property
    def change(self) -> int:
        return 0 if self.flags & SUSPENDED else self.after - self.before

    @property
    def asleep(self) -> int:
        return self.after - self.before if self.flags & SUSPENDED else 0


class Setting(NamedTuple):
    sequence: int
    since: int
    code: int
    value: int


class EntryFact(NamedTuple):
    """A stretch of outside addresses that an entry stands for. until, until_sequence: -1 while it is in force.

    until: surely; perhaps_until: at the latest (it may have gone while no log ran)."""

    id: int
    type: int
    place: int
    protocol: int
    first_ip: int
    last_ip: int
    eip: int
    first_port: int
    last_port: int
    inside_ip: int
    inside_port: int
    first_remote: int
    last_remote: int
    sequence: int
    since: int
    until_sequence: int = -1
    until: int = -1
    perhaps_until: int = -1

    def has_address(self, address: int) -> bool:
        if self.first_ip <= address <= self.last_ip:
            return True
        return bool(self.eip) and self.eip <= address <= self.eip + self.last_ip - self.first_ip

    def is_static_for(self, address: int, port: int, protocol: int) -> bool:
        """Return whether traffic of this outside endpoint belongs to this entry, and so has no rows."""
        if self.type == SNAT or not self.has_address(address):
            return False
        if self.type in (NO_NAT, ONE_TO_ONE):
            return True
        return self.first_port <= port <= self.last_port and (
            protocol == self.protocol or (self.protocol == 0 and protocol in (TCP, UDP))
        )

    def describe(self) -> str:
        first, last = format_ipv4(self.first_ip), format_ipv4(self.last_ip)
        name = f"{_TYPES[self.type]} entry {self.id}"
        if self.type == NO_NAT:
            return f"{name}: {first} to {last} untranslated"
        if self.type == SNAT:
            return f"{name}: {format_ipv4(self.inside_ip)}/{self.inside_port} by {first} to {last}"
        ports = "" if self.type == ONE_TO_ONE else f":{self.first_port}"
        if self.first_port != self.last_port and ports:
            ports += f"-{self.last_port}"
        inside = "" if self.type == ONE_TO_ONE else f":{self.inside_port}"
        return f"{name}: {first}{ports} is {format_ipv4(self.inside_ip)}{inside}"


@dataclass(frozen=True, slots=True)
class InForce:
    """The facts at the end of a stretch of the log: entries (those that ended in it too), settings, changes of the
    clock. sequence: of the last fact. whole: none is missing since a log's start. made: of the last cover row."""

    entries: tuple[EntryFact, ...] = ()
    settings: tuple[Setting, ...] = ()
    clocks: tuple[Clock, ...] = ()
    sequence: int = -1
    whole: bool = False
    made: int = 0

    def carried(self) -> InForce:
        """Return the facts for the next file: without entries that ended."""
        entries = tuple(each for each in self.entries if each.until_sequence < 0)
        return InForce(entries, self.settings, self.clocks, self.sequence, self.whole, self.made)

    def behind(self, earlier: InForce) -> InForce:
        """Return the facts with the entries that ended in the stretch before."""
        ended = tuple(each for each in earlier.entries if each.until_sequence >= 0)
        told = {(each.id, each.place, each.sequence) for each in self.entries}
        missing = tuple(each for each in ended if (each.id, each.place, each.sequence) not in told)
        return InForce((*missing, *self.entries), self.settings, self.clocks, self.sequence, self.whole, self.made)

    def after(self, rows: Records, others: Sequence[tuple[int, int]] = ()) -> InForce:
        """Return what is in force after RECORD (n,), applied in order.

        others: sequences of facts, first and last, sorted: cover rows that are there, though not among the rows.
        """
        facts = rows[is_fact(rows)]
        if not len(facts):
            return self
        state = _State(self, others)
        for row in facts:
            state.take(row)
        return state.freeze()

    def encode(self) -> list[Any]:
        return [self.entries, self.settings, self.clocks, self.sequence, self.whole, self.made]

    @classmethod
    def decode(cls, value: Sequence[Any]) -> InForce:
        entries, settings, clocks, sequence, whole, made = value
        return cls(
            tuple(EntryFact(*each) for each in entries), tuple(Setting(*each) for each in settings),
            tuple(Clock(*each) for each in clocks), int(sequence), bool(whole), int(made),
        )  # fmt: skip


NO_FACTS = InForce()


class _State:
    def __init__(self, begun: InForce, others: Sequence[tuple[int, int]] = ()) -> None:
        self.others = others
        self.entries = list(begun.entries)
        self.settings, self.clocks = list(begun.settings), list(begun.clocks)
        self.sequence, self.whole, self.made = begun.sequence, begun.whole, begun.made

    def freeze(self) -> InForce:
        return InForce(
            tuple(self.entries), tuple(self.settings), tuple(self.clocks), self.sequence, self.whole, self.made
        )

    def take(self, row: Any) -> None:
        sequence = int(row["pkts_from_vpc"])
        if sequence <= self.sequence:
            return  # it came twice
        kind, flags = int(row["kind"]), int(row["flags"])
        self.whole = self.whole and (sequence == self.sequence + 1 or self._are_there(self.sequence + 1, sequence - 1))
        if kind == COVER:
            # What went while no log ran is not told, or in a fact that is missing.
            if flags & ALONE or (flags & STARTED and not self.whole):
                self._end(lambda each: True, sequence, self.made, int(row["end_time"]))
            self.whole = self.whole or bool(flags & STARTED)  # all that is in force follows
            self.made = int(row["end_time"])
        self.sequence = sequence
        if kind == ENTRY:
            self._entry(row, sequence, flags)
        elif kind == SETTING:
            new = Setting(sequence, int(row["start_time"]), int(row["session"]), int(row["bytes_from_pub"]))
            last = next((each for each in reversed(self.settings) if each.code == new.code), None)
            if last is None or last.value != new.value:
                self.settings.append(new)
        elif kind == CLOCK:
            self.clocks.append(clock_of(row))

    def _are_there(self, first: int, last: int) -> bool:
        return any(begin <= first and last <= end for begin, end in self.others)

    def _entry(self, row: Any, sequence: int, flags: int) -> None:
        since = int(row["start_time"])
        if flags & REMOVED:
            gone = int(row["session"])
            self._end(lambda each: each.id == gone, sequence, since, since)
            return
        new = entry_of(row)
        for at, each in enumerate(self.entries):
            if (each.id, each.place) == (new.id, new.place) and each.until_sequence < 0:
                if each[:13] == new[:13]:
                    return
                self.entries[at] = each._replace(until_sequence=sequence, until=since, perhaps_until=since)
        self.entries.append(new)

    def _end(self, which: Callable[[EntryFact], bool], sequence: int, until: int, perhaps: int) -> None:
        for at, each in enumerate(self.entries):
            if each.until_sequence < 0 and which(each):
                self.entries[at] = each._replace(until_sequence=sequence, until=until, perhaps_until=perhaps)


def entry_of(row: Any) -> EntryFact:
    return EntryFact(
        int(row["session"]), int(row["flags"]) & 0xFF, int(row["pkts_from_pub"]), int(row["protocol"]),
        int(row["nat_ip"]), int(row["pub_ip"]), int(row["eip"]), int(row["nat_port"]), int(row["pub_port"]),
        int(row["pri_ip"]), int(row["pri_port"]), int(row["bytes_from_vpc"]), int(row["bytes_from_pub"]),
        int(row["pkts_from_vpc"]), int(row["start_time"]),
    )  # fmt: skip


def clock_of(row: Any) -> Clock:
    return Clock(
        int(row["number"]), int(row["pkts_from_vpc"]), int(row["start_time"]), int(row["end_time"]), int(row["flags"]),
        int(row["bytes_from_vpc"]), int(row["session"]) - 1,
    )  # fmt: skip


def covers_of(rows: Records) -> list[Cover]:
    return [
        Cover(
            int(row["number"]), int(row["pkts_from_vpc"]), int(row["end_time"]), int(row["start_time"]),
            int(row["flags"]), int(row["bytes_from_pub"]), int(row["bytes_from_vpc"]), int(row["session"]) - 1,
            bool(row["pkts_from_pub"]),
        ) for row in rows[rows["kind"] == COVER]
    ]  # fmt: skip


# ---- rows ------------------------------------------------------------------------------------------------------------


def cover_row(made: int, swept: int, since: int, flags: int = 0, born: int = 0) -> Records:
    """Return RECORD (1,); the collector sets `number` and `pkts_from_vpc`, as of all rows here."""
    row = np.zeros(1, RECORD)
    row["kind"], row["flags"], row["start_time"], row["end_time"] = COVER, flags, min(made, swept), made
    row["bytes_from_pub"], row["bytes_from_vpc"] = max(0, born), max(0, since, made)
    return row


def sparse(rows: Records) -> Records:
    """Return RECORD (n,) as a log of port blocks alone has them."""
    rows = copied(rows)
    rows["pkts_from_pub"][rows["kind"] == COVER] = 1
    return rows


def clock_row(before: int, after: int, flags: int, right: int | None = None) -> Records:
    row = np.zeros(1, RECORD)
    row["kind"], row["flags"], row["start_time"], row["end_time"] = CLOCK, flags, before, after
    row["bytes_from_vpc"] = before if right is None else min(before, right)
    return row


def removed_row(number: int) -> Records:
    row = np.zeros(1, RECORD)
    row["kind"], row["flags"], row["session"] = ENTRY, REMOVED, number
    return row


def setting_rows(timeouts: Timeouts, window: float, policy: Policy) -> dict[tuple[int, ...], Records]:
    """Return the settings' rows by (code, value)."""
    values = {code: round(getattr(timeouts, name) * _MICRO) for code, name in enumerate(_TIMEOUTS, 1)}
    values[WINDOW_CODE] = round(window * _MICRO)
    values[PORTS_CODE] = PORT_POLICIES.index(policy.ports)
    values[BLOCK_CODE] = policy.block_size
    for at, (first, last) in enumerate(policy.drawn_ranges):
        values[RANGE_CODE + at] = first << 16 | last
    rows: dict[tuple[int, ...], Records] = {}
    for code, value in values.items():
        row = np.zeros(1, RECORD)
        row["kind"], row["session"], row["bytes_from_pub"] = SETTING, code, value
        rows[code, value] = row
    return rows


def entry_rows(number: int, entry: AnyEntry, outside: Iterable[tuple[int, int]]) -> list[Records]:
    """Return an entry's rows. outside: (wire address, EIP or 0) of the entry."""
    if isinstance(entry, SnatEntry):
        source = ipaddress.IPv4Network(entry.source)
        inside = {"pri_ip": int(source.network_address), "pri_port": source.prefixlen}
        return [
            _entry_row(number, SNAT, pkts_from_pub=place, nat_ip=first, pub_ip=last, eip=eip, pub_port=65_535, **inside)
            for place, first, last, eip in _stretches(outside)
        ]
    if isinstance(entry, DnatEntry):
        outside = list(outside)
        if not outside:  # of the outside interface, which has no address
            return []
        [(wire, eip)] = outside
        first, last, inside_port = entry.ports
        kind = ONE_TO_ONE if entry.is_one_to_one else DNAT
        return [
            _entry_row(
                number, kind, pkts_from_pub=place, protocol=NUMBERS.get(entry.protocol, 0), nat_ip=wire, pub_ip=wire,
                eip=eip, nat_port=first, pub_port=last, pri_ip=int(target), pri_port=inside_port,
            ) for place, (target, _) in enumerate(entry.internal_ip)
        ]  # fmt: skip
    source, to = ipaddress.IPv4Network(entry.source), ipaddress.IPv4Network(entry.destination)
    return [
        _entry_row(
            number, NO_NAT, nat_ip=int(source.network_address), pub_ip=int(source.broadcast_address), pub_port=65_535,
            pri_ip=int(source.network_address), bytes_from_vpc=int(to.network_address),
            bytes_from_pub=int(to.broadcast_address),
        )
    ]  # fmt: skip


def _entry_row(number: int, kind: int, **fields: int) -> Records:
    row = np.zeros(1, RECORD)
    row["kind"], row["session"], row["flags"] = ENTRY, number, kind
    for name, value in fields.items():
        row[name] = value
    return row


def _stretches(outside: Iterable[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Yield (place in the pool, first and last wire address, EIP of the first) of consecutive addresses."""
    found: list[tuple[int, int, int, int]] = []
    for place, (wire, eip) in enumerate(outside):
        if found:
            at, first, last, begun = found[-1]
            if wire == last + 1 and eip == (begun + wire - first if begun else 0):
                found[-1] = (at, first, wire, begun)
                continue
        found.append((place, wire, wire, eip))
    return found


# ---- what follows from them ------------------------------------------------------------------------------------------


def longest_idle(settings: Iterable[Setting]) -> int:
    """Return the longest time-out that was ever in force, in microseconds; 0: none is stated."""
    return max((each.value for each in settings if 1 <= each.code <= 6), default=0)


def longest_window(settings: Iterable[Setting]) -> int:
    return max((each.value for each in settings if each.code == WINDOW_CODE), default=0)


def values_of(settings: Iterable[Setting], code: int) -> set[int]:
    return {each.value for each in settings if each.code == code}


def computed_host(entry: EntryFact, settings: Sequence[Setting], address: int, port: int) -> int | None:
    """Compute the inside host of an outside endpoint (RFC 7422); None: no host, or ports that are not deterministic."""
    if entry.type != SNAT or values_of(settings, PORTS_CODE) != {PORT_POLICIES.index("deterministic")}:
        return None
    sizes = values_of(settings, BLOCK_CODE)
    ranges = {each.code: each.value for each in settings if each.code >= RANGE_CODE}
    if len(sizes) != 1 or len(ranges) != len([each for each in settings if each.code >= RANGE_CODE]):
        return None  # changed meanwhile
    (size,) = sizes
    spans = [(value >> 16, value & 0xFFFF) for _, value in sorted(ranges.items())]
    starts = [start for first, last in spans for start in range(first, last + 2 - size, size)]
    block = next((at for at, start in enumerate(starts) if start <= port < start + size), None)
    if block is None:
        return None
    first = entry.first_ip if entry.first_ip <= address <= entry.last_ip else entry.eip
    host = (entry.place + address - first) * len(starts) + block
    return entry.inside_ip + host if host < 1 << 32 - entry.inside_port else None
