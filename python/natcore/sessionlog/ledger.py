"""A session log's counters: where each accepted row is. The sums hold at every moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from natcore.dtypes import GAP_DIED, GAP_LOST, GAP_RING, GapReason

Place = Literal["delivered", "queued", "spooled", "dead_letter", "lost"]
Reason = Literal["queue_full", "spool_full", "damaged", "rejected", "shutdown"]
_PLACES: tuple[Place, ...] = ("delivered", "queued", "spooled", "dead_letter", "lost")
_REASONS: tuple[Reason, ...] = ("queue_full", "spool_full", "damaged", "rejected", "shutdown")
_GAPS = {GAP_DIED: "gaps_died", GAP_RING: "gaps_journal_full", GAP_LOST: "gaps_log_full"}
_MARK_SECONDS = 1.0  # between two marks of when rows came
_MARKS_MOST = 4096  # beyond, every other one is forgotten: a row then seems to wait since the mark before


class Ledger:
    """accepted = delivered + queued + spooled + dead_letter + lost, and lost = the sum of lost_<reason>.

    queued: in memory. spooled: on disk, synced. dead_letter: set aside in a file, refused by the destination.
    Counts beside the sums: withheld (rows of a kind that the sink does not take; not accepted), recovered (accepted
    from what an earlier process left in the spool), gaps (accepted gap rows, that this log added to the gateway's; beside
    it how many were begun for each reason), facts (accepted rows about the log itself: natcore.sessionlog.facts), unlabelled
    (delivered rows of which the log's labels could not be asked), raw_bytes_delivered and wire_bytes_delivered.

    wall: Unix seconds.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._rows: dict[Place, int] = dict.fromkeys(_PLACES, 0)
        self._gone = 0  # rows that do not wait any more
        self._lost: dict[Reason, int] = dict.fromkeys(_REASONS, 0)
        self._beside = dict.fromkeys(
            (
                "withheld",
                "recovered",
                "gaps",
                *_GAPS.values(),
                "facts",
                "unlabelled",
                "raw_bytes_delivered",
                "wire_bytes_delivered",
            ),
            0,
        )
        self._marks: list[
            tuple[int, float]
        ] = []  # rows that had come by then, settled ones among them, and Unix seconds

    def accept(self, rows: int, *, withheld: int = 0) -> None:
        """Count new rows, in memory."""
        with self._lock:
            self._rows["queued"] += rows
            self._beside["withheld"] += withheld
            self._mark(rows, self._wall())

    def recover(self, rows: int, since: float | None = None) -> None:
        """Count rows that an earlier process left in the spool. since: Unix seconds, when the oldest had come; None: now."""
        with self._lock:
            self._rows["spooled"] += rows
            self._beside["recovered"] += rows
            self._mark(rows, self._wall() if since is None else since)

    def add_gap(self, place: Place, reason: GapReason) -> None:
        """Count a gap row: it is one more row of this log."""
        with self._lock:
            self._rows[place] += 1
            self._beside["gaps"] += 1
            self._beside[_GAPS[reason]] += 1
            self._mark(1, self._wall())

    def add_facts(self, rows: int) -> None:
        """Count rows about the log itself, in memory."""
        with self._lock:
            self._rows["queued"] += rows
            self._beside["facts"] += rows
            self._mark(rows, self._wall())

    def _mark(self, rows: int, now: float) -> None:
        """Note when rows came, to tell since when the oldest one waits: they settle in their order, nearly."""
        come = self._gone + self._waiting()
        self._forget_marks()
        if rows and (not self._marks or now - self._marks[-1][1] >= _MARK_SECONDS):
            self._marks.append((come, now))
            if len(self._marks) > _MARKS_MOST:
                del self._marks[1::2]
        elif rows:
            self._marks[-1] = (come, self._marks[-1][1])

    def _forget_marks(self) -> None:
        settled = 0
        while settled < len(self._marks) and self._marks[settled][0] <= self._gone:
            settled += 1
        del self._marks[:settled]

    def oldest_waiting(self) -> float:
        """Return the seconds that the oldest waiting row has waited, within about one; 0.0: none waits."""
        with self._lock:
            self._forget_marks()
            return max(0.0, self._wall() - self._marks[0][1]) if self._marks and self._waiting() else 0.0

    def drop_gaps(self, rows: int, place: Place) -> None:
        """Uncount gap rows that have become part of another one."""
        with self._lock:
            self._rows[place] -= rows
            self._beside["gaps"] -= rows
            self._gone += max(0, rows)
            self._settled.notify_all()

    def move(self, rows: int, source: Place, to: Place) -> None:
        with self._lock:
            self._rows[source] -= rows
            self._rows[to] += rows
            self._gone += rows if to != "spooled" else 0
            self._settled.notify_all()

    def lose(self, rows: int, source: Place, reason: Reason) -> None:
        with self._lock:
            self._rows[source] -= rows
            self._rows["lost"] += rows
            self._gone += rows
            self._lost[reason] += rows
            self._settled.notify_all()

    def withhold(self, rows: int, source: Place) -> None:
        """Uncount rows that a former sink would take and the present one does not."""
        with self._lock:
            self._rows[source] -= rows
            self._beside["withheld"] += rows
            self._gone += rows
            self._settled.notify_all()

    def add_bytes(self, raw: int, wire: int) -> None:
        with self._lock:
            self._beside["raw_bytes_delivered"] += raw
            self._beside["wire_bytes_delivered"] += wire

    def add_unlabelled(self, rows: int) -> None:
        """Count delivered rows of which the labels could not be asked."""
        with self._lock:
            self._beside["unlabelled"] += rows

    @property
    def waiting(self) -> int:
        """Return the rows that are neither delivered nor given up."""
        with self._lock:
            return self._waiting()

    def notify(self) -> None:
        """Wake `wait_settled`: a condition of it may have changed."""
        with self._lock:
            self._settled.notify_all()

    def wait_settled(self, timeout: float | None, also: Callable[[], bool]) -> bool:
        """Wait until the rows that wait now are settled and `also` is true; later rows may wait."""
        with self._lock:
            goal = self._gone + self._waiting()
            return self._settled.wait_for(lambda: (self._gone >= goal or not self._waiting()) and also(), timeout)

    def wait_for(self, timeout: float, condition: Callable[[], bool]) -> bool:
        """Wait until the condition is true (`notify` wakes); False: not within `timeout` s."""
        with self._lock:
            return self._settled.wait_for(condition, timeout)

    def _waiting(self) -> int:
        return self._rows["queued"] + self._rows["spooled"]

    def counters(self) -> dict[str, int]:
        with self._lock:
            counts: dict[str, int] = {"accepted": sum(self._rows.values())}
            counts.update((place, self._rows[place]) for place in _PLACES)
            counts.update((f"lost_{reason}", rows) for reason, rows in self._lost.items())
            return counts | self._beside
