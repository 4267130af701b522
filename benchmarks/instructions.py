"""Instructions and simulated cache misses a packet, counted by callgrind on fixed inputs, against the recorded figures.

The caches are a Zen 3's: data that missed the first level, and the second, which callgrind calls the last. They are empty at
the start of each count, and prefetches are no accesses: a miss says that memory was touched, not that it was waited for.
A count depends on the compiler, on Cython and on whether the processor has AES, not on its speed or on what else runs; tools
without a record are counted and not judged.
The import of natcore is counted beside numpy's, and is judged by any tools.
Exit status 1: a kind takes more than the recorded figure allows, or the import more than its limit.
`--record` writes the figures of the compiler at hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from admission import Admission
from callgrind import counted, dumps
from compiled import build, load_module
from natcore import Side
from natcore.log.encode_ipfix import encode_messages
from natcore.log.encode_rowbinary import encode_rows
from natcore.sinks.ipfix import _DETAILS, _NAT_EVENTS
from natcore.testing.bulk import ETHERNET, IPV4, TCP, UDP, endpoints, fold, get, headers_right, packets, put, word_sums
from natcore.testing.gates import LIMIT, count_process, toolchain
from natcore.testing.load import FRAME_BYTES, SYN, Load, flows, with_flags
from timing import AS_INSTALLED

RECORD = Path(__file__).resolve().with_name("instructions.json")
FRAMES = 16_384  # of a count; a batch's two ends weigh nothing then
SESSIONS = 1_024
NEW = 4_096
ROWS = 4_096
D1, D2 = ", misses of 32 KB", ", misses of 512 KB"  # after a kind's name
MISSES_MORE = 0.1  # a packet, beyond the limit: where a table lies differs
SMALL_LIMIT = 1.05  # times the recorded misses of 32 KB: what shares a set with what differs by 3 % from run to run
UNITS = {"session": NEW, "sweep": SESSIONS, "row": ROWS}  # of a count, by its kind's first word; else FRAMES
IMPORT_LIMIT = 1.2  # times numpy's, which natcore needs
SEED = 7


def counter() -> Any:
    return load_module("counted")


def established(loaded: Load) -> None:
    """Packets of established sessions, by kind: a packet each."""
    random = np.random.default_rng(SEED)
    loaded.random = random
    kinds = {
        "UDP, outbound": (UDP, np.zeros(FRAMES, np.uint8)),
        "UDP, inbound": (UDP, np.ones(FRAMES, np.uint8)),
        "TCP, outbound": (TCP, np.zeros(FRAMES, np.uint8)),
        "TCP, inbound": (TCP, np.ones(FRAMES, np.uint8)),
        "UDP and TCP, both ways": (None, random.integers(0, 2, FRAMES, np.uint8)),
    }
    for name, (protocol, sides) in kinds.items():
        rows = loaded.rows(FRAMES, protocol)
        frames = loaded.take(rows, sides, loaded.pristine)
        verdicts = translate(loaded, frames, sides, name)
        for side in Side:
            loaded.expect(verdicts[sides == side], side)
        if not (frames == loaded.take(rows, sides, loaded.expected)).all():
            raise AssertionError(f"{name}: a frame came out otherwise than the first time")


def numbered(loaded: Load) -> None:
    """Whole packets without DF, which get an identification of the gateway's (Policy.ip_id)."""
    loaded.random = np.random.default_rng(SEED)
    sides = np.zeros(FRAMES, np.uint8)
    frames = loaded.take(loaded.rows(FRAMES, UDP), sides, loaded.pristine)
    put(frames, ETHERNET + 6, 1, 0)
    put(frames, ETHERNET + 10, 2, 0)
    put(frames, ETHERNET + 10, 2, fold(word_sums(frames, ETHERNET, ETHERNET + IPV4)) ^ np.uint64(0xFFFF))
    loaded.expect(translate(loaded, frames, sides, "UDP without DF, outbound"), Side.INSIDE)
    if not headers_right(frames).all() or len(np.unique(get(frames, ETHERNET + 4, 2))) < FRAMES // 8:
        raise AssertionError("the frames were to have identifications, and right checksums")


def translate(loaded: Any, frames: Any, sides: Any, name: str) -> Any:
    verdicts = np.full(len(frames), 255, np.uint8)
    lengths = np.full(len(frames), FRAME_BYTES, np.uint32)
    capsule = loaded.gateway._core.worker_capsule()
    counter().count_translate(capsule, frames, lengths, sides, loaded.now, verdicts, name.encode())
    return verdicts


def misses(loaded: Load) -> None:
    """Strangers' packets towards ports without a mapping."""
    random = np.random.default_rng(SEED)
    pool, _ = endpoints(loaded.pristine[Side.OUTSIDE][loaded.rows(FRAMES)], "destination")
    frames, _ = packets(UDP, random.integers(0x0B000000, 0x0BFFFFFF, FRAMES), 1, pool, 9, length=FRAME_BYTES)
    if (translate(loaded, frames, np.ones(FRAMES, np.uint8), "miss") < 128).any():
        raise AssertionError("a stranger was let in")


def admission(used: float, hold_down: float, protocol: int) -> None:
    """New sessions, each with a mapping and a port of its own; and their end."""
    bench = Admission(used, hold_down, addresses=1, null=False)
    name = f"{used:.0%} of the ports in use, hold-down {hold_down:g} s"
    for turn in range(3):  # the last one counts: ports rest by then
        frames, lengths = flows(bench.held + turn * NEW, NEW, protocol)
        if protocol == TCP:
            frames = with_flags(frames, SYN, 1)
        created = bench.gateway.counters()["created"]
        if turn < 2:
            verdicts = bench.gateway.translate(frames, lengths, Side.INSIDE, now=bench.now)
        else:
            verdicts = translate(bench, frames, np.zeros(NEW, np.uint8), f"session opened, {name}")
        Load.expect(verdicts, Side.INSIDE)
        if bench.gateway.counters()["created"] != created + NEW:
            raise AssertionError(f"{NEW} sessions were to be new")
        bench.refresh_amid()
        if turn < 2:
            bench.gateway.advance(bench.now)
        else:
            counter().count_advance(bench.gateway._core.worker_capsule(), bench.now, f"session ended, {name}".encode())
        if bench.gateway.counters()["sessions"] != bench.held:
            raise AssertionError("the new sessions were to end, and no others")
        bench.refresh()


def sweep(loaded: Load) -> None:
    """A look at each live session."""
    ended = loaded.gateway.counters()["ended"]
    counter().count_advance(loaded.gateway._core.worker_capsule(), loaded.now, b"sweep, a live session")
    if loaded.gateway.counters()["ended"] != ended:
        raise AssertionError("no session was to end")


def encode(loaded: Load) -> None:
    """Rows made into what sinks send."""
    rows = np.resize(loaded.gateway.take_records(), ROWS).view("u1")
    formats: dict[str, Callable[[], object]] = {
        "RowBinary": lambda: encode_rows(rows, b"\5ngw-1\5vpc-1", b"\4run1"),
        "IPFIX": lambda: encode_messages(rows, 0, 1, 0, 1400, _NAT_EVENTS, _DETAILS),
    }
    for name, call in formats.items():
        counter().count_call(call, f"row encoded, {name}".encode())


def run() -> None:
    """Everything that is counted; called under valgrind."""
    if not counter().is_counting():
        raise SystemExit("--run works under valgrind only; leave it out")
    loaded = Load(SESSIONS, protocols=(UDP, TCP))
    established(loaded)
    numbered(loaded)
    misses(loaded)
    sweep(loaded)
    encode(loaded)
    for used, hold_down in ((0.5, 0.0), (0.5, 120.0), (0.9, 0.0)):
        admission(used, hold_down, UDP)


def count() -> dict[str, float]:
    """Instructions and misses a packet, a session or a row, by kind."""
    build("counted")
    with counted(Path(__file__).resolve(), "--run") as folder:
        return dict(sorted(figures(folder)))


def figures(folder: Path) -> Iterator[tuple[str, float]]:
    """(kind, instructions of one) of every dump, and (kind, misses of one)."""
    for name, took in dumps(folder):
        units = next((count for word, count in UNITS.items() if name.startswith(word)), FRAMES)
        yield name, round(took.instructions / units, 1)
        yield name + D1, round(took.near / units, 2)
        yield name + D2, round(took.far / units, 2)


def allowed(name: str, before: float) -> float:
    """The most that a kind may take where so much is recorded."""
    return before * (SMALL_LIMIT if name.endswith(D1) else LIMIT) + (MISSES_MORE if name.endswith((D1, D2)) else 0)


def importing(module: str) -> int:
    """Instructions of a process that imports a module, its bytecode compiled before: the same ones each time."""
    program = [sys.executable, "-c", f"import {module}"]
    environment = {**AS_INSTALLED, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}  # threads wait for each other
    subprocess.run(program, check=True, env=environment)
    return count_process(program, environment)


def judge_import(ours: int, numpys: int) -> bool:
    """Whether the import is within its limit; prints it."""
    ratio = ours / numpys
    over = ratio > IMPORT_LIMIT
    print(
        f"{'import natcore against import numpy, millions':<62} {ours / 1e6:>9,.1f}   {numpys / 1e6:>9,.1f} numpy's"
        f"    ratio {ratio:.3f}, limit {IMPORT_LIMIT:g}{'   TOO MANY' if over else ''}"
    )
    return not over


def judge(counted: dict[str, float], tools: str, records: dict[str, dict[str, float]]) -> bool:
    """Whether no kind takes more than its record allows; prints each. Without a record for these tools all is well."""
    known = records.get(tools, {})
    print(f"{tools}; instructions and misses of a packet, of a session opened, ended or looked at, or of a row")
    well = True
    for name, figure in counted.items():
        before = known.get(name)
        over = before is not None and figure > allowed(name, before)
        well = well and not over
        change = "   not recorded" if before is None else f"{before:>9,.2f} recorded   {figure - before:+9.2f}"
        print(f"{name:<76} {figure:>9,.2f}   {change}{'   TOO MANY' if over else ''}")
    if not known:
        print(f"NOT JUDGED: nothing is recorded for {tools}, only for: {'; '.join(records) or 'nothing'}")
        return True
    if missing := sorted(known.keys() - counted.keys()):
        print(f"recorded, but not counted: {', '.join(missing)}")
    return well and not missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"write the figures to {RECORD.name}")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run()
        return 0
    counted, tools = count(), toolchain()
    records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    well = judge(counted, tools, records)
    well &= judge_import(importing("natcore"), importing("numpy"))
    if options.record:
        records[tools] = counted
        RECORD.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    return 0 if well or options.record else 1


if __name__ == "__main__":
    sys.exit(main())
