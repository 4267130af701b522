"""The format of a saved state: a header, and sections of rows, each with a checksum (docs/state-format.md).

A reader believes nothing: lengths are compared with what is there, checksums before anything is used.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from natcore.errors import StateError
from natcore.internal.redaction import show
from natcore.state.rows import OF_WORKER, SECTIONS

MAGIC = b"NATCORE-STATE\r\n\0"
VERSION = 2  # 1 was development's
SETTINGS = "settings"  # the section of the gateway's arguments and entries, as JSON
ALIGNMENT = 64  # of each section
HEADER = struct.Struct("<16sIIQ28sI")  # magic, version, sections, bytes of the file, natcore's version, CRC-32
SECTION = struct.Struct("<32sIIQI8xI")  # name, worker, bytes of a row, rows, CRC-32 of the rows, CRC-32
MOST_WORKERS = 64
_ROW_BYTES = {SETTINGS: 1, **{name: dtype.itemsize for name, dtype in SECTIONS}}

Key = tuple[str, int]  # a section's name and its worker, 0 for those of the gateway
Bytes = NDArray[np.uint8]


class Saved(NamedTuple):
    """A state as it was read: the version of natcore that wrote it, its sections, and how many workers it had."""

    writer: str
    sections: Mapping[Key, Bytes]
    workers: int


def written(sections: Mapping[Key, Bytes], writer: str) -> Iterator[memoryview]:
    """Yield the parts of a file, in order. sections: uint8 (bytes,), whole rows; writer: natcore's version."""
    parts: list[memoryview] = []
    for (name, worker), rows in sections.items():
        data = np.ascontiguousarray(rows).data.cast("B") if len(rows) else memoryview(b"")
        padding = memoryview(bytes(-len(data) % ALIGNMENT))
        total = zlib.crc32(padding, zlib.crc32(data))
        head = SECTION.pack(name.encode(), worker, _ROW_BYTES[name], len(data) // _ROW_BYTES[name], total, 0)[:-4]
        parts += [memoryview(head + zlib.crc32(head).to_bytes(4, "little")), data, padding]
    whole = HEADER.size + sum(len(part) for part in parts)
    head = HEADER.pack(MAGIC, VERSION, len(sections), whole, writer.encode()[:28], 0)[:-4]
    yield memoryview(head + zlib.crc32(head).to_bytes(4, "little"))
    yield from (part for part in parts if len(part))


def read(data: Bytes, where: str) -> Saved:
    """Return the sections of a file's bytes, without a copy. where: the file, for messages.

    Raises StateError: it is no state, is of a newer version, or is damaged.
    """
    writer, count = read_header(data[: HEADER.size].tobytes(), len(data), where)
    sections: dict[Key, Bytes] = {}
    at = HEADER.size
    for _ in range(count):
        key, rows, at = _section(data, at, where)
        if key in sections:
            raise StateError(f"{where} is damaged: section {show(key[0])} comes twice")
        sections[key] = rows
    if at != len(data):
        raise StateError(f"{where} is damaged: {len(data) - at} bytes follow its last section")
    workers = 1 + max((worker for _, worker in sections), default=0)
    for name, _ in SECTIONS:
        for worker in range(workers if name in OF_WORKER else 1):
            if (name, worker) not in sections:
                raise StateError(f"{where} is damaged: section {show(name)} of worker {worker} is missing")
    if (SETTINGS, 0) not in sections:
        raise StateError(f"{where} is damaged: section {show(SETTINGS)} is missing")
    return Saved(writer, sections, workers)


def read_header(head: bytes, size: int, where: str) -> tuple[str, int]:
    """Return the writer's version and how many sections follow. head: the file's first bytes; size: of the whole file.

    Raises StateError.
    """
    if head[: len(MAGIC)] != MAGIC[: len(head)] or len(head) < len(MAGIC):
        raise StateError(f"{where} is no saved state of natcore")
    if len(head) < HEADER.size:
        raise StateError(f"{where} is cut off in its header, after {len(head)} bytes")
    _, version, count, whole, writer, total = HEADER.unpack(head)
    if zlib.crc32(head[:-4]) != total:
        raise StateError(f"{where} is damaged: the checksum of its header differs")
    name = writer.rstrip(b"\0").decode("ascii", "replace")
    if version > VERSION:
        raise StateError(
            f"{where} has version {version} of the format, written by natcore {name}: this natcore reads version "
            f"{VERSION}"
        )
    if version < VERSION:
        raise StateError(f"{where} has version {version} of the format: this natcore reads version {VERSION}")
    if whole != size:
        raise StateError(f"{where} is cut off or longer than it was: {size:,} bytes, and {whole:,} were written")
    return name, count


def _section(data: Bytes, at: int, where: str) -> tuple[Key, Bytes, int]:
    """Return a section's name and worker, its rows' bytes, and where the next one begins."""
    head = data[at : at + SECTION.size].tobytes()
    if len(head) < SECTION.size or zlib.crc32(head[:-4]) != int.from_bytes(head[-4:], "little"):
        raise StateError(f"{where} is damaged: the checksum of a section's header differs, at byte {at:,}")
    raw, worker, row_bytes, rows, total, _ = SECTION.unpack(head)
    name = raw.rstrip(b"\0").decode("ascii", "replace")
    if name not in _ROW_BYTES or worker >= (MOST_WORKERS if name in OF_WORKER else 1) or row_bytes != _ROW_BYTES[name]:
        raise StateError(
            f"{where} is damaged: section {show(name)} of worker {worker}, {row_bytes} bytes a row, is unknown"
        )
    begin, size = at + SECTION.size, rows * row_bytes
    end = begin + size + -size % ALIGNMENT
    if end > len(data):
        raise StateError(f"{where} is cut off in section {show(name)}")
    if zlib.crc32(data[begin:end].data) != total:
        raise StateError(f"{where} is damaged: the checksum of section {show(name)} of worker {worker} differs")
    return (name, worker), data[begin : begin + size], end
