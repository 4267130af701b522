"""From packets to the auditor's question: a gateway, real frames, sinks, DuckDB."""

from __future__ import annotations

import random
import struct
import threading

import duckdb
import numpy as np
import pytest

from natcore import Add, DeliveryError, DeliveryPolicy, Eip, Gateway, Remove, Side, SnatEntry, Verdict
from natcore.dtypes import END, WINDOW
from natcore.sinks import BaseSink, Batch, MemorySink, ParquetSink
from support.log_fakes import ScriptedSink, assert_adds_up

ETHERNET = bytes.fromhex("020000000001020000000002") + b"\x08\x00"
REMOTE = 0xC6336407  # 198.51.100.7


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(source, source_port, destination, destination_port, payload=b"", protocol=17):
    """An Ethernet frame; UDP without a checksum, a TCP SYN/ACK segment, or an ICMP echo with the source port as id."""
    if protocol == 17:
        body = struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0) + payload
    elif protocol == 6:
        body = struct.pack("!HHIIBBHHH", source_port, destination_port, 1, 1, 0x50, 0x12, 512, 0, 0) + payload
    else:
        kind = 8 if destination_port else 0
        body = struct.pack("!BBHHH", kind, 0, 0, source_port, 1) + payload + b"\0" * (len(payload) % 2)
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    header = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0, source, destination)
    return ETHERNET + header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


def ports_of(packet: bytes, protocol: int) -> tuple[int, int]:
    """(source address, source port or ICMP id) of a frame."""
    address = struct.unpack_from("!I", packet, 26)[0]
    return address, struct.unpack_from("!H", packet, 38 if protocol == 1 else 34)[0]


@pytest.fixture
def gateway():
    with Gateway(instance="ngw-1", vpc_id="vpc-1", seed=7, epoch=1_700_000_000.0) as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", pool=[Eip("203.0.113.1", private_ip="172.16.10.13")]))
        yield gateway


class Traffic:
    """Flows both ways, and what was sent, by protocol, inside address and port."""

    def __init__(self, gateway: Gateway, seed: int = 1) -> None:
        self.gateway = gateway
        self.chance = random.Random(seed)
        self.sent: dict[tuple[int, int, int], list[int]] = {}
        self.frames: list[bytes] = []

    def exchange(self, flow: int, now: float) -> None:
        protocol = (17, 6, 1)[flow % 3]
        host, port = 0x0A000001 + flow % 500, 1024 + flow
        counts = self.sent.setdefault((protocol, host, port), [0, 0, 0, 0])
        out = frame(host, port, REMOTE, 443, self.chance.randbytes(2 * self.chance.randrange(300)), protocol)
        verdict, sent = self.gateway.translate_one(out, Side.INSIDE, now)
        assert verdict is Verdict.OUTBOUND and sent is not None
        self.frames.append(sent)
        nat_ip, nat_port = ports_of(sent, protocol)
        counts[0] += len(out) - 14
        counts[1] += 1
        for _ in range(self.chance.randrange(3)):
            payload = self.chance.randbytes(2 * self.chance.randrange(300))
            answer = (
                frame(REMOTE, nat_port, nat_ip, 0, payload, 1)
                if protocol == 1
                else frame(REMOTE, 443, nat_ip, nat_port, payload, protocol)
            )
            verdict, back = self.gateway.translate_one(answer, Side.OUTSIDE, now)
            assert verdict is Verdict.INBOUND and back is not None
            self.frames.append(back)
            counts[2] += len(answer) - 14
            counts[3] += 1


SUMS = """SELECT protocol, pri_ip, pri_port, sum(bytes_from_vpc)::BIGINT, sum(pkts_from_vpc)::BIGINT,
                 sum(bytes_from_pub)::BIGINT, sum(pkts_from_pub)::BIGINT
          FROM '{}/*.parquet' WHERE kind = '{}' GROUP BY ALL"""


def sums_of(folder, kind="window"):
    with duckdb.connect() as connection:
        rows = connection.sql(SUMS.format(folder, kind)).fetchall()
    return {(row[0], _number(row[1]), row[2]): list(row[3:]) for row in rows}


def _number(address: str) -> int:
    return int.from_bytes(bytes(map(int, address.split("."))), "big")


def test_window_sums_in_parquet_equal_what_was_sent_over_window_edges_too(gateway, tmp_path):
    log = gateway.start_session_log(ParquetSink(tmp_path / "log", batch_seconds=0.05))
    traffic = Traffic(gateway)
    for step in range(3000):
        traffic.exchange(step % 400, now=step * 0.7)  # 35 minutes
    assert gateway.stop_session_log(log, timeout=60) == 0
    assert_adds_up(log.counters())
    assert log.counters()["lost"] == 0 and log.delivery_status.state == "Success"
    assert sums_of(tmp_path / "log") == traffic.sent
    counters = gateway.counters()
    with duckdb.connect() as connection:
        ((packets, addresses, numbers, rows),) = connection.sql(
            f"SELECT sum(pkts_from_vpc + pkts_from_pub)::BIGINT, list(DISTINCT (nat_ip, eip)), "
            f"count(DISTINCT number), count(*) FROM '{tmp_path}/log/*.parquet' WHERE kind = 'window'"
        ).fetchall()
    assert packets == counters["forwarded"] and numbers == rows
    assert addresses == [("172.16.10.13", "203.0.113.1")]


def test_end_rows_hold_the_sessions_totals(gateway, tmp_path):
    log = gateway.start_session_log(ParquetSink(tmp_path / "log"))
    traffic = Traffic(gateway)
    for step in range(600):
        traffic.exchange(step % 100, now=step * 0.1)
    gateway.advance(100_000.0)
    assert log.wait(60)
    assert sums_of(tmp_path / "log", "end") == sums_of(tmp_path / "log") == traffic.sent


def test_R1_twenty_five_minutes_of_steady_traffic_give_three_rows(gateway):
    sink = MemorySink()
    log = gateway.start_session_log(sink)
    for second in range(1500):
        gateway.translate_one(frame(0x0A000005, 4000, REMOTE, 53, b"x" * 20), Side.INSIDE, float(second))
    assert gateway.stop_session_log(log, timeout=60) == 0
    rows = [row for row in sink.rows() if row["pkts_from_vpc"]]
    windows = [row for row in sink.rows(local=True) if row["kind"] == "window"]
    assert [row["pkts_from_vpc"] for row in windows] == [600, 600, 300]
    assert sum(row["bytes_from_vpc"] for row in windows) == 1500 * 48
    assert [row["start_time"] - 1_700_000_000 for row in rows[:3]] == [0, 600, 1200]
    assert [row["end_time"] - 1_700_000_000 for row in rows[:2]] == [600, 1200]


def test_R1_a_log_that_starts_counts_from_its_start_and_R10_stops_with_partial_rows(gateway):
    early, late = MemorySink(), MemorySink()
    packet = frame(0x0A000005, 4000, REMOTE, 53, b"x" * 20)
    first = gateway.start_session_log(early, name="early")
    for second in range(10):
        gateway.translate_one(packet, Side.INSIDE, float(second))
    second_log = gateway.start_session_log(late, name="late")
    for second in range(10, 15):
        gateway.translate_one(packet, Side.INSIDE, float(second))
    assert gateway.stop_session_log(first, timeout=60) == 0
    assert gateway.stop_session_log(second_log, timeout=60) == 0
    assert [row["pkts_from_vpc"] for row in early.rows(local=True) if row["kind"] == "window"] == [15]
    (row,) = (row for row in late.rows(local=True) if row["kind"] == "window")
    assert (row["pkts_from_vpc"], row["bytes_from_vpc"]) == (5, 5 * 48)
    assert row["start_time"] == 1_700_000_009_000_000  # the late log's start


def test_R1_a_late_log_counts_each_sessions_packets_since_its_start_and_the_early_one_all(gateway):
    early, late, plain = MemorySink(), MemorySink(), ScriptedSink()
    gateway.start_session_log(early, name="early")
    traffic = Traffic(gateway)
    befores: list[dict[tuple[int, int, int], list[int]]] = []
    for second in range(700):
        if second in (250, 550):  # windows are open: some have been for 250 s, some roll over between the two
            gateway.start_session_log(late if second == 250 else plain, name=f"at-{second}")
            befores.append({key: list(counts) for key, counts in traffic.sent.items()})
        traffic.exchange(traffic.chance.randrange(40), float(second))
    gateway.close()
    for batches, before in ((early.batches, {}), (late.batches, befores[0]), (plain.taken, befores[1])):
        got: dict[tuple[int, int, int], list[int]] = {}
        for row in (row for batch in batches for row in batch.records if row["kind"] == WINDOW):
            sums = got.setdefault((int(row["protocol"]), int(row["pri_ip"]), int(row["pri_port"])), [0, 0, 0, 0])
            for at, name in enumerate(("bytes_from_vpc", "pkts_from_vpc", "bytes_from_pub", "pkts_from_pub")):
                sums[at] += int(row[name])
        since = {
            key: [count - base for count, base in zip(counts, before.get(key, [0] * 4), strict=True)]
            for key, counts in traffic.sent.items()
        }
        assert {key: sums for key, sums in got.items() if any(sums)} == {k: s for k, s in since.items() if any(s)}
    assert early.records["number"].tolist() == list(range(len(early.records)))
    numbers = late.records["number"].tolist()
    assert numbers == list(range(numbers[0], numbers[-1] + 1))  # a row of which nothing is left keeps its number
    assert all(row["pkts_from_vpc"] for batch in plain.taken for row in batch.records)


def test_advance_drains_a_ring_smaller_than_what_ends(tmp_path):
    with Gateway(seed=1, records=16) as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
        sink = MemorySink()
        log = gateway.start_session_log(sink)
        for flow in range(300):
            gateway.translate_one(frame(0x0A000001, 1024 + flow, REMOTE, 53), Side.INSIDE, 0.0)
            if flow % 4 == 3:
                gateway._collector.drain_now()
        gateway.advance(10_000.0)
        assert log.wait(60)
        assert gateway.counters()["journal_lost"] == 0
        assert [row["kind"] for row in sink.rows(local=True)].count("end") == 300


ENTRY, OTHER = SnatEntry("10.0.0.0/16", pool="203.0.113.1"), SnatEntry("10.1.0.0/16", pool="203.0.113.1")
ENDINGS = {
    "end": lambda gateway, entry: gateway.end_all(now=5.0),
    "end-late": lambda gateway, entry: gateway.end_all(now=10_000.0),  # all have died before
    "remove": lambda gateway, entry: gateway.remove(entry, now=5.0),
    "remove-late": lambda gateway, entry: gateway.remove(entry, now=10_000.0),
    "replace": lambda gateway, entry: gateway.replace(entry, OTHER, now=5.0),
    "apply": lambda gateway, entry: gateway.apply(gateway.plan([Remove(entry), Add(OTHER)]), 5.0),
    "modify": lambda gateway, entry: gateway.modify(eip_bind_mode="NAT", now=5.0),
    "close": lambda gateway, entry: gateway.close(),
}


@pytest.mark.parametrize("way", ENDINGS)
def test_what_ends_many_sessions_at_once_drains_a_ring_smaller_than_their_rows(way):
    with Gateway(seed=1, records=16, eip_bind_mode="MULTI_BINDED") as gateway:
        pool = Eip("203.0.113.1", private_ip="172.16.10.13") if way == "modify" else "203.0.113.1"
        entry = gateway.add(SnatEntry("10.0.0.0/16", pool=pool))
        sink = MemorySink()
        log = gateway.start_session_log(sink)
        for flow in range(300):
            gateway.translate_one(frame(0x0A000001, 1024 + flow, REMOTE, 53), Side.INSIDE, 0.0)
            if flow % 4 == 3:
                gateway._collector.drain_now()
        ENDINGS[way](gateway, entry)
        assert gateway.close() is None and log.counters()["lost"] == 0
        kinds = sink.records["kind"].tolist()
        assert kinds.count(WINDOW) == 300
        assert kinds.count(END) == 300  # closing the gateway ends its sessions too
        assert gateway._collector.counters()["lost_ring"] == 0


def test_what_ends_many_sessions_while_no_log_runs_loses_and_counts_what_the_ring_has_no_room_for():
    with Gateway(seed=1, records=16) as gateway:
        gateway.add(ENTRY)
        gateway.stop_session_log(gateway.start_session_log(MemorySink()))  # it took rows, and does no more
        for flow in range(300):
            gateway.translate_one(frame(0x0A000001, 1024 + flow, REMOTE, 53), Side.INSIDE, 0.0)
        assert gateway.end_all(now=5.0) == 300
        assert gateway.counters()["journal_lost"] == 900 - 16 - 16  # windows have a ring, the others another


def outlive(gateway: Gateway, way: str) -> None:
    """300 sessions die of one cause while a packet is on its way: nothing may wait for a reader."""
    if way == "long step of the clock":
        assert gateway.translate_one(frame(0x0A000002, 1, REMOTE, 53), Side.INSIDE, 20_000.0)[0] is Verdict.OUTBOUND
    else:
        assert gateway.translate_one(frame(0x0A000002, 1, REMOTE, 53), Side.INSIDE, 1000.0)[0] is Verdict.OUTBOUND


@pytest.mark.parametrize("way", ["long step of the clock", "admission to a full table"])
@pytest.mark.parametrize("logging", [True, False])
def test_what_the_sweep_ends_at_once_waits_beside_a_full_ring_while_a_log_runs(way, logging):
    with Gateway(seed=1, records=16, max_sessions=300) as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
        sink = MemorySink()
        if logging:
            log = gateway.start_session_log(sink)
        for flow in range(300):
            gateway.translate_one(frame(0x0A000001, 1024 + flow, REMOTE, 53), Side.INSIDE, 0.0)
            if logging and flow % 4 == 3:
                gateway._collector.drain_now()
        outlive(gateway, way)
        if not logging:
            assert gateway.counters()["journal_lost"] >= 900 - 16 - 16
            return
        gateway.advance(gateway._core.now_ns / 1e9)  # a packet ends a few of the expired sessions, this the rest
        assert log.wait(60) and gateway.counters()["journal_lost"] == 0
        kinds = sink.records["kind"].tolist()
        assert (kinds.count(WINDOW), kinds.count(END)) == (300, 300)
        assert sink.records["number"].tolist() == list(range(len(kinds)))


class StalledSink(BaseSink):
    delivery_type = "stalled"
    batch_seconds = 0.0

    def __init__(self) -> None:
        self.release = threading.Event()

    def deliver(self, batch: Batch) -> None:
        self.release.wait(60)


def failing(batch: Batch, attempt: int) -> None:
    raise DeliveryError("Unauthorized", "no", "unavailable")


@pytest.mark.parametrize("manner", ["on", "stalled", "failing"])
def test_R4_output_frames_are_the_same_with_the_log_on_stalled_or_failing(tmp_path, manner):
    frames = []
    for logging in (False, True):
        with Gateway(seed=11, records=64) as gateway:
            gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
            sinks = {"on": ParquetSink(tmp_path), "stalled": StalledSink(), "failing": ScriptedSink(failing)}
            log = gateway.start_session_log(sinks[manner]) if logging else None
            traffic = Traffic(gateway)
            for step in range(1000):
                traffic.exchange(step % 300, now=step * 1.0)
            frames.append(traffic.frames)
            if log is not None:
                if manner == "stalled":
                    sinks[manner].release.set()
                gateway.stop_session_log(log, timeout=5.0 if manner == "on" else 0.1)
                assert_adds_up(log.counters())
    assert frames[0] == frames[1]


def test_take_records_and_logs_take_turns(gateway):
    packet = frame(0x0A000005, 4000, REMOTE, 53)
    gateway.translate_one(packet, Side.INSIDE, 0.0)
    gateway.advance(1000.0)
    assert len(gateway.take_records()) == 1
    sink = MemorySink()
    log = gateway.start_session_log(sink)
    gateway.translate_one(packet, Side.INSIDE, 1001.0)
    gateway.stop_session_log(log, timeout=60)
    gateway.advance(3000.0)
    left = gateway.take_records(events=True)
    numbers = [*sink.records["number"].tolist(), *left["number"].tolist()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert np.all(left["kind"] == 2)


def test_close_delivers_what_is_open(tmp_path):
    with Gateway(seed=3) as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
        gateway.start_session_log(ParquetSink(tmp_path))
        gateway.translate_one(frame(0x0A000005, 4000, REMOTE, 53), Side.INSIDE, 0.0)
    assert sums_of(tmp_path) == {(17, 0x0A000005, 4000): [28, 1, 0, 0]}


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_rows_at_a_log_service_add_up_to_the_packets_through_its_failures(gateway, tmp_path, monkeypatch):
    pytest.importorskip("aliyun.log", reason="the extra natcore[sls] is not installed")
    from natcore.sinks import SlsSink
    from natcore.testing import SlsServer

    monkeypatch.setattr("aliyun.log.logclient.time.sleep", lambda seconds: None)  # between the SDK's own ten tries
    with SlsServer() as server:
        sink = SlsSink(server.endpoint, "audit", "sessions", access_key_id="id", access_key_secret="secret")
        policy = DeliveryPolicy(backoff_min=0.01, backoff_max=0.05, unavailable=0.1, linger=0.01, batch=100)
        log = gateway.start_session_log(sink, name="audit", spool=tmp_path, delivery=policy)
        traffic = Traffic(gateway)
        server.fail("PostBodyTooLarge", 2)
        faults = ("lost-answer", "WriteQuotaExceed", "Unauthorized", "drop", "ServerBusy")
        for step in range(1200):
            if step % 100 == 0:
                server.fail(faults[step // 100 % len(faults)], 2)
            traffic.exchange(step % 200, now=step * 3.0)
        gateway.advance(100_000.0)
        assert log.wait(60)
        server.recover()
        assert gateway.stop_session_log(log, timeout=60) == 0
        sums: dict[tuple[int, int, int], list[int]] = {}
        for row in server.rows("audit", "sessions"):
            flow = (int(row["protocol"]), _number(row["pri_ip"]), int(row["pri_port"]))
            counts = sums.setdefault(flow, [0, 0, 0, 0])
            for place, name in enumerate(("bytes_from_vpc", "pkts_from_vpc", "bytes_from_pub", "pkts_from_pub")):
                counts[place] += int(row[name])
        assert sums == traffic.sent
        assert (log.counters()["lost"], log.counters()["spooled"]) == (0, 0)
