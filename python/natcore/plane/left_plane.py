"""What a plane leaves to that of another process: the interfaces' locks and packet rings, and the socket that owns the block.

They are open descriptors, so that nothing is closed and opened again between the two: packets that come meanwhile wait in the
rings, and the kernel's block stands.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from natcore.internal.closing import Closing
from natcore.plane.drivers import LeftRing

Rings = tuple[str, bool, int, int]  # of which kind: driver, at_once, workers, port_unit (drivers.PacketAccess)


@dataclass
class LeftInterface:
    """An interface. index: its number; lock: its locked file; rings: one for each worker, none: the driver cannot leave any."""

    name: str
    index: int
    lock: int
    rings: list[LeftRing] = field(default_factory=list)

    def descriptors(self) -> list[int]:
        """Return all of them, in the order of `encode`."""
        return [self.lock, *(each for sockets, _ in self.rings for each in sockets)]

    def encode(self) -> dict[str, Any]:
        """Return all but the descriptors, for JSON."""
        return {"name": self.name, "index": self.index, "places": [place for _, place in self.rings]}

    @classmethod
    def decode(cls, made: Mapping[str, Any], descriptors: Sequence[int]) -> LeftInterface:
        """Return it from both. Raises ValueError: they do not belong together."""
        lock, *sockets = descriptors
        places = [tuple(place) for place in made["places"]]
        rings = [
            (tuple(sockets[at : at + 3]), place) for at, place in zip(range(0, len(sockets), 3), places, strict=True)
        ]
        return cls(made["name"], made["index"], lock, rings)  # type: ignore[arg-type]


@dataclass
class LeftPlane(Closing):
    """A plane. kind: of its rings. ruleset: the socket that owns the block, and its last number. A context manager that closes
    what no one has taken."""

    kind: Rings
    ruleset: tuple[int, int] | None
    interfaces: dict[str, LeftInterface]

    def take_ruleset(self) -> tuple[int, int] | None:
        """Give the block's socket."""
        taken, self.ruleset = self.ruleset, None
        return taken

    def take_lock(self, name: str) -> int | None:
        """Give an interface's lock; None: it was none of the plane's."""
        interface = self.interfaces.get(name)
        if interface is None or interface.lock < 0:
            return None
        lock, interface.lock = interface.lock, -1
        return lock

    def take_rings(self, name: str, index: int, kind: Rings) -> list[LeftRing]:
        """Give an interface's rings; none: it had others, or is another one of its name."""
        interface = self.interfaces.get(name)
        if interface is None or interface.index != index or kind != self.kind:
            return []
        rings, interface.rings = interface.rings, []
        return rings

    def others(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the interfaces that are none of these."""
        yield from [name for name in self.interfaces if name not in names]

    def close(self) -> None:
        """Close all descriptors that are left. Idempotent."""
        descriptors = [] if self.ruleset is None else [self.ruleset[0]]
        for interface in self.interfaces.values():
            descriptors += [each for each in interface.descriptors() if each >= 0]
        self.ruleset = None
        self.interfaces = {}
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)
