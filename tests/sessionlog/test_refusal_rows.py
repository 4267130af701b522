"""Rows of refusals and events: one a subscriber, reason and minute, with a count; off unless asked for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natcore import ConfigurationError, DeliveryPolicy, Gateway, Policy, Side, SnatEntry, Timeouts
from natcore.dtypes import COVER, EVENT, EVENT_COVER, GAP, REFUSAL, format_ipv4, is_event
from natcore.events import words_of
from natcore.sessionlog.refusals import STARTED, Tally
from natcore.sinks import MemorySink, SlsSink
from natcore.sinks.base import BaseSink, Batch
from natcore.testing import craft

EPOCH = 1_700_000_040  # the begin of a minute
POLICY = Policy(sessions_per_subscriber=2, port_ranges=((1024, 1151),))


class Kept(BaseSink):
    """Takes rows of every kind, and keeps them."""

    events = gaps = blocks = refusals = facts = True

    def __init__(self) -> None:
        self.records: list[Any] = []

    def deliver(self, batch: Batch) -> None:
        self.records.append(batch.records)

    @property
    def rows(self) -> Any:
        return np.concatenate(self.records)

    @property
    def of_events(self) -> Any:
        return self.rows[is_event(self.rows)]


def made(**arguments: Any) -> Gateway:
    values: dict[str, Any] = {
        "framing": "ip", "policy": POLICY, "seed": 3, "epoch": EPOCH, "max_sessions": 10_000, "timeouts": Timeouts(udp=300),
    }  # fmt: skip
    gateway = Gateway(**(values | arguments))
    gateway.add(SnatEntry("10.0.0.0/16", "203.0.113.1"))
    return gateway


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with made() as gateway:
        yield gateway


def send(gateway: Gateway, host: str, port: int, now: float, remote: tuple[str, int] = ("198.51.100.7", 53)) -> bool:
    verdict, _ = gateway.translate_one(craft.udp((host, port), remote, b"x"), Side.INSIDE, now)
    return verdict.is_forwarded


def beat(gateway: Gateway) -> None:
    assert gateway._collector is not None
    gateway._collector.beat()


def micros(seconds: float) -> int:
    return round((EPOCH + seconds) * 1e6)


def fields(row: Any) -> tuple[Any, ...]:
    return (
        format_ipv4(row["pri_ip"]), *words_of(int(row["flags"])), int(row["session"]), int(row["start_time"]),
        int(row["end_time"]), format_ipv4(row["pub_ip"]), int(row["pub_port"]), int(row["protocol"]),
    )  # fmt: skip


def test_a_row_says_who_was_refused_what_when_and_why(gateway: Gateway) -> None:
    sink = Kept()
    log = gateway.start_session_log(sink, refusals=True)
    for port in range(5000, 5005):
        send(gateway, "10.0.0.5", port, 10.0 + port - 5000)
    beat(gateway)
    send(gateway, "10.0.0.5", 6000, 20.0)
    log.stop()
    first, row, last = sink.of_events
    assert (first["kind"], row["kind"], last["kind"]) == (EVENT_COVER, REFUSAL, EVENT_COVER)
    assert fields(row) == (
        "10.0.0.5", "subscriber-limit", "sessions_per_subscriber", 4, micros(12), micros(20), "198.51.100.7", 53, 17,
    )  # fmt: skip
    assert first["flags"] == STARTED and last["flags"] == 0 and last["end_time"] >= micros(20) - 1


def test_a_subscriber_and_reason_have_a_row_a_minute(gateway: Gateway) -> None:
    sink = Kept()
    log = gateway.start_session_log(sink, refusals=True)
    for second in range(0, 300, 5):
        for host in ("10.0.0.5", "10.0.0.6"):
            send(gateway, host, 5000 + second, float(second))
        beat(gateway)
    log.stop()
    rows = sink.of_events
    refused = rows[rows["kind"] == REFUSAL]
    assert Counter(format_ipv4(row["pri_ip"]) for row in refused) == {"10.0.0.5": 5, "10.0.0.6": 5}
    assert (refused["end_time"] - refused["start_time"] < 60_000_000).all()
    assert refused["session"].sum() == 2 * (60 - 2)
    covers = rows[rows["kind"] == EVENT_COVER]
    assert [int(each) for each in covers["end_time"][1:5]] == [micros(minute * 60) - 1 for minute in (1, 2, 3, 4)]


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_are_exact_and_the_rows_are_numbered_apart(seed: int) -> None:
    """What packets were told is what the rows say, whoever else takes events meanwhile."""
    chance, refused, now = random.Random(seed), Counter[tuple[str, str]](), 0.0
    policy = Policy(
        sessions_per_subscriber=3,
        ports_per_subscriber=2,
        port_ranges=((1024, 1031),),
        new_sessions_per_second=2,
        pooling="arbitrary",
    )
    with made(policy=policy, timeouts=Timeouts(udp=120, unreplied=120), max_sessions=20) as gateway:
        sink = Kept()
        log = gateway.start_session_log(sink, refusals=True)
        feed = gateway.watch_events()
        for step in range(1500):
            now += chance.choice([0.0, 0.01, 0.2, 3.0])
            host = f"10.0.0.{chance.randrange(30)}"
            packet = craft.udp((host, chance.randrange(4000, 4020)), (f"198.51.100.{chance.randrange(9)}", 53), b"x")
            verdict, _ = gateway.translate_one(packet, Side.INSIDE, now)
            refused[host, verdict.reason] += verdict.is_drop
            if step % 7 == 0:
                chance.choice([gateway.take_events, feed.take, lambda: beat(gateway)])()
        log.stop()
        rows = sink.rows
    counted = Counter[tuple[str, str]]()
    for row in rows[rows["kind"] == REFUSAL]:
        counted[format_ipv4(row["pri_ip"]), words_of(int(row["flags"]))[0]] += int(row["session"])
    assert counted == +refused and sum(counted.values()) > 100
    told = rows[is_event(rows)]
    assert told["pkts_from_vpc"].tolist() == list(range(len(told)))
    sessions = rows[rows["kind"] < GAP]
    assert sessions["number"].tolist() == list(range(len(sessions)))
    counters = log.counters()
    assert counters["accepted"] == counters["delivered"] == len(rows) and counters["lost"] == 0


def test_they_are_off_unless_asked_for(gateway: Gateway) -> None:
    """Another log that asks for them changes nothing of the rows of this one."""
    plain, asked = Kept(), Kept()
    log = gateway.start_session_log(plain)
    gateway.start_session_log(asked, name="asked", refusals=True)
    for port in range(5000, 5010):
        send(gateway, "10.0.0.5", port, 10.0)
    gateway.close()
    assert not is_event(plain.rows).any() and (asked.of_events["kind"] == REFUSAL).sum() == 1
    assert log.counters()["withheld"] == len(asked.of_events) and not log.refusals
    others = asked.rows[~is_event(asked.rows)]
    assert (others["kind"] == COVER).any() and set(others["kind"]) == set(plain.rows["kind"])


def test_what_concerns_no_one_subscriber_has_rows_of_events() -> None:
    policy = Policy(port_ranges=((1024, 1123),), warn_at=0.5, rearm_at=0.4, pooling="arbitrary")
    with made(policy=policy, max_sessions=120) as gateway:
        sink = Kept()
        log = gateway.start_session_log(sink, refusals=True)
        for number in range(105):
            send(gateway, f"10.0.0.{number}", 5000, 5.0)
        log.stop()
    rows = sink.of_events
    events = rows[rows["kind"] == EVENT]
    assert {words_of(int(row["flags"]))[0] for row in events} >= {"ports-threshold", "sessions-threshold"}
    [ports] = [row for row in events if words_of(int(row["flags"]))[0] == "ports-threshold"]
    assert format_ipv4(ports["nat_ip"]) == "203.0.113.1" and ports["protocol"] == 17 and ports["pri_ip"] == 0
    assert {words_of(int(row["flags"])) for row in rows[rows["kind"] == REFUSAL]} == {("ports-exhausted", "pool")}


def test_what_was_before_the_log_is_not_in_it_and_a_second_log_counts_from_its_start(gateway: Gateway) -> None:
    for port in range(5000, 5010):
        send(gateway, "10.0.0.5", port, 1.0)
    first, second = Kept(), Kept()
    gateway.start_session_log(first, refusals=True)
    for port in range(6000, 6003):
        send(gateway, "10.0.0.5", port, 2.0)
    log = gateway.start_session_log(second, name="second", refusals=True)
    for port in range(6000, 6004):
        send(gateway, "10.0.0.5", port, 3.0)
    log.stop()
    gateway.close()
    assert first.of_events["session"].sum() == 7 and second.of_events["session"].sum() == 4


def test_destinations_are_redacted(gateway: Gateway) -> None:
    sink = Kept()
    log = gateway.start_session_log(sink, refusals=True, redact_destination=True)
    for port in range(5000, 5004):
        send(gateway, "10.0.0.5", port, 1.0)
    log.stop()
    row = sink.of_events[1]
    assert row["session"] == 2 and row["pub_ip"] == row["pub_port"] == 0


def test_a_sink_that_takes_none_is_refused(gateway: Gateway) -> None:
    class Plain(BaseSink):
        def deliver(self, batch: Batch) -> None: ...

    where: dict[str, Any] = {"access_key_id": "id", "access_key_secret": "secret"}
    for sink in (Plain(), SlsSink("http://127.0.0.1:1", "p", "l", **where)):
        with pytest.raises(
            ConfigurationError, match="refusals must be False with a sink that takes no rows of refusals"
        ):
            gateway.start_session_log(sink, refusals=True)
    with pytest.raises(ConfigurationError, match="refusals"):
        gateway.start_session_log(MemorySink(), refusals="yes")  # type: ignore[arg-type]


def test_rows_that_found_no_place_are_counted_and_their_numbers_are_missing(gateway: Gateway, tmp_path: Path) -> None:
    """A log without space loses the oldest rows: a gap row counts them, and numbers of the sequence are missing."""

    class Away(Kept):
        away = True

        def deliver(self, batch: Batch) -> None:
            if self.away:
                raise OSError("away")
            super().deliver(batch)

    sink = Away()
    log = gateway.start_session_log(
        sink, refusals=True, spool=tmp_path / "spool", delivery=DeliveryPolicy(spool_bytes=65_536, linger=0.0)
    )
    for minute in range(30):
        for host in range(60):
            for port in range(3):
                send(gateway, f"10.0.1.{host}", 5000 + port, 60.0 * minute + 1)
        beat(gateway)
    sink.away = False
    log.retry()
    assert log.wait(30)
    log.stop()
    counters = log.counters()
    assert counters["lost_spool_full"] > 0 and counters["gaps_log_full"] > 0
    assert counters["accepted"] == counters["delivered"] + counters["lost"]
    numbers = sink.of_events["pkts_from_vpc"]
    assert len(numbers) < numbers.max() + 1 and (np.diff(numbers) > 0).all()


def test_more_than_fit_into_a_minute_share_a_row_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from natcore.sessionlog import refusals

    monkeypatch.setattr(refusals, "_MOST_ROWS", 10)
    with made(policy=Policy(sessions_per_subscriber=1)) as gateway:
        sink = Kept()
        log = gateway.start_session_log(sink, refusals=True)
        for host in range(50):
            for port in range(3):
                send(gateway, f"10.0.2.{host}", 5000 + port, 1.0)
        log.stop()
    rows = sink.of_events
    refused = rows[rows["kind"] == REFUSAL]
    assert refused["session"].sum() == 100 and len(refused) == 11
    [several] = refused[refused["pri_ip"] == 0]
    assert several["session"] == 80 and several["pub_ip"] == several["protocol"] == 0


def test_a_clock_that_is_set_leaves_no_refusal_out(gateway: Gateway) -> None:
    sink = Kept()
    log = gateway.start_session_log(sink, refusals=True)
    for step, epoch in enumerate((EPOCH + 3600, EPOCH - 7200)):
        for port in range(5000, 5005):
            send(gateway, "10.0.0.5", port, 10.0 + step)
        beat(gateway)
        assert gateway._collector is not None
        gateway._collector.set_epoch(epoch * 10**9)
        beat(gateway)
    for port in range(5000, 5005):
        send(gateway, "10.0.0.5", port, 20.0)
    log.stop()
    rows = sink.of_events
    assert rows["session"].sum() == 3 + 3 + 3
    assert rows["pkts_from_vpc"].tolist() == list(range(len(rows)))


def test_a_tally_gives_nothing_twice() -> None:
    tally = Tally(lambda: None, lambda ns: ns // 1000, lambda: 5_000_000_000)
    assert len(tally.take_rows()) == 0 and len(tally.take_rows(0)) == 0
