"""Questions without a port, of an inside address, of a remote, of a span, and many at once: answers and their evidence."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from natcore import ConfigurationError, Error
from natcore.sinks import ParquetSink
from natcore.sinks._parquet_folder import Folder
from natcore.who.evidence import ask_all
from natcore.who.query import Answer, Listing, Store, talked, what, who
from natcore.who.question import Question
from natcore.who.question_file import read_questions
from natcore.who.question_log import QuestionLog, check
from support.lives import ANN, BOB, DNS, EPOCH, Log, at, label

WEB_TEXT, DNS_TEXT = "198.51.100.7", "198.51.100.53"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log").tick(0)


@pytest.fixture
def two(log: Log) -> Path:
    """Ann to the web server from port 4000 at 100 to 400; Bob from port 4001 at 300 to 500, and to the name server."""
    log.session(7, ANN, 100, [(100, 400)], 400).session(8, BOB, 300, [(300, 500)], 500, port=4001)
    log.session(9, BOB, 600, [(600, 700)], 700, port=4002, pub_ip=DNS, pub_port=53, protocol=17)
    return log.tick(20_000).write()


def hosts(answer: Answer | Listing) -> list[str]:
    return [str(match.pri_ip) for match in answer.matches]


def test_without_a_port_the_remote_tells_who_it_was(two: Path) -> None:
    answer = who(two, "203.0.113.1", at=at(200), remote=(WEB_TEXT, 443))
    assert (answer.status, hosts(answer), answer.port, answer.protocol) == ("exact", ["10.0.0.5"], None, None)
    assert who(two, "172.16.10.13", at=at(650), remote=DNS_TEXT).status == "exact"
    assert who(two, "203.0.113.1", at=at(650), remote=DNS_TEXT, protocol="tcp").status == "unused"
    assert who(two, "203.0.113.1", at=at(9000), remote=DNS_TEXT).status == "unused"
    assert who(two, "203.0.113.1", at=at(200), remote=(WEB_TEXT, 80)).status == "unused"


def test_candidates_are_ranked_by_their_traffic(two: Path) -> None:
    for seconds, first in ((250, "10.0.0.5"), (450, "10.0.0.6")):
        answer = who(two, "203.0.113.1", at=at(seconds), remote=WEB_TEXT, tolerance=120)
        assert (answer.status, hosts(answer)[0], len(answer.matches)) == ("ambiguous", first, 2)
        assert answer.subscriber is None and set(answer.subscribers) == {"10.0.0.5", "10.0.0.6"}


def test_a_gap_leaves_others_possible_where_no_port_is_asked_for(log: Log) -> None:
    """The session with the port is alone; without a port another one may be among the missing rows."""
    log.session(7, ANN, 100, [(100, 400)], 400).tick(500)
    log.number += 5
    folder = log.tick(600).tick(20_000).write()
    exact = who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(200))
    assert exact.status == "exact"
    log = Log(folder.parent / "gap").tick(0).session(7, ANN, 100, [(100, 400)], None)
    log.number += 5
    folder = log.tick(390).tick(20_000).write()
    answer = who(folder, "203.0.113.1", at=at(200), remote=WEB_TEXT)
    assert (answer.status, hosts(answer)) == ("ambiguous", ["10.0.0.5"]) and "are missing" in answer.reason


def test_an_entry_without_rows_may_have_had_a_port_that_is_not_known(tmp_path: Path) -> None:
    from natcore import DnatEntry
    from natcore.sessionlog.facts import entry_rows

    log = Log(tmp_path / "log").tick(0)
    for row in entry_rows(
        2, DnatEntry("203.0.113.1", 8443, "10.0.0.9", 443, protocol="tcp"), [(0xAC100A0D, 0xCB007101)]
    ):
        log.fact(row, 0)
    folder = log.session(7, ANN, 100, [(100, 400)], 400).tick(20_000).write()
    assert who(folder, "203.0.113.1", at=at(200), remote=WEB_TEXT).status == "ambiguous"
    assert who(folder, "203.0.113.1", at=at(200), remote=WEB_TEXT, protocol="udp").status == "unused"
    listed = talked(folder, WEB_TEXT, at=at(200))
    assert listed.status == "complete" and "DNAT entry 2" in listed.entries[0]
    assert what(folder, "10.0.0.9", at=at(200)).entries == listed.entries
    assert what(folder, "10.0.0.5", at=at(200)).entries == ()


def test_what_an_inside_address_had(two: Path) -> None:
    found = what(two, "10.0.0.6", at=at(0), until=at(1000))
    assert (found.status, [match.nat_port for match in found.matches]) == ("complete", [4001, 4002])
    assert [match.nat_port for match in what(two, "10.0.0.6", at=at(0), until=at(590)).matches] == [4001]
    assert [match.nat_port for match in what(two, "10.0.0.6", at=at(0), until=at(1000), remote=DNS_TEXT).matches] == [
        4002
    ]
    assert [match.nat_port for match in what(two, "10.0.0.6", at=at(0), until=at(1000), protocol="udp").matches] == [
        4002
    ]
    none = what(two, "10.0.0.7", at=at(0), until=at(1000))
    assert (none.status, none.matches) == ("unused", ()) and "no row is missing" in none.reason
    assert "no gateway with a log here translated it" in what(two, "192.0.2.1", at=at(5)).reason
    assert what(two, "10.0.0.6", at=at(-100), until=at(1000)).status == "incomplete"
    assert what(two, "10.0.0.6", at=at(400), until=at(30_000)).status == "incomplete"


def test_who_talked_to_a_remote(two: Path) -> None:
    found = talked(two, (WEB_TEXT, 443), at=at(0), until=at(1000))
    assert (found.status, hosts(found)) == ("complete", ["10.0.0.5", "10.0.0.6"])
    assert hosts(talked(two, DNS_TEXT, at=at(0), until=at(1000))) == ["10.0.0.6"]
    assert talked(two, (WEB_TEXT, 80), at=at(0), until=at(1000)).status == "unused"
    assert json.loads(json.dumps(found.as_dict()))["matches"][0]["pri_ip"] == "10.0.0.5"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


def retain(path: Path) -> None:
    assert [removal.file for removal in Folder(path.parent, None, 1).retain(EPOCH + 1e6)] == [path.name]


@pytest.mark.parametrize("damage", [flip, Path.unlink, retain])
def test_no_listing_is_complete_where_a_run_is_lost_with_all_its_rows(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Another gateway's log covers the time; of the lost run no number is left that could be missing."""
    Log(tmp_path / "a").tick(0).session(7, ANN, 100, [(100, 400)], 400).tick(20_000).write()
    log = Log(tmp_path / "b", "run2", instance="ngw-2").tick(0)
    log.session(8, BOB, 150, [(150, 400)], 400, port=4001).tick(500).write()
    lost, *_ = (tmp_path / "b").glob("*.parquet")
    Log(tmp_path / "b", "run3", instance="ngw-2").tick(600).tick(20_000).write()
    found = talked(tmp_path, WEB_TEXT, at=at(200))
    assert (found.status, hosts(found)) == ("complete", ["10.0.0.5", "10.0.0.6"])
    damage(lost)
    found, none = talked(tmp_path, WEB_TEXT, at=at(200)), what(tmp_path, "10.0.0.6", at=at(200))
    assert (found.status, hosts(found), none.status) == ("incomplete", ["10.0.0.5"], "incomplete")
    assert "nothing is left of run run2" in found.reason and lost.name in none.reason
    assert talked(tmp_path, WEB_TEXT, at=at(1000)).status == "unused"
    (newest,) = set((tmp_path / "b").glob("*.parquet")) - {lost}
    newest.unlink()
    assert {what(tmp_path, "10.0.0.6", at=at(seconds)).status for seconds in (200, 550, 1000, 19_000)} == {"incomplete"}


def test_a_redacted_log_s_sessions_perhaps_talked_to_a_remote(log: Log) -> None:
    folder = log.session(7, ANN, 100, [(100, 400)], 400, pub_ip=0, pub_port=0).tick(20_000).write()
    found = talked(folder, WEB_TEXT, at=at(200))
    assert (found.status, found.matches, [str(each.pri_ip) for each in found.perhaps]) == (
        "incomplete",
        (),
        ["10.0.0.5"],
    )
    assert who(folder, "203.0.113.1", at=at(200), remote=WEB_TEXT).status == "ambiguous"


def test_a_redacted_copy_puts_nothing_in_doubt(tmp_path: Path) -> None:
    """Of the same rows another log has the remotes."""
    for name, more in (("whole", {}), ("redacted", {"pub_ip": 0, "pub_port": 0})):
        log = Log(tmp_path / name).tick(0)
        log.session(7, ANN, 100, [(100, 400)], 400, **more).session(8, BOB, 100, [(100, 400)], 400, **{
            "port": 4001, "pub_ip": DNS, "pub_port": 53, **more,
        }).tick(20_000).write()  # fmt: skip
    found = talked(tmp_path, WEB_TEXT, at=at(200))
    assert (found.status, hosts(found), found.perhaps) == ("complete", ["10.0.0.5"], ())
    assert who(tmp_path, "203.0.113.1", at=at(200), remote=WEB_TEXT).status == "exact"


def test_a_span_is_asked_for_as_a_moment_is(two: Path) -> None:
    one = who(two, "203.0.113.1", 4000, protocol="tcp", at=at(10), until=at(1000))
    assert (one.status, hosts(one), one.until) == ("exact", ["10.0.0.5"], at(1000))
    assert who(two, "203.0.113.1", 4000, protocol="tcp", at=at(500), until=at(1000)).status == "unused"


@pytest.mark.parametrize(("more", "text"), [
    ({"until": at(-1)}, "until must be after"),
    ({"until": at(4000 * 86_400)}, "by 3660 days at most"),
    ({}, "port must be given unless the remote is"),
])  # fmt: skip
def test_a_question_that_asks_for_nothing_is_refused(two: Path, more: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        who(two, "203.0.113.1", at=at(0), **more)


# ---- many at once ----


def test_many_questions_are_answered_with_their_evidence(two: Path, tmp_path: Path) -> None:
    moment = at(200).isoformat()
    csv, lines = tmp_path / "asked.csv", tmp_path / "asked.jsonl"
    csv.write_text(
        "id,address,port,protocol,inside,remote,remote_port,at,until,tolerance\n"
        f"a,203.0.113.1,4000,tcp,,,,{moment},,\n"
        f"b,203.0.113.1,,,,{WEB_TEXT},443,{moment},,0\n"
        f",,,,10.0.0.6,,,{moment},{at(900).isoformat()},\n"
        f"d,,,,,{DNS_TEXT},,{moment},,\n"
    )
    asked = read_questions(csv)
    assert [name for name, _ in asked] == ["a", "b", "3", "d"]
    assert [question.subject for _, question in asked] == ["endpoint", "address", "inside", "remote"]
    evidence, answers = ask_all(asked, Store(two), now=at(30_000))
    assert [answer.status for answer in answers] == ["exact", "exact", "complete", "unused"]
    evidence.write(tmp_path / "evidence.json")
    told = json.loads((tmp_path / "evidence.json").read_text())
    assert told["asked_at"] == "2023-11-15T06:33:20Z" and told["natcore"] and told["format"] == "natcore evidence 1"
    first = told["answers"][0]
    assert first["id"] == "a" and first["question"]["port"] == 4000 and first["answer"]["tolerance"] == 2.0
    assert [row["kind"] for row in first["rows"]] == ["window", "end"]  # that suffices
    for each in told["answers"]:
        assert each["parts"] and {row["part"] for row in each["rows"]} <= set(each["parts"])
    assert told["parts"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in two.glob("*.parquet")}
    lines.write_text("\n".join(json.dumps(each["question"]) for each in told["answers"]))
    assert [question.sought for _, question in read_questions(lines)] == [question.sought for _, question in asked]


def test_questions_of_a_folder_are_answered_several_at_once(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "at_once", 2)
    asked = [
        (str(port), Question("203.0.113.1", port, "tcp", at(150), None, 0.0, None)) for port in (4000, 4001, 4002, 4003)
    ]
    expected = [
        who(two, "203.0.113.1", port, protocol="tcp", at=at(150), tolerance=0).status for port in range(4000, 4004)
    ]
    both, real, calls = threading.Barrier(2), Store.parts, list[int]()

    def parts(self: Store, start: int | None = None, end: int | None = None) -> Any:
        if len(calls) < 2:
            calls.append(len(calls))
            both.wait(60)  # one alone does not pass
        return real(self, start, end)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "parts", parts)
        _, answers = ask_all(asked, Store(two))
    assert [answer.status for answer in answers] == expected
    calls.clear()

    def failing(self: Store, start: int | None = None, end: int | None = None) -> Any:
        calls.append(len(calls))
        raise Error("no answer")

    monkeypatch.setattr(Store, "parts", failing)
    with pytest.raises(Error, match="no answer"):
        ask_all(asked * 1000, Store(two))
    assert len(calls) < 4000  # the others are not asked any more


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.csv", "address,at\n203.0.113.1,2026-01-01", "question 1: at must be a time with its zone"),
    ("a.csv", "address,at,port,protocol\n203.0.113.1,2026-01-01T00:00:00Z,x,tcp", "port must be a number, got 'x'"),
    ("a.csv", "adress,at\n203.0.113.1,2026-01-01T00:00:00Z", "question 1: fields must be some of id, address"),
    ("a.csv", "address,at\n203.0.113.1,2026-01-01T00:00:00Z,3", "as many fields as the heading"),
    ("a.csv", "port,at\n1,2026-01-01T00:00:00Z", "one of address, inside and remote"),
    ("a.csv", "", "no question"),
    ("a.csv", "address,at,port,protocol\n203.0.113.1,2026-01-01T00:00:00Z,²,tcp", "port must be a number, got '²'"),
    ("a.csv", "address,at,port,protocol\n203.0.113.1,2026-01-01T00:00:00Z,1,²", "question 1: protocol must be"),
    ("a.csv", f"remote,at,remote_port\n203.0.113.1,2026-01-01T00:00:00Z,{'9' * 5000}", "remote_port must be a number"),
    ("a.csv", f"address,at\n{'x' * 200_000},2026-01-01T00:00:00Z", "line 2 must be CSV: field larger than"),
    ("a.csv", "inside,at\n10.0.0.5,0001-01-01T00:00:00+23:59", "question 1: at must be in a year from 2 to 9998"),
    ("a.csv", "inside,at,until\n10.0.0.5,9998-01-01T00:00:00Z,9999-01-01T00:00:00Z", "until must be in a year from 2"),
    ("a.jsonl", f'{{"inside": "10.0.0.5", "at": "2026-01-01T00:00:00Z", "tolerance": {"9" * 400}}}', "tolerance must be"),
    ("a.jsonl", "{}\n", "a question must have at"),
    ("a.jsonl", "[1]", "must be a JSON object"),
    ("a.jsonl", "{", "must be a JSON object"),
    ("a.txt", "x", "a .csv or .jsonl file"),
])  # fmt: skip
def test_a_file_of_questions_is_checked(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_questions(tmp_path / name)


def test_a_question_log_shows_a_line_that_was_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "private" / "asked.jsonl"
    log = QuestionLog(path)
    log.add([{"question": 1}, {"question": 2}], now=at(5))
    with path.open("ab") as file:
        file.write(b'{"torn')
    log.add([{"question": 3}], now=at(6) + timedelta(milliseconds=5))
    lines = path.read_bytes().splitlines()
    assert len(lines) == 4 and json.loads(lines[3])["time"] == "2023-11-14T22:13:26.005Z"
    assert json.loads(lines[0])["before"] == "" and path.stat().st_mode & 0o777 == 0o600
    assert json.loads(lines[1])["before"] == hashlib.sha256(lines[0]).hexdigest()
    with pytest.raises(ConfigurationError, match="line 3 does not continue"):
        check(path)
    path.write_bytes(b"\n".join(lines[:2]) + b"\n")
    assert check(path) == 2
    path.write_bytes(lines[1] + b"\n")
    with pytest.raises(ConfigurationError, match="line 1 does not"):
        check(path)
    assert EPOCH == 1_700_000_000


def test_a_run_that_retention_removed_is_lost_from_its_first_file_until_the_next_run(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, keep_days=0, roll_bytes=1, wall=lambda: EPOCH + 1e6)
    log = Log(tmp_path, run="run1")
    for seconds in (0, 4000, 8000):
        sink.deliver(log.tick(seconds).batch())
    sink.deliver(Log(tmp_path, run="run2").tick(20_000).batch())
    store = Store(tmp_path)
    assert len(store.removals()) == 3 and {part.footer.run for part in store.parts()} == {"run2"}
    (lost,) = store.lost()
    first = store.removals()[0]
    assert lost.run == "run1" and first.file in lost.gap.reason and "was removed by keep_days" in lost.gap.reason
    assert (lost.gap.start, lost.gap.end) == (label(0), label(20_000))
