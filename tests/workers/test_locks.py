"""The lock checker of debug builds: a thread that breaks a rule ends its process, with a message. Other builds have none."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from natcore import Gateway, SnatEntry
from natcore.testhooks import planted_faults

WAITS = "lock order broken: waits for a lock below one that it holds"
ORDER = {
    "waits for a lower worker": f"{WAITS} (rank 0, held 1)",
    "waits for a worker under a spinlock": f"{WAITS} (rank 0, held 512)",
    "waits for a spinlock under another": f"{WAITS} (rank 512, held 512)",
    "waits for a spinlock under an inner one": f"{WAITS} (rank 512, held 768)",
    "releases what it does not hold": "a lock is not held: released",
    "sessions": "a lock is not held: sessions: session_find",
    "mappings": "a lock is not held: mappings: subscriber_find",
    "ports": "a lock is not held: ports: random_take",
    "fragments": "a lock is not held: fragments: datagram_find",
    "SYN hold-off": "a lock is not held: SYN hold-off: syn_holdoff_due",
    "worker": "a lock is not held: worker: clock_set",
}
SCRIPT = """
from natcore import Gateway
from natcore.testhooks import planted_faults
gateway = Gateway(workers=2)
planted_faults.{call}
print("alive")
"""


def in_process(call: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT.format(call=call)], capture_output=True, text=True)


@pytest.mark.parametrize("what", ORDER)
def test_a_broken_rule_ends_a_debug_build_and_costs_others_nothing(what: str) -> None:
    done = in_process(f"misuse(gateway._core.worker_capsule(), {what!r})")
    if planted_faults.checks_locks():
        assert done.returncode == -signal.SIGABRT and f"natcore: {ORDER[what]}" in done.stderr
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_the_checker_aborts_in_any_build_when_it_is_told_of_a_broken_order() -> None:
    done = in_process("rank_broken()")
    assert done.returncode == -signal.SIGABRT
    assert "natcore: lock order broken: waits for a lock below one that it holds (rank 3, held 3)" in done.stderr


@pytest.mark.parametrize("workers", [2, 4])
def test_who_holds_what_a_table_asks_for_may_use_it(workers: int) -> None:
    gateway = Gateway(workers=workers)
    gateway.add(SnatEntry("10.0.0.0/16", "203.0.113.1"))
    planted_faults.use_locked(gateway._core.worker_capsule())
    assert planted_faults.broken(gateway._core.worker_capsule()) is None
