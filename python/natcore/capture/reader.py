"""Captures read in batches: the bytes of some thousand frames as they lie in the file, and arrays that tell where each one is.

A file is read in pieces of PIECE_BYTES, so memory does not grow with it. A loop of the core follows the lengths from frame to
frame; numpy takes what is in the headers for the whole batch. A damaged file gives its frames up to the damage, then the error.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from natcore.api.captured import block_starts, frame_starts
from natcore.errors import Error
from natcore.internal.files import open_regular
from natcore.internal.redaction import show_text

ETHERNET, COOKED, COOKED_2, RAW = 1, 113, 276, (12, 101, 228)  # link types: Linux cooked v1 and v2; bare IP packets
LINKS = {ETHERNET, COOKED, COOKED_2, *RAW}
PIECE_BYTES = 2 << 20
MAX_FRAME = 262_144  # captured bytes; libpcap's own bound
MAX_ORIGINAL = 1 << 20  # bytes that a frame had: more than any offload makes
UNKNOWN, INCOMING, OUTGOING = range(3)  # directions, seen from the machine that captured

_MAGIC = {0xA1B2C3D4: (1_000, 16), 0xA1B23C4D: (1, 16), 0xA1B2CD34: (1_000, 24)}  # ns of a fraction, bytes of a header
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 0x0A0D0D0A, 1, 2, 3, 6  # blocks of pcapng
_PACKETS = {_OLD_PACKET, _SIMPLE_PACKET, _PACKET}
_ORDER_MAGIC = 0x1A2B3C4D
_LARGEST_BLOCK = 16 << 20  # bytes
_PAD = 192  # bytes around a piece: headers may be looked for before the begin and after the end of a frame
_LATEST_NS = 1 << 62
_COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"\xfd7zX": "xz", b"BZh9": "bzip2"}
_COMMENT, _FLAGS = 1, 2  # options of a packet block
_IF_NAME, _IF_TSRESOL, _IF_TSOFFSET = 2, 9, 14


class CaptureError(Error, ValueError):
    """A file that is not a capture, or a damaged one."""


class CutShortError(CaptureError):
    """A capture that ends inside a frame, as one does when the program that wrote it was killed."""


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a capture.

    Attributes
    ----------
    number
        Its number in the file, from 0; a classic capture has one.
    name
        Its name; "": the file has none.
    link
        Its link type, such as 1 (Ethernet).
    """

    number: int
    name: str
    link: int
    snap_length: int = 0
    ticks: int = 1_000_000  # of a second
    offset_seconds: int = 0


@dataclass(slots=True)
class Batch:
    """Frames of a capture, in its order.

    Attributes
    ----------
    data
        uint8: the file's bytes, with some more before and after.
    start, captured, original
        int64 (count,): where each frame begins in `data`, how many of its bytes are there, and how many it had.
    time_ns
        int64 (count,): nanoseconds since 1970.
    interface
        int64 (count,): numbers of `interfaces`.
    direction
        uint8 (count,): UNKNOWN, INCOMING or OUTGOING, as the file tells.
    interfaces
        All of the file so far.
    comments
        By position in the batch.
    longer
        Positions in the batch of frames of which the file has more bytes than it says that they had: all were taken.
    """

    data: NDArray[np.uint8]
    start: NDArray[np.int64]
    captured: NDArray[np.int64]
    original: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    interface: NDArray[np.int64]
    direction: NDArray[np.uint8]
    interfaces: list[Interface]
    comments: dict[int, str] = field(default_factory=dict)
    longer: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.start)

    def records(self, dtype: np.dtype[Any], at: NDArray[np.int64]) -> NDArray[Any]:
        """Copy what lies at each offset of `data`, as values of a packed type of _PAD bytes at most behind a frame's end."""
        return _records(self.data, dtype, at)


def _records(data: NDArray[np.uint8], dtype: np.dtype[Any], at: NDArray[np.int64]) -> NDArray[Any]:
    everywhere: NDArray[Any] = np.ndarray((len(data) - dtype.itemsize + 1,), dtype, buffer=data.data, strides=(1,))
    return everywhere[at]


def batches(path: Path, *, piece_bytes: int = PIECE_BYTES) -> Iterator[Batch]:
    """Read a capture in batches, in the order of the file.

    Parameters
    ----------
    path
        A pcap or pcapng file; gzip's compression is undone.
    piece_bytes
        About how many bytes are read at a time, 1 or more.

    Yields
    ------
    Batch
        The next frames, one or more.

    Raises
    ------
    CaptureError
        Behind the frames before the damage: what is wrong, and where. CutShortError: the file ends inside a frame.
    UntrustedFileError
        It is not a regular file.
    """
    with ExitStack() as stack:
        file: BinaryIO = stack.enter_context(os.fdopen(open_regular(path), "rb"))
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            file = cast("BinaryIO", stack.enter_context(gzip.GzipFile(fileobj=file)))
        else:
            piece_bytes = min(piece_bytes, os.fstat(file.fileno()).st_size)
        source = _Source(path, file, piece_bytes)
        start = source.peek(4)
        if start in _COMPRESSED:
            raise source.damaged(f"compressed by {_COMPRESSED[start]}: decompress it first")
        is_ng = start == _SECTION.to_bytes(4, "big")  # the same in both byte orders
        yield from _blocks(source) if is_ng else _classic(source)


class _Source:
    """A file as pieces: what was not understood of one yet is at the begin of the next."""

    def __init__(self, path: Path, file: BinaryIO, piece_bytes: int) -> None:
        self._path = path
        self._file = file
        self._piece_bytes = max(piece_bytes, 1)
        self._bytes = np.zeros(2 * _PAD, np.uint8)
        self.piece = self._bytes.data  # as the next; what is between them, at and end is not understood yet
        self.at = self.end = _PAD
        self.ended = False
        self._problem: CaptureError | None = None  # behind the bytes that are there

    @property
    def left(self) -> int:
        return self.end - self.at

    def more(self, least: int) -> bool:
        """Read the next piece, so that at least so many bytes are there; False: the file ends before."""
        while self.left < least and not self.ended:
            left = self.left
            space = max(self._piece_bytes, least - left)
            fresh = np.empty(left + space + 2 * _PAD, np.uint8)  # a batch may still need the last one
            fresh[:_PAD] = 0
            fresh[_PAD : _PAD + left] = self._bytes[self.at : self.end]
            count = self._read(fresh.data[_PAD + left : _PAD + left + space])
            self.at, self.end = _PAD, _PAD + left + count
            fresh[self.end : self.end + _PAD] = 0
            self._bytes, self.piece = fresh, fresh.data
        return self.left >= least

    def _read(self, into: memoryview) -> int:
        """Fill it as far as the file goes; an error comes at the next call, behind the bytes before the damage."""
        if self._problem is not None:
            raise self._problem
        count = 0
        while count < len(into) and not self.ended and self._problem is None:
            try:
                fresh = self._file.readinto1(into[count:])  # type: ignore[attr-defined]
            except EOFError as error:
                self._problem = self.cut(f"not all of it can be decompressed: {error}")
            except (gzip.BadGzipFile, zlib.error) as error:
                self._problem = self.damaged(f"it cannot be decompressed any further: {error}")
            else:
                self.ended = not fresh
                count += fresh
        return count

    def peek(self, count: int) -> bytes:
        self.more(count)
        return bytes(self.piece[self.at : min(self.at + count, self.end)])

    def array(self) -> NDArray[np.uint8]:
        return self._bytes[: self.end + _PAD]

    def damaged(self, what: str) -> CaptureError:
        return CaptureError(f"{show_text(str(self._path))}: {what}")

    def cut(self, what: str) -> CaptureError:
        return CutShortError(f"{show_text(str(self._path))}: {what}")


# ---- pcap (libpcap-savefile(5)) --------------------------------------------------------------------------------------


def _classic(source: _Source) -> Iterator[Batch]:
    header = source.peek(24)
    order, fraction_ns, size, link = _classic_header(source, header)
    source.at += 24
    if link not in LINKS:
        raise source.damaged(
            f"link type must be 1 (Ethernet), 12, 101, 228 (raw IP), 113 or 276 (Linux cooked), got {link}"
        )
    heads = np.dtype([(name, order + "u4") for name in ("seconds", "fraction", "captured", "original")])
    interfaces = [Interface(0, "", link)]
    number = 0  # frames before this piece
    while source.more(size):
        at, error = _follow(source, order, size, number)
        if len(at):
            data = source.array()
            head = _records(data, heads, at)
            time_ns = head["seconds"].astype(np.int64) * 1_000_000_000 + head["fraction"].astype(np.int64) * fraction_ns
            count = len(at)
            batch, problem = _batch(
                source, data, at + size, head["captured"].astype(np.int64), head["original"].astype(np.int64), time_ns,
                np.zeros(count, np.int64), np.zeros(count, np.uint8), interfaces,
                lambda bad, first=number: f"packet {first + bad + 1}",
            )  # fmt: skip
            if len(batch):
                yield batch
            if problem is not None:
                raise problem
            number += count
        if error is not None:
            raise error
    if source.left:
        raise source.cut(f"packet {number + 1}: the file ends inside its header")


def _classic_header(source: _Source, header: bytes) -> tuple[str, int, int, int]:
    """Return the byte order, the nanoseconds of a fraction, the bytes of a frame's header and the link type."""
    for order in "<>":
        if len(header) == 24 and (found := _MAGIC.get(struct.unpack_from(order + "I", header)[0])):
            link = struct.unpack_from(order + "I", header, 20)[0] & 0x0FFFFFFF  # above: a check sequence's length
            return order, *found, link
    raise source.damaged("not a pcap or pcapng capture")


def _follow(source: _Source, order: str, size: int, number: int) -> tuple[NDArray[np.int64], CaptureError | None]:
    """Follow the lengths through the piece; -> where frames' headers begin, and the error that follows them."""
    starts = np.empty(source.left // size, np.int64)
    count, source.at = frame_starts(source.array(), source.at, source.end, size, order == ">", starts)
    starts = starts[:count]
    if source.left < size:
        return starts, None
    (kept,) = struct.unpack_from(order + "I", source.piece, source.at + 8)
    if kept > MAX_FRAME:
        what = f"packet {number + count + 1}: length must be at most {MAX_FRAME} bytes, got {kept}"
        return starts, source.damaged(what)
    if not count and not source.more(size + kept):  # a frame that is larger than the piece
        return starts, source.cut(f"packet {number + 1}: the file ends after {source.left - size} of {kept} bytes")
    return starts, None


def _batch(
    source: _Source, data: NDArray[np.uint8], start: NDArray[np.int64], captured: NDArray[np.int64],
    original: NDArray[np.int64], time_ns: NDArray[np.int64], interface: NDArray[np.int64], direction: NDArray[np.uint8],
    interfaces: list[Interface], name: Any,
) -> tuple[Batch, CaptureError | None]:  # fmt: skip
    """Return the frames up to the first one with lengths or a time that cannot be, and the error about that one."""
    longer = captured > original
    if longer.any():
        original = np.maximum(original, captured)
    wrong = (captured > MAX_FRAME) | (original > MAX_ORIGINAL) | (time_ns > _LATEST_NS) | (time_ns < -_LATEST_NS)
    problem = None
    count = len(start)
    if wrong.any():
        count = int(wrong.argmax())
        if abs(int(time_ns[count])) > _LATEST_NS:
            what = f"{name(count)}: its time is out of reach"
        else:
            what = (
                f"{name(count)}: length must be at most {MAX_FRAME} bytes of {MAX_ORIGINAL}, "
                f"got {captured[count]} of {original[count]}"
            )
        problem = source.damaged(what)
    found = Batch(
        data, start[:count], captured[:count], original[:count], time_ns[:count], interface[:count], direction[:count],
        interfaces, {}, set(np.flatnonzero(longer[:count]).tolist()),
    )  # fmt: skip
    return found, problem


# ---- pcapng (draft-ietf-opsawg-pcapng) -------------------------------------------------------------------------------


class _Section(NamedTuple):
    order: str
    first: int  # the number of its first interface in the file


def _blocks(source: _Source) -> Iterator[Batch]:
    """Sections, each with its own byte order and interfaces; the packets of the interfaces are mixed."""
    section = _Section("<", 0)
    interfaces: list[Interface] = []
    number, last_ns = 0, 0
    while source.more(12):
        head = source.peek(12)
        number += 1
        name = f"block {number}"
        if head[:4] == _SECTION.to_bytes(4, "big"):
            order = "<" if struct.unpack_from("<I", head, 8)[0] == _ORDER_MAGIC else ">"
            if struct.unpack_from(order + "I", head, 8)[0] != _ORDER_MAGIC:
                raise source.damaged(f"{name}: a section without a byte order")
            section = _Section(order, len(interfaces))
        kind, total = struct.unpack_from(section.order + "II", head)
        if total < 12 or total % 4 or total > _LARGEST_BLOCK:
            raise source.damaged(f"{name}: length must be a multiple of 4 between 12 and {_LARGEST_BLOCK}, got {total}")
        if not source.more(total):
            raise source.cut(f"{name}: it does not end as it began: the file ends after {source.left} of {total} bytes")
        if kind in _PACKETS:
            starts = _run(source, section.order, kind)
            batch, problem = _packets(source, section, kind, starts, interfaces, number, last_ns)
            if len(batch):
                last_ns = int(batch.time_ns[-1])
                yield batch
            if problem is not None:
                raise problem
            number += len(starts) - 1
            continue
        block = source.peek(total)
        if struct.unpack_from(section.order + "I", block, total - 4)[0] != total:
            raise source.damaged(f"{name}: it does not end as it began")
        if kind == _INTERFACE:
            if total < 20:
                raise source.damaged(f"{name}: too short for an interface")
            interfaces.append(_interface(source, name, section.order, block[8 : total - 4], len(interfaces)))
        source.at += total
    if source.left:
        raise source.cut(f"block {number + 1}: the file ends inside its header")


def _run(source: _Source, order: str, kind: int) -> NDArray[np.int64]:
    """Follow the lengths of the blocks of one kind that lie in this piece; -> where they begin: one at least."""
    starts = np.empty(source.left // 12, np.int64)
    count, source.at = block_starts(source.array(), source.at, source.end, kind, order == ">", starts)
    return starts[:count]


_OLD_OR_NEW = ("interface", "high", "low", "captured", "original")


def _packets(
    source: _Source,
    section: _Section,
    kind: int,
    at: NDArray[np.int64],
    interfaces: list[Interface],
    number: int,
    last_ns: int,
) -> tuple[Batch, CaptureError | None]:
    """Return the frames of blocks of one kind up to a damaged one, and the error about that one."""
    u4, data = np.dtype(section.order + "u4"), source.array()
    total = _records(data, u4, at + 4).astype(np.int64)
    first = 12 if kind == _SIMPLE_PACKET else 28  # of the frame's bytes in the block
    here = len(interfaces) - section.first
    short = total < first + 4
    if kind == _SIMPLE_PACKET:
        original = _records(data, u4, at + 8).astype(np.int64)
        which = np.zeros(len(at), np.int64)
        snap = interfaces[section.first].snap_length if here else 0
        captured = np.minimum(original, np.maximum(total - 16, 0))
        captured = np.minimum(captured, snap) if snap else captured
        time_ns = np.full(len(at), last_ns, np.int64)  # it has no time: the time before it holds
    else:
        head = _records(data, np.dtype([(name, u4) for name in _OLD_OR_NEW]), at + 8)
        which = head["interface"].astype(np.int64)
        if kind == _OLD_PACKET:
            which = which & 0xFFFF if section.order == "<" else which >> 16
        captured, original = head["captured"].astype(np.int64), head["original"].astype(np.int64)
        time_ns = np.zeros(len(at), np.int64)
    unknown = which >= here
    over = ~short & (first + captured + 4 > total)
    torn = _records(data, u4, at + np.maximum(total, 12) - 4) != total
    wrong = short | unknown | over | torn
    problem: CaptureError | None = None
    count = len(at)
    if wrong.any():
        count = int(wrong.argmax())
        name = f"block {number + count}"
        if torn[count]:
            problem = source.damaged(f"{name}: it does not end as it began")
        elif short[count] or unknown[count]:
            problem = source.damaged(f"{name}: too short, or of an interface that was not described")
        else:
            problem = source.damaged(f"{name}: {captured[count]} bytes of a packet in a block of {total[count] - 12}")
    which = which[:count] + section.first
    if kind != _SIMPLE_PACKET:
        for one in np.unique(which).tolist():
            chosen = which == one
            ticks = head["high"][:count][chosen].astype(np.uint64) << np.uint64(32) | head["low"][:count][chosen]
            time_ns[:count][chosen] = _nanoseconds(ticks, interfaces[one])
    batch, other = _batch(
        source, data, at[:count] + first, captured[:count], original[:count], time_ns[:count], which,
        np.zeros(count, np.uint8), interfaces, lambda bad: f"block {number + bad}",
    )  # fmt: skip
    if kind == _PACKET:
        _read_options(batch, section.order, total)
    return batch, other or problem


def _nanoseconds(ticks: NDArray[np.uint64], interface: Interface) -> NDArray[np.int64]:
    """Nanoseconds since 1970, at most just beyond _LATEST_NS."""
    per_second, offset = interface.ticks, interface.offset_seconds
    if per_second <= 1_000_000_000 and 0 <= offset < 1 << 32:
        seconds, rest = np.divmod(ticks, np.uint64(per_second))
        if not len(ticks) or int(seconds.max()) < 1 << 32:
            return (
                (seconds.astype(np.int64) + offset) * 1_000_000_000
                + rest.astype(np.int64) * 1_000_000_000 // per_second
            )  # fmt: skip
    most = _LATEST_NS + 1
    exact = (offset * 1_000_000_000 + each * 1_000_000_000 // per_second for each in ticks.tolist())
    return np.array([max(-most, min(each, most)) for each in exact], np.int64)


def _read_options(batch: Batch, order: str, total: NDArray[np.int64]) -> None:
    """Read the directions and the comments of packet blocks, where they have any."""
    padded = (batch.captured + 3) // 4 * 4
    at = batch.start + padded
    rest = total[: len(batch)] - 32 - padded
    some = np.flatnonzero(rest >= 8)
    if not len(some):
        return
    head = _records(
        batch.data, np.dtype([("code", order + "u2"), ("length", order + "u2"), ("value", order + "u4")]), at[some]
    )
    flagged = (head["code"] == _FLAGS) & (head["length"] == 4)
    batch.direction[some[flagged]] = _direction(head["value"][flagged])
    others = some[~flagged | (rest[some] > 12)]
    data = batch.data
    for position, begin, size in zip(others.tolist(), at[others].tolist(), rest[others].tolist(), strict=True):
        for code, value in _options(order, data[begin : begin + size].tobytes()):
            if code == _COMMENT:
                text = value.decode(errors="replace")
                known = batch.comments.get(position)
                batch.comments[position] = text if known is None else f"{known}\n{text}"
            elif code == _FLAGS and len(value) == 4:
                batch.direction[position] = _direction(np.frombuffer(value, order + "u4"))[0]


def _direction(flags: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Directions by the two lowest bits: 1 inbound, 2 outbound; 3 is none."""
    found = (flags & 3).astype(np.uint8)
    return np.where(found == 3, UNKNOWN, found).astype(np.uint8)


def _options(order: str, body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield code and value of options; what follows the end of options, or is not whole, is left out."""
    at = 0
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        if code == 0 or at + 4 + length > len(body):
            return
        yield code, body[at + 4 : at + 4 + length]
        at += 4 + (length + 3) // 4 * 4


def _interface(source: _Source, name: str, order: str, body: bytes, number: int) -> Interface:
    link, _, snap_length = struct.unpack_from(order + "HHI", body)
    label, ticks, offset_seconds = "", 1_000_000, 0
    for code, value in _options(order, body[8:]):
        if code == _IF_NAME:
            label = value.rstrip(b"\0").decode(errors="replace")
        elif code == _IF_TSRESOL and len(value) == 1:
            ticks = int((2 if value[0] & 128 else 10) ** (value[0] & 127))
        elif code == _IF_TSOFFSET and len(value) == 8:
            (offset_seconds,) = struct.unpack(order + "q", value)
    return Interface(number, label, link, snap_length, ticks, offset_seconds)
