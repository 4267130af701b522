"""The byte format of a spool's files: segments of checksummed frames, the mark of delivered rows, the run.

segment   header: magic "NATCSPL1", u32 length, u32 crc32, then `length` bytes of JSON {instance, vpc_id, run};
          then frames.
frame     header (32 bytes): magic "NFRM", u32 crc32 of the rest of the header, u32 payload bytes, u32 crc32 of the
          payload, u8 type, 3 bytes zero, u32 rows, u64 number of the first row; then the payload, RECORD rows.
mark      two slots of 32 bytes, written in turn: u64 sequence, u32 segment, u32 rows of the frame delivered, u64
          offset of the frame, u32 zero, u32 crc32. The valid one with the higher sequence holds.
run       header: as a segment's, magic "NATCRUN2": the identity of the run; then two slots of 72 bytes, written in turn:
          u64 sequence, i64 oldest, i64 now, i64 wall, i64 made, i64 swept (microseconds since 1970: heartbeat.Beat),
          u64 next number, u64 facts, u32 1 when the run has ended, u32 crc32. The valid one with the higher sequence holds.
All little-endian. The magic's last digit is the format's version.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from natcore.dtypes import RECORD, copied
from natcore.internal.json_fields import read_fields
from natcore.sessionlog.heartbeat import Beat
from natcore.sinks.base import Records

SEGMENT_MAGIC = b"NATCSPL1"
RUN_MAGIC = b"NATCRUN2"
FRAME_MAGIC = b"NFRM"
ROWS = 1  # the only type so far; a reader passes over others
_SEGMENT_START = struct.Struct("<8sII")
_FRAME_REST = struct.Struct("<IIB3xIQ")
FRAME_HEADER_BYTES = 32
_MARK = struct.Struct("<QIIQI")
MARK_BYTES = 32
_BEAT = struct.Struct("<QqqqqqQQI")
BEAT_BYTES = 72


@dataclass(frozen=True, slots=True)
class Identity:
    """The run that a segment's rows belong to."""

    instance: str
    vpc_id: str
    run: str


@dataclass(frozen=True, slots=True)
class FrameHeader:
    payload_bytes: int
    payload_crc: int
    type: int
    rows: int
    first_number: int

    @property
    def total_bytes(self) -> int:
        return FRAME_HEADER_BYTES + self.payload_bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """The place up to which rows are delivered: before row `rows` of the frame at `offset` of `segment`."""

    sequence: int
    segment: int
    offset: int
    rows: int


def encode_segment_header(identity: Identity, magic: bytes = SEGMENT_MAGIC) -> bytes:
    text = json.dumps({"instance": identity.instance, "vpc_id": identity.vpc_id, "run": identity.run}).encode()
    return _SEGMENT_START.pack(magic, len(text), zlib.crc32(text)) + text


def decode_segment_header(data: bytes | memoryview, magic: bytes = SEGMENT_MAGIC) -> tuple[Identity, int] | None:
    """Return the identity and the bytes of the header; None: damaged, or not a file of this kind and version."""
    if len(data) < _SEGMENT_START.size:
        return None
    found, length, checksum = _SEGMENT_START.unpack_from(data)
    text = bytes(data[_SEGMENT_START.size : _SEGMENT_START.size + length])
    if found != magic or len(text) != length or zlib.crc32(text) != checksum:
        return None
    known = read_fields(text, Identity)
    return None if known is None else (known, _SEGMENT_START.size + length)


def newer_version(data: bytes | memoryview, magic: bytes) -> int | None:
    """Return the version of a file that a later natcore wrote; None: it is no such file."""
    version = bytes(data[7:8])
    is_newer = bytes(data[:7]) == magic[:7] and version.isdigit() and version > magic[7:]
    return int(version) if is_newer else None


def encode_frame(records: Records) -> bytes:
    """Return RECORD (n,), n >= 1, as a frame."""
    assert records.dtype == RECORD and records.itemsize == RECORD.itemsize  # equal fields may lie elsewhere
    payload = (records if records.flags.c_contiguous else copied(records)).view(np.uint8).data
    rest = _FRAME_REST.pack(len(payload), zlib.crc32(payload), ROWS, len(records), int(records["number"][0]))
    return b"".join((FRAME_MAGIC, struct.pack("<I", zlib.crc32(rest)), rest, payload))


def decode_frame_header(data: bytes | memoryview) -> FrameHeader | None:
    """Return the header at the start of `data`; None: there is none, or it is damaged."""
    if len(data) < FRAME_HEADER_BYTES or data[:4] != FRAME_MAGIC:
        return None
    rest = data[8:FRAME_HEADER_BYTES]
    if struct.unpack_from("<I", data, 4)[0] != zlib.crc32(rest):
        return None
    header = FrameHeader(*_FRAME_REST.unpack(rest))
    is_whole = header.type != ROWS or header.payload_bytes == header.rows * RECORD.itemsize
    return header if is_whole else None


def decode_payload(header: FrameHeader, payload: bytes | memoryview) -> Records | None:
    """Return the frame's rows; None: torn or damaged, or of a type without rows."""
    if header.type != ROWS or len(payload) != header.payload_bytes or zlib.crc32(payload) != header.payload_crc:
        return None
    return np.frombuffer(payload, RECORD)


def encode_mark(mark: Mark) -> bytes:
    body = _MARK.pack(mark.sequence, mark.segment, mark.rows, mark.offset, 0)
    return body + struct.pack("<I", zlib.crc32(body))


def decode_marks(data: bytes) -> Mark | None:
    """Return the valid mark; None: neither slot is intact."""
    found: list[Mark] = []
    for start in range(0, 2 * MARK_BYTES, MARK_BYTES):
        slot = data[start : start + MARK_BYTES]
        if len(slot) == MARK_BYTES and struct.unpack("<I", slot[-4:])[0] == zlib.crc32(slot[:-4]):
            sequence, segment, rows, offset, _ = _MARK.unpack(slot[:-4])
            found.append(Mark(sequence, segment, offset, rows))
    return max(found, key=lambda mark: mark.sequence, default=None)


def encode_beat(sequence: int, beat: Beat) -> bytes:
    body = _BEAT.pack(
        sequence, beat.oldest, beat.now, beat.wall, beat.made, beat.swept, beat.next_number, beat.facts, beat.ended
    )
    return body + struct.pack("<I", zlib.crc32(body))


def decode_beats(data: bytes) -> tuple[int, Beat] | None:
    """Return the valid slot and its sequence; None: neither is intact."""
    found: list[tuple[int, Beat]] = []
    for start in range(0, 2 * BEAT_BYTES, BEAT_BYTES):
        slot = data[start : start + BEAT_BYTES]
        if len(slot) == BEAT_BYTES and struct.unpack("<I", slot[-4:])[0] == zlib.crc32(slot[:-4]):
            sequence, oldest, now, wall, made, swept, number, facts, ended = _BEAT.unpack(slot[:-4])
            found.append((sequence, Beat(oldest, now, wall, number, bool(ended), made, swept, facts)))
    return max(found, key=lambda each: each[0], default=None)
