"""Captures made byte by byte: pcap and pcapng in both byte orders."""

from __future__ import annotations

import struct


def header(order: str = "<", magic: int = 0xA1B2C3D4, link: int = 1) -> bytes:
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)


def record(data: bytes, original: int | None = None, order: str = "<") -> bytes:
    return struct.pack(order + "IIII", 7, 9, len(data), len(data) if original is None else original) + data


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    total = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + total + body + total


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link: int, options: bytes = b"", order: str = "<", snap_length: int = 0) -> bytes:
    return struct.pack(order + "HHI", link, 0, snap_length) + options


def packet_block(which: int, ticks: int, data: bytes, original: int | None = None, order: str = "<") -> bytes:
    original = len(data) if original is None else original
    head = struct.pack(order + "IIIII", which, ticks >> 32, ticks & 0xFFFFFFFF, len(data), original)
    return block(6, head + data + bytes(-len(data) % 4), order)
