"""Frames for tests, built field by field, right unless told otherwise."""

from __future__ import annotations

from ipaddress import IPv4Address

from natcore.testing.oracle.packets import ECHO_REQUEST, ICMP, TCP, UDP, checksum

GATEWAY_MAC, HOST_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
ETHERNET = GATEWAY_MAC + HOST_MAC  # destination and source


def address(value: str | int) -> int:
    return value if isinstance(value, int) else int(IPv4Address(value))


def ether(ip: bytes, *tags: int, ethertype: int = 0x0800) -> bytes:
    """An Ethernet frame around a packet. tags: 802.1Q tag control words, outermost first."""
    around = b"".join((0x8100).to_bytes(2, "big") + tag.to_bytes(2, "big") for tag in tags)
    return ETHERNET + around + ethertype.to_bytes(2, "big") + ip


def ipv4(
    protocol: int,
    source: str | int,
    destination: str | int,
    data: bytes,
    *,
    ttl: int = 64,
    dont_fragment: bool = False,
    fragment: int = 0,
    ip_options: bytes = b"",
    tos: int = 0,
    identification: int = 0,
    total: int | None = None,
    ihl: int | None = None,
    version: int = 4,
    damage: int = 0,
) -> bytes:
    """A packet. fragment: the flags-and-offset word; damage: xored into the header checksum."""
    assert len(ip_options) % 4 == 0
    ihl = 5 + len(ip_options) // 4 if ihl is None else ihl
    head = bytearray(20) + ip_options
    head[0:2] = bytes((version << 4 | ihl, tos))
    head[2:4] = (len(head) + len(data) if total is None else total).to_bytes(2, "big")
    head[4:6] = identification.to_bytes(2, "big")
    head[6:8] = (fragment | dont_fragment << 14).to_bytes(2, "big")
    head[8:10] = bytes((ttl, protocol))
    head[12:20] = address(source).to_bytes(4, "big") + address(destination).to_bytes(4, "big")
    head[10:12] = (checksum(head) ^ damage).to_bytes(2, "big")
    return bytes(head) + data


def _layer4(protocol: int, source: str | int, destination: str | int, data: bytes, field: int, damage: int) -> bytes:
    pseudo = b"".join(address(a).to_bytes(4, "big") for a in (source, destination))
    value = checksum(pseudo + bytes((0, protocol)) + len(data).to_bytes(2, "big"), data)
    if protocol == UDP and value == 0:
        value = 0xFFFF
    return data[:field] + (value ^ damage).to_bytes(2, "big") + data[field + 2 :]


def udp(
    source: tuple[str | int, int],
    destination: tuple[str | int, int],
    payload: bytes = b"",
    *,
    no_checksum: bool = False,
    l4_damage: int = 0,
    length: int | None = None,
    **fields: object,
) -> bytes:
    """A UDP packet. fields: as of ipv4; l4_damage: xored into the checksum; length: what the header says."""
    said = 8 + len(payload) if length is None else length
    data = b"".join(v.to_bytes(2, "big") for v in (source[1], destination[1], said, 0)) + payload
    if not no_checksum:
        data = _layer4(UDP, source[0], destination[0], data, 6, l4_damage)
    return ipv4(UDP, source[0], destination[0], data, **fields)  # type: ignore[arg-type]


def tcp(
    source: tuple[str | int, int],
    destination: tuple[str | int, int],
    flags: int,
    payload: bytes = b"",
    *,
    sequence: int = 0,
    acknowledgement: int = 0,
    options: bytes = b"",
    offset: int | None = None,
    l4_damage: int = 0,
    **fields: object,
) -> bytes:
    """A TCP segment. options: TCP's, of 4 bytes each; offset: what the header says, in 32-bit words."""
    words = 5 + len(options) // 4 if offset is None else offset
    data = source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")
    data += sequence.to_bytes(4, "big") + acknowledgement.to_bytes(4, "big")
    data += bytes((words << 4, flags)) + b"\x20\x00" + bytes(4) + options + payload
    data = _layer4(TCP, source[0], destination[0], data, 16, l4_damage)
    return ipv4(TCP, source[0], destination[0], data, **fields)  # type: ignore[arg-type]


def icmp(
    source: str | int,
    destination: str | int,
    kind: int = ECHO_REQUEST,
    code: int = 0,
    identifier: int = 1,
    sequence: int = 1,
    payload: bytes = b"",
    *,
    l4_damage: int = 0,
    **fields: object,
) -> bytes:
    """An ICMP message; identifier and sequence are the words behind its checksum."""
    data = bytes((kind, code, 0, 0)) + identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big") + payload
    data = data[:2] + (checksum(data) ^ l4_damage).to_bytes(2, "big") + data[4:]
    return ipv4(ICMP, source, destination, data, **fields)  # type: ignore[arg-type]
