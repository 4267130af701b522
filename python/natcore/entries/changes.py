"""Changes of a running gateway's entries: planned first, then applied at once, or not at all."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from natcore import choices
from natcore.api.gateway import Core
from natcore.config import AnyEntry, DnatEntry, NoNatEntry, Policy, SnatEntry, Timeouts
from natcore.entries.reserved import check_reserved
from natcore.entries.table import Entry, EntryConflict, Rulebook, Wires, concerned, spaces, unnamed
from natcore.errors import ConfigurationError, Error, RestartNeededError, StateError
from natcore.internal.arguments import check_kinds
from natcore.internal.redaction import show
from natcore.internal.validation import check_choice
from natcore.workers.configuration import Settings
from natcore.workers.entry_changes import Transition

if not TYPE_CHECKING:
    from natcore.internal.values import dataclass, field
else:
    from dataclasses import dataclass, field

    from numpy.typing import NDArray

    from natcore.state.settings import SavedEntries, SavedEntry

PORT_BYTES = 8192  # of a bit for each port
NOTHING = (1, 0, set[int]())  # an empty range of inside addresses: no session may stay


@dataclass(frozen=True, slots=True)
class Add:
    """An entry to put into force.

    Parameters
    ----------
    entry
        An `SnatEntry`, a `DnatEntry` or a `NoNatEntry`.
    """

    entry: AnyEntry


@dataclass(frozen=True, slots=True)
class Remove:
    """An entry to take out of force.

    Parameters
    ----------
    entry
        Its handle.
    drain
        True: its sessions end by themselves, and it takes no new one.
    """

    entry: Entry
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Replace:
    """An entry to change; its handle and number stay.

    Parameters
    ----------
    entry
        Its handle.
    by
        What it becomes.
    """

    entry: Entry
    by: AnyEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Modify:
    """Settings to change while the gateway runs, once in a plan; docs/guide/entries.md says what may change.

    Parameters
    ----------
    policy
        The new policy. RestartNeededError names the fields that a running gateway cannot change. None: as it is.
    timeouts
        The new time-outs. A session keeps its deadline until a packet refreshes it, but is dead one new time-out after the
        change at the latest. None: as they are.
    eip_bind_mode
        "NAT", from MULTI_BINDED alone (contract R7): sessions over an address that changes on the wire end. None: as it is.
    """

    policy: Policy | None = None
    timeouts: Timeouts | None = None
    eip_bind_mode: choices.EipBindMode | None = None

    def __post_init__(self) -> None:
        check_kinds(policy=(self.policy, Policy), timeouts=(self.timeouts, Timeouts))
        if self.eip_bind_mode is not None:
            mode = check_choice("eip_bind_mode", self.eip_bind_mode, get_args(choices.EipBindMode))
            object.__setattr__(self, "eip_bind_mode", mode)
        if self.policy is None and self.timeouts is None and self.eip_bind_mode is None:
            raise ConfigurationError("Modify: give policy, timeouts or eip_bind_mode")


Change = Add | Remove | Replace | Modify


@dataclass(frozen=True, slots=True)
class _After:
    """The entries after a change, checked; those that are added; the wire addresses of all; the book that they go by."""

    rows: list[Entry]
    added: list[Entry]
    drained: set[Entry]
    wires: Wires
    book: Rulebook
    modify: Modify | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What changes would do to the sessions that are there; `Gateway.apply` carries it out.

    Attributes
    ----------
    changes
        As they were given.
    kept, drained, ended
        Counts of sessions.
    held
        Why `apply` would refuse it now: a port of a DNAT entry that comes is held by a live mapping, or by an entry that
        drains. "": nothing is in the way.
    """

    changes: tuple[Change, ...]
    kept: int
    drained: int
    ended: int
    held: str
    generation: int = field(repr=False)
    table: object = field(repr=False, compare=False)  # the gateway's EntryTable that made the plan
    after: _After = field(repr=False, compare=False)
    conflict: EntryConflict | None = field(repr=False, compare=False)  # that `held` tells of

    def __str__(self) -> str:
        text = f"{len(self.changes)} changes: {self.kept} sessions kept, {self.drained} drained, {self.ended} ended"
        return f"{text}; refused now: {self.held}" if self.held else text


@dataclass(frozen=True, slots=True)
class Applied:
    """What a plan did.

    Attributes
    ----------
    added
        The handles of added entries, in order.
    ended
        How many sessions ended.
    """

    added: list[Entry]
    ended: int


class EntryTable:
    """The entries in force, and those that drain."""

    def __init__(self, core: Core, kind: str, eip_bind_mode: str, policy: Policy) -> None:
        self._core = core
        self._book = Rulebook(kind, eip_bind_mode, policy)
        self._last_id = 0
        self.generation = 0
        self.rows: list[Entry] = []
        self._wires = self._book.wires(())  # of the rows
        self.draining: list[Entry] = []
        # By address of the outside interface: its host's TCP and UDP ports.
        self._hosts: dict[int, tuple[int, int]] = {}
        self.lacks_interface = False  # an entry has the outside interface's addresses, and no plane has told them
        self._followed = False  # a plane has told them

    @property
    def book(self) -> Rulebook:
        """What compiles the entries now."""
        return self._book

    @property
    def hosts(self) -> Mapping[int, tuple[int, int]]:
        """Return the host's TCP and UDP ports, as bits, by the outside interface's addresses; replaced, never changed."""
        return self._hosts

    @property
    def follows(self) -> bool:
        """Whether an entry has the outside interface's addresses."""
        return any(_follows(row) for row in self.rows)

    @property
    def address_count(self) -> int:
        """Return the number of outside addresses; one of several entries counts for each."""
        return sum(len(row.addresses) for row in [*self.rows, *self.draining])

    def find(self, number: int) -> Entry | None:
        """Return the entry with a number, in force or draining."""
        return next((row for row in [*self.rows, *self.draining] if row.id == number), None)

    def saved(self) -> SavedEntries:
        """Return what a restored gateway needs to know of the entries."""
        from natcore.state.settings import SavedEntries, saved_entry

        return SavedEntries(
            [saved_entry(row) for row in self.rows],
            [saved_entry(row) for row in self.draining],
            self._last_id,
            self._book.interface,
            dict(self._hosts),
            self._followed,
        )

    def restore(self, saved: SavedEntries, addresses: Sequence[tuple[int, int, int]]) -> None:
        """Put a saved gateway's entries into force in a new one. addresses: each outside address that they have (number in the
        core, address in host order, EIP). Raises StateError: they do not go together."""
        book = self._book
        self._book = Rulebook(book.kind, book.eip_bind_mode, book.policy, saved.interface)
        self._last_id, self._hosts, self._followed = saved.last_id, dict(saved.hosts), saved.followed
        known = {number: wire for number, wire, _ in addresses}
        for number, wire, eip in addresses:
            if not self._core.place_address(number, wire, eip):
                raise StateError(
                    f"outside address {ipaddress.IPv4Address(wire)}, number {number}, comes twice or is none"
                )
        self.rows = [self._placed(row, known) for row in saved.rows]
        self.draining = [self._placed(row, known) for row in saved.draining]
        self._wires = self._book.wires(self.rows)
        for row in self.rows:
            if [wire for wire, _ in self._wires.of(row)] != [known[number] for number in row.addresses]:
                raise StateError(f"{row.describe()} has other outside addresses than it was saved with")
        self.lacks_interface = self.follows and not self._followed
        for row in (*self.draining, *self.rows):
            try:
                self._reserve(row, 0)
            except ConfigurationError as error:
                raise StateError(str(error)) from None
        self._core.swap(self._transition(_After(self.rows, [], set(), self._wires, self._book)), 0)

    def _placed(self, saved: SavedEntry, known: Mapping[int, int]) -> Entry:
        """Return a saved entry, its addresses put into the core."""
        row = Entry(saved.id, saved.entry)
        for number in saved.addresses:
            if number not in known:
                raise StateError(f"{row.describe()} has outside address number {number}, which is missing")
            row.addresses.append(self._core.add_address(known[number], known[number]))
        return row

    def become(
        self,
        wanted: Sequence[AnyEntry] | None,
        eip_bind_mode: str,
        policy: Policy,
        now_ns: int,
        settings: Settings | None,
    ) -> int:
        """Put other entries (None: these), another bind mode and other settings into force; return how many sessions ended."""
        from natcore.entries.matching import match  # seldom needed

        self._reap()
        changes: list[Change] = []
        if wanted is not None:
            pairs, fresh = match(self.rows, [_check_entry(entry, policy) for entry in wanted])
            changes = [
                Remove(row) if entry is None else Replace(row, entry) for row, entry in pairs if entry != row.entry
            ]
            changes += [Add(entry) for entry in fresh]
        after = self._after(changes, Rulebook(self._book.kind, eip_bind_mode, policy, self._book.interface))
        after.book.check(after.rows, after.wires)
        return self._exchange(after, now_ns, settings)

    def sessions_by_entry(self) -> dict[int, int]:
        """Return how many sessions each entry has, by its number."""
        counts = self._sessions()
        return {row.id: int(counts[row.id]) for row in [*self.rows, *self.draining]}

    def plan(self, changes: Sequence[Change]) -> Plan:
        """Check the changes together, and count their effects."""
        self._reap()
        after = self._after(changes)
        after.book.check(after.rows, after.wires)
        kept = drained = ended = 0
        if self._sessions().any():  # without sessions no rule set need be compiled
            kept, drained, ended = self._core.preview(self._transition(after))
        held = self._held(after)
        said = "" if held is None else str(held)
        return Plan(tuple(changes), kept, drained, ended, said, self.generation, self, after, held)

    def outside(self, plan: Plan | None = None) -> list[tuple[Entry, int]]:
        """Return the entries that a plan puts into force, or those in force, with each of their wire addresses (host
        order)."""
        before = set() if plan is None else set(self.rows)
        rows, wires = (self.rows, self._wires) if plan is None else (plan.after.rows, plan.after.wires)
        return [(row, wire) for row in rows if row not in before for wire, _ in wires.of(row)]

    def check(self, plan: Plan) -> None:
        """Raise Error if the plan was made for other entries than those in force."""
        if not isinstance(plan, Plan):
            raise ConfigurationError(f"plan must be what plan() gave, got {show(plan)}")
        if plan.table is not self:
            raise Error("plan must be one that this gateway's plan() made, got one of another gateway")
        if plan.generation != self.generation:
            raise Error("the entries have changed since the plan was made; make it again")

    def apply(self, plan: Plan, now_ns: int, settings: Settings | None = None) -> Applied:
        """Apply the plan: everything that can fail comes first, then one swap. settings: those that the plan changes."""
        self._reap()
        return Applied(plan.after.added, self._exchange(plan.after, now_ns, settings))

    def follow(self, addresses: Sequence[int], hosts: Mapping[int, tuple[int, int]], now_ns: int) -> int:
        """The outside interface has these addresses (host order) now, and the host these TCP and UDP ports, as bits, of each of
        its addresses there: sessions over an address that a pool had from the interface, and has no more, end with their
        rows; how many did."""
        self._reap()
        known, self._hosts = self._hosts, dict(hosts)
        self._followed, self.lacks_interface = True, False
        ended = 0
        if self._book.interface != tuple(addresses):
            before = {wire for row, wire in self.outside() if _follows(row)}
            book = self._book
            ended = self._rebook(Rulebook(book.kind, book.eip_bind_mode, book.policy, addresses), now_ns)
            after = {wire for row, wire in self.outside() if _follows(row)}
            for address in sorted(before ^ after):
                self._core.note_address(address, address in after)
        for address in {*known, *self._hosts}:
            self._share(address)
        return ended

    def following(self, addresses: Sequence[int]) -> set[int]:
        """Return those of the outside interface's addresses (host order) that entries would have from it."""
        rows = [row for row in self.rows if _follows(row)]
        wires = Rulebook(self._book.kind, self._book.eip_bind_mode, self._book.policy, addresses).wires(rows)
        return {wire for row in rows for wire, _ in wires.of(row)} & set(addresses)

    def _share(self, address: int) -> None:
        """An outside address is the gateway's alone, or has ports of the host's."""
        ports = self._hosts.get(address)
        wanted = None if ports is None else b"".join(bits.to_bytes(PORT_BYTES, "little") for bits in ports)
        self._core.share_address(address, wanted)

    def _rebook(self, book: Rulebook, now_ns: int) -> int:
        """Compile the entries by another book; return how many sessions ended."""
        after = self._after((), book)
        book.check(after.rows, after.wires)
        return self._exchange(after, now_ns, None)

    def _exchange(self, after: _After, now_ns: int, settings: Settings | None) -> int:
        """Put entries into force; return how many sessions ended. With an error nothing has changed."""
        rows = after.rows
        if settings is not None:
            self._core.prepare(settings)
        fresh, leaving, draining = self._differences(after)
        for row in leaving:
            self._unreserve(row)  # a new entry may need the same ports
        try:
            self._take(fresh, after.wires, now_ns)
        except Error:
            for row in leaving:
                self._reserve(row, now_ns)
            raise
        eips = [  # a DNAT entry by itself knows of no EIP
            (number, eip)
            for row in fresh
            for (wire, eip), number in zip(after.wires.of(row), row.addresses, strict=True)
            if eip != wire
        ]
        ended = self._core.swap(self._transition(after), now_ns, settings, eips)
        self._book = after.book
        for row in leaving:
            self._release(row, reserved=False)
        self.draining += draining
        known = {row.id: row for row in self.rows}
        self.rows = [self._settle(row, known.get(row.id)) for row in rows]
        self._wires = self._book.wires(self.rows)
        self.lacks_interface = self.follows and not self._followed
        self.generation += 1
        return ended

    def _sessions(self) -> NDArray[np.uint64]:
        """Return the sessions of each entry, by its number."""
        sessions = np.zeros(self._last_id + 1, np.uint64)
        self._core.count_all(sessions)
        return sessions

    def _differences(self, after: _After) -> tuple[list[Entry], list[Entry], list[Entry]]:
        """Return the rows that are added, removed and drained."""
        before, then = set(self.rows), set(after.rows)
        gone = [row for row in self.rows if row not in then]
        return (
            [row for row in after.rows if row not in before],
            [row for row in gone if row not in after.drained],
            [row for row in gone if row in after.drained],
        )

    def _transition(self, after: _After) -> Transition:
        """Return the change's effect on the present sessions."""
        fresh, leaving, draining = self._differences(after)
        by_id = {row.id: row for row in after.rows}
        coming = [row for row in fresh if not isinstance(row.entry, SnatEntry)]
        return Transition(
            after.book.compile(after.rows, after.wires),
            max([self._last_id, *by_id]) + 1,
            [(row.id, *self._staying(row, by_id.get(row.id), after)) for row in leaving],
            [row.id for row in draining],
            [row.id for row in coming],
            concerned(row.entry for row in coming),
        )

    # ---- the effect of a change -------------------------------------------------------------------------------------

    def _after(self, changes: Sequence[Change], book: Rulebook | None = None) -> _After:
        """Return the entries after the changes; a replaced entry is a new row with the old number. book: that they go by
        then; None: what the changes say."""
        if not isinstance(changes, list | tuple):
            raise ConfigurationError(f"changes must be a list of Add, Remove, Replace and Modify, got {show(changes)}")
        modify = _modification(changes)
        if book is None:
            book = self._book if modify is None else self._modified(modify)
        added, last = [], self._last_id
        before = set(self.rows)
        becoming: dict[Entry, Entry | None] = {}
        for change in changes:
            if isinstance(change, Modify):
                continue
            if isinstance(change, Add):
                last += 1
                try:
                    added.append(Entry(last, _check_entry(change.entry, book.policy)))
                except ConfigurationError as error:
                    raise EntryConflict(Entry(last, change.entry), str(error)) from None
                continue
            if not isinstance(change, Remove | Replace):
                raise ConfigurationError(f"changes must be Add, Remove, Replace and Modify, got {show(change)}")
            if not isinstance(change.entry, Entry) or change.entry not in before:
                raise ConfigurationError(f"entry must be in force in this gateway, got {show(change.entry)}")
            if change.entry in becoming:
                raise ConfigurationError(f"changes must change each entry once, got {show(change)} twice")
            by = Entry(change.entry.id, _check_entry(change.by, book.policy)) if isinstance(change, Replace) else None
            becoming[change.entry] = by
        rows = [by for row in self.rows if (by := becoming.get(row, row)) is not None] + added
        for row in rows if _forwards_less(self._book.policy, book.policy) else ():
            try:
                check_reserved(row.entry, book.policy)
            except ConfigurationError as error:
                raise EntryConflict(row, f"{error}, in {row.describe()}") from None
        wires = book.wires(rows)
        rebound = self._rebinds(book)
        for at, row in enumerate(rows):
            if (rebound or isinstance(row.entry, DnatEntry)) and row in before and self._moves(row, row, wires):
                rows[at] = Entry(row.id, row.entry)
        return _After(rows, added, _drained(changes), book.wires(rows) if rebound else wires, book, modify)

    def _modified(self, modify: Modify) -> Rulebook:
        """Return the book under other settings; RestartNeededError: a running gateway cannot have them."""
        from natcore.entries.live import check_live  # seldom needed

        mode, policy = modify.eip_bind_mode or self._book.eip_bind_mode, modify.policy or self._book.policy
        if mode != self._book.eip_bind_mode and mode != "NAT":
            raise RestartNeededError(
                f"eip_bind_mode must stay 'NAT' while the gateway runs: only MULTI_BINDED can be changed, got {show(mode)}: "
                "a restart is needed",
                ("eip_bind_mode",),
            )
        check_live(self._book.policy, policy)
        return Rulebook(self._book.kind, mode, policy, self._book.interface)

    def _rebinds(self, book: Rulebook) -> bool:
        """Return whether the same entries may have other wire addresses by another book."""
        return (book.eip_bind_mode, book.interface) != (self._book.eip_bind_mode, self._book.interface)

    def _moves(self, row: Entry, by: Entry, wires: Wires) -> bool:
        """Return whether an entry's wire address changes, since its EIP came into a pool or left it."""
        return self._wires.of(row) != wires.of(by)

    def _staying(self, row: Entry, by: Entry | None, after: _After) -> tuple[int, int, set[int]]:
        """Inside addresses and outside address numbers with which a session stays when row becomes by."""
        if by is None:
            return NOTHING
        wanted = {wire for wire, _ in after.wires.of(by)}
        numbers = {
            number for (wire, _), number in zip(self._wires.of(row), row.addresses, strict=True) if wire in wanted
        }
        if unnamed(row.entry) == unnamed(by.entry):
            if not self._moves(row, by, after.wires):
                return 0, 0xFFFFFFFF, {*row.addresses, 0xFFFFFFFF}
            return (0, 0xFFFFFFFF, numbers) if self._rebinds(after.book) else NOTHING
        if not isinstance(row.entry, SnatEntry) or not isinstance(by.entry, SnatEntry):
            return NOTHING
        if self._book.policy.ports == "deterministic" and not _same_shares(row.entry, by.entry):
            return NOTHING  # another prefix or pool gives every host another block
        source = ipaddress.IPv4Network(by.entry.source)
        return int(source.network_address), int(source.broadcast_address), numbers

    def _settle(self, row: Entry, known: Entry | None) -> Entry:
        """Return the caller's handle for a row in force."""
        self._last_id = max(self._last_id, row.id)
        if known is None or known is row:
            return row
        known.become(row)
        return known

    def _held(self, after: _After) -> EntryConflict | None:
        """Return why `apply` could not reserve the ports of DNAT entries now; None: it could."""
        fresh, leaving, _ = self._differences(after)
        for row in fresh:
            wires = after.wires.of(row) if isinstance(row.entry, DnatEntry) else []
            number = self._core.find_address(wires[0][0]) if wires else None
            if number is None or not isinstance(row.entry, DnatEntry):
                continue
            first, last, _ = row.entry.ports
            for space in spaces(row.entry):
                try:
                    _refuse_held(row, self._holder(number, space, first, last, leaving))
                except EntryConflict as conflict:
                    return conflict
        return None

    def _holder(
        self, number: int, space: int, first: int, last: int, leaving: list[Entry]
    ) -> tuple[int, int, int] | None:
        """Return what holds a port of a range, as Core.reserve does; entries that leave give theirs back."""
        while first <= last:
            holder = self._core.reserve(number, space, first, last, 0, look=True)
            if holder is None or holder[1]:
                return holder
            given_back = [
                row.entry.ports[1]
                for row in leaving
                if isinstance(row.entry, DnatEntry) and number in row.addresses and space in spaces(row.entry)
                and row.entry.ports[0] <= holder[0] <= row.entry.ports[1]
            ]  # fmt: skip
            if not given_back:
                return holder
            first = max(given_back) + 1
        return None

    # ---- addresses and ports ----------------------------------------------------------------------------------------

    def _take(self, fresh: list[Entry], wires: Wires, now_ns: int) -> None:
        """Allocate numbers for new rows' addresses and reserve their DNAT entries' ports; all or none."""
        done: set[Entry] = set()
        try:
            for row in fresh:
                for wire, eip in wires.of(row):
                    row.addresses.append(self._core.add_address(wire, eip))
                    if wire in self._hosts:
                        self._share(wire)
            for row in fresh:
                self._check_ports(row, now_ns)  # before a port's hold-down is cut short
            for row in fresh:
                self._reserve(row, now_ns)
                done.add(row)
        except Error:
            for row in fresh:
                self._release(row, reserved=row in done)
            raise

    def _check_ports(self, row: Entry, now_ns: int) -> None:
        """Raise ConfigurationError, which names the holder, if a port of a DNAT entry is held."""
        if isinstance(row.entry, DnatEntry) and row.addresses:
            first, last, _ = row.entry.ports
            for space in spaces(row.entry):
                _refuse_held(row, self._core.reserve(row.addresses[0], space, first, last, now_ns, look=True))

    def _reserve(self, row: Entry, now_ns: int) -> None:
        if not isinstance(row.entry, DnatEntry) or not row.addresses:
            return
        first, last, _ = row.entry.ports
        done: list[int] = []
        for space in spaces(row.entry):
            holder = self._core.reserve(row.addresses[0], space, first, last, now_ns)
            if holder is not None:
                for other in done:
                    self._core.unreserve(row.addresses[0], other, first, last)
                _refuse_held(row, holder)
            done.append(space)

    def _unreserve(self, row: Entry) -> None:
        if isinstance(row.entry, DnatEntry) and row.addresses:
            first, last, _ = row.entry.ports
            for space in spaces(row.entry):
                self._core.unreserve(row.addresses[0], space, first, last)

    def _release(self, row: Entry, *, reserved: bool = True) -> None:
        if reserved and row.addresses:
            self._unreserve(row)
        for number in row.addresses:
            self._core.drop_address(number)
        row.addresses = []

    def _reap(self) -> None:
        """Release the addresses of entries that have drained."""
        if not self.draining:
            return
        sessions = self._sessions()
        for row in list(self.draining):
            if sessions[row.id] == 0:
                self.draining.remove(row)
                self._release(row)


def check_entries(entries: Mapping[int, AnyEntry], kind: str, eip_bind_mode: str, policy: Policy) -> None:
    """Raise EntryConflict if a new gateway could not have the entries together. entries: by number."""
    rows = [Entry(number, entry) for number, entry in entries.items()]
    for row in rows:
        try:
            _check_entry(row.entry, policy)
        except ConfigurationError as error:
            raise EntryConflict(row, str(error)) from None
    book = Rulebook(kind, eip_bind_mode, policy)
    book.check(rows, book.wires(rows))


def _follows(row: Entry) -> bool:
    return isinstance(row.entry, SnatEntry | DnatEntry) and row.entry.follows_interface


def _same_shares(one: SnatEntry, other: SnatEntry) -> bool:
    return (one.source, one.pool) == (other.source, other.pool)


def _forwards_less(before: Policy, after: Policy) -> bool:
    return (before.link_local and not after.link_local) or (before.class_e and not after.class_e)


def _modification(changes: Sequence[Change]) -> Modify | None:
    found = [change for change in changes if isinstance(change, Modify)]
    if len(found) > 1:
        raise ConfigurationError(f"changes must have one Modify at most, got {len(found)}")
    return found[0] if found else None


def _check_entry(entry: object, policy: Policy) -> AnyEntry:
    if not isinstance(entry, SnatEntry | DnatEntry | NoNatEntry):
        raise ConfigurationError(f"entry must be SnatEntry, DnatEntry or NoNatEntry, got {show(entry)}")
    check_reserved(entry, policy)
    return entry


def _refuse_held(row: Entry, holder: tuple[int, int, int] | None) -> None:
    """Raise ConfigurationError if a DNAT port has a holder: (port, inside address, inside port); address 0: an entry."""
    if holder is None or not isinstance(row.entry, DnatEntry):
        return
    port, inside, inside_port = holder
    who = f"the mapping of {ipaddress.IPv4Address(inside)}:{inside_port}" if inside else "an entry that drains"
    raise EntryConflict(
        row,
        f"DnatEntry.external_port must be free, got {show(row.entry.external_port)} in {row.describe()}: "
        f"port {port} is held by {who}",
    )


def _drained(changes: Sequence[Change]) -> set[Entry]:
    return {change.entry for change in changes if isinstance(change, Remove) and change.drain}
