"""Captures as Ethernet frames: classic pcap (libpcap-savefile(5)) read and written, pcapng read."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from natcore.errors import Error
from natcore.internal.files import open_regular, replaced
from natcore.internal.redaction import show_text

_MAGIC = {0xA1B2C3D4: 1_000, 0xA1B23C4D: 1}  # what the file's fractions of a second are worth, in ns
_ETHERNET, _COOKED, _COOKED2, _RAW = 1, 113, 276, (12, 101, 228)  # link types: Linux cooked v1 and v2; bare IP packets
_LINKS = {_ETHERNET, _COOKED, _COOKED2, *_RAW}
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 0x0A0D0D0A, 1, 2, 3, 6  # blocks of pcapng
_ORDER_MAGIC = 0x1A2B3C4D
_LARGEST_BLOCK = 1 << 20  # bytes
_MAX_FRAME = 262_144  # bytes; libpcap's own bound


class CaptureError(Error, ValueError):
    """A file that is not a capture, or a damaged one."""


class Packet(NamedTuple):
    """A packet of a capture.

    Attributes
    ----------
    time_ns
        Nanoseconds since 1970.
    frame
        An Ethernet frame; what the capture cut off is filled with zeros.
    missing
        How many bytes the capture cut off.
    unknown
        A link type that is not understood; the frame is empty then. 0: it is.
    """

    time_ns: int
    frame: bytes
    missing: int = 0
    unknown: int = 0


def read(path: Path) -> Iterator[Packet]:
    """Read a capture's packets, in its order, one at a time.

    Parameters
    ----------
    path
        A pcap or pcapng file.

    Yields
    ------
    Packet
        The next one.

    Raises
    ------
    CaptureError
        At the packet that is damaged.
    UntrustedFileError
        It is not a regular file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        start = file.read(4)
        file.seek(0)
        is_ng = start == _SECTION.to_bytes(4, "big")  # the same in both byte orders
        yield from (_read_blocks if is_ng else _read_classic)(path, file)


def _read_classic(path: Path, file: BinaryIO) -> Iterator[Packet]:
    order, fraction_ns, link = _read_header(path, file.read(24))
    record = struct.Struct(order + "IIII")
    number = 0
    while head := file.read(record.size):
        number += 1
        if len(head) < record.size:
            raise _damaged(path, f"packet {number}: the file ends inside its header")
        seconds, fraction, kept, original = record.unpack(head)
        _check_lengths(path, f"packet {number}", kept, original)
        data = file.read(kept)
        if len(data) < kept:
            raise _damaged(path, f"packet {number}: the file ends after {len(data)} of {kept} bytes")
        yield _packet(seconds * 1_000_000_000 + fraction * fraction_ns, link, data, original)


def _read_header(path: Path, header: bytes) -> tuple[str, int, int]:
    """Return the byte order, the nanoseconds of a fraction and the link type."""
    for order in "<>":
        if len(header) == 24 and (fraction_ns := _MAGIC.get(struct.unpack_from(order + "I", header)[0])):
            link = struct.unpack_from(order + "I", header, 20)[0] & 0x0FFFFFFF  # above: a check sequence's length
            if link not in _LINKS:
                raise _damaged(
                    path,
                    f"link type must be 1 (Ethernet), 12, 101, 228 (raw IP), 113 or 276 (Linux cooked), got {link}",
                )
            return order, fraction_ns, link
    raise _damaged(path, "not a pcap or pcapng capture")


class _Interface(NamedTuple):
    link: int
    snap_length: int
    ticks: int  # of a second
    offset_seconds: int


def _read_blocks(path: Path, file: BinaryIO) -> Iterator[Packet]:
    """pcapng: sections, each with its own interfaces; the packets of the interfaces are mixed."""
    order, interfaces, number, last_ns = "<", list[_Interface](), 0, 0
    while head := file.read(12):
        number += 1
        name = f"block {number}"
        if len(head) < 12:
            raise _damaged(path, f"{name}: the file ends inside its header")
        if head[:4] == _SECTION.to_bytes(4, "big"):
            order, interfaces = "<" if struct.unpack_from("<I", head, 8)[0] == _ORDER_MAGIC else ">", []
            if struct.unpack_from(order + "I", head, 8)[0] != _ORDER_MAGIC:
                raise _damaged(path, f"{name}: a section without a byte order")
        kind, total = struct.unpack_from(order + "II", head)
        if total < 12 or total % 4 or total > _LARGEST_BLOCK:
            raise _damaged(path, f"{name}: length must be a multiple of 4 between 12 and {_LARGEST_BLOCK}, got {total}")
        block = head + file.read(total - 12)
        if len(block) < total or struct.unpack_from(order + "I", block, total - 4)[0] != total:
            raise _damaged(path, f"{name}: it does not end as it began")
        body = block[8 : total - 4]
        try:
            if kind == _INTERFACE:
                interfaces.append(_interface(order, body))
                continue
            if kind == _PACKET:
                which, high, low, kept, original = struct.unpack_from(order + "IIIII", body)
            elif kind == _OLD_PACKET:
                which, _, high, low, kept, original = struct.unpack_from(order + "HHIIII", body)
            elif kind == _SIMPLE_PACKET:
                (original,) = struct.unpack_from(order + "I", body)
                which, kept = 0, min(original, interfaces[0].snap_length or original, len(body) - 4)
            else:
                continue
            interface = interfaces[which]
        except (struct.error, IndexError):
            raise _damaged(path, f"{name}: too short, or of an interface that was not described") from None
        if kind != _SIMPLE_PACKET:  # it has no time: the time before it holds
            ticks = high << 32 | low
            last_ns = interface.offset_seconds * 1_000_000_000 + ticks * 1_000_000_000 // interface.ticks
        _check_lengths(path, name, kept, original)
        start = 4 if kind == _SIMPLE_PACKET else 20
        if start + kept > len(body):
            raise _damaged(path, f"{name}: {kept} bytes of a packet in a block of {len(body)}")
        yield _packet(last_ns, interface.link, body[start : start + kept], original)


def _interface(order: str, body: bytes) -> _Interface:
    link, _, snap_length = struct.unpack_from(order + "HHI", body)
    ticks, offset_seconds, at = 1_000_000, 0, 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        if code == 0:
            break
        if code == 9 and length == 1:  # if_tsresol
            exponent = body[at + 4] & 127
            ticks = int(2**exponent if body[at + 4] & 128 else 10**exponent)
        elif code == 14 and length == 8:  # if_tsoffset
            (offset_seconds,) = struct.unpack_from(order + "q", body, at + 4)
        at += 4 + (length + 3) // 4 * 4
    return _Interface(link, snap_length, ticks, offset_seconds)


def _packet(time_ns: int, link: int, data: bytes, original: int) -> Packet:
    """Return the packet as an Ethernet frame."""
    missing = original - len(data)
    data = data.ljust(original, b"\0")
    if link in _RAW:
        data = bytes(12) + (b"\x86\xdd" if data[:1] and data[0] >> 4 == 6 else b"\x08\x00") + data
    elif link == _COOKED:
        data = bytes(12) + data[14:]  # the protocol, and what follows
    elif link == _COOKED2:
        data = bytes(12) + data[:2] + data[20:]
    elif link != _ETHERNET:
        return Packet(time_ns, b"", missing, link)
    return Packet(time_ns, data, missing)


def _check_lengths(path: Path, name: str, kept: int, original: int) -> None:
    if kept > original or original > _MAX_FRAME:
        raise _damaged(path, f"{name}: length must be at most {_MAX_FRAME} bytes, got {kept} of {original}")


def _damaged(path: Path, what: str) -> CaptureError:
    return CaptureError(f"{show_text(str(path))}: {what}")


def write(path: Path, packets: Iterable[Packet]) -> int:
    """Write Ethernet frames into a pcap file, with times in nanoseconds.

    Parameters
    ----------
    path
        What is there is replaced when all is written; a link there is not followed.
    packets
        In any order.

    Returns
    -------
    int
        How many.
    """
    with replaced(path, private=False) as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, _MAX_FRAME, 1))
        count = 0
        for packet in packets:
            seconds, fraction = divmod(packet.time_ns, 1_000_000_000)
            file.write(struct.pack("<IIII", seconds, fraction, len(packet.frame), len(packet.frame)) + packet.frame)
            count += 1
    return count
