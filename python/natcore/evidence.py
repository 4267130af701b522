"""From rows about one outside address and port to who held it at a time: pure, times in microseconds since 1970."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .store import Gap


class Row(NamedTuple):
    """A row of the log; or of a running gateway: "live" is a session (start: creation, end: last packet), "open" its
    open window (end: when it will close)."""

    instance: str
    vpc_id: str
    run: str
    number: int
    kind: str
    protocol: int
    pri_ip: str
    pri_port: int
    pub_ip: str
    pub_port: int
    nat_ip: str
    nat_port: int
    eip: str | None
    start: int
    end: int
    session: int


@dataclass(slots=True)
class Holding:
    """What the rows say of one session. begun, seen: its earliest and latest moment in them. end None: not told."""

    row: Row
    begun: int
    seen: int
    created: int | None = None
    end: int | None = None
    live: bool = False
    windows: list[tuple[int, int]] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.begun = min(self.begun, row.start)
        self.seen = max(self.seen, row.end if row.kind != "open" else row.start)
        if row.kind in ("window", "open"):
            self.windows.append((row.start, row.end))
        elif row.kind == "create":
            self.created = row.start
        elif row.kind == "end":
            self.created, self.end = row.start, row.end
        elif row.kind == "live":
            self.created, self.live = row.start, True

    @property
    def subscriber(self) -> tuple[str, str, str]:
        return self.row.instance, self.row.vpc_id, self.row.pri_ip

    def window_at(self, start: int, end: int) -> tuple[int, int] | None:
        return next((window for window in sorted(self.windows) if window[0] <= end and window[1] >= start), None)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """runs: from when to when the rows of each run are known. gaps: what is not. window: the longest, microseconds."""

    runs: dict[str, tuple[int, int]]
    gaps: Sequence[Gap]
    window: int

    def known_until(self, run: str) -> int:
        return self.runs.get(run, (0, 0))[1]

    def is_whole(self, start: int, end: int) -> bool:
        """One run's rows are known all the time, and none is missing."""
        is_covered = any(first <= start and end <= last for first, last in self.runs.values())
        return is_covered and not any(gap.overlaps(start, end) for gap in self.gaps)


@dataclass(slots=True)
class Finding:
    """traffic: sessions with a window then. idle: sessions that held the port without one. unsure: perhaps."""

    traffic: list[Holding] = field(default_factory=list)
    idle: list[Holding] = field(default_factory=list)
    unsure: list[Holding] = field(default_factory=list)


def holdings(rows: Iterable[Row]) -> list[Holding]:
    """One for each session, in the order of their begin; a row that came twice counts once."""
    found: dict[tuple[str, str, int], Holding] = {}
    for row in sorted(set(rows), key=lambda row: (row.start, row.number)):
        key = (row.instance, row.run, row.session)
        if key not in found:
            found[key] = Holding(row, row.start, row.start)
        found[key].add(row)
    return list(found.values())


def judge(held: Iterable[Holding], start: int, end: int, known: Knowledge) -> Finding:
    """Who had traffic, or held the port without, at some moment from `start` to `end`."""
    finding = Finding()
    for each in held:
        if each.begun > end or (each.end is not None and each.end < start):
            continue
        if each.window_at(start, end) or _is_in_first_window(each, start, end, known):
            finding.traffic.append(each)
        elif _is_surely_held(each, start, end, known):
            finding.idle.append(each)
        else:
            finding.unsure.append(each)
    return finding


def _is_in_first_window(each: Holding, start: int, end: int, known: Knowledge) -> bool:
    """Its first packet opened a window at its creation, whose row is not there yet: it is still open."""
    if each.created is None or each.windows or each.end is not None:
        return False
    known_until = known.known_until(each.row.run)
    is_open = known_until < each.created + known.window
    return is_open and each.created <= end <= known_until and each.created + known.window >= start


def _is_surely_held(each: Holding, start: int, end: int, known: Knowledge) -> bool:
    """It began before and is seen later; or nothing is missing between its last row and then, so that its end was told."""
    if each.end is not None or each.live or each.seen > end:
        return True
    if end > known.known_until(each.row.run):
        return False
    return not any(gap.overlaps(each.seen, end) for gap in known.gaps)
