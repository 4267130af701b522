"""The knowledge of each run's logs, by a source's parts and the rows that wait: what is complete, what was in force."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from natcore.config import PORT_POLICIES
from natcore.dtypes import GAP_DIED, GAP_LOST, GAP_RING, format_ipv4
from natcore.internal.protocols import ICMP, TCP, UDP
from natcore.sessionlog import facts
from natcore.sessionlog.facts import (
    ALONE,
    BLOCKS,
    CLOSED,
    DNAT,
    EMPTY,
    NO_NAT,
    SNAT,
    STARTED,
    Clock,
    Cover,
    EntryFact,
    Setting,
)
from natcore.sessionlog.file_metadata import Footer, joined_ranges, missing_numbers
from natcore.who.conclude import FOREVER, Asked, Gap, Known, Row, Run, Static
from natcore.who.question import LONGEST_IDLE, LONGEST_WINDOW, Question
from natcore.who.source import Part
from natcore.who.waiting import Key, Waiting

_REASONS: Mapping[int, str] = {
    GAP_DIED: "the gateway's process ended without its end mark",
    GAP_RING: "the journal was full",
    GAP_LOST: "the log had no space for rows",
}
_DAY = 86_400_000_000
_LISTED = 60_000_000  # a list is copied and written after its cover row, within a minute
_BLOCK_LABEL = 1_000  # an assignment's time is rounded down to ms


@dataclass(slots=True)
class _Pieces:
    """The facts in the files and the waiting rows of one run."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    covers: dict[int, Cover] = field(default_factory=dict)
    signs: list[tuple[Cover, bool]] = field(default_factory=list)
    clocks: dict[int, Clock] = field(default_factory=dict)
    settings: dict[int, Setting] = field(default_factory=dict)
    entries: dict[tuple[int, int, int], list[tuple[EntryFact, int]]] = field(default_factory=dict)
    gaps: dict[Gap, None] = field(default_factory=dict)
    addresses: set[str] = field(default_factory=set)
    names_all: bool = True
    whole_to: int = -1  # the last fact behind which all that is in force is stated
    window: int = 0
    last_fact: int = -1
    made: int = 0
    vpc_id: str = ""

    def add(self, footer: Footer) -> None:
        self.vpc_id = footer.vpc_id
        self.ranges += footer.ranges
        self.blocks += footer.blocks
        for cover in footer.covers:
            known = self.covers.get(cover.sequence)
            if known is None or known.sparse:  # a log of port blocks alone tells less than another one
                self.covers[cover.sequence] = cover
        self.clocks.update((clock.sequence, clock) for clock in footer.facts.clocks)
        self.settings.update((each.sequence, each) for each in footer.facts.settings)
        for each in footer.facts.entries:
            told = self.entries.setdefault((each.id, each.place, each.since), [])
            told.append((each, footer.facts.sequence if footer.facts.whole else each.sequence))
        self.window = max(self.window, footer.longest_window)
        self.whole_to = max(self.whole_to, footer.facts.sequence if footer.facts.whole else -1)
        self.made = footer.facts.made if footer.facts.sequence > self.last_fact else self.made
        self.last_fact = max(self.last_fact, footer.facts.sequence)
        self.names_all = self.names_all and footer.addresses is not None
        for pair in footer.addresses or ():
            self.addresses.update(name for name in pair if name)
        for gap in footer.gaps:
            why = _REASONS.get(gap.reason, f"reason {gap.reason}")
            self.gaps[Gap(gap.start, gap.end, f"a gap row of run {footer.run}: {why}")] = None

    def stated(self) -> Iterator[tuple[EntryFact, int, EntryFact | None]]:
        """Yield the entries, with the sequence up to which each is told, and what tells its end, None: nothing. Each log
        states an entry anew when it starts, with that time as `since`; the end that one of the logs tells is that of all the
        statements before it."""
        ends: dict[tuple[int, int], list[EntryFact]] = defaultdict(list)
        for told in self.entries.values():
            for each, _ in told:
                if each.until_sequence >= 0:
                    ends[each.id, each.place].append(each)
        for told in self.entries.values():
            entry, last = told[0][0], max(sequence for _, sequence in told)
            own = [each for each, _ in told if each.until_sequence >= 0]
            later = [each for each in ends[entry.id, entry.place] if each.until_sequence > last]
            yield entry, last, min(own or later, key=lambda each: each.until_sequence, default=None)


class Knowledge:
    """The logs' knowledge by run, for queries of one time. files: in any order."""

    def __init__(self, files: Sequence[Part], there: Waiting, idle: int | None) -> None:
        self._files, self._there = files, there
        self._pieces: dict[Key, _Pieces] = defaultdict(_Pieces)
        self._idle = idle
        batches: dict[Key, facts.InForce] = {}
        for file in files:
            self._pieces[file.run].add(file.footer)
        for batch in there.batches:
            key = (batch.instance, batch.run)
            batches[key] = batches.get(key) or self._in_force(key)
            footer = Footer.of(batch, batches[key])
            batches[key] = footer.facts
            self._pieces[key].add(footer)
        for key, cover in there.signs:
            if key in self._pieces:
                self._pieces[key].signs.append((cover, False))
        for key, cover in there.ended:
            self._pieces[key].signs.append((cover, True))
        for key, clock in there.clocks:
            if key in self._pieces:
                self._pieces[key].clocks[clock.sequence] = clock
        self._doubt: dict[Key, list[tuple[Clock, int, int]]] = {
            key: _doubts(list(pieces.clocks.values())) for key, pieces in self._pieces.items()
        }
        self.doubt = max(  # by how much a label may be off at most, microseconds
            (max(-early, late) for doubts in self._doubt.values() for _, early, late in doubts), default=0
        ) + sum(clock.asleep for doubts in self._doubt.values() for clock, _, _ in doubts if clock.right < clock.before)
        self._entries = {key: tuple(self._entries_of(key)) for key in self._pieces}
        self._runs = self._bounded({key: self._run(key, pieces) for key, pieces in self._pieces.items()})

    def is_of(self, files: Sequence[Part], there: Waiting, idle: int | None) -> bool:
        """Return whether these sources give the same knowledge."""
        return (
            there.batches is self._there.batches and there.signs is self._there.signs and there.ended is self._there.ended
            and there.clocks == self._there.clocks and idle == self._idle and files == self._files
        )  # fmt: skip

    def _in_force(self, key: Key) -> facts.InForce:
        """Return the facts of the run's files, for rows that wait behind them."""
        pieces = self._pieces.get(key)
        if pieces is None:
            return facts.InForce()
        # An entry that the last fact's statement of all has no more has ended, though the row that tells it may be missing.
        whole = pieces.whole_to == pieces.last_fact >= 0
        return facts.InForce(
            tuple(entry for entry, last, end in pieces.stated() if end is None and (last >= pieces.last_fact or not whole)),
            tuple(pieces.settings.values()), tuple(pieces.clocks.values()), pieces.last_fact, whole, pieces.made,
        )  # fmt: skip

    def reach(self, question: Question) -> tuple[int, int]:
        """Return the longest idle time and window, in microseconds, by which rows are searched."""
        found = [self._longest(pieces, question) for pieces in self._pieces.values()]
        idle = max((idle for idle, _ in found), default=round(LONGEST_IDLE * 1e6))
        return idle, max((window for _, window in found), default=round(LONGEST_WINDOW * 1e6))

    def _longest(self, pieces: _Pieces, question: Question) -> tuple[int, int]:
        """How long a session may have been idle around then, and how long a window was. The gateway's clock, by which they
        are counted, stood still while the machine slept."""
        idle, window, asleep = self._idle_of(pieces), self._window_of(pieces), 0
        sleeps = [clock for clock in pieces.clocks.values() if clock.asleep]
        while sleeps:
            reach = idle + window + asleep + self.doubt
            near = [each.asleep for each in sleeps
                    if each.before <= question.end + reach and each.after >= question.start - reach]  # fmt: skip
            if sum(near) == asleep:
                break
            asleep = sum(near)
        return idle + asleep, window + asleep

    def _idle_of(self, pieces: _Pieces) -> int:
        told = facts.longest_idle(pieces.settings.values())
        return (
            max(self._idle or 0, told) if told else self._idle if self._idle is not None else round(LONGEST_IDLE * 1e6)
        )

    def _window_of(self, pieces: _Pieces) -> int:
        return max(pieces.window, facts.longest_window(pieces.settings.values()) or round(LONGEST_WINDOW * 1e6))

    def doubtful(self, row: Row) -> Row:
        """Return the row with the error of its labels; labels from before a sleep are corrected."""
        moved = perhaps = 0  # by how much later changes have moved the labels; a sleep that may have been before
        for clock, _, _ in reversed(self._doubt.get((row.instance, row.run), ())):
            if _is_before(row, clock):
                continue
            if clock.asleep and row.start <= (woken := clock.after + moved):
                # The gateway's clock may have stood at the last packet's moment until the sleep was noticed.
                start, end = row.start - clock.asleep, row.end - clock.asleep if row.end <= woken else row.end
                row = row._replace(start=start, end=end)
                perhaps += clock.asleep if row.start > clock.right + moved else 0
            moved += clock.change
        row = row._replace(late=perhaps) if perhaps else row
        later = [each for each in self._doubt.get((row.instance, row.run), ()) if _is_before(row, each[0])]
        if not later:
            return row
        early, late = _off(later, row.end)
        return row._replace(early=early, late=late + perhaps)

    def _shift(self, key: Key, sequence: int, label: int) -> tuple[int, int]:
        return _off([each for each in self._doubt[key] if sequence < each[0].sequence], label)

    def _surely(self, key: Key, cover: Cover) -> Cover:
        """Return the cover with its earliest possible times, each by the clock of its moment."""
        early, _ = self._shift(key, cover.sequence, cover.made)
        return cover._replace(made=cover.made + early, swept=cover.swept + early)

    # ---- runs ----

    def runs(self, question: Question) -> list[Run]:
        """Return all runs; those that may have had what is asked for are marked."""
        result = []
        for key, run in self._runs.items():
            if self._holds(key, question, run.begin, run.end):
                idle, window = self._longest(self._pieces[key], question)
                run = replace(run, holds=True, had=self._had(key, question, run), idle=idle, window=window)
            result.append(run)
        return result

    def has_blocks(self, question: Question) -> bool:
        """Return whether rows of port blocks can tell: all runs that may have had what is asked for had blocks alone. protocol
        None: of those with ports."""
        asked = (TCP, UDP, ICMP) if question.subject == "endpoint" else (TCP, UDP, ICMP, None)
        holding = [
            key for key, run in self._runs.items() if self._holds(key, question, run.begin, run.end)
        ] if question.protocol in asked else []  # fmt: skip
        return bool(holding) and all(self._is_in_blocks(key) for key in holding)

    def _is_in_blocks(self, key: Key) -> bool:
        policies = facts.values_of(self._pieces[key].settings.values(), facts.PORTS_CODE)
        return policies == {PORT_POLICIES.index("block")}

    def runs_by_blocks(self, question: Question) -> list[Run]:
        """Return all runs as the rows of port blocks tell of them."""
        found = {
            key: replace(run, known=self._known_blocks(key), idle=FOREVER, window=0, exclusive=True)
            for key, run in ((key, self._run(key, pieces)) for key, pieces in self._pieces.items())
        }
        return [
            replace(run, holds=True, had=self._had(key, question, run))
            if self._holds(key, question, run.begin, run.end) else run
            for key, run in self._bounded(found).items()
        ]  # fmt: skip

    def blocks_since(self, asked: Asked, runs: Sequence[Run]) -> int | None:
        """Return since when rows of port blocks tell of every block that was assigned at a moment that is asked for: since a
        list of all blocks, without a gap. None: no such list is known. runs: of `runs_by_blocks`."""
        since = []
        for run in runs:
            begin, end = max(asked.start, run.begin), min(asked.end, run.end)
            if not run.holds or begin > end:
                continue
            starts = [
                known.start for known in run.known
                if known.ended and (known.whole or known.start <= begin) and known.made >= end
            ]  # fmt: skip
            if not starts:
                return None
            since.append(max(starts) - 2 * self.doubt - _LISTED)
        return min(since, default=None)

    def _known_blocks(self, key: Key) -> tuple[Known, ...]:
        """Return the stretches in which no row of a port block is missing, in order: from each list of all blocks on, and from
        what follows a gap. One that begins with a list tells of every block at each of its moments (`ended`)."""
        pieces = self._pieces[key]
        ranges = joined_ranges(pieces.blocks)
        covers = [pieces.covers[sequence] for sequence in sorted(pieces.covers)]
        signs = [sign for sign, _ in pieces.signs if covers and sign.sequence >= covers[-1].sequence]
        stretches: list[Known] = []
        chain: list[Cover] = []

        def close() -> None:
            for place, first in enumerate(chain):
                if place and not first.flags & BLOCKS:
                    continue
                _, late = self._shift(key, first.sequence, first.since)
                last = chain[-1]
                made = self._surely(key, last).made - _BLOCK_LABEL
                lists_all = bool(first.flags & BLOCKS)
                stretches.append(
                    Known(first.since + late, made, made, first.blocks, last.blocks - 1,
                          lists_all and bool(first.flags & EMPTY), lists_all)
                )  # fmt: skip
            chain.clear()

        for cover in [*covers, *sorted(signs, key=lambda sign: sign.made)]:
            if cover.flags & ALONE or (cover.flags & STARTED and cover.blocks < 0):  # no log ran just before
                close()
            if cover.blocks < 0:
                continue
            if chain and not _connected(chain[-1].blocks, cover.blocks, ranges):
                close()
            chain.append(cover)
        close()
        return tuple(stretches)

    def _bounded(self, found: dict[Key, Run]) -> dict[Key, Run]:
        """Return the runs; each ends at the latest where the next one of its gateway begins."""
        result = {}
        for key, run in found.items():
            others = [each for other, each in found.items() if other != key and other[0] == key[0]]
            begin, end = run.begin, run.end
            if run.known:
                first, last = run.known[0].start, max(known.made for known in run.known)
                if end == FOREVER:
                    later = [each.known[0].start for each in others if each.known and each.known[0].start > last]
                    end = min(later, default=FOREVER)
                if begin < first and not run.known[0].whole:
                    before = [max(k.made for k in each.known) for each in others if each.known]
                    begin = max([begin, *(each for each in before if each < first)])
            result[key] = replace(run, begin=begin, end=end)
        return result

    def _run(self, key: Key, pieces: _Pieces) -> Run:
        known, born, closed = self._known(key, pieces)
        policies = facts.values_of(pieces.settings.values(), facts.PORTS_CODE)
        exclusive = bool(policies) and PORT_POLICIES.index("overload") not in policies
        gaps = [*pieces.gaps, *_between(known, joined_ranges(pieces.ranges), key[1])]
        return Run(
            *key, born, closed, known, self._idle_of(pieces), self._window_of(pieces), False, exclusive, tuple(gaps)
        )

    def _known(self, key: Key, pieces: _Pieces) -> tuple[tuple[Known, ...], int, int]:
        """Return the stretches in order, and when the run began and ended."""
        ranges = joined_ranges(pieces.ranges)
        every = [pieces.covers[sequence] for sequence in sorted(pieces.covers)]
        chains: list[list[Cover]] = []
        for cover in (each for each in every if not each.sparse):
            if chains and not cover.flags & ALONE and _connected(chains[-1][-1].number, cover.number, ranges):
                chains[-1].append(cover)
            else:
                chains.append([cover])
        stretches = []
        begin, end = 0, FOREVER
        for chain in chains:
            first, last = chain[0], chain[-1]
            _, late = self._shift(key, first.sequence, first.since)
            made = self._surely(key, last).made
            swept = max(self._surely(key, cover).swept for cover in chain)
            whole = bool(first.flags & EMPTY)
            ended = bool(last.flags & CLOSED)
            number = last.number
            for sign, lists_all in pieces.signs:
                sure = self._surely(key, sign)
                is_later = chain is chains[-1] and sign.sequence >= last.sequence and sure.made >= made
                if is_later and _connected(number, sign.number, ranges):
                    number, made, swept, ended = sign.number, sure.made, max(swept, sure.swept), lists_all
            if ended:
                swept = max(swept, made)
            stretches.append(Known(first.since + late, made, swept, first.number, number - 1, whole, ended))
        if every:
            first, last = every[0], every[-1]
            early, _ = self._shift(key, first.sequence, first.made)
            # It was born when its clock was 0, which is labelled late by what the machine slept since.
            asleep = sum(clock.asleep for clock in pieces.clocks.values() if clock.sequence < first.sequence)
            begin = (first.made if first.flags & EMPTY else first.born - asleep) + early
            if last.flags & CLOSED:
                end = last.made + self._shift(key, last.sequence, last.made)[1]
        return tuple(stretches), max(0, begin), end

    # ---- entries ----

    def _holds(self, key: Key, question: Question, begin: int, end: int) -> bool:
        """Return whether the gateway may have had what is asked for at a queried moment."""
        if begin > question.end or end < question.start:
            return False
        pieces = self._pieces[key]
        if question.subject == "remote":
            return True
        if question.text in pieces.addresses and not pieces.entries:
            return True
        if not pieces.entries and pieces.whole_to < 0:
            return True  # no entries are stated
        return any(
            entry.type != NO_NAT and _has(entry, question) and since <= question.end and until >= question.start
            for entry, since, _, _, until in self._entries[key]
        )

    def _had(self, key: Key, question: Question, run: Run) -> tuple[tuple[int, int], ...]:
        """Return the times at which it surely had the address."""
        pieces = self._pieces[key]
        if question.subject == "remote" or (not pieces.entries and pieces.last_fact < 0):
            return (
                (run.begin, run.end),
            )  # its rows tell of no entries at all; where facts are told, entries are missing
        return tuple(
            (since, min(until, run.end)) for entry, _, since, until, _ in self._entries[key]
            if entry.type != NO_NAT and _has(entry, question)
        )  # fmt: skip

    def _entries_of(self, key: Key) -> Iterable[tuple[EntryFact, int, int, int, int]]:
        """Yield (entry, perhaps since, surely since, surely until, perhaps until)."""
        for entry, last, end in self._pieces[key].stated():
            early, late = self._shift(key, entry.sequence, entry.since)
            since = entry.since + early, entry.since + late
            until, perhaps_until = self._known_until(key, last), FOREVER
            if end is not None:
                shift = self._shift(key, end.until_sequence, end.perhaps_until)
                until, perhaps_until = end.until + shift[0], end.perhaps_until + shift[1]
                if end.since != entry.since:  # of another statement: that this one lasted so long is that one's to tell
                    until = min(until, self._known_until(key, last))
            yield entry, *since, until, perhaps_until

    def _known_until(self, key: Key, sequence: int) -> int:
        """Return until when facts are known: no fact behind `sequence` is missing."""
        pieces = self._pieces[key]
        until = 0
        for cover in pieces.covers.values():
            if cover.sequence <= sequence:
                until = max(until, self._surely(key, cover).made)
        if sequence >= pieces.last_fact:
            signs = [self._surely(key, sign).made for sign, _ in pieces.signs if sign.sequence <= sequence]
            until = max([until, *signs])
        return until

    def statics(self, question: Question, runs: Sequence[Run]) -> list[Static]:
        """Return the entries that an answer can name: those without rows by contract, and deterministic ones."""
        found = []
        for run in runs:
            key = (run.instance, run.run)
            pieces = self._pieces[key]
            settings = list(pieces.settings.values())
            targets: dict[int, set[int]] = defaultdict(set)
            for entry, *_ in self._entries[key]:
                targets[entry.id].add(entry.inside_ip)
            for entry, maybe, since, until, perhaps in self._entries[key]:
                until, perhaps = min(until, run.end), min(perhaps, run.end)
                if entry.type == SNAT:
                    host = _computed(entry, settings, question)
                    if host is not None:
                        who = (run.instance, pieces.vpc_id, format_ipv4(host))
                        text = f"only {who[2]} can have it: the ports of {entry.describe()} are computed"
                        found.append(Static(text, who, since, until, maybe, perhaps, computed=True))
                    continue
                if not _may_be_of(entry, question) or not _fits_remote(entry, question):
                    continue
                if not _is_all_of(entry, question):
                    since, until = FOREVER, 0  # never surely
                inside = entry.inside_ip if entry.type != NO_NAT or question.address is None else int(question.address)
                several = entry.type != NO_NAT and len(targets[entry.id]) > 1
                inside_host = None if several else (run.instance, pieces.vpc_id, format_ipv4(inside))
                found.append(
                    Static(f"{entry.describe()}, which has no rows", inside_host, since, until, maybe, perhaps)
                )
        return found


def _is_before(row: Row, clock: Clock) -> bool:
    """Return whether the row was written before the clock was set."""
    if row.kind.startswith("block"):
        return row.number < clock.blocks
    return 0 <= row.number < clock.number


def _has(entry: EntryFact, question: Question) -> bool:
    """Return whether an entry's sessions may be what is asked for, by its addresses."""
    if question.address is not None and not entry.has_address(int(question.address)):
        return False
    if question.inside is None:
        return True
    return question.has_inside(entry.inside_ip, entry.inside_port if entry.type == SNAT else 32)


def _may_be_of(entry: EntryFact, question: Question) -> bool:
    """Return whether what is asked for may be traffic of an entry without rows."""
    if question.inside is not None:
        inside = int(question.inside)
        own = entry.first_ip <= inside <= entry.last_ip if entry.type == NO_NAT else entry.inside_ip == inside
        return own and (question.address is None or entry.has_address(int(question.address)))
    if question.address is None:
        return True
    if question.port is not None and question.protocol is not None:
        return entry.is_static_for(int(question.address), question.port, question.protocol)
    return entry.has_address(int(question.address)) and (
        entry.type != DNAT or 0 in (question.protocol or 0, entry.protocol) or question.protocol == entry.protocol
    )


def _is_all_of(entry: EntryFact, question: Question) -> bool:
    """Return whether all that is asked for belongs to the entry, and not a port of several."""
    return question.subject == "endpoint" or (question.subject == "address" and entry.type != DNAT)


def _computed(entry: EntryFact, settings: Sequence[Setting], question: Question) -> int | None:
    """Return the inside host that has the asked endpoint by computation."""
    if question.address is None or question.port is None or not entry.has_address(int(question.address)):
        return None
    return facts.computed_host(entry, settings, int(question.address), question.port)


def _fits_remote(entry: EntryFact, question: Question) -> bool:
    if entry.type != NO_NAT or question.remote_address is None:
        return True
    return entry.first_remote <= int(question.remote_address) <= entry.last_remote


def _off(later: Sequence[tuple[Clock, int, int]], label: int) -> tuple[int, int]:
    """Return the possible error of a label from before these changes of the clock."""
    if not later:
        return 0, 0
    _, early, late = later[0]
    return early, late + sum(clock.asleep for clock, _, _ in later if label > clock.right)


def _doubts(clocks: Sequence[Clock]) -> list[tuple[Clock, int, int]]:
    """Return, for each change in order, the possible error of labels from before it.

    The clock may have been wrong from the start or have become so: any sum of the changes that came after, up to a day
    from all of them together.
    """
    ordered = sorted(clocks, key=lambda clock: clock.sequence)
    result = []
    for at, clock in enumerate(ordered):
        total, sums = 0, [0]
        for later in ordered[at:]:
            total += later.change
            sums.append(total)
        near = [each for each in sums if abs(each - total) <= _DAY]
        result.append((clock, min(near), max(near)))
    return result


def _connected(first: int, last: int, ranges: Sequence[tuple[int, int]]) -> bool:
    """Return whether no number from first to last - 1 is missing."""
    return first == last or any(begin <= first and last - 1 <= end for begin, end in ranges)


def _between(known: Sequence[Known], ranges: Sequence[tuple[int, int]], run: str) -> Iterable[Gap]:
    for before, after in pairwise(known):
        begin, end = before.last + 1, after.first - 1
        missing = missing_numbers([(begin, end)], ranges) if begin <= end else ()
        text = ", ".join(f"{first} to {last}" for first, last in missing)
        text = f"rows {text} of run {run} are missing" if missing else f"no log of run {run} ran"
        yield Gap(min(before.swept, after.start), after.start, text)
