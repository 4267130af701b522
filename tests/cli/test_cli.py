"""The command line, as a user meets it: run, check, replay, clean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.dom.minidom
from collections import Counter
from contextlib import ExitStack
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from natcore import SnatEntry
from natcore.capture import pcap
from natcore.cli.report import read_sessions, total
from natcore.demo import demo
from natcore.demo.clients import Clients
from natcore.demo.meter import Meter
from natcore.demo.namespaces import inside
from natcore.demo.servers import Servers
from support.command_line import call, call_json
from support.service import FakePlane, serve

CAPTURE = str(files("natcore.demo") / "data" / "demo.pcap")
INSIDE = "10.0.0."
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes network namespaces")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(
        f"""
        [gateway]
        instance = "ngw-cli"
        max_sessions = 1000
        [timeouts]
        udp = 30
        [[snat]]
        source = "10.0.0.0/24"
        pool = "198.51.100.10"
        [[log]]
        sink = "parquet"
        folder = "{tmp_path / "log"}"
        name = "audit"
        [plane]
        inside = "lan0"
        outside = "wan0"
        """
    )
    return path


def test_version() -> None:
    assert call("--version") == f"natcore {version('natcore')}\n"


def test_asking_the_log_does_not_wait_for_what_forwards_packets(tmp_path: Path) -> None:
    """pyroute2 and the demo took half of the time of a cold question, pandas a third of the rest."""
    script = "import sys; del sys.argv[1]; from natcore.cli.main import main\ntry: main()\nfinally: print(*sys.modules)"
    asked = ["who", "203.0.113.1:1024", "--protocol", "tcp", "--at", "2026-11-20T12:03:17Z", "--log", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", script, "", *asked], capture_output=True, text=True)
    assert done.stdout.startswith("gap: the log has no rows"), done
    loaded = set(done.stdout.split())
    assert {"natcore.who.query", "duckdb"} <= loaded
    assert (
        not {"pyroute2", "rich.table", "natcore.demo.demo", "natcore.plane.links", "natcore.testing", "pandas"} & loaded
    )


def test_the_command_line_by_itself_loads_no_library_that_starts_threads() -> None:
    """`natcore run` gives up its rights before it has a second thread, which would keep them."""
    script = (
        "import os, sys; import natcore.cli.main; from natcore.service import run, succession\n"
        "print(len(os.listdir('/proc/self/task')), *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    )
    threads, *loaded = done.stdout.split()
    assert threads == "1", done
    assert not {"pyarrow", "duckdb"} & set(loaded)


def test_check_says_what_a_good_file_makes_and_opens_nothing(file: Path, tmp_path: Path) -> None:
    text = call("check", file)
    for part in ("is good", "10.0.0.0/24 to 198.51.100.10", "lan0 (not on this machine now)", str(tmp_path / "log")):
        assert part in text
    assert not (tmp_path / "log").exists()
    told = call_json("check", file)
    assert told["ok"] and "RFC 4787" in told["warnings"][0]


def test_check_names_file_key_value_and_what_is_expected(file: Path) -> None:
    file.write_text(file.read_text().replace('"198.51.100.10"', '"198.51.100.300"'))
    error = call("check", file, exit_code=78)
    for part in (str(file), "snat[0].pool", "'198.51.100.300'", "must be an IPv4 address"):
        assert part in error
    told = call_json("check", file, exit_code=78)
    assert (told["file"], told["key"], told["value"]) == (str(file), "snat[0].pool", "198.51.100.300")


def test_check_and_run_tell_every_error_with_its_line(file: Path) -> None:
    text = file.read_text().replace("udp = 30", "udp = 0").replace('"198.51.100.10"', "5").replace("lan0", "wan0")
    file.write_text(text)
    numbers = [
        next(n for n, line in enumerate(text.splitlines(), 1) if each in line) for each in ("udp", "pool", "outside")
    ]
    for command in ("check", "run"):
        lines = call(command, file, exit_code=78).splitlines()
        assert [line.split(": ")[1] for line in lines] == [f"{file}:{number}" for number in numbers]
        told = call_json(command, file, exit_code=78)
        assert [(each["line"], each["key"]) for each in told["errors"]] == list(
            zip(numbers, ("timeouts.udp", "snat[0].pool", "plane.outside"), strict=True)
        )


def captured() -> dict[tuple[int, str, int, str, int], Counter[str]]:
    """Packets and bytes of each session in the shipped capture, as scapy sees it: the session's key is the inside's."""
    sessions: dict[tuple[int, str, int, str, int], Counter[str]] = {}
    for packet in pcap.read(Path(CAPTURE)):
        frame = Ether(packet.frame)
        if IP not in frame:
            continue
        out = frame[IP].src.startswith(INSIDE)
        inside, remote = (frame[IP].src, frame[IP].dst) if out else (frame[IP].dst, frame[IP].src)
        layer = frame[IP].payload
        ports = (layer.id, 0) if ICMP in frame else (layer.sport, layer.dport)
        if ICMP not in frame and not out:
            ports = ports[::-1]
        counts = sessions.setdefault((frame[IP].proto, inside, ports[0], remote, ports[1]), Counter())
        side = "vpc" if out else "pub"
        counts[f"pkts_from_{side}"] += 1
        counts[f"bytes_from_{side}"] += frame[IP].len
    return sessions


def rows_by_key(rows: list[dict[str, Any]]) -> dict[tuple[int, str, int, str, int], Counter[str]]:
    sides = ("pkts_from_vpc", "bytes_from_vpc", "pkts_from_pub", "bytes_from_pub")
    return {
        (row["protocol"], row["pri_ip"], row["pri_port"], row["pub_ip"], row["pub_port"]): Counter(
            {name: row[name] for name in sides}
        )
        for row in rows
    }


def test_replay_logs_exactly_the_sessions_of_the_capture(tmp_path: Path) -> None:
    outside = tmp_path / "outside.pcap"
    told = call_json(
        "replay", CAPTURE, "--snat", "10.0.0.0/24=203.0.113.1,203.0.113.2", "--write", outside, "--seed", 7
    )
    assert told["ok"] and told["skipped"] == {"ARP": 1}
    assert rows_by_key(told["sessions"]) == captured()
    assert {row["nat_ip"] for row in told["sessions"]} <= {"203.0.113.1", "203.0.113.2"}
    assert told["sessions"][0]["start_time"] == 1_767_225_600_006_000  # the capture's own time
    for packet in pcap.read(outside):
        frame = Ether(packet.frame)
        assert not {frame[IP].src, frame[IP].dst} & {"10.0.0.21", "10.0.0.22"}
        layer = next(frame[kind] for kind in (TCP, UDP, ICMP) if kind in frame)
        sums = frame[IP].chksum, layer.chksum
        del frame[IP].chksum, layer.chksum
        again = Ether(bytes(frame))
        assert sums == (again[IP].chksum, again[type(layer)].chksum)


def test_replay_is_repeatable_with_a_seed_and_keeps_its_log(tmp_path: Path) -> None:
    first, second = (
        call_json("replay", CAPTURE, "--snat", "10.0.0.0/24=203.0.113.1", "--seed", 7, "--log", tmp_path / name)
        for name in ("first", "second")
    )
    assert first == second
    assert read_sessions(tmp_path / "first") == first["sessions"]
    assert "Session log" in call("replay", CAPTURE, "--snat", "10.0.0.0/24=203.0.113.1")


def test_replay_counts_what_a_gateway_would_not_see_and_what_it_drops(tmp_path: Path) -> None:
    def ip(source: str, destination: str, **fields: Any) -> bytes:
        return bytes(Ether() / IP(src=source, dst=destination, **fields) / UDP(sport=1, dport=2) / Raw(b"x"))

    path = tmp_path / "mixed.pcap"
    mixed = [
        ip("10.0.0.1", "10.0.0.2"), ip("192.0.2.1", "192.0.2.2"), ip("192.0.2.1", "10.0.0.2"),
        ip("10.0.0.1", "192.0.2.1", ttl=1), ip("10.0.0.1", "192.0.2.1", chksum=1),
        bytes(Ether(type=0x86DD) / Raw(bytes(60))),
    ]  # fmt: skip
    pcap.write(path, [pcap.Packet(n * 1_000_000, frame) for n, frame in enumerate(mixed)])
    told = call_json("replay", path, "--snat", "10.0.0.0/24=203.0.113.1")
    assert told["skipped"] == {
        "between inside hosts": 1, "of other hosts": 1, "answer to nothing in the capture": 1, "IPv6": 1
    }  # fmt: skip
    assert told["verdicts"] == {"DROP_TTL": 1, "DROP_CHECKSUM": 1}
    assert told["sessions"] == []


def test_replay_compares_configurations(tmp_path: Path) -> None:
    files = []
    for name, ports in (("a.toml", ""), ("b.toml", "[policy]\nport_ranges = [[2000, 2001]]\nhold_down = 0\n")):
        files += ["--config", tmp_path / name]
        (tmp_path / name).write_text(f'{ports}[[snat]]\nsource = "10.0.0.0/24"\npool = "203.0.113.1"\n')
    picture = tmp_path / "x.svg"
    told = call_json("replay", CAPTURE, *files, "--picture", picture)
    wide, narrow = told["configurations"]
    assert (wide["sessions"], wide["refusals"], wide["log"]["rows"]) == (7, {}, 7)
    assert narrow["refusals"]["ports-exhausted"] > 0 and narrow["forecast"]["state"] == "ran-out"
    assert sum(each["frames"] for each in narrow["changed"]) > 0 and not wide["changed"]
    drawn = xml.dom.minidom.parse(str(picture))
    assert len(drawn.getElementsByTagName("polyline")) >= 4 and "a.toml" in picture.read_text()
    shown = call("replay", CAPTURE, *files)
    assert "ports-exhausted" in shown and "frames otherwise than under" in shown


def test_replay_annotates_the_capture(tmp_path: Path) -> None:
    annotated = tmp_path / "x.pcapng"
    call("replay", CAPTURE, "--snat", "10.0.0.0/24=203.0.113.1", "--annotate", annotated)
    found = list(pcap.read(annotated))
    captured = [packet for packet in found if packet.interface != "outside"]
    assert [packet.frame for packet in captured] == [packet.frame for packet in pcap.read(Path(CAPTURE))]
    assert captured[0].comment == "skipped: ARP"
    assert {packet.comment for packet in found if packet.interface == "outside"} == {
        "OUTBOUND: translated, inside to outside", "INBOUND: translated, outside to inside"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["replay", CAPTURE], "give either --snat or --config", 64),
        (["replay", CAPTURE, "--config", "x.toml", "--write", "x"], "are for --snat", 64),
        (["replay", CAPTURE, "--config", "x.toml", "--picture", "x.png"], "ends in .svg", 64),
        (["replay", CAPTURE, "--snat", "10.0.0.0/24=203.0.113.1", "--gateway-mac", "x"], "gateway_macs must be", 64),
        (["replay", CAPTURE, "--snat", "10.0.0.0/24"], "--snat must be PREFIX=POOL", 64),
        (["replay", CAPTURE, "--snat", "10.0.0.1/24=203.0.113.1"], "must be an IPv4 prefix", 64),
        (["replay", __file__, "--snat", "10.0.0.0/24=203.0.113.1"], "not a pcap or pcapng capture", 70),
        (["replay", "/none.pcap", "--snat", "10.0.0.0/24=203.0.113.1"], "No such file", 64),
        (["check", "/none.toml"], "/none.toml: cannot be read", 78),
        (["run", "/none.toml"], "/none.toml: cannot be read", 78),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, status: int) -> None:
    error = call(*arguments, exit_code=status)
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_run_in_order(file: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    plane = FakePlane(lambda: os.kill(os.getpid(), signal.SIGUSR1), lambda: os.kill(os.getpid(), number))
    told = serve(file, monkeypatch, plane)
    assert [what for what, _ in told] == ["started", "counters", "stopped"]
    started, counters, stopped = (fields for _, fields in told)
    assert started["inside"] == "lan0" and started["logs"][0]["folder"] == str(file.parent / "log")
    assert counters["left_to_kernel"] == 3 and "received" in counters
    audit = stopped["logs"]["audit"]  # no session, but what was in force
    assert audit["accepted"] == audit["delivered"] > 0
    assert plane.state == "stopped" and signal.getsignal(number) == before


def test_run_tells_changes_of_state_and_ends_with_its_plane(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = FakePlane(lambda: None, lambda: setattr(plane, "state", "degraded"), lambda: plane.stop())
    told = serve(file, monkeypatch, plane)
    assert [what for what, _ in told] == ["started", "state", "state", "stopped"]
    assert told[1][1] == {"plane": "degraded"}


def test_what_ends_a_plane_ends_run_with_the_gateway_closed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("worker 0 failed")

    with pytest.raises(RuntimeError, match="worker 0 failed"):
        serve(file, monkeypatch, FakePlane(fail))


def test_run_needs_interfaces_in_its_file(file: Path) -> None:
    file.write_text(file.read_text().partition("[plane]")[0])
    assert "plane: missing" in call("run", file, exit_code=78)


@needs_root
def test_run_names_the_interface_that_is_not_there(file: Path) -> None:
    file.write_text(file.read_text().replace('"lan0"', '"natcore-none"'))
    told = call_json("run", file, exit_code=75)
    assert told["error"].startswith("inside='natcore-none': no such interface")


@needs_root
def test_run_forwards_and_a_sigterm_loses_no_record(file: Path, tmp_path: Path) -> None:
    with demo.make_network() as network, ExitStack() as stack:
        with inside(network.name("outside")):
            servers = Servers(demo.SERVER)
        command = [sys.executable, "-m", "natcore.cli.main", "run", str(file), "--json"]
        running = network.popen("gateway", command, stdout=subprocess.PIPE, text=True)
        try:
            assert json.loads(running.stdout.readline())["happened"] == "started"
            host, _ = (stack.enter_context(Meter(network.name(name), "eth0")) for name in ("inside", "outside"))
            host.start()
            with inside(network.name("inside")):
                outcomes = list(Clients(demo.SERVER).run())
            carried = host.read()
            running.send_signal(signal.SIGUSR1)
            counters = json.loads(running.stdout.readline())
            running.send_signal(signal.SIGTERM)
            stopped = json.loads(running.communicate(timeout=60)[0])
        finally:
            servers.close()
    assert all(outcome.ok for outcome in outcomes), outcomes
    assert running.returncode == 0
    assert counters["happened"] == "counters" and counters["forwarded"] > 100
    log, rows = stopped["logs"]["audit"], read_sessions(tmp_path / "log")
    assert log["accepted"] == log["delivered"] and log["lost"] == 0
    columns = ("pkts_from_pub", "bytes_from_pub", "pkts_from_vpc", "bytes_from_vpc")
    assert tuple(total(rows, column) for column in columns) == carried


def test_an_entry_is_what_snat_says() -> None:
    from natcore.cli.main import _parse_snat

    assert _parse_snat("10.0.0.0/8=1.2.3.4,1.2.3.8-1.2.3.9") == SnatEntry("10.0.0.0/8", ["1.2.3.4", "1.2.3.8-1.2.3.9"])
