"""Making fragments for a next link that carries less (RFC 791, RFC 4787 REQ-13a)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from scapy.layers.inet import IPOption, IPOption_NOP, IPOption_RR, IPOption_Security

from natcore import Link, NoNatEntry, Policy, Side, Verdict
from natcore.testhooks import wrappers
from natcore.testing import craft
from natcore.testing.oracle.fragments import split as model_split
from support.frames import (
    EIP,
    IP,
    REMOTE,
    UDP,
    Ether,
    Raw,
    Talk,
    counted,
    echo,
    ether,
    fragments,
    gateway,
    reassembled,
    tcp,
    udp,
)

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
CSUM_PARTIAL = 1  # FrameFlag of natcore/frame.pxd
LOAD = bytes(range(256)) * 5 + b"odd"


def leaving(over: Any, frame: bytes, side: Side = INSIDE) -> tuple[Verdict, list[bytes]]:
    """The verdict, and what leaves: the frame, then what was generated, by one side and for one cause."""
    verdict, first = over.translate_one(frame, side, 0.0)
    others = over.take_generated()
    assert {other.cause for other in others} <= {verdict} and len({other.send_to for other in others}) <= 1
    return verdict, [first, *(other.frame for other in others)]


@pytest.mark.parametrize("make", [udp, lambda **fields: tcp("PA", **fields), echo])
@pytest.mark.parametrize("mtu", [68, 576, 1000, 1279, 1310])
def test_what_is_too_long_leaves_in_fragments(make: Any, mtu: int) -> None:
    over, wide = gateway(outside=Link(mtu=mtu)), gateway()
    whole = make(load=LOAD)
    with counted(over, forwarded=1, received=1, dropped=0):
        verdict, left = leaving(over, whole)
    assert verdict is Verdict.OUTBOUND and len(left) > 1
    lengths = [Ether(frame)[IP].len for frame in left]
    assert max(lengths) <= mtu and all(length > mtu - 8 for length in lengths[:-1])
    _, expected = wide.translate_one(whole, INSIDE, 0.0)
    assert bytes(reassembled(left)) == bytes(Ether(expected)[IP])
    assert {frame[:14] for frame in left} == {whole[:14]}
    assert over.counters()["generated"] == len(left) - 1
    assert over.sessions()[0]["packets_out"] == 1, "counted as it came"


def test_by_one_byte() -> None:
    over = gateway(outside=Link(mtu=100))
    assert leaving(over, udp(load=bytes(72)))[1][1:] == []
    assert [Ether(frame)[IP].len for frame in leaving(over, udp(load=bytes(73)))[1]] == [100, 21]


def test_the_way_in_and_hairpins_and_no_nat() -> None:
    over = gateway(inside=Link(mtu=600), outside=Link(mtu=9000))
    over.add(NoNatEntry("10.0.0.0/8", "192.168.0.0/16"))
    one, other = Talk(over), Talk(over, host="10.0.0.6", sport=6000)
    one.out()
    other.out()
    verdict, left = leaving(over, udp(REMOTE, 443, *one.outside, load=LOAD), OUTSIDE)
    assert verdict is Verdict.INBOUND and reassembled(left).dst == one.host
    verdict, left = leaving(over, udp(one.host, one.sport, *other.outside, load=LOAD))
    assert verdict is Verdict.HAIRPIN and reassembled(left)[UDP].dport == 6000
    over.translate_one(udp(destination="192.168.0.1"), INSIDE, 0.0)
    verdict, left = leaving(over, udp("192.168.0.1", 53, "10.0.0.5", 5000, load=LOAD), OUTSIDE)
    assert verdict is Verdict.UNTRANSLATED and reassembled(left).src == "192.168.0.1"


def test_fragments_are_cut_again() -> None:
    """In order and not; the last fragment alone is the last."""
    for reverse in (False, True):
        over = gateway(outside=Link(mtu=300))
        pieces = fragments(udp(load=LOAD), 800)
        left = []
        for piece in reversed(pieces) if reverse else pieces:
            verdict, sent = over.translate_one(piece, INSIDE, 0.0)
            left += [sent] if sent else []
        left += [generated.frame for generated in over.take_generated()]
        assert verdict is Verdict.OUTBOUND and bytes(reassembled(left).payload)[8:] == LOAD
        assert all(Ether(frame)[IP].len <= 300 for frame in left)


def test_options_are_copied_where_their_type_says_so() -> None:
    options: list[IPOption] = [IPOption_RR(routers=["0.0.0.0"] * 2), IPOption_Security(), IPOption_NOP()]
    over = gateway(outside=Link(mtu=500), policy=Policy(ip_options="pass"))
    packet = IP(src="10.0.0.5", dst=REMOTE, id=7, options=options) / UDP(sport=5000, dport=53) / Raw(LOAD)
    _, left = leaving(over, ether(packet))
    first, *others = [Ether(frame)[IP] for frame in left]
    assert [type(option).__name__ for option in first.options][:2] == ["IPOption_RR", "IPOption_Security"]
    for other in others:
        assert {type(o).__name__ for o in other.options} <= {"IPOption_Security", "IPOption_EOL"}
        assert bytes(other.options[0]) == bytes(options[1]) and other.ihl == 8
    assert b"".join(bytes(p.payload) for p in (first, *others))[8:] == LOAD


@pytest.mark.parametrize("options", ["94", "9400", "9401", "94ff0000"])
def test_malformed_options_are_not_forwarded_in_fragments_either(options: str) -> None:
    raw = bytes.fromhex(options)
    raw += bytes(-len(raw) % 4)
    frame = craft.ether(craft.udp(("10.0.0.5", 5000), (REMOTE, 53), LOAD, ip_options=raw))
    assert gateway(outside=Link(mtu=300)).translate_one(frame, INSIDE, 0.0) == (Verdict.DROP_MALFORMED, None)


@pytest.mark.parametrize("options", ["0100000094040000", "010101", "00940400", "94040000", "0194040000"])
def test_what_follows_the_end_of_the_options_is_not_copied(options: str) -> None:
    """Options are copied as by the oracle, which shares no line with natcore."""
    raw = bytes.fromhex(options)
    raw += bytes(-len(raw) % 4)
    frame = craft.ether(craft.udp(("10.0.0.5", 5000), (REMOTE, 53), LOAD, ip_options=raw))
    _, expected = gateway().translate_one(frame, INSIDE, 0.0)
    assert expected is not None
    _, left = leaving(gateway(outside=Link(mtu=300)), frame)
    assert left == model_split(expected, 14, 300)


def test_random_packets_are_cut_as_the_oracle_cuts_them() -> None:
    random = Random(5)
    for _ in range(200):
        mtu = random.randrange(68, 1500)
        raw = b"".join(
            random.choice([b"\1", b"\x94\4\0\0", b"\x82\3x", b"\x07\3\4"]) for _ in range(random.randrange(11))
        )
        raw += bytes(-len(raw) % 4)
        fields = {"ip_options": raw, "identification": random.getrandbits(16), "fragment": random.choice([0, 0x8000])}
        load = random.randbytes(random.randrange(1400))
        frame = craft.ether(craft.udp(("10.0.0.5", 5000), (REMOTE, 53), load, **fields))
        _, expected = gateway(policy=Policy(ip_options="pass")).translate_one(frame, INSIDE, 0.0)
        assert expected is not None
        over = gateway(outside=Link(mtu=mtu), policy=Policy(ip_options="pass"))
        assert leaving(over, frame)[1] == model_split(expected, 14, mtu)


def test_dont_fragment_is_told_instead() -> None:
    over = gateway(outside=Link(mtu=500))
    assert over.translate_one(udp(load=LOAD, flags="DF"), INSIDE, 0.0) == (Verdict.DROP_MTU, None)
    (told,) = over.take_generated()
    assert (Ether(told.frame)[IP]["ICMP"].type, Ether(told.frame)[IP]["ICMP"].code) == (3, 4)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_a_partial_checksum_is_made_whole(protocol: str) -> None:
    """A local program's frame on a virtual interface: no device can complete a sum that is spread over fragments."""
    over = gateway(outside=Link(mtu=500))
    whole = udp(load=LOAD) if protocol == "udp" else tcp("PA", load=LOAD)
    raw, at = bytearray(whole), 14 + 20 + (6 if protocol == "udp" else 16)
    pseudo = raw[26:34] + bytes((0, raw[23])) + (len(raw) - 34).to_bytes(2, "big")
    raw[at : at + 2] = (~int.from_bytes(wrappers.checksum_of(pseudo), "little") & 0xFFFF).to_bytes(2, "little")
    verdict, first = wrappers.translate_frame(over._core.worker_capsule(), bytes(raw), INSIDE, 0, CSUM_PARTIAL)
    assert verdict == Verdict.OUTBOUND
    packet = reassembled([first, *(generated.frame for generated in over.take_generated())])
    assert packet.src == EIP and bytes(packet.payload.payload) == LOAD


def test_without_room_for_all_of_it_nothing_leaves() -> None:
    """Generated frames are not taken: then a packet that is too long is dropped whole."""
    over = gateway(outside=Link(mtu=68), inside=Link(mtu=65535))
    verdicts = [over.translate_one(udp(load=bytes(60_000)), INSIDE, 0.0)[0] for _ in range(30)]
    assert verdicts[0] is Verdict.OUTBOUND and verdicts[-1] is Verdict.DROP_MTU
    assert over.counters()["generated_lost"] == 0
    made = over.take_generated()
    assert len(made) % (60_008 // 48) == 0
    assert verdicts.count(Verdict.OUTBOUND) == len(made) // (60_008 // 48)
