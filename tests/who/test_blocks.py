"""Who had a port, from the rows of port blocks alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from natcore import DeliveryPolicy, DnatEntry, Gateway, Policy, Side, SnatEntry, Timeouts
from natcore.sessionlog.collector import COVER_BEATS
from natcore.sessionlog.session_log import SessionLog
from natcore.sinks import ParquetSink
from natcore.sinks._parquet_folder import read_footer
from natcore.sinks.compaction import compact
from natcore.testing import craft
from natcore.who.query import Answer, Store, talked, what, who
from runs.truth import Result, one_life

EPOCH = 1_700_000_000
DAY = 86_400
POOL = "203.0.113.1"
POLICY = Policy(ports="block", port_ranges=((1024, 1151),), block_size=64, blocks=1, hold_down=0.0)


class Life:
    """A gateway with two port blocks and a log of their rows alone; a file a step."""

    def __init__(self, folder: Path, policy: Policy = POLICY) -> None:
        self.folder = folder
        self.gateway = Gateway(
            instance="ngw", framing="ip", policy=policy, seed=1, epoch=EPOCH, timeouts=Timeouts(udp=120),
        )  # fmt: skip
        self.entry = self.gateway.add(SnatEntry("10.0.0.0/24", POOL))
        self.log: SessionLog | None = None
        self.now = 0.0

    def begin(self, rows: Any = "blocks") -> Life:
        sink = ParquetSink(self.folder, roll_seconds=3600, batch_seconds=0.0, compact=False)
        self.log = self.gateway.start_session_log(sink, rows=rows, delivery=DeliveryPolicy(linger=0.0))
        return self

    def at(self, now: float) -> Life:
        """Move the clock, and write what the log has."""
        self.now = now
        self.gateway.advance(now)
        if self.log is not None:
            assert self.gateway._collector is not None
            for _ in range(2 * COVER_BEATS):  # one has a cover row; the log's own beat may have one, of an earlier time
                self.gateway._collector.beat()
            assert self.log.wait(20)
        return self

    def send(self, host: str, port: int = 5000) -> int:
        _, out = self.gateway.translate_one(craft.udp((host, port), ("198.51.100.7", 53), b"x"), Side.INSIDE, self.now)
        assert out is not None
        return int.from_bytes(out[20:22])


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    made = Life(tmp_path / "log")
    yield made
    made.gateway.close()


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH, UTC) + timedelta(seconds=seconds)


def ask(
    source: Any, port: int, seconds: float, *, tolerance: float = 2.0, protocol: Any = "udp", **more: Any
) -> Answer:
    return who(source, POOL, port, protocol=protocol, at=moment(seconds), tolerance=tolerance, **more)


def test_the_subscriber_of_the_block_is_exact(life: Life) -> None:
    life.begin().at(10)
    port = life.send("10.0.0.5")
    life.at(50).at(300).at(600)
    for protocol in ("tcp", "udp", "icmp"):  # a block has the ports of all protocols
        answer = ask(life.folder, port, 60, protocol=protocol)
        assert (answer.status, str(answer.subscriber)) == ("exact", "10.0.0.5")
    (match,) = answer.matches
    assert match.block is not None and match.block[0] <= port <= match.block[1] == match.block[0] + 63
    assert (match.start, match.window, match.pub_ip) == (moment(10), None, None)
    assert match.end == moment(300) and answer.as_dict()["matches"][0]["block"] == list(match.block)
    assert "had the port block then" in answer.reason
    first = match.block[0]
    assert [ask(life.folder, each, 60).status for each in (first, first + 63)] == ["exact", "exact"]


def test_without_a_block_no_one_had_the_port(life: Life) -> None:
    life.begin().at(10)
    port = life.send("10.0.0.5")
    life.at(300).at(600)
    other = 1024 + (port - 1024 + 64) % 128
    assert ask(life.folder, other, 60).status == "unused"
    assert ask(life.folder, port, 5).status == "unused" and ask(life.folder, port, 400).status == "unused"
    assert ask(life.folder, 2000, 60).status == "unused"  # no block has this port
    assert ask(life.folder, port, 601).status == "gap"  # the log does not reach so far
    assert ask(life.folder, 0, 60, protocol=47).status == "gap"  # what has no ports has no block


def test_whoever_was_asked_of_the_remote_the_block_s_subscriber_answers(life: Life) -> None:
    life.begin().at(10)
    port = life.send("10.0.0.5")
    life.at(600)
    assert ask(life.folder, port, 60, remote=("198.51.100.99", 1)).status == "exact"


def test_two_subscribers_within_the_tolerance_are_ambiguous(life: Life) -> None:
    life.begin().at(10)
    one, other = life.send("10.0.0.5"), life.send("10.0.0.6")
    life.at(131)  # both blocks are free again
    again = {host: life.send(host) for host in ("10.0.0.7", "10.0.0.8")}
    life.at(200).at(400)
    successor = next(host for host, port in again.items() if (port - 1024) // 64 == (one - 1024) // 64)
    assert (one - 1024) // 64 != (other - 1024) // 64
    answer = ask(life.folder, one, 131)
    assert answer.status == "ambiguous" and set(answer.subscribers) == {"10.0.0.5", successor}
    assert str(ask(life.folder, one, 125).subscriber) == "10.0.0.5"
    assert str(ask(life.folder, one, 135).subscriber) == successor


def test_a_block_that_was_assigned_before_the_log_is_known_from_its_start(life: Life) -> None:
    life.at(10)
    port = life.send("10.0.0.5")
    life.at(50).begin().at(60)
    life.at(90)
    answer = ask(life.folder, port, 70)
    assert (answer.status, answer.matches[0].start) == ("exact", moment(10))
    assert ask(life.folder, port, 30).status == "gap"  # which entries were in force then is not told
    other = 1024 + (port - 1024 + 64) % 128
    assert ask(life.folder, other, 70).status == "unused"
    assert ask(life.folder, other, 30).status == "gap"  # whether another block was assigned then is not told


def test_a_row_that_is_missing_is_a_gap(life: Life) -> None:
    life.begin().at(10)
    port = life.send("10.0.0.5")
    life.at(20).at(200)  # the block is returned
    heirs = [life.send("10.0.0.6"), life.send("10.0.0.7")]
    life.at(210).at(250)
    heir = f"10.0.0.{6 + [(each - 1024) // 64 for each in heirs].index((port - 1024) // 64)}"
    answer = ask(life.folder, port, 220)
    assert str(answer.subscriber) == heir, answer
    gone = []
    for path in sorted(life.folder.glob("*.parquet")):
        footer = read_footer(path)
        assert footer is not None
        if any(first > 0 for first, _ in footer.blocks):
            gone.append(path)
    for path in gone:
        path.unlink()
    answer = ask(life.folder, port, 220)
    assert answer.status == "gap" and answer.subscriber is None
    assert str(ask(life.folder, port, 15).subscriber) == "10.0.0.5"  # while rows are there they suffice


def test_an_entry_s_port_within_a_block_is_the_entry_s(tmp_path: Path) -> None:
    life = Life(tmp_path / "log")
    life.gateway.add(DnatEntry(POOL, 1030, "10.0.0.9", 80, protocol="udp"))
    life.gateway.add(DnatEntry(POOL, 1100, "10.0.0.9", 80, protocol="udp"))
    life.begin().at(10)
    block = (life.send("10.0.0.5") - 1024) // 64
    life.at(60)
    answer = ask(life.folder, (1030, 1100)[block], 30)
    assert answer.status != "exact" and (answer.entry or "").startswith("DNAT entry")
    assert ask(life.folder, (1100, 1030)[block], 30).status == "static"
    life.gateway.close()


def test_a_running_gateway_and_its_spool_know_more_than_the_files(life: Life, tmp_path: Path) -> None:
    life.begin().at(10)
    port = life.send("10.0.0.5")
    life.gateway.advance(20.0)
    other = 1024 + (port - 1024 + 64) % 128
    assert ask(life.folder, port, 15, tolerance=0, gateway=life.gateway).status == "exact"
    assert ask(life.folder, other, 15, tolerance=0, gateway=life.gateway).status == "unused"


def test_a_log_of_every_row_answers_from_blocks_where_sessions_rows_do_not_suffice(life: Life) -> None:
    """Between two sessions of the block no session held the port: by sessions that is unused, and that is the answer."""
    life.begin(rows="all").at(10)
    port = life.send("10.0.0.5")
    life.at(200).at(9000)
    assert ask(life.folder, port, 50).matches[0].block is None
    assert ask(life.folder, port, 9001).status == "gap"


def test_compacted_files_give_the_same_answers(life: Life) -> None:
    life.begin().at(10)
    ports = [life.send("10.0.0.5"), life.send("10.0.0.6")]
    for now in range(20, 3000, 100):
        life.at(now)
        life.send("10.0.0.5")
    life.gateway.close()
    before = [ask(life.folder, port, at) for port in ports for at in (15, 150, 2000, 5000)]
    assert compact(life.folder).files > 0
    assert [ask(Store(life.folder), port, at) for port in ports for at in (15, 150, 2000, 5000)] == before
    assert {answer.status for answer in before} == {"exact", "unused", "gap"}


def test_no_answer_from_blocks_alone_is_wrong_whatever_the_log_went_through() -> None:
    total = Result()
    for seed in range(40_000, 40_008):
        total.add(one_life(seed, 60, in_blocks=True))
    assert total.wrong == []
    assert total.orderly_gaps == 0 and {"exact", "unused", "gap"} <= set(total.answers)


def test_no_answer_is_wrong_where_blocks_are_listed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natcore.sessionlog.collector._LIST_NS", 120 * 10**9)
    total = Result()
    for seed in range(40_100, 40_106):
        total.add(one_life(seed, 60, in_blocks=True))
    assert total.wrong == []
    assert total.orderly_gaps == 0 and {"exact", "unused", "gap"} <= set(total.answers)


def test_a_question_reads_from_the_last_list_of_blocks_on(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the rows and files of all days before and after."""
    life.begin()
    for day in range(20):
        life.at(day * DAY + 10).send(f"10.0.0.{5 + day % 2}")
        life.at(day * DAY + 400).at(day * DAY + 40_000)
    life.send("10.0.0.9")
    life.at(20 * DAY)
    read: list[int] = []
    find_blocks = Store.find_blocks

    def counted(self: Store, *arguments: Any) -> Any:
        found = find_blocks(self, *arguments)
        read.append(len(found))
        return found

    monkeypatch.setattr(Store, "find_blocks", counted)
    for day in (0, 3, 10, 19):
        store, more = Store(life.folder), {"at": moment(day * DAY + 60), "protocol": "udp"}
        found = talked(store, "198.51.100.7", **more)
        assert (found.status, found.subscribers) == ("incomplete", [f"10.0.0.{5 + day % 2}"])
        assert what(store, "10.0.0.5", **more).status == ("unused" if day % 2 else "complete")
        assert who(store, POOL, remote="198.51.100.7", **more).status == "ambiguous"
        looked_at = len(store._footers)
        assert 2 * looked_at < len(store.parts())
        assert max(read) <= 8  # of the rows of three days
        read.clear()
        assert talked(store, "198.51.100.7", at=moment(day * DAY + 30_000), protocol="udp").status == "unused"
    across = what(Store(life.folder), "10.0.0.5", at=moment(2 * DAY), until=moment(4 * DAY), protocol="udp")
    assert across.status == "complete" and len(across.matches) == 1  # lists within the time are no gap
    talked(Store(life.folder), "198.51.100.7", at=moment(21 * DAY), protocol="udp")  # beyond the log: all is looked at
    assert max(read) > 40


def test_what_lists_the_blocks_of_an_inside_address(life: Life) -> None:
    life.begin().at(10)
    port = life.send("10.0.0.5")
    life.at(300).at(600)
    found = what(life.folder, "10.0.0.5", at=moment(60), protocol="udp")
    (match,) = found.matches
    assert found.status == "complete" and "1 port block" in found.reason
    assert match.block is not None and match.block[0] <= port <= match.block[1]
    assert what(life.folder, "10.0.0.5", at=moment(5), until=moment(500), protocol="udp").matches == found.matches
    assert what(life.folder, "10.0.0.6", at=moment(60), protocol="udp").status == "unused"
    assert what(life.folder, "10.0.0.5", at=moment(400), protocol="tcp").status == "unused"
    late = what(life.folder, "10.0.0.5", at=moment(400), until=moment(800), protocol="udp")
    assert late.status == "incomplete" and late.gaps  # the log does not reach so far


def test_what_needs_no_port_needs_no_block(life: Life) -> None:
    life.begin().at(10)
    life.send("10.0.0.5")
    life.at(600)
    found = what(life.folder, "10.0.0.5", at=moment(60))
    assert found.status == "incomplete" and "of TCP, UDP and ICMP only" in found.reason and len(found.matches) == 1
    assert what(life.folder, "10.0.0.6", at=moment(60)).status == "incomplete"
    assert what(life.folder, "10.0.0.6", at=moment(60), protocol=47).status == "incomplete"
    assert who(life.folder, "203.0.113.1", at=moment(5), remote="198.51.100.7").status == "gap"


def test_with_whom_a_block_does_not_say(life: Life) -> None:
    """A remote makes candidates of the subscribers; without any, no one talked to it."""
    life.begin().at(10)
    life.send("10.0.0.5")
    life.at(20)
    life.send("10.0.0.6")
    life.at(300).at(600)
    asked: dict[str, Any] = {"protocol": "udp", "tolerance": 0.0}
    answer = who(life.folder, POOL, at=moment(15), remote="198.51.100.7", **asked)
    assert answer.status == "ambiguous" and answer.subscribers == ["10.0.0.5"] and "port blocks alone" in answer.reason
    answer = who(life.folder, POOL, at=moment(30), remote="198.51.100.99", **asked)
    assert answer.status == "ambiguous" and answer.subscribers == ["10.0.0.5", "10.0.0.6"]
    assert who(life.folder, POOL, at=moment(500), remote="198.51.100.7", **asked).status == "unused"
    for found in (
        talked(life.folder, "198.51.100.7", at=moment(30), **asked),
        talked(life.folder, ("198.51.100.99", 5), at=moment(30), **asked),
    ):
        assert found.status == "incomplete" and found.subscribers == ["10.0.0.5", "10.0.0.6"] and not found.matches
    assert talked(life.folder, "198.51.100.7", at=moment(500), **asked).status == "unused"
    found = what(life.folder, "10.0.0.6", at=moment(30), remote="198.51.100.7", **asked)
    assert found.status == "incomplete" and len(found.perhaps) == 1 and not found.matches


def test_rows_of_sessions_are_preferred_where_there_are_any(life: Life) -> None:
    life.begin(rows="all").at(10)
    life.send("10.0.0.5")
    life.at(50).at(300)
    found = what(life.folder, "10.0.0.5", at=moment(20), until=moment(5000))
    assert found.status == "incomplete" and [match.block for match in found.matches] == [None]
    assert talked(life.folder, "198.51.100.7", at=moment(20)).matches[0].block is None
