"""The stream to a standby, row by row. That a fail-over is right at any point of random lives, tests/oracle compares."""

from __future__ import annotations

from io import BytesIO
from random import Random

import numpy as np
import pytest

from natcore import (
    DnatEntry,
    Error,
    Gateway,
    NoNatEntry,
    PeerError,
    Policy,
    Side,
    SnatEntry,
    Timeouts,
    Verdict,
)
from natcore.dtypes import ASSIGNED_BEFORE, BLOCK_ALLOCATED, BLOCK_RELEASED
from natcore.peer.feed import Feed
from natcore.peer.messages import Kind, Message, parse_head
from natcore.peer.standby import Standby
from natcore.sinks import MemorySink
from natcore.testhooks.planted_faults import broken
from natcore.testing import craft
from natcore.testing.bulk import SYN

POOL, OTHER = "203.0.113.1", "203.0.113.2"
SAME = ("session", "protocol", "inside_ip", "inside_port", "remote_ip", "remote_port", "outside_ip", "outside_port",
        "opened_outside", "last_seen_ns", "deadline_ns")  # fmt: skip


def saved(gateway: Gateway) -> bytes:
    file = BytesIO()
    gateway.save(file)
    return file.getvalue()


def restored(data: bytes) -> Gateway:
    return Gateway.restore(BytesIO(data))


def holds(gateway: Gateway) -> None:
    assert broken(gateway._core.worker_capsule()) is None


def tell(standby: Standby, messages: object) -> int:
    """Give the standby copies of messages; how many bytes their bodies and headers have."""
    total = 0
    for message in messages:  # type: ignore[attr-defined]
        body = bytes(message.body)
        kind, worker, number, size = parse_head(message.head())
        assert size == len(body)
        standby.receive(Message(kind, worker, number, body))
        total += size + len(message.head())
    return total


def sessions_of(gateway: Gateway) -> list[tuple[int, ...]]:
    return sorted(tuple(int(row[name]) for name in SAME) for row in gateway.sessions())


def mappings_of(gateway: Gateway) -> list[tuple[int, ...]]:
    names = ("protocol", "inside_ip", "inside_port", "outside_ip", "outside_port", "sessions", "entry")
    return sorted(tuple(int(row[name]) for name in names) for row in gateway.mappings())


def ports_of(gateway: Gateway) -> list[tuple[int, ...]]:
    return sorted(
        tuple(int(row[name]) for name in ("protocol", "outside_ip", "used", "reserved")) for row in gateway.ports()
    )


def out(gateway: Gateway, host: int, port: int, now: float, to: str = "198.51.100.7") -> Verdict:
    return gateway.translate_one(craft.ether(craft.udp((f"10.0.0.{host}", port), (to, 53))), Side.INSIDE, now)[0]


def followed(gateway: Gateway, **changes: object) -> tuple[Feed, Standby]:
    feed, standby = Feed(gateway), Standby(Gateway, **changes)
    tell(standby, feed.snapshot())
    return feed, standby


def taken_over(standby: Standby, elapsed: float = 0.0, grace: float = 0.0) -> Gateway:
    gateway = standby.promote(elapsed=elapsed, grace=grace)
    holds(gateway)
    return gateway


def same(gateway: Gateway, promoted: Gateway) -> None:
    assert sessions_of(promoted) == sessions_of(gateway)
    assert mappings_of(promoted) == mappings_of(gateway)
    assert ports_of(promoted) == ports_of(gateway)


def talkative(**options: object) -> Gateway:
    gateway = Gateway(**{"seed": 7, "max_sessions": 1000, **options})  # type: ignore[arg-type]
    gateway.add(SnatEntry("10.0.0.0/24", [POOL, OTHER]))
    gateway.add(DnatEntry(POOL, 443, "10.0.0.200", 8443))
    gateway.add(NoNatEntry("10.0.0.0/24", "192.0.2.0/24"))
    for at in range(40):
        out(gateway, 1 + at % 3, 5000 + at // 3, at / 10)
    syn = craft.ether(craft.tcp(("198.51.100.9", 1234), (POOL, 443), SYN))
    assert gateway.translate_one(syn, Side.OUTSIDE, 5.0)[0] is Verdict.INBOUND
    out(gateway, 9, 53, 5.0, to="192.0.2.53")
    return gateway


@pytest.mark.parametrize(("workers", "then"), [(1, 3), (4, 1), (2, 2)])
def test_the_standby_may_have_another_number_of_workers(workers: int, then: int) -> None:
    gateway = talkative(workers=workers)
    feed, standby = followed(gateway, workers=then)
    for host in range(1, 60):
        out(gateway, host, 7000, 6.0)
    tell(standby, feed.changes())
    tell(standby, feed.refreshes())
    promoted = taken_over(standby)
    assert promoted.workers == then
    same(gateway, promoted)
    out(promoted, 77, 1, 6.0)
    assert int(max(promoted.sessions()["session"])) > int(max(gateway.sessions()["session"]))


def test_a_change_of_a_slot_is_told_once_and_as_it_is_now() -> None:
    gateway = talkative()
    feed, standby = followed(gateway)
    for turn in range(5):
        out(gateway, 5, 9000, 10.0 + turn)
        gateway.end(subscriber="10.0.0.5", now=10.0 + turn)
    out(gateway, 5, 9000, 20.0)
    messages = list(feed.changes())
    assert [message.rows for message in messages] == [1, 0]  # and the time
    tell(standby, messages)
    same(gateway, taken_over(standby))


def test_an_event_is_at_most_64_bytes() -> None:
    """A session is 72, its end 4, a refresh 24; and a header for many."""
    gateway = Gateway(max_sessions=10_000, timeouts=Timeouts(udp=200))
    gateway.add(SnatEntry("10.0.0.0/24", POOL))
    feed, standby = followed(gateway)
    events = told = 0
    for turn in range(4):
        for port in range(2000):
            out(gateway, 1 + port % 200, 10_000 + port, turn * 150.0 + 1)
        gateway.advance(turn * 150.0 + 1)
        counters = gateway.counters()
        told += tell(standby, feed.changes()) + tell(standby, feed.refreshes())
        events = counters["created"] + counters["ended"] + 2000 * turn
    assert events >= 8000
    assert told / events < 64


@pytest.mark.parametrize("workers", [1, 2])
def test_no_number_is_given_twice_though_the_stream_ended_between_sessions_and_time(workers: int) -> None:
    gateway = talkative(workers=workers)
    feed, standby = followed(gateway)
    out(gateway, 5, 1, 6.0)
    gateway.end(subscriber="10.0.0.5", now=6.0)  # its number is known by the next one's alone
    out(gateway, 6, 1, 6.0)
    messages = iter(feed.changes())
    message = next(messages)
    assert message.kind == Kind.SESSIONS
    tell(standby, [message])
    promoted = taken_over(standby)
    assert promoted.counters()["created"] == gateway.counters()["created"]
    out(promoted, 7, 1, 6.0)
    numbers = promoted.sessions()["session"].tolist()
    assert len(set(numbers)) == len(numbers)
    assert max(numbers) == int(max(gateway.sessions()["session"])) + 1


def test_fragments_that_waited_in_a_gateway_that_died_count_as_dropped() -> None:
    gateway = talkative()
    later = craft.ipv4(17, "10.0.0.5", "198.51.100.7", bytes(64), fragment=8)
    assert gateway.translate_one(craft.ether(later), Side.INSIDE, 6.0)[0] is Verdict.HELD
    _, standby = followed(gateway)
    counters = taken_over(standby).counters()
    assert (counters["held"], counters["dropped_fragment"]) == (0, 1)
    assert counters["received"] == counters["forwarded"] + counters["local"] + counters["dropped"]


def test_a_full_table_makes_place_before_it_is_filled() -> None:
    gateway = Gateway(max_sessions=50, seed=1)
    gateway.add(SnatEntry("10.0.0.0/24", POOL))
    feed, standby = followed(gateway)
    random = Random(1)
    for turn in range(200):
        out(gateway, random.randrange(1, 90), 1000 + turn, turn * 11.0)
        if random.random() < 0.4:
            tell(standby, feed.changes())
    tell(standby, feed.changes())
    tell(standby, feed.refreshes())
    same(gateway, taken_over(standby))


def test_ports_are_held_down_by_the_standby_too() -> None:
    gateway = talkative()
    gateway.end(subscriber="10.0.0.1", now=6.0)  # before the standby knew of it
    feed, standby = followed(gateway)
    gateway.end(subscriber="10.0.0.2", now=7.0)
    tell(standby, feed.changes())
    held = {(int(r["protocol"]), int(r["outside_ip"])): int(r["held_down"]) for r in gateway.ports()}
    promoted = taken_over(standby)
    assert {(int(r["protocol"]), int(r["outside_ip"])): int(r["held_down"]) for r in promoted.ports()} == held
    assert sum(held.values()) > 20
    promoted.advance(7.0 + 121)
    assert not promoted.ports()["held_down"].any()


def test_deterministic_ports_and_blocks_need_no_stream() -> None:
    """Which address and ports an inside host has follows from the entries, on either gateway; a block stays its owner's."""
    policy = Policy(ports="deterministic", block_size=64)
    one, other = (Gateway(policy=policy, max_sessions=100) for _ in range(2))
    for gateway in (one, other):
        gateway.add(SnatEntry("10.0.0.0/24", POOL))
    for host in (1, 77, 200):
        out(one, host, 5000, 1.0)
        out(other, host, 5000, 1.0)
        assert one.ports_of(f"10.0.0.{host}") == other.ports_of(f"10.0.0.{host}")
    shares = {int(row["inside_ip"]): int(row["outside_port"]) for row in other.mappings()}
    for inside, port in shares.items():
        share = one.ports_of(inside)
        assert share is not None
        assert share.first_port <= port <= share.last_port
        assert one.who(POOL, port, "udp") == other.who(POOL, port, "udp")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_promoted_gateways_log_has_the_blocks_from_then_on(workers: int) -> None:
    """Since when a block was its owner's without a break, the standby was not told."""
    policy = Policy(ports="block", block_size=64)
    gateway = Gateway(policy=policy, max_sessions=100, workers=workers, timeouts=Timeouts(udp=120))
    gateway.add(SnatEntry("10.0.0.0/24", POOL))
    out(gateway, 1, 5000, 1.0)
    feed, standby = followed(gateway)
    out(gateway, 2, 5000, 5.0)
    gateway.end(subscriber="10.0.0.1", now=6.0)  # its block's port is held down
    out(gateway, 3, 5000, 7.0)
    tell(standby, feed.changes())
    promoted = taken_over(standby, elapsed=2.0)
    assert restored(saved(promoted)).blocks().tolist() == promoted.blocks().tolist()
    begin = promoted._core.log_rows.label(round(promoted.now * 1e9))
    sink = MemorySink()
    promoted.start_session_log(sink, rows="blocks")
    promoted.advance(7000.0)
    promoted.close()
    rows = sink.records
    listed = rows[rows["kind"] == BLOCK_ALLOCATED]
    names = ["pri_ip", "nat_ip", "nat_port", "pub_port"]
    assert sorted(listed[names].tolist()) == sorted(
        gateway.blocks()[["inside_ip", "outside_ip", "first_port", "last_port"]].tolist()
    )
    assert len(listed) == 3 and (listed["flags"] == ASSIGNED_BEFORE).all() and (listed["start_time"] == begin).all()
    released = rows[rows["kind"] == BLOCK_RELEASED]
    assert sorted(released["session"]) == sorted(listed["session"]) and (released["start_time"] == begin).all()


def test_established_tcp_goes_on_and_is_closed_by_its_segments() -> None:
    gateway = talkative()
    feed, standby = followed(gateway)

    def segment(to: Gateway, side: Side, flags: int, sequence: int, ack: int) -> Verdict:
        inside, remote = ("10.0.0.9", 999), ("198.51.100.80", 80)
        if side is Side.INSIDE:
            frame = craft.tcp(inside, remote, flags, sequence=sequence, acknowledgement=ack)
        else:
            [row] = [row for row in to.sessions() if row["remote_port"] == 80]
            outside = int(row["outside_ip"]), int(row["outside_port"])
            frame = craft.tcp(remote, outside, flags, sequence=sequence, acknowledgement=ack)
        return to.translate_one(craft.ether(frame), side, 6.0)[0]

    ack, rst = 0x10, 0x04
    segment(gateway, Side.INSIDE, SYN, 100, 0)
    segment(gateway, Side.OUTSIDE, SYN | ack, 900, 101)
    segment(gateway, Side.INSIDE, ack, 101, 901)
    tell(standby, feed.changes())
    promoted = taken_over(standby)
    [row] = [row for row in promoted.sessions() if row["remote_port"] == 80]
    assert int(row["deadline_ns"] - row["last_seen_ns"]) == 7440 * 10**9  # established
    assert segment(promoted, Side.OUTSIDE, rst, 901, 101) is Verdict.INBOUND
    [row] = [row for row in promoted.sessions() if row["remote_port"] == 80]
    assert int(row["deadline_ns"] - row["last_seen_ns"]) == 240 * 10**9  # its marks were known


def test_a_refresh_that_was_not_told_costs_no_session() -> None:
    gateway = Gateway(max_sessions=10, timeouts=Timeouts(udp=120))
    gateway.add(SnatEntry("10.0.0.0/24", POOL))
    out(gateway, 1, 5000, 0.0)
    feed, standby = followed(gateway)
    out(gateway, 1, 5000, 3.9)
    tell(standby, feed.changes())  # the refresh would come at 4 s
    promoted = taken_over(standby, elapsed=119.0, grace=4.0)
    assert promoted.now == pytest.approx(122.9)
    assert len(promoted.sessions()) == 1
    promoted.advance(124.0)
    assert len(promoted.sessions()) == 0


def test_rows_of_no_gateway_are_refused_and_a_gap_is_noticed() -> None:
    gateway = talkative()
    feed, standby = followed(gateway)
    out(gateway, 1, 9999, 6.0)
    [message] = [message for message in feed.changes() if message.rows]
    good = bytes(message.body)
    random, refused = Random(3), 0
    for _ in range(3000):
        bad = np.frombuffer(good, np.uint8).copy()
        bad[random.randrange(len(bad))] ^= 1 << random.randrange(8)
        try:
            standby.receive(Message(Kind.SESSIONS, random.choice([0, 0, 0, 1, 200]), standby.applied, bad.tobytes()))
        except PeerError:
            refused += 1
            feed.close()
            feed = Feed(gateway)
            standby.begin()
            tell(standby, feed.snapshot())
    assert refused > 100
    with pytest.raises(PeerError, match="gap"):
        standby.receive(Message(Kind.ENDS, 0, standby.applied + 1, b"\0\0\0\0"))
    with pytest.raises(PeerError, match="begin with a snapshot"):
        standby.receive(Message(Kind.ENDS, 0, standby.applied, b"\0\0\0\0"))
    holds(standby.promote(elapsed=0, grace=0))


ROW = np.dtype(
    [
        ("slot", "<u4"), ("id_low", "<u4"), ("id_high", "<u2"), ("flags", "u1"), ("state", "u1"), ("timeout_class", "u1"),
        ("protocol", "u1"), ("mapping_flags", "u1"), ("unused", "u1"), ("inside_ip", ">u4"), ("remote_ip", ">u4"),
        ("outside_ip", ">u4"), ("inside_port", ">u2"), ("remote_port", ">u2"), ("outside_port", ">u2"), ("birth_high", "<u2"),
        ("birth_low", "<u4"), ("last_seen", "<u4"), ("entry", "<u4"), ("ack", "<u4", 2), ("end", "<u4", 2),
        ("mapping_ip", ">u4"), ("mapping_port", ">u2"), ("unused_too", "<u2"),
    ]
)  # fmt: skip
FIXED = {"mapping_flags": 1, "mapping_ip": 0xCB007101, "outside_ip": 0xCB007101}  # a mapping of an entry


@pytest.mark.parametrize(
    ("forged", "why"),
    [({**FIXED, "outside_port": 1030, "mapping_port": 1030}, "another kind"),
     ({**FIXED, "outside_port": 1030, "mapping_port": 1030, "entry": 2}, "none of an entry"),
     ({**FIXED, "outside_port": 443, "mapping_port": 443, "mapping_flags": 5}, "another kind"), ({"entry": 2}, "another kind"),
     ({"entry": 3}, "another kind"), ({"id_high": 0xFFFF, "id_low": 2**32 - 1}, "no number"),
     ({"birth_high": 1 << 15}, "no time")],
)  # fmt: skip
def test_a_session_that_no_gateway_has_is_refused(forged: dict[str, int], why: str) -> None:
    """Of a fixed mapping at a port that is allocated, another host would get the port too."""
    gateway = talkative()
    feed, standby = followed(gateway)
    before = sessions_of(gateway)
    out(gateway, 77, 9999, 6.0)
    [message] = [message for message in feed.changes() if message.rows]
    row = np.frombuffer(message.body, ROW).copy()
    for name, value in forged.items():
        row[name] = value
    with pytest.raises(PeerError, match=why):
        standby.receive(Message(Kind.SESSIONS, 0, standby.applied, row.tobytes()))
    assert sessions_of(taken_over(standby)) == before


def test_a_port_is_not_held_down_for_longer_than_any_gateway_does() -> None:
    _, standby = followed(talkative())
    port = bytes((203, 0, 113, 2, 10, 0, 0, 1))
    longest = (10**9).to_bytes(4, "little") + bytes((7, 8, 1, 0))  # ms, a million seconds
    standby.receive(Message(Kind.HELD_DOWN, 0, standby.applied, port + longest))
    assert standby.image is not None
    assert int(standby.image.ports()["held_down"].sum()) == 1
    with pytest.raises(PeerError, match="longer than any"):
        standby.receive(Message(Kind.HELD_DOWN, 0, standby.applied, port + b"\xff\xff\xff\x7f" + longest[4:]))


@pytest.mark.parametrize("elapsed", [30 * 86_400.0, 50 * 86_400.0])
def test_sessions_do_not_live_again_in_a_standby_that_takes_over_after_weeks(elapsed: float) -> None:
    """Times are kept modulo 2^32 ms, 49 days."""
    gateway = talkative()
    _, standby = followed(gateway)
    promoted = taken_over(standby, elapsed=elapsed, grace=3.0)
    promoted.advance(promoted.now)
    assert not len(promoted.sessions())
    assert out(promoted, 1, 5000, promoted.now) is Verdict.OUTBOUND


def test_a_snapshot_that_is_damaged_leaves_no_other_one_half_done() -> None:
    gateway = talkative()
    feed, standby = followed(gateway)
    first, *rest = [Message(m.kind, m.worker, m.number, bytes(m.body)) for m in feed.snapshot()]
    standby.begin()
    standby.receive(first._replace(number=0))
    with pytest.raises(PeerError, match="cut off"):
        standby.receive(Message(Kind.BASE, 0, 0, bytes(first.body)[:-64]))
    with pytest.raises(PeerError, match="does not begin with a snapshot"):
        standby.receive(rest[0]._replace(number=0))
    same(gateway, taken_over(standby))


def test_the_last_complete_image_stays_while_a_snapshot_comes() -> None:
    gateway = talkative()
    feed, standby = followed(gateway)
    before = sessions_of(gateway)
    gateway.add(SnatEntry("10.1.0.0/24", "203.0.113.9"))
    assert feed.is_outdated
    messages = iter(feed.snapshot())
    tell(standby, [next(messages)])
    assert standby.is_complete
    assert sessions_of(taken_over(standby)) == before


def test_a_gateway_feeds_one_standby_at_a_time() -> None:
    gateway = talkative()
    with Feed(gateway), pytest.raises(Error, match="one standby"):
        Feed(gateway)
    Feed(gateway).close()
    with pytest.raises(Error, match="no complete image"):
        Standby(Gateway).promote(elapsed=0, grace=0)
