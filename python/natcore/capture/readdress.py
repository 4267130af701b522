"""Answers of an inside link's capture, given the outside address that they had before a gateway, also inside ICMP errors."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from natcore.config import DnatEntry, OutsideInterface
from natcore.gateway import Gateway
from natcore.internal.protocols import ICMP, TCP, UDP

Find = Callable[[int, int, int], tuple[int, int] | None]
_PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,), "any": (TCP, UDP)}


def forwarded_endpoints(gateway: Gateway) -> NDArray[np.int64]:
    """Return the outside endpoints that DNAT entries give to inside ones, (count, 6): protocol, inside address, first and last
    port, outside address and its first port."""
    found: list[tuple[int, ...]] = []
    for entry in (each.entry for each in gateway.entries()):
        if not isinstance(entry, DnatEntry) or isinstance(entry.external_ip, OutsideInterface):
            continue
        inside, outside = _range(entry.internal_port), _range(entry.external_port)
        protocols = (TCP, UDP, ICMP) if entry.is_one_to_one else _PROTOCOLS[entry.protocol]
        for address, _ in entry.internal_ip:
            found += [(each, int(address), *inside, int(entry.external_ip), outside[0]) for each in protocols]
    return np.array(found, np.int64).reshape(-1, 6)


def endpoint_of_entries(gateway: Gateway) -> Find | None:
    """Return what finds the outside endpoint that a DNAT entry gives to (protocol, inside address, port); None: no entry."""
    found = forwarded_endpoints(gateway).tolist()
    if not found:
        return None

    def find(protocol: int, address: int, port: int) -> tuple[int, int] | None:
        for own, inside, first, last, outside, outside_first in found:
            if address == inside and first <= port <= last and protocol == own:
                return outside, outside_first + port - first
        return None

    return find


def _range(port: int | tuple[int, int] | str) -> tuple[int, int]:
    if isinstance(port, int):
        return port, port
    return (0, 65_535) if isinstance(port, str) else port


def quoted_endpoint(frame: bytes) -> tuple[int, int, int, int, int] | None:
    """Return protocol, source and destination of the packet that an ICMP error quotes; None: it quotes none with ports.

    The frame has no tag. The order is: protocol, source address and port, destination address and port (0 of ICMP).
    """
    l4 = 14 + (frame[14] & 15) * 4
    end = min(len(frame), 14 + int.from_bytes(frame[16:18], "big"))  # behind it is no packet
    if end < l4 + 36 or frame[l4] not in (3, 4, 5, 11, 12):
        return None
    ip = l4 + 8
    at = ip + (frame[ip] & 15) * 4
    fragment, protocol, source, destination = struct.unpack_from("!6xHxB2xII", frame, ip)
    if fragment & 0x1FFF or end < at + 8 or frame[ip] >> 4 != 4:
        return None
    if protocol in (TCP, UDP):
        ports = struct.unpack_from("!HH", frame, at)
        return protocol, source, ports[0], destination, ports[1]
    if protocol == ICMP:
        return protocol, source, int.from_bytes(frame[at + 4 : at + 6], "big"), destination, 0
    return None


def readdress_error(frame: bytes, address: int, port: int) -> bytes:
    """Return an ICMP error about a packet as its sender sent it: to this outside address, about a packet from this endpoint."""
    changed = bytearray(frame)
    l4 = 14 + (frame[14] & 15) * 4
    ip = l4 + 8
    at = ip + (frame[ip] & 15) * 4
    protocol = frame[ip + 9]
    new_address, new_port = address.to_bytes(4, "big"), port.to_bytes(2, "big")
    old_address = bytes(frame[ip + 12 : ip + 16])
    at_port = at + 4 if protocol == ICMP else at
    old_port = bytes(frame[at_port : at_port + 2])
    update(changed, 24, bytes(frame[30:34]), new_address)
    changed[30:34] = new_address
    update(changed, ip + 10, old_address, new_address)
    changed[ip + 12 : ip + 16] = new_address
    changed[at_port : at_port + 2] = new_port
    checksum = {TCP: at + 16, UDP: at + 6, ICMP: at + 2}[protocol]
    if len(frame) >= checksum + 2 and (protocol != UDP or frame[checksum : checksum + 2] != b"\0\0"):
        before, after = (b"", b"") if protocol == ICMP else (old_address, new_address)
        update(changed, checksum, before + old_port, after + new_port)
    end = 14 + int.from_bytes(frame[16:18], "big")
    changed[l4 + 2 : l4 + 4] = b"\0\0"
    changed[l4 + 2 : l4 + 4] = (~ones_sum(changed[l4:end]) & 0xFFFF).to_bytes(2, "big")
    return bytes(changed)


def update(frame: bytearray, at: int, old: bytes, new: bytes) -> None:
    """Update the checksum at this offset after `old` became `new` (RFC 1624, eq. 3)."""
    words = len(old) // 2
    total = ~int.from_bytes(frame[at : at + 2], "big") & 0xFFFF
    total += sum(~word & 0xFFFF for word in struct.unpack(f"!{words}H", old)) + sum(struct.unpack(f"!{words}H", new))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame[at : at + 2] = (~total & 0xFFFF).to_bytes(2, "big")


def ones_sum(data: bytes | bytearray) -> int:
    """Return the one's complement sum of the words (RFC 1071); 0xFFFF if a right checksum is among them."""
    padded = bytes(data) + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
