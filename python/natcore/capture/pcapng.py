"""Captures with several interfaces and a comment on each packet (draft-ietf-opsawg-pcapng), written as packets come."""

from __future__ import annotations

import struct
from typing import BinaryIO

from natcore.capture.reader import CaptureError

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_COMMENT, _IF_NAME, _IF_TSRESOL, _APPLICATION, _PACKET_ID = 1, 2, 9, 4, 5
_NANOSECONDS = b"\x09"
_ETHERNET = 1
_MOST_TEXT = 0xFFFF  # bytes of an option


class PcapngWriter:
    """Writes Ethernet frames into a file.

    Parameters
    ----------
    file
        Open for binary writing; it stays open.
    application
        The program that writes.
    """

    def __init__(self, file: BinaryIO, application: str) -> None:
        self._file = file
        self._interfaces: dict[str, int] = {}
        self._write(_SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1), [(_APPLICATION, application.encode())])

    def write(
        self, interface: str, time_ns: int, frame: bytes, length: int, comment: str = "", packet: int | None = None
    ) -> None:
        """Write a frame.

        Parameters
        ----------
        interface
            The name of its interface; it is described at its first frame.
        time_ns
            Nanoseconds since 1970.
        frame
            Its bytes, maybe cut.
        length
            Bytes that it had.
        comment
            Shown with it; empty: none.
        packet
            The same number for frames of one packet on several interfaces; None: none.

        Raises
        ------
        CaptureError
            The time is before 1970.
        """
        if time_ns < 0:
            raise CaptureError(f"a pcapng file has times from 1970 on, got {time_ns} ns since 1970")
        if interface not in self._interfaces:
            self._interfaces[interface] = len(self._interfaces)
            self._write(
                _INTERFACE,
                struct.pack("<HHI", _ETHERNET, 0, 0),
                [(_IF_NAME, interface.encode()[:_MOST_TEXT]), (_IF_TSRESOL, _NANOSECONDS)],
            )
        head = struct.pack(
            "<IIIII", self._interfaces[interface], time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), length
        )
        options = [(_COMMENT, comment.encode()[:_MOST_TEXT])] if comment else []
        if packet is not None:
            options.append((_PACKET_ID, struct.pack("<Q", packet)))
        self._write(_PACKET, head + _padded(frame), options)

    def _write(self, kind: int, body: bytes, options: list[tuple[int, bytes]]) -> None:
        if options:
            coded = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
            body += b"".join(coded) + bytes(4)
        total = struct.pack("<I", len(body) + 12)
        self._file.write(struct.pack("<I", kind) + total + body + total)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
