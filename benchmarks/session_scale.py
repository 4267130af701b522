"""The session table at the sizes of FD.io CSIT's NAT44 tests: packets and new sessions a second, bytes a session.

    python benchmarks/session_scale.py --most 1032192 --json sessions.json --plot sessions.svg

CSIT opens 63 ports of each inside host, 64,512 sessions an outside address: with a port for each session, as here, every
outside port is taken at the end. Each size has a process of its own. --most: the largest table; that of 16,515,072 sessions
takes 5 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np

from memory import resident_bytes
from natcore import Gateway, Policy, Side, SnatEntry, Verdict
from natcore.errors import Error
from natcore.testing.bulk import UDP, Frames, Lengths, answers, packets
from natcore.testing.load import FRAME_BYTES, Rows
from natcore.who.plots import check_picture
from pictures import save

SIZES = (64_512, 1_032_192, 4_128_768, 16_515_072)
PORTS_A_HOST = 63
SESSIONS_AN_ADDRESS = 64_512
STEP = 16_128  # frames a call: whole hosts
INSIDE, REMOTE, POOL = 0xAC10_0000, 0x1410_0000, 0x448E_4400  # 172.16.0.0, 20.16.0.0, 68.142.68.0, as CSIT has them
# https://github.com/FDio/csit, docs/TNM/examples/output_uti: job csit-vpp-perf-report-iterative-2101-2n-skx of 3 February 2021,
# UDP sessions a second without loss (NDR, lower bound), Intel Xeon Skylake and XXV710, through the card both ways.
VPP = {(258_048, 1): 1.21e6, (16_515_072, 4): 1.96e6}  # sessions, cores (two threads each)
VPP_SOURCE = "VPP 21.01 nat44-ed on the wire (FD.io CSIT, 2021)"


@dataclass(frozen=True)
class Scale:
    """What one core does in memory, by its processor time. new, new_last: sessions a second, of all and of the last sixteenth,
    when the pool is nearly used up. outbound, inbound: packets a second of established sessions in random order. resident:
    bytes a session."""

    sessions: int
    new: float
    new_last: float
    outbound: float
    inbound: float
    resident: float


class Sessions:
    """A gateway with that many live sessions, opened host by host.

    opened: seconds of processor time of each call of STEP frames. resident: bytes a session that the process has grown by.
    """

    def __init__(self, sessions: int) -> None:
        if sessions % SESSIONS_AN_ADDRESS:
            raise ValueError(f"sessions must be a multiple of {SESSIONS_AN_ADDRESS:,}, got {sessions:,}")
        self.sessions, self.random = sessions, np.random.default_rng(1)
        self.frames(np.arange(STEP))  # numpy's own memory, once
        before = resident_bytes()
        hosts, addresses = sessions // PORTS_A_HOST, sessions // SESSIONS_AN_ADDRESS
        self.gateway = Gateway(
            max_sessions=sessions, max_mappings=sessions, max_subscribers=hosts, records=1_024, seed=1,
            policy=Policy(pooling="arbitrary"),
        )  # fmt: skip
        pool = f"{IPv4Address(POOL)}-{IPv4Address(POOL + addresses - 1)}"
        self.gateway.add(SnatEntry("172.16.0.0/12", pool=pool))
        self.opened: list[float] = []
        for first in range(0, sessions, STEP):
            frames, lengths = self.frames(np.arange(first, first + STEP))
            self.opened.append(self.translate(frames, lengths, Side.INSIDE))
        counters = self.gateway.counters()
        if (counters["sessions"], counters["created"]) != (sessions, sessions):
            raise AssertionError(f"{counters['sessions']:,} sessions, not {sessions:,}")
        self.resident = (resident_bytes() - before) / sessions

    @staticmethod
    def frames(rows: Rows) -> tuple[Frames, Lengths]:
        hosts, ports = np.divmod(rows.astype(np.uint64), np.uint64(PORTS_A_HOST))
        return packets(UDP, INSIDE + hosts, 1_024 + ports, REMOTE + hosts, 8_080, length=FRAME_BYTES)

    def translate(self, frames: Frames, lengths: Lengths, side: Side) -> float:
        """Seconds of processor time; every frame must be let through."""
        verdicts = np.full(len(frames), 255, np.uint8)
        start = time.thread_time()  # of the processor: others may use the machine too
        self.gateway.translate(frames, lengths, side, now=0.0, out=verdicts)
        seconds = time.thread_time() - start
        if not (verdicts == (Verdict.OUTBOUND if side is Side.INSIDE else Verdict.INBOUND)).all():
            raise AssertionError("not all were let through")
        return seconds

    def chosen(self) -> Rows:
        return self.random.integers(0, self.sessions, STEP)

    def both_ways(self) -> tuple[float, float]:
        """Seconds of STEP packets of random sessions, and of their answers, which must come back to where they belong."""
        frames, lengths = self.frames(self.chosen())
        sources = frames[:, 26:30].copy(), frames[:, 34:36].copy()
        outbound = self.translate(frames, lengths, Side.INSIDE)
        back, _ = answers(frames, lengths)
        inbound = self.translate(back, lengths, Side.OUTSIDE)
        if not ((back[:, 30:34] == sources[0]).all() and (back[:, 36:38] == sources[1]).all()):
            raise AssertionError("an answer went to another host")
        return outbound, inbound

    def new(self, of: int = 1) -> float:
        """New sessions a second, of the last one of so many parts."""
        last = self.opened[-max(1, len(self.opened) // of) :]
        return len(last) * STEP / sum(last)


def measure(sessions: int, calls: int) -> Scale:
    """Of this process: call it in a new one."""
    table = Sessions(sessions)
    outbound, inbound = zip(*(table.both_ways() for _ in range(calls)), strict=True)
    return Scale(
        sessions, table.new(), table.new(16), STEP / statistics.median(outbound), STEP / statistics.median(inbound),
        table.resident,
    )  # fmt: skip


def in_own_process(sessions: int, calls: int) -> Scale:
    command = [sys.executable, str(Path(__file__).resolve()), "--alone", str(sessions), "--calls", str(calls)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Scale(**json.loads(run.stdout))


def line(point: Scale) -> str:
    return (
        f"{point.sessions:>10,} sessions  {point.outbound / 1e6:5.1f} out {point.inbound / 1e6:5.1f} in M packets/s  "
        f"{point.new / 1e6:5.2f} M new/s ({point.new_last / 1e6:.2f} at the end)  {point.resident:5.0f} bytes a session"
    )


def draw(points: Sequence[Scale], picture: Path) -> None:
    """A PNG or SVG file, by its ending: packets, and new sessions beside what was published of VPP."""
    import matplotlib

    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    speed, opening = figure.subplots(1, 2)
    sizes = [point.sessions for point in points]
    speed.plot(sizes, [point.outbound / 1e6 for point in points], marker="o", label="from inside")
    speed.plot(sizes, [point.inbound / 1e6 for point in points], marker="o", label="from outside")
    speed.set_ylabel("million packets a second, one core, in memory")
    opening.plot(sizes, [point.new / 1e6 for point in points], marker="o", label="natcore, one core, in memory")
    for number, ((sessions, cores), rate) in enumerate(VPP.items()):
        opening.plot(sessions, rate / 1e6, "k^", label=VPP_SOURCE if number == 0 else None)
        opening.annotate(f"{cores} core{'s'[: cores - 1]}", (sessions, rate / 1e6), textcoords="offset points",
                         xytext=(0, -14), ha="center", fontsize="small")  # fmt: skip
    opening.set_ylabel("million new sessions a second")
    for axes in (speed, opening):
        axes.set_xscale("log")
        axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES], fontsize="small", rotation=20)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("sessions, 63 a host, every outside port taken")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    save(figure, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="sessions of the largest table")
    parser.add_argument("--calls", type=int, default=100, help=f"timed calls of {STEP:,} frames each way")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them: a file that ends in .png or .svg")
    parser.add_argument("--alone", type=int, metavar="SESSIONS", help="one size in this process; prints JSON")
    options = parser.parse_args()
    if options.plot is not None:
        try:
            check_picture(options.plot)
        except Error as error:
            parser.error(str(error))
    if options.alone is not None:
        print(json.dumps(asdict(measure(options.alone, options.calls))))
        return
    points = []
    for size in SIZES:
        if size <= options.most:
            points.append(in_own_process(size, options.calls))
            print(line(points[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n")
    if options.plot is not None:
        draw(points, options.plot)


if __name__ == "__main__":
    main()
