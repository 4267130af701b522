"""Captures as Ethernet frames: classic pcap (libpcap-savefile(5)) read and written, pcapng read."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from natcore.capture.reader import (
    COOKED,
    COOKED_2,
    ETHERNET,
    INCOMING,
    LINKS,
    MAX_FRAME,
    OUTGOING,
    RAW,
    UNKNOWN,
    Batch,
    Interface,
    batches,
)
from natcore.capture.reader import CaptureError as CaptureError
from natcore.internal.files import replaced

_COOKED_DIRECTION = {0: INCOMING, 1: INCOMING, 2: INCOMING, 4: OUTGOING}  # by the packet type (packet(7)); 3: unknown


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
    interface
        The name of the interface that captured it, or its number: in the file, or of Linux cooked v2 the system's.
    direction
        Seen from the machine that captured: 0 unknown, 1 incoming, 2 outgoing.
    comment
        What pcapng has with it.
    longer
        The capture has more bytes than it says that the packet had; all were taken.
    """

    time_ns: int
    frame: bytes
    missing: int = 0
    unknown: int = 0
    interface: str = "0"
    direction: int = UNKNOWN
    comment: str = ""
    longer: bool = False


def read(path: Path) -> Iterator[Packet]:
    """Read a capture's packets, in its order, one at a time.

    Parameters
    ----------
    path
        A pcap or pcapng file, also one that gzip compressed: Ethernet, raw IP, Linux cooked v1 and v2.

    Yields
    ------
    Packet
        The next one.

    Raises
    ------
    CaptureError
        At the packet that is damaged. CutShortError: the file ends inside it.
    UntrustedFileError
        It is not a regular file.
    """
    for batch in batches(path):
        yield from frames_of(batch)


def frames_of(batch: Batch) -> Iterator[Packet]:
    """Yield the frames of a batch one by one, as Ethernet frames."""
    interfaces, comments, data = batch.interfaces, batch.comments, batch.data.data
    columns = (batch.start, batch.captured, batch.original, batch.time_ns, batch.interface, batch.direction)
    for position, (start, captured, original, time_ns, which, direction) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        interface = interfaces[which]
        packet = _packet(
            time_ns, interface, bytes(data[start : start + captured]), original, direction, comments.get(position, "")
        )
        yield packet._replace(longer=True) if position in batch.longer else packet


def _packet(time_ns: int, interface: Interface, data: bytes, original: int, direction: int, comment: str) -> Packet:
    """Return the packet as an Ethernet frame."""
    link, label = interface.link, interface.name or str(interface.number)
    missing = original - len(data)
    captured = len(data)
    data = data.ljust(original, b"\0")
    source = bytes(6)
    if link in RAW:
        data = bytes(12) + (b"\x86\xdd" if data[:1] and data[0] >> 4 == 6 else b"\x08\x00") + data
    elif link == COOKED and captured >= 16:
        kind, length = int.from_bytes(data[:2], "big"), int.from_bytes(data[4:6], "big")
        direction = direction or _COOKED_DIRECTION.get(kind, UNKNOWN)
        source = data[6:12] if length == 6 else source
        data = bytes(6) + source + data[14:]  # the protocol, and what follows
    elif link == COOKED_2 and captured >= 20:
        direction = direction or _COOKED_DIRECTION.get(data[10], UNKNOWN)
        source = data[12:18] if data[11] == 6 else source
        label = str(int.from_bytes(data[4:8], "big"))
        data = bytes(6) + source + data[:2] + data[20:]
    elif link != ETHERNET:
        return Packet(time_ns, b"", missing, 0 if link in LINKS else link, label, direction, comment)
    return Packet(time_ns, data, missing, 0, label, direction, comment)


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

    Raises
    ------
    CaptureError
        A time is before 1970 or after 2106.
    """
    with replaced(path, private=False) as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, MAX_FRAME, 1))
        count = 0
        for packet in packets:
            seconds, fraction = divmod(packet.time_ns, 1_000_000_000)
            if not 0 <= seconds < 1 << 32:
                raise CaptureError(f"a pcap file has times from 1970 to 2106, got {packet.time_ns} ns since 1970")
            file.write(struct.pack("<IIII", seconds, fraction, len(packet.frame), len(packet.frame)) + packet.frame)
            count += 1
    return count
