"""Recovery of a spool after a crash: whole frames are found again, damage is set aside and counted."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from natcore.dtypes import RECORD
from natcore.errors import ConfigurationError, UntrustedFileError
from natcore.internal.files import open_private, read_private, remove, replaced, set_aside, sync_folder
from natcore.internal.redaction import printable, show_text
from natcore.sessionlog.gaps import Span
from natcore.sessionlog.spool.format import (
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    ROWS,
    SEGMENT_MAGIC,
    FrameHeader,
    Identity,
    Mark,
    decode_frame_header,
    decode_payload,
    decode_segment_header,
    newer_version,
)
from natcore.sinks.base import Records

_log = logging.getLogger(__name__)
SEGMENT_SUFFIX = ".segment"
DAMAGED_SUFFIX = ".damaged"
FOREIGN_SUFFIX = ".foreign"


@dataclass(slots=True)
class Segment:
    """A file of frames. size: synced bytes. rows_left: rows not yet acknowledged.

    read_offset, read_rows: the frame to read next, and how many of its rows have been taken. span: of all its rows.
    """

    number: int
    path: Path
    identity: Identity
    size: int
    rows_left: int
    read_offset: int
    read_rows: int = 0
    dropped: bool = False
    span: Span | None = None

    def add(self, records: Records) -> None:
        """Widen the segment's span by rows that are in the file."""
        span = Span.of(records)
        if self.span is None:
            self.span = span
        else:
            self.span.widen(span)


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"{number:010d}{SEGMENT_SUFFIX}"


@dataclass(slots=True)
class Recovered:
    """The segments that still hold rows, oldest first; the damaged rows; by run, a number behind its last row."""

    segments: list[Segment]
    damaged_rows: int
    next_numbers: dict[str, int]
    set_aside: int = 0  # files that are not a spool's, or cannot be trusted


def recover(folder: Path, mark: Mark | None) -> Recovered:
    """Return what the folder holds.

    A segment stays as it is: nothing is appended to one that is found. The damaged bytes are copied beside it once,
    and counted when they are copied, so that a second start does not count them again.
    """
    found = Recovered([], 0, {})
    for path in sorted(folder.glob(f"*{SEGMENT_SUFFIX}")):
        number = segment_number(path)
        if number is None:
            _set_aside_file(path, "its name is not a segment's", found)
            continue
        if mark is not None and number < mark.segment:
            remove(path)  # delivered; the process died before it removed it
            continue
        try:
            data = read_private(path)
        except UntrustedFileError as error:
            _set_aside_file(path, str(error), found)
            continue
        if version := newer_version(data, SEGMENT_MAGIC):
            raise ConfigurationError(
                f"{show_text(str(path))}: the segment must have version {SEGMENT_MAGIC[7:].decode()}, got {version}: a later "
                "natcore wrote it; let that natcore deliver it, or give the log another spool"
            )
        segment, lost = _recover_segment(path, data, number, mark if mark and mark.segment == number else None)
        found.damaged_rows += lost
        if segment is not None and segment.span is not None:
            run = segment.identity.run
            found.next_numbers[run] = max(found.next_numbers.get(run, 0), segment.span.last_number + 1)
        if segment is not None and segment.rows_left:
            found.segments.append(segment)
        else:
            remove(path)
    sync_folder(folder)
    return found


def segment_number(path: Path) -> int | None:
    """Return a segment's number; None: the name is not a segment's."""
    stem = path.name.removesuffix(SEGMENT_SUFFIX)
    return int(stem) if len(stem) == 10 and stem.isascii() and stem.isdigit() else None


def _set_aside_file(path: Path, why: str, found: Recovered) -> None:
    """Rename the file, so that the log starts; it stays beside the segments."""
    aside = set_aside(path, FOREIGN_SUFFIX)
    found.set_aside += 1
    _log.warning("%s: %s; it is set aside as %s", path, printable(why), aside.name)


def _recover_segment(path: Path, data: bytes, number: int, mark: Mark | None) -> tuple[Segment | None, int]:
    if not data:
        return None, 0  # the process died while it made the file
    decoded = decode_segment_header(data)
    identity, start = decoded or (None, 0)
    offset, taken = (mark.offset, mark.rows) if mark else (start, 0)
    segment = Segment(number, path, identity, len(data), -taken, offset, taken) if identity else None
    damage: list[bytes] = []
    damaged_rows = 0
    for at, header, records, end in scan(data, start):
        if segment is not None and records is not None:
            if header is not None and header.type == ROWS:
                segment.add(records)
                segment.rows_left += len(records) if at >= offset else 0
        elif at >= offset:
            damage.append(data[at:end])
            if header is not None and header.type != ROWS:
                _log.warning("%s: a frame of type %d at %d, which this version does not know", path, header.type, at)
            elif header is not None:
                damaged_rows += header.rows
            else:
                damaged_rows += max(0, end - at - FRAME_HEADER_BYTES) // RECORD.itemsize
    lost = _set_aside(path, b"".join(damage) if segment else data, damaged_rows) if damage or not segment else 0
    if segment is not None:
        segment.rows_left = max(0, segment.rows_left)
    return segment, lost


def _set_aside(path: Path, damage: bytes, rows: int) -> int:
    """Keep the damaged bytes beside the segment; -> rows to count as lost, 0 where that was done before."""
    aside = path.with_suffix(DAMAGED_SUFFIX)
    if aside.exists():
        return 0
    with replaced(aside) as file:
        file.write(damage)
    _log.warning("%s: %d damaged bytes (%d rows) are set aside in %s", path, len(damage), rows, aside.name)
    return rows


def scan(data: bytes | memoryview, offset: int) -> Iterator[tuple[int, FrameHeader | None, Records | None, int]]:
    """Yield (start, header, rows, end) of each frame behind offset, and of each damaged stretch (header None).

    rows: None where the frame is torn or damaged.
    """
    while offset < len(data):
        header = decode_frame_header(data[offset : offset + FRAME_HEADER_BYTES])
        if header is not None:
            payload_start, end = offset + FRAME_HEADER_BYTES, min(len(data), offset + header.total_bytes)
            yield offset, header, decode_payload(header, data[payload_start:end]), end
        else:
            end = next_header(data, offset + 1)
            yield offset, None, None, end
        offset = end


def next_header(data: bytes | memoryview, offset: int) -> int:
    """Return the start of the next whole frame header, at or behind offset; the data's end if there is none."""
    data = bytes(data)
    while (found := data.find(FRAME_MAGIC, offset)) >= 0:
        if decode_frame_header(data[found : found + FRAME_HEADER_BYTES]) is not None:
            return found
        offset = found + 1
    return len(data)


def read_range(path: Path, offset: int, length: int) -> bytes:
    """Return the bytes, fewer at the end of the file; none if the disk fails (they count as damaged then)."""
    try:
        descriptor = open_private(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        _log.error("%s: %s", path, error)
        return b""
