"""Whether a gateway is well: its loops turn, and its planes forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from natcore.internal.validation import check_number

if TYPE_CHECKING:
    from natcore.gateway import Gateway

LATE_SECONDS = 5.0  # since a loop's last turn; idle ones turn at least each 0.1 s


@dataclass(frozen=True, slots=True)
class Report:
    """A verdict on a gateway, with its reasons.

    Parameters
    ----------
    ok
        It is well.
    problems
        What is not, one sentence each.
    """

    ok: bool
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "ok\n" if self.ok else "".join(f"{problem}\n" for problem in self.problems)


class Health:
    """Asks a gateway's planes whether their loops turn and their interfaces are up. Thread-safe; it waits for nothing.

    Parameters
    ----------
    gateway
        The gateway; with no plane it is alive, and not ready.
    late
        Seconds since a loop's last turn after which it hangs, 0.1 to 3,600.
    """

    def __init__(self, gateway: Gateway, *, late: float = LATE_SECONDS) -> None:
        self._gateway = gateway
        self._late = check_number("late", late, 0.1, 3600, unit="seconds")

    def alive(self) -> Report:
        """Say whether every loop of every plane has turned lately: what a watchdog asks.

        Returns
        -------
        Report
            Its problems name the threads that hang.
        """
        problems = [
            f"{thread} has not turned for {age:.1f} s"
            for plane in self._gateway.planes
            for thread, age in plane.turn_ages().items()
            if age > self._late
        ]
        return Report(not problems, tuple(problems))

    def ready(self) -> Report:
        """Say whether the gateway forwards: it is alive, has a plane, and all interfaces of it are up.

        Returns
        -------
        Report
            Its problems name what hangs, and which interfaces are down.
        """
        problems = [*self.alive().problems]
        planes = self._gateway.planes
        if not planes:
            problems.append("it forwards between no interfaces")
        for plane in planes:
            problems += [
                f"interface {name} ({interface.side}) is down or away"
                for name, interface in plane.interfaces().items()
                if not interface.up
            ]
        return Report(not problems, tuple(problems))
