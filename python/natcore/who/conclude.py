"""The conclusion from a log's facts to an answer: one pure function. docs/truth.md has each answer's claim and proof.

Times are microseconds since 1970. A row's labels may be in doubt by `early` to `late`, where the clock was set after it: then
what is sure must hold for every such shift, and what is possible for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Status = Literal["exact", "held-idle", "ambiguous", "static", "gap", "unused", "complete", "incomplete"]
Subject = Literal["endpoint", "address", "inside", "remote"]
FOREVER = 1 << 62


class Row(NamedTuple):
    """A row of the log; or of a running gateway: "live" is a session (start: creation, end: now), "open" its open
    window (start: its first packet, end: now). pub_ip None: redacted. early, late: by how much the labels may be off.
    Of a port block ("block-allocated", "block-released") number is the sequence of such rows, session the assignment's number,
    and nat_port to pub_port are its ports. label: of the inside address, as the row has it."""

    instance: str
    vpc_id: str
    run: str
    number: int
    kind: str
    protocol: int
    pri_ip: str
    pri_port: int
    pub_ip: str | None
    pub_port: int
    nat_ip: str
    nat_port: int
    eip: str | None
    start: int
    end: int
    session: int
    early: int = 0
    late: int = 0
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A time that the log does not cover. end None: until now. reason: why, in words."""

    start: int
    end: int | None
    reason: str

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether it overlaps the time from start to end."""
        return self.start <= end and (self.end is None or self.end >= start)


@dataclass(frozen=True, slots=True)
class Known:
    """A stretch of a run without a missing row, its numbers from first to last.

    start: what began or ended from then on is told. made, swept: what began by `made` and what ended by `swept` is told.
    whole: there was nothing before `start` that its rows omit. ended: what was alive at `made` has rows as well.
    """

    start: int
    made: int
    swept: int
    first: int
    last: int
    whole: bool = False
    ended: bool = False

    def has(self, number: int) -> bool:
        """Return whether a row with this number is in the stretch."""
        return self.first <= number <= self.last

    def covers(self, start: int, end: int, idle: int, window: int) -> bool:
        """Return whether every holder of a port at a moment from start to end has a row in the stretch."""
        if not (self.whole or self.start <= start) or self.made < end:
            return False
        return (
            self.whole or self.ended
            or start - idle - window >= self.start  # the holder was seen since, and its row is there
            or (start - idle >= self.start and end + window <= self.swept)
            or end + idle + window <= self.swept  # the holder was seen, or ended, after
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """The knowledge of all logs of one run of a gateway.

    begin, end: it held nothing before and after. idle, window: the longest that were in force. holds: it had the asked
    address, or may have had it, at a moment that is asked for; had: from when to when it surely had it. exclusive: an
    outside endpoint is one subscriber's.
    """

    instance: str
    run: str
    begin: int
    end: int
    known: tuple[Known, ...]
    idle: int
    window: int
    holds: bool
    exclusive: bool
    gaps: tuple[Gap, ...] = ()
    had: tuple[tuple[int, int], ...] = ((0, FOREVER),)

    def covers(self, start: int, end: int) -> bool:
        """Return whether one of its stretches covers the time from start to end."""
        return any(each.covers(start, end, self.idle, self.window) for each in self.known)


@dataclass(frozen=True, slots=True)
class Static:
    """An entry in force surely from start to end, perhaps from `maybe_start` to `maybe_end`, for which no rows are written.

    computed: it says who holds the port if a host does; its sessions have rows."""

    text: str
    subscriber: tuple[str, str, str] | None
    start: int
    end: int
    maybe_start: int
    maybe_end: int
    computed: bool = False


@dataclass(slots=True)
class Holding:
    """One session by its rows. end None: no row has it. windows: (start, end, early, late)."""

    row: Row
    begun: int
    seen: int
    early: int
    late: int
    created: int | None = None
    end: int | None = None
    live: bool = False
    remote: str | None = None
    remote_port: int = 0
    last_number: int = -1
    windows: list[tuple[int, int, int, int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    labels: list[tuple[int, int, str]] = field(default_factory=list)  # start and end of a row, and its label

    def add(self, row: Row) -> None:
        """Take one row of the session into account."""
        self.early, self.late = min(self.early, row.early), max(self.late, row.late)
        self.begun, self.seen = min(self.begun, row.start), max(self.seen, row.end)
        self.last_number = max(self.last_number, row.number)
        if row.number >= 0:
            self.numbers.append(row.number)
        if row.label is not None:
            self.labels.append((row.start if row.kind == "window" else row.end, row.end, row.label))
        if row.pub_ip is not None:
            self.remote, self.remote_port = row.pub_ip, row.pub_port
        if row.kind in ("window", "open"):
            self.windows.append((row.start, row.end, row.early, row.late))
        elif row.kind == "create":
            self._begin(row.start)
            self.windows.append((row.start, row.start, row.early, row.late))  # its first packet
        elif row.kind == "end":
            self._begin(row.start)
            self.end = row.end
        elif row.kind == "live":
            self._begin(row.start)
            self.live = True
        elif self.is_block:
            self._begin(row.start)
            if row.kind == "block-released":
                self.end = row.end

    def _begin(self, start: int) -> None:
        """Take the earliest begin: a later row may be labelled late, by a clock that was set back or stood still in sleep."""
        self.created = start if self.created is None else min(self.created, start)

    @property
    def is_block(self) -> bool:
        """Return whether it is an assignment of a port block: its subscriber alone has the ports, with every remote."""
        return self.row.kind.startswith("block")

    @property
    def subscriber(self) -> tuple[str, str, str]:
        return self.row.instance, self.row.vpc_id, self.row.pri_ip

    def window_at(self, start: int, end: int) -> tuple[int, int] | None:
        """Return a window that surely overlaps the time from start to end."""
        found = [
            (first, last) for first, last, early, late in self.windows if first + late <= end and last + early >= start
        ]
        return max(found, key=lambda window: window[1] - window[0], default=None)

    def labels_at(self, start: int, end: int) -> tuple[str, ...]:
        """Return the labels of its rows from start to end; without such a row, of the one before it, or else behind it."""
        during = [text for first, last, text in sorted(self.labels) if first <= end and last >= start]
        if not during and self.labels:
            before = [each for each in self.labels if each[1] < start]
            during = [max(before, key=lambda each: each[1])[2] if before else min(self.labels)[2]]
        return tuple(dict.fromkeys(during))

    def distance(self, moment: int) -> int:
        """Return how far the nearest window is from a moment."""
        return min((max(first - moment, moment - last, 0) for first, last, _, _ in self.windows), default=FOREVER)


@dataclass(frozen=True, slots=True)
class Asked:
    """The question: from start to end; a remote (None: any) and its port (None: any).

    subject: "endpoint", "address": who had an outside endpoint, or an outside address of which no port is known; "inside",
    "remote": all sessions of an inside address, or with a remote.
    """

    start: int
    end: int
    remote: str | None = None
    remote_port: int | None = None
    subject: Subject = "endpoint"

    def fits(self, held: Holding) -> bool | None:
        """Return whether it had this remote; None: it is not known."""
        if self.remote is None or (held.is_block and self.subject == "endpoint"):
            return True
        if held.remote is None:
            return None
        return held.remote == self.remote and self.remote_port in (None, held.remote_port)


@dataclass(frozen=True, slots=True)
class Conclusion:
    status: Status
    reason: str
    matches: tuple[Holding, ...] = ()
    others: tuple[Holding, ...] = ()
    gaps: tuple[Gap, ...] = ()
    static: Static | None = None
    perhaps: tuple[Holding, ...] = ()  # of all sessions: those that may have been then
    statics: tuple[Static, ...] = ()  # of all sessions: entries without rows: such traffic may have been theirs


def holdings(rows: Iterable[Row]) -> list[Holding]:
    """Return one for each session, in the order of their begin; a row that came twice counts once."""
    found: dict[tuple[str, str, int], Holding] = {}
    for row in sorted(set(rows), key=lambda row: (row.start, row.number, row.instance, row.run)):
        key = (row.instance, row.run, row.session)
        if key not in found:
            found[key] = Holding(row, row.start, row.start, row.early, row.late)
        found[key].add(row)
    return list(found.values())


@dataclass(slots=True)
class _Found:
    """traffic, idle: sure. perhaps: possible. unsaid: sure, but not with which remote."""

    traffic: list[Holding] = field(default_factory=list)
    idle: list[Holding] = field(default_factory=list)
    perhaps: list[Holding] = field(default_factory=list)
    unsaid: list[Holding] = field(default_factory=list)
    others: list[Holding] = field(default_factory=list)


def conclude(
    asked: Asked, runs: Sequence[Run], statics: Sequence[Static], rows: Iterable[Row], since: int, until: int,
    lost: Sequence[Gap] = (),
) -> Conclusion:  # fmt: skip
    """Return the answer. runs: of every gateway in the log; rows: of what is asked for, all that ended from since to until
    (times of rows in doubt: for every shift). Of a session with rows before or after, others may not be here: such rows tell
    nothing, neither that it ended nor that it had begun. lost: when a gateway had a run of which nothing is left."""
    by_run = {(run.instance, run.run): run for run in runs}
    found = _Found()
    here = (row for row in rows if row.end + row.late >= since and row.start + row.early <= until)
    for held in holdings(here):
        _sort(held, asked, by_run.get((held.row.instance, held.row.run)), found, (since, until))
    if asked.subject in ("inside", "remote"):
        return _list(asked, runs, statics, found, [gap for gap in lost if gap.overlaps(asked.start, asked.end)])
    gaps = _gaps(asked, runs) or _possible_elsewhere(asked, runs, statics)
    return _decide(asked, by_run, statics, found, gaps, (since, until))


def _sort(held: Holding, asked: Asked, run: Run | None, found: _Found, read: tuple[int, int]) -> None:
    begin, end = span(held, run, read)
    possible = _possible(held, asked, run)
    window = held.window_at(asked.start, asked.end)
    is_held = begin + held.late <= asked.end and end + held.early >= asked.start
    if not (possible or window or is_held):
        return
    fits = asked.fits(held)
    if fits is False:
        found.others.append(held)
    elif fits is None:
        (found.unsaid if window or is_held else found.perhaps).append(held)
    elif window or (is_held and held.is_block):
        found.traffic.append(held)
    elif is_held:
        found.idle.append(held)
    else:
        found.perhaps.append(held)


def span(held: Holding, run: Run | None, read: tuple[int, int]) -> tuple[int, int]:
    """Return from when to when it surely existed, by its labels. read: the times by which rows were searched."""
    begin = held.begun if held.created is None else held.created
    if held.end is not None:
        return begin, held.end
    end = held.seen
    is_read = held.seen + 2 * held.early - held.late >= read[0]  # then its end is among the rows, if it has a row
    for known in run.known if run is not None else ():
        if is_read and held.last_number >= 0 and known.has(held.last_number):
            end = max(end, min(known.swept, read[1]) - held.early)  # its end would have a row
        if held.created is None and held.numbers and known.has(min(held.numbers)) and not known.whole:
            begin = min(begin, max(known.start, read[0]) - held.late)  # its beginning would have a row
    return begin, end


def _possible(held: Holding, asked: Asked, run: Run | None) -> bool:
    """Return whether it may have existed at some moment from start to end."""
    if held.created is not None and held.created + held.early > asked.end:
        return False
    if held.end is not None and held.end + held.late < asked.start:
        return False
    if (held.created is not None and held.end is not None) or run is None:
        return True
    start, end = max(asked.start, run.begin), min(asked.end, run.end)
    if start > end:
        return False
    for known in run.known:
        if known.covers(start, end, run.idle, run.window) and not any(map(known.has, held.numbers)) and not held.live:
            return False  # it would have a row here
    return True


def _gaps(asked: Asked, runs: Sequence[Run]) -> list[Gap]:
    """Return the times at which no host can be ruled out."""
    gaps: list[Gap] = []
    owners = [run for run in runs if run.holds]
    for run in owners:
        start, end = max(asked.start, run.begin), min(asked.end, run.end)
        if start <= end and not run.covers(start, end):
            told = [gap for gap in run.gaps if gap.overlaps(asked.start, asked.end)]
            gaps += told or [_why(Asked(start, end), run)]
    if gaps:
        return gaps
    if not owners and _uncovered(asked, runs) is None:
        return [Gap(asked.start, asked.end, "no gateway with a log here had that address then")]
    left = _uncovered(asked, owners or runs)
    return [] if left is None else [_outside(left, owners or runs)]


def _gaps_of_all(asked: Asked, runs: Sequence[Run]) -> list[Gap]:
    """Return the times at which a gateway with a log may have had sessions of which there are no rows."""
    if any(run.holds for run in runs):
        gaps = _gaps(asked, runs)
    else:
        left = _uncovered(asked, runs)
        gaps = [] if left is None else [_outside(left, runs)]
    for run in runs:
        start, end = max(asked.start, run.begin), min(asked.end, run.end)
        if not run.holds and start <= end and (left := _uncovered(Asked(start, end), [run])) is not None:
            gaps.append(_outside(left, [run]))  # what entries it had then is not known
    return gaps


def _possible_elsewhere(asked: Asked, runs: Sequence[Run], statics: Sequence[Static]) -> list[Gap]:
    """Return the times at which a gateway without a log may have had the address too."""
    owners = [run for run in runs if run.holds]
    left = _first_outside(asked, [span for run in owners for span in run.had])
    if not owners or left is None or any(_may_have(each, asked) for each in statics):
        return []
    return [Gap(left, asked.end, "no log tells which gateway had that address then")]


def _may_have(static: Static, asked: Asked) -> bool:
    return not static.computed and static.maybe_start <= asked.end and static.maybe_end >= asked.start


def _why(asked: Asked, run: Run) -> Gap:
    left = _uncovered(asked, [run])
    if left is not None:
        return _outside(left, [run])
    text = f"the log of {run.instance or 'the gateway'} tells too little of the time before: who was idle since is not known"
    return Gap(asked.start, asked.end, text)


def _uncovered(asked: Asked, runs: Sequence[Run]) -> int | None:
    """Return the first moment that no run covers."""
    return _first_outside(asked, [
        (max(known.start, run.begin) if not known.whole else run.begin, min(known.made, run.end))
        for run in runs for known in run.known
    ])  # fmt: skip


def _first_outside(asked: Asked, spans: Iterable[tuple[int, int]]) -> int | None:
    """Return the first moment of the query that is in none of the spans."""
    at = asked.start
    for start, end in sorted(spans):
        if start <= at <= end:
            if end >= asked.end:
                return None
            at = end + 1
    return at


def _outside(at: int, runs: Sequence[Run]) -> Gap:
    spans = [(known.start, known.made) for run in runs for known in run.known]
    before = max((last for _, last in spans if last < at), default=None)
    after = min((first for first, _ in spans if first > at), default=None)
    if before is None and after is None:
        return Gap(0, None, "the log has no rows" if not runs else "the log knows no time at all")
    if before is None:
        return Gap(0, after, "that is before the log's first row")
    if after is None:
        return Gap(before, None, "that is after the log's last row")
    return Gap(before, after, "that is between two runs of the gateway, or while no log ran")


def _list(
    asked: Asked, runs: Sequence[Run], statics: Sequence[Static], found: _Found, lost: Sequence[Gap]
) -> Conclusion:
    """Return all sessions of an inside address, or with a remote, in the gateways of which there are logs."""
    gaps = [*_gaps_of_all(asked, runs), *lost]
    told = tuple(dict.fromkeys([*gaps, *(gap for run in runs if run.holds for gap in run.gaps
                                         if gap.overlaps(asked.start, asked.end))]))  # fmt: skip
    sure = tuple(sorted([*found.traffic, *found.idle], key=lambda held: held.begun))
    perhaps = tuple(sorted([*found.unsaid, *found.perhaps], key=lambda held: held.begun))
    entries = tuple(each for each in statics if _may_have(each, asked))
    what = "port block" if any(held.is_block for held in (*sure, *perhaps)) else "session"
    count = f"{len(sure)} {what}s" if len(sure) != 1 else f"1 {what}"
    if gaps:
        text = f"{count}; there may be more: {'; '.join(dict.fromkeys(gap.reason for gap in gaps))}"
        return Conclusion("incomplete", text, sure, tuple(found.others), told, None, perhaps, entries)
    if perhaps:
        why = _why_unsaid(found) if found.unsaid else "the log does not tell whether they were then"
        text = f"{count}, and perhaps {len(perhaps)} more: {why}"
        return Conclusion("incomplete", text, sure, tuple(found.others), told, None, perhaps, entries)
    if not sure:
        text = "no session was then, and no row is missing"
        if not any(run.holds for run in runs):
            text = "no gateway with a log here translated it then"
        return Conclusion("unused", text, (), tuple(found.others), told, None, (), entries)
    return Conclusion("complete", f"{count}, and no row is missing", sure, tuple(found.others), told, None, (), entries)


def _decide(
    asked: Asked, runs: dict[tuple[str, str], Run], statics: Sequence[Static], found: _Found, gaps: list[Gap],
    read: tuple[int, int],
) -> Conclusion:  # fmt: skip
    told = tuple(dict.fromkeys([*gaps, *(gap for run in runs.values() if run.holds for gap in run.gaps
                                         if gap.overlaps(asked.start, asked.end))]))  # fmt: skip
    others = tuple(found.others)
    if asked.subject == "address":  # candidates: those with traffic nearest to the time first
        for held in (found.traffic, found.idle, found.perhaps, found.unsaid):
            held.sort(key=lambda each: each.distance((asked.start + asked.end) // 2))
    fixed = [each for each in statics if _may_have(each, asked)]
    sure = [each for each in fixed if each.start <= asked.start and each.end >= asked.end]
    if sure and not (found.traffic or found.idle):
        return Conclusion("static", sure[0].text, (), others, told, sure[0])
    certain = found.traffic or found.idle
    if certain:
        matches = tuple(certain)
        names = _subscribers(certain)
        rest = [*found.perhaps, *found.unsaid, *(found.idle if found.traffic else ())]
        rivals = sorted(_subscribers(rest) - names)
        if len(names) > 1:
            text = f"{len(names)} subscribers had it then: {_text(names)}"
            return Conclusion("ambiguous", text, matches, others, told)
        if fixed:
            return Conclusion(
                "ambiguous", f"{_text(names)} had it then, or {fixed[0].text}", matches, others, told, fixed[0]
            )
        alone = any(is_alone(each, asked, runs.get((each.row.instance, each.row.run)), read) for each in certain)
        if not alone and rivals and not (_are_idle(found, rivals, asked, runs) and not gaps):
            both = (*certain, *(each for each in rest if each.subscriber in rivals))
            return Conclusion(
                "ambiguous", f"{_text(names)} had it then, and perhaps {_text(rivals)}", both, others, told
            )
        if not alone and gaps:
            text = f"{_text(names)} had it then; whether another did too is not known: {gaps[0].reason}"
            return Conclusion("ambiguous", text, matches, others, told)
        if found.traffic:
            had = "had the port block then" if found.traffic[0].is_block else "had it then"
            return Conclusion("exact", f"{_text(names)} {had}", matches, others, told)
        return Conclusion("held-idle", f"{_text(names)} held it then, without traffic", matches, others, told)
    then = [each for each in fixed if each.start <= asked.end and each.end >= asked.start]
    if then and not (gaps or found.perhaps or found.unsaid):
        return Conclusion("static", then[0].text, (), others, told, then[0])
    maybe = [*found.unsaid, *found.perhaps]
    if found.unsaid and not gaps:
        text = f"{_text(_subscribers(maybe))} had it then; the log does not say with which remote: {_why_unsaid(found)}"
        return Conclusion("ambiguous", text, tuple(maybe), others, told)
    if gaps:
        computed = [each for each in statics if each.computed and each.start <= asked.start and each.end >= asked.end]
        if computed and len({each.subscriber for each in computed}) == 1 and not fixed:
            return Conclusion("static", computed[0].text, (), others, told, computed[0])
        text = "; ".join(dict.fromkeys(gap.reason for gap in told))
        text += f"; perhaps {_text(_subscribers(maybe))}, who had it before or after" if maybe else ""
        text += f"; perhaps {fixed[0].text}" if fixed else ""
        return Conclusion("gap", text, tuple(maybe), others, told, fixed[0] if fixed else None)
    if maybe or fixed:
        who = _text(_subscribers(maybe)) if maybe else fixed[0].text
        return Conclusion("ambiguous", f"perhaps {who}: the log does not tell of that time", tuple(maybe), others, told)
    text = "no row has it then, and no row is missing"
    if others:
        text = f"no session with {asked.remote} had it then; {_text(_subscribers(others))} had it towards others"
    return Conclusion("unused", text, (), others, told)


def _why_unsaid(found: _Found) -> str:
    return "it has rows of port blocks alone" if found.unsaid[0].is_block else "the log is redacted"


def is_alone(held: Holding, asked: Asked, run: Run | None, read: tuple[int, int]) -> bool:
    """Return whether it held the endpoint for all of the queried time, exclusively."""
    if asked.subject != "endpoint" or run is None:
        return False
    if not run.exclusive and (asked.remote is None or asked.remote_port is None):
        return False
    begin, end = span(held, run, read)
    return begin + held.late <= asked.start and end + held.early >= asked.end


def _are_idle(
    found: _Found, rivals: Sequence[tuple[str, str, str]], asked: Asked, runs: dict[tuple[str, str], Run]
) -> bool:
    """Return whether the rivals surely had no traffic: their windows would have rows by now."""
    if not found.traffic:
        return False
    if any(each.subscriber in rivals for each in [*found.perhaps, *found.unsaid]):
        return False
    for each in found.idle:
        if each.subscriber in rivals:
            if any(
                first + early <= asked.end and last + late >= asked.start for first, last, early, late in each.windows
            ):
                return False  # by one of its possible labels it had traffic
            run = runs.get((each.row.instance, each.row.run))
            if run is None or not any(
                known.swept >= asked.end + run.window and known.covers(asked.start, asked.end, run.idle, run.window)
                for known in run.known
            ):
                return False
    return True


def _subscribers(held: Iterable[Holding]) -> set[tuple[str, str, str]]:
    return {each.subscriber for each in held}


def _text(subscribers: Iterable[tuple[str, str, str]]) -> str:
    return ", ".join(dict.fromkeys(address for _, _, address in sorted(subscribers)))
