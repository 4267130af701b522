"""The flow log beside the session log: each packet once on each interface that it passes, sums that agree exactly."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest

from natcore import FLOW, ConfigurationError, DnatEntry, FlowLog, Gateway, Generated, Side, SnatEntry, Verdict
from natcore.dtypes import WINDOW
from natcore.flowlog import ACCEPT, IN, OUT, REJECT
from natcore.testing import configurations, craft
from oracle.comparison import EPOCH, Pair
from support.multi_worker import COUNTS
from support.worked_example import HOST, HOST_PORT, NAT, NAT_PORT, SERVER, SERVER_PORT, converse, example_gateway

INSIDE, OUTSIDE = int(Side.INSIDE), int(Side.OUTSIDE)
OFF = 1.0e9  # a window that never ends
Key = tuple[int, ...]  # interface, direction, action, protocol, source address and port, destination address and port
KEY = ("interface", "direction", "action", "protocol", "srcaddr", "srcport", "dstaddr", "dstport")


def key_of(row: np.void) -> Key:
    return tuple(int(row[name]) for name in KEY)


def test_the_pages_four_rows_beside_its_one_session_row() -> None:
    with example_gateway() as gateway, FlowLog(gateway) as flows:
        converse(gateway)
        rows = flows.take()
        gateway.advance(1000)
        (session,) = gateway.take_records()
    host, server, nat = (
        (craft.address(ip), port) for ip, port in ((HOST, HOST_PORT), (SERVER, SERVER_PORT), (NAT, NAT_PORT))
    )
    assert [key_of(row) for row in rows] == [
        (INSIDE, IN, ACCEPT, 6, *host, *server),
        (OUTSIDE, OUT, ACCEPT, 6, *nat, *server),
        (OUTSIDE, IN, ACCEPT, 6, *server, *nat),
        (INSIDE, OUT, ACCEPT, 6, *server, *host),
    ]
    assert rows["packets"].tolist() == [6, 6, 4, 4]
    assert rows["packets"].tolist() == [session["pkts_from_vpc"]] * 2 + [session["pkts_from_pub"]] * 2
    assert rows["bytes"].tolist() == [session["bytes_from_vpc"]] * 2 + [session["bytes_from_pub"]] * 2
    assert (rows["start"][0], rows["end"][0]) == (0, 90_000) and rows["start"][0] == session["start_time"]


def udp(source: tuple[str, int], destination: tuple[str, int], load: bytes = b"x") -> bytes:
    return craft.ether(craft.udp(source, destination, load))


def test_flow_rows_are_session_rows_and_dnat_and_errors_and_drops() -> None:
    """The flow log exceeds the session log by what the contract leaves out, and by nothing else."""
    with Gateway(instance="i", vpc_id="v", seed=1) as gateway, FlowLog(gateway) as flows:
        gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
        gateway.add(DnatEntry("203.0.113.1", 8443, "10.0.0.9", 443, protocol="udp"))
        host, server, stranger = ("10.0.0.5", 5000), ("198.51.100.7", 53), ("198.51.100.8", 999)
        _, sent = gateway.translate_one(udp(host, server), Side.INSIDE, 1.0)
        for _ in range(4):
            gateway.translate_one(udp(host, server), Side.INSIDE, 1.0)
        assert sent is not None
        outside = (".".join(map(str, sent[26:30])), int.from_bytes(sent[34:36]))
        for _ in range(3):
            gateway.translate_one(udp(server, outside, b"answer"), Side.OUTSIDE, 2.0)
        for _ in range(4):  # DNAT: not in the session log
            gateway.translate_one(udp(stranger, ("203.0.113.1", 8443)), Side.OUTSIDE, 3.0)
        gateway.translate_one(udp(("10.0.0.9", 443), stranger), Side.INSIDE, 3.0)
        error = craft.icmp("198.51.100.1", outside[0], 3, 1, 0, 0, sent[14:42])  # about the first packet
        assert gateway.translate_one(craft.ether(error), Side.OUTSIDE, 4.0)[0] is Verdict.INBOUND
        for _ in range(2):  # drops: a closed port, an address without a host
            assert gateway.translate_one(udp(stranger, ("203.0.113.1", 9)), Side.OUTSIDE, 5.0)[0].is_drop
            assert gateway.translate_one(udp(("192.0.2.1", 9), server), Side.INSIDE, 5.0)[0].is_drop
        assert gateway.translate_one(b"\1" * 60, Side.INSIDE, 5.0)[0].is_drop  # without a 5-tuple
        rows, counters = flows.take(), flows.counters()
        gateway.advance(1000.0)
        records = gateway.take_records()
    totals = {(side, way, action): 0 for side in (0, 1) for way in (0, 1) for action in (0, 1)}
    for row in rows:
        totals[int(row["interface"]), int(row["direction"]), int(row["action"])] += int(row["packets"])
    from_vpc, from_pub = int(records["pkts_from_vpc"].sum()), int(records["pkts_from_pub"].sum())
    assert (from_vpc, from_pub) == (5, 3)
    dnat_in, dnat_out, errors, drops = 4, 1, 1, 2
    assert totals == {
        (INSIDE, IN, ACCEPT): from_vpc + dnat_out, (INSIDE, IN, REJECT): drops,
        (OUTSIDE, OUT, ACCEPT): from_vpc + dnat_out, (OUTSIDE, OUT, REJECT): 0,
        (OUTSIDE, IN, ACCEPT): from_pub + dnat_in + errors, (OUTSIDE, IN, REJECT): drops,
        (INSIDE, OUT, ACCEPT): from_pub + dnat_in + errors, (INSIDE, OUT, REJECT): 0,
    }  # fmt: skip
    assert counters == {"rows": 0, "lost": 0, "unreadable": 1}


class Watched(Pair):
    """A random life with a flow log; beside it the same sums, from the frames as the tests see them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.flows = FlowLog(self.gateway, window=OFF)
        self.packets: Counter[Key] = Counter()
        self.lengths: Counter[Key] = Counter()
        self.unreadable = 0
        self.held = self.lost = 0  # fragments, at any time; frames that reached no host

    def restart(self, random: Random) -> None:
        """A restored gateway has no flow log yet: this life goes on without."""

    def follow(self, random: Random) -> None:
        """Nor has a standby that took over."""

    def take_generated(self) -> list[Generated]:
        taken = super().take_generated()
        for generated in taken:
            self.count(generated.frame, generated.send_to, OUT, ACCEPT)
        return taken

    def _same_outcome(self, data: bytes, side: Side, seconds: float, verdict: Verdict, sent: bytes | None) -> None:
        super()._same_outcome(data, side, seconds, verdict, sent)
        if not self.count(data, side, IN, REJECT if verdict.is_drop else ACCEPT):
            self.unreadable += 1
        self.held += verdict is Verdict.HELD
        if sent is not None:
            self.way = side if verdict is Verdict.HAIRPIN else Side(1 - side)
            self.count(sent, self.way, OUT, ACCEPT)

    def undelivered(self, data: bytes, side: Side, seconds: float) -> None:
        self.sent = None
        super().undelivered(data, side, seconds)
        if self.sent is not None:
            self.count(self.sent, self.way, OUT, ACCEPT, by=-1)
            self.lost += 1

    def count(self, frame: bytes, side: Side, direction: int, action: int, by: int = 1) -> bool:
        found = five_tuple(frame, self.configuration.options.get("framing", "ethernet"), outward=int(side) == direction)
        if found is None:
            return False
        *ends, protocol, length = found
        key = (int(side), direction, action, protocol, *ends)
        self.packets[key] += by
        self.lengths[key] += by * length
        return True


def five_tuple(frame: bytes, link: str, outward: bool) -> tuple[int, ...] | None:
    """Source address and port, destination address and port, protocol, IPv4 length; None: there is none."""
    at = 0
    if link == "ethernet":
        at = 14
        while frame[at - 2 : at] in (b"\x81\x00", b"\x88\xa8") and at < 22:
            at += 4
        if frame[at - 2 : at] != b"\x08\x00":
            return None
    ip = frame[at:]
    if len(ip) < 20:
        return None
    header, total = (ip[0] & 15) * 4, int.from_bytes(ip[2:4])
    if ip[0] >> 4 != 4 or header < 20 or not header <= total <= len(ip):
        return None
    source, destination = int.from_bytes(ip[12:16]), int.from_bytes(ip[16:20])
    rest, ports = ip[header:total], (0, 0)
    if not int.from_bytes(ip[6:8]) & 0x1FFF:
        if ip[9] in (6, 17) and len(rest) >= 4:
            ports = int.from_bytes(rest[:2]), int.from_bytes(rest[2:4])
        elif ip[9] == 1 and len(rest) >= 8 and rest[0] in (0, 8, *range(13, 19)):
            ident = int.from_bytes(rest[4:6])
            ports = (ident, 0) if outward else (0, ident)
    return source, ports[0], destination, ports[1], ip[9], total


@pytest.mark.parametrize("seed", range(12))
def test_random_lives_are_seen_as_they_were(seed: int) -> None:
    random = Random(seed)
    pair = Watched(configurations.configuration(random, COUNTS), seed)
    for _ in range(250):
        pair.step(random)
    pair.take_generated()
    rows, counters = pair.flows.take(), pair.flows.counters()
    assert {key_of(row): int(row["packets"]) for row in rows} == dict(pair.packets)
    assert {key_of(row): int(row["bytes"]) for row in rows} == dict(pair.lengths)
    assert counters == {"rows": 0, "lost": 0, "unreadable": pair.unreadable}
    told = pair.gateway.counters()
    seen = {(way, action): 0 for way in (IN, OUT) for action in (ACCEPT, REJECT)}
    for row in rows:
        seen[int(row["direction"]), int(row["action"])] += int(row["packets"])
    assert seen[IN, ACCEPT] + seen[IN, REJECT] + pair.unreadable == told["received"]
    late = seen[IN, ACCEPT] - told["forwarded"] - told["local"] - told["held"]  # accepted when they came, dropped since
    assert pair.lost <= late <= pair.held + pair.lost
    pair.flows.close()


def talk(gateway: Gateway, port: int, now: float) -> None:
    gateway.translate_one(udp(("10.0.0.5", port), ("198.51.100.7", 53)), Side.INSIDE, now)


@pytest.fixture
def gateway() -> Gateway:
    made = Gateway(instance="i", vpc_id="v", seed=1, epoch=EPOCH)
    made.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
    return made


def test_a_row_holds_a_window_from_its_first_packet(gateway: Gateway) -> None:
    flows = FlowLog(gateway, window=10.0)
    for now in (0.0, 5.0, 9.999, 10.0, 19.0, 100.0):
        talk(gateway, 5000, now)
    rows = flows.take()
    inward = rows[rows["direction"] == IN]
    assert inward["packets"].tolist() == [3, 2, 1]
    epoch = round(EPOCH * 1e6)
    assert (inward["start"] - epoch).tolist() == [0, 10_000_000, 100_000_000]
    assert (inward["end"] - epoch).tolist() == [9_999_000, 19_000_000, 100_000_000]
    assert flows.take().shape == (0,) and rows.dtype == FLOW


def test_what_finds_no_row_is_counted(gateway: Gateway) -> None:
    flows = FlowLog(gateway, capacity=4)
    for port in range(5000, 5005):
        talk(gateway, port, 0.0)
        talk(gateway, port, 0.0)
    assert flows.counters() == {"rows": 4, "lost": 12, "unreadable": 0}
    assert len(flows.take()) == 4
    talk(gateway, 6000, 0.0)
    assert len(flows.take()) == 2


def test_one_at_a_time_and_none_after_the_end(gateway: Gateway) -> None:
    flows = FlowLog(gateway)
    with pytest.raises(ConfigurationError, match="one at a time"):
        FlowLog(gateway)
    talk(gateway, 5000, 0.0)
    assert "open" in repr(flows)
    flows.close()
    flows.close()
    talk(gateway, 5001, 0.0)
    assert "closed" in repr(flows) and len(flows.take()) == 2
    with FlowLog(gateway) as again:
        talk(gateway, 5000, 0.0)
        assert len(again.take()) == 2
    del gateway
    assert len(again.take()) == 0


def test_bad_arguments_are_refused(gateway: Gateway) -> None:
    for more in ({"capacity": 0}, {"window": 0}, {"capacity": 1 << 27}):
        with pytest.raises(ConfigurationError, match=r"FlowLog.\w+ must"):
            FlowLog(gateway, **more)
    with pytest.raises(ValueError, match=" must "):
        FlowLog(gateway)._table.take(np.zeros(3, FLOW))


def test_frames_leave_byte_for_byte_alike_with_it_and_without() -> None:
    frames = np.zeros((700, 64), np.uint8)
    for row in range(700):
        data = udp(("10.0.0.5", 1000 + row % 300), ("198.51.100.7", 53))
        frames[row, : len(data)] = np.frombuffer(data, np.uint8)
    results = []
    for watched in (False, True):
        with Gateway(instance="i", vpc_id="v", seed=1) as made:
            made.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
            flows = FlowLog(made) if watched else None
            out, lengths = frames.copy(), np.full(700, len(data), np.uint32)
            verdicts = made.translate(out, lengths, Side.INSIDE, now=1.0)
            made.translate(frames.copy(), lengths.copy(), Side.INSIDE, now=0.5)
            results.append((out.tobytes(), lengths.tobytes(), verdicts.tobytes(), made.counters()))
            assert flows is None or flows.take()["packets"].sum() == 2 * 2 * 700
            made.advance(900.0)
            assert made.take_records()["kind"].tolist() == [WINDOW] * 300
    assert results[0] == results[1]
