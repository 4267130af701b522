"""IPv4 BIG TCP: super-frames over 64 KB, which say total length 0, arrive as ones that the field can tell of."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from natcore.demo.namespaces import Network
from natcore.io import af_packet
from natcore.testing.oracle.packets import checksum
from support.frames import IP, TCP, Ether, Raw
from support.netns import adds_up, at, gateway, needs_root, start, transfer, until

pytestmark = needs_root

BIGGEST = 8 * 65_535  # the kernel's GSO_MAX_SIZE
SEGMENT = 1000
CWR, ACK, PSH, FIN = 0x80, 0x10, 0x08, 0x01
GSO_IPV4_MAX_SIZE, GRO_IPV4_MAX_SIZE = 63, 64  # linux/if_link.h
SOL_PACKET, PACKET_VNET_HDR = 263, 15
VIRTIO = struct.Struct("=BBHHHH")  # flags, type, bytes of headers, of a segment, checksum's start and place


def grow(network: Network, member: str, interface: str, bytes_: int) -> None:
    """The longest super-frames of IPv4 that the interface sends and receives, as `ip link set … gso_ipv4_max_size`."""
    with at(network, member), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        attributes = b"".join(struct.pack("=HHI", 8, kind, bytes_) for kind in (GSO_IPV4_MAX_SIZE, GRO_IPV4_MAX_SIZE))
        body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(interface), 0, 0) + attributes
        kernel.send(struct.pack("=IHHII", 16 + len(body), 16, 1 | 4, 1, 0) + body)  # RTM_NEWLINK, REQUEST | ACK
        (error,) = struct.unpack_from("=i", kernel.recv(4096), 16)
    if error:
        pytest.skip(f"this kernel has no IPv4 BIG TCP: {os.strerror(-error)}")


@pytest.fixture(params=[False, True], ids=["blocks", "at once"])
def line(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, af_packet.PacketRing]]:
    """What sends super-frames of any length, and the ring at the other end."""
    with Network(f"natcore-big-{os.getpid()}-", ["a", "b"]) as network:
        network.pair("a", "one", "b", "two")
        for member, interface in (("a", "one"), ("b", "two")):
            network.setting(member, "net/ipv6/conf/all/disable_ipv6", 1)  # no frames but ours
            network.setting(member, "net/ipv6/conf/default/disable_ipv6", 1)
            network.up(member, interface)
            grow(network, member, interface, BIGGEST)
        with at(network, "a"):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sender.bind(("one", 0))
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)  # SO_SNDBUFFORCE
        with at(network, "b"):
            ring = af_packet.PacketRing(socket.if_nametoindex("two"), at_once=request.param)
        yield sender, ring
        sender.close()
        ring.close()


def send(sender: socket.socket, payload: bytes, *, sequence: int = 0, number: int = 0, options: int = 0) -> None:
    """One super-frame of the payload, as the kernel's TCP makes it. options: words in the IPv4 header."""
    ip = IP(
        src="10.1.0.1",
        dst="10.1.0.2",
        id=number,
        flags=0,
        proto=6,
        len=0,
        options=b"\x01" * 4 * options,
        ihl=5 + options,
    )
    tcp = TCP(sport=1, dport=2, seq=sequence, flags=CWR | ACK | PSH | FIN, options=[("NOP", None)] * 12, chksum=0)
    headers = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip)[: 34 + 4 * options] + bytes(tcp)
    at_tcp = 34 + 4 * options
    sender.send(VIRTIO.pack(1, 1 | 0x80, len(headers), SEGMENT, at_tcp, 16) + headers + payload)


def received(ring: af_packet.PacketRing, bytes_: int) -> list[tuple[bytes, tuple[int, ...]]]:
    """IPv4 frames with so many bytes of TCP payload in all, and what each needs of a device."""
    got: list[tuple[bytes, tuple[int, ...]]] = []

    def complete() -> bool:
        got.extend((data, offload) for data, _, _, offload in ring.receive() if data[12:14] == b"\x08\0")
        return sum(len(Ether(data)[Raw].load) for data, _ in got) >= bytes_

    until(complete)
    return got


@pytest.mark.parametrize("options", [0, 10])
@pytest.mark.parametrize("length", [65_536, 100_000, 200_001, 500_000])
def test_a_super_frame_over_64_kb_arrives_in_ones_that_say_their_length(
    line: tuple[socket.socket, af_packet.PacketRing], length: int, options: int
) -> None:
    sender, ring = line
    payload = os.urandom(length)
    send(sender, payload, sequence=0xFFFF_FFFF - 70_000, number=0xFFF0, options=options)
    got = received(ring, length)
    assert len(got) > 1
    done = 0
    for data, (flags, kind, headers, segment, begin, place) in got:
        ip = Ether(data)[IP]
        tcp, load = ip[TCP], ip[Raw].load
        assert len(data) == 14 + ip.len and ip.len <= 0xFFFF
        assert checksum(data[14 : 14 + 4 * ip.ihl]) == 0
        assert tcp.seq == (0xFFFF_FFFF - 70_000 + done) % (1 << 32)
        assert ip.id == (0xFFF0 + done // SEGMENT) % (1 << 16)
        assert load == payload[done : done + len(load)]
        last, first = done + len(load) == length, done == 0
        assert int(tcp.flags) == ACK | (CWR if first else 0) | (PSH | FIN if last else 0)
        assert last or len(load) % SEGMENT == 0
        assert (flags, headers, begin, place) == (1, len(data) - len(load), 34 + 4 * options, 16)
        assert (kind & 0x7F, segment) == ((1, SEGMENT) if len(load) > SEGMENT else (0, 0))
        pseudo = data[26:34] + struct.pack("!HH", 6, ip.len - 4 * ip.ihl)
        assert tcp.chksum == 0xFFFF ^ checksum(pseudo)  # unfinished: the pseudo-header's sum
        done += len(load)
    assert done == length
    assert ring.counters()["truncated"] == 0


def test_more_of_them_than_there_are_places_for_pieces(line: tuple[socket.socket, af_packet.PacketRing]) -> None:
    sender, ring = line
    payloads = [os.urandom(200_000) for _ in range(20)]
    for payload in payloads:
        send(sender, payload)
    got = b"".join(Ether(data)[Raw].load for data, _ in received(ring, 20 * 200_000))
    assert got == b"".join(payloads)
    assert ring.counters()["truncated"] == ring.counters()["ring_drops"] == 0


def test_what_is_not_ipv4_is_the_kernel_s_however_long(line: tuple[socket.socket, af_packet.PacketRing]) -> None:
    """IPv6 BIG TCP: nothing of it is for us, so that nothing is missing."""
    sender, ring = line
    send(sender, bytes(10))
    received(ring, 10)
    before = ring.counters()["received"]
    ip = struct.pack("!IHBB16s16s", 6 << 28, 0, 6, 64, bytes(15) + b"\1", bytes(15) + b"\2")
    tcp = bytes(TCP(sport=1, dport=2, flags="A", chksum=0))
    headers = bytes.fromhex("020000000002 020000000001 86dd") + ip + tcp
    sender.send(VIRTIO.pack(1, 4, len(headers), SEGMENT, 54, 16) + headers + bytes(300_000))
    until(lambda: ring.receive() or ring.counters()["received"] > before)
    assert ring.counters()["truncated"] == 0


@pytest.mark.usefixtures("each_driver")
@pytest.mark.parametrize("favour", ["throughput", "latency"])
def test_big_tcp_crosses_a_plane_both_ways(network: Network, favour: str) -> None:
    for member, interface in (("in", "eth0"), ("gw", "lan0"), ("gw", "wan0"), ("out", "eth0")):
        grow(network, member, interface, BIGGEST)
    with gateway() as made, start(network, made, favour=favour) as plane:
        for upload in (True, False):
            sent, arrived = transfer(network, 100 << 20, upload=upload)
            assert arrived == sent
        ours, counters = made.counters(), plane.counters()
        assert counters["inside_truncated"] == counters["outside_truncated"] == 0
        assert ours["dropped"] == 0 and adds_up(made)
        carried = made.sessions()
        assert carried["bytes_out"].sum() + carried["bytes_in"].sum() > 200 << 20
