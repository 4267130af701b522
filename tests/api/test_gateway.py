"""The Gateway's own interface: arguments, arrays, its end, events, records, repeatability, the worker's lock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from ipaddress import IPv4Address
from typing import Any

import numpy as np
import pytest

from natcore import RECORD, ConfigurationError, Error, Gateway, Link, Side, Verdict
from natcore.sinks import MemorySink
from natcore.testhooks import planted_faults
from natcore.testing import bulk
from support.arrays import arrays
from support.frames import EIP, HOST, REMOTE, Talk, echo, gateway, one_port, tcp, udp
from support.interleaving import until_waited_for
from support.multi_worker import counted

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE

BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"instance": 5}, "instance must .*str.*, got 5"),
    ({"vpc_id": "x" * 1025}, "vpc_id must .*1,024.*, got "),
    ({"region": None}, "region must .*, got None"),
    ({"kind": "nat"}, "kind must .*'internet' or 'vpc'.*, got 'nat'"),
    ({"eip_bind_mode": "nat"}, "eip_bind_mode must .*'NAT' or 'MULTI_BINDED'.*, got 'nat'"),
    ({"billing": "free"}, "billing must .*'by-usage'.*, got 'free'"),
    ({"framing": "ppp"}, "framing must .*'ethernet' or 'ip'.*, got 'ppp'"),
    ({"decrement_ttl": 2}, "decrement_ttl must .*, got 2"),
    ({"max_sessions": 0}, "max_sessions must .*1 and 1073741824.*, got 0"),
    ({"max_sessions": 1.0}, r"max_sessions must .*whole number.*, got 1\.0"),
    ({"max_mappings": 0}, "max_mappings must .*, got 0"),
    ({"max_subscribers": -1}, "max_subscribers must .*, got -1"),
    ({"workers": 0}, "workers must .*, got 0"),
    ({"window": 0.5}, r"window must .*1 and 14400 seconds.*, got 0\.5"),
    ({"records": 3}, "records must .*4 and.*, got 3"),
    ({"epoch": 1e10}, r"epoch must .*-4\.6e\+09 and 4\.6e\+09 seconds.*, got 1\d+\.0"),
    ({"epoch": float("nan")}, "epoch must .*, got nan"),
    ({"seed": "x"}, "seed must .*, got 'x'"),
    ({"inside": "10.0.0.1"}, r"inside must .*a Link.*, got '10\.0\.0\.1'"),
    ({"timeouts": {"udp": 300}}, "timeouts must .*a Timeouts.*, got "),
    ({"policy": "random"}, "policy must .*a Policy.*, got 'random'"),
]


@pytest.mark.parametrize(
    "settings, message", BAD_SETTINGS, ids=[f"{next(iter(s))}-{i}" for i, (s, _) in enumerate(BAD_SETTINGS)]
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Gateway(**{"max_sessions": 10, **settings})


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer needs the whole address space")
def test_a_gateway_that_does_not_fit_says_so_and_gives_back_what_it_took() -> None:
    """In a process with 2 GiB of address space: every size fails somewhere else on the way."""
    script = """
import resource
from natcore import CapacityError, Gateway
Gateway(max_sessions=1000).close()
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
def mapped():
    return int(open("/proc/self/statm").read().split()[0])
before, failed = mapped(), 0
for turn in range(60):
    try:
        Gateway(max_sessions=1 << (22 + turn % 9), records=1 << (4 + turn % 20))
    except CapacityError as error:
        assert "max_sessions=" in str(error), error
        failed += 1
assert failed > 20, failed
assert mapped() - before < 20_000, mapped() - before  # pages; one that leaked would be 16,384 or more
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- arrays


def test_a_batch_is_translated_in_place_and_in_order() -> None:
    batch, alone = gateway(), gateway()
    sent = [udp(sport=n % 7 + 1, load=bytes(n)) for n in range(60)]
    frames, lengths = arrays(*sent)
    verdicts = batch.translate(frames, lengths, INSIDE, 1.5)
    assert verdicts.dtype == np.uint8 and set(verdicts) == {Verdict.OUTBOUND}
    for row, length, frame in zip(frames, lengths, sent, strict=True):
        assert row[:length].tobytes() == alone.translate_one(frame, INSIDE, 1.5)[1]
    assert counted(batch) == counted(alone)


def test_sides_and_times_may_differ_by_frame() -> None:
    made = Talk(gateway())
    made.out()
    back = udp(REMOTE, 443, *made.outside)
    frames, lengths = arrays(udp(dport=443), back, back, udp(dport=443))
    sides = np.array([0, 1, 1, 0], np.uint8)
    sides.flags.writeable = False
    verdicts = made.gateway.translate(frames, lengths, sides, now=np.array([1.0, 2.0, 2.0, 400.0]))
    assert verdicts.tolist() == [Verdict.OUTBOUND, Verdict.INBOUND, Verdict.INBOUND, Verdict.OUTBOUND]
    assert made.session()["session"] == 2 and made.session()["birth_ns"] == 400_000_000_000


def test_verdicts_go_where_they_are_asked_to() -> None:
    frames, lengths = arrays(udp(), b"x")
    out = np.full(2, 77, np.uint8)
    assert gateway().translate(frames, lengths, INSIDE, 0.0, out=out, worker=0) is out
    assert out.tolist() == [Verdict.OUTBOUND, Verdict.DROP_MALFORMED]


def test_no_frames_are_no_trouble() -> None:
    frames, lengths = arrays()
    over = gateway()
    assert over.translate(frames, lengths, INSIDE, 1.0).shape == (0,)
    assert over.translate(frames, lengths, np.zeros(0, np.uint8), np.zeros(0)).shape == (0,)


def test_more_frames_than_a_chunk() -> None:
    frames, lengths = arrays(*[udp(sport=1 + n % 50) for n in range(1000)])
    over = gateway()
    assert (over.translate(frames, lengths, INSIDE, np.linspace(0, 1, 1000)) == Verdict.OUTBOUND).all()
    assert over.sessions()["packets_out"].tolist() == [20] * 50


ONE = arrays(udp())
READ_ONLY = arrays(udp())
READ_ONLY[0].flags.writeable = False
OVERLAPPING, LENGTHS, SIDES = np.zeros(8192, np.uint8), np.zeros(32, np.uint32), np.zeros(32, np.uint8)
ROWS = OVERLAPPING[:4096].reshape(32, 128)
BAD_BATCHES: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (("x", ONE[1], 0, 0.0), {}, "frames must .*uint8 array of 2 dimensions.*, got str"),
    ((ONE[0][0], ONE[1], 0, 0.0), {}, r"frames must .*2 dimensions.*, got uint8\(128,\)"),
    ((ONE[0].astype(np.int8), ONE[1], 0, 0.0), {}, "frames must .*, got int8"),
    ((ONE[0][:, ::2], ONE[1], 0, 0.0), {}, r"frames must be .*C-contiguous.*, got strides \(128, 2\)"),
    ((ONE[0][:, ::-1], ONE[1], 0, 0.0), {}, r"frames must .*, got strides \(128, -1\)"),
    ((READ_ONLY[0], ONE[1], 0, 0.0), {}, "frames must .*writable.*, got a read-only one"),
    ((ROWS, OVERLAPPING[4000:4128].view(np.uint32), 0, 0.0), {}, "lengths must not share memory with frames"),
    ((ROWS, LENGTHS, 0, 0.0), {"out": OVERLAPPING[4090:4122]}, "out must not share memory with frames"),
    ((ROWS, LENGTHS, 0, 0.0), {"out": LENGTHS.view(np.uint8)[:32]}, "out must not share memory with lengths"),
    ((ROWS, LENGTHS, OVERLAPPING[:32], 0.0), {}, "side must not share memory with frames"),
    ((ROWS, LENGTHS, SIDES, 0.0), {"out": SIDES}, "side must not share memory with out"),
    ((ONE[0], ONE[1].astype(np.int64), 0, 0.0), {}, "lengths must .*, got int64"),
    ((ONE[0], np.zeros(2, np.uint32), 0, 0.0), {}, "lengths must have 1 rows, as frames has, got 2"),
    ((ONE[0], np.array([129], np.uint32), 0, 0.0), {}, r"lengths\[0\] must be at most 128.*, got 129"),
    ((ONE[0], ONE[1], 2, 0.0), {}, "side must .*Side.INSIDE.*, got 2"),
    ((ONE[0], ONE[1], "inside", 0.0), {}, "side must .*, got 'inside'"),
    ((ONE[0], ONE[1], np.array([2], np.uint8), 0.0), {}, "side must .*, got 2"),
    ((ONE[0], ONE[1], np.zeros(3, np.uint8), 0.0), {}, "side must have 1 rows, .*got 3"),
    ((ONE[0], ONE[1], 0, -1.0), {}, r"now must .*, got -1\.0"),
    ((ONE[0], ONE[1], 0, np.array([np.nan])), {}, "now must be finite"),
    ((ONE[0], ONE[1], 0, np.array([5e9])), {}, r"now must .*4\.6e\+09"),
    ((ONE[0], ONE[1], 0, np.zeros(2)), {}, r"now must .*float64\(1,\).*, got float64\(2,\)"),
    ((ONE[0], ONE[1], 0, np.zeros(1, np.float32)), {}, "now must .*, got float32"),
    ((ONE[0], ONE[1], 0, 0.0), {"out": np.zeros(2, np.uint8)}, "out must have 1 rows, .*got 2"),
    ((ONE[0], ONE[1], 0, 0.0), {"out": [0]}, "out must .*, got list"),
    ((ONE[0], ONE[1], 0, 0.0), {"worker": 64}, "worker must .*, got 64"),
]


@pytest.mark.parametrize("arguments, keywords, message", BAD_BATCHES, ids=[str(n) for n in range(len(BAD_BATCHES))])
def test_bad_batches_are_refused_before_anything_happens(
    arguments: Any, keywords: dict[str, Any], message: str
) -> None:
    over = gateway()
    with pytest.raises(ConfigurationError, match=message):
        over.translate(*arguments, **keywords)
    assert over.counters()["received"] == 0
    assert over.translate_one(udp(), INSIDE, 0.0)[0] is Verdict.OUTBOUND  # and nothing holds the worker


@pytest.mark.parametrize("frame, side, now, message", [
    ("text", 0, 0.0, "frame must .*bytes.*, got 'text'"),
    (None, 0, 0.0, "frame must .*, got None"),
    (udp(), 3, 0.0, "side must .*, got 3"),
    (udp(), None, 0.0, "side must .*, got None"),
    (udp(), 0, "now", "now must .*, got 'now'"),
    (udp(), 0, float("inf"), "now must .*, got inf"),
])  # fmt: skip
def test_bad_frames_are_refused(frame: Any, side: Any, now: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        gateway().translate_one(frame, side, now)


def test_a_frame_given_is_never_written_to() -> None:
    for frame in (bytearray(udp()), memoryview(bytearray(udp()))):
        before = bytes(frame)
        verdict, sent = gateway().translate_one(frame, INSIDE, 0.0)  # type: ignore[arg-type]
        assert verdict is Verdict.OUTBOUND and bytes(frame) == before != sent
    for length in (0, 1):  # Python shares such small objects
        gateway().translate_one(bytes(length), INSIDE, 0.0)
        assert (b"", b"\0")[length] == bytes(length)


# ---- ending sessions


def populated() -> Gateway:
    over = gateway()
    for frame in (udp("10.0.0.5"), udp("10.0.0.6"), tcp("S", "10.0.0.6"), echo("10.0.0.7", "198.51.100.9")):
        over.translate_one(frame, INSIDE, 0.0)
    return over


@pytest.mark.parametrize("which, ended", [
    ({"subscriber": np.uint32(0x0A000006), "protocol": np.int64(6)}, 1),
    ({"protocol": 47}, 0),
    ({"subscriber": "10.0.0.6"}, 2),
    ({"subscriber": 0x0A000006, "protocol": "tcp"}, 1),
    ({"subscriber": "10.0.0.9"}, 0),
    ({"remote": REMOTE}, 3),
    ({"outside": IPv4Address(EIP)}, 4),
    ({"outside": HOST}, 0),
    ({"protocol": "icmp"}, 1),
    ({"protocol": 17}, 2),
])  # fmt: skip
def test_sessions_that_match_are_ended(which: dict[str, Any], ended: int) -> None:
    over = populated()
    over.take_records()
    assert over.end(**which, now=10.0) == ended
    assert len(over.sessions()) == 4 - ended
    rows = over.take_records()
    assert rows["end_time"].tolist() == [10_000_000] * ended


@pytest.mark.parametrize("which, message", [
    ({"subscriber": "x"}, "subscriber must .*, got 'x'"),
    ({"remote": 1 << 40}, "remote must .*, got "),
    ({"outside": 1.5}, r"outside must .*, got 1\.5"),
    ({"protocol": "sctp"}, "protocol must .*'icmp', 'tcp' or 'udp', or a number.*, got 'sctp'"),
    ({"protocol": []}, r"protocol must .*, got \[\]"),
    ({"protocol": 256}, "protocol must .*0 and 255.*, got 256"),
    ({}, "one criterion or more.*end_all"),
    ({"subscriber": None}, "subscriber must .*, got None"),
    ({"remote": REMOTE, "outside": None}, "outside must .*, got None"),
    ({"protocol": None}, "protocol must .*, got None"),
    ({"protocol": "udp", "now": -1}, "now must .*, got -1"),
])  # fmt: skip
def test_bad_matches_are_refused(which: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        populated().end(**which)


def test_only_end_all_ends_all() -> None:
    """A look-up that found nothing is None: passed on as a criterion it must not mean everything."""
    over = populated()
    for which in ({}, {"subscriber": None}, dict.fromkeys(("subscriber", "remote", "outside", "protocol"))):
        with pytest.raises(ConfigurationError):
            over.end(**which, now=10.0)  # type: ignore[arg-type]
    assert len(over.sessions()) == 4
    assert over.end_all(now=10.0) == 4 and len(over.sessions()) == 0


def test_what_died_before_is_not_ended_by_hand() -> None:
    over = populated()
    assert over.end_all(now=250.0) == 2  # TCP died at 240, the echo at 60
    ends = over.take_records(events=True)
    assert sorted(ends[ends["kind"] == 2]["end_time"] / 1e6) == [60, 240, 250, 250]


# ---- the end


def test_a_closed_gateway_refuses_to_work_and_still_shows_what_was() -> None:
    with gateway() as over:
        over.translate_one(udp(), INSIDE, 1.0)
    over.close()
    over.close()
    frames, lengths = arrays(udp())
    for call in (
        lambda: over.translate_one(udp(), INSIDE, 1.0),
        lambda: over.translate(frames, lengths, INSIDE, 1.0),
        lambda: over.advance(2.0),
        lambda: over.add(over.entries()[0].entry),
        lambda: over.remove(over.entries()[0]),
        over.end,
        lambda: over.modify(eip_bind_mode="NAT"),
        lambda: over.forward("lan0", "wan0"),
        lambda: over.start_session_log(None),
    ):
        with pytest.raises(Error, match="closed"):
            call()
    assert over.counters()["forwarded"] == 1 and len(over.sessions()) == 1
    assert over.take_records()["end_time"].tolist() == [1_000_000]  # the open window, as a partial row
    assert "closed" in repr(over)


def test_what_was_dead_at_the_end_ended_at_its_deadline() -> None:
    over = gateway()
    over.translate_one(echo(), INSIDE, 0.0)
    over.advance(59.0)
    over.translate_one(udp(), INSIDE, 60.0)
    over.close()
    rows = over.take_records(events=True)
    assert [(int(row["kind"]), int(row["session"]), row["end_time"] / 1e6) for row in rows][2:] == [
        (0, 1, 60.0), (2, 1, 60.0), (0, 2, 60.0),
    ]  # fmt: skip


@pytest.mark.parametrize("end", ["close", "stop", "advance", "long"])
def test_no_row_is_lost_while_a_log_runs_though_the_journal_is_small(end: str) -> None:
    """Ends and windows of 300 sessions, through a journal of 16 rows."""
    over, sink = gateway(records=16), MemorySink()
    log = over.start_session_log(sink)
    for sport in range(1, 301):
        over.translate_one(udp(sport=sport), INSIDE, 1.0)
        over._collector.step()  # type: ignore[union-attr]
    if end == "close":
        over.close()
    elif end == "stop":
        assert over.stop_session_log(log) == 0
    else:
        over.advance(500.0 if end == "advance" else 5_000_000.0)
        over.close()
    assert over.counters()["journal_lost"] == 0
    windows = sink.records[sink.records["kind"] == 0]
    assert sorted(windows["session"].tolist()) == list(range(1, 301))
    assert set(windows["end_time"]) == {1_000_000 if end in ("close", "stop") else 301_000_000}


def test_an_exception_closes_it_too() -> None:
    with pytest.raises(KeyError), gateway() as over:
        raise KeyError
    with pytest.raises(Error, match="closed"):
        over.advance(1.0)


# ---- looking


def test_a_flood_of_events_is_bounded_and_counted() -> None:
    over = gateway(policy=one_port())
    over.translate_one(udp(), INSIDE, 0.0)
    for host in range(3000):
        over.translate_one(udp(str(IPv4Address(0x0A010000 + host))), INSIDE, 0.0)
    events, lost = over.take_events(), over.counters()["events_lost"]
    assert sum(event.count for event in events) == 3000 and 0 < len(events) <= 1025 and lost == 0


def test_sessions_go_into_an_array_that_is_there() -> None:
    over = populated()
    out = np.zeros(3, over.sessions().dtype)
    assert over.sessions(out=out).base is out
    assert sorted(out["session"]) == [1, 2, 3] if over.workers == 1 else (out["session"] > 0).all()
    with pytest.raises(ConfigurationError, match="out must"):
        over.sessions(out=np.zeros(3))


def test_sessions_come_in_slices_past_gaps() -> None:
    """65,536 lines of the table at a time; all are free but the last."""
    over = gateway(pool=[EIP, "203.0.113.2"], max_sessions=80_000, records=16)
    frames, lengths = bulk.packets(bulk.UDP, 0x0A000000 + np.arange(1, 70_001), 5000, 0xC6336407, 53)
    assert (over.translate(frames, lengths, INSIDE, 0.0) == Verdict.OUTBOUND).all()
    assert sorted(over.sessions()["session"]) == list(range(1, 70_001))
    over.translate_one(udp(str(IPv4Address(0x0A000000 + 70_000))), INSIDE, 1.0)
    over.advance(300.0)
    assert over.sessions()["session"].tolist() == [70_000]


def test_records_are_numbered_without_gaps() -> None:
    over = populated()
    first = over.take_records(events=True)
    over.end_all(now=1.0)
    second = over.take_records(events=True)
    assert first.dtype == second.dtype == RECORD
    assert [*first["number"], *second["number"]] == list(range(12))
    assert len(over.take_records(events=True)) == 0


def test_window_rows_alone_unless_events_are_asked_for() -> None:
    over = populated()
    over.end_all()
    assert over.take_records()["kind"].tolist() == [0] * 4


@pytest.mark.parametrize("epoch", [float("nan"), 1e10, "now"])
def test_bad_epochs_are_refused(epoch: Any) -> None:
    with pytest.raises(ConfigurationError, match="epoch must"):
        gateway().set_epoch(epoch)


def test_all_of_a_host_belongs_to_one_worker() -> None:
    over = gateway()
    frames, lengths = arrays(udp(), udp(sport=4001))
    first, second = over.owner(frames, lengths, INSIDE).tolist()
    assert first == second < over.workers


# ---- repeatability


def history(seed: int | None) -> tuple[list[Any], bytes, dict[str, int]]:
    over = gateway(pool=[f"203.0.113.{n}" for n in range(1, 9)], seed=seed, inside=Link(mtu=1400))
    sent: list[Any] = []
    for turn in range(300):
        frame = udp(f"10.0.{turn % 17}.{turn % 5 + 1}", turn % 23 + 1, f"198.51.100.{turn % 11 + 1}")
        sent.append(over.translate_one(frame, INSIDE, float(turn)))
    return sent, over.take_records(events=True).tobytes(), over.counters()


def test_a_seed_repeats_everything_and_another_seed_draws_others() -> None:
    assert history(5) == history(5)
    assert history(5)[0] != history(6)[0]
    assert history(None)[0] != history(None)[0]


# ---- the worker's lock


def test_a_second_translate_at_the_same_time_is_an_error() -> None:
    over = gateway()
    over._core.claim()
    try:
        with pytest.raises(Error, match="already"):
            over.translate_one(udp(), INSIDE, 0.0)
        frames, lengths = arrays(udp())
        with pytest.raises(Error, match="already"):
            over.translate(frames, lengths, INSIDE, 0.0)
    finally:
        over._core.unclaim()
    assert over.translate_one(udp(), INSIDE, 0.0)[0] is Verdict.OUTBOUND


def test_a_control_call_asks_the_loop_to_let_go_and_waits() -> None:
    over, counted = gateway(), list[dict[str, int]]()
    capsule = over._core.worker_capsule()
    planted_faults.lock_worker(capsule)
    with pytest.raises(RuntimeError, match="locked already"):
        planted_faults.lock_worker(capsule)
    asking = threading.Thread(target=lambda: counted.append(over.counters()))
    asking.start()
    until_waited_for(capsule)  # the suite's own time limit ends it if that never comes
    assert not counted
    planted_faults.unlock_worker(capsule)
    asking.join()
    assert counted and planted_faults.waiting_for(capsule) == 0
    planted_faults.lock_worker(capsule)  # it is free again
    planted_faults.unlock_worker(capsule)
