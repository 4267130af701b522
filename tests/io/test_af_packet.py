"""The packet rings over a veth pair: frames as they are, in order, with their offloads."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from natcore.demo.namespaces import Network
from natcore.io.af_packet import PacketRing
from support.netns import at, needs_root, until

pytestmark = needs_root

Rings = tuple[Network, PacketRing, PacketRing]


@pytest.fixture(params=[False, True], ids=["blocks", "at once"])
def rings(request: pytest.FixtureRequest) -> Iterator[Rings]:
    with Network(f"natcore-ring-{os.getpid()}-", ["a", "b"]) as network:
        network.pair("a", "one", "b", "two")
        for member, interface, address in (("a", "one", "10.1.0.1/24"), ("b", "two", "10.1.0.2/24")):
            network.setting(member, "net/ipv6/conf/all/disable_ipv6", 1)  # no frames but ours
            network.setting(member, "net/ipv6/conf/default/disable_ipv6", 1)
            network.up(member, interface, address)
        made = []
        for member in ("a", "b"):
            with at(network, member):
                index = socket.if_nametoindex("one" if member == "a" else "two")
                made.append(PacketRing(index, at_once=request.param))
        yield network, made[0], made[1]
        for ring in made:
            ring.close()


def frame(number: int, length: int) -> bytes:
    """Return a frame for no host in particular: an experimental Ethernet type (RFC 5342)."""
    body = number.to_bytes(4) + bytes(i * number & 0xFF for i in range(length - 18))
    return b"\x02\0\0\0\0\1" + b"\x02\0\0\0\0\2" + b"\x88\xb5" + body


def ours(ring: PacketRing) -> list[bytes]:
    return [data for data, *_ in ring.receive() if data[12:14] == b"\x88\xb5"]


def test_frames_of_every_size_arrive_unchanged_and_in_order(rings: Rings) -> None:
    _, one, two = rings
    sent = [frame(i, length) for i, length in enumerate((60, 61, 64, 512, 1513, 1514) * 20)]
    for data in sent:
        one.send(data)
    got: list[bytes] = []
    until(lambda: got.extend(ours(two)) or len(got) == len(sent))
    assert got == sent
    assert one.counters()["sent"] == len(sent)
    assert two.counters()["truncated"] == 0


def test_more_frames_than_there_are_slots(rings: Rings) -> None:
    _, one, two = rings
    count = 5000
    got: list[bytes] = []
    for i in range(count):
        one.send(frame(i, 100))
        got += ours(two)
    until(lambda: got.extend(ours(two)) or len(got) == count)
    assert [int.from_bytes(data[14:18]) for data in got] == list(range(count))
    assert two.counters()["ring_drops"] == 0


def test_own_frames_are_not_seen_again(rings: Rings) -> None:
    _, one, two = rings
    one.send(frame(1, 60))
    until(lambda: ours(two))
    assert ours(one) == []


def test_a_jumbo_frame_does_not_need_a_slot(rings: Rings) -> None:
    network, _, _ = rings
    network.up("a", "one", mtu=9000)
    network.up("b", "two", mtu=9000)
    _, one, two = rings
    sent = [frame(1, 60), frame(2, 9000), frame(3, 60)]
    for data in sent:
        one.send(data)
    got: list[bytes] = []
    until(lambda: got.extend(ours(two)) or len(got) == 3)
    assert got == sent


def test_a_super_frame_brings_its_virtio_net_header(rings: Rings) -> None:
    network, _, two = rings
    with at(network, "a"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT
        client.connect(("10.1.0.2", 9))
        client.send(bytes(5500))
    got: list[tuple[bytes, tuple[int, ...]]] = []
    until(lambda: got.extend((f, o) for f, _, _, o in two.receive() if f[12:14] == b"\x08\0" and f[23] == 17) or got)
    data, (flags, gso_type, _, gso_size, csum_start, csum_offset) = got[0]
    assert len(data) == 14 + 20 + 8 + 5500
    assert (flags & 1, gso_type, gso_size, csum_start, csum_offset) == (1, 5, 1000, 34, 6)  # linux/virtio_net.h


def test_many_large_frames_among_small_ones(rings: Rings) -> None:
    """More than fits at once beside a ring's places: none is lost, none comes before its turn."""
    network, one, two = rings
    network.up("a", "one", mtu=65_000)
    network.up("b", "two", mtu=65_000)
    sent = [frame(i, length) for i, length in enumerate([60, 60_000, 9000] * 34)]
    got: list[bytes] = []
    for data in sent:
        one.send(data)
    until(lambda: got.extend(ours(two)) or len(got) == len(sent))
    assert got == sent
    assert two.counters()["truncated"] == two.counters()["ring_drops"] == 0
    assert two.counters()["received"] >= len(sent)


def test_a_link_that_is_down_refuses_frames_and_takes_them_again_later(rings: Rings) -> None:
    network, one, two = rings
    one.send(frame(1, 60))
    network.down("a", "one")
    for i in range(5):
        one.send(frame(2 + i, 60))
    assert one.counters()["send_dropped"] == 5
    network.up("a", "one")
    got: list[bytes] = []

    def again() -> bool:
        one.send(frame(9, 60))
        got.extend(ours(two))
        return frame(9, 60) in got

    until(again)
    assert got[0] == frame(1, 60)
    assert not any(frame(2 + i, 60) in got for i in range(5))  # nothing stale


def test_another_ring_goes_on_where_one_was_left(rings: Rings) -> None:
    _, one, two = rings
    sent = [frame(i, length) for i, length in enumerate((60, 61, 64, 512, 1513, 1514) * 20)]
    got: list[bytes] = []
    for data in sent[:50]:
        one.send(data)
    until(lambda: got.extend(ours(two)) or len(got) == 50)
    for data in sent[50:100]:
        one.send(data)
    left = two.leave()
    assert two.fd == -1
    for data in sent[100:]:  # while no ring is open
        one.send(data)
    with_place = PacketRing(0, left=left)
    until(lambda: got.extend(ours(with_place)) or len(got) == len(sent))
    assert got == sent
    for data in sent:  # it sends by the transmit ring where the other one stopped
        with_place.send(data)
    back: list[bytes] = []
    until(lambda: back.extend(ours(one)) or len(back) == len(sent))
    assert back == sent
    with_place.close()


def test_a_place_that_is_not_in_the_ring_is_refused(rings: Rings) -> None:
    _, _, two = rings
    sockets, place = two.leave()
    with pytest.raises(ValueError, match="place"):
        PacketRing(0, left=(sockets, (*place[:3], place[2], *place[4:])))
    with pytest.raises(ValueError, match="closed"):
        two.leave()


def test_refusals_say_why(rings: Rings) -> None:
    network, one, _ = rings
    with at(network, "a"), pytest.raises(OSError) as caught:
        PacketRing(9999)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(ValueError, match="frame must be between 14 and"):
        one.send(b"short")
    one.close()
    one.close()
    assert one.fd == -1
    assert one.receive() == []
    with pytest.raises(ValueError, match="closed"):
        one.send(frame(1, 60))
