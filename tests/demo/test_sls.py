"""`natcore demo --sls` and `natcore sls-server`: the story ends well, the server is one to test against."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

pytest.importorskip("aliyun.log", reason="the extra natcore[sls] is not installed")

from natcore.cli.main import app
from natcore.demo import sls

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


def test_the_story_has_delivery_failure_and_recovery():
    found = CliRunner().invoke(app, ["demo", "--sls", "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    states = [(stage["state"], stage["cause"]) for stage in told["stages"]]
    assert states == [
        ("Success", ""), ("Success", ""), ("Failed", "UnavaliableTarget LogStoreNotExist"),
        ("Failed", "UnavaliableTarget LogStoreNotExist"), ("Success", ""), ("Failed", "WriteQuotaExceed"),
        ("Success", ""), ("Success", ""),
    ]  # fmt: skip
    assert told["ok"] and len(told["sessions"]) == 35 == told["counters"]["delivered"]
    assert [stage["waiting"] > 0 for stage in told["stages"]] == [state == "Failed" for state, _ in states]


def test_it_is_told_in_words_too(monkeypatch):
    stage = sls.Stage("then this", "Failed", "WriteQuotaExceed", 3, 4)
    story = sls.Story("http://h", [stage], checks=[sls.Check("it holds", False, "no")])
    monkeypatch.setattr(sls, "run", lambda progress: progress(stage) or story)
    found = CliRunner().invoke(app, ["demo", "--sls"])
    assert found.exit_code == 70
    assert "then this" in found.stdout and "Failed WriteQuotaExceed" in found.stdout and "fails" in found.stdout


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "natcore.testing.sls_server", raising=False)
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    for command in (["demo", "--sls"], ["sls-server", "--port", "0"]):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 78 and "pip install 'natcore[testing]'" in found.stderr


@pytest.mark.parametrize("option", [["--key", "nocolon"], ["--logstore", "noslash"]])
def test_a_bad_option_is_refused(option):
    found = CliRunner().invoke(app, ["sls-server", "--port", "0", *option])
    assert found.exit_code == 64 and "must be two words" in found.stderr


def test_the_server_runs_until_it_is_told_to_end():
    command = [
        sys.executable,
        "-m",
        "natcore.cli.main",
        "sls-server",
        "--port",
        "0",
        "--logstore",
        "p/l",
        "--key",
        "a:b",
    ]
    for more, told in (["--json"], {"requests": 1, "logs": {"p/l": 3}}), ([], "p/l: 3 logs"):
        with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True) as server:
            line = server.stdout.readline()
            deliver(json.loads(line)["endpoint"] if more else line.split(",")[0])
            server.send_signal(signal.SIGTERM)
            said = server.stdout.read().strip()
            assert (json.loads(said) if more else said) == told
        assert server.returncode == 0


def deliver(endpoint):
    from natcore.sinks import Batch, SlsSink
    from support.log_fakes import make_records

    sink = SlsSink(endpoint, "p", "l", region="r", access_key_id="a", access_key_secret="b", create=False)
    sink.deliver(Batch("i", "v", "r", make_records(3)))
