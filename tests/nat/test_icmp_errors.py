"""natcore/nat/icmp_errors: ICMP errors of others on their way through, verdict by verdict, bytes made and checked by scapy."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IPOption_NOP

from natcore import Gateway, Link, Side, Verdict
from support.frames import (
    EIP,
    HOST,
    ICMP,
    IP,
    REMOTE,
    TCP,
    UDP,
    Ether,
    Raw,
    assert_checksums,
    counted,
    damaged,
    ether,
    gateway,
    one_port,
    tcp,
    udp,
)  # fmt: skip

ROUTER = "192.0.2.1"
OTHER = "10.0.0.6"
INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
PORT = 4000


def opened(frame: bytes, **settings: Any) -> tuple[Gateway, IP]:
    """A gateway over which frame went out by port 4000, and what went out."""
    over = gateway(**{"policy": one_port(PORT), **settings})
    verdict, sent = over.translate_one(frame, INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and sent is not None
    return over, Ether(sent)[IP]


def error(source: str, destination: str, quoted: bytes, kind: int = 3, code: int = 3, **fields: Any) -> bytes:
    """An ICMP error in Ethernet, about the packet of which the first bytes are quoted."""
    return ether(IP(src=source, dst=destination, ttl=64) / ICMP(type=kind, code=code, **fields) / Raw(quoted))


def quote_of(frame: bytes | None) -> tuple[IP, IP]:
    """The error's packet, all its checksums right, and the packet that it quotes, its header's checksum right."""
    assert frame is not None
    outer = Ether(frame)[IP]
    again = IP(bytes(outer)[:20] + bytes(outer.payload))
    raw = bytes(again)
    assert sum_of(raw[:20]) == 0xFFFF and sum_of(raw[20:]) == 0xFFFF
    quoted = raw[28:]
    assert sum_of(quoted[: (quoted[0] & 15) * 4]) == 0xFFFF
    return outer, IP(quoted)


def sum_of(data: bytes) -> int:
    """The ones' complement sum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


KINDS = [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)]


@pytest.mark.parametrize("kind, code", KINDS)
@pytest.mark.parametrize("sent", [udp(sport=5001), tcp("S", sport=5001)], ids=["udp", "tcp"])
def test_an_error_from_outside_reaches_the_host_with_its_own_packet(sent: bytes, kind: int, code: int) -> None:
    over, out = opened(sent)
    with counted(over, forwarded=1, created=0, ended=0):
        verdict, back = over.translate_one(error(ROUTER, EIP, bytes(out), kind, code), OUTSIDE, 1.0)
    assert verdict is Verdict.INBOUND
    outer, quoted = quote_of(back)
    assert (outer.src, outer.dst, outer.ttl, outer[ICMP].type, outer[ICMP].code) == (ROUTER, HOST, 63, kind, code)
    assert (quoted.src, quoted.sport, quoted.dst) == (HOST, 5001, REMOTE)
    assert_checksums(quoted)  # whole, so its layer 4 must be right as well


@pytest.mark.parametrize("length", [28, 30, 36, 38, 40])
def test_a_quote_of_any_length_is_translated_as_far_as_it_goes(length: int) -> None:
    over, out = opened(tcp("S", sport=5001, flags="DF"))
    verdict, back = over.translate_one(error(ROUTER, EIP, bytes(out)[:length]), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND
    outer, _ = quote_of(back)
    whole = bytes(Ether(tcp("S", sport=5001, ttl=63, flags="DF"))[IP])
    assert bytes(outer)[28:] == whole[:length]


def test_a_quoted_echo_gets_its_identifier_back() -> None:
    request = ether(IP(src=HOST, dst=REMOTE) / ICMP(type=8, id=77, seq=3) / Raw(b"ping"))
    over, out = opened(request)
    assert out[ICMP].id == PORT
    verdict, back = over.translate_one(error(ROUTER, EIP, bytes(out), 11, 0), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND
    _, quoted = quote_of(back)
    assert (quoted.src, quoted[ICMP].id) == (HOST, 77)
    assert_checksums(quoted)


def test_a_quoted_udp_checksum_of_none_stays_none() -> None:
    over, out = opened(udp(sport=5001))
    none = bytes(out)[:26] + b"\0\0" + bytes(out)[28:]
    verdict, back = over.translate_one(error(ROUTER, EIP, none), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND
    assert quote_of(back)[1][UDP].chksum == 0


def test_quoted_options_are_passed_over() -> None:
    """RFC 5508 REQ-3b."""
    over, out = opened(udp(sport=5001))
    inner = UDP(sport=out.sport, dport=53) / Raw(b"query")
    with_options = IP(src=out.src, dst=out.dst, options=[IPOption_NOP()] * 4) / inner
    verdict, back = over.translate_one(error(ROUTER, EIP, bytes(with_options)), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND
    _, quoted = quote_of(back)
    assert (quoted.ihl, quoted.src, quoted[UDP].sport) == (6, HOST, 5001)


def test_an_error_from_inside_comes_from_the_outside_address() -> None:
    over, _ = opened(udp(sport=5001))
    _, answer = over.translate_one(udp(REMOTE, 53, EIP, PORT), OUTSIDE, 0.0)
    assert answer is not None
    verdict, sent = over.translate_one(error(HOST, REMOTE, answer[14:]), INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND
    outer, quoted = quote_of(sent)
    assert (outer.src, outer.dst, outer.ttl) == (EIP, REMOTE, 63)
    assert (quoted.src, quoted.dst, quoted.dport) == (REMOTE, EIP, PORT)
    assert_checksums(quoted)


def test_a_hairpinned_error_goes_back_in() -> None:
    """RFC 5508 REQ-7."""
    over = gateway()
    over.translate_one(udp(HOST, 5001), INSIDE, 0.0)
    over.translate_one(udp(OTHER, 6001), INSIDE, 0.0)
    port_of = {int(row["inside_port"]): int(row["outside_port"]) for row in over.sessions()}
    verdict, sent = over.translate_one(udp(HOST, 5001, EIP, port_of[6001]), INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN and sent is not None
    verdict, back = over.translate_one(error(OTHER, EIP, sent[14:]), INSIDE, 0.0)
    assert verdict is Verdict.HAIRPIN
    outer, quoted = quote_of(back)
    assert (outer.src, outer.dst, outer.ttl) == (EIP, HOST, 63)
    assert (quoted.src, quoted.sport, quoted.dst, quoted.dport) == (HOST, 5001, EIP, port_of[6001])
    assert_checksums(quoted)


def changed(frame: bytes, at: int) -> bytes:
    """One byte of the IPv4 packet another one, no checksum mended."""
    packet = bytearray(frame)
    packet[14 + at] ^= 0x55
    return bytes(packet)


def test_what_does_not_verify_is_dropped() -> None:
    """RFC 5508 REQ-3a."""
    over, out = opened(udp(sport=5001))
    good = error(ROUTER, EIP, bytes(out))
    bad_quote = bytearray(bytes(out))
    bad_quote[10] ^= 0x55
    assert over.translate_one(changed(good, 40), OUTSIDE, 0.0)[0] is Verdict.DROP_CHECKSUM
    assert over.translate_one(error(ROUTER, EIP, bytes(bad_quote)), OUTSIDE, 0.0)[0] is Verdict.DROP_CHECKSUM
    assert over.translate_one(good, OUTSIDE, 0.0)[0] is Verdict.INBOUND


@pytest.mark.parametrize("length", [0, 8, 19, 20, 27])
def test_a_quote_that_is_too_short_is_malformed(length: int) -> None:
    over, out = opened(udp(sport=5001))
    assert over.translate_one(error(ROUTER, EIP, bytes(out)[:length]), OUTSIDE, 0.0)[0] is Verdict.DROP_MALFORMED


def test_a_quoted_later_fragment_or_wrong_echo_is_unsupported() -> None:
    over, _ = opened(udp(sport=5001))
    later = bytes(IP(src=EIP, dst=REMOTE, frag=5, proto=17) / Raw(bytes(16)))
    reply = bytes(IP(src=EIP, dst=REMOTE) / ICMP(type=0, id=PORT) / Raw(b"ping"))
    for quoted in (later, reply):
        assert over.translate_one(error(ROUTER, EIP, quoted), OUTSIDE, 0.0)[0] is Verdict.DROP_UNSUPPORTED


def test_an_error_about_no_session_is_dropped() -> None:
    over, out = opened(udp(sport=5001))
    unknown = bytes(IP(src=EIP, dst=REMOTE) / UDP(sport=PORT + 1, dport=53) / Raw(b"query"))
    assert over.translate_one(error(ROUTER, EIP, unknown), OUTSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING
    late = error(ROUTER, EIP, bytes(out))
    assert over.translate_one(late, OUTSIDE, 299.999)[0] is Verdict.INBOUND
    assert over.translate_one(late, OUTSIDE, 300.0)[0] is Verdict.DROP_NO_MAPPING


def test_an_error_about_the_gateway_s_own_packet_is_local() -> None:
    over, _ = opened(udp(sport=5001), outside=Link(address="198.51.100.1"))
    own = bytes(IP(src="198.51.100.1", dst=REMOTE) / UDP(sport=9, dport=53) / Raw(b"query"))
    assert over.translate_one(error(ROUTER, "198.51.100.1", own), OUTSIDE, 0.0) == (Verdict.LOCAL, None)


def test_an_error_with_a_pool_address_as_source_from_inside_is_spoofed() -> None:
    over, _ = opened(udp(sport=5001))
    _, answer = over.translate_one(udp(REMOTE, 53, EIP, PORT), OUTSIDE, 0.0)
    assert answer is not None
    assert over.translate_one(error(EIP, REMOTE, answer[14:]), INSIDE, 0.0)[0] is Verdict.DROP_SPOOFED


def test_ttl_and_mtu_hold_for_errors() -> None:
    over, out = opened(udp(sport=5001, load=bytes(200)), inside=Link(mtu=200))
    short = bytes(out)[:28]
    dying = ether(IP(src=ROUTER, dst=EIP, ttl=1) / ICMP(type=3, code=3) / Raw(short))
    assert over.translate_one(dying, OUTSIDE, 0.0)[0] is Verdict.DROP_TTL
    long = damaged(error(ROUTER, EIP, bytes(out)), 6, 0x40)
    assert over.translate_one(long, OUTSIDE, 0.0)[0] is Verdict.DROP_MTU  # DF is set
    assert over.take_generated() == []  # never an error about an error (RFC 1812 section 4.3.2.7)


def about(over: Gateway, sequence: int) -> Verdict:
    """The verdict on 'fragmentation needed' about a segment that the inside sent."""
    quoted = IP(src=EIP, dst=REMOTE) / TCP(sport=PORT, dport=443, flags="A", seq=sequence & 0xFFFFFFFF)
    return over.translate_one(error(ROUTER, EIP, bytes(quoted), 3, 4), OUTSIDE, 0.0)[0]


def connected(over: Gateway, sequence: int, flight: int) -> None:
    """A connection from sequence on; the server has acknowledged the SYN alone, and the inside sent flight bytes more."""
    over.translate_one(tcp("S", sport=5001, seq=sequence), INSIDE, 0.0)
    over.translate_one(tcp("SA", REMOTE, 443, EIP, PORT, seq=7, ack=(sequence + 1) & 0xFFFFFFFF), OUTSIDE, 0.0)
    over.translate_one(tcp("A", sport=5001, seq=(sequence + 1) & 0xFFFFFFFF, ack=8), INSIDE, 0.0)
    for sent in range(0, flight, 1 << 29):
        part = min(1 << 29, flight - sent)
        over.translate_one(
            tcp("A", sport=5001, seq=(sequence + sent + part) & 0xFFFFFFFF, ack=8, load=b"x"), INSIDE, 0.0
        )


@pytest.mark.parametrize("flight", [0, 830 * 1448, 1 << 30])
def test_an_error_about_anything_in_flight_is_genuine(flight: int) -> None:
    """RFC 5927 section 4.1, and nothing else: an off-path attacker does not know it."""
    over = gateway(policy=one_port(PORT))
    first = 0xFFFFFFF1
    connected(over, first - 1, flight)
    for genuine in {0, 1, flight // 2, flight} if flight else {0}:
        assert about(over, first + genuine) is Verdict.INBOUND
    for forged in (-2, -1448, flight + 2, flight + (1 << 20), 1 << 31):
        assert about(over, first + forged) is Verdict.DROP_NO_MAPPING


def test_a_forged_acknowledgement_hides_nothing_that_is_in_flight() -> None:
    over = gateway(policy=one_port(PORT))
    connected(over, 1000, 10_000)
    over.translate_one(tcp("A", REMOTE, 443, EIP, PORT, seq=8, ack=1001 + (1 << 30)), OUTSIDE, 0.0)
    assert about(over, 1001) is Verdict.INBOUND


@pytest.mark.parametrize("again", [2_990_000_000, 3_010_000_000, 100, (3_000_000_000 + (1 << 31)) & 0xFFFFFFFF])
def test_a_new_handshake_starts_the_marks_anew(again: int) -> None:
    for flight in (None, 1000):  # its SYN had no answer; a live connection
        over = gateway(policy=one_port(PORT))
        if flight is None:
            over.translate_one(tcp("S", sport=5001, seq=3_000_000_000), INSIDE, 0.0)
        else:
            connected(over, 3_000_000_000, flight)
        over.translate_one(tcp("S", sport=5001, seq=again), INSIDE, 0.0)
        assert about(over, again) is Verdict.INBOUND  # it is not answered
        connected(over, again, 830 * 1448)
        assert about(over, again + 1) is about(over, again + 830 * 1448) is Verdict.INBOUND
        assert about(over, 3_000_000_000 - (1 << 25)) is Verdict.DROP_NO_MAPPING
        assert len(over.sessions()) == over.counters()["created"] == 1


def test_an_error_neither_refreshes_nor_ends_nor_counts() -> None:
    """RFC 5508 REQ-6."""
    over, out = opened(udp(sport=5001))
    before = over.sessions()
    over.translate_one(error(ROUTER, EIP, bytes(out)), OUTSIDE, 200.0)
    assert over.sessions().tobytes() == before.tobytes()


@pytest.mark.parametrize("kind", [4, 5, 9, 12 + 7, 30])
def test_other_messages_are_unsupported(kind: int) -> None:
    over, out = opened(udp(sport=5001))
    assert over.translate_one(error(ROUTER, EIP, bytes(out), kind, 0), OUTSIDE, 0.0)[0] is Verdict.DROP_UNSUPPORTED
