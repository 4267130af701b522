"""How long packets wait when the active gateway of a pair is killed: `python benchmarks/failover.py`, as root.

Two `natcore run`, a witness, an inside and an outside host in network namespaces. The active one has so many idle UDP sessions,
opened by packets, which the standby has as well; a UDP flow has a packet each millisecond, and a TCP connection a byte each
five, and others are opened one after another; then the active one is killed (SIGKILL). What happened until packets go again is
told in milliseconds after that, and which connections are lost. `--defer`: with `defer = "ack"`, and how long packets waited.
`--rate 10000`: meanwhile so many UDP sessions begin each second, instead of connections one after another; afterwards the
outside host sends to each session that it knew when the active gateway was killed, and what does not arrive is lost.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import struct
import sys
import tempfile
import time
from ipaddress import IPv4Address
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from natcore.testing import craft
from new_sessions import MOST, NewSessions
from support.certificates import made
from support.netns import SERVER, at, ping, until
from support.pairs import LEASE, Churn, Echo, Lab, lab

SECONDS = 240.0  # that a process has to start, or an image to come
PER_HOST, FIRST_PORT = 4000, 1024  # idle sessions of an inside host
SOURCE_PORT_AT = 34  # in a frame
POOL_FIRST, PER_ADDRESS = 100, 10_000  # of the outside addresses 198.18.0.x: a host has all its ports of one
SINK = 9  # the outside host's port that the idle sessions are to
PAUSE_EVERY = 256  # frames, so that no ring runs over
ROUTER = IPv4Address("10.0.0.1").packed
ETH_P_ARP, SO_TIMESTAMPNS = 0x0806, 35


class Announcements:
    """Gratuitous ARP of the inside hosts' router, as the inside host hears it."""

    def __init__(self, found: Lab) -> None:
        with at(found.network, "in"):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
        self._socket.bind(("eth0", ETH_P_ARP))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    def first(self, after: float) -> float | None:
        """When the first one came after a moment of CLOCK_MONOTONIC."""
        offset = time.time() - time.monotonic()
        self._socket.setblocking(False)
        try:
            while True:
                frame, ancillary, _, _ = self._socket.recvmsg(64, 64)
                seconds, nanoseconds = struct.unpack("@qq", ancillary[0][2][:16])
                came = seconds + nanoseconds / 1e9 - offset
                if came > after and frame[28:32] == ROUTER == frame[38:42]:
                    return came
        except BlockingIOError:
            return None

    def close(self) -> None:
        self._socket.close()


def router_mac(found: Lab) -> bytes:
    """The MAC address of the inside hosts' router, as they know it."""
    router = found.network.run("in", ["ip", "neigh", "show", "10.0.0.1"]).stdout.split()
    return bytes.fromhex(router[router.index("lladdr") + 1].replace(":", ""))


def fill(found: Lab, sessions: int) -> None:
    """Open the idle sessions: one datagram each, from hosts of the inside network."""
    network = found.network
    with at(network, "out"):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind((SERVER, SINK))
    with at(network, "in"):
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.bind(("eth0", 0))
    mac = router_mac(found)
    with sink, out:
        opened = 0
        while opened < sessions:  # those that a ring could not take are sent again
            for number in range(sessions):
                host, port = divmod(number, PER_HOST)
                if port == 0:
                    first = craft.udp((f"10.0.0.{3 + host}", FIRST_PORT), (SERVER, SINK), no_checksum=True)
                    frame = bytearray(mac + craft.ether(first)[6:])
                struct.pack_into(">H", frame, SOURCE_PORT_AT, FIRST_PORT + port)
                out.send(frame)
                if number % PAUSE_EVERY == 0:
                    time.sleep(0.001)
            opened = found.ask("a", "status")["sessions"]
            print(f"{opened:,} sessions", flush=True)


def fail_over(found: Lab, sessions: int, load: NewSessions | None) -> tuple[float, float]:
    """Kill the active one of two that are in step; the seconds of UDP and TCP without an answer."""
    flows = [Echo(found.network, tcp=False, every=0.001), Echo(found.network, tcp=True)]
    assert all(flow.goes_on() for flow in flows)
    time.sleep(3.0)  # the machine has nothing else to do, and ARP entries may be overridden (locktime)
    announcements = Announcements(found)
    churn = None if load else Churn(found.network)
    if churn is not None:
        until(lambda: len(churn.answered) > 500)
    counters = found.ask("a", "status")["planes"][0]["counters"]
    time.sleep(2.0)  # who looks at a gateway with a million sessions is no part of it
    for flow in flows:
        flow.longest = 0.0
    before = len(found.told("b", "role"))
    killed = time.monotonic()
    found.kill("a")
    assert all(flow.goes_on() for flow in flows), [flow.failed for flow in flows]
    until(lambda: len(found.told("b", "role")) > before)
    told = found.told("b", "role")[-1]
    assert told["sessions"] > sessions, told
    heard = told["monotonic"] - told["forwards"]
    moments = {"the standby's last word of it": heard}
    moments |= {says: heard + told[name] for name, says in STEPS.items() if name in told}
    announced = announcements.first(killed)
    if announced is not None:
        moments["gratuitous ARP at the inside host"] = announced
    for flow, what in zip(flows, ("UDP", "TCP"), strict=True):
        moments[f"{what}: last answer"], moments[f"{what}: first answer"] = flow.silent
    for what, moment in sorted(moments.items(), key=lambda each: each[1]):
        print(f"{(moment - killed) * 1000:8.1f} ms  {what}")
    if load is not None:
        load.stop()
        outcome, twice = load.outcome(killed)
        print("new sessions: " + ", ".join(f"{what} {value:,.0f}" for what, value in outcome.items()))
        print(f"outside endpoints that two inside endpoints had: {twice}")
    if churn is not None:
        count, failed = churn.finish()
        print(f"connections that were opened one after another: {count}, of which {len(failed)} are lost")
    if counters["deferred_acknowledged"]:
        left = {name: counters[f"deferred_{name}"] for name in ("acknowledged", "late", "alone", "overflow")}
        print(f"first packets: {left}, mean wait {counters['deferred_ms'] / sum(left.values()):.1f} ms")
    print(f"without an answer: UDP {flows[0].longest * 1000:.0f} ms, TCP {flows[1].longest * 1000:.0f} ms", flush=True)
    assert [flow.finish() for flow in flows] == ["", ""]
    announcements.close()
    return flows[0].longest, flows[1].longest


STEPS = {
    "asked": "votes are asked for",
    "chosen": "a majority of votes",
    "image": "the image is a gateway",
    "forwards": "the planes forward",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000, help="idle ones, at most 988,000 of 247 hosts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lease", type=float, default=LEASE)
    parser.add_argument(
        "--rate", type=int, default=0, help="new UDP sessions each second; 0: connections one after another"
    )
    parser.add_argument("--defer", action="store_true", help="first packets wait for the standby")
    arguments = parser.parse_args()
    sessions = min(arguments.sessions, 247 * PER_HOST)
    addresses = 1 + sessions // PER_ADDRESS
    pool = f"198.18.0.{POOL_FIRST}-198.18.0.{POOL_FIRST + addresses - 1}"
    more = 'defer = "ack"\n' if arguments.defer else ""
    outages = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with lab(
                folder,
                made(folder),
                pool=pool,
                sessions=sessions + 10_000 + MOST * bool(arguments.rate),
                lease=arguments.lease,
                more=more,
            ) as found:
                for each in ("w", "a"):
                    found.start(each)
                until(lambda: found.role("a") == "active", SECONDS)
                assert ping(found.network, "in", SERVER)
                fill(found, sessions)
                found.start("b")
                until(lambda: found.follows("b"), SECONDS)
                until(lambda: found.ask("a", "status")["peer"]["counters"]["lag_records"] < 100, SECONDS)
                if not arguments.rate:
                    outages.append(fail_over(found, sessions, None))
                    continue
                with NewSessions(found.network, arguments.rate, router_mac(found)) as load:
                    until(lambda: load.arrived > 2 * arguments.rate)
                    outages.append(fail_over(found, sessions, load))
    for what, seconds in zip(("UDP", "TCP"), zip(*outages, strict=True), strict=True):
        print(f"{what}: median {statistics.median(seconds) * 1000:.0f} ms, {len(seconds)} rounds: "
              + ", ".join(f"{each * 1000:.0f}" for each in seconds))  # fmt: skip


if __name__ == "__main__":
    main()
