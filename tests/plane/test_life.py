"""A plane's life: links that come and go, next hops, beginnings and ends, signals and kills."""

from __future__ import annotations

import asyncio
import select
import signal
import subprocess
import sys

import pytest

from natcore import ConfigurationError, Error, FlowLog, InterfaceError, SecurityWarning
from natcore.demo.namespaces import Network
from natcore.plane import kernel_bypass, links, loops
from support.netns import (
    GATEWAY_OUTSIDE,
    LIMIT_SECONDS,
    SERVER,
    Nat,
    adds_up,
    at,
    connect,
    gateway,
    listener,
    needs_root,
    ping,
    ping_once,
    start,
    until,
)

pytestmark = [needs_root, pytest.mark.usefixtures("each_driver")]


# ---- links and neighbours --------------------------------------------------------------------------------------------


def test_a_link_that_goes_down_and_comes_back_keeps_its_sessions(nat: Nat) -> None:
    network, made, plane = nat
    with listener(network, "out") as server, connect(network, "in", (SERVER, server.getsockname()[1])) as client:
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(60)
            network.down("gw", "wan0")
            until(lambda: plane.state == "degraded")
            client.sendall(b"through the gap")
            network.up("gw", "wan0")
            until(lambda: plane.state == "running")
            assert accepted.recv(100) == b"through the gap"
    assert made.counters()["created"] == 1
    assert adds_up(made)


def test_an_interface_that_vanishes_is_opened_again_when_it_returns(nat: Nat) -> None:
    network, made, plane = nat
    assert ping(network, "in", SERVER)
    network.remove("gw", "wan0")
    until(lambda: plane.state == "degraded")
    assert not ping_once(network, "in", SERVER)
    network.pair("gw", "wan0", "out", "eth0")
    network.up("gw", "wan0", f"{GATEWAY_OUTSIDE}/24")
    network.up("out", "eth0", f"{SERVER}/24")
    until(lambda: plane.state == "running")
    assert ping(network, "in", SERVER)
    with at(network, "gw"):
        assert links.installed() == ["lan0", "wan0"]
    assert adds_up(made)


def test_packets_wait_for_their_next_hop_and_are_dropped_if_it_never_answers(nat: Nat) -> None:
    network, made, plane = nat
    assert ping_once(network, "in", SERVER, seconds=LIMIT_SECONDS)  # the very first packet
    assert not ping_once(network, "in", "198.18.0.66")
    until(lambda: made.counters()["dropped_no_neighbour"] == 1)
    assert plane.counters()["waiting"] == 0
    assert plane.counters()["outside_unresolved"] == 1
    assert made.sessions()["packets_out"].tolist() == [1, 0]  # contract R1: a row counts what left
    assert made.counters()["undelivered_in_rows"] == 0
    assert adds_up(made)


def test_a_next_hop_that_changes_its_link_address(nat: Nat) -> None:
    network, _, _ = nat
    assert ping(network, "in", SERVER)
    with network.netlink("out") as link:
        index = link.link_lookup(ifname="eth0")[0]
        link.link("set", index=index, address="02:00:00:00:00:99")
    assert ping(network, "out", GATEWAY_OUTSIDE)  # the kernel hears of it
    assert ping(network, "in", SERVER)


# ---- beginning and end -----------------------------------------------------------------------------------------------


def test_what_is_missing_is_named(network: Network, each_driver: str) -> None:
    made = gateway()
    for names, error, words in (
        (("nope", "wan0"), InterfaceError, "inside='nope': no such interface; there are: lan0, lo, wan0"),
        (("lan0", "lo"), InterfaceError, "'lo': it must be an Ethernet interface"),
        (("lan0", "lan0"), ConfigurationError, "outside must be none of the inside interfaces"),
        (("", "wan0"), ConfigurationError, "inside must be names of 1 to 15 bytes, got ''"),
        ((["lan0", "wan0"], "wan0"), ConfigurationError, "outside must be none of the inside interfaces"),
        ((["lan0", "lan0"], "wan0"), ConfigurationError, "each interface once"),
        (([f"lan{i}" for i in range(16)], "wan0"), ConfigurationError, "must be at most 15 interfaces"),
        (([], "wan0"), ConfigurationError, "inside must be names of 1 to 15 bytes, got []"),
        (("lan0", ["wan0", "wan1"]), ConfigurationError, "must be at most 1 interface, got 2"),
        ((["lan0", "lan7"], "wan0"), InterfaceError, "inside='lan7': no such interface"),
    ):
        with at(network, "gw"), pytest.raises(error) as caught:
            made.forward(*names, driver=each_driver)
        assert words in str(caught.value)
    with (
        at(network, "gw"),
        pytest.raises(ConfigurationError, match="driver must be 'af_packet' or 'af_xdp', got 'dpdk'"),
    ):
        made.forward("lan0", "wan0", driver="dpdk")
    network.down("gw", "wan0")
    with at(network, "gw"), pytest.raises(InterfaceError, match="outside='wan0': the link is down"):
        made.forward("lan0", "wan0", driver=each_driver)
    network.up("gw", "wan0")
    with start(network, made), pytest.raises(Error, match="one plane at a time"):  # after all these, one that goes well
        start(network, made)
    with pytest.warns(SecurityWarning, match="seed"):
        start(network, gateway(seed=1)).stop()


def test_a_plane_without_threads_ends_and_leaves_the_gateway_free(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    made = gateway()
    with monkeypatch.context() as patched:
        patched.setattr(loops.Loops, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            start(network, made)
    with at(network, "gw"):
        assert links.installed() == []
    with start(network, made) as plane:
        assert plane.state == "running"
    made.close()


def test_two_planes_on_one_interface(nat: Nat) -> None:
    network, _, _ = nat
    with pytest.raises(InterfaceError, match="another plane"):
        start(network, gateway())
    with at(network, "gw"):
        assert links.installed() == ["lan0", "wan0"]  # the first one's
    assert ping(network, "in", SERVER)


UNPRIVILEGED = """
import os, sys
from natcore import Gateway, InterfaceError
import natcore.plane.plane
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    Gateway().forward("lan0", "wan0", driver=sys.argv[1])
except InterfaceError as error:
    print(error.errno, error)
"""


def test_missing_capabilities_are_named(network: Network, each_driver: str) -> None:
    done = network.run("gw", [sys.executable, "-c", UNPRIVILEGED, each_driver])
    assert "CAP_NET_RAW" in done.stdout
    assert "CAP_NET_ADMIN" in done.stdout


def test_stop_gives_the_interfaces_back_and_loses_no_record(network: Network) -> None:
    made = gateway()
    plane = start(network, made)
    assert not plane.wait(0)
    assert ping(network, "in", SERVER)
    plane.stop()
    plane.stop()
    assert plane.state == "stopped"
    assert plane.wait()
    with at(network, "gw"):
        assert links.installed() == []
    counters = plane.counters()
    assert counters["inside_received"] >= 1
    made.close()
    assert made.counters()["created"] == 1
    with start(network, gateway()):
        assert ping(network, "in", SERVER)


def test_closing_the_gateway_stops_its_plane(network: Network) -> None:
    made = gateway()
    plane = start(network, made)
    made.close()
    assert plane.state == "stopped"


def test_a_signal_handler_may_stop_what_is_waited_for(network: Network) -> None:
    made = gateway()
    plane = start(network, made)
    before = signal.signal(signal.SIGALRM, lambda *_: plane.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert plane.wait(60)
    finally:
        signal.signal(signal.SIGALRM, before)
        plane.stop()
    assert plane.state == "stopped"


def test_what_ended_a_worker_is_raised_by_wait(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gateway()
    with start(network, made) as plane:

        def fail() -> None:
            raise RuntimeError("the control side failed")

        monkeypatch.setattr(plane, "_update_kernel_addresses", fail)
        with pytest.raises(RuntimeError, match="control side failed"):
            plane.wait(60)
        assert plane.state == "stopped"


KILLED = """
import sys, time
from natcore import Gateway, SnatEntry
gateway = Gateway()
gateway.add(SnatEntry("10.0.0.0/16", pool="198.18.0.100"))
plane = gateway.forward("lan0", "wan0", driver=sys.argv[1])
print("ready", flush=True)
plane.wait()
"""


def test_after_a_kill_nothing_leaks_until_the_next_start(network: Network, each_driver: str) -> None:
    network.setting("gw", "net/ipv4/ip_forward", 1)
    network.route("out", "10.0.0.0/24", via=GATEWAY_OUTSIDE)
    assert ping(network, "in", SERVER)  # the kernel forwards, untranslated
    process = network.popen("gw", [sys.executable, "-c", KILLED, each_driver], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert ping(network, "in", SERVER)
    process.kill()
    process.wait()
    assert not ping_once(network, "in", SERVER)
    with at(network, "gw"):
        assert links.installed() == ["lan0", "wan0"]
    with pytest.warns(SecurityWarning, match="forwarding is on"), start(network, gateway()) as plane:
        assert ping(network, "in", SERVER)
        assert plane.counters()["inside_received"] > 0
    assert not ping_once(network, "in", SERVER)  # nor after a stop
    with at(network, "gw"):
        kernel_bypass.install("lan0", set())
        assert links.clean() == ["lan0", "wan0"]
    assert ping(network, "in", SERVER)  # put back: the kernel forwards again


def test_a_plane_that_was_not_stopped_gives_its_interfaces_back_at_exit(network: Network, each_driver: str) -> None:
    network.run("gw", [sys.executable, "-c", KILLED.replace("plane.wait()", ""), each_driver])
    with at(network, "gw"):
        assert links.installed() == []


def test_asyncio_drives_a_plane_without_threads(network: Network) -> None:
    async def scenario() -> tuple[bool, int]:
        loop = asyncio.get_running_loop()
        with gateway() as made, start(network, made, threads=False) as plane:
            loop.add_reader(plane.fileno(), plane.step)
            reached = await asyncio.to_thread(ping_once, network, "in", SERVER, seconds=LIMIT_SECONDS)
            loop.remove_reader(plane.fileno())
            return reached, made.counters()["forwarded"]

    assert asyncio.run(scenario()) == (True, 2)


def test_a_link_that_is_down_does_not_keep_the_caller_of_step_awake(network: Network) -> None:
    with gateway() as made, start(network, made, threads=False) as plane:
        network.down("gw", "wan0")
        until(lambda: plane.state == "degraded")
        until(lambda: (plane.step(), select.select([plane], [], [], 0)[0])[1] == [])
        network.up("gw", "wan0")
        until(lambda: plane.state == "running")


def test_what_waits_at_the_end_is_dropped_and_counted(network: Network) -> None:
    made = gateway()
    flows = FlowLog(made)
    with start(network, made) as plane:
        pinging = network.popen("in", ["ping", "-c1", "-W1", "198.18.0.66"], stdout=subprocess.DEVNULL)
        until(lambda: plane.counters()["waiting"] == 1)
    came, left = (
        row for row in flows.take() if int(row["protocol"]) == 1
    )  # in at one interface, and not out after all
    assert (came["direction"], came["packets"], left["direction"], left["packets"]) == (0, 1, 1, 0)
    assert made.counters()["dropped_no_neighbour"] == 1
    assert made.counters()["forwarded"] == 0
    assert adds_up(made)
    pinging.wait()


def test_step_is_for_planes_without_threads(nat: Nat) -> None:
    _, _, plane = nat
    with pytest.raises(Error, match="threads=False"):
        plane.step()
    with pytest.raises(ConfigurationError, match=r"budget must .*, got 0"):
        plane.step(0)


def test_control_calls_take_effect_while_traffic_flows(nat: Nat) -> None:
    network, made, plane = nat
    sender = network.popen("in", ["ping", "-q", "-f", SERVER], stdout=subprocess.DEVNULL)
    until(lambda: made.counters()["forwarded"] > 100)
    for _ in range(200):
        assert adds_up(made)
        assert len(made.sessions()) <= 1 and len(made.mappings()) <= 1
        made.end_all()
    sender.terminate()
    sender.wait()
    assert plane.state == "running"
