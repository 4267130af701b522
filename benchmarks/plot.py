"""A picture of speed over the number of sessions: natcore both ways beside walk, the memory's limit.

python benchmarks/plot.py speed.png speed.svg            its own sweep, 1,024 to 8,388,608 sessions (5 GB)
python benchmarks/plot.py speed.svg --from gate.json     of what `gate.py --full --json gate.json` wrote, or --json here
"""

from __future__ import annotations

import argparse
import gc
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compiled import build, walk
from natcore import Side
from natcore.errors import Error
from natcore.testing.bulk import UDP
from natcore.testing.gates import paired
from natcore.testing.load import Load
from natcore.who.plots import check_picture
from pictures import save
from timing import translate_seconds

SIZES = tuple(1 << power for power in (10, 13, 16, 18, 20, 22, 23))
FRAMES = 16_384  # a call
WALK_PACKETS = 12_000_000
WAYS = {"outbound": Side.INSIDE, "inbound": Side.OUTSIDE}
MARKS = (1, 2, 5, 10, 20, 30, 50, 100, 200, 300, 500)  # of the speed, million packets a second
GATED = re.compile(r"([\d,]+) sessions, UDP, (outbound|inbound), against walk")
STYLE = {"walk": ("0.55", "--"), "outbound": ("tab:blue", "-"), "inbound": ("tab:orange", "-")}
LABEL = {"walk": "memory walk (the limit)", "outbound": "natcore, from inside", "inbound": "natcore, from outside"}


@dataclass(frozen=True)
class Point:
    """What a packet takes among so many sessions: medians of rounds in turns. ratio: natcore to walk, round by round."""

    sessions: int
    way: str
    ns: float
    walk_ns: float
    ratio: float


def sweep(sizes: Sequence[int], rounds: int, calls: int, churn: int) -> Iterator[Point]:
    """Measures each size; verdicts, bytes and counters are checked as in the gates."""
    build("walk")
    for sessions in sizes:
        loaded = Load(sessions, churn=churn)
        for way, side in WAYS.items():

            def one(loaded: Load = loaded, side: Side = side) -> float:
                return translate_seconds(loaded, lambda: loaded.rows(FRAMES, UDP), lambda _: side, calls)

            ours, walks, ratio = paired(one, lambda sessions=sessions: walk(sessions, WALK_PACKETS), rounds)  # type: ignore[misc]
            yield Point(sessions, way, ours * 1e9, walks * 1e9, ratio)
        loaded.gateway.close()
        del loaded, one
        gc.collect()


def told(path: Path) -> list[Point]:
    """The points in a file that a run of the gates wrote, or a sweep."""
    rows = json.loads(path.read_text())
    points = [Point(**row) for row in rows if "way" in row]
    for row in rows:
        if found := GATED.fullmatch(row.get("name", "")):
            sessions = int(found[1].replace(",", ""))
            points.append(Point(sessions, found[2], row["ours"], row["baseline"], row["ratio"]))
    if not points:
        raise ValueError(f"{path}: no row of established UDP sessions; `gate.py --json` writes them, and --json here")
    return points


def draw(points: Sequence[Point], pictures: Sequence[Path]) -> None:
    """PNG or SVG files, by their endings."""
    import matplotlib

    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="live sessions, hit at random", ylabel="million packets a second, one core")
    lines = {way: sorted((p.sessions, 1e3 / p.ns) for p in points if p.way == way) for way in WAYS}
    walks: dict[int, list[float]] = {}
    for point in points:
        walks.setdefault(point.sessions, []).append(1e3 / point.walk_ns)
    lines["walk"] = sorted((sessions, sum(speeds) / len(speeds)) for sessions, speeds in walks.items())
    for name, (color, dash) in STYLE.items():
        if lines[name]:
            axes.plot(*zip(*lines[name], strict=True), dash, color=color, marker="o", markersize=4, label=LABEL[name])
    for point in points:
        if point.way == "outbound":
            axes.annotate(f"{point.ns:.0f} ns", (point.sessions, 1e3 / point.ns), textcoords="offset points",
                          xytext=(0, -14), ha="center", fontsize="small", color=STYLE["outbound"][0])  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted(walks)
    axes.set_xticks(ticks, [words(sessions) for sessions in ticks])
    axes.minorticks_off()
    speeds = [speed for line in lines.values() for _, speed in line]
    axes.set_ylim(bottom=min(speeds) / 1.5, top=max(speeds) * 1.3)
    marks = [mark for mark in MARKS if min(speeds) / 1.5 < mark < max(speeds) * 1.3]
    axes.set_yticks(marks, [str(mark) for mark in marks])
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title("Translation of 64-byte UDP frames over the number of sessions")
    for picture in pictures:
        save(figure, picture)


def words(sessions: int) -> str:
    """1 k, 64 k, 8 M: in powers of 1,024 where it is one of them, else as it is."""
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if sessions >= size and sessions % size == 0:
            return f"{sessions // size} {unit}"
    return f"{sessions:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path, help="files that end in .png or .svg")
    parser.add_argument(
        "--from", dest="gate", type=Path, metavar="JSON", help="figures of `gate.py --json`, or of --json here"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the sweep's figures")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="sessions of the largest table")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=16, help=f"timed calls of {FRAMES:,} frames a round")
    parser.add_argument("--churn", type=int, default=2, help="how often every session was replaced before")
    options = parser.parse_args()
    try:
        for picture in options.pictures:
            check_picture(picture)
    except Error as error:
        parser.error(str(error))
    if options.gate is not None:
        points = told(options.gate)
    else:
        points = []
        for point in sweep(
            [size for size in SIZES if size <= options.most], options.rounds, options.calls, options.churn
        ):
            print(f"{point.sessions:>10,} {point.way:9} {point.ns:6.1f} ns  walk {point.walk_ns:5.1f} ns  {point.ratio:.2f} x",
                  flush=True)  # fmt: skip
            points.append(point)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n")
    draw(points, options.pictures)


if __name__ == "__main__":
    main()
