"""The log and `who` of a plane that forwards while the machine's clock is set or the machine sleeps.

No test can set the machine's clock: the collector of a running plane is given readings that differ from the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from natcore import Gateway
from natcore.internal import machine_clock
from natcore.internal.machine_clock import Readings
from natcore.sinks import ParquetSink
from natcore.who.query import Answer, who
from support.netns import SERVER, Nat, needs_root, ping, until

pytestmark = [needs_root, pytest.mark.usefixtures("each_driver")]
SECOND = 1_000_000_000


@dataclass
class Machine:
    """The machine's clocks, but set by `ahead`, and after `slept`: ns."""

    ahead: int = 0
    slept: int = 0

    def __call__(self) -> Readings:
        now = machine_clock.read()
        return Readings(now.real + self.ahead + self.slept, now.monotonic, now.boot + self.slept)

    def now(self) -> float:
        return self().real / 1e9


def watched(made: Gateway, folder: Path) -> Machine:
    machine = Machine()
    made.start_session_log(ParquetSink(folder, batch_seconds=0.0))
    assert made._collector is not None
    made._collector._readings = machine
    return machine


def asked(made: Gateway, folder: Path, session: Any, at: float, tolerance: float = 1.0) -> Answer:
    address = int(session["outside_ip"]).to_bytes(4, "big")
    return who(
        folder, ".".join(map(str, address)), int(session["outside_port"]), protocol="icmp",
        at=datetime.fromtimestamp(at, UTC), tolerance=tolerance, gateway=made,
    )  # fmt: skip


def changes(made: Gateway) -> int:
    assert made._collector is not None
    return made._collector.counters()["clock_changes"]


def test_a_plane_s_log_follows_a_clock_that_is_set(nat: Nat, tmp_path: Path) -> None:
    """30 s fast at first, as the log's labels are; then it is set right."""
    network, made, _ = nat
    machine = watched(made, tmp_path)
    assert ping(network, "in", SERVER)
    (early,) = made.sessions()
    machine.ahead = -30 * SECOND
    until(lambda: changes(made) == 1)
    assert ping(network, "in", SERVER)
    late = next(each for each in made.sessions() if each["session"] != early["session"])
    assert abs(int(late["start_time"]) / 1e6 - machine.now()) < 25  # by the clock as it is now
    assert [event.reason for event in made.take_events()] == ["clock-set"]
    right = int(late["start_time"]) / 1e6
    answer = asked(made, tmp_path, late, right)
    assert (answer.status, str(answer.subscriber)) == ("exact", "10.0.0.2") or answer.status == "ambiguous"
    assert asked(made, tmp_path, early, right).status != "unused"  # it may have begun 30 s before its label


def test_a_plane_s_log_knows_that_the_machine_slept(nat: Nat, tmp_path: Path) -> None:
    """Twenty hours; its session goes on, and has had its port all the time."""
    network, made, _ = nat
    machine = watched(made, tmp_path)
    assert ping(network, "in", SERVER)
    (session,) = made.sessions()
    began = int(session["start_time"]) / 1e6
    until(lambda: made._collector is not None and made._collector._right_us > began * 1e6 + 1_000_000)
    machine.slept = 72_000 * SECOND
    until(lambda: changes(made) == 1)
    assert [event.reason for event in made.take_events()] == ["machine-slept"]
    for later, statuses in ((0.001, ("exact",)), (36_000.0, ("exact", "held-idle")), (-100.0, ("unused", "gap"))):
        answer = asked(made, tmp_path, session, began + later, tolerance=0.0)
        assert answer.status in statuses, (later, answer)
