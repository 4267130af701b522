"""Captures in the classic pcap format (libpcap-savefile(5)), read and written as Ethernet frames."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .durable import open_regular
from .errors import Error
from .redaction import show_text

_MAGIC = {0xA1B2C3D4: 1_000, 0xA1B23C4D: 1}  # what the file's fractions of a second are worth, in ns
_LINKS = {1: 0, 12: 14, 101: 14, 228: 14}  # link type: bytes of the Ethernet header to put in front (raw IPv4: 14)
_ETHERNET = bytes(12) + b"\x08\x00"
_MAX_FRAME = 262_144  # bytes; libpcap's own bound


class CaptureError(Error, ValueError):
    """A file that is not a classic pcap capture, or a damaged one."""


class Packet(NamedTuple):
    """time_ns: since 1970. frame: Ethernet; what the capture cut off (snap length) is filled with zeros."""

    time_ns: int
    frame: bytes


def read(path: Path) -> Iterator[Packet]:
    """The packets of a capture, in its order, one at a time: a few bytes of a file can claim many.

    Raises CaptureError, at the packet that is damaged; UntrustedFileError: not a regular file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        order, fraction_ns, prefix = _read_header(path, file.read(24))
        record = struct.Struct(order + "IIII")
        number = 0
        while head := file.read(record.size):
            number += 1
            if len(head) < record.size:
                raise CaptureError(f"{show_text(str(path))}: packet {number}: the file ends inside its header")
            seconds, fraction, kept, original = record.unpack(head)
            if kept > original or original > _MAX_FRAME:
                raise CaptureError(
                    f"{show_text(str(path))}: packet {number}: length {kept} of {original}; allowed is {_MAX_FRAME} bytes"
                )
            data = file.read(kept)
            if len(data) < kept:
                raise CaptureError(
                    f"{show_text(str(path))}: packet {number}: the file ends after {len(data)} of {kept} bytes"
                )
            yield Packet(seconds * 1_000_000_000 + fraction * fraction_ns, prefix + data.ljust(original, b"\0"))


def _read_header(path: Path, header: bytes) -> tuple[str, int, bytes]:
    """Byte order, nanoseconds of a fraction, what goes in front of each packet."""
    for order in "<>":
        if len(header) == 24 and (fraction_ns := _MAGIC.get(struct.unpack_from(order + "I", header)[0])):
            link = struct.unpack_from(order + "I", header, 20)[0] & 0x0FFFFFFF  # above: a check sequence's length
            if link not in _LINKS:
                raise CaptureError(
                    f"{show_text(str(path))}: link type {link}; allowed are 1 (Ethernet), 12, 101 and 228 (raw IP)"
                )
            return order, fraction_ns, _ETHERNET[: _LINKS[link]]
    hint = " (pcapng: convert it with `editcap -F pcap`)" if header[:4] == b"\x0a\x0d\x0d\x0a" else ""
    raise CaptureError(f"{show_text(str(path))}: not a classic pcap capture{hint}")


def write(path: Path, packets: Iterable[Packet]) -> int:
    """Write Ethernet frames with times in nanoseconds; -> how many."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, _MAX_FRAME, 1))
        count = 0
        for packet in packets:
            seconds, fraction = divmod(packet.time_ns, 1_000_000_000)
            file.write(struct.pack("<IIII", seconds, fraction, len(packet.frame), len(packet.frame)) + packet.frame)
            count += 1
    return count
