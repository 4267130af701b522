"""Plane: moves a gateway's packets between interfaces. Packets never meet Python; this starts and ends the loops."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import select
import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from natcore import choices
from natcore.config import DnatEntry, check_choice, check_integer, check_number
from natcore.config import Link as LinkSettings
from natcore.entries.changes import PORT_BYTES
from natcore.entries.reserved import refused_by
from natcore.entries.table import Entry, EntryConflict, spaces
from natcore.errors import ConfigurationError, Error, InterfaceError, SecurityWarning
from natcore.internal import machine_clock
from natcore.internal.alive import Alive
from natcore.internal.arguments import check_worker
from natcore.internal.endpoints import Endpoint, criteria
from natcore.internal.parts import PlaneCalls, parts_of
from natcore.internal.read_only import UNSET, ReadOnly, Unset
from natcore.internal.redaction import show
from natcore.io.af_packet import PacketRing
from natcore.io.device import Driver
from natcore.plane import kernel_bypass, xdp_program
from natcore.plane.checks import check_arguments, check_capabilities, refuse_own, warn_of_forwarding
from natcore.plane.drivers import ACCESS, Access, PacketAccess
from natcore.plane.frame_feed import FrameFeed
from natcore.plane.host_ports import ALL, HostPorts, ephemeral, ports_in, reserve
from natcore.plane.left_plane import LeftInterface, LeftPlane, Rings
from natcore.plane.links import Link, Listener, Range, Watcher
from natcore.plane.loops import Loops
from natcore.plane.xdp_fast_path import SharedMaps
from natcore.plane.xdp_redirects import Redirects

if TYPE_CHECKING:
    from natcore.gateway import Gateway

DEFAULT_MTU = LinkSettings().mtu
REOPEN_EVERY = 1.0  # seconds between two tries to open an interface that came back
LEFT_FOR = 1.0  # seconds that an address may be away from the outside interface before its sessions end
OFFLOADED_MOST = 1 << 16  # sessions of a fast path that says no number: 16 MB, which stay near the processor
ASK_EVERY = 0.5  # seconds between two looks at what the fast path depends on
LOOK_EVERY = 2.0  # seconds between two looks at the host's sockets, where it shares an address with the gateway

_log = logging.getLogger(__name__)
_alive: Alive[Plane] = Alive()


@dataclass(frozen=True, slots=True)
class Interface:
    """How an interface of a plane is.

    Parameters
    ----------
    side
        "inside" or "outside".
    up
        It is there, set up, and has a carrier.
    kernel_block
        The kernel's own stack is kept off it, and forwards nothing that comes by it.
    steering
        What gives each frame to its worker, where there are several: "fan-out", the kernel's of driver="af_packet"; "rss", the
        device's, where `Gateway.forward` was asked for steering="rss"; "none".
    unsteered
        Why the device does not, where it was to; else empty.
    """

    side: choices.PlaneSide
    up: bool
    kernel_block: bool
    steering: choices.Steered
    unsteered: str


class Plane:
    """A gateway that forwards between inside interfaces and one outside, from its making until `stop`; `Gateway.forward`
    makes it.

    It is a context manager. The gateway's clock runs with CLOCK_MONOTONIC; its epoch is set from the system's clock at
    the start. Where a `Link` has no mtu or address, the gateway takes each interface's own. left: what another process's plane
    has left (`leave`), to go on with as far as it fits. standing_by: everything is opened for a gateway that a `Fence` keeps
    from translating, and that others change, until `activate`.
    """

    inside = ReadOnly[tuple[str, ...]]("The names of its inside interfaces.")
    outside = ReadOnly[str]("The name of its outside interface.")
    offset_ns = ReadOnly[int]("The gateway's clock less CLOCK_MONOTONIC, ns.", "it is set when the plane starts")

    def __init__(
        self,
        gateway: Gateway,
        inside: str | Sequence[str],
        outside: str,
        *,
        driver: choices.Driver = "af_packet",
        favour: choices.Favour = "throughput",
        threads: bool = True,
        cpus: Sequence[int] | None = None,
        block_when_stopped: bool | None = None,
        left: LeftPlane | None = None,
        fast_path: bool | int = False,
        steering: choices.Steering = "none",
        standing_by: bool = False,
    ) -> None:
        self._closed_fds = True
        self._inside, self._outside, self._cpus = check_arguments(
            inside, outside, driver=driver, favour=favour, threads=threads, cpus=cpus,
            block_when_stopped=block_when_stopped, workers=gateway.workers, framing=gateway.framing,
            fast_path=fast_path, decrement_ttl=gateway.decrement_ttl, steering=steering,
        )  # fmt: skip
        if gateway.seed is not None:
            warnings.warn(
                "seed: predictable ports can be attacked; leave it out for real traffic", SecurityWarning, stacklevel=3
            )
        self._gateway = gateway
        self._parts = parts = parts_of(gateway)
        self._core = parts.core
        self._threads = threads
        self._standing_by = standing_by
        self._driver = driver
        self._at_once = favour == "latency"
        self._steer = steering == "rss"
        self._offload_most = min(gateway.max_sessions, OFFLOADED_MOST if fast_path is True else int(fast_path))
        self._fast_path: SharedMaps | None = None
        self._redirects: Redirects | None = None
        self._redirecting: dict[int, bool] = {}  # by interface: what was said of it
        self._asked = 0.0  # whether the interfaces can
        self._ended = False
        self._failure: BaseException | None = None
        # Interfaces are numbered: the inside ones from 0 on, the outside one last.
        self._numbers = range(len(self.inside) + 1)
        self._opened: list[Link | None] = [None for _ in self._numbers]  # what each interface's ring was opened for
        self._claims: list[kernel_bypass.Claim] = []
        self._driver_kind: Rings | None = None  # once the interfaces are opened
        self._block: kernel_bypass.Block | None = None
        self._block_when_stopped = block_when_stopped
        self._left_plane = left  # of another process, until this plane has begun
        self._leaving: LeftPlane | None = None  # to another process, once `leave` is called
        self._leaves_rings_alone = False
        self._restored = 0  # how often an interface's kernel bypass was restored
        self._running = False  # begin() went well
        self._own: set[int] = set()  # the host's addresses
        self._number_of: dict[int, int] = {}  # those on an interface of the plane: its number
        self._to_kernel: set[int] = set()  # those of them that the kernel keeps
        self._coming: set[int] = set()  # those that entries will use next
        self._shared: dict[int, bytes] = {}  # those that the gateway uses too, and the ports that the kernel keeps
        self._outside_own: list[int] = []  # the outside interface's, in the kernel's order
        self._addressed = True  # it has one, or it was said that it has none
        self._left: dict[int, float] = {}  # those that it has lost, and when: it may have them again at once
        self._host_ports: HostPorts | None = None  # once an address is shared
        self._taps = [False for _ in self._numbers]  # a packet socket brings what the driver cannot (Access.tap)
        self._unfollowed = False  # the outside interface's addresses have changed, and the gateway has not followed yet
        self._looked = 0.0  # at the host's sockets
        self._addresses = [0 for _ in self._numbers]  # the gateway's own on each interface's link
        self._pool = b""  # the outside addresses, four bytes each
        self._reopened = 0.0
        self._started = time.monotonic()
        warn_of_forwarding((*self.inside, self.outside))
        self._core.claim()
        try:
            self._start()
        except BaseException:
            self._abandon()
            raise
        parts.planes[self] = PlaneCalls(self._check_pool, self._entries_come, self._entries_changed)
        _alive.add(self)

    # ---- what callers use -------------------------------------------------------------------------------------------

    @property
    def state(self) -> choices.PlaneState:
        """One of "running", "degraded" (an interface is down or away), "stopped"."""
        if self._ended:
            return "stopped"
        links = [opened and link for opened, link in zip(self._opened, self._watcher.links, strict=True)]
        return "running" if all(link and link.up and link.carrier for link in links) else "degraded"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the plane ends; signal handlers run meanwhile.

        Parameters
        ----------
        timeout
            Seconds; None: as long as it takes.

        Returns
        -------
        bool
            Whether it has ended. What ended it is raised if it failed.
        """
        if timeout is not None:
            check_number("timeout", timeout, 0, 1e6, unit="seconds")
        if not self._ended:
            poll = select.poll()  # no lock is held while a handler runs, so that it may call stop()
            poll.register(self._end_fd, select.POLLIN)
            poll.poll(None if timeout is None else timeout * 1000)
        if self._failure is not None:
            raise self._failure
        return self._ended

    def step(self, budget: int = 256) -> int:
        """Move at most about budget packets, without waiting, where threads=False.

        Parameters
        ----------
        budget
            Packets, 1 or more.

        Returns
        -------
        int
            How many arrived.
        """
        check_integer("budget", budget, 1, 1 << 30)
        if self._threads:
            raise Error("step() is for a plane made with threads=False")
        if self._failure is not None:
            raise self._failure
        return 0 if self._ended else self._loops.step(budget)

    def fileno(self) -> int:
        """Readable, with threads=False: when step() has something to do; else: when the plane has ended."""
        return self._end_fd if self._threads else self._poll.fileno()

    def counters(self, worker: int | None = None) -> dict[str, int]:
        """What the interfaces saw: cumulative sums with the prefixes "inside_" and "outside_", and left_to_kernel of
        both.

        Parameters
        ----------
        worker
            What one of them saw and sent; None: all together.

        Returns
        -------
        dict of str to int
            received, sent: frames. left_to_kernel: not IPv4, not for this gateway, or for the host's own addresses and its
            ports of shared ones.
            ring_drops: the loop was too slow. send_dropped: no place, or link down. send_errors: refused. truncated:
            cut. fenced: dropped while another gateway may translate. arp_answered. no_route, unresolved: dropped for lack
            of a next hop. waiting (gauge): frames that wait for one. deferred (gauge): frames that wait for a standby to have
            their sessions; deferred_acknowledged, deferred_late, deferred_alone, deferred_overflow: those that have left, since
            it has, since they had waited long enough, since none follows any more, for lack of space; deferred_ms: how long
            they had waited, all together. blocks_restored: how often others had changed or
            removed an interface's kernel bypass, which was put back. With a fast path also fast_path: packets that XDP
            programs translated (known half a second later); fast_path_late: those of them that came when their session
            had ended, and are in no row; the gauges fast_path_sessions and fast_path_entries: sessions that it has, and
            their directions.
        """
        counters = self._loops.counters(check_worker(worker, self._gateway.workers))
        return {**counters, "blocks_restored": self._restored}

    def counters_by_interface(self, worker: int | None = None) -> dict[str, dict[str, int]]:
        """The same of each interface alone, by its name and without prefix; no_route and waiting belong to none.

        Parameters
        ----------
        worker
            As for `counters`.

        Returns
        -------
        dict of str to dict
            Counters by interface.
        """
        which = check_worker(worker, self._gateway.workers)
        return {name: self._loops.interface_counters(number, which) for number, name in enumerate(self._watcher.names)}

    def interfaces(self) -> dict[str, Interface]:
        """Say how each interface is, by its name.

        Returns
        -------
        dict of str to Interface
            The inside ones first, then the outside one.
        """
        found = {}
        for number, name in enumerate(self._watcher.names):
            opened, link, block = self._opened[number], self._watcher.links[number], self._block
            steering, unsteered = self._access.steering(number)
            found[name] = Interface(
                side="outside" if number == self._numbers[-1] else "inside",
                up=bool(not self._ended and opened and link and link.up and link.carrier),
                kernel_block=bool(not self._ended and opened and block and block.is_installed(name)),
                steering=steering if opened and not self._ended else "none",
                unsteered=unsteered,
            )
        return found

    def turn_ages(self) -> dict[str, float]:
        """Say how long ago each of its threads' loops turned last; one that hangs has a growing age.

        Returns
        -------
        dict of str to float
            Seconds, by the thread's name: "natcore-w0" and so on, which move packets and turn at least each 0.1 s, and
            "natcore-watch". With threads=False the workers turn in `step`.
        """
        now = time.monotonic()
        turned = self._loops.turned() | {"natcore-watch": self._watcher.ticked}
        return {name: max(0.0, now - (at or self._started)) for name, at in turned.items()}

    def watch_frames(
        self,
        *,
        subscriber: Endpoint | Unset = UNSET,
        remote: Endpoint | Unset = UNSET,
        outside: Endpoint | Unset = UNSET,
        protocol: choices.Protocol | int | Unset = UNSET,
        drops: bool = False,
        snap: int = 2048,
        buffer: int = 1 << 23,
    ) -> FrameFeed:
        """Watch frames that match every criterion given: as they came, as they leave, and their verdict.

        While someone watches, every frame is copied once; else it costs nothing. What the gateway sends by itself (ICMP
        errors, echo replies, fragments) is shown with its cause; ARP is not.

        Parameters
        ----------
        subscriber, remote, outside, protocol
            As for `Gateway.find_sessions`. What a frame does not say matches no criterion: the inside address of a drop
            from outside, the outside one of a drop from inside, the ports of an ICMP error. An ICMP error of the gateway's
            own is its quoted packet's; an own fragment to the outside does not say its subscriber.
        drops
            Only frames that were dropped, and the gateway's answers to them.
        snap
            Bytes that are kept of a frame, 64 to 65,536.
        buffer
            Bytes for frames that wait, 2^18 to 2^30, rounded up to a power of two; the others are counted in `lost`.

        Returns
        -------
        FrameFeed
            `take()` gives the frames since the last call. A context manager.

        Raises
        ------
        CapacityError
            Eight watch already, or memory is short.
        Error
            The plane has stopped.
        """
        drops = check_choice("drops", drops, (True, False))
        snap = check_integer("snap", snap, 64, 1 << 16)
        buffer = check_integer("buffer", buffer, 1 << 18, 1 << 30)
        if self._ended:
            raise Error("the plane has stopped")
        return FrameFeed(
            criteria(subscriber, remote, outside, protocol, UNSET), drops, snap, 1 << (buffer - 1).bit_length(),
            self._watcher.names, self._loops.attach_view, self._loops.detach_view,
        )  # fmt: skip

    def _entries_come(self, entries: Iterable[tuple[Entry, int]]) -> None:
        """For the gateway: these come into force next. Of outside addresses that the host has, the kernel keeps the host's
        ports alone from now on: else it would answer what comes back."""
        self._coming = {wire for _, wire in entries if wire in self._outside_own} - self._shared.keys()
        if self._coming:
            self._watcher.settle()

    def _entries_changed(self) -> None:
        """For the gateway: its pools are others now. Without the call it is noticed within a tenth of a second."""
        self._coming = set()
        self._watcher.settle()

    def _check_pool(self, entries: Iterable[tuple[Entry, int]]) -> None:
        """ConfigurationError if one of the outside addresses of entries would cut the host off: one of its own on an inside
        interface, or one on the outside interface, which is shared, with a port that a socket of the host listens at."""
        entries = list(entries)
        refuse_own({wire for _, wire in entries}, self._number_of, self._watcher.names, self._numbers[-1])
        shared = {wire for _, wire in entries if wire in self._outside_own}
        if shared:
            self._hosts()  # or an error: it would leave one of the two without ports
        _check_count(shared | self._shared.keys())
        for row, wire in entries:
            if wire in shared:
                self._check_shared(row, wire)

    def _check_shared(self, row: Entry, wire: int) -> None:
        """ConfigurationError if an entry would take what the host uses of a shared address."""
        entry = row.entry
        if not isinstance(entry, DnatEntry):
            return
        if entry.is_one_to_one:
            raise EntryConflict(
                row,
                f"DnatEntry.external_ip of a 1:1 entry must be an address that this host does not have, got "
                f"{show(str(entry.external_ip))} of {self.outside} in {row.describe()}: the host would be cut off from it",
            )
        first, last, _ = entry.ports
        for space in spaces(entry):
            found = self._hosts().used_by(wire, space, first, last)
            if found is not None:
                raise EntryConflict(
                    row,
                    f"DnatEntry.external_port must be one at which no socket of this host listens, got "
                    f"{show(entry.external_port)} in {row.describe()}: {found} does",
                )

    def _hosts(self) -> HostPorts:
        if self._host_ports is None:
            self._host_ports = HostPorts(self._gateway.policy)
        return self._host_ports

    def stop(self) -> None:
        """End forwarding within a second, and give the interfaces back to the kernel's own stack. Idempotent.

        The kernel then forwards nothing that comes by them if block_when_stopped says so.
        """
        self._watcher.stop()
        _alive.discard(self)

    def activate(self, *, block_when_stopped: bool | None = None) -> None:
        """The gateway, which stood by, is to translate, and no one else changes it any more. Call it before its fence opens,
        and `announce` after. block_when_stopped: as for `Gateway.forward`."""
        self._block_when_stopped, self._standing_by = block_when_stopped, False
        clocks = self._read_clocks()
        self._loops.set_offset(self._offset_ns)
        self._parts.set_epoch_ns(clocks.real - clocks.monotonic - self._offset_ns)
        wanted = {wire for _, wire in self._parts.table.outside()}
        if self._parts.table.follows or wanted.intersection(self._outside_own):
            self._watcher.settle()  # it follows this host's addresses and sockets; else it does so with its next tick

    def announce(self) -> None:
        """Tell the links at once, by gratuitous ARP, where the gateway's own and its outside addresses are."""
        self._loops.announce()

    def leave(self, *, rings_alone: bool = False) -> LeftPlane:
        """Stop as `stop` does, but leave the kernel block as it is, the interfaces' locks, and their rings (driver af_packet),
        in which packets wait, for a plane of another process. rings_alone: block and locks go as with `stop`. Raises Error: it
        has stopped."""
        if self._ended or self._driver_kind is None:
            raise Error("the plane has stopped")
        self._leaves_rings_alone = rings_alone
        leaving = self._leaving = LeftPlane(self._driver_kind, None, {})
        self.stop()
        if self._failure is not None:
            leaving.close()
            raise self._failure
        return leaving

    def __enter__(self) -> Plane:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        if not self._closed_fds:
            self._closed_fds = True
            os.close(self._end_fd)
            self._poll.close()

    def __repr__(self) -> str:
        return f"<Plane {', '.join(self.inside)} -> {self.outside}: {self.state}>"

    # ---- beginning and end ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._end_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.epoll()
        self._closed_fds = False
        self._poll.register(self._end_fd, select.EPOLLIN)
        groups = (self._numbers[:-1], self._numbers[-1:], self._numbers)  # by Side, and all
        self._watcher = Watcher((*self.inside, self.outside), groups, self._listener())
        clocks = self._read_clocks()
        workers, requests_fd = self._gateway.workers, self._watcher.requests_fd
        self._loops = Loops(self._core, workers, len(self._numbers), self._offset_ns, requests_fd)
        for descriptor in self._loops.wake_fds:
            self._poll.register(descriptor, select.EPOLLIN)
        self._watcher.start()
        if not self._standing_by:
            self._parts.set_epoch_ns(clocks.real - clocks.monotonic - self._offset_ns)
        if self._threads:
            self._loops.start(self._cpus, self._failed)

    def _read_clocks(self) -> machine_clock.Readings:
        """Relate the gateway's clock to CLOCK_MONOTONIC: it goes on from what it is now."""
        clocks = machine_clock.read()
        self._offset_ns = self._core.now_ns - clocks.monotonic
        return clocks

    def _listener(self) -> Listener:
        return Listener(
            begin=self._begin,
            link_changed=self._link_changed,
            addresses_changed=self._addresses_changed,
            routes_changed=self._routes_changed,
            neighbour_changed=self._neighbour_changed,
            take_resolve_requests=lambda: self._loops.take_resolve_requests(),  # the loops are made after the watcher
            take_used=lambda number: self._loops.take_used(number),
            tick=self._tick,
            end=self._end,
        )

    def _abandon(self) -> None:
        """Release the gateway after a failed start, maybe before a thread exists that calls end()."""
        if hasattr(self, "_watcher"):
            self._watcher.stop()
        if not self._ended:
            self._core.unclaim()

    def _failed(self, error: BaseException) -> None:
        """Called last by a worker's thread: the plane ends with it."""
        self._failure = error
        self._watcher.stop_soon()

    def _begin(self) -> None:
        """Called first by the watcher's thread: check, claim, block and open all interfaces, or none."""
        for number, name in enumerate(self._watcher.names):
            link = self._watcher.links[number]
            if link is None:
                there = ", ".join(self._watcher.every_link())
                raise InterfaceError(
                    errno.ENODEV, f"{self._side(number)}={name!r}: no such interface; there are: {there}"
                )
            if not link.up:
                raise InterfaceError(
                    errno.ENETDOWN, f"{self._side(number)}={name!r}: the link is down; set it up first"
                )
        left = self._left_plane
        if left is None:
            check_capabilities()
        with self._parts.change_lock:
            if not self._standing_by:
                self._follow()
            self._check_pool(self._parts.table.outside())
        self._update_kernel_addresses(changed=True)
        for name in self._watcher.names:
            self._claims.append(kernel_bypass.Claim(name, None if left is None else left.take_lock(name)))
        self._block = kernel_bypass.Block(None if left is None else left.take_ruleset())
        self._watcher.watch(self._block.events.fileno(), self._restore_block)
        links = [link for link in self._watcher.links if link is not None]
        if self._offload_most:
            self._redirects = Redirects()
            self._fast_path = SharedMaps(
                self._offload_most, self._gateway.max_sessions, self._numbers[-1], self._offset_ns
            )
            self._loops.set_fast_path(self._fast_path.table)
        self._access: Access = ACCESS[self._driver](
            links, at_once=self._at_once, workers=self._gateway.workers, port_unit=self._core.port_unit,
            fast_path=self._fast_path, steer=self._steer,
        )  # fmt: skip
        self._driver_kind = (self._driver, self._at_once, self._gateway.workers, self._core.port_unit)
        self._core.set_reverse_path_filter(True)
        self._reserve()
        for number in self._numbers:
            self._attach(number)
        self._ask_redirects()
        if left is not None:
            self._give_back(left)
        self._running = True

    def _give_back(self, left: LeftPlane) -> None:
        """Interfaces that only the other process's plane had are the kernel's own again, as after its stop."""
        assert self._block is not None
        for name in left.others(self._watcher.names):
            claim = kernel_bypass.Claim(name, left.take_lock(name))
            self._end_block_of(claim, keep=self._forwards_nothing((name,)))
        left.close()
        self._left_plane = None

    def _ask_redirects(self) -> None:
        """Offload to those interfaces alone by which redirected frames can leave; say which cannot."""
        if self._redirects is None:
            return
        self._asked = time.monotonic()
        for number, link in enumerate(self._opened):
            can = link is not None and self._redirects.possible(link.index) is not False
            if link is not None and link.up and not can and self._redirecting.get(number, True):
                _log.warning(
                    "%s: the kernel cannot send redirected frames by it, so that what leaves by it takes no fast path "
                    "(of a veth the other end needs GRO or an XDP program: ethtool -K … gro on)", link.name,
                )  # fmt: skip
            self._redirecting[number] = can
            self._loops.set_redirects(number, can and link is not None and link.up and link.carrier)

    def _end(self, error: BaseException | None) -> None:
        """Called last by the watcher's thread: put everything back, whatever the reason."""
        if self._leaving is not None and error is None and self._failure is None:
            self._leave(self._leaving)
        else:
            self._loops.close()
            self._end_block()
        self._loops.set_fast_path(None)
        if self._fast_path is not None and self._redirects is not None:
            self._fast_path.close()
            self._redirects.close()
            self._redirects = None
        self._core.set_reverse_path_filter(False)
        for side, settings in enumerate((self._gateway.inside, self._gateway.outside)):
            self._core.set_mtu(side, settings.mtu)
            self._core.set_link_address(side, int(settings.address or 0))
        if self._running and error is not None:
            self._failure = error
        parts_of(self._gateway).planes.pop(self, None)
        self._core.unclaim()
        self._ended = True
        os.eventfd_write(self._end_fd, 1)

    def _leave(self, leaving: LeftPlane) -> None:
        drivers = self._loops.leave(self._numbers)
        for number, name in enumerate(self._watcher.names):
            link, found = self._opened[number], drivers[number]
            lock = -1 if self._leaves_rings_alone else self._claims[number].leave()
            interface = LeftInterface(name, link.index if link else -1, lock)
            rings = [driver for driver in found if isinstance(driver, PacketRing)]
            if link is not None and self._driver == "af_packet" and len(rings) == len(found):
                interface.rings += [ring.leave() for ring in rings]
            else:
                for driver in found:
                    if driver is not None:
                        driver.close()
            leaving.interfaces[name] = interface
        if self._leaves_rings_alone:
            self._end_block()
        else:
            assert self._block is not None
            leaving.ruleset = self._block.leave()

    def _end_block(self) -> None:
        """The kernel's stack has the interfaces again; whether it may forward what comes by them is block_when_stopped's."""
        keep = self._forwards_nothing([claim.interface for claim in self._claims])
        for claim in self._claims:
            self._end_block_of(claim, keep=keep)
        if self._block is not None:
            self._block.close()

    def _forwards_nothing(self, names: Iterable[str]) -> bool:
        """Return whether the kernel is kept from forwarding what comes by interfaces that the plane gives back."""
        if self._block_when_stopped is not None:
            return self._block_when_stopped
        return any(kernel_bypass.forwards(name) for name in names)

    def _end_block_of(self, claim: kernel_bypass.Claim, *, keep: bool) -> None:
        with suppress(InterfaceError, OSError):
            reserve(claim.interface, 0)
        if self._block is not None:
            with suppress(InterfaceError):
                (self._block.forward_nothing if keep else self._block.remove)(claim.interface)
        claim.close()

    def _restore_block(self) -> None:
        """nf_tables was changed."""
        assert self._block is not None
        restored = self._block.restore() if self._block.events.take() else []
        if restored:
            self._restored += len(restored)
            _log.warning(
                "%s: the kernel block was changed or removed by another program (a firewall reload?); it is there again",
                ", ".join(restored),
            )

    # ---- the watcher's calls -------------------------------------------------------------------------------------

    def _side(self, number: int) -> str:
        """Return the argument that named the interface."""
        return "outside" if number == self._numbers[-1] else "inside"

    def _settings(self, number: int) -> LinkSettings:
        return self._gateway.outside if number == self._numbers[-1] else self._gateway.inside

    def _attach(self, number: int) -> None:
        """Block the kernel first, then open: no packet is forwarded twice, none leaks."""
        link = self._watcher.links[number]
        assert link is not None and self._block is not None
        self._block.install(link.name, self._to_kernel, _bits_of(self._shared))
        try:
            drivers = self._take_over(link) or self._access.open(
                number, link, self._to_kernel, self._arp_addresses(number), self._shared
            )
        except InterfaceError as error:
            raise InterfaceError(error.errno, f"{self._side(number)}={error.strerror}") from error
        except OSError as error:
            where = f"{self._side(number)}={link.name!r}"
            raise InterfaceError(error.errno or errno.EIO, f"{where}: {error.strerror}") from error
        self._loops.attach(number, drivers, link.mac)
        if not self._threads:  # who waits there is woken for each frame that leaves by AF_XDP: a tenth of its cost
            for driver in drivers:
                self._poll.register(driver.fd, select.EPOLLIN)
        self._opened[number] = link
        self._apply_mtu(number, link)
        self._open_tap(number, link)

    def _take_over(self, link: Link) -> Sequence[Driver]:
        """Return the drivers that another process's plane has left for the interface; none: it has left none that fit."""
        if self._left_plane is None or self._driver_kind is None or not isinstance(self._access, PacketAccess):
            return ()
        rings = self._left_plane.take_rings(link.name, link.index, self._driver_kind)
        return self._access.take_over(link, rings)

    def _open_tap(self, number: int, link: Link) -> None:
        if not self._shared or self._taps[number]:
            return
        try:
            tap = self._access.tap(link)
        except OSError as error:
            if not self._running:
                raise
            _log.error("%s: ICMP and fragments of inside hosts do not come: %s", link.name, error)
            return
        self._taps[number] = True
        if tap is not None:
            self._loops.set_tap(number, tap)
            if not self._threads:
                self._poll.register(tap.fd, select.EPOLLIN)

    def _apply_mtu(self, number: int, link: Link) -> None:
        """The interface's; a smaller one of the gateway's own holds."""
        mtu, links = self._settings(number).mtu, self._access.mtu(link)
        self._loops.set_mtu(number, links if mtu == DEFAULT_MTU else min(mtu, links))

    def _link_changed(self, number: int, link: Link | None) -> None:
        opened = self._opened[number]
        if not self._running:
            return
        if opened is not None and (link is None or link.index != opened.index):
            self._opened[number] = opened = None
            self._loops.detach(number)
            self._loops.set_tap(number, None)
            self._taps[number] = False
        if link is None:
            return
        if opened is None:
            self._reopen(number)
            return
        self._opened[number] = link
        self._ask_redirects()
        if link.mac != opened.mac:
            self._access.set_mac(number, link.mac)
            self._loops.set_mac(number, link.mac)
        if link.mtu != opened.mtu:
            self._apply_mtu(number, link)
        if link.up and link.carrier and not (opened.up and opened.carrier):
            self._loops.announce()

    def _reopen(self, number: int) -> None:
        """Open an interface that came back; if it goes again meanwhile, it is tried later."""
        self._reopened = time.monotonic()
        with suppress(InterfaceError):
            self._attach(number)
            self._watcher.read_neighbours(number)

    def _addresses_changed(self, addresses: set[int], by_interface: Sequence[Sequence[int]]) -> None:
        self._own = addresses
        self._number_of = {address: number for number, found in enumerate(by_interface) for address in found}
        self._loops.set_local(addresses)
        for number in self._numbers:
            own = self._settings(number).address
            address = next(iter(by_interface[number]), 0) if own is None else int(own)
            self._loops.set_address(number, address)
            self._addresses[number] = address
            if number in (self._numbers[0], self._numbers[-1]):  # for whoever asks the gateway between batches
                self._core.set_link_address(int(number > 0), address)
        before, self._outside_own = self._outside_own, list(dict.fromkeys(by_interface[-1]))
        gone = dict.fromkeys(set(before) - set(self._outside_own), time.monotonic())
        self._left = {at: since for at, since in {**self._left, **gone}.items() if at not in self._outside_own}
        self._unfollowed = True
        if self._running:
            self._try_to_follow()
        self._update_kernel_addresses(changed=True)

    def _try_to_follow(self) -> None:
        """The gateway follows the outside interface's addresses and the host's sockets, unless a call is changing its entries:
        that call may wait for this thread; the next tick tries again."""
        if self._standing_by or not self._parts.change_lock.try_enter():
            return
        try:
            self._follow()
        except ConfigurationError as error:
            _log.error("%s: its addresses have changed, and the entries cannot follow: %s", self.outside, error)
        finally:
            self._parts.change_lock.leave()

    def _follow(self) -> None:
        now = self._looked = time.monotonic()
        self._left = {address: since for address, since in self._left.items() if now - since < LEFT_FOR}
        self._unfollowed = bool(self._left)
        refused = refused_by(self._gateway.policy)
        present = [*self._outside_own, *self._left]
        addresses = [address for address in present if not refused(address)]
        if self._parts.table.follows and bool(addresses) != self._addressed:
            self._addressed = bool(addresses)
            if not addresses:
                _log.warning("%s has no address: what would leave by it is dropped until it has one", self.outside)
        hosts = {}
        with suppress(ConfigurationError):  # _check_pool raises it where an address is shared
            hosts = {address: self._hosts().of(address) for address in present}
        coming = self._parts.table.following(addresses)
        _check_count(coming)
        if self._running and coming - self._shared.keys():
            self._coming = coming
            self._update_kernel_addresses()  # before the first packet leaves by it: the kernel would answer what comes back
            self._coming = set()
        self._parts.follow(addresses, hosts)
        for row, wire in self._parts.table.outside() if self._running and coming - self._shared.keys() else ():
            try:
                self._check_shared(row, wire)
            except EntryConflict as error:
                _log.error("%s; the entry has it", error)

    def _update_kernel_addresses(self, *, changed: bool = False) -> None:
        """The kernel keeps the host's addresses, those of pools excepted, and the host's ports of those that are shared;
        entries come and go, or addresses changed."""
        to_kernel, pool = self._own - self._loops.in_pool(self._own) - self._coming, self._loops.pool()
        shared = {address: _bytes_of(self._hosts().of(address)) for address in self._coming} | self._loops.shared()
        if not changed and (to_kernel, pool, shared) == (self._to_kernel, self._pool, self._shared):
            return
        before, self._to_kernel, self._pool, self._shared = (self._to_kernel, self._shared), to_kernel, pool, shared
        if self._running:
            self._reserve()
            try:
                alone = self._loops.in_pool(self._own) - shared.keys()
                refuse_own(alone, self._number_of, self._watcher.names, self._numbers[-1])
            except ConfigurationError as error:
                _log.error("%s; until then it is the gateway's alone", error)
        for number, link in enumerate(self._opened):
            if link is not None:
                self._open_tap(number, link)
                self._access.set_addresses(number, to_kernel, self._arp_addresses(number), shared)
                if (to_kernel, shared) != before and self._block is not None:
                    with suppress(InterfaceError):  # the interface is just going
                        self._block.install(link.name, to_kernel, _bits_of(shared))

    def _reserve(self) -> None:
        """Have the kernel choose none of the gateway's ports for the host's sockets."""
        wanted = 0
        for tcp, udp in _bits_of(self._shared).values():
            wanted |= ALL & ~(tcp & udp)
        try:
            reserve(self.outside, wanted)
        except (OSError, InterfaceError) as error:
            if wanted & ports_in([ephemeral()]):
                _log.error("%s: sockets of this host may get ports of the gateway's: %s", self.outside, error)
            else:
                _log.info(
                    "%s: ports of the gateway are not reserved, and outside of the kernel's: %s", self.outside, error
                )

    def _arp_addresses(self, number: int) -> set[int]:
        """Return the addresses for which the plane answers ARP on the interface's link."""
        pool = memoryview(self._pool).cast("I") if number == self._numbers[-1] else ()
        return {self._addresses[number], *pool} - self._own - {0}

    def _routes_changed(self, group: int, ranges: list[Range]) -> None:
        starts, vias, interfaces = zip(*ranges, strict=True) if ranges else ((), (), ())
        self._loops.set_routes(group, starts, vias, interfaces)

    def _neighbour_changed(self, number: int, address: int, mac: bytes | None, failed: bool) -> None:
        self._loops.learn(number, address, mac, failed)

    def _tick(self) -> None:
        if self._running and self._shared and time.monotonic() - self._looked >= LOOK_EVERY:
            self._hosts().look()
            self._unfollowed = True
        if self._running and self._unfollowed:
            self._try_to_follow()
        self._update_kernel_addresses()
        if self._fast_path is not None and self._running and time.monotonic() - self._asked >= ASK_EVERY:
            self._ask_redirects()
            self._fast_path.table.barrier()  # entries of sessions that have ended may be used again
        if time.monotonic() - self._reopened >= REOPEN_EVERY:
            for number in self._numbers:
                if self._opened[number] is None and self._watcher.links[number] is not None:
                    self._reopen(number)
        if not self._threads:
            self._loops.wake()  # step() has the sweep to do


def _bits_of(shared: Mapping[int, bytes]) -> dict[int, tuple[int, int]]:
    """The host's TCP and UDP ports of shared addresses as sets."""
    half = PORT_BYTES
    return {
        address: (int.from_bytes(ports[:half], "little"), int.from_bytes(ports[half:], "little"))
        for address, ports in shared.items()
    }


def _bytes_of(ports: tuple[int, int]) -> bytes:
    """The contrary, of one address."""
    return b"".join(bits.to_bytes(PORT_BYTES, "little") for bits in ports)


def _check_count(shared: Collection[int]) -> None:
    if len(shared) > xdp_program.SHARED_MOST:
        raise ConfigurationError(
            f"pool must have at most {xdp_program.SHARED_MOST} addresses of the outside interface, got {len(shared)}"
        )


os.register_at_fork(after_in_child=_alive.clear)  # a child does not stop its parent's


@atexit.register
def _stop_all() -> None:
    """Give back the interfaces of a plane that was garbage-collected."""
    for plane in _alive:
        plane.stop()
