"""What a standby costs on this machine: `python benchmarks/standby.py --sessions 1000000`.

Told are: a resynchronisation (an image of all sessions over TCP with TLS into another process), the bytes of an event of TCP
connections, and the share of a worker's time that taking the rows needs at a rate of new connections. Figures are of this
machine as it is now; processor seconds hardly depend on what else it does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from natcore import Gateway, Policy, Side, SnatEntry
from natcore.peer.channel import Address, Credentials
from natcore.peer.feed import Feed
from natcore.peer.messages import HEADER
from natcore.peer.pair import INTERVAL, REFRESH_EVERY, Pair, PeerSettings
from natcore.testing import craft
from state import opened
from support.certificates import made

PORTS = 7511, 7512  # of the two, on the loopback
CONNECTIONS = 20_000  # of which the events are counted
SYN, SYN_ACK, ACK, FIN_ACK = 0x02, 0x12, 0x10, 0x11


def pair(name: str, files: Credentials) -> Pair:
    """One of the two."""
    number = "ab".index(name)
    own, other = (Address("127.0.0.1", PORTS[number ^ turn]) for turn in (0, 1))
    peer = "ba"[number]
    return Pair(PeerSettings(name=name, peer_name=peer, listen=own, peer=other, credentials=files), Gateway)


def stand_by(folder: Path) -> None:
    """In another process: follow until there is an image; print the seconds from the first row on, and of a processor."""
    with pair("b", Credentials(folder / "certificate.pem", folder / "key.pem", folder / "ca.pem")) as standby:
        while not standby.connected:
            time.sleep(0.001)
        began, cpu = time.perf_counter(), time.process_time()
        while not standby.has_image:
            time.sleep(0.001)
        print(time.perf_counter() - began, time.process_time() - cpu, standby.counters()["rows_applied"], flush=True)


def resynchronise(gateway: Gateway) -> None:
    """Tell the time and the bytes of an image."""
    with tempfile.TemporaryDirectory() as name, pair("a", made(Path(name))) as active:
        active.activate(alone=True)
        assert active.take_over() is None
        active.guard(gateway)
        active.forwards(gateway, lambda: None)
        cpu = time.process_time()
        child = subprocess.run(
            [sys.executable, __file__, "--standby", name], capture_output=True, text=True, check=True, timeout=600
        )
        used = time.process_time() - cpu
        took, applied, rows = map(float, child.stdout.split())
        sent = active.counters()["bytes_sent"]
        active.stopped()
    print(
        f"resynchronisation of {rows:,.0f} rows: {took:.2f} s, {sent / rows:.1f} bytes a row; seconds of a processor: "
        f"{used:.2f} of the active gateway's process, {applied:.2f} of the standby's"
    )


def tcp(gateway: Gateway, number: int, flags: int, side: Side, now: float, back: dict[int, tuple[str, int]]) -> None:
    inside, remote = (f"10.1.{number >> 13}.1", 1024 + (number & 0x1FFF)), ("198.51.100.7", 443)
    if side is Side.INSIDE:
        frame = craft.ether(craft.tcp(inside, remote, flags, sequence=1, acknowledgement=1))
        verdict, out = gateway.translate_one(frame, side, now)
        assert verdict.is_forwarded and out is not None, verdict
        back.setdefault(number, (".".join(map(str, out[26:30])), int.from_bytes(out[34:36], "big")))
    else:
        frame = craft.ether(craft.tcp(remote, back[number], flags, sequence=1, acknowledgement=2))
        assert gateway.translate_one(frame, side, now)[0].is_forwarded


def events() -> float:
    """Tell the bytes of an event of TCP connections that begin, are established and end, each told by itself; return the
    processor seconds in which a worker waits for one connection."""
    with Gateway(max_sessions=1 << 17) as gateway:
        gateway.add(SnatEntry("10.1.0.0/16", "203.0.113.1-203.0.113.2"))
        back: dict[int, tuple[str, int]] = {}
        steps: tuple[list[tuple[int, Side]], ...] = (
            [(SYN, Side.INSIDE)],
            [(SYN_ACK, Side.OUTSIDE), (ACK, Side.INSIDE)],
            [(FIN_ACK, Side.INSIDE), (FIN_ACK, Side.OUTSIDE), (ACK, Side.INSIDE)],
            [],  # its time-out
        )
        total = rows = 0
        used = 0.0
        with Feed(gateway) as feed:
            for _ in feed.snapshot():
                pass
            for turn, packets in enumerate(steps):
                for number in range(CONNECTIONS):
                    for flags, side in packets:
                        tcp(gateway, number, flags, side, 1.0 + turn, back)
                if not packets:
                    gateway.advance(10_000.0)
                began = time.thread_time()
                for message in feed.changes():
                    total += len(message.body) + HEADER.size
                    rows += message.rows
                used += time.thread_time() - began
    print(f"TCP connections: {rows / CONNECTIONS:.2f} events each, {total / rows:.1f} bytes an event")
    return used / CONNECTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=10_000, help="new connections a second")
    parser.add_argument("--standby", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.standby is not None:
        stand_by(arguments.standby)
        return
    each = events()
    with opened(arguments.sessions, 100, Policy()) as gateway:
        with Feed(gateway) as feed:
            for _ in feed.snapshot():
                pass
            began = time.thread_time()
            for _ in feed.changes():  # nothing has changed: what looking costs
                pass
            looking = (time.thread_time() - began) / INTERVAL
            began = time.thread_time()
            for _ in feed.refreshes():
                pass
            refreshing = (time.thread_time() - began) / REFRESH_EVERY
        print(
            f"share of a worker's time at {arguments.rate:,} new connections a second, {arguments.sessions:,} sessions: "
            f"{arguments.rate * each:.2%} their rows, {looking:.2%} looking, {refreshing:.2%} refreshes"
        )
        resynchronise(gateway)


if __name__ == "__main__":
    main()
