"""The sender delivers one log's rows from its stores to one sink: the work of a delivery thread, step by step."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from natcore.config import DeliveryPolicy
from natcore.dtypes import GAP, WINDOW, chosen, is_event, is_fact, is_of_block, redacted
from natcore.errors import DeliveryError
from natcore.sessionlog.buffer import Store
from natcore.sessionlog.dead_letter import DeadLetters
from natcore.sessionlog.delivery import (
    Answer,
    Attempt,
    Delivered,
    Destination,
    Disposal,
    Progress,
    Refused,
    Wait,
    destination_of,
)
from natcore.sessionlog.ledger import Ledger, Place
from natcore.sinks.base import BaseSink, Batch, Receipt, Records, Sink

if TYPE_CHECKING:
    from natcore.sessionlog.row_labels import RowLabels

_log = logging.getLogger(__name__)
_BUSY_SECONDS = 0.05  # the spool's writer has the rows in hand
_ACTIONS = ("backoff", "unavailable", "split", "reject")


def attribute(sink: object, name: str) -> Any:
    """Return the sink's attribute, or the default of a sink without it."""
    if name == "destination" and not hasattr(sink, name):
        return {}
    return getattr(sink, name, getattr(BaseSink, name, None))


@dataclass(frozen=True, slots=True)
class Source:
    """A store, and its rows' place in the ledger."""

    store: Store
    place: Place


class Sender:
    """Steps: open the sink, wait for a batch, deliver it, settle the answer.

    sources: stores in the order in which they are emptied. One thread calls `step`; the others are safe anywhere.
    redact: rows lose their destinations. clock: seconds, any origin.
    `changed`: called when a step is worth while before its time.
    """

    def __init__(
        self,
        sink: Sink,
        sources: Callable[[], list[Source]],
        ledger: Ledger,
        policy: DeliveryPolicy,
        dead_letters: DeadLetters | None,
        *,
        clock: Callable[[], float],
        chance: random.Random,
        changed: Callable[[], None],
        redact: bool = False,
        blocks_alone: bool = False,
        refusals: bool = False,
        labels: RowLabels | None = None,
    ) -> None:
        self.sink = sink
        self.delivery_type: str = attribute(sink, "delivery_type")
        self.destination: dict[str, str] = dict(attribute(sink, "destination"))
        self.batch_rows: int = attribute(sink, "batch_rows") or policy.batch
        seconds = attribute(sink, "batch_seconds")
        self._linger: float = policy.linger if seconds is None else seconds
        self._takes_events: bool = attribute(sink, "events")
        self._takes_gaps: bool = attribute(sink, "gaps")
        self._takes_blocks: bool = attribute(sink, "blocks")
        self._blocks_alone = blocks_alone
        self.takes_refusals = bool(refusals and attribute(sink, "refusals"))
        self._sources = sources
        self._ledger = ledger
        self._policy = policy
        self._dead_letters = dead_letters
        self._clock = clock
        self._chance = chance
        self._changed = changed
        self._redact = redact
        self._labels = labels
        key = (self.delivery_type, *sorted(self.destination.items())) if self.destination else None
        self.target: Destination = destination_of(key)
        self.target.watch(changed)
        self.progress = Progress(limit=self.batch_rows)
        self._opened = self._tried_to_open = False
        self._proven = False  # the destination has answered this sink
        self._waiting_since: float | None = None
        # Rows of the batch that failed: it is sent again as it was, since its answer alone may have been lost, and a
        # receiver knows its rows again by the batch's first number and their position.
        self._again = 0
        self._labelled: Batch | None = None  # the batch in hand, or that failed, with its labels
        self._unlabelled = 0  # rows of it of which these could not be asked
        self._hurried = self._retried = False
        self._held: Source | None = None
        self._testing = False
        self._abandoned = False
        self._lock = threading.Lock()  # the sources' batch in hand, and being abandoned
        self._reported: set[str] = set()

    def hurry(self, hurried: bool = True) -> None:
        """Set whether to deliver at once, without waiting for a batch to fill."""
        self._hurried = hurried

    def retry(self) -> None:
        """End the pause after a failure, at the next step; from any thread."""
        self._retried = True

    @property
    def takes_facts(self) -> bool:
        """Whether the sink takes rows about the log itself."""
        return bool(attribute(self.sink, "facts"))

    @property
    def takes_all(self) -> bool:
        """Whether the log has sessions' rows of every kind: then a missing number is a missing row."""
        return self._takes_events and self._takes_gaps and not self._blocks_alone

    def select(self, records: Records) -> Records:
        """Return the rows of RECORD (n,) that the sink takes, redacted if need be."""
        if self._redact:
            records = redacted(records)
        if self.takes_all and self.takes_facts and self._takes_blocks and self.takes_refusals:
            return records
        kinds = records["kind"]
        wanted = kinds < GAP if self._takes_events else kinds == WINDOW
        if self._blocks_alone:
            wanted[:] = False
        if self._takes_gaps:
            wanted |= kinds == GAP
        if self.takes_facts:
            wanted |= is_fact(records)
        if self._takes_blocks:
            wanted |= is_of_block(records)
        if self.takes_refusals:
            wanted |= is_event(records)
        return chosen(records, wanted)

    def step(self) -> float | None:
        """Make one attempt if it is time; -> seconds until the next step is worth while, None: until `changed`."""
        now = self._clock()
        if self._retried:
            self._retried = False
            self.progress = replace(self.progress, not_before=-math.inf)
            self.target.retry(now)
        sources = [source for source in self._sources() if source.store.rows]
        waiting = sum(source.store.rows for source in sources)
        pause = self._pause_to_fill(waiting, now)
        if pause is not None and pause > 0:
            return pause
        action = self.target.decide(self.progress, bool(waiting), now, opening=not self._tried_to_open)
        if isinstance(action, Wait):
            return None if action.until is None else max(0.0, action.until - now)
        self._tried_to_open = True
        if not self._attempt(sources[0] if sources else None, action):
            return _BUSY_SECONDS
        return 0.0 if self._sources_wait() else None

    def _sources_wait(self) -> bool:
        return any(source.store.rows for source in self._sources())

    def _pause_to_fill(self, waiting: int, now: float) -> float | None:
        """Return the seconds until the batch is due; None: no rows wait."""
        if not waiting:
            self._waiting_since = None
            return None
        if self._waiting_since is None:
            self._waiting_since = now
        if waiting >= self.progress.limit or self._hurried or self._again:
            return 0.0
        return self._waiting_since + self._linger - now

    def _attempt(self, source: Source | None, action: Attempt) -> bool:
        """-> False: another thread holds the rows."""
        batch = None
        with self._lock:
            if self._abandoned:
                return True
            if source is not None:
                batch = self._take(source, min(action.limit, self._again or action.limit))
                self._held = source if batch is not None else None
            wanted = self._wanted(batch)
            if source is not None and wanted is None:
                return self._skip(source, batch, action)
            self._testing = action.test
        answer, receipt = self._deliver(wanted, len(batch) if batch is not None else 0)
        with self._lock:
            if self._abandoned:
                return True  # too late: the rows went back, and the test was given up
            self._testing = False
            self.progress, disposal = self.target.settle(
                self.progress, answer, tested=action.test, now=self._clock(), policy=self._policy,
                largest=self.batch_rows, jitter=self._chance.random(),
            )  # fmt: skip
            if batch is not None:
                self._dispose(batch, answer, disposal, receipt)
        if isinstance(answer, Delivered):
            self._waiting_since = None
        return True

    def _take(self, source: Source, limit: int) -> Batch | None:
        batch = source.store.take(limit)
        if batch is None or not self._redact:
            return batch
        return Batch(batch.instance, batch.vpc_id, batch.run, redacted(batch.records))  # an earlier run's may not be

    def _wanted(self, batch: Batch | None) -> Batch | None:
        """Return the batch's rows that the sink takes; a spool may hold rows for another sink."""
        if batch is None:
            return None
        wanted = self.select(batch.records)
        return Batch(batch.instance, batch.vpc_id, batch.run, wanted) if len(wanted) else None

    def _skip(self, source: Source, batch: Batch | None, action: Attempt) -> bool:
        if action.test:
            self.target.cancel_test()
        if batch is None:
            return False
        self._dispose(batch, Delivered(len(batch)), "acknowledge", None)
        return True

    def _deliver(self, batch: Batch | None, rows: int) -> tuple[Answer, Receipt | None]:
        try:
            if not self._opened:
                self._proven = _optional(self.sink, "open", nothing=False) is not False
                self._opened = True
            receipt = self.sink.deliver(self._with_labels(batch)) if batch is not None else None
            self._proven = self._proven or batch is not None
        except DeliveryError as error:
            action = error.action if error.action in _ACTIONS else "backoff"
            return Refused(rows, error.code, error.message, action, error.retry_after), None
        except BaseException as error:  # of a sink that ends threads, or a task of its own: it ends nothing here
            self._report(error)
            return Refused(rows, type(error).__name__, str(error)), None
        self._reported.clear()
        return Delivered(rows, self._proven), receipt if isinstance(receipt, Receipt) else None

    def _with_labels(self, batch: Batch) -> Batch:
        """Return the batch with its labels; one that is sent again has those of the first time."""
        if self._labels is None:
            return batch
        known = self._labelled
        if self._unlabelled or known is None or not _begins_with(known, batch):
            labels, self._unlabelled = self._labels.of(batch)
            known = self._labelled = replace(batch, labels=labels)
        assert known.labels is not None
        return replace(batch, labels=known.labels[: len(batch)])

    def _report(self, error: BaseException) -> None:
        """Log each kind of unexpected error once, with its traceback, until a delivery succeeds."""
        if type(error).__name__ not in self._reported:
            self._reported.add(type(error).__name__)
            _log.error("a delivery to %s %s failed", self.delivery_type, self.destination, exc_info=error)

    def _dispose(self, batch: Batch, answer: Answer, disposal: Disposal, receipt: Receipt | None) -> None:
        source, self._held = self._held, None
        assert source is not None
        rows, place = len(batch), source.place
        self._again = rows if disposal == "keep" else 0
        if disposal == "keep":
            source.store.put_back()
            return
        unlabelled, self._unlabelled, self._labelled = self._unlabelled, 0, None
        if disposal == "set-aside":
            assert isinstance(answer, Refused)
            if self._set_aside(batch, answer):
                self._ledger.move(rows, place, "dead_letter")
            else:
                self._ledger.lose(rows, place, "rejected")
        else:
            wanted = len(self.select(batch.records))
            self._ledger.withhold(rows - wanted, place)
            self._ledger.add_bytes(*(receipt or Receipt(0, 0)))
            self._ledger.add_unlabelled(unlabelled)
            self._ledger.move(wanted, place, "delivered")
        source.store.acknowledge()

    def _set_aside(self, batch: Batch, answer: Refused) -> bool:
        try:
            return self._dead_letters is not None and self._dead_letters.add(batch, answer.code, answer.message)
        except OSError as error:
            _log.error("rows that were refused (%s) could not be set aside: %s", answer.code, error)
            return False

    def abandon(self) -> None:
        """Take the held batch back from a delivery that does not return; its answer will be ignored."""
        with self._lock:
            self._abandoned = True
            if self._held is not None:
                self._held.store.put_back()
                self._held = None
            if self._testing:
                self.target.give_up_test(self._clock(), self._policy)
        self.target.unwatch(self._changed)

    def recover(self, error: BaseException) -> None:
        """Handle an unexpected error of a step: the held rows wait again, and the status says so."""
        with self._lock:
            if self._abandoned:
                return
            if self._held is not None:
                self._held.store.put_back()
                self._held = None
            tested, self._testing = self._testing, False
            if tested:
                self.target.give_up_test(self._clock(), self._policy)
            self.progress, _ = self.target.settle(
                self.progress, Refused(0, type(error).__name__, str(error)), tested=False, now=self._clock(),
                policy=self._policy, largest=self.batch_rows, jitter=self._chance.random(),
            )  # fmt: skip

    @property
    def has_answer(self) -> bool:
        """Whether the sink is open, or the destination has said why not."""
        return self._opened or self.progress.state != "Modifying"

    def close_sink(self) -> None:
        """Close the sink, in the delivering thread, after its last step."""
        try:
            _optional(self.sink, "close")
        except BaseException as error:
            _log.error("closing %s %s failed", self.delivery_type, self.destination, exc_info=error)


def _begins_with(known: Batch, batch: Batch) -> bool:
    """Return whether the batch is the first rows of one that is known."""
    is_of_run = (known.instance, known.run) == (batch.instance, batch.run)
    return is_of_run and known.records[: len(batch)].tobytes() == batch.records.tobytes()


def _optional(sink: object, name: str, nothing: object = None) -> object:
    """Call the sink's method, or return `nothing` if the sink has none."""
    method = getattr(sink, name, None)
    return nothing if method is None else method()
