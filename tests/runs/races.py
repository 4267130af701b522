"""Every public call from several threads under traffic: what a build with the thread sanitizer looks at (`make races`).

No assertion is about time. `--seconds` says how long; each turn has a gateway of its own, of another kind. As root some
turns have a plane between network namespaces.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/

import argparse
import os
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from itertools import chain, count
from random import Random
from typing import Any

import numpy as np

from natcore import (
    DnatEntry,
    Error,
    FlowLog,
    Gateway,
    NoNatEntry,
    Policy,
    Remove,
    Replace,
    Side,
    SnatEntry,
    Timeouts,
    Verdict,
)
from natcore.dtypes import SESSION
from natcore.peer.feed import Feed
from natcore.peer.standby import Standby
from natcore.sinks import MemorySink
from natcore.subscriber_rates import SubscriberRates
from natcore.testing import bulk, craft
from support import netns

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
POOL = ("203.0.113.1", "203.0.113.2")
POLICIES: list[dict[str, Any]] = [
    {},
    {"filtering": "endpoint-independent", "hold_down": 0, "port_ranges": ((2000, 2255),)},
    {
        "filtering": "address-dependent",
        "hold_down": 1,
        "port_ranges": ((2000, 2511),),
        "warn_at": 0.1,
        "rearm_at": 0.05,
    },
    {"ports": "block", "block_size": 64, "hold_down": 0},
    {"ports": "overload", "mapping": "address-and-port-dependent", "filtering": "address-and-port-dependent"},
    {"sessions_per_subscriber": 20, "new_sessions_per_second": 50, "unsolicited_syn": "icmp", "ports": "preserve"},
    {"ports": "deterministic", "block_size": 32, "hold_down": 0},
    {"gateway_new_sessions_per_second": 40, "unsolicited_syn": "icmp", "warn_at": None, "pooling": "arbitrary"},
]


class Turn:
    """One gateway, and the threads that are at it until `stop`."""

    def __init__(self, number: int, workers: int) -> None:
        self.random = Random(number)
        self.gateway = Gateway(
            workers=workers, seed=number, records=1024, max_sessions=2048, policy=policy_of(number), window=5.0
        )
        self.sources = "10.0.0.0/22" if self.gateway.policy.ports == "deterministic" else "10.0.0.0/8"
        self.gateway.add(SnatEntry(self.sources, POOL))
        self.gateway.add(DnatEntry(POOL[0], 80, "10.0.0.9", 80, protocol="tcp"))
        self.gateway.add(NoNatEntry("10.9.0.0/16", "192.0.2.0/24"))
        self.gateway.add(DnatEntry("203.0.113.9", "any", "10.0.0.200", "any", protocol="any"))
        self.rates: SubscriberRates | None = None
        self.feed: Feed | None = None
        self.standby = Standby(Gateway)
        self.rows = np.zeros(4096, SESSION)
        self.clock = count(1)
        self.numbers = count(1)
        self.stop = threading.Event()
        self.failed: list[str] = []

    def now(self) -> float:
        return next(self.clock) / 200

    def repeat(self, call: Callable[[], None]) -> None:
        try:
            while not self.stop.is_set():
                call()
        except Exception:
            self.failed.append(traceback.format_exc())
            self.stop.set()

    def traffic(self, worker: int) -> Callable[[], None]:
        """Packets of everybody's hosts, their answers, and strangers', hairpins, fragments and errors among them."""
        random = Random(worker)

        def batch() -> None:
            frames: list[bytes] = []
            for _ in range(48):
                host = f"10.0.{random.randrange(4)}.{random.randrange(1, 12)}"
                if random.random() < 0.05:
                    host = f"10.9.0.{random.randrange(1, 5)}"
                port, remote = random.randrange(5000, 5040), ("198.51.100.7", random.randrange(50, 60))
                kind = random.randrange(10)
                if kind == 0:
                    remote = (random.choice(POOL), random.randrange(2000, 2100))  # a hairpin
                if kind == 1:
                    whole = craft.udp((host, port), remote, bytes(64), identification=random.randrange(50))
                    frames += [craft.ether(piece) for piece in cut(whole)]
                elif kind == 2:
                    frames.append(craft.ether(craft.icmp(host, remote[0], identifier=port)))
                elif kind == 3:
                    frames.append(craft.ether(craft.tcp((host, port), remote, 2)))
                elif kind == 4:
                    frames.append(craft.ether(craft.udp((host, port), remote, bytes(1600))))  # longer than the link
                elif kind == 5:
                    frames.append(craft.ether(craft.ipv4(47, host, remote[0], bytes(20))))
                elif kind == 6:
                    frames.append(craft.ether(craft.udp((host, port), remote, ttl=1)))
                else:
                    frames.append(craft.ether(craft.udp((host, port), remote)))
            rows = np.zeros((len(frames), 2048), np.uint8)
            for row, frame in zip(rows, frames, strict=True):
                row[: len(frame)] = np.frombuffer(frame, np.uint8)
            lengths = np.array([len(frame) for frame in frames], np.uint32)
            who = worker if random.random() < 0.9 else None
            try:
                verdicts = self.gateway.translate(rows, lengths, INSIDE, self.now(), worker=who)
                sent = (verdicts == Verdict.OUTBOUND) & (rows[:, 23] == 17) & (lengths > 42)
                if sent.any():
                    answers, sizes = bulk.answers(rows[sent], lengths[sent])
                    self.gateway.translate(answers, sizes, OUTSIDE, self.now(), worker=worker)
                strangers = [
                    craft.ether(craft.tcp(("198.51.100.9", 9), (POOL[0], random.choice((80, 2010, 2020))), 2)),
                    craft.ether(craft.udp(("198.51.100.9", 9), (POOL[0], random.randrange(2000, 2256)))),
                    craft.ether(craft.udp(("198.51.100.9", 9), ("203.0.113.9", random.randrange(2000, 2256)))),
                ]
                self.gateway.translate_many(strangers, OUTSIDE, self.now(), worker=worker)
                self.gateway.translate_one(strangers[0], OUTSIDE, self.now(), worker=worker)
            except Error as error:
                if "translating already" not in str(error):
                    raise

        return batch

    def changes(self) -> None:
        gateway, number = self.gateway, next(self.numbers)
        try:
            entry = gateway.add(DnatEntry(POOL[1], 3000 + number % 500, "10.0.1.3", 80, protocol="udp"))
            gateway.replace(entry, DnatEntry(POOL[1], 3000 + number % 500, "10.0.1.4", 80, protocol="udp"))
            gateway.remove(gateway.add(DnatEntry(POOL[1], 2600 + number % 300, "10.0.1.5", 80, protocol="tcp")))
            pool = gateway.entries()[0]
            gateway.replace(pool, SnatEntry(self.sources, POOL if number % 2 else POOL[:1]))
            gateway.apply(
                gateway.plan([Remove(entry, drain=number % 3 == 0), Replace(pool, SnatEntry(self.sources, POOL))])
            )
        except Error as error:
            if "held by" not in str(error) and "changed since" not in str(error):
                raise

    def logs(self) -> None:
        log = self.gateway.start_session_log(MemorySink())
        with FlowLog(self.gateway, capacity=4096) as flows:
            for _ in range(5):
                flows.take()
                flows.counters()
                log.counters(), log.status, log.delivery_status
                self.gateway.counters()
            log.change(MemorySink())
        self.gateway.stop_session_log(log)

    def looks(self) -> None:
        gateway = self.gateway
        gateway.counters(), gateway.sessions(), gateway.mappings(), gateway.ports(), gateway.blocks()
        gateway.take_events(), gateway.entries(), repr(gateway), gateway.take_generated()
        gateway.counters(worker=0)
        gateway.fileno(), gateway._core.tables(), gateway._core.log_rows.complete_ns
        try:
            gateway.take_records(events=True)
        except Error as error:  # a log runs
            if "without a running session log" not in str(error):
                raise
        frame = craft.ether(craft.udp(("10.0.0.5", 5001), ("198.51.100.7", 53)))
        gateway.explain(frame, INSIDE), gateway.explain(frame, OUTSIDE)

    def searches(self) -> None:
        """Looks at tables by slices, and at what comes and goes."""
        gateway = self.gateway
        with gateway.watch_sessions(capacity=256) as sessions, gateway.watch_events() as events:
            for rows in gateway.find_sessions(subscriber="10.0.0.0/16", protocol="udp"):
                len(rows)
            for rows in gateway.find_mappings(outside=POOL[0]):
                len(rows)
            by = self.random.choice(("bytes", "packets", "age", "idle", "expires", "outside", "session"))
            gateway.rank_sessions(by, 50, reverse=self.random.random() < 0.5).rows()  # type: ignore[arg-type]
            if self.rates is None or self.random.random() < 0.02:
                self.rates = gateway.subscriber_rates()
            self.rates.look(), self.rates.rows()
            gateway.sessions_by_entry()
            if gateway.policy.ports == "deterministic":
                gateway.who(POOL[0], 2010, "udp"), gateway.ports_of("10.0.0.5")
            sessions.take(), events.take()
            gateway.sessions(self.rows)

    def saves(self) -> None:
        """State into a file, settings changed, and a standby that follows it all."""
        gateway, number = self.gateway, next(self.numbers)
        saved = BytesIO()
        gateway.save(saved)
        if number % 5 == 0:
            saved.seek(0)
            Gateway.restore(saved).close()
        gateway.modify(timeouts=Timeouts(udp=30.0 + number % 3))
        gateway.modify(policy=replace(gateway.policy, new_sessions_per_second=1000 + number % 3))
        begins = self.feed is None or self.feed.is_outdated
        self.feed = self.feed or Feed(gateway)
        for message in self.feed.snapshot() if begins else chain(self.feed.changes(), self.feed.refreshes()):
            self.standby.receive(message)

    def ends(self) -> None:
        gateway = self.gateway
        gateway.end(subscriber=f"10.0.{self.random.randrange(4)}.{self.random.randrange(1, 12)}")
        gateway.advance(self.now())
        gateway.set_epoch(1.0)
        frames, lengths = bulk.packets(bulk.UDP, 0x0A000000 + np.arange(1, 9), 5000, 0xC6336407, 53)
        gateway.owner(frames, lengths, INSIDE)
        number = next(self.numbers)
        if number % 20 == 0:
            gateway.end(remote="198.51.100.7", protocol="udp")
        if number % 50 == 0:
            gateway.end_all()

    def calls(self) -> list[Callable[[], None]]:
        packets = [self.traffic(worker) for worker in range(self.gateway.workers)]
        return [*packets, self.changes, self.logs, self.looks, self.ends, self.searches, self.saves]

    def run(self, seconds: float) -> dict[str, int]:
        calls = self.calls()
        threads = [threading.Thread(target=self.repeat, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        self.stop.wait(seconds)
        self.stop.set()
        for thread in threads:
            thread.join(timeout=120)
        stuck = [thread for thread in threads if thread.is_alive()]
        if self.failed or stuck:
            print(*self.failed, *stuck, sep="\n", file=sys.stderr)
            sys.exit(1)
        counters = self.gateway.counters()
        whole = counters["forwarded"] + counters["local"] + counters["dropped"] + counters["held"]
        if counters["received"] != whole or counters["sessions"] != counters["created"] - counters["ended"]:
            print(f"the counters do not agree: {counters}", file=sys.stderr)
            sys.exit(1)
        if self.feed is not None:
            self.feed.close()
        self.standby.close()
        self.gateway.hand_over(BytesIO())
        self.gateway.end_handed_over()
        self.gateway.close()
        return counters


class PlaneTurn(Turn):
    """The same while a plane has the workers: hosts and strangers on the wire."""

    def __init__(self, number: int, workers: int, resources: ExitStack) -> None:
        super().__init__(number, workers)
        self.network = resources.enter_context(netns.build())
        self.gateway.add(SnatEntry("10.0.0.0/24", netns.POOL))
        self.plane = resources.enter_context(netns.start(self.network, self.gateway))
        with netns.at(self.network, "out"):
            self.server = resources.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.server.bind((netns.SERVER, 7))
        self.server.settimeout(0.1)

    def now(self) -> float:
        return time.monotonic()

    def hosts(self) -> None:
        """New ports again and again, whole datagrams and fragments; each has an answer."""
        for _ in range(20):
            with netns.at(self.network, "in"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                for size in (10, 1400, 3000):
                    client.sendto(bytes(size), (netns.SERVER, 7))
                client.sendto(b"", (netns.SERVER, 9))  # a closed port: an ICMP error

    def answers(self) -> None:
        try:
            data, address = self.server.recvfrom(4096)
            self.server.sendto(data, address)
            self.server.sendto(data[:5], (netns.POOL, self.random.randrange(1024, 65536)))  # a stranger's
        except TimeoutError:  # nothing came, or what was sent before is under way still
            return

    def asks(self) -> None:
        self.looks()
        self.plane.counters(), self.plane.state, repr(self.plane)
        self.gateway.end(subscriber=netns.CLIENT)

    def calls(self) -> list[Callable[[], None]]:
        return [self.hosts, self.answers, self.changes, self.logs, self.asks, self.searches, self.saves]


def policy_of(number: int) -> Policy:
    return Policy(**POLICIES[number % len(POLICIES)])


def cut(packet: bytes) -> list[bytes]:
    """Two fragments of a packet."""
    head, data = bytearray(packet[:20]), packet[20:]
    pieces = []
    for at, end, more in ((0, 48, 1), (48, len(data), 0)):
        part = bytearray(head)
        part[2:4] = (20 + end - at).to_bytes(2, "big")
        part[6:8] = (more << 13 | at // 8).to_bytes(2, "big")
        part[10:12] = b"\0\0"
        part[10:12] = craft.checksum(part).to_bytes(2, "big")
        pieces.append(bytes(part) + data[at:end])
    return pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--turn", type=float, default=2.5, help="seconds of a gateway")
    options = parser.parse_args()
    end, number, packets = time.monotonic() + options.seconds, 0, 0
    sys.setswitchinterval(0.0005)
    warnings.simplefilter("ignore")  # of a seed, for a plane
    while time.monotonic() < end:
        workers = 1 + number % 4
        with ExitStack() as resources:
            if number % 3 == 2 and os.geteuid() == 0:
                turn: Turn = PlaneTurn(number, workers, resources)
            else:
                turn = Turn(number, workers)
            counters = turn.run(min(options.turn, options.seconds))
        packets += counters["received"]
        number += 1
    print(f"races: {number} gateways, {packets:,} packets, {options.seconds:.0f} s")


if __name__ == "__main__":
    main()
