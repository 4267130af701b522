"""Frames of a plane for someone who looks: as they came, as they leave, with their verdict; with every driver."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from natcore import CapacityError, ConfigurationError, Error, Side, Verdict
from natcore.plane.frame_feed import FrameFeed, SeenFrame
from support.netns import CLIENT, POOL, SERVER, Nat, at, needs_root, ping, until

pytestmark = [needs_root, pytest.mark.usefixtures("each_driver")]


def parsed(frame: bytes) -> IP:
    """The packet; its layer-4 checksum may be left to the device, as tcpdump shows it too."""
    return Ether(frame)[IP]


def sender(nat: Nat, member: str) -> socket.socket:
    with at(nat[0], member):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def seen(nat: Nat, feed: FrameFeed, member: str, target: tuple[str, int], data: bytes = b"query") -> SeenFrame:
    """The first frame that is seen while a member sends datagrams to a target."""
    found: list[SeenFrame] = []
    with sender(nat, member) as client:

        def came() -> bool:
            client.sendto(data, target)
            found.extend(feed.take())
            return bool(found)

        until(came)
    return found[0]


def know_next_hop(nat: Nat) -> None:
    """Until the gateway knows it, few frames wait for the next hop, and the others have the verdict DROP_NO_NEIGHBOUR."""
    assert ping(nat[0], "in", SERVER)


def test_a_forwarded_frame_is_shown_before_and_after(nat: Nat) -> None:
    _, made, plane = nat
    with plane.watch_frames(subscriber=CLIENT, protocol="udp") as feed:
        frame = seen(nat, feed, "in", (SERVER, 53))
    assert (frame.verdict, frame.side, frame.interface, frame.worker) == (Verdict.OUTBOUND, Side.INSIDE, "lan0", 0)
    assert frame.after is not None and (len(frame.before), len(frame.after)) == (
        frame.before_length,
        frame.after_length,
    )
    before, after = parsed(frame.before), parsed(frame.after)
    assert (before.src, before.dst, before.ttl, after.src, after.dst, after.ttl) == (
        CLIENT,
        SERVER,
        64,
        POOL,
        SERVER,
        63,
    )
    assert abs(made.now - frame.now) < 60


def test_an_answer_is_its_subscriber_s_though_it_came_for_the_pool(nat: Nat) -> None:
    network, _, plane = nat
    with at(network, "out"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((SERVER, 5353))
    with server, sender(nat, "in") as client, plane.watch_frames(subscriber=CLIENT, remote=f"{SERVER}:5353") as feed:
        client.settimeout(60)
        client.sendto(b"query", (SERVER, 5353))
        _, whom = server.recvfrom(100)
        server.sendto(b"answer", whom)
        assert client.recv(100) == b"answer"
        frames = feed.take()
    assert [(frame.verdict, frame.interface) for frame in frames] == [
        (Verdict.OUTBOUND, "lan0"),
        (Verdict.INBOUND, "wan0"),
    ]
    assert frames[1].after is not None
    assert (parsed(frames[1].before).dst, parsed(frames[1].after).dst) == (POOL, CLIENT)


def test_a_drop_has_its_verdict_and_leaves_nowhere(nat: Nat) -> None:
    _, _, plane = nat
    with plane.watch_frames(drops=True, snap=64) as feed:
        frame = seen(nat, feed, "out", (POOL, 9), b"x" * 500)
    assert (frame.verdict, frame.side, frame.interface) == (Verdict.DROP_NO_MAPPING, Side.OUTSIDE, "wan0")
    assert (len(frame.before), frame.before_length, frame.after, frame.after_length) == (64, 542, None, 0)


def own(nat: Nat, feed: FrameFeed, send: Callable[[socket.socket], object], member: str = "in") -> SeenFrame:
    """The gateway's first frame of its own that is seen while a member sends."""
    found: list[SeenFrame] = []
    with sender(nat, member) as client:

        def came() -> bool:
            send(client)
            found.extend(frame for frame in feed.take() if frame.is_own)
            return bool(found)

        until(came)
    return found[0]


def test_an_icmp_error_of_the_gateway_s_is_shown_with_its_cause_as_the_quoted_packet_s(nat: Nat) -> None:
    _, _, plane = nat

    def short_lived(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        client.sendto(b"x", (SERVER, 33_434))

    with (
        plane.watch_frames(drops=True, subscriber=CLIENT, remote=f"{SERVER}:33434", protocol="udp") as feed,
        plane.watch_frames(protocol="icmp") as icmp,
        plane.watch_frames(subscriber="10.0.0.99") as other,
        plane.watch_frames(outside=POOL) as outside,
    ):
        frame = own(nat, feed, short_lived)
        assert [each.verdict for each in icmp.take()][:1] == [Verdict.DROP_TTL]
        assert other.take() == outside.take() == []
    assert (frame.verdict, frame.side, frame.interface, frame.before) == (Verdict.DROP_TTL, Side.INSIDE, "lan0", b"")
    assert frame.cause == "the answer to a packet with verdict DROP_TTL"
    assert frame.after is not None and len(frame.after) == frame.after_length
    packet = parsed(frame.after)
    assert (packet.dst, packet[ICMP].type, packet[ICMP].code) == (CLIENT, 11, 0)


def test_an_echo_reply_of_the_gateway_s_is_shown(nat: Nat) -> None:
    network, _, plane = nat
    with plane.watch_frames(remote=SERVER) as feed:
        frame = own(nat, feed, lambda _: network.run("out", ["ping", "-c1", "-W1", POOL]), "out")
    assert (frame.verdict, frame.side, frame.interface) == (Verdict.LOCAL, Side.OUTSIDE, "wan0")
    assert frame.cause == "the answer to a packet for the gateway"
    assert frame.after is not None and parsed(frame.after)[ICMP].type == 0


def test_fragments_that_were_held_are_shown_as_they_leave(nat: Nat) -> None:
    """The later fragment comes before the first one: it waits, and is released."""
    network, _, plane = nat
    whole = IP(src=CLIENT, dst=SERVER, id=7, proto=17) / Raw(bytes(UDP(sport=4000, dport=53, len=1608)) + bytes(1600))
    pieces = fragment(whole, 800)
    with plane.watch_frames(remote=SERVER) as feed, at(network, "in"):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw:

            def send(_: socket.socket) -> None:
                for piece in (pieces[-1], pieces[0]):
                    raw.sendto(bytes(piece), (SERVER, 0))

            frame = own(nat, feed, send)
    assert (frame.verdict, frame.side, frame.interface) == (Verdict.HELD, Side.OUTSIDE, "wan0")
    assert frame.cause == "a fragment that waited for its first one"
    assert frame.after is not None and (parsed(frame.after).src, parsed(frame.after).frag) == (POOL, pieces[-1].frag)


def test_frames_that_meet_no_criterion_are_not_shown(nat: Nat) -> None:
    _, _, plane = nat
    with (
        plane.watch_frames(subscriber="10.0.0.99") as other,
        plane.watch_frames(remote=f"{SERVER}:54") as port,
        plane.watch_frames(protocol="tcp") as protocol,
        plane.watch_frames(outside=POOL) as right,
    ):
        seen(nat, right, "in", (SERVER, 53))
        assert [other.take(), port.take(), protocol.take()] == [[], [], []]


def test_what_finds_no_place_is_counted_and_packets_go_on(nat: Nat) -> None:
    _, made, plane = nat
    know_next_hop(nat)
    with plane.watch_frames(protocol="udp", buffer=1 << 18) as feed, sender(nat, "in") as client:

        def overflows() -> bool:
            for _ in range(50):
                client.sendto(b"x" * 1200, (SERVER, 53))
            return feed.lost > 0

        until(overflows)
        assert made.counters()["forwarded"] > 0
        lost, frames = feed.lost, feed.take(1000)
        assert len(frames) > 50 and all(frame.verdict is Verdict.OUTBOUND for frame in frames)
        assert seen(nat, feed, "in", (SERVER, 53)).verdict is Verdict.OUTBOUND  # there is place again
        assert feed.lost >= lost


def test_eight_may_look_at_once_and_a_place_is_free_again(nat: Nat) -> None:
    _, _, plane = nat
    feeds = [plane.watch_frames() for _ in range(8)]
    with pytest.raises(CapacityError, match="too many"):
        plane.watch_frames()
    feeds.pop().close()
    feeds.append(plane.watch_frames())
    for feed in feeds:
        feed.close()
        feed.close()


def test_a_feed_outlives_its_plane_and_shows_nothing_more(nat: Nat) -> None:
    _, _, plane = nat
    feed = plane.watch_frames()
    plane.stop()
    feed.take()
    feed.close()
    with pytest.raises(Error, match="the plane has stopped"):
        plane.watch_frames()


def test_wrong_arguments_are_named(nat: Nat) -> None:
    _, _, plane = nat
    for arguments, said in (
        ({"snap": 10}, "snap must be a whole number between 64 and 65536"),
        ({"buffer": 1}, "buffer must be a whole number between"),
        ({"drops": 2}, "drops must be True or False"),
        ({"subscriber": None}, "subscriber must be an IPv4 address"),
        ({"remote": "x"}, "remote must be an address or a prefix"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            plane.watch_frames(**arguments)  # type: ignore[arg-type]
