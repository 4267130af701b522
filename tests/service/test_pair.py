"""Two `natcore run` as a pair: sessions go on when the active one is killed, steps down or is cut off; never both translate."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from natcore.demo.namespaces import Network
from natcore.peer.channel import Credentials
from natcore.plane import kernel_bypass
from support.certificates import made
from support.netns import SERVER, at, needs_root, ping, until
from support.pairs import ADDRESSES, GATEWAYS, LEASE, START_SECONDS, Churn, Echo, Lab, lab

IPV4, SO_RCVBUFFORCE = 0x0800, 33
pytestmark = [needs_root, pytest.mark.timeout(900)]  # processes start slowly on a busy machine


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make certificates")
    return made(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def more(request: pytest.FixtureRequest) -> str:
    """What is at the end of both files, in [peer] at first."""
    return str(getattr(request, "param", ""))


@pytest.fixture
def lease(request: pytest.FixtureRequest) -> float:
    return float(getattr(request, "param", LEASE))


@pytest.fixture
def witnessed(tmp_path: Path, credentials: Credentials, more: str, lease: float) -> Iterator[Lab]:
    """A pair with a witness, of which a is active and b follows."""
    with lab(tmp_path, credentials, more=more, lease=lease) as made_lab:
        for name in ("w", *GATEWAYS):
            made_lab.start(name)
        until(lambda: "active" in (made_lab.role("a"), made_lab.role("b")), START_SECONDS)
        if made_lab.role("a") != "active":  # it is preferred, and came too late on a busy machine
            until(lambda: made_lab.follows("a"), START_SECONDS)
            assert made_lab.ask("b", "standby")["status"] == 0
        until(lambda: made_lab.follows("b"), START_SECONDS)
        assert ping(made_lab.network, "in", SERVER)
        yield made_lab


def test_connections_go_on_when_the_active_gateway_is_killed(witnessed: Lab) -> None:
    network = witnessed.network
    flows = [Echo(network, tcp=True), Echo(network, tcp=False)]
    assert all(flow.goes_on() for flow in flows)
    with at(network, "b"):
        assert kernel_bypass.forwarding_nothing() == ["lan0", "wan0"]
        until(lambda: kernel_bypass.installed() == ["lan0", "wan0"])  # its plane is open, and waits
    assert witnessed.ask("b", "sessions")["status"] == 75  # it names the gateway to ask
    time.sleep(0.5)
    for flow in flows:
        flow.longest = 0.0
    witnessed.kill("a")
    assert all(flow.goes_on() for flow in flows), [flow.failed for flow in flows]
    print("seconds without an answer:", [round(flow.longest, 3) for flow in flows])
    took_over = [line for line in witnessed.told("b", "role") if line["role"] == "active"][-1]
    assert took_over["sessions"] >= 2
    moments = [took_over[name] for name in ("asked", "chosen", "image", "forwards")]
    assert moments == sorted(moments)
    witnessed.start("a")
    until(lambda: witnessed.follows("a"), START_SECONDS)
    status = witnessed.ask("b", "status")
    assert (status["peer"]["role"], status["peer"]["may_translate"], status["state"]) == ("active", True, "running")
    assert status["peer"]["lag_seconds"] < 10
    assert flows[0].goes_on()
    assert [flow.finish() for flow in flows] == ["", ""]


@pytest.mark.parametrize("more", ['defer = "ack"\ndefer_wait = 1.0\n'], indirect=True)
def test_every_connection_that_was_answered_goes_on_however_young_it_is(witnessed: Lab) -> None:
    churn = Churn(witnessed.network)
    until(lambda: len(churn.answered) > 200, START_SECONDS)
    counters = witnessed.ask("a", "status")["planes"][0]["counters"]
    assert counters["deferred_acknowledged"] > 200
    waits = {name: counters[f"deferred_{name}"] for name in ("late", "alone", "overflow")}
    before = len(churn.answered)
    witnessed.kill("a")
    until(lambda: witnessed.role("b") == "active")
    until(lambda: len(churn.answered) > before + 20)
    count, failed = churn.finish()
    mean = counters["deferred_ms"] / counters["deferred_acknowledged"]
    print(f"{count} connections, {before} before the kill; a first packet waited {mean:.1f} ms, {waits}")
    assert failed == []


@pytest.mark.parametrize("more", ['[state]\npath = "NAME.state"\nsave_every = 1\n'], indirect=True)
def test_after_both_have_died_the_one_with_the_newer_state_goes_on_with_it(witnessed: Lab) -> None:
    """a is preferred, and b was active last: a's own state is gone since it has followed b."""
    flow = Echo(witnessed.network, tcp=True)
    assert flow.goes_on()
    states = {name: witnessed.folder / f"{name}.state" for name in GATEWAYS}
    until(states["a"].exists)
    assert witnessed.ask("b", "activate")["status"] == 0
    until(lambda: witnessed.follows("a"))
    until(lambda: not states["a"].exists() and states["b"].exists())
    assert flow.goes_on()
    written = states["b"].stat().st_mtime
    until(lambda: states["b"].stat().st_mtime != written)
    for name in GATEWAYS:
        witnessed.kill(name)
    told = len(witnessed.told("b", "role"))
    for name in GATEWAYS:
        witnessed.start(name)
    until(lambda: "active" in [line["role"] for line in witnessed.told("b", "role")[told:]], START_SECONDS)
    assert witnessed.told("b", "restored")[-1]["sessions"] >= 1
    until(lambda: witnessed.follows("a"), START_SECONDS)
    assert witnessed.told("a", "restored") == []
    assert flow.goes_on()
    assert flow.finish() == ""


def test_a_switch_by_command_loses_nothing_and_the_old_one_follows(witnessed: Lab) -> None:
    network = witnessed.network
    flow = Echo(network, tcp=True)
    assert flow.goes_on()
    answer = witnessed.ask("b", "activate")
    assert (answer["status"], answer["role"]) == (0, "active"), answer
    assert answer["sessions"] >= 1
    until(lambda: witnessed.follows("a"))
    assert flow.goes_on()
    answer = witnessed.ask("b", "standby")
    assert (answer["status"], answer["active"]) == (0, "a"), answer
    until(lambda: witnessed.ask("a", "status")["peer"]["role"] == "active" and witnessed.follows("b"))
    assert flow.goes_on()
    assert witnessed.stop("a") == 0  # the standby takes over
    until(lambda: witnessed.ask("b", "status")["peer"]["role"] == "active")
    assert flow.goes_on()
    assert flow.finish() == ""
    assert witnessed.stop("b") == 0
    for name in GATEWAYS:
        with at(network, name):
            assert kernel_bypass.installed() == []


def test_either_is_restarted_by_command_and_nothing_is_lost(witnessed: Lab) -> None:
    """The standby by itself; the active one makes way first, and follows in its new process."""
    flow = Echo(witnessed.network, tcp=True)
    assert flow.goes_on()
    before = witnessed.ask("b", "status")["pid"]
    answer = witnessed.ask("b", "restart")
    assert answer["status"] == 0, answer
    until(lambda: witnessed.follows("b"), START_SECONDS)
    assert witnessed.ask("b", "status")["pid"] == answer["pid"] != before
    assert witnessed.role("a") == "active"
    file = witnessed.folder / "a.toml"
    good = file.read_text()
    file.write_text(good.replace("max_sessions", "most_sessions"))
    refused = witnessed.ask("a", "restart")
    assert refused["status"] == 70 and "most_sessions" in refused["error"]
    assert witnessed.role("a") == "active"
    file.write_text(good)
    answer = witnessed.ask("a", "restart")
    assert answer["status"] == 0, answer
    until(lambda: witnessed.follows("a"), START_SECONDS)
    assert witnessed.ask("a", "status")["pid"] == answer["pid"]
    assert witnessed.ask("b", "status")["peer"]["role"] == "active"
    assert flow.goes_on()
    assert flow.finish() == ""


@pytest.mark.parametrize("what", ["the line between the two", "the active one from both"])
def test_whatever_line_is_cut_one_translates_and_never_both(witnessed: Lab, what: str) -> None:
    """Frames of both gateways are counted on the outside link: once one has taken over, the other one sends none."""
    network = witnessed.network
    flow = Echo(network, tcp=False)
    assert flow.goes_on()
    if what == "the line between the two":
        # a and b hear the witness, and not each other
        network.run("a", ["ip", "route", "add", "blackhole", f"{ADDRESSES['b']}/32"])
        network.run("b", ["ip", "route", "add", "blackhole", f"{ADDRESSES['a']}/32"])
        stays, other = "a", "b"
    else:
        witnessed.cut("a", "mgmt")
        stays, other = "b", "a"
        until(lambda: witnessed.role("b") == "active")
    assert flow.goes_on()
    statuses = {}
    for _ in range(2):
        statuses = {name: witnessed.ask(name, "status")["peer"]["may_translate"] for name in GATEWAYS}
        assert list(statuses.values()).count(True) <= 1
    assert statuses == {stays: True, other: False}
    before = network.statistics(other, "wan0")["tx_packets"]
    assert flow.goes_on()
    assert network.statistics(other, "wan0")["tx_packets"] - before < 10  # ARP of the host's own at most
    if what != "the line between the two":
        witnessed.join("a", "mgmt")
        until(lambda: witnessed.follows("a"))
        assert witnessed.ask("b", "status")["peer"]["may_translate"]
    assert flow.goes_on()
    assert flow.finish() == ""


@pytest.mark.parametrize("lease", [2.0], indirect=True)  # that of a busy machine is not over by itself
def test_a_gateway_that_was_stalled_for_longer_than_its_lease_sends_nothing_when_it_goes_on(witnessed: Lab) -> None:
    """Packets came to its rings until the hosts knew the other one."""
    network = witnessed.network
    flows = [Echo(network, tcp=False, every=0.002), Echo(network, tcp=True)]
    with (
        Wire(network, "in", network.mac("a", "lan0")) as inside,
        Wire(network, "out", network.mac("a", "wan0")) as outside,
    ):
        for _ in range(3):
            assert all(flow.goes_on() for flow in flows)
            assert witnessed.role("b") == "standby"
            witnessed.processes["a"].send_signal(signal.SIGSTOP)
            until(lambda: witnessed.role("b") == "active")
            assert all(flow.goes_on() for flow in flows)
            assert inside.sent() > 0 < outside.sent()
            witnessed.processes["a"].send_signal(signal.SIGCONT)
            until(lambda: witnessed.follows("a"))
            assert inside.sent() == outside.sent() == 0
            assert all(flow.goes_on() for flow in flows)
            assert witnessed.ask("b", "standby")["status"] == 0
            until(lambda: witnessed.follows("b"))
    assert [flow.finish() for flow in flows] == ["", ""]


class Wire:
    """What a host gets from one sender, by its MAC address."""

    def __init__(self, network: Network, host: str, mac: str) -> None:
        self._mac = bytes.fromhex(mac.replace(":", ""))
        with at(network, host):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)  # for all that comes in a minute
        self._socket.bind(("eth0", IPV4))
        self._socket.setblocking(False)

    def sent(self) -> int:
        """How many IPv4 packets the sender has sent since this was asked last."""
        found = 0
        with suppress(BlockingIOError):
            while True:
                found += self._socket.recv(64)[6:12] == self._mac
        return found

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_without_a_witness_it_is_decided_by_command(tmp_path: Path, credentials: Credentials) -> None:
    with lab(tmp_path, credentials, witness=False) as found:
        for name in GATEWAYS:
            found.start(name)
        until(lambda: (found.role("a"), found.role("b")) == ("standby", "standby"), START_SECONDS)
        until(lambda: found.ask("a", "activate")["status"] == 0)
        until(lambda: found.follows("b"))
        flow = Echo(found.network, tcp=True)
        assert flow.goes_on()
        found.cut("a", "mgmt")
        until(lambda: not found.ask("b", "status")["peer"]["connected"])
        refused = found.ask("b", "activate")
        assert refused["status"] == 70
        assert "may be translating" in refused["error"]
        assert flow.goes_on()  # by a
        found.kill("a")
        assert found.ask("b", "activate", "--alone")["status"] == 0
        assert flow.goes_on()
        assert flow.finish() == ""
