"""`natcore demo`: real programs reach a server through the gateway; the session log must equal the interfaces."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import as_file, files
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from natcore.capture import pcap
from natcore.capture.replay import Replay
from natcore.choices import Driver
from natcore.cli.report import Check, Row, read_sessions, total
from natcore.config import Link, SnatEntry
from natcore.demo.clients import Clients, Outcome
from natcore.demo.meter import Counts, Meter
from natcore.demo.namespaces import Network, inside, names
from natcore.demo.servers import Servers
from natcore.errors import InterfaceError
from natcore.gateway import Gateway
from natcore.internal.extras import extra
from natcore.internal.protocols import NAMES, protocol_name
from natcore.sinks import ParquetSink
from natcore.who.query import who

with extra("plane"):
    from pyroute2 import netns

if TYPE_CHECKING:
    from natcore.plane.plane import Plane

PREFIX = "natcore-demo-"  # then the process's number, and one of these
NAMESPACES = ("inside", "gateway", "outside")
INSIDE, GATEWAY_INSIDE = "10.0.0.2", "10.0.0.1"
GATEWAY_OUTSIDE, SERVER = "198.51.100.1", "198.51.100.2"  # RFC 5737
POOL = "198.51.100.10"

Progress = Callable[[list[Outcome], dict[str, int]], None]


@dataclass(slots=True)
class Result:
    """A demo's result. mode: "interfaces" or "memory"; reason: why not on interfaces. folder: the Parquet files."""

    mode: str
    reason: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    sessions: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    folder: Path | None = None
    namespaces: list[str] = field(default_factory=list)  # kept after the end

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)


def run(
    *,
    keep: bool = False,
    progress: Progress = lambda outcomes, counters: None,
    driver: Driver = "af_packet",
) -> Result:
    """Run on interfaces where this process may make namespaces, else replay the shipped capture in memory.

    keep: namespaces stay until the next demo, log files for ever. progress: called a few times a second
    with what ended so far and the gateway's counters. driver: as of Gateway.forward.
    """
    if os.geteuid() != 0:
        return in_memory(
            "not root, and namespaces and raw sockets need CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW", keep
        )
    clean()
    try:
        network = make_network()
    except InterfaceError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        return in_memory(f"root, but not allowed to make network namespaces: {error}", keep)
    with ExitStack() as stack:
        stack.enter_context(network)
        result = on_interfaces(network, keep, progress, driver)
        if keep:
            stack.pop_all()
            result.namespaces = [network.name(name) for name in NAMESPACES]
    return result


def clean() -> list[str]:
    """Remove the namespaces that demos left behind (killed, or kept); returns their names."""
    left = [name for name in names() if name.startswith(PREFIX) and not _is_alive(name)]
    for name in left:
        netns.remove(name)
    return left


def _is_alive(name: str) -> bool:
    return Path("/proc", name.removeprefix(PREFIX).partition("-")[0], "stat").exists()


def make_network() -> Network:
    """An inside host, the gateway's namespace and an outside server, joined by veth pairs; IPv6 is off.

    10.0.0.2 eth0 - lan0 10.0.0.1 (gateway) 198.51.100.1 wan0 - eth0 198.51.100.2. The server has no route to the
    inside: what reaches it untranslated gets no answer.
    """
    network = Network(f"{PREFIX}{os.getpid()}-", NAMESPACES)
    try:
        for name in NAMESPACES:
            for scope in ("all", "default"):
                with suppress(FileNotFoundError):  # a kernel without IPv6
                    network.setting(name, f"net/ipv6/conf/{scope}/disable_ipv6", 1)
        network.pair("inside", "eth0", "gateway", "lan0")
        network.pair("outside", "eth0", "gateway", "wan0")
        network.up("gateway", "lan0", f"{GATEWAY_INSIDE}/24")
        network.up("gateway", "wan0", f"{GATEWAY_OUTSIDE}/24")
        network.up("inside", "eth0", f"{INSIDE}/24")
        network.up("outside", "eth0", f"{SERVER}/24")
        network.route("inside", "default", via=GATEWAY_INSIDE)
    except BaseException:
        network.close()
        raise
    return network


def on_interfaces(network: Network, keep: bool, progress: Progress, driver: Driver = "af_packet") -> Result:
    """Run the programs through gateway.forward() and compare the log's rows with what the hosts' interfaces counted."""
    result = Result("interfaces")
    with _log_folder(keep) as folder, ExitStack() as stack:
        with inside(network.name("outside")):
            servers = Servers(SERVER)
        stack.callback(servers.close)
        xdp = driver == "af_xdp"
        meters = [
            stack.enter_context(Meter(network.name(name), "eth0", xdp_peer=xdp)) for name in ("inside", "outside")
        ]
        gateway = stack.enter_context(_gateway())
        log = gateway.start_session_log(ParquetSink(folder), name="demo")
        with inside(network.name("gateway")):
            plane = stack.enter_context(gateway.forward(inside="lan0", outside="wan0", driver=driver))
        for meter in meters:
            meter.start()
        _run_clients(network, gateway, plane, result, progress)
        host, server = (meter.read() for meter in meters)
        plane.stop()
        result.counters = gateway.counters()
        gateway.close()  # closes the open windows: every session has its row now
        result.folder = folder if keep else None
        result.sessions = read_sessions(folder)
        result.checks = [
            *_program_checks(result, servers),
            *_interface_checks("inside host", host, result.sessions, ("vpc", "pub")),
            *_interface_checks("outside server", server, result.sessions, ("pub", "vpc")),
            *_account_checks(result, log.counters()),
            *_asking_checks(result, folder),
        ]
    return result


def _gateway() -> Gateway:
    gateway = Gateway(
        instance="ngw-demo", vpc_id="vpc-demo", max_sessions=65_536,
        inside=Link(address=GATEWAY_INSIDE), outside=Link(address=GATEWAY_OUTSIDE),
    )  # fmt: skip
    gateway.add(SnatEntry("10.0.0.0/24", pool=POOL))
    return gateway


@contextmanager
def _log_folder(keep: bool) -> Iterator[Path]:
    if keep:
        yield Path(tempfile.mkdtemp(prefix="natcore-demo-log-"))
        return
    with tempfile.TemporaryDirectory(prefix="natcore-demo-log-") as folder:
        yield Path(folder)


def _run_clients(network: Network, gateway: Gateway, plane: Plane, result: Result, progress: Progress) -> None:
    """Run the programs in a thread of the inside host and show their progress."""
    clients = Clients(SERVER)

    def collect() -> None:
        with inside(network.name("inside")):
            for outcome in clients.run():
                result.outcomes.append(outcome)

    with ThreadPoolExecutor(1, "natcore-demo") as executor:
        running = executor.submit(collect)
        try:
            while not running.done():
                plane.wait(timeout=0.2)  # raises the error that ended the plane
                progress(result.outcomes, gateway.counters())
            running.result()
        finally:
            clients.stop()


def in_memory(reason: str, keep: bool) -> Result:
    """Replay the shipped capture and compare the log's rows with what the capture has."""
    result = Result("memory", reason)
    entry = SnatEntry("10.0.0.0/24", pool=POOL)
    with _log_folder(keep) as folder, _gateway() as gateway:
        log = gateway.start_session_log(ParquetSink(folder), name="demo")
        with as_file(files("natcore.demo") / "data" / "demo.pcap") as path:
            replay = Replay(gateway, [IPv4Network(entry.source)])
            replay.run(pcap.read(path))
        result.counters = gateway.counters()
        gateway.close()
        result.folder = folder if keep else None
        result.sessions = read_sessions(folder)
        result.checks = [
            *replay_checks(replay, result.sessions),
            *_account_checks(result, log.counters()),
            *_asking_checks(result, folder),
        ]
    return result


def replay_checks(replay: Replay, rows: list[Row]) -> list[Check]:
    """The rows' sums are those of the capture's forwarded packets, and the inside host saw its answers unaltered.

    What was dropped is named, which is a note: whether it should have been is not known here.
    """
    lost = sum(count for verdict, count in replay.verdicts.items() if verdict.is_drop)
    names = ", ".join(f"{count:,} {verdict.name}" for verdict, count in replay.verdicts.items() if verdict.is_drop)
    text = "answers reach the inside host as the capture has them"
    checks = [Check(text, not replay.altered, f"{replay.altered} altered")]
    for side, traffic in (("vpc", replay.from_vpc), ("pub", replay.from_pub)):
        logged = total(rows, f"pkts_from_{side}"), total(rows, f"bytes_from_{side}")
        text = f"packets and bytes from_{side} of the rows are those of the capture that were forwarded"
        found = f"{logged[0]:,} of {traffic.packets:,} packets, {logged[1]:,} of {traffic.bytes:,} bytes"
        checks.append(Check(text, logged == (traffic.packets, traffic.bytes), found))
    if lost:
        checks.append(Check("what the capture's gateway would have dropped is named", True, names))
    return checks


def _program_checks(result: Result, servers: Servers) -> Iterator[Check]:
    good = sum(outcome.ok for outcome in result.outcomes)
    asked = len(result.outcomes)
    yield Check("every program got what it asked for", 0 < good == asked, f"{good} of {asked}")
    found = ", ".join(sorted(servers.peers)) or "no address"
    yield Check(f"the server saw the pool's address {POOL} only", servers.peers == {POOL}, found)


def _interface_checks(host: str, counts: Counts, rows: list[Row], sides: tuple[str, str]) -> Iterator[Check]:
    """sides: what the host sent, what it received, as the rows name it."""
    for verb, side, packets, length in (
        ("sent", sides[0], counts.sent_packets, counts.sent_bytes),
        ("received", sides[1], counts.received_packets, counts.received_bytes),
    ):
        logged = total(rows, f"pkts_from_{side}"), total(rows, f"bytes_from_{side}")
        found = f"{logged[0]:,} of {packets:,} packets, {logged[1]:,} of {length:,} bytes"
        yield Check(f"the {host}'s interface {verb} what the rows have from_{side}", logged == (packets, length), found)


def _account_checks(result: Result, log: dict[str, int]) -> Iterator[Check]:
    counters, rows = result.counters, result.sessions
    enough = len(rows) >= 5 and {row["protocol"] for row in rows} == set(NAMES)
    yield Check(f"five rows or more, of {', '.join(NAMES.values())}", enough, f"{len(rows)} rows")
    accounted = sum(counters[name] for name in ("forwarded", "local", "dropped", "held"))
    text = "received = forwarded + local + dropped + held"
    yield Check(text, counters["received"] == accounted, f"{counters['received']:,} and {accounted:,}")
    lost = log["lost"] + counters["journal_lost"]
    found = f"{log['delivered']} of {log['accepted']} delivered, {lost} lost"
    yield Check("no row was lost", lost == 0 and log["accepted"] == log["delivered"], found)


def _asking_checks(result: Result, folder: Path) -> Iterator[Check]:
    """Check the answer of `who` about the longest window."""
    row = max(result.sessions, key=lambda row: int(row["end_time"]) - int(row["start_time"]), default=None)
    if row is not None:
        moment = datetime.fromtimestamp((row["start_time"] + row["end_time"]) // 2 / 1e6, UTC)
        answer = who(folder, row["nat_ip"], row["nat_port"], protocol=row["protocol"], at=moment, remote=row["pub_ip"],
                     tolerance=0.0)  # log and question have one clock  # fmt: skip
        named = f"{protocol_name(row['protocol'])} {row['nat_ip']}:{row['nat_port']}"
        text = f"natcore who {named} at {moment:%H:%M:%S} UTC names the inside host {row['pri_ip']}"
        yield Check(text, str(answer.subscriber) == row["pri_ip"], f"{answer.status}: {answer.reason}")
