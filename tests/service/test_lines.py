"""The lines of `natcore run`: what an event is called, how grave it is, and nothing that a reader could mistake."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from natcore.service.lines import is_journal, json_writer, level_of, text_writer

MOMENT = datetime(2026, 11, 29, 23, 5, 7, 123_456, tzinfo=UTC)


def test_a_line_has_time_level_event_and_fields() -> None:
    write = text_writer("info", journal=False, now=lambda: MOMENT.astimezone(timezone(timedelta(hours=8))))
    descriptor, text = write(
        "event", {"reason": "ports-exhausted", "subscriber": "10.0.0.5", "count": 7, "outside": None}
    )
    assert descriptor == 2
    assert text == "2026-11-29T23:05:07.123Z warning event reason=ports-exhausted subscriber=10.0.0.5 count=7\n"


def test_a_journal_gets_the_priority_instead() -> None:
    write = text_writer("info", journal=True)
    assert write("delivery", {"log": "audit", "state": "Failed", "message": "no server"})[1] == (
        '<3>delivery log=audit state=Failed message="no server"\n'
    )
    assert (
        write("log", {"level": "error", "from": "natcore.x", "message": "a\nb"})[1]
        == "<3>log level=error from=natcore.x: a b\n"
    )


def test_each_log_has_a_line_of_its_own_and_counters_that_are_zero_have_none() -> None:
    write = text_writer("info", journal=True)
    started = {"inside": ["lan0", "lan1"], "outside": "wan0", "logs": [{"name": "audit", "type": "parquet"}]}
    assert (
        write("started", started)[1]
        == "<6>started inside=lan0,lan1 outside=wan0\n<6>started-log name=audit type=parquet\n"
    )
    stopped = {"counters": {"received": 5, "local": 0}, "logs": {"audit": {"accepted": 2, "lost": 0}}}
    assert write("stopped", stopped)[1] == "<6>stopped received=5\n<6>stopped-log log=audit accepted=2 lost=0\n"


def test_foreign_text_is_one_word_of_one_line() -> None:
    write = text_writer("info", journal=True)
    text = write("event", {"reason": 'a" b=c\n<0>forged\x1b[31m'})[1]
    assert text.count("\n") == 1 and "\x1b" not in text and text.startswith('<4>event reason="a\\" b=c')


@pytest.mark.parametrize(
    ("what", "fields", "level"),
    [
        ("started", {}, "info"),
        ("state", {"plane": "degraded"}, "warning"),
        ("state", {"plane": "running"}, "info"),
        ("delivery", {"state": "Failed"}, "error"),
        ("delivery", {"state": "Success"}, "info"),
        ("event", {}, "warning"),
        ("log", {"level": "critical"}, "error"),
    ],
)
def test_what_is_how_grave(what: str, fields: dict[str, object], level: str) -> None:
    assert level_of(what, fields) == level


def test_what_is_less_grave_than_asked_for_is_not_told() -> None:
    assert text_writer("warning", journal=False)("started", {}) == (2, "")
    assert json_writer("warning")("started", {}) == (1, "")
    told = json.loads(json_writer("warning", lambda: MOMENT)("event", {"reason": "conflict"})[1])
    assert told == {"happened": "event", "at": "2026-11-29T23:05:07.123Z", "level": "warning", "reason": "conflict"}


def test_the_journal_is_known_by_its_stream(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as file:
        status = os.fstat(file.fileno())
        given = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(given, file.fileno())
        assert not is_journal({"JOURNAL_STREAM": f"{status.st_dev}:1"}, file.fileno())
        assert not is_journal({}, file.fileno())
