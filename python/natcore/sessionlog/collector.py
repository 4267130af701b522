"""One collector a gateway: it takes the rows from the core's ring and gives them to every session log.

produced = accepted + lost_ring, while a log runs; each log has an account of its own (ledger.py). A full ring never
stops a packet: the row is lost, counted, and a gap row says so. Each second the logs get a sign of life. While no log
runs nothing is taken: the rows stay for `take_records()`.
"""

from __future__ import annotations

import logging
import os
import random
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, get_args

import numpy as np

from natcore.choices import LogRows, OnFailure
from natcore.config import DeliveryPolicy, check_choice, check_number
from natcore.dtypes import BLOCK_ALLOCATED, CLOCK, COVER, GAP_RING, RECORD, gap_row
from natcore.errors import CapacityError, ConfigurationError
from natcore.events import Event
from natcore.internal import machine_clock, threads
from natcore.internal.machine_clock import ClockWatch
from natcore.internal.redaction import show
from natcore.internal.validation import check_path
from natcore.labels import LabelSource
from natcore.sessionlog import facts
from natcore.sessionlog.baseline import Baseline, empty_part
from natcore.sessionlog.facts import ALONE, BLOCKS, CLOSED, EMPTY, STARTED, STOPPED, Clock, Cover
from natcore.sessionlog.heartbeat import Beat, OldestWindow, Windows
from natcore.sessionlog.refusals import MINUTE, Tally, event_cover_row
from natcore.sessionlog.refusals import STARTED as TALLY_STARTED
from natcore.sessionlog.sender import attribute
from natcore.sessionlog.session_log import Intake, SessionLog, check_rows
from natcore.sessionlog.spool.format import Identity
from natcore.sinks.base import Batch, Records, Sink, join

if TYPE_CHECKING:
    from natcore.gateway import Gateway
    from natcore.internal.event_feeds import EventFeeds

_log = logging.getLogger(__name__)
_DRAIN_ROWS = 65_536  # a piece at most
_PERIOD_SECONDS = 0.05  # between looks at how full the ring is
_DRAIN_SECONDS = 0.5  # between drains, where it is not
_BEAT_SECONDS = 1.0
START_SECONDS = 10.0  # that a log has to show that it works, where it must
ON_FAILURE: tuple[OnFailure, ...] = get_args(OnFailure)
_MORE_BLOCKS = 64  # that may be assigned before the blocks are copied
_LIST_NS = 86_400 * 10**9  # between two lists of the blocks: no question looks further back
COVER_BEATS = 60  # between two cover rows of a gateway that writes no rows
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class CollectedCore(Windows, Protocol):
    """The data plane as the collector uses it."""

    is_read: bool
    """Whether a collector drains: a call that writes many rows then finds space beside a full ring."""

    @property
    def journal_lost(self) -> int:
        """The number of rows that found the ring full, since the gateway began."""
        ...

    @property
    def journal_waiting(self) -> int:
        """The number of rows in the ring."""
        ...

    @property
    def journal_filling(self) -> bool:
        """Whether an eighth of the ring or more waits."""
        ...

    @property
    def blocks_lost(self) -> int:
        """The number of rows of port blocks among them."""
        ...

    @property
    def block_count(self) -> int | None:
        """The number of port blocks that are assigned; None: the policy has none."""
        ...

    def copy_blocks(self, records: Records) -> int:
        """Copy the assigned port blocks into RECORD (n,), as rows of now; -> how many."""
        ...

    def drain(self, records: Records) -> int:
        """Fill RECORD (n,) with the oldest rows of the ring, in the order of their numbers; -> how many."""
        ...

    @property
    def next_number(self) -> int:
        """The number of the next drained row."""
        ...

    def skip_numbers(self, count: int) -> int:
        """Take numbers for lost rows; -> the first."""
        ...

    def copy_windows(self, records: Records, part: int) -> tuple[int, int]:
        """Copy a part's open windows into RECORD (65,536,), as if they ended now; -> how many, and how many parts."""
        ...

    @property
    def complete_ns(self) -> int:
        """Until when the ring is complete, in ns of the gateway's clock: all that ended before has its rows."""
        ...

    @property
    def epoch_ns(self) -> int:
        """The Unix time at now = 0, in ns."""
        ...

    def set_epoch(self, epoch_ns: int) -> None: ...

    def label(self, at_ns: int) -> int:
        """Return a time of the gateway's clock as a row's label, in microseconds since 1970."""
        ...

    def close_windows(self, now_ns: int) -> int | None:
        """Write partial rows of the open windows, as many as fit into the ring; -> windows still open."""
        ...


class Account(NamedTuple):
    """How far a gateway's session log had come when its process handed the gateway over. run: names its rows. next_number: of
    the next row. facts: rows about the log itself, so far. entries: numbers of those that it has stated. logs: names of
    those that ran. blocks: rows of port blocks, so far. inode: of the file that has it; 0: of none. events: rows of refusals
    and events, so far. tells_events: whether a log had them. born: when that file was made, ns since 1970; 0: not known."""

    run: str
    next_number: int
    facts: int
    entries: tuple[int, ...]
    logs: tuple[str, ...]
    blocks: int = 0
    inode: int = 0
    events: int = 0
    tells_events: bool = False
    born: int = 0


class Collector:
    """Starts and stops session logs and feeds them. Thread-safe; `close` is idempotent.

    run: names this process's rows for ever with their numbers; drawn if not given. resumed: the account of the process that
    handed the gateway over, which goes on. in_force: rows of the entries and
    settings in force (natcore.sessionlog.facts), by what they stand for; the first of an entry's key is 0, the second its id.
    clock_offset: the gateway's clock less CLOCK_MONOTONIC, ns; None: its caller passes the time in. readings: the machine's
    clocks.
    clock: seconds, any origin; wall: Unix seconds. threads=False: nothing runs by itself, `step` and the logs'
    `persist` and `send` are called instead.
    """

    def __init__(
        self,
        core: CollectedCore,
        *,
        instance: str,
        vpc_id: str,
        billing: str = "by-usage",
        region: str | None = None,
        run: str | None = None,
        resumed: Account | None = None,
        in_force: Callable[[], Mapping[tuple[int, ...], Records]] | None = None,
        clock_offset: Callable[[], int | None] = lambda: None,
        readings: Callable[[], machine_clock.Readings] = machine_clock.read,
        threads: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ) -> None:
        self._core = core
        self._resumed = resumed  # until the first log has started
        self._going_on = set(resumed.logs if resumed else ())  # names of logs that ran there and have not started here
        self._identity = Identity(instance, vpc_id, resumed.run if resumed else run or secrets.token_hex(8))
        self._billing = billing
        self._region = region
        self._has_threads = threads
        self._clock, self._wall = clock, wall
        self._chance = chance or random.Random()
        self._logs: tuple[SessionLog, ...] = ()
        self._intakes: dict[SessionLog, Intake] = {}  # of logs that run or stop
        self._stopped: weakref.WeakSet[SessionLog] = weakref.WeakSet()
        self._control = threading.RLock()  # start, stop, close: one at a time
        self._draining = threading.Lock()  # the ring has one reader; and the counts below
        self._accepted = self._unclaimed = self._lost_before = self._lost_base = self._lost_reported = 0
        self._in_force = in_force or dict
        self._clock_offset, self._readings = clock_offset, readings
        self._watch = ClockWatch(readings())
        self._clock_changes = 0
        self._right_us = 0  # the last label that was seen to be right
        self._notices: list[Event] = []
        self._logged: Mapping[tuple[int, ...], Records] = {}  # of what is in force
        self._facts = resumed.facts if resumed else 0  # rows about the log itself, so far
        self._blocks = resumed.blocks if resumed else 0  # rows of port blocks, so far
        self._events = resumed.events if resumed else 0  # rows of refusals and events, so far
        self._tally: Tally | None = None  # None: no log has such rows
        self._tally_minute = 0  # what began before it has rows
        self._blocks_lost = 0  # of these, that found the ring full: reported ones
        self._must_list_blocks = False  # rows of blocks were lost
        self._tells_blocks = False  # the logs have a list of the blocks, and all rows of blocks since
        self._listed_ns = 0  # when that was, by the gateway's clock
        self._unlogged: list[Records] = []  # changes of the clock while no log ran
        self._covered, self._beats = (-1, 0), 0  # at the last cover row: the next number, and blocks; beats since
        self._windows = OldestWindow(core)
        self._oldest_us = 0  # a row that is drained from now on has a window that began then or later
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self.owner: weakref.ref[Gateway] | None = None  # the gateway (natcore.sessionlog.at_exit), as the next two
        self.owner_pid = os.getpid()
        self.is_collected = False

    @property
    def run(self) -> str:
        return self._identity.run

    @property
    def active(self) -> bool:
        """Whether a log runs."""
        return bool(self._logs)

    @property
    def logs(self) -> tuple[SessionLog, ...]:
        return self._logs

    def start(
        self,
        sink: Sink,
        *,
        name: str | None = None,
        spool: str | os.PathLike[str] | None = None,
        delivery: DeliveryPolicy | None = None,
        redact_destination: bool = False,
        rows: LogRows = "all",
        refusals: EventFeeds | None = None,
        labels: LabelSource | None = None,
        on_failure: OnFailure = "forward",
        at_once: bool = True,
    ) -> SessionLog:
        """A new log, that counts from now. Open windows stay open where other logs run; this log's first rows of them
        count from the start.

        name: of the log, and of its folder in `spool`; without one it is made from the delivery type.
        redact_destination: its rows do not say where the traffic went (RFC 6888 REQ-12); other logs' do.
        rows: "blocks": rows of port blocks alone, beside those about the log itself.
        refusals: where the gateway's events come from, for rows of refusals and events; None: without these rows.
        labels: of inside addresses, for the rows; None: without labels.
        on_failure: of the spool or the destination at the start. "forward": the log runs without it, and goes on trying;
        "refuse": an error, where it does not work within START_SECONDS. Later failures cost no packet either way.
        at_once: the spool is opened here; False: by the log's own thread, rows wait in memory until then.
        Rows that no log was there for and that `take_records` has not taken are dropped, counted `unclaimed`.
        Raises ConfigurationError: billing by specification, another region (contract R6), a name or a sink in use;
        CapacityError: the system has no thread left.
        """
        with self._control:
            self._check_sink(sink)
            name = check_name(name, str(attribute(sink, "delivery_type")), {log.name for log in self._logs})
            check_rows(rows, refusals is not None, labels, sink)
            redact_destination = check_choice("redact_destination", redact_destination, (True, False))
            if delivery is not None and not isinstance(delivery, DeliveryPolicy):
                raise ConfigurationError(f"delivery must be a DeliveryPolicy or None, got {show(delivery)}")
            if spool is not None:
                spool = check_path("spool", spool)
            check_choice("on_failure", on_failure, ON_FAILURE)
            if not check_choice("at_once", at_once, (True, False)) and on_failure == "refuse":
                raise ConfigurationError("at_once must be True with on_failure='refuse', got False")
            self._claim(sink, name)
            goes_on = name in self._going_on
            self._going_on.discard(name)
            log = self._make(
                sink,
                name,
                spool,
                delivery or DeliveryPolicy(),
                redact_destination,
                rows,
                on_failure,
                refusals=refusals is not None,
                labels=labels,
                goes_on=goes_on,
                at_once=at_once or not self._has_threads,
            )
            is_first = not self._logs
            is_new = not (self._core.next_number or self._core.journal_lost or self._core.journal_waiting)
            resumed, self._resumed = self._resumed, None
            if is_first and resumed is None:
                self._close_windows()
            elif not goes_on:  # else open windows are the log's from their begin
                self._intakes[log].begin(self._open_windows())
            made = self._core.now_ns
            tally = None if refusals is None else self._begin_tally(refusals)
            with self._draining:
                self._drain()
                if tally is not None and self._tally is not None:
                    self._log_events(made)  # of before, for the other logs
                if is_first:
                    self._lost_base = self._lost_reported = self._core.journal_lost
                    self._blocks_lost = self._core.blocks_lost
                    is_new = is_new and not (self._core.next_number or self._core.journal_lost)
                self._logs = (*self._logs, log)
                self._tells_blocks = self._tells_blocks and not is_first
                self._core.is_read = True
                flags = STARTED if resumed else (STARTED | ALONE if is_first else STARTED) | (EMPTY if is_new else 0)
                self._begin_facts(made, flags, () if resumed is None else resumed.entries)
                if tally is not None:
                    goes_on = goes_on and resumed is not None and resumed.tells_events
                    is_new, self._tally = self._tally is None, tally
                    self._log_events(made, TALLY_STARTED if is_new and not goes_on else 0)
            self._list_blocks(flags & EMPTY)
            if self._has_threads:
                try:
                    self._intakes[log].start()
                    self._start_thread()
                except CapacityError:  # a log without its threads would deliver nothing
                    self._stop((log,), 0.0)
                    raise
                if on_failure == "refuse":
                    self._require(log)
            return log

    def _require(self, log: SessionLog) -> None:
        """Stop the log and raise ConfigurationError if its destination does not work."""
        reason = self._intakes[log].reason_not_to_start(START_SECONDS)
        if reason is not None:
            self._stop((log,), 0.0)
            raise ConfigurationError(
                f"on_failure='refuse': session log {show(log.name)} does not work: {reason}; 'forward' starts without it"
            )

    def _open_windows(self) -> Baseline:
        start_us = self._core.label(self._core.now_ns)
        found, part, parts = [], 0, 1
        while part < parts:
            windows = empty_part()
            count, parts = self._core.copy_windows(windows, part)
            found.append(windows[:count])
            part += 1
        return Baseline(join(found), start_us)

    def _make(
        self, sink: Sink, name: str, spool: str | os.PathLike[str] | None, policy: DeliveryPolicy, redact: bool,
        rows: LogRows, on_failure: OnFailure, *, refusals: bool, labels: LabelSource | None, goes_on: bool, at_once: bool,
    ) -> SessionLog:  # fmt: skip
        made_ns, complete_ns = self._core.now_ns, self._core.complete_ns
        oldest_ns = self._windows.look()
        try:
            return SessionLog(
                sink, self._identity, name=name, spool=Path(spool) / name if spool is not None else None,
                policy=policy, beat=self._beat(oldest_ns, made_ns, complete_ns), check=self._check_sink, collect=self.step,
                end=self.stop, connect=self._intakes.__setitem__,
                redact_destination=redact, rows=rows, refusals=refusals, labels=labels, on_failure=on_failure,
                goes_on=goes_on, at_once=at_once, clock=self._clock, wall=self._wall, chance=self._chance,
            )  # fmt: skip
        except OSError as error:
            raise ConfigurationError(f"spool must be a writable folder, got {show(spool)}: {error}") from error

    def stop(self, log: SessionLog, timeout: float = 10.0) -> int:
        """Close the open windows (R10: partial rows), deliver what waits within `timeout` s; -> rows not delivered."""
        timeout = check_number("timeout", timeout, 0, 1e9, unit="seconds")
        if not isinstance(log, SessionLog):
            raise ConfigurationError(f"log must be a session log of this gateway, got {show(log)}")
        self._check_caller((log,))
        with self._control:
            if log in self._logs:
                return self._stop((log,), timeout)
            if log not in self._intakes and log not in self._stopped:
                raise ConfigurationError(f"log must be a session log of this gateway, got {show(log)}")
            return self._finish(log)

    def close(self, timeout: float = 10.0, *, ended: bool = False) -> int:
        """Stop every log, all within `timeout` s; -> rows not delivered. ended: the gateway has no session any more."""
        self._check_caller(self._logs)
        with self._control:
            return self._stop(self._logs, timeout, CLOSED if ended else 0)

    def hand_over(self, timeout: float = 10.0, *, at_once: bool = False) -> Account | None:
        """End every log within `timeout` s, with open windows left open: another process goes on with them, and with the
        account that is returned. No packet may come any more. None: no log runs; one that
        was handed over, and with which none has gone on, is returned as it was.

        What is not delivered stays in the spools, which have no end mark: without a successor, a gap row covers them.
        at_once: what is in a spool is left to the other process, and logs without a spool deliver in the time that they have
        until `end_handed_over`; unless only one log may have their destination.
        """
        self._check_caller(self._logs)
        with self._control:
            if not self._logs:
                return self._resumed
            self.beat()
            tells_events = self._tally is not None
            names = tuple(log.name for log in self._logs)
            later = [log for log in self._logs if at_once and not log.has_spool and not _is_claimed(log.sink)]
            soon = [log for log in self._logs if at_once and log.has_spool]
            self._stop(self._logs, timeout, handed_over=True, soon=soon, later=later)
            entries = {key[1] for key in self._logged if key[0] == 0}
            return Account(
                self.run,
                self._core.next_number,
                self._facts,
                tuple(sorted(entries)),
                names,
                self._blocks,
                0,
                self._events,
                tells_events,
            )

    def end_handed_over(self) -> None:
        """Wait for the logs that `hand_over` left delivering, in their time."""
        with self._control:
            for log in tuple(self._intakes):
                self._finish(log)

    def step(self) -> int:
        """Take what is in the ring and give it to the logs; -> rows taken. Nothing is taken while no log runs."""
        with self._draining:
            return self._drain() if self._logs else 0

    drain_now = step

    def beat(self) -> None:
        """Give each log a heartbeat: its rows so far are complete, and no older window is open."""
        self._check_clock()
        made_ns, complete_ns = self._core.now_ns, self._core.complete_ns
        oldest_ns = self._windows.look()  # waits for the packets: no lock is held, as in the next
        self._pull_events()
        with self._draining:
            if self._logs:
                self._drain()
                self._log_changes()
                self._log_minute(made_ns)
                beat = self._beat(oldest_ns, made_ns, complete_ns)
                self._beats += 1
                if (self._core.next_number, self._blocks) != self._covered or self._beats >= COVER_BEATS:
                    self._log_cover(beat.made, beat.swept)
                    beat = replace(beat, facts=self._facts)
                for log in self._logs:
                    self._intakes[log].note(beat)
        if self._must_list_blocks or (self._tells_blocks and made_ns - self._listed_ns >= _LIST_NS):
            self._must_list_blocks = False
            self._list_blocks()

    def _beat(self, oldest_ns: int, made_ns: int, complete_ns: int) -> Beat:
        """Note that rows drained from now on began at `oldest_ns` or later."""
        self._oldest_us = self._core.label(oldest_ns)
        now_us = self._core.label(self._core.now_ns)
        made, swept = self._labels(made_ns, complete_ns)
        return Beat(
            self._oldest_us, now_us, round(self._wall() * 1e6), self._core.next_number, made=made, swept=swept,
            facts=self._facts,
        )  # fmt: skip

    def _labels(self, made_ns: int, complete_ns: int) -> tuple[int, int]:
        """Return until when beginnings and ends have rows. A session may still begin in the same microsecond; ends have ms."""
        return self._core.label(made_ns) - 1, self._core.label(min(complete_ns, made_ns)) - 1

    # Rows about the log itself

    def cover(self) -> Cover | None:
        """Return until when the drained rows are complete, with the last fact's sequence. None: no log runs."""
        made_ns, complete_ns = self._core.now_ns, self._core.complete_ns
        self._windows.look()
        with self._draining:
            if not self._logs:
                return None
            self._drain()
            blocks = self._blocks if self._tells_blocks else -1
            return Cover(
                self._core.next_number, self._facts - 1, *self._labels(made_ns, complete_ns), 0, blocks=blocks
            )  # fmt: skip

    def note_change(self) -> None:
        """Log a change of entries or settings."""
        made_ns = self._core.now_ns
        with self._draining:
            if self._logs:
                self._drain()
                self._log_changes()
                self._log_cover(*self._labels(made_ns, self._core.complete_ns))

    def _check_clock(self) -> None:
        """Label rows from now on by the machine's clock, if that was set; a row, an event and a counter record it."""
        offset_ns = self._clock_offset()
        if offset_ns is None:
            return
        now = self._readings()
        change = self._watch.look(now, self._core.epoch_ns, offset_ns)
        if change is None:
            self._right_us = (self._core.epoch_ns + now.monotonic + offset_ns) // 1000
            return
        seconds = (change.epoch_ns - self._core.epoch_ns) / 1e9
        self.set_epoch(change.epoch_ns, suspended=change.asleep, right_us=self._right_us)
        self._clock_changes += 1
        why = "machine-slept" if change.asleep else "clock-set"
        self._notices.append(Event(self._core.now_ns / 1e9, why, None, None, 0, 0, 1))
        _log.warning("the clock differs by %.3f s from the session log's (%s): its labels follow", seconds, why)

    def take_notices(self) -> list[Event]:
        """Return the events since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def set_epoch(self, epoch_ns: int, *, suspended: bool = False, right_us: int | None = None) -> None:
        """Label rows from now on by another clock; a row records the difference. right_us: the last label that
        is surely from before the machine slept; None: all so far are."""
        made_ns = self._core.now_ns
        self._pull_events()
        with self._draining:
            if self._logs:
                self._drain()
                self._log_cover(*self._labels(self._core.now_ns, self._core.complete_ns))
                if self._tally is not None:
                    self._log_events(made_ns)
            now_ns = self._core.now_ns
            before = self._core.label(now_ns)
            self._core.set_epoch(epoch_ns)
            after = self._core.label(now_ns)
            self._tally_minute = after // MINUTE
            if before == after:
                return
            row = facts.clock_row(before, after, facts.SUSPENDED if suspended else 0, right_us)
            if self._logs:
                self._drain()  # rows that came meanwhile have either label
                self._add_rows([row])
            else:
                row["number"] = self._core.next_number
                self._unlogged.append(row)

    def unlogged_clocks(self) -> tuple[Clock, ...]:
        """Return the changes of the clock while no log runs: the next log's first rows."""
        with self._draining:
            clocks = [facts.clock_of(row[0]) for row in self._unlogged]
            return tuple(clock._replace(sequence=self._facts + at) for at, clock in enumerate(clocks))

    def _begin_facts(self, made_ns: int, flags: int, told: Collection[int] = ()) -> None:
        """told: numbers of entries that are in force by the rows so far."""
        unlogged, self._unlogged = self._unlogged, []
        self._add_rows(unlogged)
        made, swept = self._labels(made_ns, self._core.complete_ns)
        self._log_cover(made, swept, flags)
        self._logged = {}
        gone = set(told) - {key[1] for key in self._in_force() if key[0] == 0}
        rows = [facts.removed_row(number) for number in sorted(gone)]
        for row in rows:
            row["start_time"] = row["end_time"] = made
        self._add_rows(rows)
        self._log_changes()

    def _log_changes(self) -> None:
        """Log what came into force, or ended, since the last look."""
        in_force = self._in_force()
        if in_force is self._logged:
            return
        now = self._core.label(self._core.now_ns)
        gone = {key[1] for key in self._logged.keys() - in_force.keys() if key[0] == 0}  # entries, with all they had
        rows = [facts.removed_row(number) for number in sorted(gone)]
        rows += [row for key, row in in_force.items() if key not in self._logged or (key[0] == 0 and key[1] in gone)]
        for row in rows:
            row["start_time"] = row["end_time"] = now
        self._logged = in_force
        self._add_rows(rows)

    def _log_cover(self, made: int, swept: int, flags: int = 0) -> None:
        self._covered, self._beats = (self._core.next_number, self._blocks), 0
        now = self._core.label(self._core.now_ns)
        self._add_rows([facts.cover_row(made, swept, now, flags, self._core.label(0))])

    def _add_rows(self, rows: list[Records]) -> None:
        """Give rows about the log to every log. `_draining` must be held."""
        for row in rows:
            row = row.copy()
            row["number"], row["pkts_from_vpc"] = self._core.next_number, self._facts
            if row["kind"][0] in (COVER, CLOCK):
                row["session"] = self._blocks + 1 if self._tells_blocks or row["kind"][0] == CLOCK else 0
            row.flags.writeable = False
            self._facts += 1
            for log in self._logs:
                self._intakes[log].accept_facts(row)

    def _relieve(self) -> None:
        self._attempt(self.step)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException:  # the thread goes on: it is the only one that reads the ring
            _log.exception("collecting session rows failed")

    def waiting_rows(self) -> Iterator[Batch]:
        """Return the running logs' undelivered rows, the ring's among them; they stay."""
        self.step()
        for log in self._logs:
            yield from log.waiting_rows()

    def counters(self) -> dict[str, int]:
        """Rows: produced = accepted + lost_ring, while a log ran; unclaimed: dropped by the start of the first log.
        clock_changes: how often the machine's clock was set meanwhile."""
        with self._draining:
            lost = self._lost_before + (self._core.journal_lost - self._lost_base if self._logs else 0)
            return {
                "produced": self._accepted + lost, "accepted": self._accepted, "lost_ring": lost,
                "unclaimed": self._unclaimed, "clock_changes": self._clock_changes,
            }  # fmt: skip

    def _drain(self) -> int:
        """Drain the rows that the ring holds now; later ones wait. `_draining` must be held."""
        waiting, taken = self._core.journal_waiting, 0
        while taken < waiting:
            records = np.empty(min(waiting - taken, _DRAIN_ROWS), RECORD)
            count = self._core.drain(records)
            if not count:
                break
            self._number_blocks(records[:count])
            self._give(records[:count])
            taken += count
        if self._logs:
            self._accepted += taken
        else:
            self._unclaimed += taken
        self._report_lost()
        return taken

    def _number_blocks(self, records: Records) -> None:
        rows = np.flatnonzero(records["kind"] >= BLOCK_ALLOCATED)  # the core writes no other kinds beyond sessions'
        if len(rows):
            records["pkts_from_vpc"][rows] = np.arange(self._blocks, self._blocks + len(rows))
            self._blocks += len(rows)

    def _list_blocks(self, flags: int = 0) -> None:
        """Give the logs rows of all port blocks that are assigned, behind a cover row that says so.

        No lock of the collector is held while the core copies them: it may wait for a packet thread, which may drain.
        """
        count = self._core.block_count
        if count is None:
            return
        made_ns = self._core.now_ns
        while True:
            rows = np.empty(count + _MORE_BLOCKS, RECORD)
            filled = self._core.copy_blocks(rows)
            if filled < len(rows):
                break
            count = 2 * filled
        rows = rows[:filled]
        with self._draining:
            if not self._logs:
                return
            self._drain()
            self._tells_blocks, self._listed_ns = True, made_ns
            labels = self._labels(made_ns, self._core.complete_ns)
            self._log_cover(*labels, BLOCKS | flags)
            if filled:
                rows["number"] = self._core.next_number
                self._number_blocks(rows)
                self._accepted += filled
                self._give(rows)
            self._log_cover(*labels)

    # Rows of refusals and events

    def _begin_tally(self, feeds: EventFeeds) -> Tally:
        """Return the tally, with what came until now; a new one counts from now. No lock of the collector is held."""
        if self._tally is not None:
            self._pull_events()
            return self._tally
        tally = Tally(feeds.distribute, self._core.label, lambda: self._core.now_ns)
        feeds.add(tally)
        return tally

    def _pull_events(self) -> None:
        """Count events until now: it waits for the packets, so that no lock of the collector may be held."""
        if (tally := self._tally) is not None:
            tally.pull()

    def _log_minute(self, made_ns: int) -> None:
        """Log the refusals and events of a minute that is over. made_ns: of before they were pulled."""
        minute = self._core.label(made_ns) // MINUTE
        if self._tally is not None and minute > self._tally_minute:  # two may beat at once
            self._log_events(made_ns, 0, minute)

    def _log_events(self, made_ns: int, flags: int = 0, minute: int | None = None) -> None:
        """Log the refusals and events so far, or of before the minute. made_ns: until when all have been pulled."""
        assert self._tally is not None
        until = self._core.label(made_ns) - 1 if minute is None else minute * MINUTE - 1
        self._tally_minute = (until + 1) // MINUTE
        told = self._tally.take_rows(minute)
        since = self._core.label(self._core.now_ns) if minute is None else minute * MINUTE
        rows = join([told, event_cover_row(until, since, flags)])
        rows["number"] = self._core.next_number
        rows["pkts_from_vpc"] = np.arange(self._events, self._events + len(rows))
        self._events += len(rows)
        self._accepted += len(rows)
        self._give(rows)

    def _give(self, records: Records) -> None:
        records.flags.writeable = False
        for log in self._logs:
            self._intakes[log].accept(records)

    def _report_lost(self) -> None:
        """Add a gap row for rows that found the ring full: they get numbers, which will be missing."""
        lost = self._core.journal_lost - self._lost_reported
        if self._logs and lost:
            self._lost_reported += lost
            blocks = self._core.blocks_lost - self._blocks_lost
            self._blocks_lost += blocks
            self._blocks += blocks  # their numbers will be missing
            self._must_list_blocks = self._must_list_blocks or blocks > 0
            last = self._core.skip_numbers(lost) + lost - 1
            for log in self._logs:
                self._intakes[log].accept_gap(
                    gap_row(self._oldest_us, self._core.label(self._core.now_ns), last, lost, GAP_RING)
                )

    def _close_windows(self) -> None:
        """No lock of the collector is held: the core may wait for a packet thread, which may be in `drain_now`."""
        now_ns = self._core.now_ns
        while self._core.close_windows(now_ns):
            with self._draining:
                self._drain()

    def _stop(
        self, logs: tuple[SessionLog, ...], timeout: float, flags: int = 0, *, handed_over: bool = False,
        soon: Collection[SessionLog] = (), later: Collection[SessionLog] = (),
    ) -> int:  # fmt: skip
        """soon: these have no time; later: these are not waited for."""
        if not logs:
            return 0
        now = self._clock()
        if not handed_over:
            self._close_windows()
        made_ns, complete_ns = self._core.now_ns, self._core.complete_ns
        self._pull_events()
        with self._draining:
            self._drain()
            made, swept = self._labels(made_ns, complete_ns)
            if self._tally is not None:
                self._log_events(made_ns)
            self._log_cover(made, made if flags & CLOSED else swept, 0 if handed_over else STOPPED | flags)
            self._logs = tuple(log for log in self._logs if log not in logs)
            if self._tally is not None and not any(log.refusals for log in self._logs):
                self._tally.close()
                self._tally = None
            if not self._logs:
                self._core.is_read = False
                self._lost_before += self._core.journal_lost - self._lost_base
        if not self._logs:
            self._stop_thread()
        for log in logs:  # all at once: one that hangs does not take the others' time
            self._intakes[log].begin_stop(now if log in soon else now + timeout, handed_over)
        return sum(self._finish(log) for log in logs if log not in later)

    def _check_caller(self, logs: tuple[SessionLog, ...]) -> None:
        for log in logs:
            if (intake := self._intakes.get(log)) is not None:
                intake.check_caller()

    def _finish(self, log: SessionLog) -> int:
        """Wait for the end of a log that stops; -> rows not delivered. Idempotent."""
        if log in self._intakes:
            undelivered = self._intakes[log].finish_stop()
            self._stopped.add(log)
            del self._intakes[log]
            return undelivered
        rows = log.counters()
        return rows["queued"] + rows["spooled"]

    def _start_thread(self) -> None:
        if self._thread is None:
            self._end.clear()
            self._thread = threads.start("natcore-rows", self._run)

    def _stop_thread(self) -> None:
        if self._thread is not None:
            self._end.set()
            if self._thread is not threading.current_thread():
                self._thread.join()
            self._thread = None

    def _run(self) -> None:
        """Drain in large pieces: Python's work for a piece costs more than its rows."""
        next_drain = next_beat = self._clock()
        while not self._end.wait(_PERIOD_SECONDS):
            if self.is_collected and self._control.acquire(blocking=False):  # who holds it may wait for this thread
                try:
                    return self._attempt(self.close)
                finally:
                    self._control.release()
            now = self._clock()
            if now >= next_beat:
                next_beat = now + _BEAT_SECONDS
                self._attempt(self.beat)
            elif now >= next_drain or self._core.journal_filling:
                self._relieve()
            else:
                continue
            next_drain = now + _DRAIN_SECONDS

    def _check_sink(self, sink: Sink) -> None:
        check_sink(sink, self._billing, self._region)
        if any(log.sink is sink for log in self._logs):
            raise ConfigurationError(f"sink must be used by one session log, got {show(sink)}, which another has")

    def _claim(self, sink: Sink, name: str) -> None:
        """Claim a destination that only one log may have, or refuse the start; an unreachable one is retried later."""
        claim = getattr(sink, "claim", None)
        if callable(claim):
            with suppress(OSError):
                claim(f"session log {name} of gateway {self._identity.instance}")


def _is_claimed(sink: Sink) -> bool:
    """Return whether only one log may have the sink's destination at a time."""
    return callable(getattr(sink, "claim", None))


def check_sink(sink: Sink, billing: str, region: str | None) -> None:
    """Raise ConfigurationError if a gateway of the billing and region can have no session log into the sink."""
    if isinstance(sink, type) or not callable(getattr(sink, "deliver", None)):
        hint = ", not its class" if isinstance(sink, type) else ""
        raise ConfigurationError(f"sink must be an object with deliver(batch){hint}, got {show(sink)}")
    if billing == "by-specification":
        raise ConfigurationError("billing must be 'by-usage' for a session log, got 'by-specification'")
    asked = attribute(sink, "region")
    if asked and not region:
        raise ConfigurationError(
            f"region must be {show(asked)}, where the sink is, got {show(region or '')}: logs stay in the gateway's "
            "region (contract R6)"
        )
    if asked and asked != region:
        raise ConfigurationError(f"sink.region must be {show(region)}, the gateway's own, got {show(asked)}")


def check_name(name: str | None, delivery_type: str, used: Collection[str]) -> str:
    """Return a session log's name; None: one is made from its delivery type. used: the names of others."""
    if name is None:
        numbered = (f"{delivery_type}-{number}" for number in range(2, len(used) + 3))
        return next(each for each in (delivery_type, *numbered) if each not in used)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(f"name must be at most 64 letters, digits, '.', '_' and '-', got {show(name)}")
    if name in used:
        raise ConfigurationError(f"name must be unique, got {show(name)}, which another session log has")
    return name
