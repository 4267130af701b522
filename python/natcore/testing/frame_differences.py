"""What differs between two frames, field by field, and whether their checksums are right."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from natcore.choices import Framing
from natcore.testing.oracle import packets
from natcore.testing.oracle.packets import ICMP, TCP, UDP, Endpoint, Packet, long, ones_sum, word
from natcore.verdict import Side, Verdict

Field = tuple[str, str]
_NAMES = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP"}
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")


def fields(frame: bytes, framing: Framing = "ethernet") -> list[Field]:
    """Take a frame apart, as far as it can be read.

    Parameters
    ----------
    frame
        An Ethernet frame, with 802.1Q tags or without, or a bare IPv4 packet.
    framing
        Which of them: "ethernet" or "ip".

    Returns
    -------
    list
        (name, value as text), in the order of the frame; of an ICMP error also those of the packet that it quotes.
    """
    return list(_fields(frame, framing))


def _fields(frame: bytes, framing: Framing) -> Iterator[Field]:
    at = 0
    if framing == "ethernet":
        if len(frame) < 14:
            yield "bytes", frame.hex()
            return
        yield "Ethernet destination", frame[:6].hex(":")
        yield "Ethernet source", frame[6:12].hex(":")
        at = 12
        while word(frame, at) in packets.VLAN_TAGS and len(frame) >= at + 6:
            yield "802.1Q tag", str(word(frame, at + 2))
            at += 4
        yield "EtherType", f"0x{word(frame, at):04x}"
        if word(frame, at) != packets.IPV4:
            yield "bytes", frame[at + 2 :].hex()
            return
        at += 2
    yield from _ipv4(frame[at:], "")


def _ipv4(ip: bytes, prefix: str) -> Iterator[Field]:
    """prefix: before each name, such as that of a quoted packet."""
    header = (ip[0] & 15) * 4 if ip else 0
    if len(ip) < 20 or not 20 <= header <= len(ip):
        yield f"{prefix}bytes", ip.hex()
        return
    yield f"{prefix}IPv4 version", str(ip[0] >> 4)
    yield f"{prefix}IPv4 TOS", str(ip[1])
    yield f"{prefix}IPv4 total length", str(word(ip, 2))
    yield f"{prefix}IPv4 identification", str(word(ip, 4))
    yield f"{prefix}IPv4 flags", f"{ip[6] >> 5:03b}"
    yield f"{prefix}IPv4 fragment offset", str((word(ip, 6) & 0x1FFF) * 8)
    yield f"{prefix}IPv4 TTL", str(ip[8])
    yield f"{prefix}IPv4 protocol", str(ip[9])
    yield f"{prefix}IPv4 header checksum", f"0x{word(ip, 10):04x}" + _right(ones_sum(ip[:header]) == 0xFFFF)
    yield f"{prefix}source address", str(IPv4Address(ip[12:16]))
    yield f"{prefix}destination address", str(IPv4Address(ip[16:20]))
    yield f"{prefix}IPv4 options", ip[20:header].hex()
    data = ip[header : word(ip, 2)] if header <= word(ip, 2) else ip[header:]
    if word(ip, 6) & 0x1FFF:
        yield f"{prefix}payload", data.hex()
    else:
        yield from _layer_4(ip, data, prefix)
    if len(ip) > max(header, word(ip, 2)):
        yield f"{prefix}padding", ip[word(ip, 2) :].hex()


def _layer_4(ip: bytes, data: bytes, prefix: str) -> Iterator[Field]:
    protocol = ip[9]
    if protocol not in _NAMES or len(data) < 8:
        yield f"{prefix}payload", data.hex()
        return
    name = prefix + _NAMES[protocol]
    whole = not word(ip, 6) & 0x3FFF and not prefix
    right = _right(_is_right(ip, data)) if whole else ""
    if protocol == ICMP:
        yield f"{name} type", str(data[0])
        yield f"{name} code", str(data[1])
        yield f"{name} checksum", f"0x{word(data, 2):04x}{right}"
        if data[0] in packets.ERRORS and not prefix:
            yield f"{name} rest of the header", data[4:8].hex()
            yield from _ipv4(data[8:], "quoted ")
            return
        yield f"{name} identifier", str(word(data, 4))
        yield f"{name} sequence", str(word(data, 6))
        yield f"{prefix}payload", data[8:].hex()
        return
    yield f"{prefix}source port", str(word(data, 0))
    yield f"{prefix}destination port", str(word(data, 2))
    if protocol == UDP:
        yield f"{name} length", str(word(data, 4))
        yield f"{name} checksum", f"0x{word(data, 6):04x}{right}"
        yield f"{prefix}payload", data[8:].hex()
        return
    yield f"{name} sequence", str(long(data, 4))
    if len(data) < 20:
        yield f"{prefix}payload", data[8:].hex()
        return
    offset = max(20, (data[12] >> 4) * 4)
    yield f"{name} acknowledgement", str(long(data, 8))
    yield f"{name} data offset", str((data[12] >> 4) * 4)
    yield f"{name} flags", "+".join(flag for bit, flag in enumerate(_FLAGS) if data[13] >> bit & 1) or "none"
    yield f"{name} window", str(word(data, 14))
    yield f"{name} checksum", f"0x{word(data, 16):04x}{right}"
    yield f"{name} urgent pointer", str(word(data, 18))
    yield f"{name} options", data[20:offset].hex()
    yield f"{prefix}payload", data[offset:].hex()


def _right(right: bool) -> str:
    return " (right)" if right else " (wrong)"


def _is_right(ip: bytes, data: bytes) -> bool:
    """Whether the layer-4 checksum of a whole packet is right, summed up from scratch."""
    if ip[9] == ICMP:
        return ones_sum(data) == 0xFFFF
    if ip[9] == UDP:
        data = data[: word(data, 4)]
        if word(data, 6) == 0:
            return True  # RFC 768: the sender made none
    pseudo = ip[12:20] + bytes((0, ip[9])) + len(data).to_bytes(2, "big")
    return ones_sum(pseudo, data) == 0xFFFF


def differences(expected: bytes, got: bytes, framing: Framing = "ethernet") -> list[str]:
    """Say what differs between two frames.

    Parameters
    ----------
    expected, got
        The frames.
    framing
        "ethernet" or "ip".

    Returns
    -------
    list
        A line for each field that differs, with both values; empty where the frames are the same bytes.
    """
    if expected == got:
        return []
    ours, theirs = _numbered(expected, framing), _numbered(got, framing)
    lines = [
        f"{name}: {_short(theirs.get(name), ours.get(name))}, expected {_short(ours.get(name), theirs.get(name))}"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]
    return lines or [f"bytes: {got.hex()}, expected {expected.hex()}"]


def _numbered(frame: bytes, framing: Framing) -> dict[str, str]:
    """Fields by name; a name that comes again has its number."""
    result: dict[str, str] = {}
    for name, value in _fields(frame, framing):
        number, key = 1, name
        while key in result:
            number += 1
            key = f"{name} {number}"
        result[key] = value
    return result


def _short(value: str | None, other: str | None) -> str:
    """A value; of two long ones the part where they begin to differ."""
    if value is None:
        return "absent"
    if len(value) <= 48:
        return value or "empty"
    same = next((n for n, (a, b) in enumerate(zip(value, other or "", strict=False)) if a != b), 0) // 2 * 2
    return f"{'…' if same else ''}{value[same : same + 32]}… ({len(value) // 2} bytes, the same up to byte {same // 2})"


def describe(frame: bytes, framing: Framing = "ethernet") -> str:
    """Say in a few words what a frame is: protocol, ends and what is unusual.

    >>> from natcore.testing import craft
    >>> describe(craft.ether(craft.udp(("10.0.0.5", 5000), ("198.51.100.7", 53))))
    'UDP 10.0.0.5:5000 > 198.51.100.7:53, 28 bytes'
    """
    packet = packets.parse(frame, framing, Side.INSIDE)
    if isinstance(packet, Verdict):
        return f"{len(frame)} bytes that no NAT forwards ({packet.name}): {frame[:64].hex()}"
    name = _NAMES.get(packet.protocol, f"protocol {packet.protocol}")
    text = f"{name} {_end(packet.source, packet)} > {_end(packet.destination, packet)}, {packet.total} bytes"
    if packet.kind == "fragment":
        text += f", fragment at {packet.offset}{', more follow' if packet.more else ''}"
    elif packet.protocol == TCP:
        flags = "+".join(flag for bit, flag in enumerate(_FLAGS[:6]) if packet.flags >> bit & 1)
        text += f", {flags or 'no flags'}, sequence {packet.sequence}"
    elif packet.protocol == ICMP:
        kind, code = packet.ip[packet.header], packet.ip[packet.header + 1]
        text += f", type {kind} code {code}, identifier {word(packet.ip, packet.header + 4)}"
    return text + (f", TTL {packet.ttl}" if packet.ttl < 3 else "")


def _end(end: Endpoint, packet: Packet) -> str:
    ported = packet.protocol in (TCP, UDP) and packet.kind == "session"
    return f"{IPv4Address(end[0])}:{end[1]}" if ported else str(IPv4Address(end[0]))


def assert_checksums(frame: bytes, framing: Framing = "ethernet") -> None:
    """Assert that every checksum of a frame is right, summed up from scratch.

    Parameters
    ----------
    frame
        An Ethernet frame or a bare IPv4 packet; of a fragment the header's checksum alone is looked at.
    framing
        "ethernet" or "ip".

    Raises
    ------
    AssertionError
        One is wrong; it says which.
    """
    wrong = [f"{name}: {value}" for name, value in _fields(frame, framing) if value.endswith("(wrong)")]
    assert not wrong, f"{'; '.join(wrong)} of {describe(frame, framing)}"


def assert_translation(
    before: bytes,
    after: bytes | None,
    *,
    source: tuple[str | int, int] | None = None,
    destination: tuple[str | int, int] | None = None,
    hops: int = 1,
    framing: Framing = "ethernet",
    any_identification: bool = True,
) -> None:
    """Assert that a frame is the translation of another: other ends and a hop less, and nothing else changed.

    Parameters
    ----------
    before
        The frame as it came.
    after
        The frame as it left; None, it did not, is an error.
    source, destination
        The address and the port (of ICMP the identifier) that it must have; None: those that it had.
    hops
        How much smaller the TTL must be.
    framing
        "ethernet" or "ip".
    any_identification
        The NAT may choose the IPv4 identification (RFC 6864 section 5.3.1).

    Raises
    ------
    AssertionError
        It names each field that differs, with what it is and what it must be.

    Notes
    -----
    A layer-4 checksum that was wrong before must be as wrong after (RFC 1624): a NAT hides no damage. The packet
    that an ICMP error quotes is translated too: errors are no case for this, the oracle knows them.
    """
    packet = packets.parse(before, framing, Side.INSIDE)
    assert isinstance(packet, Packet), f"before: {describe(before, framing)}"
    assert after is not None, f"it was not forwarded: {describe(before, framing)}"
    ends = [
        (int(IPv4Address(end[0])), end[1]) if end is not None else was
        for end, was in ((source, packet.source), (destination, packet.destination))
    ]
    if packet.kind == "fragment":
        expected = packets.readdress(packet, packet.ttl - hops, ends[0][0], ends[1][0])
    else:
        expected = packets.rewrite(packet, packet.ttl - hops, *ends)
    if any_identification and len(after) >= packet.link + 20:
        expected = packets.numbered(expected, packet.link, word(after, packet.link + 4))
    found = differences(expected, after, framing)
    assert not found, "\n".join([f"the translation of {describe(before, framing)} is wrong", *found])
