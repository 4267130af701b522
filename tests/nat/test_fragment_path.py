"""Fragments on their way: in order and out of order, both ways, each as its first one."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natcore import DnatEntry, Gateway, Link, NoNatEntry, Policy, Side, Timeouts, Verdict
from natcore.testing import craft
from support.fragment_frames import LOAD, MAKERS, adds_up, sent
from support.frames import (
    EIP,
    HOST,
    IP,
    REMOTE,
    UDP,
    Ether,
    Raw,
    Talk,
    damaged,
    echo,
    ether,
    fragments,
    gateway,
    ip,
    reassembled,
    tcp,
    udp,
    verdict_of,
)

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE


@pytest.mark.parametrize("protocol", MAKERS)
@pytest.mark.parametrize("order", ["in order", "reversed", "last first", "shuffled"])
@pytest.mark.parametrize("side", [INSIDE, OUTSIDE])
def test_a_datagram_in_fragments_becomes_what_the_whole_one_would(protocol: str, order: str, side: Side) -> None:
    over = gateway(outside=Link(mtu=9000), inside=Link(mtu=9000), policy=Policy(ip_id="keep"))  # so that bytes compare
    make = MAKERS[protocol]
    over.translate_one(make(load=b"first"), INSIDE, 0.0)
    (row,) = over.sessions()
    port = int(row["outside_port"])
    if side is INSIDE:
        whole = make(load=LOAD)
    elif protocol == "icmp":
        whole = echo(REMOTE, EIP, kind=0, ident=port, load=LOAD)
    else:
        whole = make(source=REMOTE, sport=int(row["remote_port"]), destination=EIP, dport=port, load=LOAD)
    pieces = fragments(whole, 800)
    if order == "reversed":
        pieces.reverse()
    elif order == "last first":
        pieces.insert(0, pieces.pop())
    elif order == "shuffled":
        Random(3).shuffle(pieces)
    before = over.sessions()[0]["packets_out" if side is INSIDE else "packets_in"]
    verdicts, left = sent(over, pieces, side)
    first = next(i for i, piece in enumerate(pieces) if Ether(piece)[IP].frag == 0)
    known = Verdict.OUTBOUND if side is INSIDE else Verdict.INBOUND
    assert verdicts == [Verdict.HELD] * first + [known] * (len(pieces) - first)
    packet = reassembled(left)
    verdict, expected = over.translate_one(whole, side, 0.0)
    assert verdict is known and bytes(packet) == bytes(Ether(expected)[IP])
    after = over.sessions()[0]["packets_out" if side is INSIDE else "packets_in"]
    assert after - before == len(pieces) + 1, "each fragment is a packet of the network layer"
    adds_up(over, held=0, dropped=0, generated=0)


def test_in_a_batch_they_keep_their_order() -> None:
    over = gateway()
    pieces = fragments(udp(load=LOAD), 1200)
    frames, lengths = np.zeros((3, 1600), np.uint8), np.array([len(p) for p in pieces], np.uint32)
    for row, piece in enumerate(pieces):
        frames[row, : len(piece)] = np.frombuffer(piece, np.uint8)
    assert over.translate(frames, lengths, INSIDE, 0.0).tolist() == [Verdict.OUTBOUND] * 3
    reassembled([frames[row, : lengths[row]].tobytes() for row in range(3)])


def test_what_waits_is_copied_and_the_frame_left_alone() -> None:
    over = gateway()
    first, *others = fragments(udp(load=LOAD), 1200)
    frames, lengths = np.zeros((1, 1600), np.uint8), np.array([len(others[0])], np.uint32)
    frames[0, : lengths[0]] = np.frombuffer(others[0], np.uint8)
    before = frames.copy()
    assert over.translate(frames, lengths, INSIDE, 0.0).tolist() == [Verdict.HELD]
    assert (frames == before).all()
    frames[:] = 0
    assert over.translate_one(others[1], INSIDE, 0.0) == (Verdict.HELD, None)
    adds_up(over, held=2, forwarded=0)
    verdicts, left = sent(over, [first])
    assert verdicts == [Verdict.OUTBOUND] and bytes(reassembled(left).payload)[8:] == LOAD
    adds_up(over, held=0, forwarded=3)


def test_bare_ip_and_tags() -> None:
    bare = Gateway(framing="ip", seed=1)
    bare.add(gateway().entries()[0].entry)
    pieces = [piece[14:] for piece in fragments(udp(load=LOAD), 1200)]
    _, left = sent(bare, pieces[::-1])
    assert len(reassembled([craft.ether(packet) for packet in left]).payload) == 8 + len(LOAD)
    over = gateway()
    tagged = [ether(Ether(piece)[IP], 5, 6) for piece in fragments(udp(load=LOAD), 1200)]
    _, left = sent(over, tagged[::-1])
    assert all(frame[:22] == tagged[0][:22] for frame in left)
    reassembled(left)


def test_a_datagram_is_known_by_all_five() -> None:
    """Side, source, destination, protocol, identification: what differs in one is another datagram."""
    over = gateway()
    first, second = fragments(udp(load=LOAD), 2000)
    over.translate_one(first, INSIDE, 0.0)
    for other in (
        fragments(udp(load=LOAD, id=8), 2000)[1],
        fragments(udp("10.0.0.6", load=LOAD), 2000)[1],
        fragments(udp(destination="198.51.100.8", load=LOAD), 2000)[1],
        fragments(tcp("PA", load=LOAD), 2000)[1],
    ):
        assert verdict_of(over, other) is Verdict.HELD
    assert verdict_of(over, second, OUTSIDE) is Verdict.HELD
    assert verdict_of(over, second) is Verdict.OUTBOUND


def test_an_identification_used_again_is_another_datagram() -> None:
    over = gateway()
    for load in (LOAD, LOAD[::-1], LOAD):
        verdicts, left = sent(over, fragments(udp(load=load), 1200))
        assert verdicts == [Verdict.OUTBOUND] * 3
        assert bytes(reassembled(left).payload)[8:] == load


# ---- what the first fragment decides


def test_a_refused_first_fragment_refuses_the_others() -> None:
    over = gateway()
    pieces = fragments(udp(REMOTE, 53, EIP, 4000, load=LOAD), 1200)
    assert [verdict_of(over, piece, OUTSIDE) for piece in pieces] == [Verdict.DROP_NO_MAPPING] * 3
    late = fragments(udp(REMOTE, 53, EIP, 4000, load=LOAD, id=8), 1200)
    assert [over.translate_one(piece, OUTSIDE, 0.0)[0] for piece in late[1:]] == [Verdict.HELD] * 2
    assert over.translate_one(late[0], OUTSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING
    adds_up(over, held=0, dropped_no_mapping=6, forwarded=0)
    assert over.take_generated() == []


def test_fragments_for_the_gateway_itself_are_local() -> None:
    """An echo request in fragments is not answered: nothing is reassembled."""
    over = gateway(inside=Link(address="10.0.0.1"))
    for destination in ("10.0.0.1", EIP):
        pieces = fragments(echo(destination=destination, load=LOAD), 1200)
        assert [over.translate_one(piece, INSIDE, 0.0)[0] for piece in (*pieces[1:], pieces[0])] == [
            Verdict.HELD, Verdict.HELD, Verdict.LOCAL
        ]  # fmt: skip
    adds_up(over, held=0, local=6, generated=0)
    assert over.take_generated() == []
    assert verdict_of(over, echo(destination=EIP)) is Verdict.LOCAL and len(over.take_generated()) == 1


def test_hairpins_entries_and_no_nat() -> None:
    over = gateway()
    one, other = Talk(over), Talk(over, host="10.0.0.6", sport=6000)
    one.out()
    other.out()
    over.add(DnatEntry("203.0.113.1", 80, "10.0.0.7", 8080, protocol="udp"))
    over.add(NoNatEntry("10.0.0.0/8", "192.168.0.0/16"))
    hairpin = fragments(udp(HOST, 5000, *other.outside, load=LOAD), 1200)
    verdicts, left = sent(over, hairpin[::-1])
    packet = reassembled(left)
    assert verdicts[-1] is Verdict.HAIRPIN and (packet.src, packet.dst, packet[UDP].dport) == (EIP, "10.0.0.6", 6000)
    verdicts, left = sent(over, fragments(udp(REMOTE, 9, EIP, 80, load=LOAD), 1200)[::-1], OUTSIDE)
    packet = reassembled(left)
    assert verdicts[-1] is Verdict.INBOUND and (packet.dst, packet[UDP].dport) == ("10.0.0.7", 8080)
    verdicts, left = sent(over, fragments(udp(destination="192.168.1.1", load=LOAD), 1200)[::-1])
    assert verdicts[-1] is Verdict.UNTRANSLATED and reassembled(left).src == HOST
    rows = {(int(r["inside_port"]), int(r["remote_port"])): (int(r["packets_out"]), int(r["packets_in"]))
            for r in over.sessions()}  # fmt: skip
    assert rows[5000, other.outside[1]] == (3, 0) and rows[6000, one.outside[1]] == (0, 3)


def test_protocols_without_ports() -> None:
    over = gateway()
    whole = ether(ip(proto=47) / Raw(LOAD))
    _, left = sent(over, fragments(whole, 1200)[::-1])
    assert bytes(reassembled(left).payload) == LOAD
    assert verdict_of(over, fragments(ether(ip(proto=33) / Raw(LOAD)), 1200)[0]) is Verdict.DROP_UNSUPPORTED


def test_a_session_that_ended_takes_its_fragments_along() -> None:
    over = gateway()
    first, second, third = fragments(udp(load=LOAD), 1200)
    over.translate_one(first, INSIDE, 0.0)
    over.translate_one(second, INSIDE, 0.0)
    over.end_all()
    over.translate_one(udp(), INSIDE, 0.0)  # the same five-tuple, another session
    assert verdict_of(over, third) is Verdict.DROP_NO_MAPPING


def test_later_fragments_refresh_as_packets_do() -> None:
    over = gateway(policy=Policy(inbound_refresh=False), timeouts=Timeouts(fragment=200))
    first, second = fragments(udp(load=LOAD), 2000)
    over.translate_one(first, INSIDE, 0.0)
    over.translate_one(second, INSIDE, 100.0)
    assert over.sessions()[0]["last_seen_ns"] == 100_000_000_000
    port = int(over.sessions()[0]["outside_port"])
    first, second = fragments(udp(REMOTE, 53, EIP, port, load=LOAD), 2000)
    over.translate_one(first, OUTSIDE, 150.0)
    assert over.translate_one(second, OUTSIDE, 160.0)[0] is Verdict.INBOUND
    assert over.sessions()[0]["last_seen_ns"] == 100_000_000_000


def test_a_tcp_sequence_is_followed_over_fragments() -> None:
    """A RST behind a fragmented segment hits the expected sequence (RFC 7857 section 2.2)."""
    over = gateway(inside=Link(mtu=9000), outside=Link(mtu=9000))
    talk = Talk(over)
    talk.out("S", seq=1000)
    talk.back("SA", seq=1, ack=1001)
    segment = tcp("PA", seq=1001, ack=2, load=LOAD)
    assert sent(over, fragments(segment, 1200))[0] == [Verdict.OUTBOUND] * 3
    talk.out("R", seq=1001 + len(LOAD))
    assert talk.session()["deadline_ns"] == 240_000_000_000  # transitory


@pytest.mark.parametrize("ttl, verdict", [(2, Verdict.OUTBOUND), (1, Verdict.DROP_TTL)])
def test_each_fragment_has_its_own_time_to_live(ttl: int, verdict: Verdict) -> None:
    over = gateway()
    first, second = fragments(udp(load=LOAD[:2000]), 1200)
    over.translate_one(first, INSIDE, 0.0)
    assert verdict_of(over, damaged(second, 8, ttl)) is verdict
    assert over.take_generated() == []  # never an error about a later fragment (RFC 1122 section 3.2.2)


# ---- all of it at once


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), protocol=st.sampled_from(sorted(MAKERS)), side=st.sampled_from(Side),
       size=st.integers(1, 3000), count=st.integers(1, 4))  # fmt: skip
def test_any_fragments_in_any_order(seed: int, protocol: str, side: Side, size: int, count: int) -> None:
    """What the fragments become is what the whole datagram becomes; several datagrams are mixed, and cut again."""
    random = Random(seed)
    over = gateway(inside=Link(mtu=9000), outside=Link(mtu=9000), policy=Policy(ip_id="keep"))  # known by them again
    make = MAKERS[protocol]
    over.translate_one(make(load=b"open"), INSIDE, 0.0)
    (row,) = over.sessions()
    port, remote = int(row["outside_port"]), int(row["remote_port"])
    wholes = []
    for number in range(count):
        load = random.randbytes(size)
        if side is INSIDE:
            wholes.append(make(load=load, id=number))
        elif protocol == "icmp":
            wholes.append(echo(REMOTE, EIP, kind=0, ident=port, load=load, id=number))
        else:
            wholes.append(make(source=REMOTE, sport=remote, destination=EIP, dport=port, load=load, id=number))
    pieces = []
    for whole in wholes:
        for piece in fragments(whole, random.choice([48, 400, 1480])):
            packet = Ether(piece)[IP]
            again = packet.frag and len(packet.payload) > 16 and packet.flags.MF and random.random() < 0.3
            pieces += fragments_again(piece) if again else [piece]
    random.shuffle(pieces)
    _, left = sent(over, pieces[:128], side)
    verdicts, more = sent(over, pieces[128:], side)
    del verdicts
    by_id: dict[int, list[bytes]] = {}
    for frame in left + more:
        by_id.setdefault(Ether(frame)[IP].id, []).append(frame)
    counters = over.counters()
    for number, whole in enumerate(wholes):
        if counters["dropped"] == 0:
            expected = Ether(over.translate_one(whole, side, 0.0)[1])[IP]
            assert bytes(reassembled(by_id[number])) == bytes(expected)
    assert counters["held"] == 0
    adds_up(over)


def fragments_again(piece: bytes) -> list[bytes]:
    """A fragment cut into two by a router on its way."""
    packet = Ether(piece)[IP]
    data, cut = bytes(packet.payload), len(packet.payload) // 16 * 8
    halves = []
    for at, part in ((0, data[:cut]), (cut, data[cut:])):
        half = packet.copy()
        half.remove_payload()
        half.frag += at // 8
        del half.len, half.chksum
        halves.append(ether(half / Raw(part)))
    return halves


def test_explanations_know_fragments() -> None:
    """The verdict is what translate then gives; a later fragment's session is its first one's."""
    over = gateway()
    first, second, third = fragments(udp(load=LOAD), 1200)
    for piece in (third, first, second):
        explained = over.explain(piece, INSIDE, now=0.0)
        assert explained.verdict is over.translate_one(piece, INSIDE, 0.0)[0] and str(explained)
    assert explained.verdict is Verdict.OUTBOUND and explained.session is not None
    tiny = fragments(tcp("S", load=LOAD), 8)[0]
    assert over.explain(tiny, INSIDE, now=0.0).verdict is Verdict.DROP_FRAGMENT
