"""`natcore demo`: its servers, its clients, its meters, and the whole of it on interfaces and in memory."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import netns
from scapy.layers.dns import DNS, DNSQR
from typer.testing import CliRunner

from natcore import Gateway
from natcore.cli.main import app
from natcore.cli.report import read_sessions
from natcore.demo import demo
from natcore.demo.clients import Clients
from natcore.demo.meter import Meter
from natcore.demo.namespaces import Network, inside, names
from natcore.demo.servers import Servers, dns_answer
from natcore.errors import InterfaceError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes network namespaces")


def run_demo(*arguments: str, exit_code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["demo", "--json", *arguments])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def own_namespaces() -> list[str]:
    return [name for name in names() if name.startswith(f"{demo.PREFIX}{os.getpid()}-")]


@contextmanager
def alone() -> Iterator[str]:
    """A namespace with nothing but a loopback."""
    with Network(f"{demo.PREFIX}{os.getpid()}-", ["alone"]) as network:
        yield network.name("alone")


def test_without_root_it_says_so_and_replays_the_shipped_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    told = run_demo()
    assert told["ok"] and told["mode"] == "memory" and "not root" in told["reason"]
    assert {row["protocol"] for row in told["sessions"]} == {1, 6, 17} and len(told["sessions"]) == 7
    text = CliRunner().invoke(app, ["demo"])
    assert text.exit_code == 0 and "In memory" in text.stdout and "fails" not in text.stdout


@needs_root
def test_the_rows_of_real_programs_equal_the_interface_counters(each_driver: str) -> None:
    told = run_demo("--driver", each_driver)
    assert told["ok"] and told["mode"] == "interfaces", told
    assert len(told["sessions"]) >= 5 and {row["protocol"] for row in told["sessions"]} == {1, 6, 17}
    assert {row["nat_ip"] for row in told["sessions"]} == {demo.POOL}
    assert not own_namespaces()


@needs_root
def test_what_is_kept_stays(tmp_path: Path) -> None:
    told = run_demo("--keep")
    try:
        assert sorted(own_namespaces()) == sorted(told["namespaces"]) and len(told["namespaces"]) == 3
        assert read_sessions(Path(told["folder"])) == told["sessions"]
    finally:
        shutil.rmtree(told["folder"])
        for name in told["namespaces"]:
            netns.remove(name)


@needs_root
@pytest.mark.parametrize("error", [InterfaceError("lan0: no"), KeyboardInterrupt()])
def test_a_demo_that_fails_or_is_interrupted_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Gateway, "forward", fail)
    assert CliRunner().invoke(app, ["demo"]).exit_code != 0
    assert not own_namespaces()


@needs_root
def test_a_server_that_answers_wrongly_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natcore.demo.clients.BODY", b"another page")
    monkeypatch.setattr("natcore.demo.clients.Clients._tcp_echo", lambda self: "left out")
    monkeypatch.setattr("natcore.demo.clients.Clients._udp_echo", lambda self: "left out")
    told = run_demo(exit_code=70)
    assert not told["ok"]
    assert [item["ok"] for item in told["checks"]].count(False) == 1  # the account holds all the same


@needs_root
def test_what_a_killed_demo_left_is_removed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PREFIX", f"natcore-left-{os.getpid()}-")  # no demo beside this one removes it
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    left = Network(f"{demo.PREFIX}{process}-", ["inside"])
    with left, alone() as mine:
        assert demo.clean() == [left.name("inside")]
        assert left.name("inside") not in names() and mine in names()


@needs_root
@pytest.mark.parametrize("installed", [True, False])
def test_every_program_works_as_installed_and_with_the_standard_library(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if not installed:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    with alone() as name, inside(name):
        servers = Servers("127.0.0.1")
        try:
            outcomes = list(Clients("127.0.0.1").run())
        finally:
            servers.close()
    assert len(outcomes) >= 6 and all(outcome.ok for outcome in outcomes), outcomes
    assert {outcome.protocol for outcome in outcomes} == {"TCP", "UDP", "ICMP"}
    assert servers.peers == {"127.0.0.1"}


@needs_root
def test_a_program_that_gets_no_answer_fails_with_its_reason() -> None:
    with alone() as name, inside(name):
        outcomes = list(Clients("127.0.0.1").run())
    failed = [outcome for outcome in outcomes if outcome.protocol != "ICMP"]
    assert failed and not any(outcome.ok for outcome in failed)
    assert all(outcome.detail for outcome in failed)


@needs_root
def test_a_meter_counts_ipv4_and_nothing_else() -> None:
    with Network(f"{demo.PREFIX}{os.getpid()}-", ["left", "right"]) as network:
        network.pair("left", "eth0", "right", "eth0")
        network.up("left", "eth0", "10.9.0.1/24")
        network.up("right", "eth0", "10.9.0.2/24")
        left, right = network.name("left"), network.name("right")
        with inside(right):  # a closed port would answer with ICMP
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.bind(("10.9.0.2", 9))
        with Meter(left, "eth0") as here, Meter(right, "eth0") as there, receiver:
            here.start()
            there.start()
            with inside(left), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for size in (1, 100, 1472):
                    sender.sendto(bytes(size), ("10.9.0.2", 9))
            assert here.read() == (0, 0, 3, 1573 + 3 * 28)
            assert there.read() == (3, 1573 + 3 * 28, 0, 0)
            assert here.other_frames >= 2  # the ARP that found the neighbour


def test_dns_answers_are_what_scapy_reads() -> None:
    for kind, answers in (("A", 1), ("AAAA", 0)):
        query = bytes(DNS(id=77, rd=1, qd=DNSQR(qname="www.example.com", qtype=kind)))
        answer = dns_answer(query, "198.51.100.2")
        assert answer is not None
        read = DNS(answer)
        assert (read.id, read.qr, read.rd, read.rcode, read.ancount) == (77, 1, 1, 0, answers)
        assert read.qd[0].qname == b"www.example.com."
        if answers:
            assert read.an[0].rdata == "198.51.100.2" and read.an[0].rrname == b"www.example.com."


@pytest.mark.parametrize(
    "query", [b"", bytes(11), bytes(12), bytes(DNS(qr=1, qd=DNSQR())), bytes(DNS(qd=DNSQR()))[:-1]]
)
def test_what_is_not_a_query_gets_no_answer(query: bytes) -> None:
    assert dns_answer(query, "198.51.100.2") is None
