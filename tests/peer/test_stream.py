"""A standby that was told what changed is what the active gateway is, at every moment when it was told everything."""

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
from natcore.testing import craft, traffic
from natcore.testing.bulk import SYN
from natcore.testing.configurations import configuration
from oracle.comparison import Pair

POOL, OTHER = "203.0.113.1", "203.0.113.2"
SAME = ("session", "protocol", "inside_ip", "inside_port", "remote_ip", "remote_port", "outside_ip", "outside_port",
        "opened_outside", "last_seen_ns", "deadline_ns")  # fmt: skip


LIMITED = {Verdict.DROP_RATE_LIMIT, Verdict.DROP_SUBSCRIBER_LIMIT, Verdict.DROP_SESSION_LIMIT}  # rates begin anew


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


def unidentified(pair: Pair, outcome: tuple[Verdict, bytes | None]) -> tuple[Verdict, bytes | None]:
    """An outcome without the IPv4 identification, which counts on from where the snapshot had it, and the checksum over it."""
    verdict, frame = outcome
    if frame is None:
        return outcome
    at = 0 if pair.gateway.framing == "ip" else 14
    while at and frame[at - 2 : at] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return verdict, frame[: at + 4] + frame[at + 6 : at + 10] + frame[at + 12 :]


def stepped(pair: Pair, random: Random, feed: Feed, standby: Standby) -> Feed:
    """The feed after another step of the life; a new one, without a snapshot, where the life saved and restored its gateway."""
    before = pair.gateway
    pair.step(random)
    if pair.gateway is before:
        return feed
    feed.close()
    standby.begin()
    return Feed(pair.gateway)


@pytest.mark.parametrize("seed", range(16))
def test_a_promoted_standby_is_the_active_gateway(seed: int) -> None:
    """Random lives under random configurations, told in pieces of random size; entries that change begin a snapshot."""
    pair, random = Pair(configuration(Random(seed)), seed), Random(seed)
    feed, standby = Feed(pair.gateway), Standby(Gateway)
    try:
        tell(standby, feed.snapshot())
        for _ in range(random.randrange(60, 250)):
            feed = stepped(pair, random, feed, standby)
            if feed.is_outdated:
                tell(standby, feed.snapshot())
            elif random.random() < 0.2:
                tell(standby, feed.changes())
            elif random.random() < 0.1:
                tell(standby, feed.refreshes())
        pair.advance(pair.model.now / 1e9)  # what is due has ended
        if feed.is_outdated:
            tell(standby, feed.snapshot())
        tell(standby, feed.changes())
        tell(standby, feed.refreshes())
        assert feed.waiting == 0
        promoted = taken_over(standby)
        same(pair.gateway, promoted)
        now, both = pair.model.now / 1e9, (pair.gateway, promoted)
        copies = [saved(each) for each in both]
        for data, side in (traffic.frame(random, pair.model) for _ in range(60)):
            opened = [each.counters()["created"] for each in both]
            expected, got = (each.translate_one(data, side, now) for each in both)
            if [each.counters()["created"] for each in both] != opened:
                both = restored(copies[0]), restored(copies[1])  # a new connection: its port is drawn
            elif (
                expected[0] not in LIMITED
                and got[0] not in LIMITED
                and (expected[0].is_forwarded or got[0].is_forwarded)
            ):
                assert unidentified(pair, got) == unidentified(pair, expected), data.hex()
        holds(promoted)
        promoted.advance(now + 1_000_000)
        holds(promoted)
        assert promoted.counters()["sessions"] == promoted.counters()["ports_used"] == 0
    except Exception as error:
        error.add_note(f"{pair.configuration}")
        raise


def both_ways(row: np.void) -> list[tuple[bytes, Side]]:
    """A datagram of a session from inside, and one that answers it."""
    inside, outside, remote = (
        (int(row[f"{which}_ip"]), int(row[f"{which}_port"])) for which in ("inside", "outside", "remote")
    )
    return [(craft.udp(inside, remote), Side.INSIDE), (craft.udp(remote, outside), Side.OUTSIDE)]


@pytest.mark.parametrize("seed", range(12))
def test_what_was_acknowledged_goes_on_after_a_fail_over_at_any_point(seed: int) -> None:
    """Random lives that fail over again and again: the standby was told up to some moment, and what came then is lost. UDP
    sessions from before it that live on by what it was told have the same bytes and verdicts in both directions."""
    pair, random = Pair(configuration(Random(seed)), seed), Random(seed)
    feed, standby, known, compared = Feed(pair.gateway), Standby(Gateway), dict[int, tuple[int, ...]](), 0
    tell(standby, feed.snapshot())
    for _ in range(random.randrange(300, 500)):
        feed = stepped(pair, random, feed, standby)
        if feed.is_outdated:
            tell(standby, feed.snapshot())
            known = {}
        elif random.random() < 0.2:
            tell(standby, feed.changes())
            tell(standby, feed.refreshes())
            known = {row[0]: row for row in sessions_of(restored(saved(pair.gateway)))}  # to look ends what is due
        elif random.random() < 0.05 and known:
            promoted, now = taken_over(standby), pair.model.now / 1e9
            copy = restored(saved(pair.gateway))
            for row in copy.sessions():
                told = known.get(int(row["session"]), ())
                same_keys = told[1:8] == tuple(int(row[name]) for name in SAME[1:8])
                if row["protocol"] != 17 or not same_keys or told[-1] <= now * 1e9:
                    continue
                for packet, side in both_ways(row):
                    frame = packet if copy.framing == "ip" else craft.ether(packet)
                    opened = copy.counters()["created"]
                    expected, got = (each.translate_one(frame, side, now) for each in (copy, promoted))
                    if expected[0].is_forwarded and copy.counters()["created"] == opened:  # it was alive
                        assert unidentified(pair, got) == unidentified(pair, expected)
                        compared += 1
            holds(promoted)
            feed.close()
            feed, standby, known = Feed(pair.gateway), Standby(Gateway), {}
            tell(standby, feed.snapshot())
    assert compared


@pytest.mark.parametrize("seed", range(6))
def test_a_standby_may_take_over_in_the_middle_of_anything(seed: int) -> None:
    """Given some messages only: its tables are sound, and no outside port has two owners."""
    pair, random = Pair(configuration(Random(seed)), seed), Random(seed)
    feed, standby = Feed(pair.gateway), Standby(Gateway)
    tell(standby, feed.snapshot())
    for _ in range(150):
        before = pair.gateway
        pair.step(random)
        if pair.gateway is not before or feed.is_outdated:
            break
        if random.random() < 0.3:
            told = list(feed.changes())[:-1]  # bodies share a buffer: the last rows stand in it alone
            tell(standby, told[-1:] if len(told) == 1 else [])
            if len(told) != 1:
                break
    promoted = taken_over(standby, elapsed=random.random(), grace=4.0)
    owners: dict[tuple[int, int, int], int] = {}
    for row in promoted.mappings():
        endpoint = int(row["protocol"]), int(row["outside_ip"]), int(row["outside_port"])
        if promoted.policy.ports != "overload" and row["outside_port"] and row["outside_ip"] != row["inside_ip"]:
            assert owners.setdefault(endpoint, int(row["inside_ip"])) == int(row["inside_ip"])


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
