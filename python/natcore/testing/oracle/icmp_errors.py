"""The oracle's ICMP errors: reading the packet that one is about, and translating both (RFC 5508 REQ-3 to REQ-7)."""

from __future__ import annotations

from dataclasses import dataclass

from natcore.testing.oracle.packets import (
    ICMP,
    REPLIES,
    REQUESTS,
    TCP,
    UDP,
    Endpoint,
    Packet,
    checksum,
    long,
    ones_sum,
    word,
)
from natcore.verdict import Side, Verdict


@dataclass(frozen=True, slots=True)
class Quote:
    """The packet that an error is about, as far as it is quoted."""

    at: int  # bytes of the error's frame before it
    header: int
    protocol: int
    source: Endpoint
    destination: Endpoint
    sequence: int  # TCP; 0 otherwise
    reversed: bool = False  # a query of the kind that only an entry's own mapping lets pass in its direction


def read(packet: Packet, side: Side) -> Quote | Verdict:
    """The quote of an error that came from a side."""
    data = packet.ip[packet.header :]
    if ones_sum(data) != 0xFFFF:
        return Verdict.DROP_CHECKSUM  # REQ-3 a
    quoted = data[8:]
    header = (quoted[0] & 15) * 4 if quoted else 0
    if len(quoted) < 20 or quoted[0] >> 4 != 4 or header < 20 or len(quoted) < header + 8:
        return Verdict.DROP_MALFORMED
    if ones_sum(quoted[:header]) != 0xFFFF:
        return Verdict.DROP_CHECKSUM  # REQ-3 b
    if word(quoted, 6) & 0x1FFF:  # a later fragment has no ports
        return Verdict.DROP_UNSUPPORTED
    protocol, source, destination, rest = quoted[9], long(quoted, 12), long(quoted, 16), quoted[header:]
    at = packet.link + packet.header + 8
    if protocol == ICMP:
        if rest[0] not in (*REQUESTS, *REPLIES):
            return Verdict.DROP_UNSUPPORTED
        usual = REQUESTS if side is Side.OUTSIDE else REPLIES
        ends = (source, word(rest, 4)), (destination, 0)
        if side is Side.INSIDE:
            ends = (source, 0), (destination, word(rest, 4))
        return Quote(at, header, ICMP, *ends, 0, rest[0] not in usual)
    if protocol not in (TCP, UDP):
        return Quote(at, header, protocol, (source, 0), (destination, 0), 0)
    sequence = long(rest, 4) if protocol == TCP else 0
    return Quote(at, header, protocol, (source, word(rest, 0)), (destination, word(rest, 2)), sequence)


def rewrite(packet: Packet, quote: Quote, ttl: int, outer: tuple[int, int], inner: tuple[Endpoint, Endpoint]) -> bytes:
    """The error with other outer addresses, about a packet between other endpoints (source, destination)."""
    new = bytearray(packet.frame)
    ip, data = packet.link, packet.link + packet.header
    new[ip + 8] = ttl
    new[ip + 12 : ip + 20] = outer[0].to_bytes(4, "big") + outer[1].to_bytes(4, "big")
    _requote(new, quote, *inner)
    for start, end, field in ((ip, data, ip + 10), (data, len(new), data + 2)):
        new[field : field + 2] = b"\0\0"
        new[field : field + 2] = checksum(new[start:end]).to_bytes(2, "big")
    return bytes(new)


def _requote(new: bytearray, quote: Quote, source: Endpoint, destination: Endpoint) -> None:
    """The quoted packet's endpoints; its layer-4 checksum, as far as it is quoted, changes by as much as they do."""
    at, rest = quote.at, quote.at + quote.header
    before = sum(word(new, i) for i in range(at + 12, at + 20, 2))
    new[at + 12 : at + 20] = source[0].to_bytes(4, "big") + destination[0].to_bytes(4, "big")
    moved = sum(word(new, i) for i in range(at + 12, at + 20, 2)) - before
    new[at + 10 : at + 12] = b"\0\0"
    new[at + 10 : at + 12] = checksum(new[at:rest]).to_bytes(2, "big")
    if quote.protocol == ICMP:
        field, moved = rest + 2, (source[1] or destination[1]) - word(new, rest + 4)
        new[rest + 4 : rest + 6] = (source[1] or destination[1]).to_bytes(2, "big")
    elif quote.protocol in (TCP, UDP):
        field = rest + (16 if quote.protocol == TCP else 6)
        moved += source[1] - word(new, rest) + destination[1] - word(new, rest + 2)
        new[rest : rest + 4] = source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")
    else:
        return
    if field + 2 > len(new) or (quote.protocol == UDP and word(new, field) == 0):
        return
    value = (word(new, field) - moved) % 0xFFFF
    new[field : field + 2] = (0xFFFF if quote.protocol == UDP and value == 0 else value).to_bytes(2, "big")
