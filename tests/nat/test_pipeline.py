"""natcore/nat/pipeline and the modules on its way: verdict by verdict from crafted frames, bytes against scapy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from natcore import Behaviour, DnatEntry, Gateway, Link, Policy, Side, Verdict
from natcore.testhooks import wrappers
from support.frames import (
    EIP,
    HOST,
    ICMP,
    IP,
    MACS,
    REMOTE,
    TCP,
    UDP,
    Dot1AD,
    Dot1Q,
    Ether,
    Raw,
    Talk,
    assert_checksums,
    counted,
    damaged,
    echo,
    ether,
    gateway,
    ip,
    one_port,
    parsed,
    tcp,
    udp,
    verdict_of,
)  # fmt: skip

OTHER = "10.0.0.6"
INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
CSUM_PARTIAL, GSO, UNFINISHED = 1, 2, 4  # FrameFlag of natcore/frame.pxd


# ---- before anything is believed

MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "half an Ethernet header": udp()[:9],
    "a tag that ends the frame": ether(ip(), 5)[:16],
    "half an IPv4 header": udp()[:33],
    "version 6": damaged(udp(), 0, 0x65),
    "a header of 16 bytes": damaged(udp(), 0, 0x44, fix=False),
    "a header behind the packet": damaged(udp(), 0, 0x4F, fix=False),
    "a total length behind the frame": udp(len=200),
    "a total length within the header": udp(len=19),
    "half a TCP header": ether(ip(len=39) / TCP())[:-1],
    "a TCP header of 16 bytes": damaged(tcp("S"), 32, 0x40),
    "a TCP header behind the packet": damaged(tcp("S"), 32, 0x60),
    "half a UDP header": ether(ip(proto=17) / Raw(b"1234567")),
    "a UDP length within its header": ether(ip() / UDP(len=7) / Raw(b"load")),
    "a UDP length behind the packet": ether(ip() / UDP(len=13) / Raw(b"load")),
    "half an ICMP header": ether(ip(proto=1) / Raw(b"\x08\0\0\0abc")),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("side", Side)
def test_malformed(name: str, side: Side) -> None:
    assert verdict_of(gateway(), MALFORMED[name], side) is Verdict.DROP_MALFORMED


UNSUPPORTED: dict[str, bytes] = {
    "ARP": bytes(Ether(**MACS, type=0x0806)) + bytes(28),
    "IPv6": bytes(Ether(**MACS, type=0x86DD)) + bytes(40),
    "three tags": ether(ip() / UDP(), 1, 2, 3),
    "DCCP": ether(ip(proto=33) / Raw(bytes(20))),
    "AH": ether(ip(proto=51) / Raw(bytes(20))),
    "UDP-Lite": ether(ip(proto=136) / Raw(bytes(20))),
    "source quench": echo(kind=4),
    "a redirect": echo(kind=5),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(name: str) -> None:
    assert verdict_of(gateway(), UNSUPPORTED[name]) is Verdict.DROP_UNSUPPORTED


@pytest.mark.parametrize("source, destination, verdict", [
    ("0.1.2.3", REMOTE, Verdict.DROP_SPOOFED),
    ("127.0.0.1", REMOTE, Verdict.DROP_SPOOFED),
    ("224.0.0.1", REMOTE, Verdict.DROP_SPOOFED),
    ("255.255.255.255", REMOTE, Verdict.DROP_SPOOFED),
    (EIP, REMOTE, Verdict.DROP_SPOOFED),
    (HOST, "0.0.0.1", Verdict.DROP_UNSUPPORTED),
    (HOST, "127.0.0.1", Verdict.DROP_UNSUPPORTED),
    (HOST, "239.1.2.3", Verdict.DROP_UNSUPPORTED),
    (HOST, "255.255.255.255", Verdict.DROP_UNSUPPORTED),
    ("192.168.0.1", REMOTE, Verdict.DROP_NO_SNAT_ENTRY),
])  # fmt: skip
def test_addresses_from_inside(source: str, destination: str, verdict: Verdict) -> None:
    assert verdict_of(gateway(), udp(source, 5000, destination)) is verdict


@pytest.mark.parametrize("source, destination, verdict", [
    ("127.0.0.1", EIP, Verdict.DROP_SPOOFED),
    (EIP, EIP, Verdict.DROP_SPOOFED),
    (EIP, REMOTE, Verdict.DROP_SPOOFED),
    ("240.0.0.1", REMOTE, Verdict.DROP_SPOOFED),
    (REMOTE, EIP, Verdict.DROP_NO_MAPPING),
    (REMOTE, HOST, Verdict.DROP_NO_MAPPING),
])  # fmt: skip
def test_addresses_from_outside(source: str, destination: str, verdict: Verdict) -> None:
    assert verdict_of(gateway(), udp(source, 53, destination, 4000), OUTSIDE) is verdict


@pytest.mark.parametrize("own", ["10.0.0.1", "203.0.113.254"])
def test_the_gateways_own_addresses_come_by_no_wire(own: str) -> None:
    """Else a stranger could open a session that takes an inside host's packets to the gateway away."""
    over = gateway(inside=Link(address="10.0.0.1"), outside=Link(address="203.0.113.254"))
    over.add(DnatEntry("203.0.113.9", "any", HOST, "any", protocol="any"))
    for frame, side in (
        (udp(own, 53), INSIDE), (udp(own, 53, "203.0.113.9", 5000), OUTSIDE),
        (echo(own, "203.0.113.9"), OUTSIDE), (tcp("S", own, 443, "203.0.113.9", 5000), OUTSIDE),
    ):  # fmt: skip
        assert verdict_of(over, frame, side) is Verdict.DROP_SPOOFED
    assert (
        verdict_of(over, udp(HOST, 5000, "10.0.0.1", 53)) is verdict_of(over, echo(HOST, "10.0.0.1")) is Verdict.LOCAL
    )


def test_a_wrong_header_checksum() -> None:
    frame = udp()
    assert verdict_of(gateway(), damaged(frame, 11, frame[25] ^ 1, fix=False)) is Verdict.DROP_CHECKSUM


def test_dont_fragment_alone_is_no_fragment() -> None:
    assert verdict_of(gateway(), udp(flags="DF")) is Verdict.OUTBOUND


@pytest.mark.parametrize("ttl, verdict", [(0, Verdict.DROP_TTL), (1, Verdict.DROP_TTL), (2, Verdict.OUTBOUND)])
def test_time_to_live(ttl: int, verdict: Verdict) -> None:
    fresh, known = gateway(), gateway()
    known.translate_one(udp(), INSIDE, 0.0)
    assert verdict_of(fresh, udp(ttl=ttl)) is verdict
    assert verdict_of(known, udp(ttl=ttl)) is verdict
    assert verdict_of(gateway(decrement_ttl=False), udp(ttl=ttl)) is Verdict.OUTBOUND


def test_a_packet_over_the_next_link_s_mtu() -> None:
    over = gateway(outside=Link(mtu=100), inside=Link(mtu=90))
    assert verdict_of(over, udp(load=bytes(73), flags="DF")) is Verdict.DROP_MTU
    assert over.counters()["sessions"] == 0
    made = Talk(over)
    assert made.out(load=bytes(72)) is Verdict.OUTBOUND
    assert verdict_of(over, udp(dport=443, load=bytes(73), flags="DF")) is Verdict.DROP_MTU
    long = udp(made.remote, made.dport, *made.outside, load=bytes(63), flags="DF")
    assert verdict_of(over, long, OUTSIDE) is Verdict.DROP_MTU
    assert made.back(load=bytes(62)) is Verdict.INBOUND


def test_no_port_is_free() -> None:
    over = gateway(policy=one_port())
    assert verdict_of(over, udp(sport=1)) is Verdict.OUTBOUND
    assert verdict_of(over, udp(sport=2)) is Verdict.DROP_PORTS_EXHAUSTED
    assert verdict_of(over, tcp("S", sport=2)) is Verdict.OUTBOUND  # TCP has its own
    assert verdict_of(over, udp(sport=1, dport=99)) is Verdict.OUTBOUND  # and the mapping takes any remote


@pytest.mark.parametrize("limit", ["max_sessions", "max_mappings", "max_subscribers"])
def test_no_room(limit: str) -> None:
    over = gateway(**{limit: 1})
    assert verdict_of(over, udp()) is Verdict.OUTBOUND
    assert verdict_of(over, udp(source=OTHER)) is Verdict.DROP_SESSION_LIMIT
    assert verdict_of(over, udp()) is Verdict.OUTBOUND
    assert verdict_of(over, udp(source=OTHER), now=300.0) is Verdict.OUTBOUND  # the first died at exactly now


def test_what_cannot_enter_draws_no_port() -> None:
    over = gateway(max_sessions=1)
    over.translate_one(udp(), INSIDE, 0.0)
    with counted(over, ports_used=0, mappings=0, created=0):
        assert verdict_of(over, udp(source=OTHER)) is Verdict.DROP_SESSION_LIMIT


@pytest.mark.parametrize("of_mapping, of_gateway", [(2, 100), (100, 2)])
def test_sessions_opened_from_outside_have_their_own_caps(of_mapping: int, of_gateway: int) -> None:
    over = gateway()
    wrappers.preset_caps(over._core.worker_capsule(), of_mapping, of_gateway)
    made = Talk(over)
    made.out()
    for number in range(2):
        assert made.back(source=f"198.51.100.{100 + number}") is Verdict.INBOUND
    frame = udp("198.51.100.102", 443, *made.outside)
    assert verdict_of(over, frame, OUTSIDE) is Verdict.DROP_OUTSIDE_LIMIT
    assert verdict_of(over, udp(sport=1234)) is Verdict.OUTBOUND  # the inside is not bound by them
    assert verdict_of(over, frame, OUTSIDE, now=30.0) is Verdict.INBOUND  # unreplied ones died


# ---- filtering


@pytest.mark.parametrize("filtering, others", [
    ("endpoint-independent", (True, True)),
    ("address-dependent", (True, False)),
    ("address-and-port-dependent", (False, False)),
])  # fmt: skip
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_filtering(protocol: str, filtering: str, others: tuple[bool, bool]) -> None:
    """Another port of the remote, another address (RFC 4787 section 5)."""
    made = Talk(gateway(policy=Policy(**{protocol: Behaviour(filtering=filtering)})))
    flags = "S" if protocol == "tcp" else ""
    made.out(flags)
    port, address = others
    assert made.back(flags, sport=99) is (Verdict.INBOUND if port else Verdict.DROP_FILTERED)
    assert made.back(flags, source="198.51.100.99") is (Verdict.INBOUND if address else Verdict.DROP_FILTERED)
    assert made.back(flags) is Verdict.INBOUND


def test_an_address_that_was_spoken_to_is_let_in_while_a_session_lives() -> None:
    made = Talk(gateway(policy=Policy(filtering="address-dependent")))
    made.out()
    other = Talk(made.gateway, remote="198.51.100.99")
    other.out()
    assert other.outside == made.outside
    made.now = 200.0
    made.out()
    made.now = 300.0  # the session towards the other remote is dead, the mapping is not
    assert made.back(source="198.51.100.99", sport=7) is Verdict.DROP_FILTERED
    assert made.back(sport=7) is Verdict.INBOUND


def test_a_dead_mapping_is_closed() -> None:
    made = Talk(gateway())
    made.out()
    made.now = 299.999
    assert made.back(source="198.51.100.99") is Verdict.INBOUND
    made.now = 300.0
    assert made.back(source="198.51.100.99") is Verdict.INBOUND  # its own session keeps the mapping open
    made.now = 330.0
    assert made.back(source="198.51.100.99") is Verdict.DROP_NO_MAPPING


# ---- bytes

FRAMES: dict[str, Callable[..., bytes]] = {
    "udp": udp,
    "tcp": lambda **fields: tcp("S", seq=9, load=b"fast open", dport=53, **fields),
    "odd": lambda **fields: udp(load=b"odd", **fields),
    "options": lambda **fields: udp(options=b"\x94\x04\x00\x00" * 3, **fields),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_outbound_changes_source_ttl_and_checksums_alone(kind: str) -> None:
    frame = FRAMES[kind](tos=0x2E, flags="DF")
    verdict, sent = gateway().translate_one(frame, INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND
    packet, before = parsed(sent), Ether(frame)
    assert (packet.src, packet.dst, packet.ttl) == (EIP, REMOTE, 63)
    assert 1024 <= packet.sport <= 65535 and packet.dport == 53
    assert (packet.tos, packet.id, packet.flags, packet.options) == (0x2E, 7, "DF", before[IP].options)
    assert bytes(packet.payload.payload) == bytes(before[IP].payload.payload)
    assert sent is not None and sent[:14] == frame[:14] and len(sent) == len(frame)


@pytest.mark.parametrize("flags", ["", "S"])
def test_inbound_restores_what_the_inside_sent(flags: str) -> None:
    made = Talk(gateway())
    made.out(flags)
    reply = {"source": REMOTE, "sport": 443, "destination": made.outside[0], "dport": made.outside[1]}
    frame = tcp("SA", **reply) if flags else udp(**reply)
    verdict, sent = made.gateway.translate_one(frame, OUTSIDE, 0.0)
    packet = parsed(sent)
    assert verdict is Verdict.INBOUND
    assert (packet.src, packet.sport, packet.dst, packet.dport, packet.ttl) == (REMOTE, 443, HOST, 5000, 63)


def test_an_echo_and_its_reply() -> None:
    over = gateway()
    verdict, sent = over.translate_one(echo(), INSIDE, 0.0)
    packet = parsed(sent)
    assert verdict is Verdict.OUTBOUND and (packet.src, packet[ICMP].type, packet[ICMP].seq) == (EIP, 8, 3)
    ident = packet[ICMP].id
    verdict, sent = over.translate_one(echo(REMOTE, EIP, kind=0, ident=ident), OUTSIDE, 0.0)
    packet = parsed(sent)
    assert verdict is Verdict.INBOUND and (packet.dst, packet[ICMP].id) == (HOST, 77)
    assert verdict_of(over, echo(REMOTE, EIP, kind=0, ident=ident ^ 1), OUTSIDE) is Verdict.DROP_NO_MAPPING


def test_udp_without_a_checksum_stays_without() -> None:
    """RFC 768: 0 says that the sender made none."""
    frame = ether(ip() / UDP(sport=5000, dport=53, chksum=0) / Raw(b"x"))
    _, sent = gateway().translate_one(frame, INSIDE, 0.0)
    assert parsed(sent)[UDP].chksum == 0


def test_a_computed_zero_is_sent_as_ones() -> None:
    """RFC 768. The load is chosen so that the translated checksum is zero."""
    over = gateway(policy=one_port(4000))
    bare = ip(EIP, ttl=63) / UDP(sport=4000, dport=53) / Raw(b"\0\0")
    load = IP(bytes(bare))[UDP].chksum.to_bytes(2, "big")
    _, sent = over.translate_one(udp(load=load), INSIDE, 0.0)
    assert sent is not None and Ether(sent)[UDP].chksum == 0xFFFF
    assert sent[14 + 26 : 14 + 28] == b"\xff\xff"
    parsed(sent)


def test_a_wrong_layer_4_checksum_stays_wrong_by_as_much() -> None:
    """It is the receiver's to verify."""
    frame = bytearray(udp())
    frame[14 + 20 + 6] ^= 0x10
    verdict, sent = gateway().translate_one(bytes(frame), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None
    fixed = bytearray(sent)
    right = Ether(sent)[IP].copy()
    del right[UDP].chksum
    wrong = (int.from_bytes(fixed[40:42], "big") - IP(bytes(right))[UDP].chksum) % 0xFFFF
    assert wrong == (int.from_bytes(frame[40:42], "big") - Ether(udp())[UDP].chksum) % 0xFFFF != 0


def test_padding_is_cut() -> None:
    verdict, sent = gateway().translate_one(udp(load=b"") + b"secret padding....", INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None and len(sent) == 14 + 28


@pytest.mark.parametrize("tags", [(5,), (5, 6)])
def test_vlan_tags_are_kept(tags: tuple[int, ...]) -> None:
    over = gateway()
    frame = ether(ip() / UDP(sport=5000, dport=53) / Raw(b"load"), *tags)
    verdict, sent = over.translate_one(frame, INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None
    assert sent[: 14 + 4 * len(tags)] == frame[: 14 + 4 * len(tags)]
    assert parsed(sent).src == EIP
    double = bytes(Ether(**MACS) / Dot1AD(vlan=7) / Dot1Q(vlan=8) / ip() / UDP(sport=5000, dport=53))
    assert over.translate_one(double, INSIDE, 0.0)[0] is Verdict.OUTBOUND


def test_bare_ip_packets() -> None:
    over = gateway(framing="ip")
    verdict, sent = over.translate_one(udp()[14:], INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None
    packet = IP(sent)
    assert packet.src == EIP
    assert_checksums(packet)
    assert verdict_of(over, udp()) is Verdict.DROP_MALFORMED
    over.translate_one(udp(ttl=1)[14:], INSIDE, 0.0)
    (error,) = over.take_generated()
    assert IP(error.frame)[ICMP].type == 11


def test_an_unfinished_checksum_changes_by_the_addresses_alone() -> None:
    """Checksum offload: the field holds the pseudo-header's sum, not complemented; the card adds the rest."""
    over = gateway(policy=one_port(4000))
    plain = bytearray(udp())
    pseudo = bytes(plain[26:34]) + b"\0\x11" + plain[38:40]
    total = sum(int.from_bytes(pseudo[i : i + 2], "big") for i in range(0, 12, 2))
    plain[40:42] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    verdict, sent = wrappers.translate_frame(over._core.worker_capsule(), bytes(plain), INSIDE, 0, CSUM_PARTIAL)
    assert verdict == Verdict.OUTBOUND
    pseudo = sent[26:34] + b"\0\x11" + sent[38:40]
    total = sum(int.from_bytes(pseudo[i : i + 2], "big") for i in range(0, 12, 2))
    assert int.from_bytes(sent[40:42], "big") % 0xFFFF == total % 0xFFFF


def test_a_super_frame_counts_as_what_it_becomes() -> None:
    """3,000 bytes in segments of 1,400: three packets, with 40 bytes of headers each."""
    over = gateway()
    frame = tcp("A", load=bytes(3000))
    verdict, _ = wrappers.translate_frame(over._core.worker_capsule(), frame, INSIDE, 0, GSO | CSUM_PARTIAL, 1400)
    assert verdict == Verdict.OUTBOUND
    (row,) = over.sessions()
    assert (row["packets_out"], row["bytes_out"]) == (3, 3000 + 3 * 40)
    capsule = over._core.worker_capsule()
    assert wrappers.translate_frame(capsule, frame, INSIDE, 0, GSO, 1460)[0] == Verdict.OUTBOUND
    assert wrappers.translate_frame(capsule, frame, INSIDE, 0, GSO, 1461)[0] == Verdict.DROP_MTU
    verdict, _ = wrappers.translate_frame(capsule, frame, INSIDE, 0, UNFINISHED)
    assert verdict == Verdict.DROP_MTU  # what a device has to complete is not cut into fragments


# ---- hairpin


def hairpinned(**policy: Any) -> tuple[Gateway, tuple[str, int]]:
    """A gateway and the outside endpoint of OTHER's port 80."""
    over = gateway(policy=Policy(**policy))
    over.translate_one(tcp("S", OTHER, 80), INSIDE, 0.0)
    (row,) = over.sessions()
    return over, (EIP, int(row["outside_port"]))


def test_a_hairpin_goes_to_the_inside_with_the_outside_source() -> None:
    """RFC 4787 REQ-9a: external source address and port."""
    over, (address, port) = hairpinned()
    verdict, sent = over.translate_one(tcp("S", HOST, 5000, address, port), INSIDE, 0.0)
    packet = parsed(sent)
    assert verdict is Verdict.HAIRPIN
    assert (packet.src, packet.dst, packet.dport, packet.ttl) == (EIP, OTHER, 80, 63)
    verdict, sent = over.translate_one(tcp("SA", OTHER, 80, packet.src, packet.sport), INSIDE, 0.0)
    answer = parsed(sent)
    assert verdict is Verdict.HAIRPIN
    assert (answer.src, answer.sport, answer.dst, answer.dport) == (address, port, HOST, 5000)
    rows = over.sessions()
    assert sorted(rows["state"].tolist()) == [0, 3, 3]
    rows = over.take_records(events=True)
    assert len(rows) == 2  # the responder's session is not in the log


@pytest.mark.parametrize("filtering", ["address-dependent", "address-and-port-dependent"])
def test_a_hairpin_passes_the_same_filter(filtering: str) -> None:
    over, (address, port) = hairpinned(filtering=filtering)
    with counted(over, created=0, mappings=0, ports_used=0):
        assert verdict_of(over, tcp("S", HOST, 5000, address, port)) is Verdict.DROP_FILTERED


def test_a_hairpin_to_a_closed_port_leaves_nothing() -> None:
    over, (address, port) = hairpinned()
    with counted(over, created=0, ended=0, mappings=0, ports_used=0, sessions=0):
        assert verdict_of(over, tcp("S", HOST, 5000, address, port ^ 1)) is Verdict.DROP_NO_MAPPING
    assert over.translate_one(udp(), INSIDE, 0.0)[0] is Verdict.OUTBOUND
    assert sorted(over.sessions()["session"].tolist()) == [1, 2]  # no number was used up


def test_without_hairpinning() -> None:
    over, (address, port) = hairpinned(hairpin=False)
    assert verdict_of(over, tcp("S", HOST, 5000, address, port)) is Verdict.DROP_UNSUPPORTED


def test_a_hairpin_s_session_is_not_open_to_forgers_outside() -> None:
    over, (address, port) = hairpinned()
    _, sent = over.translate_one(tcp("S", HOST, 5000, address, port), INSIDE, 0.0)
    packet = parsed(sent)
    assert verdict_of(over, tcp("A", packet.src, packet.sport, address, port), OUTSIDE) is Verdict.DROP_SPOOFED
