"""The commands that ask a running gateway: what they print, their JSON, and their exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from typer.testing import CliRunner

from natcore import Gateway, Side, SnatEntry
from natcore.cli.main import app
from natcore.sinks import MemorySink
from support.command_line import call, call_json
from support.control import folder  # noqa: F401
from support.frames import EIP, HOST, REMOTE, tcp, udp


@pytest.fixture
def running(folder: Path) -> Iterator[tuple[Gateway, str]]:  # noqa: F811
    """A gateway in memory, and what --instance names it by."""
    with Gateway(instance="ngw-1", seed=7, max_sessions=1000) as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", pool=EIP, name="office"))
        gateway.translate_one(udp(HOST, 5000, REMOTE, 53), Side.INSIDE, now=10.0)
        gateway.translate_one(tcp("S", "10.0.0.6", 6000, REMOTE, 443), Side.INSIDE, now=10.0)
        gateway.serve_control(folder / "ngw-1.sock")
        yield gateway, str(folder / "ngw-1.sock")


def json_lines(*arguments: object, exit_code: int = 0) -> list[Any]:
    return [json.loads(line) for line in call(*arguments, "--json", exit_code=exit_code).splitlines()]


def test_sessions_are_a_table_with_stable_columns(running: tuple[Gateway, str]) -> None:
    gateway, instance = running
    heading, row = call("sessions", "--subscriber", HOST, "--instance", instance).splitlines()
    assert heading.split() == [
        "proto", "inside", "outside", "remote", "state", "entry", "pkts-out", "bytes-out", "pkts-in", "bytes-in", "age", "idle",
        "expires",
    ]  # fmt: skip
    port = int(gateway.sessions()["outside_port"][0])
    assert row.split() == [
        "udp", f"{HOST}:5000", f"{EIP}:{port}", f"{REMOTE}:53", "-", "office", "1", "33", "0", "0", "0", "0", "300",
    ]  # fmt: skip


def test_json_is_an_object_a_line(running: tuple[Gateway, str]) -> None:
    _, instance = running
    rows = json_lines("sessions", "--sort", "subscriber", "--instance", instance)
    assert [row["inside_ip"] for row in rows] == [HOST, "10.0.0.6"]
    assert len(json_lines("sessions", "--limit", 1, "--instance", instance)) == 1
    assert [row["sessions"] for row in json_lines("mappings", "--instance", instance)] == [1, 1]
    assert {row["protocol"] for row in json_lines("ports", "--instance", instance)} == {"tcp", "udp", "icmp"}


def test_no_gateway_is_exit_status_75(folder: Path) -> None:  # noqa: F811
    for command in ("status", "sessions", "mappings", "ports", "top", "watch"):
        assert "no gateway serves there" in call(command, "--instance", folder / "none.sock", exit_code=75)
    told = call_json("status", "--instance", folder / "none.sock", exit_code=75)
    assert (told["ok"], told["code"]) == (False, 75)
    assert "not ready after 0 seconds" in call(
        "status", "--wait-ready", "--timeout", 0, "--instance", folder / "none.sock", exit_code=75
    )


def test_a_wrong_criterion_is_exit_status_64(running: tuple[Gateway, str]) -> None:
    _, instance = running
    assert "subscriber must be an address" in call(
        "sessions", "--subscriber", "x", "--instance", instance, exit_code=64
    )
    assert "end: give a criterion, or all" in call("end", "--instance", instance, exit_code=64)


def test_status_in_words_and_as_json(running: tuple[Gateway, str]) -> None:
    gateway, instance = running
    gateway.start_session_log(MemorySink(), name="audit")
    text = call("status", "--instance", instance)
    assert text.startswith("ngw-1: stopped, natcore 0.1.0, process ")
    assert "sessions 2 of 1,000" in text and "session log audit to memory: Enabled" in text
    found = call_json("status", "--instance", instance)
    assert (found["instance"], found["sessions"]) == ("ngw-1", 2)
    call("status", "--active", "--instance", instance)  # none of a pair


def test_a_table_that_is_refused_has_no_heading(running: tuple[Gateway, str]) -> None:
    _, instance = running
    result = CliRunner().invoke(app, ["blocks", "--instance", instance])
    assert (result.exit_code, result.stdout) == (70, "") and "the gateway has no port blocks" in result.stderr


def test_metrics_are_what_a_scraper_reads(running: tuple[Gateway, str]) -> None:
    _, instance = running
    text = call("metrics", "--instance", instance)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["natcore_sessions"].samples[0].value == 2 and text.endswith("# EOF\n")
    rows = {row["metric"]: row for row in json_lines("metrics", "--instance", instance)}
    assert rows["natcore_sessions"] == {"metric": "natcore_sessions", "labels": {}, "value": 2.0}


def test_end_counts_first_and_then_ends(running: tuple[Gateway, str]) -> None:
    gateway, instance = running
    assert call("end", "--subscriber", HOST, "--dry-run", "--instance", instance) == "would end 1 session\n"
    assert len(gateway.sessions()) == 2
    assert call("end", "--subscriber", HOST, "--instance", instance) == "ended 1 session\n"
    assert call_json("end", "--all", "--instance", instance) == {"sessions": 1, "ended": True}
    assert len(gateway.sessions()) == 0


def test_top_without_a_terminal_prints_a_table_a_look(running: tuple[Gateway, str]) -> None:
    _, instance = running
    text = call("top", "--interval", 0.1, "--samples", 2, "--sort", "sessions", "--instance", instance)
    assert text.count("subscribers by sessions") == 2 and text.count(HOST) == 2
    (row,) = json_lines(
        "top", "--interval", 0.1, "--samples", 1, "--limit", 1, "--sort", "ports", "--instance", instance
    )
    assert len(row["subscribers"]) == 1


def test_who_live(running: tuple[Gateway, str]) -> None:
    gateway, instance = running
    port = int(gateway.find_sessions(subscriber=HOST).__next__()["outside_port"][0])
    text = call("who", f"{EIP}:{port}", "--live", "--instance", instance)
    assert text == f"exact: {HOST} has it now, from its udp port 5000, in 1 session\n"
    assert call_json("who", f"{EIP}:{port}", "--live", "--protocol", "udp", "--instance", instance)["status"] == "exact"
    assert "unused: no one has it now" in call("who", f"{EIP}:1", "--live", "--instance", instance, exit_code=5)
    assert "--at, --log" in call("who", f"{EIP}:1", "--live", "--log", "x", "--instance", instance, exit_code=64)


def test_explain_live(running: tuple[Gateway, str]) -> None:
    _, instance = running
    frame = udp(HOST, 5000, REMOTE, 53).hex()
    text = call("explain", frame, "--live", "--instance", instance)
    assert "OUTBOUND" in text and "asked: the running gateway ngw-1" in text
    assert call_json("explain", frame, "--live", "--instance", instance)["verdict"] == "OUTBOUND"
    assert "HEX must be pairs" in call("explain", "zz", "--live", "--instance", instance, exit_code=64)
    assert "give the gateway's file, or --live" in call("explain", exit_code=64)


def test_session_logs(running: tuple[Gateway, str]) -> None:
    gateway, instance = running
    assert call("log", "list", "--instance", instance) == "the gateway has no session log\n"
    gateway.start_session_log(MemorySink(), name="audit")
    assert call("log", "list", "--instance", instance).startswith("audit: Enabled, ")
    assert call("log", "retry", "audit", "--instance", instance).startswith("audit: ")
    assert call("log", "stop", "audit", "--instance", instance).startswith("audit: Disabled")
    assert "another program than `natcore run`" in call("log", "start", "audit", "--instance", instance, exit_code=70)
    assert "name must be one that runs" in call("log", "stop", "audit", "--instance", instance, exit_code=64)


def test_watch_refuses_what_it_does_not_know(running: tuple[Gateway, str]) -> None:
    _, instance = running
    assert "WHAT must be events, sessions or drops" in call("watch", "birds", "--instance", instance, exit_code=64)
    assert "takes no criteria" in call("watch", "events", "--protocol", "tcp", "--instance", instance, exit_code=64)


def test_the_one_gateway_needs_no_name_and_of_several_one_is_named(
    running: tuple[Gateway, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, instance = running
    monkeypatch.setattr("natcore.control.socket_file.FOLDER", Path(instance).parent)
    assert "ngw-1" in call("status")
    assert "ngw-1" in call("status", "--instance", "ngw-1")
    with gateway.serve_control(Path(instance).parent / "ngw-2.sock"):
        assert "--instance must be one of ngw-1, ngw-2" in call("status", exit_code=64)
