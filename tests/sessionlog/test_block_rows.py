"""Rows of port blocks: one when a block is assigned, one when it is returned, and a list of all when a log starts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natcore import ConfigurationError, Eip, Gateway, Policy, Side, SnatEntry, Timeouts
from natcore.dtypes import (
    ASSIGNED_BEFORE,
    BLOCK_ALLOCATED,
    BLOCK_RELEASED,
    COVER,
    CREATE,
    GAP,
    format_ipv4,
    is_fact,
    is_of_block,
)
from natcore.sessionlog.facts import BLOCKS
from natcore.sinks import MemorySink, ParquetSink, SlsSink
from natcore.sinks.base import BaseSink, Batch
from natcore.testing import craft

REMOTE = ("198.51.100.7", 53)
EPOCH = 1_700_000_000
POLICY = Policy(ports="block", port_ranges=((1024, 2047),), block_size=64, blocks=4, hold_down=120.0)


class Kept(BaseSink):
    """Takes rows of every kind, and keeps them."""

    events = gaps = blocks = facts = True

    def __init__(self) -> None:
        self.records: list[Any] = []

    def deliver(self, batch: Batch) -> None:
        self.records.append(batch.records)

    @property
    def rows(self) -> Any:
        return np.concatenate(self.records)

    @property
    def of_blocks(self) -> Any:
        return self.rows[is_of_block(self.rows)]


def made(**arguments: Any) -> Gateway:
    values: dict[str, Any] = {
        "framing": "ip", "policy": POLICY, "seed": 3, "epoch": EPOCH, "max_sessions": 10_000, "timeouts": Timeouts(udp=300),
    }  # fmt: skip
    return Gateway(**(values | arguments))


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with made() as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", pool=[Eip("203.0.113.1", private_ip="172.16.10.13")]))
        yield gateway


def send(gateway: Gateway, host: str, port: int, now: float) -> None:
    verdict, _ = gateway.translate_one(craft.udp((host, port), REMOTE, b"x"), Side.INSIDE, now)
    assert verdict.is_forwarded, verdict


def fields(row: Any) -> tuple[Any, ...]:
    return (
        int(row["kind"]), format_ipv4(row["pri_ip"]), format_ipv4(row["nat_ip"]), format_ipv4(row["eip"]),
        int(row["pub_port"]) - int(row["nat_port"]) + 1, int(row["start_time"]), int(row["end_time"]), int(row["session"]),
    )  # fmt: skip


def micros(seconds: float) -> int:
    return round((EPOCH + seconds) * 1e6)


def test_a_block_has_a_row_when_it_is_assigned_and_one_when_it_is_returned(gateway: Gateway) -> None:
    sink = Kept()
    log = gateway.start_session_log(sink)
    send(gateway, "10.0.0.5", 5000, 10.0)
    send(gateway, "10.0.0.5", 5001, 11.0)  # of the same block
    gateway.advance(400.0)  # both sessions ended; their ports are held down
    gateway.advance(600.0)
    log.stop()
    begun, ended = sink.of_blocks
    place = ("10.0.0.5", "172.16.10.13", "203.0.113.1", 64)
    assert fields(begun) == (BLOCK_ALLOCATED, *place, micros(10), micros(10), 1)
    assert fields(ended) == (BLOCK_RELEASED, *place, micros(10), micros(600), 1)
    assert begun["nat_port"] == ended["nat_port"] and begun["nat_port"] % 64 == 0
    assert begun["protocol"] == begun["pri_port"] == begun["pub_ip"] == begun["flags"] == 0


def test_rows_of_blocks_are_numbered_apart(gateway: Gateway) -> None:
    """Numbers of sessions' rows have no gap; the rows of blocks have a sequence of their own."""
    sink = Kept()
    log = gateway.start_session_log(sink)
    for number in range(40):
        send(gateway, f"10.0.1.{number % 8}", 5000 + number, float(number))
    gateway.advance(2000.0)
    log.stop()
    rows = sink.rows
    sessions, blocks = rows[rows["kind"] < GAP], sink.of_blocks
    assert sessions["number"].tolist() == list(range(len(sessions)))
    assert blocks["pkts_from_vpc"].tolist() == list(range(len(blocks)))
    counters = log.counters()
    assert counters["accepted"] == counters["delivered"] == len(rows) and counters["lost"] == 0


@pytest.mark.parametrize("policy", [Policy(), Policy(ports="deterministic", block_size=32)])
def test_other_policies_have_no_such_rows(policy: Policy) -> None:
    with made(policy=policy) as gateway:
        gateway.add(SnatEntry("10.0.0.0/28", "203.0.113.1"))
        sink = Kept()
        log = gateway.start_session_log(sink)
        send(gateway, "10.0.0.5", 5000, 1.0)
        log.stop()
        rows = sink.rows
        assert not len(sink.of_blocks) and not (rows["flags"][rows["kind"] == COVER] & BLOCKS).any()
        assert not rows["session"][rows["kind"] == COVER].any()


def test_a_log_that_starts_lists_the_blocks_that_are_assigned(gateway: Gateway) -> None:
    for number in range(100):  # two blocks
        send(gateway, "10.0.0.5", 5000 + number, 5.0)
    send(gateway, "10.0.0.6", 5000, 6.0)
    assert not is_of_block(gateway.take_records(events=True)).any()
    sink, other = Kept(), Kept()
    log = gateway.start_session_log(sink)
    listed = sink_rows(log, sink)
    assert {(format_ipv4(row["pri_ip"]), int(row["start_time"])) for row in listed} == {
        ("10.0.0.5", micros(5)), ("10.0.0.6", micros(6)),
    }  # fmt: skip
    assert len(listed) == 3 and (listed["flags"] == ASSIGNED_BEFORE).all() and (listed["end_time"] == micros(6)).all()
    gateway.start_session_log(other, name="other")
    send(gateway, "10.0.0.7", 5000, 7.0)
    gateway.close()
    for each in (sink, other):
        rows = each.rows
        at = int(np.flatnonzero((rows["kind"] == COVER) & (rows["flags"] & BLOCKS != 0))[-1])
        behind = rows[at + 1 : at + 4]
        assert (behind["kind"] == BLOCK_ALLOCATED).all() and (behind["flags"] == ASSIGNED_BEFORE).all()
        assert (
            rows[at]["session"] == behind["pkts_from_vpc"][0] + 1
        )  # how many rows of blocks there were before, plus one


def test_the_blocks_are_listed_again_each_day(gateway: Gateway) -> None:
    """So that no question looks back to the log's start."""
    sink = Kept()
    log = gateway.start_session_log(sink)
    assert gateway._collector is not None
    lists = []
    for hours in range(0, 73, 6):
        send(gateway, "10.0.0.5", 5000, hours * 3600.0)  # each ends its block, and begins another
        gateway._collector.beat()
        assert log.wait(10)
        rows = sink.rows
        lists.append(int(((rows["kind"] == COVER) & (rows["flags"] & BLOCKS != 0)).sum()))
    assert lists == [1] * 4 + [2] * 4 + [3] * 4 + [4]
    again = sink.of_blocks[sink.of_blocks["flags"] == ASSIGNED_BEFORE]
    assert (again["end_time"] >= micros(86_400)).all() and len(again) == 3


def sink_rows(log: Any, sink: Kept) -> Any:
    assert log.wait(10)
    return sink.of_blocks


def test_a_log_of_blocks_alone_has_no_rows_of_sessions(gateway: Gateway) -> None:
    every, alone = Kept(), Kept()
    gateway.start_session_log(every, name="every")
    log = gateway.start_session_log(alone, name="alone", rows="blocks")
    assert log.rows == "blocks"
    for number in range(100):
        send(gateway, "10.0.0.5", 5000 + number, float(number))
    gateway.close()
    rows = alone.rows
    assert (is_of_block(rows) | is_fact(rows)).all()
    assert (
        rows["pkts_from_pub"][rows["kind"] == COVER].all()
        and not every.rows["pkts_from_pub"][every.rows["kind"] == COVER].any()
    )
    assert alone.of_blocks.tolist() == every.of_blocks[-len(alone.of_blocks) :].tolist()
    counters = log.counters()
    assert counters["accepted"] == counters["delivered"] == len(rows) and counters["withheld"] > 200


def test_a_sink_without_rows_of_blocks_cannot_have_them_alone(gateway: Gateway, tmp_path: Path) -> None:
    sls = SlsSink("http://127.0.0.1:1", "p", "l", access_key_id="id", access_key_secret="secret", create=False)
    with pytest.raises(ConfigurationError, match="rows must be 'all'"):
        gateway.start_session_log(sls, rows="blocks")
    with pytest.raises(ConfigurationError, match="rows must be 'all' or 'blocks'"):
        gateway.start_session_log(MemorySink(), rows="none")  # type: ignore[arg-type]
    log = gateway.start_session_log(ParquetSink(tmp_path / "log"), rows="blocks")
    with pytest.raises(ConfigurationError, match="rows must be 'all'"):
        log.change(BaseSink())


def test_a_block_that_is_lost_in_a_full_journal_is_said_and_the_blocks_are_listed_again() -> None:
    with made(records=8) as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", "203.0.113.1"))
        sink = Kept()
        log = gateway.start_session_log(sink)
        frames = [craft.udp((f"10.0.0.{number}", 5000), REMOTE, b"x") for number in range(1, 15)]
        gateway.translate_many(frames, Side.INSIDE, 1.0)  # no collector comes between
        gateway._collector.beat()
        assert log.wait(10)
        rows, blocks = sink.rows, sink.of_blocks
        (gap,) = rows[rows["kind"] == GAP]
        told = blocks[blocks["flags"] == 0]
        assert gap["session"] + (rows["kind"] == CREATE).sum() + len(told) == 28
        listed = blocks[blocks["flags"] == ASSIGNED_BEFORE]
        assert len(listed) == 14 and listed["pkts_from_vpc"][0] == 14  # the lost ones have numbers, which are missing
        log.stop()


def test_an_address_that_goes_ends_its_blocks(gateway: Gateway) -> None:
    second = gateway.add(SnatEntry("10.1.0.0/16", "203.0.113.2"))
    sink = Kept()
    log = gateway.start_session_log(sink)
    send(gateway, "10.1.0.5", 5000, 1.0)
    gateway.remove(second, now=2.0)
    log.stop()
    begun, ended = sink.of_blocks
    assert (ended["kind"], ended["session"], ended["end_time"]) == (BLOCK_RELEASED, begun["session"], micros(2))


def test_blocks_outlive_a_restart(tmp_path: Path) -> None:
    first, second = Kept(), Kept()
    gateway = made()
    gateway.add(SnatEntry("10.0.0.0/16", "203.0.113.1"))
    gateway.start_session_log(first, name="audit")
    send(gateway, "10.0.0.5", 5000, 10.0)
    gateway.hand_over(tmp_path / "state")
    with Gateway.restore(tmp_path / "state", resume=True) as again:
        again.start_session_log(second, name="audit")
        send(again, "10.0.0.6", 5000, 20.0)
        again.advance(2000.0)
        again.close()
    begun = first.of_blocks[0]
    rows = second.of_blocks
    assert rows["pkts_from_vpc"].tolist() == list(range(int(first.of_blocks["pkts_from_vpc"][-1]) + 1,
                                                        int(first.of_blocks["pkts_from_vpc"][-1]) + 1 + len(rows)))  # fmt: skip
    listed, ended = rows[rows["session"] == begun["session"]]
    assert (listed["flags"], listed["start_time"], listed["nat_port"]) == (
        ASSIGNED_BEFORE,
        begun["start_time"],
        begun["nat_port"],
    )
    assert (ended["kind"], ended["start_time"]) == (BLOCK_RELEASED, begun["start_time"])
    new = rows[(rows["kind"] == BLOCK_ALLOCATED) & (rows["flags"] == 0)]
    assert new["session"].tolist() == [begun["session"] + 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_at_most_two_rows_a_blocks_life(workers: int) -> None:
    """Whatever hosts do, each assignment has one row, and one when it is over; they tell what the table says."""
    random_ = random.Random(7)
    with made(
        workers=workers, policy=Policy(ports="block", block_size=64, hold_down=5.0), timeouts=Timeouts(udp=120)
    ) as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1-203.0.113.4"))
        sink = Kept()
        log = gateway.start_session_log(sink)
        for now in range(1, 60):
            hosts = [f"10.0.{random_.randrange(20)}.{random_.randrange(50)}" for _ in range(100)]
            frames = [craft.udp((host, random_.randrange(5000, 5100)), REMOTE, b"x") for host in hosts]
            gateway.translate_many(frames, Side.INSIDE, now * 30.0)
            gateway.advance(now * 30.0)
        table = {(int(row["inside_ip"]), int(row["outside_ip"]), int(row["first_port"])) for row in gateway.blocks()}
        assert log.wait(10)
        blocks = sink.of_blocks
        lives: dict[int, list[Any]] = {}
        for row in blocks:
            lives.setdefault(int(row["session"]), []).append(row)
        assert all([int(row["kind"]) for row in life] in ([8], [8, 9]) for life in lives.values())
        assert Counter(len(life) for life in lives.values())[2] > 50
        alive = {life[0]["pri_ip"].item(): life for life in lives.values() if len(life) == 1}
        assert {(int(life[0]["pri_ip"]), int(life[0]["nat_ip"]), int(life[0]["nat_port"]))
                for life in lives.values() if len(life) == 1} == table and alive  # fmt: skip
        for life in lives.values():
            assert all(
                row[name] == life[0][name] for row in life for name in ("pri_ip", "nat_ip", "nat_port", "start_time")
            )
        by_place: dict[tuple[int, int], list[Any]] = {}
        for life in lives.values():
            by_place.setdefault((int(life[0]["nat_ip"]), int(life[0]["nat_port"])), []).append(life)
        for successive in by_place.values():
            for one, other in pairwise(successive):
                assert one[-1]["kind"] == BLOCK_RELEASED and one[-1]["end_time"] <= other[0]["start_time"] + 1000
        log.stop()
