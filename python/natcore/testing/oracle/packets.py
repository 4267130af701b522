"""The oracle's view of packets: parsing, rewriting and building them, every checksum summed up from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from natcore.verdict import Side, Verdict

ICMP, TCP, UDP = 1, 6, 17
HOP_BY_HOP = 0  # IPv6's alone (RFC 8200 section 4.3)
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
ECHO_REPLY, UNREACHABLE, ECHO_REQUEST, TIME_EXCEEDED, PARAMETER_PROBLEM = 0, 3, 8, 11, 12
REQUESTS, REPLIES = (8, 13, 15, 17), (0, 14, 16, 18)  # echo, timestamp, information, address mask (RFC 5508 REQ-1)
ERRORS = (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM)  # the ones that are translated (RFC 5508 REQ-9)
FIXED = (33, 51, 136)  # DCCP, AH, UDP-Lite: their checksums cover the addresses
IPV4, VLAN_TAGS = 0x0800, (0x8100, 0x88A8)  # EtherTypes: IPv4; 802.1Q and 802.1ad
ERROR_BYTES = 576  # an ICMP error's IPv4 length at most (RFC 1812 section 4.3.2.3)

Endpoint = tuple[int, int]  # (IPv4 address in host order, port); for ICMP (address, id), the remote's port being 0
Bytes = bytes | bytearray | memoryview


def word(data: Bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "big")


def long(data: Bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "big")


def ones_sum(*parts: Bytes) -> int:
    """The ones' complement sum of the parts (RFC 1071), each padded to 16-bit words: 0, or 1 to 0xFFFF.

    Modulo 0xFFFF a number is the sum of its 16-bit words, since 2^16 is 1.
    """
    total = sum(int.from_bytes(part, "big") << 8 * (len(part) & 1) for part in parts)
    return (total - 1) % 0xFFFF + 1 if total else 0


def checksum(*parts: Bytes) -> int:
    """The Internet checksum of the parts; their checksum field must be zero."""
    return 0xFFFF - ones_sum(*parts)


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet that passed the parser."""

    frame: bytes  # the link header and the packet, without padding behind it
    link: int  # bytes of the link header
    header: int  # bytes of the IPv4 header
    protocol: int
    source: Endpoint
    destination: Endpoint
    kind: Literal["session", "echo", "error", "other", "fragment"]
    # of a session; a query (from inside: of a session too); an ICMP error about a packet; none of these;
    # a fragment, as long as only its IPv4 header has been looked at
    flags: int = 0  # TCP; 0 otherwise
    sequence: int = 0
    acknowledgement: int = 0
    payload: int = 0  # bytes of TCP payload

    @property
    def ip(self) -> bytes:
        return self.frame[self.link :]

    @property
    def total(self) -> int:
        """Bytes, IPv4 header included: what the session log counts."""
        return len(self.frame) - self.link

    @property
    def ttl(self) -> int:
        return self.frame[self.link + 8]

    @property
    def more(self) -> bool:
        return bool(self.frame[self.link + 6] & 0x20)

    @property
    def offset(self) -> int:
        """Bytes of the datagram's payload before this fragment's."""
        return (word(self.frame, self.link + 6) & 0x1FFF) * 8

    @property
    def dont_fragment(self) -> bool:
        return bool(self.frame[self.link + 6] & 0x40)


def parse(frame: bytes, link: str, side: Side) -> Packet | Verdict:
    """The packet, or the verdict on a frame that holds none which is whole and ours to look at."""
    offset = 0
    if link == "ethernet":
        found = _link_header(frame)
        if isinstance(found, Verdict):
            return found
        offset = found
    ip = frame[offset:]
    if len(ip) < 20 or ip[0] >> 4 != 4:
        return (
            Verdict.DROP_UNSUPPORTED if len(ip) >= 20 and ip[0] >> 4 == 6 and link == "ip" else Verdict.DROP_MALFORMED
        )
    header, total = (ip[0] & 15) * 4, word(ip, 2)
    if not 20 <= header <= total <= len(ip):
        return Verdict.DROP_MALFORMED
    if ones_sum(ip[:header]) != 0xFFFF:
        return Verdict.DROP_CHECKSUM
    if options(ip[20:header]) is None:
        return Verdict.DROP_MALFORMED
    if ip[9] == HOP_BY_HOP:
        return Verdict.DROP_UNSUPPORTED
    if word(ip, 6) & 0x3FFF:  # more fragments, or an offset
        ends = (long(ip, 12), 0), (long(ip, 16), 0)
        return Packet(frame[: offset + total], offset, header, ip[9], *ends, kind="fragment")
    return layer_4(frame[: offset + total], offset, header, side)


def options(area: bytes) -> set[int] | None:
    """The types of the options of a header, padding left out; None: one has no sound length."""
    found, at = set(), 0
    while at < len(area) and area[at] != 0:
        if area[at] == 1:
            at += 1
            continue
        length = area[at + 1] if at + 1 < len(area) else 0
        if length < 2 or at + length > len(area):
            return None
        found.add(area[at])
        at += length
    return found


def _link_header(frame: bytes) -> int | Verdict:
    """Bytes of an Ethernet header with up to two tags."""
    offset = 14
    for _ in range(2):
        if len(frame) >= offset and word(frame, offset - 2) in VLAN_TAGS:
            offset += 4
    if len(frame) < offset:
        return Verdict.DROP_MALFORMED
    return offset if word(frame, offset - 2) == IPV4 else Verdict.DROP_UNSUPPORTED


def layer_4(frame: bytes, link: int, header: int, side: Side, whole: bool = True) -> Packet | Verdict:
    """The packet; not whole: the first fragment of one."""
    ip, data = frame[link:], frame[link + header :]
    protocol, source, destination = ip[9], long(ip, 12), long(ip, 16)
    if protocol == TCP:
        if len(data) < 20 or not 20 <= (offset := (data[12] >> 4) * 4) <= len(data):
            return Verdict.DROP_MALFORMED
        ends = (source, word(data, 0)), (destination, word(data, 2))
        payload = len(data) - offset
        return Packet(
            frame, link, header, TCP, *ends, "session", data[13] & 0x3F, long(data, 4), long(data, 8), payload
        )
    if protocol == UDP:
        if len(data) < 8 or not 8 <= word(data, 4) <= (len(data) if whole else 0xFFFF):
            return Verdict.DROP_MALFORMED
        return Packet(frame, link, header, UDP, (source, word(data, 0)), (destination, word(data, 2)), kind="session")
    if protocol == ICMP:
        if len(data) < 8:
            return Verdict.DROP_MALFORMED
        return _icmp(frame, link, header, data, side)
    kind: Literal["session", "other"] = "other" if protocol in FIXED else "session"
    return Packet(frame, link, header, protocol, (source, 0), (destination, 0), kind)


def _icmp(frame: bytes, link: int, header: int, data: bytes, side: Side) -> Packet:
    source, destination, identifier = long(frame, link + 12), long(frame, link + 16), word(data, 4)
    if data[0] in REQUESTS:
        return Packet(frame, link, header, ICMP, (source, identifier), (destination, 0), kind="echo")
    if data[0] in REPLIES and side is Side.OUTSIDE:
        return Packet(frame, link, header, ICMP, (source, 0), (destination, identifier), kind="session")
    kind: Literal["error", "other"] = "error" if data[0] in ERRORS else "other"
    return Packet(frame, link, header, ICMP, (source, 0), (destination, 0), kind)


def is_echo(packet: Packet) -> bool:
    """An echo request."""
    return packet.protocol == ICMP and packet.offset == 0 and packet.ip[packet.header] == ECHO_REQUEST


def rewrite(packet: Packet, ttl: int, source: Endpoint, destination: Endpoint) -> bytes:
    """The frame with other endpoints. A damaged layer-4 checksum stays exactly as wrong as it was."""
    new = bytearray(packet.frame)
    ip, data = packet.link, packet.link + packet.header
    before = _covered(packet.frame, packet)
    new[ip + 8] = ttl
    new[ip + 12 : ip + 20] = source[0].to_bytes(4, "big") + destination[0].to_bytes(4, "big")
    if packet.protocol == ICMP:
        new[data + 4 : data + 6] = (source[1] or destination[1]).to_bytes(2, "big")
    elif packet.protocol in (TCP, UDP):
        new[data : data + 4] = source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")
    field = data + {TCP: 16, UDP: 6, ICMP: 2}.get(packet.protocol, 0)
    if packet.protocol in (TCP, UDP, ICMP) and not (
        packet.protocol == UDP and word(new, field) == 0
    ):  # RFC 768: 0 says that the sender made none
        value = sealed(new, field, _covered(new, packet), wrong_by=ones_sum(*before))
        if packet.protocol == UDP and value == 0:
            value = 0xFFFF  # RFC 768: a computed zero is sent as ones
        new[field : field + 2] = value.to_bytes(2, "big")
    new[ip + 10 : ip + 12] = b"\0\0"
    new[ip + 10 : ip + 12] = checksum(new[ip:data]).to_bytes(2, "big")
    return bytes(new)


def readdress(packet: Packet, ttl: int, source: int, destination: int) -> bytes:
    """A later fragment with other addresses: what is behind the IPv4 header stays."""
    new = bytearray(packet.frame)
    ip, data = packet.link, packet.link + packet.header
    new[ip + 8] = ttl
    new[ip + 10 : ip + 12] = b"\0\0"
    new[ip + 12 : ip + 20] = source.to_bytes(4, "big") + destination.to_bytes(4, "big")
    new[ip + 10 : ip + 12] = checksum(new[ip:data]).to_bytes(2, "big")
    return bytes(new)


def numbered(frame: bytes, link: int, number: int) -> bytes:
    """The frame's packet with another identification."""
    new, end = bytearray(frame), link + (frame[link] & 15) * 4
    new[link + 4 : link + 6] = number.to_bytes(2, "big")
    new[link + 10 : link + 12] = b"\0\0"
    new[link + 10 : link + 12] = checksum(new[link:end]).to_bytes(2, "big")
    return bytes(new)


def _covered(frame: Bytes, packet: Packet) -> tuple[bytes, ...]:
    """What the layer-4 checksum of a frame covers, the checksum included: zero modulo 0xFFFF when it is right."""
    ip, data = bytes(frame[packet.link :]), bytes(frame[packet.link + packet.header :])
    if packet.protocol == ICMP:
        return (data,)
    length = word(data, 4) if packet.protocol == UDP else len(data)
    pseudo = ip[12:20] + bytes((0, packet.protocol)) + length.to_bytes(2, "big")
    return pseudo, data[:length]


def sealed(frame: Bytes, field: int, covered: Iterable[Bytes], wrong_by: int) -> int:
    """The checksum at field that leaves the covered bytes as wrong as wrong_by (0xFFFF: right); never minus zero."""
    return (wrong_by - (ones_sum(*covered) - word(frame, field))) % 0xFFFF


def clamp_mss(packet: Packet, limit: int) -> Packet:
    """The segment with its MSS options lowered to limit (RFC 9293 section 3.2), its checksum as wrong as it was.

    Options that cannot be are left as they are, all of them.
    """
    new = bytearray(packet.frame)
    data = packet.link + packet.header
    at, end, found = data + 20, data + (new[data + 12] >> 4) * 4, []
    while at < end and new[at] != 0:
        if new[at] == 1:
            at += 1
            continue
        length = new[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end or (new[at] == 2 and length != 4):
            return packet
        if new[at] == 2:
            found.append(at + 2)
        at += length
    wrong_by = ones_sum(*_covered(new, packet))
    for at in found:
        new[at : at + 2] = min(word(new, at), limit).to_bytes(2, "big")
    if new != packet.frame:
        new[data + 16 : data + 18] = sealed(new, data + 16, _covered(new, packet), wrong_by).to_bytes(2, "big")
    return replace(packet, frame=bytes(new))


def ipv4(protocol: int, source: int, destination: int, data: bytes, ttl: int = 64) -> bytes:
    """A plain IPv4 packet: no options, no fragment, identification 0."""
    head = bytearray(20)
    head[0], head[8], head[9] = 0x45, ttl, protocol
    head[2:4] = (20 + len(data)).to_bytes(2, "big")
    head[12:20] = source.to_bytes(4, "big") + destination.to_bytes(4, "big")
    head[10:12] = checksum(head).to_bytes(2, "big")
    return bytes(head) + data


def back(packet: Packet, ip: bytes) -> bytes:
    """A packet as answer to a frame: its link header with the two MAC addresses swapped."""
    link = packet.frame[: packet.link]
    return link[6:12] + link[:6] + link[12:] + ip


def echo_reply(packet: Packet) -> bytes:
    """RFC 792: 'the source and destination addresses are simply reversed, the type code changed to 0'."""
    ip, data = bytearray(packet.ip[: packet.header]), bytearray(packet.ip[packet.header :])
    wrong_by = ones_sum(data)
    data[0] = ECHO_REPLY
    data[2:4] = sealed(data, 2, (data,), wrong_by).to_bytes(2, "big")
    ip[8], ip[12:20] = 64, ip[16:20] + ip[12:16]
    ip[10:12] = b"\0\0"
    ip[10:12] = checksum(ip).to_bytes(2, "big")
    return back(packet, bytes(ip + data))


def icmp_error(packet: Packet, source: int, kind: int, code: int, mtu: int = 0) -> bytes:
    """An error about a packet, sent to its source with as much of it as fits (RFC 1812 section 4.3.2.3)."""
    quote = packet.ip[: ERROR_BYTES - 28]
    head = bytes((kind, code, 0, 0, 0, 0)) + mtu.to_bytes(2, "big")
    data = head[:2] + checksum(head, quote).to_bytes(2, "big") + head[4:] + quote
    return back(packet, ipv4(ICMP, source, packet.source[0], data))
