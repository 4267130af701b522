"""AF_XDP sockets and the XDP program over a veth pair: what is taken from the kernel, and frames as they are."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import NamedTuple

import pytest

from natcore import InterfaceError
from natcore.demo.namespaces import Network
from natcore.io.af_xdp import XdpSockets
from natcore.io.umem import FrameMemory
from natcore.plane import drivers, ethtool, xdp_program
from natcore.plane.host_ports import ports_in
from natcore.plane.links import Link
from support.netns import at, needs_root, ping, ping_once, until, xdp_missing

pytestmark = [needs_root, pytest.mark.skipif(bool(xdp_missing()), reason=xdp_missing())]

OURS = b"\x88\xb5"  # an experimental Ethernet type (RFC 5342)
NO_VLAN, NO_VLAN_EITHER = b"\x81\0\xa0\0", b"\x88\xa8\xb0\0"  # tags with a priority alone (802.1p)
SPARED, TAKEN, ANSWERED = "10.1.0.2", "10.1.0.3", "10.1.0.4"


class Bench(NamedTuple):
    """a one -- two b: the program and the sockets are on two."""

    network: Network
    memory: FrameMemory
    program: xdp_program.Program
    sockets: XdpSockets
    mac: bytes
    wire: socket.socket  # on one: what comes, and what is put on the wire


def word(address: str) -> int:
    return int(IPv4Address(address))


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Network(f"natcore-xdp-{os.getpid()}-", ["a", "b"]) as network:
        network.pair("a", "one", "b", "two")
        for member, interface, address in (("a", "one", "10.1.0.1/24"), ("b", "two", f"{SPARED}/24")):
            network.setting(member, "net/ipv6/conf/all/disable_ipv6", 1)  # no frames but ours
            network.setting(member, "net/ipv6/conf/default/disable_ipv6", 1)
            network.up(member, interface, address)
            network.setting(member, f"net/ipv4/neigh/{interface}/delay_first_probe_time", 3600)  # and no ARP unasked
        mac = bytes.fromhex(network.mac("b", "two").replace(":", ""))
        with at(network, "a"):
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
            wire.bind(("one", 0x88B5))
            wire.setblocking(False)
        with at(network, "b"), wire:
            index = socket.if_nametoindex("two")
            program = xdp_program.Program(index, mac, 1, [word(SPARED)], [word(ANSWERED)])
            memory = FrameMemory(1024)
            sockets = XdpSockets(memory, index, entries=256, virtual=True)
            program.set_socket(0, sockets.fds[0])
            assert sockets.receive() == []
            yield Bench(network, memory, program, sockets, mac, wire)
            sockets.close()
            program.close()


def seen(wire: socket.socket) -> list[bytes]:
    frames = []
    try:
        while True:
            frames.append(wire.recv(4096))
    except BlockingIOError:
        return frames


def frame(bench: Bench, destination: str, *, mac: bytes | None = None, tags: bytes = b"", length: int = 60) -> bytes:
    """A UDP packet towards an address, without a checksum."""
    head = bytes.fromhex("4500002000000000401100000a010001") + socket.inet_aton(destination)
    data = (bench.mac if mac is None else mac) + b"\x02\0\0\0\0\1" + tags + b"\x08\0" + head + bytes(12)
    return data.ljust(length, b"\0")[:length]


def arp(target: str, *, operation: int = 1, sender: str = "10.1.0.1") -> bytes:
    body = b"\0\1\x08\0\6\4" + operation.to_bytes(2) + b"\x02\0\0\0\0\1" + socket.inet_aton(sender)
    return b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x08\6" + body + bytes(6) + socket.inet_aton(target)


# ---- the program -----------------------------------------------------------------------------------------------------


def test_ipv4_is_taken_and_the_rest_stays_with_the_kernel(bench: Bench) -> None:
    taken = [
        frame(bench, TAKEN),
        frame(bench, ANSWERED, length=1514),
        frame(bench, "255.255.255.255"),
        frame(bench, SPARED, length=33),  # no whole header: counted as malformed where it arrives
        arp(ANSWERED),
        *(frame(bench, TAKEN, tags=tag, length=70) for tag in (NO_VLAN, NO_VLAN_EITHER)),
        arp(ANSWERED)[:12] + NO_VLAN + arp(ANSWERED)[12:],
    ]
    left = [
        frame(bench, SPARED, tags=NO_VLAN),
        frame(bench, TAKEN, tags=NO_VLAN, mac=b"\x02\0\0\0\0\x77"),
        frame(bench, TAKEN, tags=NO_VLAN, length=17),
        frame(bench, TAKEN, tags=NO_VLAN + b"\x81\0\0\x05"),
        frame(bench, SPARED),
        frame(bench, TAKEN, mac=b"\xff" * 6),
        frame(bench, TAKEN, mac=b"\x02\0\0\0\0\x77"),
        frame(bench, TAKEN, tags=b"\x81\0\0\x05"),
        bench.mac + b"\x02\0\0\0\0\1" + b"\x86\xdd" + bytes(46),
        arp(SPARED),
        arp(TAKEN),
        arp(ANSWERED, operation=2),
        arp(ANSWERED, sender=ANSWERED),
        arp(ANSWERED)[:41],
    ]
    before = bench.program.passed()
    for data in left + taken:
        bench.wire.send(data)
    got: list[bytes] = []
    until(lambda: got.extend(bench.sockets.receive()) or len(got) >= len(taken))
    assert got == [data.replace(NO_VLAN, b"").replace(NO_VLAN_EITHER, b"") for data in taken]
    assert bench.program.passed() - before == len(left)


def test_addresses_and_the_link_address_change_while_frames_come(bench: Bench) -> None:
    assert ping(bench.network, "a", SPARED)
    bench.program.set_addresses([], [word(SPARED)])
    assert not ping_once(bench.network, "a", SPARED)
    assert bench.sockets.receive()
    bench.program.set_addresses([word(SPARED)], [])
    assert ping(bench.network, "a", SPARED)
    bench.program.set_mac(b"\x02\0\0\0\0\x77")
    before = bench.program.passed()
    bench.wire.send(frame(bench, TAKEN))
    bench.wire.send(frame(bench, TAKEN, mac=b"\x02\0\0\0\0\x77"))
    until(lambda: [data[5] for data in bench.sockets.receive()] == [0x77])
    assert bench.program.passed() == before + 1


def test_of_a_shared_address_whole_packets_to_the_gateways_ports_are_taken(bench: Bench) -> None:
    def packet(protocol: int, port: int, fragment: int = 0, options: int = 0, tags: bytes = b"") -> bytes:
        head = bytes([0x45 + options]) + bytes(5) + fragment.to_bytes(2) + bytes([64, protocol, 0, 0])
        head += socket.inet_aton("10.1.0.1") + socket.inet_aton(SPARED) + bytes(4 * options)
        data = bench.mac + b"\x02\0\0\0\0\1" + tags + b"\x08\0" + head + b"\0\x35" + port.to_bytes(2) + bytes(16)
        return data.ljust(60, b"\0")

    tcp, udp = ports_in([(0, 1999), (2001, 65000)]), ports_in([(0, 2000)])
    ports = tcp.to_bytes(8192, "little") + udp.to_bytes(8192, "little")
    bench.program.set_addresses([], [], {word("10.9.9.9"): bytes(16384), word(SPARED): ports})
    taken = [
        packet(6, 2000), packet(17, 2001), packet(6, 65535), packet(17, 65535), packet(6, 2000, options=10),
        packet(6, 2000, fragment=0x4000), packet(17, 3000, tags=NO_VLAN),
    ]  # fmt: skip
    left = [
        packet(6, 22), packet(6, 1999), packet(6, 2001), packet(17, 2000), packet(17, 0), packet(6, 2001, options=10),
        packet(6, 2000, fragment=0x2000), packet(17, 3000, fragment=1), packet(1, 2000), packet(50, 3000),
        packet(6, 2000, options=10)[:60],
    ]  # fmt: skip
    before = bench.program.passed()
    for data in left + taken:
        bench.wire.send(data)
    got: list[bytes] = []
    until(lambda: got.extend(bench.sockets.receive()) or len(got) >= len(taken))
    assert got == [data.replace(NO_VLAN, b"") for data in taken]
    assert bench.program.passed() - before == len(left)
    bench.program.set_addresses([], [], {word(SPARED): bytes(16384)})
    bench.wire.send(packet(6, 22))
    until(lambda: len(bench.sockets.receive()) == 1)


def test_without_a_socket_nothing_reaches_the_kernel_but_what_is_its_own(bench: Bench) -> None:
    network = bench.network
    network.up("b", "lo", f"{TAKEN}/32")  # the kernel would answer
    network.run("a", ["ip", "neigh", "replace", TAKEN, "lladdr", network.mac("b", "two"), "dev", "one"])
    bench.sockets.close()
    assert not ping_once(network, "a", TAKEN)
    assert ping(network, "a", SPARED)
    bench.program.close()
    assert ping(network, "a", TAKEN)
    assert not ping_once(network, "a", ANSWERED)


def test_one_program_at_a_time(bench: Bench) -> None:
    with pytest.raises(OSError) as caught:
        xdp_program.Program(socket.if_nametoindex("two"), bench.mac, 1)
    assert caught.value.errno == errno.EBUSY
    bench.program.close()
    bench.program.close()
    xdp_program.Program(socket.if_nametoindex("two"), bench.mac, 1).close()


def test_a_program_that_the_verifier_refuses_is_refused_with_its_words() -> None:
    from natcore.io import bpf

    with pytest.raises(OSError, match="R0 !read_ok"):
        bpf.program(bytes.fromhex("9500000000000000"))


# ---- the sockets -----------------------------------------------------------------------------------------------------


def ours(bench: Bench, number: int, length: int) -> bytes:
    body = number.to_bytes(4) + bytes(i * number & 0xFF for i in range(length - 18))
    return b"\x02\0\0\0\0\1" + bench.mac + OURS + body


def test_more_frames_than_there_are_places_arrive_and_leave_unchanged_and_in_order(bench: Bench) -> None:
    count, got, out = 3000, [], []
    arriving = [frame(bench, TAKEN, length=(60, 61, 1514)[i % 3])[:-4] + i.to_bytes(4) for i in range(count)]
    leaving = [ours(bench, i, (64, 512, 1513, 1514)[i % 4]) for i in range(count)]
    for one, other in zip(arriving, leaving, strict=True):
        bench.wire.send(one)
        bench.sockets.send(other)
        got += bench.sockets.receive()
        out += seen(bench.wire)
    until(lambda: got.extend(bench.sockets.receive()) or len(got) == count)
    until(lambda: out.extend(seen(bench.wire)) or len(out) == count)
    assert got == arriving
    assert out == leaving
    counters = bench.sockets.counters()
    assert counters == {
        "received": count,
        "truncated": 0,
        "ring_drops": 0,
        "sent": count,
        "send_dropped": 0,
        "send_errors": 0,
    }
    until(lambda: bench.sockets.receive() == [] and bench.memory.free == 1024 - 256)


def test_frames_without_a_reader_are_dropped_and_counted(bench: Bench) -> None:
    for i in range(400):
        bench.wire.send(frame(bench, TAKEN)[:-4] + i.to_bytes(4))
    until(lambda: bench.sockets.counters()["ring_drops"] == 400 - 256)
    assert [int.from_bytes(data[-4:]) for data in bench.sockets.receive()] == list(range(256))


def test_checksums_that_a_local_sender_left_are_finished(bench: Bench) -> None:
    network = bench.network
    network.run("a", ["ip", "neigh", "replace", TAKEN, "lladdr", network.mac("b", "two"), "dev", "one"])
    with at(network, "a"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"odd", (TAKEN, 9))
        client.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT
        client.sendto(bytes(range(250)) * 14, (TAKEN, 9))
    got: list[bytes] = []
    until(lambda: got.extend(bench.sockets.receive()) or len(got) == 5)
    for data in got:
        pseudo = data[26:34] + b"\0\x11" + data[38:40]
        padded = pseudo + data[34:] + b"\0" * (len(data) & 1)
        total = sum(int.from_bytes(padded[i : i + 2]) for i in range(0, len(padded), 2))
        assert total % 0xFFFF == 0
    assert [len(data) - 42 for data in got] == [3, 1000, 1000, 1000, 500]


def test_a_link_that_is_down_refuses_frames_and_takes_them_again_later(bench: Bench) -> None:
    network = bench.network
    bench.sockets.send(ours(bench, 1, 60))
    until(lambda: seen(bench.wire) == [ours(bench, 1, 60)])
    network.down("b", "two")
    for i in range(5):
        bench.sockets.send(ours(bench, 2 + i, 60))
    assert bench.sockets.counters()["send_dropped"] == 5
    network.up("b", "two")
    got: list[bytes] = []

    def again() -> bool:
        bench.sockets.send(ours(bench, 9, 60))
        got.extend(seen(bench.wire))
        return bool(got)

    until(again)
    assert set(got) == {ours(bench, 9, 60)}  # nothing stale
    until(lambda: bench.sockets.receive() == [] and bench.memory.free == 1024 - 256)


def test_every_queue_is_read(bench: Bench) -> None:
    network = bench.network
    bench.sockets.close()
    bench.program.close()
    network.run("b", ["ethtool", "-L", "two", "rx", "2", "tx", "2"])
    network.run("a", ["ethtool", "-L", "one", "rx", "2", "tx", "2"])
    assert ethtool.queues_of("two") == 2
    index = socket.if_nametoindex("two")
    program = xdp_program.Program(index, bench.mac, 2)
    sockets = XdpSockets(bench.memory, index, queues=2, entries=256)
    for queue, fd in enumerate(sockets.fds):
        program.set_socket(queue, fd)
    sockets.receive()
    with at(network, "a"):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with wire:
        wire.bind(("one", 0))
        got: set[bytes] = set()
        for cpu in os.sched_getaffinity(0):  # a veth queue for each processor that sends
            before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {cpu})
            try:
                wire.send(frame(bench, TAKEN)[:-1] + bytes([cpu]))
            finally:
                os.sched_setaffinity(0, before)
        until(lambda: got.update(sockets.receive()) or len(got) == len(os.sched_getaffinity(0)))
    sockets.send(ours(bench, 1, 60))
    until(lambda: seen(bench.wire) == [ours(bench, 1, 60)])
    sockets.close()
    program.close()
    assert bench.memory.free == 1024


def test_a_socket_opened_again_finds_all_places(bench: Bench) -> None:
    index = socket.if_nametoindex("two")
    for _ in range(3):
        bench.sockets.close()
        assert bench.memory.free == 1024
        again = XdpSockets(bench.memory, index, entries=256)
        bench.program.set_socket(0, again.fds[0])
        again.receive()
        bench.wire.send(frame(bench, TAKEN))
        until(again.receive)
        again.close()
        again.close()
    assert bench.memory.free == 1024


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refusals_say_why(bench: Bench) -> None:
    index = socket.if_nametoindex("two")
    for arguments, number in (((9999,), errno.ENODEV), ((index, 1, 64, True, 7), errno.EINVAL)):
        with pytest.raises(OSError) as caught:
            XdpSockets(bench.memory, *arguments)
        assert caught.value.errno == number
    assert bench.memory.free == 1024 - 256
    with pytest.raises(ValueError, match="queues must be between 1 and 64, got 65"):
        XdpSockets(bench.memory, index, queues=65)
    with pytest.raises(ValueError, match="between 14 and"):
        bench.sockets.send(b"short")
    with pytest.raises(ValueError, match="frames must be between 1 and"):
        FrameMemory(0)
    with pytest.raises(ValueError, match="mtu must be at most 3826 with AF_XDP, got 9000"):
        FrameMemory(64, 9000)
    assert (FrameMemory(64).mtu, FrameMemory(64, 1800).mtu) == (1778, 3826)
    bench.sockets.send(bytes(1900))
    assert bench.sockets.counters()["send_errors"] == 1
    bench.sockets.close()
    assert bench.sockets.fd == -1
    assert bench.sockets.receive() == []
    with pytest.raises(ValueError, match="closed"):
        bench.sockets.send(bytes(60))


def link(bench: Bench, name: str, mtu: int = 1500) -> Link:
    return Link(name=name, index=socket.if_nametoindex(name), mac=bench.mac, mtu=mtu, up=True, carrier=True)


def test_what_stands_in_the_way_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    two = link(bench, "two")
    with pytest.raises(InterfaceError, match="mtu must be at most 3826 with AF_XDP, got 9000"):
        drivers.XdpAccess([link(bench, "two", 9000)])
    access = drivers.XdpAccess([two])
    with pytest.raises(InterfaceError, match="'two': another XDP program"):
        access.open(0, two, [], [], {})
    bench.sockets.close()
    bench.program.close()
    with pytest.raises(InterfaceError, match="'lo': its driver has no native XDP"):
        access.open(0, link(bench, "lo"), [], [], {})
    with monkeypatch.context() as patch:
        patch.setattr(drivers, "vlans_on", lambda index: ["two.5"])
        with pytest.raises(InterfaceError, match=r"'two': it carries VLANs \(two.5\)"):
            access.open(0, two, [], [], {})
    with monkeypatch.context() as patch:
        patch.setattr(ethtool, "takes_tags_off", lambda name: True)
        with pytest.raises(InterfaceError, match="run: ethtool -K two rxvlan off"):
            access.open(0, two, [], [], {})
    with monkeypatch.context() as patch:
        patch.setattr(ethtool, "queues_of", lambda name: 65)
        with pytest.raises(
            InterfaceError, match="'two' must have at most 64 queues with AF_XDP, got 65; run: ethtool -L two"
        ):
            access.open(0, two, [], [], {})
        patch.setattr(ethtool, "queues_of", lambda name: 2)
        with pytest.raises(InterfaceError, match="bind of queue 1: Invalid argument"):
            access.open(0, two, [], [], {})
    (driver,) = access.open(0, two, [], [], {})  # after all these, one that goes well
    driver.close()
    assert driver.counters()["left_to_kernel"] >= 0


def test_what_a_device_says_of_itself(bench: Bench) -> None:
    assert (ethtool.queues_of("two"), ethtool.queues_of("lo"), ethtool.queues_of("nope")) == (1, 1, 1)
    assert ethtool.is_virtual("two")
    assert not ethtool.takes_tags_off("two")
    assert drivers.vlans_on(socket.if_nametoindex("two")) == []
