"""Steering by a network card's RSS: the hash, key and table, the simulated card's choice against the gateway's own word, and a
plane that sets the card and puts it back. No card was at hand: FakeCard does what Microsoft's RSS specification says."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from ipaddress import IPv4Address
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import ConfigurationError, Gateway, Policy, Side, SnatEntry
from natcore.internal.affinity import LANES, lane_of_inside, worker_of_port
from natcore.plane import ethtool
from natcore.plane.drivers import _shares
from natcore.plane.ethtool import ADDRESSES, PORTS, TOEPLITZ, Device, Hashing
from natcore.plane.rss import KEY_BYTES_LEAST, hashed, is_ours, key_for, table_for, toeplitz
from natcore.plane.steering import NotSteeredError, Steering, left_steered, unsteer
from natcore.testing import craft
from natcore.testing.oracle.packets import TCP, UDP
from support.netns import SERVER, build, gateway, needs_root, ping, queues, start, xdp_missing

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
VECTORS = [  # "Verifying the RSS hash calculation": destination, source, hash of the addresses, and with the ports
    (("161.142.100.80", 1766), ("66.9.149.187", 2794), 0x323E8FC2, 0x51CCC178),
    (("65.69.140.83", 4739), ("199.92.111.2", 14230), 0xD718262A, 0xC626B0EA),
    (("12.22.207.184", 38024), ("24.19.198.95", 12898), 0xD2D0A5DE, 0x5C2B394A),
    (("209.142.163.6", 2217), ("38.27.205.30", 48228), 0x82989176, 0xAFC7327F),
    (("202.188.127.2", 1303), ("153.39.163.191", 44251), 0x5D1809C5, 0x10E828A2),
]
REFUSED = OSError(errno.EOPNOTSUPP, "Operation not supported")
HOSTS = st.integers(0, 0xFFFFFFFF)
ENDS = st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))


class FakeCard:
    """What a card with RSS does, with what it can be told not to do."""

    def __init__(self, entries: int = 128, key_bytes: int = 40, fields: int = ADDRESSES | PORTS) -> None:
        self.now = Hashing(TOEPLITZ, 0, KEY[:key_bytes], tuple(entry % 4 for entry in range(entries)))
        self.of = {TCP: ADDRESSES | PORTS, UDP: fields}
        self.refuses: set[str] = set()
        self.forgets = False  # takes a key and goes on with its own, as some drivers do

    @property
    def state(self) -> object:
        return self.now, dict(self.of)

    def _may(self, what: str) -> None:
        if what in self.refuses:
            raise REFUSED

    def hashing(self) -> Hashing:
        self._may("hashing")
        return self.now

    def set_hashing(self, wanted: Hashing) -> None:
        self._may("set_hashing")
        assert (len(wanted.key), len(wanted.table)) == (len(self.now.key), len(self.now.table))
        self.now = replace(wanted, key=self.now.key) if self.forgets else wanted

    def fields(self, protocol: int) -> int:
        self._may("fields")
        return self.of[protocol]

    def set_fields(self, protocol: int, fields: int) -> None:
        self._may("set_fields")
        self.of[protocol] = fields

    def queue_of(self, packet: bytes) -> int:
        source, destination = struct.unpack_from(">II", packet, 12)
        fragment = struct.unpack_from(">H", packet, 6)[0] & 0x3FFF
        ports = None
        if packet[9] in self.of and not fragment and self.of[packet[9]] & PORTS:
            ports = struct.unpack_from(">HH", packet, 4 * (packet[0] & 15))
        return self.now.table[toeplitz(self.now.key, hashed(source, destination, ports)) % len(self.now.table)]


def steered(card: FakeCard, side: Side, workers: int, port_unit: int = 64, each: int = 1) -> Steering:
    return Steering(card, side, workers, port_unit, _shares(each * workers, workers))


# ---- hash, key and table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("destination", "source", "alone", "with_ports"), VECTORS)
def test_the_hash_is_that_of_the_specification(
    destination: tuple[str, int], source: tuple[str, int], alone: int, with_ports: int
) -> None:
    addresses = int(IPv4Address(source[0])), int(IPv4Address(destination[0]))
    assert toeplitz(KEY, hashed(*addresses)) == alone
    assert toeplitz(KEY, hashed(*addresses, (source[1], destination[1]))) == with_ports


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="key must have at least 16 bytes, got 15"):
        toeplitz(KEY[:15], hashed(1, 2, (3, 4)))
    with pytest.raises(ValueError, match="its key has 15 bytes, not 16 or more"):
        key_for(Side.INSIDE, 64, bytes(KEY_BYTES_LEAST - 1))


@given(
    st.sampled_from(Side), st.integers(2, 64), st.integers(0, 12), st.integers(1, 3), st.sampled_from((128, 256, 2048)),
    st.binary(min_size=40, max_size=52), HOSTS, HOSTS, ENDS, st.booleans(),
)  # fmt: skip
def test_a_frame_comes_to_a_queue_of_its_worker_whoever_the_remote_is(
    side: Side, workers: int, shift: int, each: int, entries: int, random: bytes, source: int, destination: int,
    ports: tuple[int, int], whole: bool,
) -> None:  # fmt: skip
    shares = _shares(each * workers, workers)
    key, table = key_for(side, 1 << shift, random), table_for(side, workers, 1 << shift, shares, entries)
    if side is Side.INSIDE:  # a fragment's too
        wanted = lane_of_inside(source) % workers
    else:
        wanted, whole = worker_of_port(ports[1], workers, 1 << shift), True
    first, count = shares[wanted]
    found = table[toeplitz(key, hashed(source, destination, ports if whole else None)) % entries]
    assert first <= found < first + count
    assert is_ours(key)


@pytest.mark.parametrize("side", Side)
def test_lanes_are_shared_out_evenly_among_workers_and_their_queues(side: Side) -> None:
    table = table_for(side, 4, 64, _shares(16, 4), 256)
    assert [table.count(queue) for queue in range(16)] == [16] * 16


@pytest.mark.parametrize("stride", [1, 2, 4, 64, 256, 4096])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_inside_addresses_are_spread_however_they_are_numbered(stride: int, workers: int) -> None:
    lanes = lane_of_inside(np.uint32(0x0A000000) + np.arange(256, dtype=np.uint32) * np.uint32(stride))
    counts = np.bincount(lanes % workers, minlength=workers)
    assert counts.max() <= 1.25 * 256 / workers
    if stride == 1:
        assert np.bincount(lanes, minlength=LANES).tolist() == [2] * LANES


# ---- a card and a gateway --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3, 8])
@pytest.mark.parametrize("policy", [Policy(), Policy(ports="block", block_size=256)], ids=["random", "block"])
def test_nothing_is_handed_off_where_the_card_tells_the_worker(workers: int, policy: Policy) -> None:
    """Each frame is translated by the worker of the queue that a simulated card gives it to, answers from many remotes too."""
    random = Random(workers)
    with Gateway(workers=workers, policy=policy, max_sessions=20_000) as made:
        made.add(SnatEntry("10.0.0.0/8", "203.0.113.1-203.0.113.4"))
        cards = {side: FakeCard(entries=512, fields=ADDRESSES) for side in Side}
        for side, card in cards.items():
            steered(card, side, workers, made._core.port_unit, each=2)

        def sent(packet: bytes, side: Side) -> bytes:
            frame = craft.ether(packet)
            rows, worker = np.frombuffer(frame, np.uint8)[None].copy(), cards[side].queue_of(packet) // 2
            assert made.translate(rows, np.array([len(frame)], np.uint32), side, 1.0, worker=worker)[0] < 128
            return rows[0, 14:].tobytes()

        for number in range(500):
            inside = (0x0A000000 + random.randrange(1 << 16), random.randrange(1024, 65536))
            for _ in range(2):  # remotes of one mapping
                remote = (0x08000000 + random.randrange(1 << 24), random.randrange(1, 65536))
                if number % 2:
                    out = sent(craft.udp(inside, remote), Side.INSIDE)
                    back = craft.udp(remote, (int.from_bytes(out[12:16]), int.from_bytes(out[20:22])))
                else:
                    out = sent(craft.tcp(inside, remote, 2), Side.INSIDE)
                    back = craft.tcp(remote, (int.from_bytes(out[12:16]), int.from_bytes(out[20:22])), 0x12)
                assert int.from_bytes(sent(back, Side.OUTSIDE)[16:20]) == inside[0]
        counters = made.counters()
        assert counters["forwarded"] == 2000
        assert counters["handed_over"] == 0
        assert min(made.counters(worker)["received"] for worker in range(workers)) > 0


def test_without_steering_most_is_handed_off() -> None:
    """What the test above would not see if handed_over counted nothing."""
    card, random = FakeCard(), Random(1)
    with Gateway(workers=4) as made:
        made.add(SnatEntry("10.0.0.0/8", "203.0.113.1"))
        for _ in range(400):
            packet = craft.udp((0x0A000000 + random.randrange(1 << 16), 5000), ("9.9.9.9", 53))
            frame = craft.ether(packet)
            rows = np.frombuffer(frame, np.uint8)[None].copy()
            made.translate(rows, np.array([len(frame)], np.uint32), Side.INSIDE, 1.0, worker=card.queue_of(packet))
        assert 200 < made.counters()["handed_over"] < 400


@pytest.mark.parametrize("side", Side)
def test_a_card_is_put_back(side: Side) -> None:
    card = FakeCard(fields=ADDRESSES)
    card.now = replace(card.now, function=2, transformation=1)  # another hash, of exclusive ors
    before = card.state
    steering = steered(card, side, 2)
    assert is_ours(card.now.key) and (card.now.function, card.now.transformation) == (TOEPLITZ, 0)
    assert card.of == {TCP: ADDRESSES | PORTS, UDP: ADDRESSES if side is Side.INSIDE else ADDRESSES | PORTS}
    steering.close()
    assert card.state == before
    card.refuses = {"set_hashing"}
    steering.close()  # idempotent


@pytest.mark.parametrize("what", ["hashing", "set_hashing", "fields", "set_fields"])
def test_a_card_that_refuses_is_as_it_was(what: str) -> None:
    card = FakeCard(fields=ADDRESSES)
    card.refuses, before = {what}, card.state
    with pytest.raises(
        NotSteeredError, match=r"device (has no RSS that can be set|refuses .*) \(Operation not supported\)"
    ):
        steered(card, Side.OUTSIDE, 2)
    assert card.state == before


def test_a_card_that_does_not_keep_its_key_is_found_out() -> None:
    card = FakeCard()
    card.forgets, before = True, card.state
    with pytest.raises(NotSteeredError, match="the device's RSS is not what it was set to"):
        steered(card, Side.INSIDE, 2)
    assert card.state == before


def test_what_a_card_cannot_tell_is_said() -> None:
    for card, unit, why in (
        (FakeCard(entries=64), 64, "its table has 64 entries, not a power of two of 128 or more"),
        (FakeCard(entries=192), 64, "its table has 192 entries"),
        (FakeCard(key_bytes=12), 64, "its key has 12 bytes"),
        (FakeCard(), 100, "blocks of 100 ports are no power of two"),
    ):
        before = card.state
        with pytest.raises(NotSteeredError, match=why):
            steered(card, Side.OUTSIDE, 2, unit)
        assert card.state == before
    with pytest.raises(NotSteeredError, match="it has fewer receive queues than the 4 workers"):
        Steering(FakeCard(), Side.INSIDE, 4, 64, _shares(3, 4))


def test_what_a_dead_plane_left_is_not_put_back() -> None:
    card = FakeCard()
    steered(card, Side.OUTSIDE, 2)  # and no end
    steered(card, Side.OUTSIDE, 2, each=3).close()
    assert not is_ours(card.now.key)
    assert card.now.table == tuple(entry % 6 for entry in range(128))
    assert not is_ours(bytes(40)) and not is_ours(KEY)


def test_clean_spreads_what_a_dead_plane_left_and_touches_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {"lan0": FakeCard(), "wan0": FakeCard(), "eth9": FakeCard()}
    cards["eth9"].refuses = {"hashing"}
    steered(cards["wan0"], Side.OUTSIDE, 2)  # and no end
    before = cards["lan0"].state
    monkeypatch.setattr("natcore.plane.steering.Device", cards.__getitem__)
    monkeypatch.setattr("natcore.plane.steering.queues_of", lambda name: 3)
    monkeypatch.setattr("socket.if_nameindex", lambda: list(enumerate(cards, 1)))
    assert left_steered() == ["wan0"]
    for name in cards:
        unsteer(name)
    assert left_steered() == []
    assert cards["wan0"].now.table == tuple(entry % 3 for entry in range(128))
    assert cards["lan0"].state == before


# ---- ethtool ---------------------------------------------------------------------------------------------------------


def test_requests_are_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel in Python, by linux/ethtool.h: struct ethtool_rxfh has 24 bytes, ethtool_rxnfc its fields at byte 8."""
    card = FakeCard(fields=ADDRESSES)

    def kernel(name: str, request: bytes) -> bytes:
        assert name == "wan0"
        command, second = struct.unpack_from("=II", request)
        if command in (0x29, 0x2A):  # ETHTOOL_GRXFH, ETHTOOL_SRXFH
            protocol = {1: TCP, 2: UDP}[second]
            if command == 0x2A:
                card.set_fields(protocol, struct.unpack_from("=Q", request, 8)[0])
            return request[:8] + struct.pack("=Q", card.fields(protocol)) + request[16:]
        entries, key_bytes = struct.unpack_from("=II", request, 8)
        assert second == 0 and request[18:24] == bytes(6)  # the default context; reserved
        if command == 0x46:  # ETHTOOL_GRSSH
            head = struct.pack("=IIIIBB6x", command, 0, len(card.now.table), len(card.now.key), card.now.function, 0)
            if (entries, key_bytes) == (0, 0):
                return head
            assert (entries, key_bytes) == (len(card.now.table), len(card.now.key))
            return head + struct.pack(f"={entries}I", *card.now.table) + card.now.key
        assert command == 0x47 and len(request) == 24 + 4 * entries + key_bytes
        table = struct.unpack_from(f"={entries}I", request, 24)
        card.set_hashing(Hashing(request[16], request[17], request[24 + 4 * entries :], table))
        return request

    monkeypatch.setattr(ethtool, "_asked", kernel)
    before, device = card.state, Device("wan0")
    assert device.hashing() == card.now
    assert (device.fields(TCP), device.fields(UDP)) == (ADDRESSES | PORTS, ADDRESSES)
    steering = Steering(device, Side.OUTSIDE, 2, 64, _shares(2, 2))
    assert is_ours(card.now.key) and card.of[UDP] == ADDRESSES | PORTS
    steering.close()
    assert card.state == before


def test_an_interface_without_rss_says_so() -> None:
    for call in (Device("lo").hashing, lambda: Device("lo").fields(TCP)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EOPNOTSUPP


# ---- a plane ---------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.skipif(bool(xdp_missing()), reason=str(xdp_missing()))
def test_a_plane_sets_its_cards_and_puts_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with build() as network:
        queues(network, 2, ("gw", "lan0"), ("in", "eth0"), ("gw", "wan0"), ("out", "eth0"))
        with (
            gateway(workers=2) as made,
            start(network, made, driver="af_xdp", steering="rss") as plane,
        ):  # veth has no RSS
            for interface in plane.interfaces().values():
                assert interface.steering == "none"
                assert interface.unsteered == "the device has no RSS that can be set (Operation not supported)"
            assert ping(network, "in", SERVER)
        cards = {name: FakeCard() for name in ("lan0", "wan0")}
        before = {name: card.state for name, card in cards.items()}
        monkeypatch.setattr(ethtool, "Device", cards.__getitem__)
        with gateway(workers=2) as made, start(network, made, driver="af_xdp", steering="rss") as plane:
            assert {name: (each.steering, each.unsteered) for name, each in plane.interfaces().items()} == {
                "lan0": ("rss", ""), "wan0": ("rss", ""),
            }  # fmt: skip
            keys = {name: card.now.key for name, card in cards.items()}
            assert keys == {"lan0": key_for(Side.INSIDE, 64, KEY), "wan0": key_for(Side.OUTSIDE, 64, KEY)}
            assert [set(card.now.table) for card in cards.values()] == [{0, 1}] * 2
            assert ping(network, "in", SERVER)
        assert {name: card.state for name, card in cards.items()} == before
        for driver, steering, workers, told in (
            ("af_packet", "none", 2, "fan-out"), ("af_packet", "none", 1, "none"),
            ("af_xdp", "none", 2, "none"), ("af_xdp", "rss", 1, "none"),
        ):  # fmt: skip
            with gateway(workers=workers) as made, start(network, made, driver=driver, steering=steering) as plane:
                assert {(each.steering, each.unsteered) for each in plane.interfaces().values()} == {(told, "")}
        assert {name: card.state for name, card in cards.items()} == before


def test_what_cannot_be_asked_for_is_refused() -> None:
    with Gateway(workers=2) as made:
        with pytest.raises(ConfigurationError, match="driver must be 'af_xdp' for steering='rss', got 'af_packet'"):
            made.forward("lan0", "wan0", steering="rss")
        with pytest.raises(ConfigurationError, match="steering must be"):
            made.forward("lan0", "wan0", driver="af_xdp", steering="ntuple")  # type: ignore[arg-type]
