"""Breaks each requirement on purpose and wants its conformance cases to fail: `python tests/runs/mutants.py`.

A mutant that no case notices is a failure of the run, and so is a case that fails under no mutant, or has none. With
--machine one test has to notice all of them: `natcore.testing.NatMachine`, as a user subclasses it. A gateway without a
mutant has to pass the same number of lives first.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/

import argparse
import io
import multiprocessing
import warnings
from collections import defaultdict
from contextlib import redirect_stderr, redirect_stdout

from hypothesis import HealthCheck, Phase, Verbosity, reject, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from conformance.mutations import MUTANTS, Mutant
from natcore import ConfigurationError, Side
from natcore.testing import Configuration, DataPath, NatMachine, Sent, leaving
from natcore.testing.conformance import CASES, REQUIREMENTS, Case, run_case

CASES_OF: dict[str, list[Case]] = {
    each.key: [case for case in CASES if case.key == each.key] for each in REQUIREMENTS if each.is_met
}


def failing(mutant: Mutant, cases: list[Case]) -> set[str]:
    """The cases that fail with a mutant at work, by name."""
    with warnings.catch_warnings(), mutant.at_work():
        warnings.simplefilter("ignore")
        return {case.name for case in cases if run_case(case, DataPath).finding == "failed"}


def trial(job: tuple[str, int]) -> tuple[str, int, set[str]]:
    key, number = job
    return key, number, failing(MUTANTS[key][number], CASES_OF[key])


class Machine(NatMachine):
    """The guide's test of a gateway. A mutant that cannot be what it is asked for is another life's."""

    def start(self, configuration: Configuration) -> None:
        try:
            super().start(configuration)
        except ConfigurationError:
            reject()

    def translate(self, frame: bytes, side: Side, now: float) -> list[Sent]:
        return leaving(self.gateway, frame, side, now)


LIVES_OF_A_SEED = 10


def difference(mutant: Mutant, lives: int) -> str | None:
    """What the machine says of a gateway with a mutant at work, first line first; None: it notices nothing."""
    chosen = settings(
        max_examples=LIVES_OF_A_SEED, stateful_step_count=30, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False, verbosity=Verbosity.quiet,
    )  # fmt: skip
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), mutant.at_work():
        for number in range(-(-lives // LIVES_OF_A_SEED)):  # most lives of one seed have another one's configuration
            try:
                run_state_machine_as_test(seed(number)(type("Machine", (Machine,), {})), settings=chosen)
            except AssertionError as error:
                return str(error)
    return None


def machine_trial(job: tuple[str, int, int]) -> tuple[str, int, str | None]:
    key, number, lives = job
    return key, number, difference(MUTANTS[key][number], lives)


def run_machine(only: str | None, jobs: int, lives: int) -> int:
    """Every mutant under the machine; the exit status."""
    tried: dict[str, tuple[str, int, int]] = {}  # each that is another one, once
    for key, of in MUTANTS.items():
        for number, mutant in enumerate(of):
            if only in (None, key):
                tried.setdefault(repr((mutant.what, mutant.policy, mutant.timeouts)), (key, number, lives))
    told = difference(Mutant("nothing is wrong"), lives)
    if told is not None:  # what it says of mutants would mean nothing
        print(f"the machine finds fault with a sound gateway:\n{told}")
        return 1
    print(f"a sound gateway passes {lives} lives", flush=True)
    missed = 0
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for key, number, told in pool.imap(machine_trial, tried.values()):
            first = "NOT NOTICED" if told is None else " / ".join(told.splitlines()[:3])
            print(f"{key:10}{MUTANTS[key][number].what:48}{first[:160]}", flush=True)
            missed += told is None
    print(f"{len(tried)} mutants, {len(tried) - missed} noticed")
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="a requirement, such as 4787-6")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument(
        "--machine", action="store_true", help="the public state machine instead of the conformance cases"
    )
    parser.add_argument("--lives", type=int, default=100, help="random lives of each mutant at most, with --machine")
    arguments = parser.parse_args()
    if arguments.machine:
        return run_machine(arguments.only, arguments.jobs, arguments.lives)
    cases = {key: of for key, of in CASES_OF.items() if arguments.only in (None, key)}
    jobs = [(key, number) for key in cases for number in range(len(MUTANTS.get(key, ())))]
    wrong = [f"{key}: has no mutant" for key in cases if key not in MUTANTS]
    wrong += [f"{key}: has a mutant and no case" for key in MUTANTS if arguments.only is None and key not in cases]
    sound = failing(Mutant("nothing is wrong"), [case for of in cases.values() for case in of])
    wrong += [f"{name} fails without a mutant" for name in sorted(sound)]
    noticed: dict[str, set[str]] = defaultdict(set)
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        for key, number, failed in pool.imap(trial, jobs):
            what, count = MUTANTS[key][number].what, len(cases[key])
            print(f"{key:10}{what:48}{len(failed)} of {count} cases fail", flush=True)
            noticed[key] |= failed
            if not failed:
                wrong.append(f"{key}: no case notices: {what}")
    for key, of in cases.items():
        names = {case.name for case in of}
        wrong += [f"{key}: {name} fails under no mutant" for name in sorted(names - noticed[key]) if key in MUTANTS]
    print("\n".join(wrong) or f"{len(jobs)} mutants of {len(cases)} requirements, all noticed")
    return 1 if wrong else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    raise SystemExit(main())
