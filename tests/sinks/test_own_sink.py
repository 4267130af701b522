"""A sink of one's own is one method: the guide's example runs, fails as it says, and delivers every row in the end."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from natcore import DeliveryPolicy, Side
from natcore.sinks.base import CONTRACT
from support.frames import gateway, udp

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "session-log.md"


def example() -> str:
    [code] = [
        block for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S) if "class HttpSink" in block
    ]
    return str(code)


class Collector:
    """What the example connects to: it takes rows, and has answers of its own first."""

    def __init__(self, *answers: int) -> None:
        self.answers, self.rows = list(answers), []

    def __call__(self, host, timeout):
        return self

    def request(self, method, path, body):
        self.status = self.answers.pop(0) if self.answers else 200
        if self.status == 200:
            self.rows.append(json.loads(body))

    def getresponse(self):
        return nullcontext(self)

    def read(self):
        return b""


def test_the_guides_own_sink_delivers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    collector = Collector()
    with gateway() as over:
        names = {"gateway": over}
        exec(example(), names)
        names["HTTPConnection"] = collector
        for port in range(5000, 5010):
            over.translate_one(udp(sport=port), Side.INSIDE, now=1.0)
        log = names["log"]
        assert log.delivery_type == "http" and log.status == "Enabled"
        assert log.stop() == 0
    assert [row["pri_port"] for row in collector.rows] == list(range(5000, 5010))
    assert all(list(row) == list(CONTRACT) for row in collector.rows)
    assert log.counters()["delivered"] == 10 and log.delivery_status.state == "Success"


def test_what_it_raises_is_the_logs_status_and_its_rows_wait(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    collector = Collector(403)
    with gateway() as over:
        names = {"gateway": over}
        exec(example().split("log = ")[0], names)
        names["HTTPConnection"] = collector
        log = over.start_session_log(names["HttpSink"](), delivery=DeliveryPolicy(unavailable=0.05, linger=0.0))
        over.translate_one(udp(), Side.INSIDE, now=1.0)
        over.advance(now=700.0)
        assert log.wait(60.0)
        assert log.stop() == 0
    assert len(collector.rows) == 1 and not collector.answers
    assert (log.counters()["delivered"], log.counters()["lost"]) == (1, 0)


def test_a_sink_without_the_method_is_refused():
    with gateway() as over, pytest.raises(ValueError, match=r"sink must be an object with deliver\(batch\)"):
        over.start_session_log(object())
