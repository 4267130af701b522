"""Gates for a pipeline with a gateway in it: counted instructions against recorded ones, and ratios of times within one run.

A count depends on the compiler and on the processor's AES, not on its speed or on what else runs: it may gate a merge. A ratio
of two times, taken in turns, holds on a shared machine as well as a time can.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from natcore.errors import Error

LIMIT = 1.02  # times the recorded figure
ATTEMPTS = 3  # others' work on a shared machine only ever makes a ratio worse
SEED = "7"  # of Python's hashes
TOTAL = re.compile(r"^(?:totals|summary): (\d+)", re.M)  # of a file of callgrind's

Make = Callable[[], Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One gate: a figure, what it was compared with, and the ratio that must not exceed the limit."""

    name: str
    ours: float
    baseline: float
    ratio: float
    limit: float
    unit: str = "ns"

    @property
    def ok(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.ratio <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.name:<62} {self.ours:>9.1f} {self.unit:<5} against {self.baseline:>9.1f}"
            f"   ratio {self.ratio:5.2f}   limit {self.limit:g}   {'ok' if self.ok else 'TOO MUCH'}"
        )

    def as_json(self) -> dict[str, object]:
        """Return the fields, and `ok`."""
        return {**asdict(self), "ok": self.ok}


def paired(one: Callable[[], float], other: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Measure in turns.

    Parameters
    ----------
    one, other
        Each measures once, and returns its seconds.
    rounds
        How many pairs, after one that does not count.

    Returns
    -------
    tuple of float
        The medians of one, of other, and of their ratio.
    """
    one(), other()  # warm
    pairs = [(one(), other()) for _ in range(rounds)]
    first, second = zip(*pairs, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(a / b for a, b in pairs)


def best_of(measure: Callable[[], Outcome]) -> Outcome:
    """Return the first of three attempts that holds, or the best."""
    outcomes: list[Outcome] = []
    while len(outcomes) < ATTEMPTS and not (outcomes and outcomes[-1].ok):
        outcomes.append(measure())
    return min(outcomes, key=lambda outcome: outcome.ratio)


def toolchain() -> str:
    """Name what a count of the core depends on: its compiler, Cython where it is installed, whether the processor has AES."""
    core = Path(str(importlib.import_module("natcore.nat.pipeline").__file__)).read_bytes()
    found = re.search(rb"(GCC|clang version)[^0-9]*(?:\([^)]*\) )?(\d+\.\d+)", core)
    compiler = f"{'gcc' if found[1] == b'GCC' else 'clang'} {found[2].decode()}" if found else "another compiler"
    with suppress(PackageNotFoundError):  # it is there where the core was built
        compiler += f", Cython {'.'.join(version('cython').split('.')[:2])}"
    aes = "AES" if "aes" in Path("/proc/cpuinfo").read_text().split() else "no AES"
    return f"{compiler}, {aes}"


def count_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Count the instructions of a process from its begin to its end, by valgrind's callgrind.

    Raises
    ------
    Error
        valgrind is not installed, or the program failed; its output is in the message.
    """
    if shutil.which("valgrind") is None:
        raise Error("valgrind is missing: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        counting = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--quiet", *command]
        environment = {**(os.environ if environment is None else environment), "PYTHONHASHSEED": SEED}
        done = subprocess.run(counting, capture_output=True, text=True, env=environment)
        total = TOTAL.search(out.read_text()) if out.exists() else None
        if done.returncode or total is None:
            raise Error(f"the counted program failed with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        return int(total[1])


def instructions(make: Make, *, per: int = 1, calls: int = 4) -> float:
    """Count the instructions of one call, in processes of their own: of twice as many calls, less those of as many.

    Parameters
    ----------
    make
        A function of a module, without arguments, that makes what is needed and returns the call that is counted. It is
        called once before the counted ones.
    per
        How many packets, or whatever the figure is to be of, a call has.
    calls
        How many calls are counted; the start of a process varies by some ten thousand instructions.

    Returns
    -------
    float
        Instructions of one of these, to a tenth.

    Raises
    ------
    Error
        As `count_process`; or `make` is none that another process can find.
    """
    file, name = inspect.getsourcefile(make), make.__qualname__
    if file is None or not name.isidentifier():
        raise Error(f"make must be a function of a module's file, got {name}")
    command = [sys.executable, str(Path(__file__).with_name("counted_call.py")), file, name]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    first = subprocess.run(
        [*command, "0"], capture_output=True, text=True, env=environment
    )  # compiles what is imported
    if first.returncode:
        raise Error(f"the counted program failed with {first.returncode}: {(first.stdout + first.stderr)[-2000:]}")
    fewer, more = (count_process([*command, str(calls * times)], environment) for times in (1, 2))
    return round((more - fewer) / calls / per, 1)


class Gate:
    """Figures that a file records, and measurements that are judged by them.

    Parameters
    ----------
    file
        JSON: figures by tools (`toolchain`) and name. It belongs into the repository; a measurement that it does not have is
        added, with a warning.
    record
        Put the new figures in place of the recorded ones, and judge nothing. None: where the environment has
        NATCORE_RECORD=1.
    """

    def __init__(self, file: str | os.PathLike[str], *, record: bool | None = None) -> None:
        self.file = Path(file)
        self.record = os.environ.get("NATCORE_RECORD") == "1" if record is None else record

    @functools.cached_property
    def tools(self) -> str:
        """What counts depend on here: `toolchain`, and Python."""
        return f"{toolchain()}, Python {sys.version_info[0]}.{sys.version_info[1]}"

    def recorded(self) -> dict[str, float]:
        """Return the figures of the tools at hand."""
        return self._read().get(self.tools, {})

    def instructions(self, name: str, make: Make, *, per: int = 1, calls: int = 4, limit: float = LIMIT) -> Outcome:
        """Count the instructions of a call, and judge them.

        Parameters
        ----------
        name
            Of the figure, in the file.
        make, per, calls
            As for the function `instructions`.
        limit
            Times the recorded figure.

        Returns
        -------
        Outcome
            The figure and the recorded one.

        Raises
        ------
        AssertionError
            It is above the limit.
        Error
            As of `instructions`.
        """
        figure = instructions(make, per=per, calls=calls)
        known = self.recorded().get(name)
        if known is None or self.record:
            self._write(name, figure)
            if not self.record:
                warnings.warn(f"{self.file.name}: {name} was not recorded for {self.tools}; it is now", stacklevel=2)
            known = figure
        return _judged(Outcome(name, figure, known, figure / known, limit, "instr"))

    def ratio(
        self, name: str, one: Callable[[], float], other: Callable[[], float], limit: float, *, rounds: int = 9
    ) -> Outcome:
        """Judge a ratio of two times: the median of pairs taken in turns, the best of three attempts.

        Parameters
        ----------
        name
            Of the figure, for the message.
        one, other
            Each measures once, and returns its seconds.
        limit
            What one divided by other may be.
        rounds
            Pairs of an attempt.

        Raises
        ------
        AssertionError
            It is above the limit.
        """

        def measure() -> Outcome:
            first, second, ratio = paired(one, other, rounds)
            return Outcome(name, first * 1e9, second * 1e9, ratio, limit)

        return _judged(best_of(measure))

    def _read(self) -> dict[str, dict[str, float]]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def _write(self, name: str, figure: float) -> None:
        records = self._read()
        records.setdefault(self.tools, {})[name] = figure
        self.file.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")


def _judged(outcome: Outcome) -> Outcome:
    assert outcome.ok, str(outcome)
    return outcome
