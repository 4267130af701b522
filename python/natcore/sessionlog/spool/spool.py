"""The spool: a session log's rows on disk until their destination has acknowledged them.

Theory of operation
-------------------
The folder holds segments (append-only files of frames), a mark and a run file; format.py has every byte. One process
holds the folder, by a lock on the file `lock`.

Writing. `append` writes one frame of rows to the last segment and syncs it; only then do the rows count as spooled.
A new segment's folder entry is synced too. After a failed sync the segment is cut to what was synced and gets no more
frames: the kernel may have dropped the pages and reports the error once. The rows stay in memory for a new segment.

Reading. `take` returns the oldest rows and holds them; `acknowledge` or `put_back` ends that. Acknowledged rows move
the mark, which is not synced: after a power cut an old mark makes rows go out twice, never be lost. Sinks know a row
by its run and number. A segment is removed when all its rows are acknowledged.

Bound. Above `bound_bytes` the oldest segments are removed, counted as `spool_full`; a gap row takes their place and
is delivered first. It is on no disk: after a restart the missing row numbers tell as much.

Restart. recovery.py finds every whole frame behind the mark; damaged frames are counted as `damaged`. The run file has
a heartbeat and, after an orderly stop, an end mark. A run without an end mark has died: its gap row reaches from the
last heartbeat to the latest time at which a packet may have come.

Locks. One lock guards everything here. It is held over a sync, so packets' threads never take it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from natcore.dtypes import GAP_DIED, GAP_LOST, RECORD
from natcore.errors import ConfigurationError
from natcore.internal import file_lock
from natcore.internal.change_lock import after_fork
from natcore.internal.files import make_private, open_private, remove, remove_drafts, sync_folder, write_all
from natcore.internal.redaction import show
from natcore.sessionlog.gaps import PendingGap
from natcore.sessionlog.heartbeat import Beat
from natcore.sessionlog.ledger import Ledger
from natcore.sessionlog.spool.format import (
    FRAME_HEADER_BYTES,
    MARK_BYTES,
    Identity,
    Mark,
    decode_frame_header,
    decode_marks,
    decode_payload,
    encode_frame,
    encode_mark,
    encode_segment_header,
)
from natcore.sessionlog.spool.recovery import Segment, next_header, read_range, recover, segment_path
from natcore.sessionlog.spool.run import RunFile, gap_after, read_run
from natcore.sinks.base import Batch, Records, join

_log = logging.getLogger(__name__)
_LARGEST_SEGMENT_BYTES = 16 << 20
_LARGEST_FRAME_ROWS = 65_536


@dataclass(slots=True)
class _Held:
    """A held batch, and its place in the segment; without a segment: a gap row that is on no disk."""

    owner: Identity
    records: Records
    segment: Segment | None = None
    read_offset: int = 0
    read_rows: int = 0


class Spool:
    """A Store on disk. Its rows are `spooled` in the ledger; what is dropped is lost as `spool_full` or `damaged`.

    bound_bytes: of all segments. Raises ConfigurationError where another process holds the folder, OSError where
    the folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Identity, *, bound_bytes: int, ledger: Ledger) -> None:
        self.folder = Path(folder)
        self._identity = identity
        self._bound_bytes = bound_bytes
        self._segment_bytes = min(_LARGEST_SEGMENT_BYTES, bound_bytes // 4)
        self.frame_rows = min(_LARGEST_FRAME_ROWS, self._segment_bytes // 2 // RECORD.itemsize)
        self._ledger = ledger
        self._lock = threading.RLock()
        self._held: _Held | None = None
        self._pending_gaps: dict[Identity, PendingGap] = {}  # rows dropped since the last gap row, by run
        self._run: RunFile | None = None
        self._mark_descriptor = -1
        self._descriptor: int | None = None  # of the last segment, while it is written
        self.set_aside = 0  # files that were found here and are not a spool's, or cannot be trusted
        make_private(self.folder)
        self._lock_descriptor, self._locked_by = _lock_folder(self.folder), os.getpid()
        try:
            self._recover()
        except BaseException:
            self._close_descriptors()
            raise
        after_fork(self, Spool._close_descriptors)  # a child writes nothing, and keeps the folder from no later process

    def _recover(self) -> None:
        remove_drafts(self.folder)
        self._mark_descriptor = open_private(self.folder / "mark", os.O_RDWR)
        mark = decode_marks(os.pread(self._mark_descriptor, 2 * MARK_BYTES, 0))
        self._sequence = mark.sequence if mark else 0
        found = recover(self.folder, mark)
        self._segments, self._next_numbers = found.segments, found.next_numbers
        self.set_aside = found.set_aside
        last = max([segment.number for segment in self._segments], default=0)
        self._next_number = max(last, mark.segment if mark else 0) + 1
        left = [segment.span.end / 1e6 for segment in self._segments if segment.rows_left and segment.span]
        self._ledger.recover(self.rows + found.damaged_rows, min(left, default=None))
        self._ledger.lose(found.damaged_rows, "spooled", "damaged")

    def begin_run(self, beat: Beat, *, goes_on: bool = False) -> bool:
        """Fill the spool from now on; whether the run before died: then its gap row is appended. Raises OSError.

        goes_on: another process handed this run over: it has not died.
        """
        with self._lock:
            last = read_run(self.folder)
            if last is not None and goes_on:
                goes_on = last[0].run == self._identity.run and last[1].next_number <= beat.next_number
            has_died = last is not None and not last[1].ended and not goes_on
            if last is not None and has_died:
                owner, sign = last
                self._append_gap(owner, gap_after(sign, self._next_numbers.get(owner.run, 0), beat.wall))
            if self._run is not None:
                self._run.close()
            self._run = RunFile(self.folder, self._identity, beat)
            return has_died

    def note(self, beat: Beat) -> None:
        """Write a heartbeat; every row of a window that began before `beat.oldest` must have been appended."""
        with self._lock:
            if self._run is not None:
                self._run.note(beat)

    def end_run(self) -> None:
        """Write the end mark: every row is in the spool."""
        with self._lock:
            if self._run is not None:
                self._run.note(self._run.beat.end())

    def _append_gap(self, owner: Identity, row: Records) -> None:
        """Append the gap row in its own segment, since a segment holds one run's rows."""
        frame = encode_frame(row)
        self._free_space(len(frame))
        self._seal()
        self._write(owner, frame)
        self._seal()
        self._segments[-1].add(row)
        self._segments[-1].rows_left = 1
        self._ledger.add_gap("spooled", GAP_DIED)

    @property
    def rows(self) -> int:
        with self._lock:
            return sum(segment.rows_left for segment in self._segments) - self._held_rows() + len(self._pending_gaps)

    @property
    def size_bytes(self) -> int:
        """Without the lock, which is held over a sync: who only looks does not wait for a disk."""
        return sum(segment.size for segment in tuple(self._segments))

    def append(self, records: Records) -> None:
        """Make up to `frame_rows` queued rows durable: they are spooled when this returns, untouched if it raises."""
        frame = encode_frame(records)
        with self._lock:
            self._free_space(len(frame))
            segment = self._write(self._identity, frame)
            segment.add(records)
            segment.rows_left += len(records)
            self._ledger.move(len(records), "queued", "spooled")

    def _write(self, owner: Identity, frame: bytes) -> Segment:
        segment = self._segment_for(owner, len(frame))
        assert self._descriptor is not None
        try:
            write_all(self._descriptor, frame)
            os.fsync(self._descriptor)
        except OSError:
            # After a failed sync the pages are clean and prove nothing: the file gets no more, the rows, still
            # in memory, go to a new one.
            self._seal(cut_to=segment.size)
            raise
        segment.size += len(frame)
        return segment

    def take(self, limit: int) -> Batch | None:
        with self._lock:
            if self._pending_gaps:
                owner = next(iter(self._pending_gaps))
                self._held = _Held(owner, self._pending_gaps.pop(owner).take())
                return Batch(owner.instance, owner.vpc_id, owner.run, self._held.records)
            for segment in list(self._segments):
                begin = (segment.read_offset, segment.read_rows)
                records = self._read(segment, limit)
                if len(records):
                    owner = segment.identity
                    self._held = _Held(owner, records, segment, *begin)
                    return Batch(owner.instance, owner.vpc_id, owner.run, records)
                self._finish(segment)
            return None

    def acknowledge(self) -> None:
        with self._lock:
            held, self._held = self._held, None
            if held is None or held.segment is None or held.segment.dropped:
                return
            segment = held.segment
            segment.rows_left -= len(held.records)
            self._write_mark(segment)
            if segment.read_offset >= segment.size:
                self._finish(segment)

    def put_back(self) -> None:
        with self._lock:
            held, self._held = self._held, None
            if held is None:
                return
            if held.segment is None:
                self._add_to_gap(held.owner, held.records)
                self._ledger.drop_gaps(1, "spooled")
            elif held.segment.dropped:
                self._add_to_gap(held.owner, held.records)
                self._ledger.lose(len(held.records), "spooled", "spool_full")
            else:
                held.segment.read_offset, held.segment.read_rows = held.read_offset, held.read_rows

    def close(self) -> None:
        """Release the folder. Waiting rows stay in it for the next process. Idempotent."""
        with self._lock:
            if self._lock_descriptor < 0:
                return
            self.put_back()
            self._seal()
            self._ledger.drop_gaps(len(self._pending_gaps), "spooled")  # the missing numbers tell as much
            self._pending_gaps.clear()
            if self._run is not None:
                self._run.close()
            for segment in [segment for segment in self._segments if not segment.rows_left]:
                self._remove(segment)
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        mark, lock = self._mark_descriptor, self._lock_descriptor
        self._mark_descriptor = self._lock_descriptor = -1
        if mark >= 0:
            os.close(mark)
        if lock >= 0:
            file_lock.release(lock, self._locked_by)

    def _held_rows(self) -> int:
        held = self._held
        return len(held.records) if held is not None and held.segment is not None and not held.segment.dropped else 0

    def _read(self, segment: Segment, limit: int) -> Records:
        """Return the next rows of the segment, `limit` at most; damaged frames are skipped."""
        taken: list[Records] = []
        while limit > 0 and segment.read_offset < segment.size:
            header = decode_frame_header(read_range(segment.path, segment.read_offset, FRAME_HEADER_BYTES))
            if header is None:
                rest = read_range(segment.path, segment.read_offset, segment.size - segment.read_offset)
                found = next_header(rest, 1)
                segment.read_offset = segment.size if found >= len(rest) else segment.read_offset + found
                segment.read_rows = 0
                continue
            payload_at = segment.read_offset + FRAME_HEADER_BYTES
            payload = read_range(segment.path, payload_at, min(header.payload_bytes, segment.size - payload_at))
            records = decode_payload(header, payload)
            rows = np.empty(0, RECORD) if records is None else records[segment.read_rows : segment.read_rows + limit]
            segment.read_rows += len(rows)
            if records is None or segment.read_rows >= len(records):
                segment.read_offset += header.total_bytes
                segment.read_rows = 0
            taken.append(rows)
            limit -= len(rows)
        return join(taken)

    def _finish(self, segment: Segment) -> None:
        """Close a segment that is read to its end: the rows that it should still hold are damaged."""
        if segment.rows_left:
            _log.error("%s: %d rows are damaged", segment.path, segment.rows_left)
            self._ledger.lose(segment.rows_left, "spooled", "damaged")
            segment.rows_left = 0
        if not self._is_written(segment):
            self._remove(segment)

    def _is_written(self, segment: Segment) -> bool:
        return self._descriptor is not None and segment is self._segments[-1]

    def _free_space(self, needed_bytes: int) -> None:
        while self._segments and self.size_bytes + needed_bytes > self._bound_bytes:
            oldest = self._segments[0]
            if self._is_written(oldest):
                self._seal()
            kept = len(self._held.records) if self._held is not None and self._held.segment is oldest else 0
            lost = oldest.rows_left - kept
            if lost and oldest.span is not None:
                self._pending_gap_of(oldest.identity).add(lost, oldest.span)
            self._ledger.lose(lost, "spooled", "spool_full")
            oldest.dropped = True
            self._remove(oldest)

    def _add_to_gap(self, owner: Identity, records: Records) -> None:
        self._pending_gap_of(owner).add_records(records)

    def _pending_gap_of(self, owner: Identity) -> PendingGap:
        if owner not in self._pending_gaps:
            self._pending_gaps[owner] = PendingGap()
            self._ledger.add_gap("spooled", GAP_LOST)
        return self._pending_gaps[owner]

    def _segment_for(self, owner: Identity, needed_bytes: int) -> Segment:
        if self._descriptor is not None and self._segments[-1].size + needed_bytes > self._segment_bytes:
            self._seal()
        if self._descriptor is None:
            self._begin(owner)
        return self._segments[-1]

    def _begin(self, owner: Identity) -> None:
        path = segment_path(self.folder, self._next_number)
        header = encode_segment_header(owner)
        descriptor = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
        try:
            write_all(descriptor, header)
            os.fsync(descriptor)
            sync_folder(self.folder)
        except OSError:
            os.close(descriptor)
            remove(path)
            raise
        self._descriptor = descriptor
        self._segments.append(Segment(self._next_number, path, owner, len(header), 0, len(header)))
        self._next_number += 1

    def _seal(self, cut_to: int | None = None) -> None:
        """Write no more to the last segment. cut_to: bytes that are trusted."""
        if self._descriptor is None:
            return
        if cut_to is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, cut_to)
        os.close(self._descriptor)
        self._descriptor = None

    def _remove(self, segment: Segment) -> None:
        self._segments.remove(segment)
        with suppress(OSError):
            remove(segment.path)

    def _write_mark(self, segment: Segment) -> None:
        """Write the mark. It is not synced: a mark lost in a power cut sends rows again, and never loses one."""
        self._sequence += 1
        mark = Mark(self._sequence, segment.number, segment.read_offset, segment.read_rows)
        try:
            os.pwrite(self._mark_descriptor, encode_mark(mark), self._sequence % 2 * MARK_BYTES)
        except OSError as error:
            _log.warning("%s: %s; a restart would deliver again", self.folder / "mark", error)


def _lock_folder(folder: Path) -> int:
    descriptor = open_private(folder / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigurationError(
            f"spool must be a folder of one log alone, got {show(str(folder))}: another log or process holds it"
        ) from None
    return descriptor
