"""A session log: rows of one gateway on their way to one destination, and its status (docs/session-log-contract.md R9)."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from natcore.choices import LogRows, OnFailure
from natcore.config import DeliveryPolicy, check_choice, check_number
from natcore.dtypes import GapReason, chosen
from natcore.errors import ConfigurationError, Error
from natcore.internal import threads
from natcore.internal.change_lock import after_fork
from natcore.internal.read_only import ReadOnly
from natcore.internal.redaction import show
from natcore.labels import LabelSource
from natcore.sessionlog import facts
from natcore.sessionlog.baseline import Baseline, has_packets
from natcore.sessionlog.buffer import Buffer
from natcore.sessionlog.dead_letter import DeadLetters
from natcore.sessionlog.delivery import UNAVAILABLE_CODE, DeliveryState
from natcore.sessionlog.heartbeat import Beat
from natcore.sessionlog.ledger import Ledger
from natcore.sessionlog.row_labels import RowLabels, check_labels
from natcore.sessionlog.sender import Sender, Source, attribute
from natcore.sessionlog.spool.format import Identity
from natcore.sessionlog.spool.reading import waiting_rows
from natcore.sessionlog.spool.spool import Spool
from natcore.sinks.base import Batch, Records, Sink

_log = logging.getLogger(__name__)
_MEMORY_ROWS = 1 << 20  # 96 MB: what waits in memory at most, and four batches in any case
CANNOT_BE_USED = "the spool %s cannot be used: %s; rows wait in memory, and it is tried again"
_SPOOL_RETRY_SECONDS = 1.0
_THREAD_RETRY_SECONDS = 1.0
_STOP_SECONDS = 5.0  # for a sink that is changed to let go
_GRACE_SECONDS = 0.1  # for a thread that has seen the deadline
_IDLE_SECONDS = 1.0  # without a delivery, after which a stop waits no longer for rows that are in the spool
_JOIN_SECONDS = 0.02


def check_rows(rows: LogRows, refusals: bool, labels: object, sink: Sink) -> None:
    """Raise ConfigurationError unless `rows` is a choice, and the sink takes the rows, and the labels, that are asked for."""
    check_choice("rows", rows, get_args(LogRows))
    if rows == "blocks" and not attribute(sink, "blocks"):
        raise ConfigurationError(
            f"rows must be 'all' with a sink that takes no rows of port blocks, got 'blocks' with {show(sink)}"
        )
    if refusals and not attribute(sink, "refusals"):
        raise ConfigurationError(
            f"refusals must be False with a sink that takes no rows of refusals, got True with {show(sink)}"
        )
    if labels is not None:
        check_labels(labels)
        if not attribute(sink, "labels"):
            raise ConfigurationError(
                "labels must be None with a sink that takes no labels (some do with label=True), "
                f"got {show(labels)} with {show(sink)}"
            )


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """state: "Modifying" while the log starts or changes, until the destination has answered; then "Success", or "Failed"
    with the error's code.

    code: "UnavaliableTarget" (the contract's spelling) while the destination is left alone, `cause` being the code
    that made it so. since: Unix seconds of the last change of state, code or cause.
    """

    state: DeliveryState
    code: str = ""
    cause: str = ""
    message: str = ""
    since: float = 0.0


class Intake(NamedTuple):
    """What the collector calls in a log."""

    start: Callable[[], None]
    """Start the threads."""
    begin: Callable[[Baseline], None]
    """Leave out what windows had counted before the log's start."""
    accept: Callable[[Records], None]
    """RECORD (n,), n >= 1, never written again: the gateway's next rows."""
    accept_gap: Callable[[Records], None]
    """RECORD (1,): rows of the gateway are missing here."""
    accept_facts: Callable[[Records], None]
    """RECORD (n,) about the log itself, for a sink that keeps them."""
    note: Callable[[Beat], None]
    """A sign of life that covers the rows accepted so far."""
    reason_not_to_start: Callable[[float], str | None]
    """None when the sink is open, within some seconds; else why it is not."""
    check_caller: Callable[[], None]
    """Error in a thread of the log's: its sink's deliver() would wait for itself."""
    begin_stop: Callable[[float, bool], None]
    """Nothing more is accepted; what waits is sent at once until a time of the clock, however small the batch. True: another
    process goes on with the run, which has no end mark then."""
    finish_stop: Callable[[], int]
    """End when every row is delivered or in the spool, or at that time. -> rows not delivered."""


class SessionLog:
    """Made by `Gateway.start_session_log`; thread-safe.

    The rows wait in memory and, with a spool, on disk until the sink's `deliver` has returned for them. Two threads
    work for it: one delivers, one writes the spool, so that a destination that hangs does not stop the spooling.
    """

    name = ReadOnly[str]("The log's name.")
    redact_destination = ReadOnly[bool]("Whether its rows leave out the remote.")
    rows = ReadOnly[str]('"all", or "blocks": rows of port blocks alone.')
    refusals = ReadOnly[bool]("Whether it has rows of refusals and events.")
    labels = ReadOnly[LabelSource | None]("What its rows are labelled by; None: they have no labels.")
    on_failure = ReadOnly[str]('"forward" or "refuse": what becomes of the gateway where rows cannot be kept.')

    def __init__(
        self,
        sink: Sink,
        identity: Identity,
        *,
        name: str,
        spool: Path | None,
        policy: DeliveryPolicy,
        beat: Beat,
        check: Callable[[Sink], None],
        collect: Callable[[], object],
        end: Callable[[SessionLog, float], int],
        connect: Callable[[SessionLog, Intake], None],
        redact_destination: bool = False,
        rows: LogRows = "all",
        refusals: bool = False,
        labels: LabelSource | None = None,
        on_failure: OnFailure = "forward",
        goes_on: bool = False,
        at_once: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ) -> None:
        self._name = name
        self._redact_destination = redact_destination
        self._rows = rows
        self._refusals = refusals
        self._labels = labels
        self._row_labels = None if labels is None else RowLabels(labels)
        if self._row_labels is not None and on_failure == "refuse":
            self._row_labels.open()
        self._on_failure = on_failure
        self._goes_on = goes_on  # a process that handed the gateway over has begun it
        self._identity = identity
        self._policy = policy
        self._check = check
        self._collect = collect
        self._end = end
        self._clock = clock
        self._wall = wall
        self._chance = chance or random.Random()
        self._ledger = Ledger(wall)
        self._dead_letters = DeadLetters(spool, policy.spool_bytes) if spool else None
        self._spool: Spool | None = None
        self._unopened: tuple[Path, Beat] | None = None  # a spool that is not open yet; it is tried again
        self._opens_later = spool is not None and not at_once  # for the first time, by the thread that writes it
        if spool is not None and not at_once:
            self._unopened = (spool, beat)
        elif spool is not None:
            try:
                self._spool = self._open_spool(spool, identity, beat)
            except OSError as error:
                if on_failure == "refuse":
                    raise
                self._unopened = (spool, beat)
                _log.error(CANNOT_BE_USED, spool, error)
        self._spool_broken = self._unopened is not None
        self._baseline: Baseline | None = None
        self._beat: Beat | None = None  # to be noted when every row before it is in the spool
        self._wake_sender, self._wake_writer, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._sender = self._make_sender(sink)
        capacity = max(_MEMORY_ROWS, 4 * self._sender.batch_rows)
        self._buffer = Buffer(identity.instance, identity.vpc_id, identity.run, capacity, self._ledger)
        self._control = threading.RLock()
        self._stopping = self._stopped = self._handed_over = False
        self._deadline: float | None = None
        self._threads: list[threading.Thread] = []
        self._last_status = DeliveryStatus("Modifying", since=wall())
        connect(
            self,
            Intake(
                start=self._start,
                begin=self._begin,
                accept=self._accept,
                accept_gap=self._accept_gap,
                accept_facts=self._accept_facts,
                note=self._note,
                reason_not_to_start=self._reason_not_to_start,
                check_caller=self._check_caller,
                begin_stop=self._begin_stop,
                finish_stop=self._finish_stop,
            ),
        )
        after_fork(self, SessionLog._forked)

    # What a user sees

    @property
    def sink(self) -> Sink:
        """The sink that it delivers to."""
        return self._sender.sink

    @property
    def status(self) -> Literal["Enabled", "Disabled"]:
        """The status: "Enabled", or "Disabled" when it has been stopped (contract R9)."""
        return "Disabled" if self._stopped else "Enabled"

    @property
    def delivery_status(self) -> DeliveryStatus:
        """What is known of the destination: state, code, cause, message, and since when (contract R9)."""
        progress, target = self._sender.progress, self._sender.target.target
        status = DeliveryStatus(progress.state, progress.code, progress.cause, progress.message)
        if not target.available:  # another log may have found that out (contract D6)
            status = DeliveryStatus("Failed", UNAVAILABLE_CODE, target.cause, target.message)
        elif progress.code == UNAVAILABLE_CODE:
            status = DeliveryStatus("Success")
        last = self._last_status
        changed = (status.state, status.code, status.cause) != (last.state, last.code, last.cause)
        self._last_status = replace(status, since=self._wall() if changed else last.since)
        return self._last_status

    @property
    def delivery_type(self) -> str:
        """The sink's name for itself (contract R9)."""
        return self._sender.delivery_type

    @property
    def has_spool(self) -> bool:
        """Whether rows that are not delivered wait on disk, for another process too."""
        return self._spool is not None or self._unopened is not None

    @property
    def destination(self) -> dict[str, str]:
        """What identifies the destination: for "sls" its endpoint, project, logstore and region."""
        return dict(self._sender.destination)

    def counters(self) -> dict[str, int]:
        """Rows: accepted = delivered + queued + spooled + dead_letter + lost, read at one moment; see `Ledger`.

        spool_files_set_aside: files in the spool that are not its own, or that another user could have written.
        """
        counters = self._ledger.counters()
        if self._spool is not None:
            counters["spool_files_set_aside"] = self._spool.set_aside
        return counters

    @property
    def oldest_waiting(self) -> float:
        """Seconds that the oldest undelivered row has waited, rows of an earlier process among them; 0.0: none waits."""
        return self._ledger.oldest_waiting()

    @property
    def spool_bytes(self) -> int:
        """Bytes of the spool's files with rows; 0 without a spool. It waits for no disk."""
        spool = self._spool
        return 0 if spool is None else spool.size_bytes

    def waiting_rows(self) -> Iterator[Batch]:
        """The rows that no destination has acknowledged yet, in memory and in the spool; they stay where they are."""
        identity = self._identity
        for records in self._buffer.peek():  # from here they go into the spool, so they are looked at first
            yield Batch(identity.instance, identity.vpc_id, identity.run, records)
        if self._spool is not None:
            yield from waiting_rows(self._spool.folder)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every row that the gateway has written so far is delivered or given up, and the sink has answered.

        Parameters
        ----------
        timeout
            Seconds, 0 to 10^9; None: as long as it takes.

        Returns
        -------
        bool
            False: not within timeout.
        """
        if timeout is not None:
            timeout = check_number("timeout", timeout, 0, 1e9, unit="seconds")
        self._collect()
        self._sender.hurry()
        self._wake()
        try:
            return self._ledger.wait_settled(timeout, lambda: self._stopped or self._sender.has_answer)
        finally:
            self._sender.hurry(self._stopping)

    def change(self, sink: Sink) -> None:
        """Deliver to another destination from now on, the waiting rows first (contract R9: "Modifying" meanwhile).

        Parameters
        ----------
        sink
            The new destination.

        Raises
        ------
        ConfigurationError
            As for the start, or the log has been stopped.
        """
        self._check_caller()
        with self._control:
            if self._stopping:
                raise ConfigurationError(f"change of session log {show(self.name)}: it has been stopped")
            self._check(sink)
            check_rows(self._rows, self._refusals, self._labels, sink)
            before, thread = self._sender, self._threads[0] if self._threads else None
            self._sender = self._make_sender(sink)
            self._wake_sender.set()
            if thread is None:
                before.abandon()
                before.close_sink()
            else:
                thread.join(_STOP_SECONDS)
                before.abandon()
                self._threads[0] = self._start_thread(self._run_sender, "delivery")

    def retry(self) -> None:
        """End the pause after a failed delivery: the waiting rows are tried at once.

        A destination that is unavailable gets its single test now (contract D3); if that fails, the whole pause begins again.
        """
        self._sender.retry()
        self._wake_sender.set()

    def stop(self, timeout: float = 10.0) -> int:
        """Stop; the open windows are delivered as partial rows (contract R10). Idempotent.

        Parameters
        ----------
        timeout
            Seconds that deliveries may take, 0 to 10^9. It ends sooner when every row is delivered or in the spool.

        Returns
        -------
        int
            Rows that are not delivered: they stay in the spool, and without one they are lost, and counted.
        """
        return self._end(self, timeout)

    def __enter__(self) -> SessionLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _forked(self) -> None:
        """In the child of a fork: a log that has stopped, without rows. Rows, spool and destination are the parent's, and its
        threads are not here, whatever lock they held."""
        self._ledger = Ledger(self._wall)
        self._buffer = Buffer(self._identity.instance, self._identity.vpc_id, self._identity.run, 1, self._ledger)
        self._spool = self._unopened = self._dead_letters = self._baseline = self._beat = None
        self._opens_later = False
        self._wake_sender, self._wake_writer, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._control = threading.RLock()
        self._stopping = self._stopped = True
        self._threads = []
        self._collect, self._end = lambda: None, lambda log, timeout: 0

    # What the collector calls (Intake)

    def _start(self) -> None:
        """Start the threads."""
        self._threads = [self._start_thread(self._run_sender, "delivery")]
        if self._spool is not None or self._unopened is not None:
            self._threads.append(self._start_thread(self._run_writer, "spool"))

    def _begin(self, baseline: Baseline) -> None:
        """What is not to be counted of windows that were open before the log's start."""
        self._baseline = baseline

    def _check_caller(self) -> None:
        """Error in a thread of this log's: its sink's deliver() would wait for itself."""
        if threading.current_thread() in self._threads:
            raise Error(
                f"session log {show(self.name)}: its own deliver() cannot stop or change it; do so in another thread"
            )

    def _note(self, beat: Beat) -> None:
        """A sign of life that covers the rows accepted so far."""
        if self._spool is not None:
            self._beat = beat
            self._wake_writer.set()

    def _accept_gap(self, row: Records) -> None:
        """RECORD (1,): rows of the gateway are missing here."""
        self._ledger.add_gap("queued", GapReason(int(row["flags"][0])))
        self._buffer.append(row)

    def _accept_facts(self, rows: Records) -> None:
        """RECORD (n,) about the log itself, for a sink that keeps them."""
        if self._sender.takes_facts:
            rows = facts.sparse(rows) if self._rows == "blocks" else rows
            self._ledger.add_facts(len(rows))
            self._buffer.append(rows)
            (self._wake_sender if self._spool is None else self._wake_writer).set()

    def _accept(self, records: Records) -> None:
        """RECORD (n,), n >= 1, never written again: the gateway's next rows."""
        wanted = self._sender.select(records)
        if self._baseline:
            wanted = self._baseline.take_off(wanted)
            if not self._sender.takes_all:  # there numbers are missing anyhow
                wanted = chosen(wanted, has_packets(wanted))
        self._ledger.accept(len(wanted), withheld=len(records) - len(wanted))
        if len(wanted):
            self._buffer.append(wanted)
            (self._wake_sender if self._spool is None else self._wake_writer).set()

    def _send(self) -> float | None:
        """One step of delivery: `Sender.step`. For tests without threads."""
        return self._sender.step()

    def _persist(self) -> bool:
        """Bring what waits in memory into the spool; -> False: the disk does not take it, or it is in other hands."""
        if self._spool is None and not self._open_again():
            return False
        assert self._spool is not None
        beat, self._beat = self._beat, None
        while self._buffer.rows:
            batch = self._buffer.take(self._spool.frame_rows)
            if batch is None:
                return False
            try:
                self._spool.append(batch.records)
            except BaseException as error:
                if not self._spool_broken:
                    _log.error(
                        "the spool %s takes no rows: %s; they wait in memory", self._spool.folder, error,
                        exc_info=None if isinstance(error, OSError) else error,
                    )  # fmt: skip
                self._spool_broken = True
                self._buffer.put_back()
                self._wake_sender.set()
                return False
            self._spool_broken = False
            self._buffer.acknowledge()
            self._wake_sender.set()
        if beat is not None and not self._buffer.is_held:
            self._spool.note(beat)
        return True

    def _open_again(self) -> bool:
        assert self._unopened is not None
        folder, beat = self._unopened
        is_first = self._opens_later
        try:
            self._spool = self._open_spool(folder, self._identity, beat)
        except (OSError, Error) as error:
            self._opens_later = False
            if is_first:
                _log.error(CANNOT_BE_USED, folder, error)
                self._wake_sender.set()
            return False
        self._unopened, self._spool_broken, self._opens_later = None, False, False
        if not is_first:
            _log.warning("the spool %s can be used now", folder)
        self._wake_sender.set()
        return True

    def _reason_not_to_start(self, timeout: float) -> str | None:
        """None when the sink is open, within `timeout` s; else why it is not."""
        self._sender.hurry()  # rows of an earlier run may wait for their batch to fill
        self._wake()
        self._ledger.wait_for(timeout, lambda: self._sender.has_answer)
        self._sender.hurry(self._stopping)
        status = self.delivery_status
        if status.state == "Failed":
            return f"{status.cause or status.code}: {status.message}"
        return None if self._sender.has_answer else f"no answer within {timeout:g} s"

    def _begin_stop(self, deadline: float, handed_over: bool = False) -> None:
        """Nothing more is accepted; what waits is sent at once, however small the batch, until `deadline`. handed_over: another
        process goes on, and what waits is left to it if the deadline is now."""
        self._deadline, self._handed_over = deadline, handed_over
        self._stopping = True
        self._ending.set()
        self._sender.hurry(not handed_over or deadline > self._clock())
        self._wake()

    def _finish_stop(self) -> int:
        """End as soon as every row is delivered or safe in the spool, and none is being delivered any more; at the deadline
        at the latest. -> rows not delivered, which stay in the spool if there is one.

        Without a spool they are lost, counted as `lost_shutdown`. Idempotent.
        """
        with self._control:
            if self._stopped:
                return self._ledger.waiting
            assert self._deadline is not None
            if not self._threads:
                self._send_without_threads()
            self._join_threads()
            self._sender.abandon()
            undelivered = self._ledger.waiting
            is_safe = (self._spool is not None or self._unopened is not None) and self._persist()
            left = self._buffer.clear()
            self._ledger.lose(left, "queued", "shutdown")
            if self._spool is not None:
                if is_safe and not left and not self._handed_over:
                    self._spool.end_run()
                self._spool.close()
            self._stopped = True
            return undelivered

    def _join_threads(self) -> None:
        """Rows that are only in memory get all the time there is; others as long as deliveries succeed."""
        delivered, since = -1, self._clock()
        while self._time_left() > -_GRACE_SECONDS:
            alive = [thread for thread in self._threads if thread.is_alive()]
            if not alive:
                return
            rows = self._ledger.counters()
            now = self._clock()
            if rows["queued"] or rows["delivered"] != delivered:
                delivered, since = rows["delivered"], now
            elif now - since >= _IDLE_SECONDS:
                return
            alive[0].join(_JOIN_SECONDS)

    def _send_without_threads(self) -> None:
        if self._spool is not None:
            self._persist()
        while self._sender.step() == 0.0:
            pass
        self._sender.close_sink()

    def _open_spool(self, folder: Path, identity: Identity, beat: Beat) -> Spool:
        """What an earlier run has left in it comes first; then a gap row, if that run died."""
        spool = Spool(folder, identity, bound_bytes=self._policy.spool_bytes, ledger=self._ledger)
        try:
            if spool.begin_run(beat, goes_on=self._goes_on):
                _log.warning("%s: the run before ended without its end mark; a gap row tells so", folder)
        except BaseException:
            spool.close()
            raise
        return spool

    def _make_sender(self, sink: Sink) -> Sender:
        return Sender(
            sink, self._sources, self._ledger, self._policy, self._dead_letters,
            clock=self._clock, chance=self._chance, changed=self._wake_sender.set,
            redact=self.redact_destination, blocks_alone=self._rows == "blocks", refusals=self._refusals,
            labels=self._row_labels,
        )  # fmt: skip

    def _sources(self) -> list[Source]:
        """In order: what is on disk, then what is in memory, where there is no spool or it takes nothing."""
        if self._opens_later:
            return []
        if self._spool is None:
            return [Source(self._buffer, "queued")]
        spooled = Source(self._spool, "spooled")
        return [spooled, Source(self._buffer, "queued")] if self._spool_broken else [spooled]

    def _wake(self) -> None:
        self._wake_sender.set()
        self._wake_writer.set()

    def _start_thread(self, target: Callable[[], None], role: str) -> threading.Thread:
        return threads.start(f"nat-{role[:5]}-{self.name}", self._keep_running, target, role)

    def _keep_running(self, run: Callable[[], None], role: str) -> None:
        """An unexpected exception in a thread is logged, and its work begins again."""
        sender = self._sender
        while True:
            try:
                return run()
            except BaseException as error:
                _log.exception("the %s thread of session log %s failed; it goes on", role, self.name)
                if role == "delivery":
                    sender.recover(error)
                    if sender is not self._sender:
                        return sender.close_sink()
            if self._ending.wait(_THREAD_RETRY_SECONDS):
                return None

    def _run_sender(self) -> None:
        sender = self._sender
        while sender is self._sender:
            self._wake_sender.clear()
            pause = sender.step()
            if self._stopping and self._is_over(pause):
                break
            self._ledger.notify()
            self._wake_sender.wait(self._pause(pause))
        sender.close_sink()

    def _is_over(self, pause: float | None) -> bool:
        """The log stops, and nothing waits, or nothing can be tried before the deadline."""
        left = self._time_left()
        if not self._ledger.waiting or left <= 0 or (pause is not None and pause > left):
            return True
        failing = self._sender.progress.state == "Failed" or not self._sender.target.target.available
        is_spooled = self._spool is not None and not self._ledger.counters()["queued"]
        return bool(pause) and failing and is_spooled

    def _pause(self, pause: float | None) -> float | None:
        if not self._stopping:
            return pause
        left = max(0.0, self._time_left())
        return left if pause is None else min(pause, left)

    def _time_left(self) -> float:
        return math.inf if self._deadline is None else self._deadline - self._clock()

    def _run_writer(self) -> None:
        while True:
            self._wake_writer.clear()
            is_done = self._persist()
            if self._stopping and (is_done or self._spool_broken):
                break
            self._wake_writer.wait(None if is_done else _SPOOL_RETRY_SECONDS)
