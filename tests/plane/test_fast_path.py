"""The kernel fast path: the program's bytes are the core's, its counts are exact, and nothing stale is ever translated."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from natcore import ConfigurationError, Gateway, RfcWarning, SessionState, Side, SnatEntry, Timeouts, Verdict
from natcore.demo.namespaces import Network
from natcore.dtypes import WINDOW
from natcore.flowlog import FlowLog
from natcore.io import bpf
from natcore.plane.plane import Plane
from natcore.plane.xdp_fast_path import MULTIPLIERS, UNIT_SHIFT, InterfaceMaps, SharedMaps
from natcore.plane.xdp_program import assemble
from natcore.testing import craft
from natcore.testing.oracle.packets import TCP, UDP, checksum
from support.netns import CLIENT, SERVER, adds_up, at, gateway, needs_root, start, transfer, until, xdp_missing

pytestmark = [needs_root, pytest.mark.skipif(bool(xdp_missing()), reason=xdp_missing())]

REDIRECT = 4
CLOCK_MONOTONIC_COARSE = 6
GATEWAY_MAC, HOP, OWN = bytes.fromhex("020000000001"), bytes.fromhex("02000000aa01"), bytes.fromhex("02000000aa02")
ENTRY = struct.Struct("=4s4s4sBBH4sHHHHIIIQIIII")  # OffloadEntry
MASK = (1 << 64) - 1
HOST, REMOTE = ("10.0.0.5", 4000), ("198.51.100.7", 443)
FIN, SYN, RST, ACK = 1, 2, 4, 16
LONG = 1 << 20  # units: 18 minutes, however busy the machine is


def place_of(shared: SharedMaps, addresses: bytes, ports: bytes, protocol: int) -> tuple[int, int]:
    """A flow's bucket and tag (offload.pxd)."""
    one, other = struct.unpack("=QI", addresses + ports)
    found = ((one ^ shared.keys[0]) * MULTIPLIERS[0] + ((other + (protocol << 32)) ^ shared.keys[1])) & MASK
    found = (found ^ found >> 32) * MULTIPLIERS[1] & MASK
    return found >> (64 - shared.bits), found << shared.bits >> 48 & 0xFFFF | 1


def tags_of(shared: SharedMaps, bucket: int) -> list[int]:
    return list(struct.unpack("=4H", bpf.get_element(shared.tags, struct.pack("=I", bucket), 8)))


def entry_of(shared: SharedMaps, bucket: int, way: int) -> tuple[Any, ...]:
    return ENTRY.unpack(bpf.get_element(shared.entries, struct.pack("=I", way << shared.bits | bucket), 64))


class Bench:
    """One interface's program, with entries that a test writes."""

    def __init__(self, *, outside: bool, virtual: bool = False, ordered: bool = True) -> None:
        shared = self.shared = SharedMaps(64, 64, 1, 0)
        self.outside, self.interface = outside, int(outside)
        for number in (0, 1):
            shared.set_device(number, 1)  # the loopback interface: a test run sends nothing
        self.maps = InterfaceMaps(shared, self.interface, virtual, ordered)
        self.fds = [bpf.table(16, 4, 1), bpf.sockets(1), bpf.array(1, 8), bpf.array(1, 8), bpf.array(8, 8)]
        bpf.set_element(self.fds[2], bytes(4), GATEWAY_MAC + b"\0\0")
        self.program = bpf.program(assemble(*self.fds, fast_path=self.maps))
        self.hop(1500)

    def hop(self, mtu: int) -> None:
        bpf.set_element(self.shared.hops, bytes(4), HOP + OWN + struct.pack("=HH", mtu, 1 - self.interface))

    def set_tag(self, bucket: int, way: int, tag: int) -> None:
        tags = tags_of(self.shared, bucket)
        tags[way] = tag
        bpf.set_element(self.shared.tags, struct.pack("=I", bucket), struct.pack("=4H", *tags))

    def set_entry(self, bucket: int, way: int, entry: bytes) -> None:
        bpf.set_element(self.shared.entries, struct.pack("=I", way << self.shared.bits | bucket), entry)

    def offload(self, before: bytes, after: bytes, way: int = 0, **fields: int) -> int:
        """Write an entry that makes the second packet of the first one; return its bucket."""
        at = 16 if self.outside else 12
        port = 2 if self.outside else 0
        protocol = before[9]
        old, new = before[at : at + 4], after[at : at + 4]
        old_port, new_port = before[20 + port : 22 + port], after[20 + port : 22 + port]
        network, transport = delta(old, new), delta(old + old_port, new + new_port)
        values: dict[str, int] = {
            "until": now() + LONG,
            "idle": LONG,
            "generation": 1,
            "last_seen": now(),
            "end": 0,
            "ack": 0,
            **fields,
        }
        entry = ENTRY.pack(
            before[12:16], before[16:20], before[20:24], protocol, self.interface, 0, new,
            *struct.unpack("=H", new_port), network, transport, 0, values["until"] & 0xFFFFFFFF, values["idle"],
            values["generation"], 0, 0, values["last_seen"] & 0xFFFFFFFF, values["end"], values["ack"],
        )  # fmt: skip
        bucket, tag = place_of(self.shared, before[12:20], before[20:24], protocol)
        self.set_entry(bucket, way, entry)
        self.set_tag(bucket, way, tag)
        return bucket

    def counted(self, bucket: int, way: int = 0) -> dict[str, int]:
        values = entry_of(self.shared, bucket, way)
        return dict(zip(("bytes", "packets", "last_seen", "end", "ack"), values[-5:], strict=True))

    def run(self, packet: bytes, padding: int = 0) -> bytes | None:
        """What it redirects, as an IPv4 packet; None: it goes the ordinary way, unchanged."""
        frame = GATEWAY_MAC + bytes.fromhex("0200000000020800") + packet + bytes(padding)
        action, out = bpf.test_run(self.program, frame)
        if action != REDIRECT:
            assert out == frame
            return None
        assert out[:14] == HOP + OWN + b"\x08\x00"
        return out[14:]


def delta(before: bytes, after: bytes) -> int:
    """A checksum delta, in this machine's byte order (base/checksum.pxd)."""
    total = sum(~word & 0xFFFF for (word,) in struct.iter_unpack("=H", before))
    total += sum(word for (word,) in struct.iter_unpack("=H", after))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total or 0xFFFF


def now() -> int:
    return time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) >> UNIT_SHIFT & 0xFFFFFFFF


@pytest.fixture(scope="module", params=["from inside", "from outside", "from inside, loads out of order"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """The last is the program as it is for processors that reorder loads."""
    return Bench(outside=request.param == "from outside", ordered="out of order" not in request.param)


class Life:
    """A gateway with an established session, of which packets come in one direction."""

    def __init__(self, bench: Bench, protocol: int) -> None:
        self.bench, self.protocol = bench, protocol
        self.side = Side.OUTSIDE if bench.outside else Side.INSIDE
        self.gateway = Gateway(framing="ip", seed=1)
        self.gateway.add(SnatEntry("10.0.0.0/8", "203.0.113.1"))
        first = craft.tcp(HOST, REMOTE, SYN, sequence=99) if protocol == TCP else craft.udp(HOST, REMOTE)
        verdict, sent = self.gateway.translate_one(first, Side.INSIDE, now=0.0)
        assert verdict is Verdict.OUTBOUND and sent is not None
        self.own = ("203.0.113.1", int.from_bytes(sent[20:22]))
        if protocol == TCP:
            answer = craft.tcp(REMOTE, self.own, SYN | ACK, sequence=499, acknowledgement=100)
            assert self.gateway.translate_one(answer, Side.OUTSIDE, now=0.0)[0] is Verdict.INBOUND
            last = craft.tcp(HOST, REMOTE, ACK, sequence=100, acknowledgement=500)
            assert self.gateway.translate_one(last, Side.INSIDE, now=0.0)[0] is Verdict.OUTBOUND
        self.ends = (REMOTE, self.own) if bench.outside else (HOST, REMOTE)

    def packet(self, payload: bytes = b"", flags: int = ACK, sequence: int = 100, **fields: Any) -> bytes:
        fields = {"dont_fragment": True, **fields}
        if self.protocol == UDP:
            return craft.udp(*self.ends, payload, **fields)
        return craft.tcp(*self.ends, flags, payload, sequence=sequence, acknowledgement=500, **fields)

    def translated(self, packet: bytes) -> bytes | None:
        """What the core makes of it."""
        return self.gateway.translate_one(packet, self.side, now=0.0)[1]


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_the_program_writes_the_bytes_that_the_core_writes(bench: Bench, protocol: int) -> None:
    life, random = Life(bench, protocol), Random(protocol)
    plain = life.packet()
    after = life.translated(plain)
    assert after is not None
    key = bench.offload(plain, after)
    packets = total = 0
    for _ in range(2000):
        fields: dict[str, Any] = {"ttl": random.choice([2, 3, 64, 255]), "tos": random.randrange(256)}
        fields["identification"] = random.randrange(1 << 16)
        if protocol == UDP:
            fields["no_checksum"] = random.random() < 0.1
        else:
            fields["sequence"] = random.randrange(100, 2000)
        packet = life.packet(random.randbytes(random.choice([0, 1, 2, 3, 7, 18, 100, 1400])), **fields)
        out = bench.run(packet)
        assert out == life.translated(packet)
        packets, total = packets + 1, total + len(packet)
    counted = bench.counted(key)
    assert (counted["packets"], counted["bytes"]) == (packets, total)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_every_other_packet_goes_the_ordinary_way_unchanged(bench: Bench, protocol: int) -> None:
    life = Life(bench, protocol)
    plain = life.packet()
    after = life.translated(plain)
    assert after is not None
    key = bench.offload(plain, after)
    odd = [
        life.packet(ttl=1), life.packet(ip_options=b"\x01\x01\x01\x01"), life.packet(fragment=0x2000), life.packet(damage=1),
        life.packet(total=19), life.packet(total=27), life.packet(total=41 if protocol == TCP else 29),
        life.packet(version=6), life.packet(bytes(1500)), plain[:27], plain[:20],
        craft.udp((life.ends[0][0], 1), life.ends[1], dont_fragment=True),
    ]  # fmt: skip
    if not bench.outside:
        odd.append(life.packet(dont_fragment=False))
    if protocol == TCP:
        odd += [life.packet(flags=flags) for flags in (SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, 0, 0xFF)]
        odd += [life.packet(offset=4), life.packet(offset=15)]
    else:
        odd += [life.packet(length=7), life.packet(length=9)]
    for packet in odd:
        assert bench.run(packet) is None, packet.hex()
    assert bench.run(plain, padding=1) is None
    assert bench.counted(key)["packets"] == 0
    assert bench.run(plain) is not None


@pytest.mark.parametrize(
    "fields", [{"generation": 2}, {"until": 0}, {"until": -1}, {"idle": 5, "last_seen": -5}, {"idle": 0}]
)
def test_an_entry_that_is_out_of_date_translates_nothing(bench: Bench, fields: dict[str, int]) -> None:
    life = Life(bench, UDP)
    plain = life.packet()
    after = life.translated(plain)
    assert after is not None
    moved = {name: value + now() if name in ("until", "last_seen") else value for name, value in fields.items()}
    key = bench.offload(plain, after, **moved)
    assert bench.run(plain) is None
    assert bench.counted(key)["packets"] == 0


@pytest.mark.parametrize("way", range(4))
def test_each_entry_of_a_bucket_is_found_by_its_tag(bench: Bench, way: int) -> None:
    life = Life(bench, UDP)
    plain = life.packet()
    after = life.translated(plain)
    assert after is not None
    bucket, tag = place_of(bench.shared, plain[12:20], plain[20:24], UDP)
    for other in range(4):
        bench.set_entry(bucket, other, bytes(64))
        bench.set_tag(bucket, other, Random(other).choice([0, tag ^ 2, tag ^ 0x8000]))
    bench.offload(plain, after, way)
    assert bench.run(plain) == after
    assert bench.counted(bucket, way)["packets"] == 1
    bench.set_tag(bucket, way, 0)  # withdrawn: the entry itself is as it was
    assert bench.run(plain) is None
    assert bench.counted(bucket, way)["packets"] == 1


def test_a_tag_without_the_whole_entry_translates_nothing(bench: Bench) -> None:
    life = Life(bench, UDP)
    plain = life.packet()
    after = life.translated(plain)
    assert after is not None
    bucket = bench.offload(plain, after)
    whole = ENTRY.pack(*entry_of(bench.shared, bucket, 0))
    for i in range(14):  # addresses, ports, protocol, interface
        bench.set_entry(bucket, 0, whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert bench.run(plain) is None
    bench.set_entry(bucket, 0, bytes(64))
    assert bench.run(plain) is None
    bench.set_entry(bucket, 0, whole)
    assert bench.run(plain) == after


def test_an_entry_goes_from_one_flow_to_another_store_by_store(bench: Bench) -> None:
    """At each moment a packet is translated by its own whole entry, or not at all (offload.pxd has the order of the stores)."""
    address_at, port_at = (16, 22) if bench.outside else (12, 20)

    def moved(packet: bytes, address: bytes) -> bytes:
        """The packet with another endpoint, of port 7777."""
        changed = bytearray(packet)
        changed[address_at : address_at + 4], changed[port_at : port_at + 2] = address, (7777).to_bytes(2)
        return bytes(changed)

    def address_of(packet: bytes) -> bytes | None:
        out = bench.run(packet)
        return out and out[address_at : address_at + 4]

    def neighbours() -> Iterator[tuple[bytes, int]]:
        """Packets of flows of one bucket, and their tags."""
        for port in range(5000, 9000):
            packet = craft.udp(HOST, (REMOTE[0], port), dont_fragment=True)
            at_bucket, tag = place_of(bench.shared, packet[12:20], packet[20:24], UDP)
            if at_bucket == 5:
                yield packet, tag

    (one, tag), (other, other_tag), *_ = neighbours()
    assert tag != other_tag
    bpf.set_element(bench.shared.tags, struct.pack("=I", 5), bytes(8))
    bench.offload(one, moved(one, b"\1\1\1\1"))
    assert address_of(one) == b"\1\1\1\1" and address_of(other) is None
    bench.offload(one, moved(one, b"\1\1\1\1"), generation=0)  # it is recalled: out of force first
    assert address_of(one) is None
    bench.set_tag(5, 0, 0)  # no longer found; two grace periods follow, then it is used again
    old = ENTRY.pack(*entry_of(bench.shared, 5, 0))
    bench.offload(other, moved(other, b"\2\2\2\2"))
    new = ENTRY.pack(*entry_of(bench.shared, 5, 0))
    bench.set_tag(5, 0, 0)
    for stored in range(len(new) + 1):
        bench.set_entry(5, 0, new[:stored] + old[stored:])
        assert address_of(one) is None and address_of(other) is None
    bench.set_tag(5, 0, other_tag)
    assert address_of(one) is None and address_of(other) == b"\2\2\2\2"


def test_a_packet_that_does_not_fit_the_next_link_goes_the_ordinary_way(bench: Bench) -> None:
    life = Life(bench, UDP)
    plain, long = life.packet(), life.packet(bytes(600 - 27))
    after = life.translated(plain)
    assert after is not None
    bench.offload(plain, after)
    bench.hop(600)
    try:
        assert bench.run(plain) == after
        assert bench.run(long) is None
    finally:
        bench.hop(1500)


def test_tcp_marks_go_forward_alone(bench: Bench) -> None:
    life = Life(bench, TCP)
    plain = life.packet()
    after = life.translated(plain)
    assert after is not None
    key = bench.offload(plain, after, end=0xFFFFFF00, ack=600)
    bench.run(life.packet(bytes(50), sequence=0xFFFFFF00 - 100))
    assert (bench.counted(key)["end"], bench.counted(key)["ack"]) == (0xFFFFFF00, 600)
    bench.run(life.packet(bytes(500), sequence=0xFFFFFFF0))
    assert bench.counted(key)["end"] == 0xFFFFFFF0 + 500 - (1 << 32)


def test_a_checksum_that_was_left_to_offload_is_finished_by_the_ordinary_way() -> None:
    for outside in (False, True):
        bench = Bench(outside=outside, virtual=True)
        for protocol, place in ((UDP, 26), (TCP, 36)):
            life = Life(bench, protocol)
            plain = life.packet(b"abc")
            after = life.translated(plain)
            assert after is not None
            bench.offload(plain, after)
            pseudo = plain[12:20] + bytes((0, protocol)) + (len(plain) - 20).to_bytes(2)
            partial = (~checksum(pseudo) & 0xFFFF).to_bytes(2)
            assert bench.run(plain[:place] + partial + plain[place + 2 :]) is None
            assert bench.run(plain) == after


# ---- a plane ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fast(network: Network) -> Iterator[Network]:
    """The network; its hosts finish their checksums themselves, and take redirected frames."""
    for member in ("in", "out"):
        network.run(member, ["ethtool", "-K", "eth0", "tx", "off", "gro", "on"])
    yield network


def test_a_transfer_by_the_fast_path_is_whole_and_counted_to_the_byte(fast: Network) -> None:
    with gateway() as made, start(fast, made, driver="af_xdp", fast_path=True) as plane:
        sent, arrived = transfer(fast, 30 << 20)
        assert sent == arrived
        until(lambda: plane.counters()["fast_path"] > 1000)
    rows, plane_counters = made.take_records(events=True), plane.counters()
    assert adds_up(made)
    assert plane_counters["fast_path_late"] == 0
    windows = rows[(rows["kind"] == WINDOW) & (rows["protocol"] == 6)]
    assert windows["bytes_from_vpc"].sum() > 30 << 20
    assert windows["pkts_from_vpc"].sum() + windows["pkts_from_pub"].sum() == made.counters()["forwarded"]


class Flow:
    """A UDP flow of the inside host with an echo server outside."""

    def __init__(self, network: Network, size: int = 40) -> None:
        self.size, self.sent, self.answered = size, 0, 0
        self.seen: set[tuple[str, int]] = set()  # by the server
        with at(network, "out"):
            self._server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._server.bind((SERVER, 7))
        with at(network, "in"):
            self._client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._client.connect((SERVER, 7))
        self._server.settimeout(0.5)
        self._client.settimeout(0.5)

    def exchange(self, packets: int = 1) -> int:
        """Send packets, each after the answer to the one before; return how many were answered."""
        before = self.answered
        for _ in range(packets):
            with suppress(OSError):  # no answer, or an ICMP error
                self._client.send(bytes(self.size))
                self.sent += 1
                data, peer = self._server.recvfrom(2048)
                self.seen.add(peer)
                self._server.sendto(data, peer)
                self.answered += len(self._client.recv(2048)) == self.size
        return self.answered - before

    def close(self) -> None:
        self._client.close()
        self._server.close()


@pytest.fixture
def flow(fast: Network) -> Iterator[Flow]:
    made = Flow(fast)
    yield made
    made.close()


def taken(plane: Plane) -> int:
    return plane.counters()["fast_path"]


def taken_in_all(plane: Plane) -> int:
    """The same when nothing goes by the fast path any more: what it took is counted every half second."""
    looks = [taken(plane)]

    def is_settled() -> bool:
        looks.append(taken(plane))
        return len(looks) > 50 and looks[-50] == looks[-1]  # a second

    until(is_settled)
    return looks[-1]


def offload(flow: Flow, plane: Plane) -> None:
    """Exchange packets until both directions go by the fast path."""
    until(lambda: flow.exchange() and plane.counters()["fast_path_entries"] == 2)
    before = taken(plane)
    until(lambda: flow.exchange(4) == 4 and taken(plane) >= before + 8)


def started(network: Network, made: Gateway) -> Plane:
    return start(network, made, driver="af_xdp", fast_path=True)


def test_both_directions_of_a_flow_are_in_its_rows_and_counters(fast: Network, flow: Flow) -> None:
    with gateway() as made, started(fast, made) as plane:
        offload(flow, plane)
        flow.exchange(50)
    (row,) = (row for row in made.take_records() if row["protocol"] == 17)
    assert (row["pkts_from_vpc"], row["pkts_from_pub"]) == (flow.sent, flow.answered)
    assert (row["bytes_from_vpc"], row["bytes_from_pub"]) == (68 * flow.sent, 68 * flow.answered)
    counters = made.counters()
    assert counters["forwarded"] == flow.sent + flow.answered
    assert (counters["bytes_from_inside"], counters["bytes_from_outside"]) == (68 * flow.sent, 68 * flow.answered)
    assert adds_up(made)


def test_windows_end_in_time_and_add_up(fast: Network, flow: Flow) -> None:
    with gateway(window=1.0) as made, started(fast, made) as plane:
        offload(flow, plane)
        start_at = time.monotonic()
        until(lambda: flow.exchange(4) == 4 and time.monotonic() > start_at + 4.0)
    rows = [row for row in made.take_records() if row["protocol"] == 17]
    assert len(rows) >= 4
    assert (sum(row["pkts_from_vpc"] for row in rows), sum(row["pkts_from_pub"] for row in rows)) == (
        flow.sent,
        flow.answered,
    )
    for one, other in pairwise(rows):
        assert one["end_time"] - one["start_time"] <= 1_000_000 and one["end_time"] <= other["start_time"]


def test_a_session_that_the_fast_path_alone_uses_outlives_its_time_out(fast: Network, flow: Flow) -> None:
    with pytest.warns(RfcWarning):
        timeouts = Timeouts(udp=5.0)
    with gateway(timeouts=timeouts) as made, started(fast, made) as plane:
        offload(flow, plane)
        before, start_at = taken(plane), time.monotonic()
        until(lambda: flow.exchange(4) == 4 and time.monotonic() > start_at + 6.0)
        assert made.counters()["created"] == 1
        until(lambda: taken(plane) > before + 100)
        assert plane.counters()["fast_path_sessions"] == 1


def test_a_table_that_was_full_takes_sessions_again(fast: Network, flow: Flow) -> None:
    with gateway() as made, start(fast, made, driver="af_xdp", fast_path=16) as plane, ExitStack() as sockets:
        with at(fast, "in"):
            clients = [sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(100)]
        sent = 0

        def is_full() -> bool:  # as good as, of 64 entries; offers are few then
            nonlocal sent
            for client in clients:
                client.sendto(b"x", (SERVER, 9))
            sent += len(clients)
            return plane.counters()["fast_path_entries"] >= 48 and sent > 20 * len(clients)

        until(is_full)
        assert made.counters()["created"] == len(clients)
        made.end_all()
        offload(flow, plane)


def check_tags(plane: Plane) -> int:
    """Every tag is that of its entry, which lies in its bucket; return how many there are."""
    shared, found = plane._fast_path, 0
    assert shared is not None
    for bucket in range(1 << shared.bits):
        tags = tags_of(shared, bucket)
        for way, tag in enumerate(tags):
            source, destination, ports, protocol, *_ = entry_of(shared, bucket, way)
            assert tag == 0 or (bucket, tag) == place_of(shared, source + destination, ports, protocol)
            assert tag == 0 or tags.count(tag) == 1
            found += tag != 0
    return found


def test_entries_that_were_recalled_are_found_by_no_packet_and_used_again(fast: Network) -> None:
    with gateway() as made, start(fast, made, driver="af_xdp", fast_path=16) as plane, ExitStack() as sockets:
        with at(fast, "out"):
            server = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            server.bind((SERVER, 9))
        server.settimeout(0.5)
        with at(fast, "in"):
            clients = [sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(100)]
        seen: list[set[tuple[str, int]]] = [set() for _ in clients]

        def is_offloaded() -> bool:  # half of 64 entries; no packet is under way when it returns
            for number, client in enumerate(clients):
                client.sendto(bytes([number]), (SERVER, 9))
            with suppress(TimeoutError):
                for _ in clients:
                    data, peer = server.recvfrom(2048)
                    seen[data[0]].add(peer)
            return plane.counters()["fast_path_entries"] >= 32

        for _ in range(4):  # from the third on entries are used again
            before = [set(endpoints) for endpoints in seen]
            for endpoints in seen:
                endpoints.clear()
            until(is_offloaded)
            assert check_tags(plane) == plane.counters()["fast_path_entries"]
            now_seen = [endpoint for endpoints in seen for endpoint in endpoints]
            assert len(now_seen) == len(set(now_seen)) == len(clients)  # one each, and each its own
            assert not any(one & other for one, other in zip(before, seen, strict=True))
            made.end_all()
            assert check_tags(plane) == 0
        assert plane.counters()["fast_path_late"] == 0


@pytest.mark.parametrize("how", ["remove", "end", "replace"])
def test_no_packet_is_translated_by_a_session_that_has_ended(fast: Network, flow: Flow, how: str) -> None:
    with gateway() as made, started(fast, made) as plane:
        offload(flow, plane)
        (entry,) = made.entries()
        if how == "remove":
            made.remove(entry)
            assert flow.exchange(3) == 0
        elif how == "end":
            assert made.end(subscriber=CLIENT) == 1
            before = set(flow.seen)
            assert flow.exchange(3) == 3
            assert len(flow.seen - before) == 1  # another port: the first one is held down
        else:
            made.replace(entry, SnatEntry("10.0.0.0/16", pool="198.18.0.101"))
            flow.seen.clear()
            assert flow.exchange(3) == 3
            assert {address for address, _ in flow.seen} == {"198.18.0.101"}
        made.end_all()
    rows = made.take_records()
    assert rows["pkts_from_vpc"].sum() + rows["pkts_from_pub"].sum() == made.counters()["forwarded"]
    assert plane.counters()["fast_path_late"] == 0


def test_who_watches_sees_every_packet(fast: Network, flow: Flow) -> None:
    with gateway() as made, started(fast, made) as plane:
        offload(flow, plane)
        with plane.watch_frames() as feed:
            before = taken_in_all(plane)
            assert flow.exchange(20) == 20
            assert len(feed.take()) >= 40 and taken_in_all(plane) == before
        offload(flow, plane)


def test_a_flow_log_has_every_packet(fast: Network, flow: Flow) -> None:
    with gateway() as made, started(fast, made) as plane:
        offload(flow, plane)
        with FlowLog(made) as log:
            assert flow.exchange(20) == 20
            rows = log.take()
        assert rows["packets"].sum() == 80  # each way, as it comes in and as it goes out
        offload(flow, plane)


def test_a_smaller_link_and_another_neighbour_hold_at_once(fast: Network, flow: Flow) -> None:
    flow.size = 1200
    with gateway() as made, started(fast, made) as plane:
        offload(flow, plane)
        fast.run("out", ["ip", "link", "set", "eth0", "address", "02:00:00:00:99:01"])
        fast.run("gw", ["ip", "neigh", "flush", "dev", "wan0"])
        until(lambda: flow.exchange() == 1)
        offload(flow, plane)
        fast.run("gw", ["ip", "link", "set", "wan0", "mtu", "1000"])
        until(lambda: flow.exchange() >= 0 and made.counters()["dropped_mtu"] >= 1)


def test_nothing_goes_by_the_fast_path_to_a_link_that_is_down(fast: Network, flow: Flow) -> None:
    with gateway() as made, started(fast, made) as plane:
        offload(flow, plane)
        fast.down("gw", "wan0")
        until(lambda: plane.state == "degraded")
        assert flow.exchange(3) == 0  # 1.5 s: what was translated before is known
        before = taken(plane)
        assert flow.exchange(3) == 0 and taken(plane) == before
        fast.up("gw", "wan0")
        until(lambda: plane.state == "running" and flow.exchange() == 1)
        offload(flow, plane)


def test_a_connection_that_closes_goes_the_ordinary_way(fast: Network) -> None:
    with gateway() as made, started(fast, made) as plane:
        sent, arrived = transfer(fast, 20 << 20, upload=False)
        assert sent == arrived
        until(lambda: made.sessions()["state"].tolist() == [SessionState.CLOSING])  # both have sent FIN
        assert plane.counters()["fast_path_entries"] == 0
        assert taken(plane) > 1000


def test_a_link_that_cannot_take_redirected_frames_gets_its_packets_the_ordinary_way(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    network.run("in", ["ethtool", "-K", "eth0", "tx", "off", "gro", "on"])
    network.run("out", ["ethtool", "-K", "eth0", "tx", "off", "gro", "off"])
    flow = Flow(network)
    with gateway() as made, started(network, made) as plane:
        until(lambda: flow.exchange(10) == 10 and plane.counters()["fast_path_entries"] == 1)  # inbound alone
        assert "wan0: the kernel cannot send redirected frames" in caplog.text
        assert flow.exchange(20) == 20
        network.run("out", ["ethtool", "-K", "eth0", "gro", "on"])
        offload(flow, plane)
    flow.close()


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"driver": "af_packet"}, {}, "driver must be 'af_xdp' for a fast_path, got 'af_packet'"),
        ({}, {"workers": 2}, "workers must be 1 for a fast_path, got 2"),
        ({}, {"decrement_ttl": False}, "decrement_ttl must be True for a fast_path, got False"),
        ({"fast_path": 0}, {}, "fast_path must be a whole number between 1 and 5000000, got 0"),
    ],
)
def test_what_has_no_fast_path_is_refused(options: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with Gateway(**settings) as made, pytest.raises(ConfigurationError, match=message):
        made.forward("lan0", "wan0", **{"driver": "af_xdp", "fast_path": True, **options})
