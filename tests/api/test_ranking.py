"""Rankings and rates of sessions: the same as a sort, or a sum, of copies of all; with several workers, under traffic."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natcore import ConfigurationError, Gateway, Side, SnatEntry
from natcore.ranking import ORDERS
from natcore.testing.bulk import UDP, answers, packets
from support.frames import EIP, HOST, udp
from support.gateways import made

# What each order means, by the columns of SESSION.
KEYS: dict[str, Any] = {
    "session": lambda rows: rows["session"],
    "bytes": lambda rows: -(rows["bytes_out"] + rows["bytes_in"]).astype(np.int64),
    "packets": lambda rows: -(rows["packets_out"] + rows["packets_in"]).astype(np.int64),
    "bytes-out": lambda rows: -rows["bytes_out"].astype(np.int64),
    "bytes-in": lambda rows: -rows["bytes_in"].astype(np.int64),
    "age": lambda rows: rows["birth_ns"],
    "idle": lambda rows: rows["last_seen_ns"],
    "expires": lambda rows: rows["deadline_ns"],
    "subscriber": lambda rows: rows["inside_ip"],
    "outside": lambda rows: rows["outside_ip"].astype(np.int64) << 16 | rows["outside_port"],
    "remote": lambda rows: rows["remote_ip"],
}
FLOW = st.tuples(
    st.integers(0, 7), st.integers(1, 30), st.integers(0, 5), st.sampled_from((64, 200, 900)), st.booleans()
)


def traffic(gateway: Gateway, flows: list[tuple[int, int, int, int, bool]]) -> None:
    """A packet of each flow and, of some, its answer, ten seconds after the other: the first ones expire."""
    for number, (host, port, remote, length, is_answered) in enumerate(flows, 1):
        frame, lengths = packets(UDP, 0x0A000001 + host, 1000 + port, 0xC6336401 + remote, 53, length=length)
        gateway.translate(frame, lengths, Side.INSIDE, now=10.0 * number)
        if is_answered:
            gateway.translate(*answers(frame, lengths), Side.OUTSIDE, now=10.0 * number + 5)


def in_order(rows: Any, by: str, reverse: bool) -> list[int]:
    order = np.lexsort((rows["session"], KEYS[by](rows)))
    numbers: list[int] = rows["session"][order[::-1] if reverse else order].tolist()
    return numbers


@settings(max_examples=60, deadline=None)
@given(
    flows=st.lists(FLOW, max_size=60), by=st.sampled_from(ORDERS), limit=st.integers(1, 9), reverse=st.booleans(),
    workers=st.integers(1, 3), subscriber=st.sampled_from(("0.0.0.0/0", "10.0.0.0/30", "10.0.0.4")),
)  # fmt: skip
def test_pages_are_all_sessions_in_order(
    flows: list[tuple[int, int, int, int, bool]], by: Any, limit: int, reverse: bool, workers: int, subscriber: str
) -> None:
    with Gateway(seed=1, workers=workers, max_sessions=512) as gateway:
        gateway.add(SnatEntry("10.0.0.0/24", pool=EIP))
        traffic(gateway, flows)
        found = [rows for rows in gateway.find_sessions(subscriber=subscriber) if len(rows)]
        wanted = in_order(np.concatenate(found), by, reverse) if found else []
        seen: list[int] = []
        cursor = ""
        while True:
            page = gateway.rank_sessions(by, limit, after=cursor, reverse=reverse, subscriber=subscriber)
            rows = page.rows()
            assert rows["session"].tolist() == wanted[len(seen) : len(seen) + limit]
            assert (page.matched, page.before) == (len(wanted), len(seen))
            if seen:  # and back again
                back = gateway.rank_sessions(by, limit, after=page.first, reverse=not reverse, subscriber=subscriber)
                assert back.rows()["session"].tolist()[::-1] == seen[-limit:]
            seen += rows["session"].tolist()
            assert page.more is (len(seen) < len(wanted))
            if not page.more:
                break
            cursor = page.last
        assert seen == wanted
        copied = {row["session"]: row for row in gateway.sessions()}
        assert all(copied[row["session"]] == row for row in rows)


def test_more_sessions_than_a_slice_are_looked_at_in_turns() -> None:
    with Gateway(seed=1, max_sessions=200_000) as gateway:
        gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0/28"))
        numbers = np.random.default_rng(1).permutation(150_000).astype(np.uint64)
        frames, lengths = packets(UDP, 0x0A000000 + numbers, 1000, 0xC6336407, 53)
        gateway.translate(frames, lengths, Side.INSIDE, now=1.0)
        ranking = gateway.rank_sessions("subscriber", 1000)
        looks = 1
        while ranking.look():
            looks += 1
        assert looks == 3
        assert ranking.rows()["inside_ip"].tolist() == list(range(0x0A000000, 0x0A000000 + 1000))
        assert ranking.matched == 150_000 and ranking.more


def test_a_session_that_ended_since_it_was_looked_at_is_left_out() -> None:
    with made() as gateway:
        for port in (1, 2, 3):
            gateway.translate_one(udp(HOST, port), Side.INSIDE, now=1.0)
        ranking = gateway.rank_sessions("session", 2)
        while ranking.look():
            pass
        gateway.end(subscriber=f"{HOST}:1")
        gateway.translate_one(udp(HOST, 4), Side.INSIDE, now=1.0)  # takes its slot
        assert ranking.rows()["inside_port"].tolist() == [2]
        following = gateway.rank_sessions("session", 2, after=ranking.last)
        assert following.rows()["inside_port"].tolist() == [3, 4]


def test_no_session_comes_between_two_pages_under_traffic() -> None:
    """Packets change what sessions are sorted by, while pages are turned: each that was there is on one of them."""
    with Gateway(seed=7, max_sessions=8192) as gateway:
        gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0/28"))
        numbers = np.arange(4096, dtype=np.uint64)
        frames, lengths = packets(UDP, 0x0A000000 + numbers, 1000, 0xC6336407, 53)
        gateway.translate(frames.copy(), lengths, Side.INSIDE, now=1.0)
        everyone = set(gateway.sessions()["session"].tolist())
        ended = threading.Event()

        def send() -> None:
            chance, now = np.random.default_rng(1), 1.0
            while not ended.is_set():
                rows = chance.integers(0, 4096, 512)
                gateway.translate(frames[rows], lengths[rows], Side.INSIDE, now=now)
                now += 0.001

        thread = threading.Thread(target=send)
        thread.start()
        try:
            for _ in range(10):
                seen, cursor = set(), ""
                while True:
                    page = gateway.rank_sessions(
                        "bytes", 500, after=cursor, reverse=True
                    )  # the fewest first: they grow
                    seen |= set(page.rows()["session"].tolist())
                    if not page.more:
                        break
                    cursor = page.last
                assert seen == everyone
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"by": "colour", "limit": 1}, "by must be"), ({"by": "bytes", "limit": 0}, "limit must be"),
        ({"by": "bytes", "limit": 100_001}, "limit must be"),
        ({"by": "bytes", "limit": 1, "after": "1"}, "after must be a cursor"),
        ({"by": "bytes", "limit": 1, "after": "1:x"}, "after must be a cursor"),
        ({"by": "bytes", "limit": 1, "after": f"1:{1 << 62}"}, "after must be a cursor"),
        ({"by": "bytes", "limit": 1, "subscriber": None}, "subscriber must be an IPv4 address"),
    ],
)  # fmt: skip
def test_what_is_no_ranking_is_refused(given_: dict[str, Any], said: str) -> None:
    with made() as gateway, pytest.raises(ConfigurationError, match=said):
        gateway.rank_sessions(**given_)


COUNTED = ("sessions", "bytes_out", "packets_out", "bytes_in", "packets_in")


# ---- rates of subscribers -------------------------------------------------------------------------------------------


def sums_of(rows: Any, past: dict[int, Any]) -> dict[int, Counter[str]]:
    """Counts by inside address, less those of the same sessions before."""
    found: dict[int, Counter[str]] = {}
    for row in rows:
        before = past.get(int(row["session"]))
        to = found.setdefault(int(row["inside_ip"]), Counter())
        to["sessions"] += 1
        for name in COUNTED[1:]:
            to[name] += int(row[name]) - (0 if before is None else int(before[name]))
    return found


@settings(max_examples=40, deadline=None)
@given(
    looks=st.lists(st.lists(FLOW, max_size=30), min_size=1, max_size=4), workers=st.integers(1, 3), once=st.booleans(),
    subscriber=st.sampled_from(("0.0.0.0/0", "10.0.0.0/30")),
)  # fmt: skip
def test_rates_are_the_sums_of_what_sessions_counted_since(
    looks: list[list[tuple[int, int, int, int, bool]]], workers: int, once: bool, subscriber: str
) -> None:
    with Gateway(seed=1, workers=workers, max_sessions=512) as gateway:
        gateway.add(SnatEntry("10.0.0.0/24", pool=EIP))
        rates = gateway.subscriber_rates(subscriber, once=once)
        past: dict[int, Any] = {}
        for number, flows in enumerate(looks):
            traffic(gateway, flows)
            if number == 2:
                gateway.end(subscriber="10.0.0.1")
            found = np.concatenate(
                [np.zeros(0, gateway.sessions().dtype), *gateway.find_sessions(subscriber=subscriber)]
            )
            wanted = sums_of(found, {} if once else past)
            past = {int(row["session"]): row for row in found}
            mappings = Counter(
                int(address) for rows in gateway.find_mappings(subscriber=subscriber) for address in rows["inside_ip"]
            )
            rows = rates.rows()
            assert {int(row["inside_ip"]): int(row["mappings"]) for row in rows} == {
                address: mappings[address] for address in wanted
            }
            told = {int(row["inside_ip"]): Counter({name: int(row[name]) for name in COUNTED}) for row in rows}
            assert told == wanted


def test_the_table_of_subscribers_grows_with_them() -> None:
    with Gateway(seed=1, max_sessions=60_000) as gateway:
        gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0/28"))
        for second in (1.0, 2.0):
            numbers = np.arange(50_000, dtype=np.uint64)
            frames, lengths = packets(UDP, 0x0A000000 + numbers, 1000, 0xC6336407, 53)
            gateway.translate(frames, lengths, Side.INSIDE, now=second)
        rates = gateway.subscriber_rates()
        assert rates.look()  # 32,768 of them
        rows = rates.rows()
        assert sorted(rows["inside_ip"].tolist()) == list(range(0x0A000000, 0x0A000000 + 50_000))
        assert (rows["packets_out"] == 2).all() and (rows["mappings"] == 1).all()
        assert (rates.rows()["packets_out"] == 0).all()
