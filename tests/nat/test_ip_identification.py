"""IP identification: what leaves is numbered as if the gateway had sent it (RFC 6864 section 5.3.1, RFC 7857)."""

from __future__ import annotations

import numpy as np
import pytest

from natcore import Gateway, Link, NoNatEntry, Policy, Side, Verdict
from natcore.testhooks import wrappers
from support import frames
from support.fragment_frames import LOAD, sent
from support.frames import (
    HOST,
    ICMP,
    IP,
    REMOTE,
    Ether,
    Raw,
    Talk,
    ether,
    fragments,
    parsed,
    reassembled,
    tcp,
    udp,
)

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
OTHER = "10.0.0.6"


def gateway(**policy: str) -> Gateway:
    return frames.gateway(policy=Policy(**policy))


def number_of(over: Gateway, frame: bytes, side: Side = INSIDE) -> int:
    verdict, out = over.translate_one(frame, side, 0.0)
    assert verdict.is_forwarded
    return int(parsed(out).id)


def test_two_hosts_fragments_with_one_number_are_two_datagrams() -> None:
    """A receiver would mix both customers' bytes."""
    over = gateway()
    ours = [fragments(udp(host, load=LOAD if host == HOST else LOAD[::-1]), 1200) for host in (HOST, OTHER)]
    mixed = [piece for pair in zip(*ours, strict=True) for piece in pair]
    _, left = sent(over, mixed)
    by_number: dict[int, list[bytes]] = {}
    for frame in left:
        by_number.setdefault(Ether(frame)[IP].id, []).append(frame)
    assert len(by_number) == 2
    assert {bytes(reassembled(frames).payload)[8:] for frames in by_number.values()} == {LOAD, LOAD[::-1]}


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_all_fragments_of_a_datagram_have_its_number(order: list[int]) -> None:
    over = gateway()
    pieces = fragments(udp(load=LOAD), 1200)
    numbers = []
    for _ in range(3):
        _, left = sent(over, [pieces[at] for at in order])
        (number,) = {Ether(frame)[IP].id for frame in left}
        assert bytes(reassembled(left).payload)[8:] == LOAD
        numbers.append(number)
    assert len(set(numbers)) == 3


def test_packets_that_may_be_fragmented_have_numbers_of_their_own() -> None:
    over = gateway()
    numbers = [number_of(over, udp(host, id=7)) for host in (HOST, OTHER) for _ in range(400)]
    assert len(set(numbers)) == 800
    assert len({number_of(over, tcp("A", host, id=7)) for host in (HOST, OTHER)}) == 2  # the slow way too


def test_in_a_batch_too() -> None:
    over = gateway()
    frames = [udp(host, load=bytes(18), id=7) for _ in range(200) for host in (HOST, OTHER)]
    rows = np.frombuffer(b"".join(frames), np.uint8).reshape(400, -1).copy()
    for _ in range(2):
        again = rows.copy()
        over.translate(again, np.full(400, rows.shape[1], np.uint32), INSIDE, 0.0)
        assert len({parsed(row.tobytes()).id for row in again}) == 400


def test_atomic_packets_keep_theirs() -> None:
    over = gateway()
    for number in (0, 7, 0xFFFF):
        assert number_of(over, udp(id=number, flags="DF")) == number
        assert number_of(over, tcp("A", id=number, flags="DF")) == number


def test_what_comes_in_and_what_is_not_translated_keeps_its_sender_s() -> None:
    over = gateway()
    over.add(NoNatEntry("10.0.0.0/8", "192.168.0.0/16"))
    talk = Talk(over)
    talk.out()
    assert number_of(over, udp(talk.remote, talk.dport, *talk.outside, id=99), OUTSIDE) == 99
    assert number_of(over, udp(destination="192.168.1.1", id=99)) == 99


def test_hairpins_and_errors_are_numbered_too() -> None:
    over = gateway()
    one, other = Talk(over), Talk(over, host=OTHER, sport=6000)
    one.out()
    other.out()
    target = Talk(over, host="10.0.0.7", sport=7000)
    target.out()
    assert len({number_of(over, udp(t.host, t.sport, *target.outside, id=7)) for t in (one, other)}) == 2
    quoted = bytes(Ether(udp(REMOTE, one.dport, HOST, one.sport))[IP])
    errors = [ether(IP(src=HOST, dst=REMOTE, id=7) / ICMP(type=3, code=3) / Raw(quoted)) for _ in range(2)]
    assert len({Ether(over.translate_one(error, INSIDE, 0.0)[1])[IP].id for error in errors}) == 2


@pytest.mark.parametrize("gso_size", [1, 8, 1000, 4000])
def test_a_super_frame_takes_a_number_for_each_of_its_segments(gso_size: int) -> None:
    """Whoever cuts it counts up from the one that it has."""
    over = frames.gateway(outside=Link(mtu=9000))
    capsule = over._core.worker_capsule()

    def number(load: int, gso: int = 0) -> int:
        frame = udp(load=bytes(load))
        verdict, sent = wrappers.translate_frame(capsule, frame, 0, 0, 2 if gso else 0, gso)  # FRAME_GSO
        assert verdict == Verdict.OUTBOUND
        return int(Ether(sent)[IP].id)

    first = number(4000, gso_size)
    assert (number(10) - first) % 65_536 == -(-4000 // gso_size)


def test_the_policy_keeps_them_all() -> None:
    over = gateway(ip_id="keep")
    assert [number_of(over, udp(host, id=7)) for host in (HOST, OTHER)] == [7, 7]
    _, left = sent(over, fragments(udp(load=LOAD, id=7), 1200))
    assert {Ether(frame)[IP].id for frame in left} == {7}


def test_numbers_are_repeatable_and_foretold() -> None:
    first, second = gateway(), gateway()
    told = first.explain(udp(), INSIDE)
    assert told.verdict is Verdict.OUTBOUND
    assert parsed(told.frame).id == number_of(first, udp()) == number_of(second, udp())
