"""What a gateway's parts need of it and of each other, besides its public methods: one small interface, asked for here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from threading import RLock

    from natcore.api.gateway import Core
    from natcore.choices import EipBindMode
    from natcore.config import AnyEntry, Policy, Timeouts
    from natcore.control.server import ControlServer
    from natcore.entries.changes import EntryTable
    from natcore.entries.table import Entry
    from natcore.gateway import Gateway
    from natcore.internal.change_lock import ChangeLock
    from natcore.plane.plane import Plane
    from natcore.sessionlog.collector import Collector


class PlaneCalls(NamedTuple):
    """What a gateway calls in a plane of its own."""

    check_pool: Callable[[Iterable[tuple[Entry, int]]], None]
    """ConfigurationError if entries, with each of their wire addresses (host order), would cut the host off."""
    entries_come: Callable[[Iterable[tuple[Entry, int]]], None]
    """These entries come into force next: of addresses that the host has too, the kernel keeps the host's ports alone."""
    entries_changed: Callable[[], None]
    """The entries' addresses are others now. Without the call it is noticed within a tenth of a second."""


class Parts(NamedTuple):
    """A gateway's parts, as they are now."""

    core: Core
    table: EntryTable
    planes: dict[Plane, PlaneCalls]  # those that run; a plane that ends leaves, in its own thread
    controls: list[ControlServer]  # the gateway closes them at its end
    collector: Collector | None  # None: no session log was started yet
    change_lock: ChangeLock
    one_at_a_time: RLock
    """Held by whatever changes entries, logs or sessions in several steps: a reload, and what the control socket asks for."""
    follow: Callable[[Sequence[int], Mapping[int, tuple[int, int]]], None]
    """With the change lock: the outside interface has these addresses (host order), and the host these TCP and UDP ports, as
    bits, of them."""
    settle: Callable[[], int]  # completes expiry, so that nothing dead is shown; the gateway's time, ns
    set_epoch_ns: Callable[[int], None]
    advance_ns: Callable[[int], None]  # ends everything that is due then
    become: Callable[[Sequence[AnyEntry] | None, Policy, Timeouts, EipBindMode], int]
    """Other entries (None: these) and settings come into force; how many sessions ended."""
    arguments: Callable[[], dict[str, Any]]
    """What the gateway was made with, as it is now."""


def parts_of(gateway: Gateway) -> Parts:
    """Return a gateway's parts."""
    return gateway._parts()
