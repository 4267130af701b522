"""The plane on the wire beside the kernel's NAT and a null forwarder: namespaces of its own, in turns, paired rounds.

`make wire` runs it (root; a few minutes). Exit status 1 where something timed was not what it says, 3 where other
work left nothing to time; goals are only reported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rig import LEAST, Blast, Disturbed, Part, Rig, Wrong, missing_tools, ping_ms, tcp_gbit

from compiled import build
from natcore.plane.plane import OFFLOADED_MOST

FLOWS = (1, 65_536, 1_048_576)
WARM_FLOWS = 1 << 17
TWO_FLOWS = 1 << 16  # where there are two workers
NEW_FLOWS = 1 << 24  # more than pass in a measurement: each frame is a session's first
DRIVERS = ("af_packet", "af_xdp")
AF_XDP = 44
KERNEL = "kernel"
FAST_PATH = "natcore af_xdp, fast path"
REDIRECT = "null XDP redirect"  # the least that a fast path can do
OFFLOADED = 0.95  # of the flows that a fast path may have, before it is timed
WARM_PASSES = 40  # over all flows at most, to have so many
WARM_RATE = 400_000.0


@dataclass
class Row:
    """What one way to forward reached, a figure for each round. unit: of `figures`; cpu_ns: a packet, where it is known."""

    section: str
    name: str
    unit: str
    figures: list[float] = field(default_factory=list)
    cpu_ns: list[float] = field(default_factory=list)
    handed_over: list[float] = field(default_factory=list)  # of several workers: of the packets, those done by another
    against: dict[str, float] = field(default_factory=dict)  # name of another row: median of the ratios of the rounds
    goal: str = ""
    ok: bool | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    def ratio(self, other: Row) -> float:
        """The median of the paired ratios; it is kept."""
        self.against[other.name] = statistics.median(
            own / base for own, base in zip(self.figures, other.figures, strict=True)
        )
        return self.against[other.name]

    def dearer_ns(self, other: Row) -> float:
        return statistics.median(own - base for own, base in zip(self.cpu_ns, other.cpu_ns, strict=True))

    def aim(self, text: str, ok: bool) -> None:
        self.goal = f"{self.goal}; {text}" if self.goal else text
        self.ok = ok if self.ok is None else self.ok and ok


class Way:
    """One way to forward, started for each measurement and stopped after it: the kernel (no program), or a program."""

    def __init__(self, name: str, program: Part | None) -> None:
        self.name, self.program = name, program
        self.translates = not name.startswith("null")

    def __enter__(self) -> Part | None:
        if self.program is not None:
            self.program.call("start")
        return self.program

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Wrong):
            error.args = (f"{self.name}: {error}",)
        elif self.program is not None:
            self.program.call("stop")


def beside(
    rig: Rig, drivers: tuple[str, ...], max_sessions: int, workers: tuple[int, ...] = (1,), *, fast_path: bool = False
) -> list[Way]:
    """The kernel, and over each driver the null forwarder and natcore, with so many workers each. fast_path: over AF_XDP
    with that too, and a program that only redirects."""
    ways = [Way(KERNEL, None)]
    for driver in drivers:
        ways.append(Way(f"null {driver}", rig.null(driver)))
        if driver == "af_xdp" and fast_path:
            ways.append(Way(REDIRECT, rig.redirect()))
            ways.append(Way(FAST_PATH, rig.natcore(driver, max_sessions, fast_path=True)))
        for count in workers:
            name = f"natcore {driver}" if count == 1 else f"natcore {driver}, {count} workers"
            ways.append(Way(name, rig.natcore(driver, max_sessions, workers=count)))
    return ways


def bring_up(rig: Rig, sender: Part, ways: list[Way], flows: int) -> None:
    """Each way has sessions of so many flows, if it has any, and a sample of its frames is looked at."""
    for way in ways:
        with way as program:
            if way.translates:
                rig.establish(sender, flows, lambda program=program: sessions_of(rig, program))
            rig.sample(sender, flows, translated=way.translates)


def established(rig: Rig, sender: Part, options: argparse.Namespace) -> Iterator[Row]:
    """64-byte frames of sessions that are there, one processor for all that the gateway does."""
    rig.one_core(True)
    rig.sink(True)
    for flows in options.flows:
        section = f"64-byte frames, {flows:,} flows"
        rig.forget_entries()
        ways = beside(rig, options.drivers, 2 * flows, fast_path=True)
        rows = {way.name: Row(section, way.name, "packets/s") for way in ways}
        bring_up(rig, sender, ways, flows)
        for _ in range(options.rounds):
            for way in ways:
                with way as program:
                    before = warm(rig, sender, program, flows) if way.name == FAST_PATH else 0
                    counted = rig.blast(sender, program, flows, options.seconds)
                    note(rows[way.name], counted)
                    if way.name == FAST_PATH and program is not None:
                        check_fast_path(program, before, flows, counted.packets_a_second * options.seconds)
                    if way.name.startswith("natcore"):
                        assert program is not None
                        counters = program.call("counters")
                        check_natcore(counters, flows, counters["received"])
        finish(ways)
        yield from judged(rows, options.drivers)


def sessions_of(rig: Rig, program: Part | None) -> int:
    return rig.entries() if program is None else int(program.call("counters")["sessions"])


def note(row: Row, counted: Blast) -> None:
    row.figures.append(counted.packets_a_second)
    if counted.cpu_ns is not None:
        row.cpu_ns.append(counted.cpu_ns)


def check_natcore(counters: dict[str, int], created: int, packets: int) -> None:
    """Every packet was translated, and so many sessions were ever made."""
    found = {name: counters[name] for name in ("received", "forwarded", "created")}
    if found != {"received": packets, "forwarded": packets, "created": created}:
        raise Wrong(f"natcore says {found}, not {created} sessions of {packets} packets")


def finish(ways: list[Way]) -> None:
    for way in ways:
        if way.program is not None:
            way.program.close()


def warm(rig: Rig, sender: Part, program: Part | None, flows: int) -> int:
    """Packets until the XDP program translates nearly all flows that it may; how many it has translated by then."""
    assert program is not None
    rig.bind()
    for _ in range(WARM_PASSES):
        sender.call("flood", flows=flows, seconds=60.0, rate=WARM_RATE, most=max(flows, LEAST))
        rig.settle()
        counters = program.call("counters")
        if counters["fast_path_entries"] >= OFFLOADED * min(flows, OFFLOADED_MOST):
            return int(counters["fast_path"])
    raise Wrong(f"the fast path has {counters['fast_path_entries']} of {flows} flows")


def check_fast_path(program: Part, before: int, flows: int, packets: float) -> None:
    """Nearly all packets of the flows that it may have were translated by the XDP program."""
    counters = {}
    share = min(1.0, OFFLOADED_MOST / flows)
    for _ in range(20):  # it is known half a second later
        counters = program.call("counters")
        if counters["fast_path"] - before >= OFFLOADED**2 * share * packets:
            return
        time.sleep(0.1)
    raise Wrong(f"the fast path took {counters['fast_path'] - before} of {packets:.0f} packets")


def judged(rows: dict[str, Row], drivers: tuple[str, ...]) -> Iterator[Row]:
    """The rows with their ratios and goals."""
    kernel = rows[KERNEL]
    for driver in drivers:
        null, ours = rows[f"null {driver}"], rows[f"natcore {driver}"]
        null.ratio(kernel)
        ours.ratio(kernel)
        ours.aim(">= 95 % of null", ours.ratio(null) >= 0.95)
        if ours.cpu_ns:
            dearer = ours.dearer_ns(null)
            ours.aim(f"<= 100 ns more ({dearer:+.0f})", dearer <= 100)
    if FAST_PATH in rows:
        fast = rows[FAST_PATH]
        rows[REDIRECT].ratio(kernel)
        fast.aim(">= 1.5 x the kernel's", fast.ratio(kernel) >= 1.5)
        fast.ratio(rows[REDIRECT])
        if fast.cpu_ns:
            cpu = statistics.median(own / base for own, base in zip(fast.cpu_ns, kernel.cpu_ns, strict=True))
            fast.aim(f"<= 0.65 x the kernel's processor time ({cpu:.2f})", cpu <= 0.65)
    yield from rows.values()


def new_sessions(rig: Rig, sender: Part, options: argparse.Namespace) -> Iterator[Row]:
    """Every frame opens a session; the null forwarder, which opens none, says what the same frames cost by themselves."""
    rig.one_core(True)
    rig.sink(True)
    ways = beside(rig, options.drivers, 1 << 22)
    rows = {way.name: Row("new sessions", way.name, "sessions/s") for way in ways}
    rig.forget_entries()
    for way in ways:
        if not way.translates:
            continue
        with way as program:  # the machine brings memory in when it is first touched
            rig.establish(sender, WARM_FLOWS, lambda program=program: sessions_of(rig, program))
            if program is not None:
                program.call("end")
    for number in range(1 + options.rounds):
        for way in ways:
            with way as program:
                counted = blast_new(rig, sender, way, program, options.seconds)
                if number:  # the first brings in the rest
                    note(rows[way.name], counted)
    finish(ways)
    for driver in options.drivers:
        null, ours = rows[f"null {driver}"], rows[f"natcore {driver}"]
        null.ratio(rows[KERNEL])
        ours.ratio(null)
        ours.aim(">= 1.5 x the kernel's", ours.ratio(rows[KERNEL]) >= 1.5)
    yield from rows.values()


def blast_new(rig: Rig, sender: Part, way: Way, program: Part | None, seconds: float) -> Blast:
    """Frames of new flows through the kernel or a program; each has opened a session, which is ended again."""
    if not way.translates:
        return rig.blast(sender, program, NEW_FLOWS, seconds)
    before = rig.entries() if program is None else program.call("counters")["created"]
    counted = rig.blast(sender, program, NEW_FLOWS, seconds)
    if program is None:
        opened = rig.entries() - before
        rig.forget_entries()
    else:
        counters = program.call("counters")
        opened = counters["created"] - before
        check_natcore(counters, counters["created"], counters["received"])
        program.call("end")
    if opened < counted.packets_a_second * seconds:
        raise Wrong(f"{opened} sessions were opened by {counted}")
    return counted


def workers(rig: Rig, sender: Part, options: argparse.Namespace) -> Iterator[Row]:
    """One worker and two beside each other; receiving is done where the system puts it. No goal: of two processors the
    sender needs one."""
    if len(rig.cores) < 2:
        return
    rig.one_core(False)
    rig.sink(True)
    rig.queues(2)
    rig.forget_entries()
    ways = beside(rig, options.drivers, 2 * TWO_FLOWS, workers=(1, 2))
    rows = {
        way.name: Row(f"64-byte frames, {TWO_FLOWS:,} flows, two processors", way.name, "packets/s") for way in ways
    }
    bring_up(rig, sender, ways, TWO_FLOWS)
    for _ in range(options.rounds):
        for way in ways:
            with way as program:
                before = program.call("counters") if program is not None and way.translates else None
                note(rows[way.name], rig.blast(sender, program, TWO_FLOWS, options.seconds))
                if before is not None:
                    assert program is not None
                    counters = program.call("counters")
                    check_natcore(counters, TWO_FLOWS, counters["received"])
                    done = counters["received"] - before["received"]
                    rows[way.name].handed_over.append((counters["handed_over"] - before["handed_over"]) / done)
    finish(ways)
    rig.queues(1)
    for driver in options.drivers:
        null, one, two = (
            rows[name] for name in (f"null {driver}", f"natcore {driver}", f"natcore {driver}, 2 workers")
        )
        for row, others in ((null, [rows[KERNEL]]), (one, [rows[KERNEL], null]), (two, [rows[KERNEL], null, one])):
            for other in others:
                row.ratio(other)
    yield from rows.values()


def tcp(rig: Rig, sender: Part, options: argparse.Namespace) -> Iterator[Row]:
    """One stream with GSO on, receiving where the system puts it."""
    rig.one_core(False)
    rig.sink(False)
    ways = beside(rig, options.drivers, 10_000, fast_path=True)
    rows = {way.name: Row("TCP, one stream, GSO on", way.name, "Gbit/s") for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            with way:
                rows[way.name].figures.append(tcp_gbit(rig, options.tcp_seconds))
    finish(ways)
    for driver in options.drivers:
        null, ours = rows[f"null {driver}"], rows[f"natcore {driver}"]
        null.ratio(rows[KERNEL])
        ours.ratio(rows[KERNEL])
        ours.aim(">= 95 % of null", ours.ratio(null) >= 0.95)
    if FAST_PATH in rows:
        fast = rows[FAST_PATH]
        fast.aim(">= 95 % of it without", fast.ratio(rows["natcore af_xdp"]) >= 0.95)
    yield from rows.values()


def latency(rig: Rig, sender: Part, options: argparse.Namespace) -> Iterator[Row]:
    """Pings at light load, the median of each round."""
    rig.one_core(False)
    rig.sink(False)
    ways = [Way(KERNEL, None)]
    for driver in options.drivers:
        for mode, settings in MODES[driver].items():
            ways.append(Way(f"natcore {driver}{mode}", rig.natcore(driver, 10_000, **settings)))
    rows = {way.name: Row("ping, light load", way.name, "ms") for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            with way:
                ping_ms(rig, 3, 0.1)
                rows[way.name].figures.append(statistics.median(ping_ms(rig, 100, 0.005)))
    finish(ways)
    for name, row in rows.items():
        if name == KERNEL:
            continue
        ratio = row.ratio(rows[KERNEL])
        if name in AT_ONCE:
            row.aim("<= 4 x the kernel's", ratio <= 4.0)
        if name == FAST_PATH:
            row.aim("<= 1.2 x the kernel's", ratio <= 1.2)
    yield from rows.values()


# Of a plane with a driver: what is added to its name, and its options.
MODES: dict[str, dict[str, dict[str, Any]]] = {
    "af_packet": {"": {}, ", favour=latency": {"favour": "latency"}},
    "af_xdp": {"": {}, ", fast path": {"fast_path": True}},
}
AT_ONCE = ("natcore af_packet, favour=latency", "natcore af_xdp")

Section = Callable[[Rig, Part, argparse.Namespace], Iterator[Row]]
SECTIONS: dict[str, Section] = {
    "established": established, "new": new_sessions, "workers": workers, "tcp": tcp, "latency": latency,
}  # fmt: skip


def there_is_xdp() -> bool:
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW).close()
    except OSError:
        return False
    return True


def show(row: Row) -> str:
    scale, unit = {"packets/s": (1e-3, "kpps"), "sessions/s": (1e-3, "k/s")}.get(row.unit, (1.0, row.unit))
    low, high = min(row.figures) * scale, max(row.figures) * scale
    cpu = f"{statistics.median(row.cpu_ns):7.0f} ns" if row.cpu_ns else f"{'':10}"
    ratios = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in row.against.items())
    verdict = "" if row.ok is None else f"  {'ok' if row.ok else 'SHORT'}: {row.goal}"
    if "workers" in row.name:
        ratios += f", {statistics.median(row.handed_over):.2%} handed off"
    places = 0 if high >= 100 else 3
    return (
        f"  {row.name:32}{row.median * scale:10.{places}f} {unit:5} ({low:.{places}f} - {high:.{places}f}) {cpu}"
        f"  {ratios}{verdict}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.8, help="of one measurement")
    parser.add_argument("--tcp-seconds", type=int, default=2)
    parser.add_argument("--only", default="", help=f"sections with a matching name: {', '.join(SECTIONS)}")
    parser.add_argument("--flows", type=lambda text: [int(part) for part in text.split(",")], default=FLOWS,
                        help="powers of two, with commas between them")  # fmt: skip
    parser.add_argument("--drivers", type=lambda text: tuple(text.split(",")), default=DRIVERS)
    parser.add_argument("--sender", choices=("frames", "socket"), default="frames",
                        help="floods are frames as a network card's driver gives them, or a packet socket's")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if os.geteuid():
        print("the wire needs root: network namespaces, packet sockets, nftables", file=sys.stderr)
        return 2
    if missing := missing_tools():
        print(f"Missing here: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    if not there_is_xdp() and "af_xdp" in options.drivers:
        print("this kernel has no AF_XDP: left out")
        options.drivers = tuple(driver for driver in options.drivers if driver != "af_xdp")
    for module in ("wire/sender", "wire/null"):
        build(module)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through Rig's end: what was changed is put back
    began = time.monotonic()
    rows: list[Row] = []
    print(
        f"{os.uname().release}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {options.rounds} rounds",
        flush=True,
    )
    with Rig(frames=options.sender == "frames") as rig:
        sender = rig.sender()
        for name, section in SECTIONS.items():
            if not re.search(options.only, name):
                continue
            last = ""
            for row in section(rig, sender, options):
                if row.section != last:
                    print(f"\n{row.section}", flush=True)
                    last = row.section
                print(show(row), flush=True)
                rows.append(row)
    print(f"\nload {os.getloadavg()[0]:.1f}, took {time.monotonic() - began:.0f} s")
    if options.json is not None:
        about = {"kernel": os.uname().release, "processors": os.cpu_count(), "rounds": options.rounds}
        told = [vars(row) | {"median": row.median} for row in rows]
        options.json.write_text(json.dumps({"machine": about, "rows": told}, indent=2))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Disturbed as error:
        print(f"other work disturbed it: {error}", file=sys.stderr)
        sys.exit(3)
    except Wrong as error:
        print(f"what was timed is not what it says: {error}", file=sys.stderr)
        sys.exit(1)
