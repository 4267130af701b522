"""What a gateway's parts need of it and of each other, besides its public methods: one small interface, asked for here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from natcore.api.gateway import Core
    from natcore.entries.changes import EntryTable
    from natcore.gateway import Gateway
    from natcore.plane.plane import Plane
    from natcore.sessionlog.collector import Collector


class PlaneCalls(NamedTuple):
    """What a gateway calls in a plane of its own."""

    check_pool: Callable[[Iterable[int]], None]
    """ConfigurationError if one of the addresses (host order) is the host's own on the plane's interfaces."""
    entries_changed: Callable[[], None]
    """The entries' addresses are others now. Without the call it is noticed within a tenth of a second."""


class Parts(NamedTuple):
    """A gateway's parts, as they are now."""

    core: Core
    table: EntryTable
    planes: dict[Plane, PlaneCalls]  # those that run; a plane that ends leaves, in its own thread
    collector: Collector | None  # None: no session log was started yet
    settle: Callable[[], int]  # completes expiry, so that nothing dead is shown; the gateway's time, ns
    set_epoch_ns: Callable[[int], None]


def parts_of(gateway: Gateway) -> Parts:
    """Return a gateway's parts."""
    return gateway._parts()
