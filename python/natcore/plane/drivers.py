"""The drivers of a plane: AF_PACKET rings, or AF_XDP sockets behind an XDP program."""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Protocol, get_args

from natcore import choices
from natcore.errors import CapacityError, InterfaceError
from natcore.io.af_packet import PacketRing
from natcore.io.af_xdp import XdpSockets
from natcore.io.device import Driver
from natcore.io.fanout import join, listen
from natcore.io.umem import FrameMemory
from natcore.plane import ethtool, xdp_program
from natcore.plane.fanout_program import for_shared_addresses, steering
from natcore.plane.links import Link, carrier_of, vlans_on
from natcore.plane.steering import NotSteeredError, Steering
from natcore.plane.xdp_fast_path import InterfaceMaps, SharedMaps
from natcore.verdict import Side

DRIVERS: tuple[choices.Driver, ...] = get_args(choices.Driver)

RING_ENTRIES = 4096  # of an AF_XDP socket's rings; a worker with several queues of an interface has smaller ones
LEAST_ENTRIES = 512
LeftRing = tuple[Sequence[int], Sequence[int]]  # PacketRing.leave: descriptors and place
QUEUES_MOST = 64  # of an interface

_log = logging.getLogger(__name__)


class Access(Protocol):
    """Opens a plane's interfaces, known by their numbers. Called by the watcher's thread only."""

    def mtu(self, link: Link) -> int:
        """Return the largest IPv4 packet in bytes that gets through, at most the link's MTU."""

    def open(
        self,
        number: int,
        link: Link,
        to_kernel: Iterable[int],
        arp_addresses: Iterable[int],
        shared: Mapping[int, bytes],
    ) -> Sequence[Driver]:
        """Return the interface's drivers, one for each worker; closing all gives it back. Raises InterfaceError, OSError."""

    def tap(self, link: Link) -> Driver | None:
        """Return what brings ICMP and fragments for shared addresses, or None: the drivers do."""

    def set_mac(self, number: int, mac: bytes) -> None:
        """The interface's link address has changed."""

    def set_addresses(
        self, number: int, to_kernel: Iterable[int], arp_addresses: Iterable[int], shared: Mapping[int, bytes]
    ) -> None:
        """Set the addresses (host order) that stay with the kernel, those for which the plane answers ARP, and those of which
        the kernel has some ports (PlaneLoop.shared)."""

    def steering(self, number: int) -> tuple[choices.Steered, str]:
        """Return what gives an open interface's frames to their workers, and why the device does not, where it was to."""


class PacketAccess:
    """AF_PACKET: the rings see what the kernel sees; the block keeps the kernel from acting on it. Those of several workers
    are a fan-out group on each interface, which gives every frame to one of them, mostly to its worker."""

    def __init__(
        self, links: Sequence[Link], *, at_once: bool = False, workers: int = 1, port_unit: int = 64,
        fast_path: SharedMaps | None = None, steer: bool = False,
    ) -> None:  # fmt: skip
        """links: the last one is the outside one. at_once: frames are passed on one by one. port_unit: see steering.
        fast_path, steer: none, they need XDP programs."""
        self._at_once, self._workers = at_once, workers
        self._programs = [steering(side, workers, port_unit) for side in (Side.INSIDE, Side.OUTSIDE)]
        self._outside = len(links) - 1
        for link in links:
            below = carrier_of(link.index)
            if below is not None and not ethtool.puts_tags_on(below):
                warnings.warn(
                    f"{link.name!r}: {below} cannot put VLAN tags on, so that the kernel refuses super-frames "
                    f"(send_errors): run ethtool -K {below} txvlan on, or gro off on the plane's other interfaces",
                    stacklevel=2,
                )

    def mtu(self, link: Link) -> int:
        return link.mtu

    def open(
        self,
        number: int,
        link: Link,
        to_kernel: Iterable[int],
        arp_addresses: Iterable[int],
        shared: Mapping[int, bytes],
    ) -> Sequence[Driver]:
        several = self._workers > 1
        with ExitStack() as undo:
            rings = []
            for _ in range(self._workers):
                rings.append(PacketRing(link.index, link.mtu, at_once=self._at_once, shared=several))
                undo.callback(rings[-1].close)
            if several:
                join([ring.fd for ring in rings], self._programs[number == self._outside])
            undo.pop_all()
        return rings

    def take_over(self, link: Link, rings: Iterable[LeftRing]) -> Sequence[Driver]:
        """Return the drivers that another process's plane has left, as `open` does. Raises OSError, ValueError."""
        with ExitStack() as undo:
            taken = []
            for each in rings:
                taken.append(PacketRing(link.index, link.mtu, left=each))
                undo.callback(taken[-1].close)
            undo.pop_all()
        return taken

    def tap(self, link: Link) -> Driver | None:
        return None

    def set_mac(self, number: int, mac: bytes) -> None:
        pass

    def set_addresses(
        self, number: int, to_kernel: Iterable[int], arp_addresses: Iterable[int], shared: Mapping[int, bytes]
    ) -> None:
        pass

    def steering(self, number: int) -> tuple[choices.Steered, str]:
        return ("fan-out" if self._workers > 1 else "none"), ""


class XdpInterface(XdpSockets):
    """A worker's sockets of an interface; one worker's hold the program that feeds all of them, and the device's RSS."""

    program: xdp_program.Program | None = None
    steering: Steering | None = None
    _passed = 0  # of a program that is closed

    def counters(self) -> dict[str, int]:
        """Return the sockets' counters, and left_to_kernel: frames that the program passed on."""
        passed = self._passed if self.program is None else self.program.passed()
        return {**super().counters(), "left_to_kernel": passed}

    def close(self) -> None:
        """Idempotent; the counters stay."""
        super().close()
        if self.program is not None:
            self._passed = self.program.passed()
            self.program.close()
            self.program = None
        if self.steering is not None:
            self.steering.close()
            self.steering = None


class XdpAccess:
    """AF_XDP: a program takes the frames from the kernel before it sees them. The block holds when the program is gone.

    Each worker has memory of its own and a part of the queues of every interface: which frames come there is the device's
    choice, by worker affinity only if its RSS can be made so (Steering). Where there are more workers than queues, the others
    get nothing and send what they have by packet sockets.
    """

    def __init__(
        self, links: Sequence[Link], *, at_once: bool = True, workers: int = 1, port_unit: int = 64,
        fast_path: SharedMaps | None = None, steer: bool = False,
    ) -> None:  # fmt: skip
        """at_once: ignored, AF_XDP always delivers at once. port_unit: Core.port_unit. fast_path: programs translate packets of
        offloaded sessions. steer: devices give frames to queues of their workers, where they can."""
        self._fast_path, self._outside = fast_path, len(links) - 1
        self._steer, self._port_unit = steer and workers > 1, port_unit
        self._unsteered: dict[int, str] = {}  # by interface: why
        parts = [_shares(ethtool.queues_of(link.name), workers) for link in links]
        few = [link.name for link, part in zip(links, parts, strict=True) if part[-1][1] == 0]
        if few:
            names, more = ", ".join(few), f"ethtool -L {few[0]} combined {workers} (veth: rx {workers})"
            warnings.warn(f"{names}: fewer receive queues than the {workers} workers: run: {more}", stacklevel=2)
        largest = max(links, key=lambda link: link.mtu)
        try:
            self._memories = [
                FrameMemory(sum(_places(part[w][1]) for part in parts), largest.mtu) for w in range(workers)
            ]
        except ValueError as error:
            raise InterfaceError(errno.EMSGSIZE, f"{largest.name!r}: {error}") from error
        except MemoryError as error:
            raise CapacityError(f"driver='af_xdp': {error} of 2 or 4 KB each") from error
        self._open: dict[int, XdpInterface] = {}

    def mtu(self, link: Link) -> int:
        return min(link.mtu, self._memories[0].mtu)

    def open(
        self,
        number: int,
        link: Link,
        to_kernel: Iterable[int],
        arp_addresses: Iterable[int],
        shared: Mapping[int, bytes],
    ) -> Sequence[Driver]:
        _check_vlans(link)
        queues = ethtool.queues_of(link.name)
        if queues > QUEUES_MOST:
            few = f"run: ethtool -L {link.name} combined {QUEUES_MOST}"
            raise InterfaceError(
                errno.E2BIG, f"{link.name!r} must have at most {QUEUES_MOST} queues with AF_XDP, got {queues}; {few}"
            )
        virtual = ethtool.is_virtual(link.name)
        made: list[Driver] = []
        try:
            with ExitStack() as undo:
                program = xdp_program.Program(
                    link.index, link.mac, queues, to_kernel, arp_addresses, shared, self._maps_of(number, link, virtual)
                )
                undo.callback(program.close)
                for memory, (first, count) in zip(self._memories, _shares(queues, len(self._memories)), strict=True):
                    if count == 0:
                        made.append(PacketRing(link.index, link.mtu, at_once=True, shared=True))  # for sending
                        undo.callback(made[-1].close)
                        continue
                    interface = XdpInterface(memory, link.index, count, _entries(count), virtual, first)
                    undo.callback(interface.close)
                    made.append(interface)
                    for queue, fd in enumerate(interface.fds, first):
                        program.set_socket(queue, fd)
                undo.pop_all()
        except OSError as error:
            raise _refused(link, error) from error
        interface.program = program
        interface.steering = self._steered(number, link, queues)
        self._open[number] = interface
        return made

    def _steered(self, number: int, link: Link, queues: int) -> Steering | None:
        if not self._steer:
            return None
        side, workers = Side.OUTSIDE if number == self._outside else Side.INSIDE, len(self._memories)
        try:
            steering = Steering(ethtool.Device(link.name), side, workers, self._port_unit, _shares(queues, workers))
        except NotSteeredError as error:
            if self._unsteered.get(number) != str(error):
                _log.warning("%s: frames are handed off between the workers: %s", link.name, error)
            self._unsteered[number] = str(error)
            return None
        self._unsteered.pop(number, None)
        return steering

    def steering(self, number: int) -> tuple[choices.Steered, str]:
        interface = self._open.get(number)
        steered = interface is not None and interface.steering is not None
        return ("rss" if steered else "none"), self._unsteered.get(number, "")

    def set_mac(self, number: int, mac: bytes) -> None:
        program = self._program(number)
        if program is not None:
            program.set_mac(mac)

    def _maps_of(self, number: int, link: Link, virtual: bool) -> InterfaceMaps | None:
        if self._fast_path is None:
            return None
        self._fast_path.set_device(number, link.index)
        return InterfaceMaps(self._fast_path, number, virtual)

    def tap(self, link: Link) -> Driver | None:
        ring = PacketRing(link.index, link.mtu, at_once=True, shared=True)
        try:
            listen(ring.fd, for_shared_addresses())
        except BaseException:
            ring.close()
            raise
        return ring

    def set_addresses(
        self, number: int, to_kernel: Iterable[int], arp_addresses: Iterable[int], shared: Mapping[int, bytes]
    ) -> None:
        program = self._program(number)
        if program is not None:
            program.set_addresses(to_kernel, arp_addresses, shared)

    def _program(self, number: int) -> xdp_program.Program | None:
        return self._open[number].program if number in self._open else None


ACCESS: dict[str, type[PacketAccess | XdpAccess]] = {"af_packet": PacketAccess, "af_xdp": XdpAccess}


def _shares(queues: int, workers: int) -> list[tuple[int, int]]:
    """Return (first queue, count) for each worker; the counts differ by one at most."""
    bounds = [-(-queues * worker // workers) for worker in range(workers + 1)]
    return [(first, after - first) for first, after in pairwise(bounds)]


def _entries(queues: int) -> int:
    """Return the entries of each ring: about as many frames in all for many queues as for few."""
    entries = RING_ENTRIES
    while entries * queues > 2 * RING_ENTRIES and entries > LEAST_ENTRIES:
        entries //= 2
    return entries


def _places(queues: int) -> int:
    """For the frames of a worker's queues of an interface: those to be received into, and those in work."""
    return 2 * _entries(queues) * max(1, queues)


def _check_vlans(link: Link) -> None:
    """Refuse a device that strips VLAN tags: XDP would take another network's packets for the link's."""
    on_it = vlans_on(link.index)
    if on_it:
        there = ", ".join(on_it)
        raise InterfaceError(
            errno.EOPNOTSUPP,
            f"{link.name!r}: it carries VLANs ({there}), and XDP cannot tell their packets from its own; "
            "use driver='af_packet'",
        )
    if ethtool.takes_tags_off(link.name):
        raise InterfaceError(
            errno.EOPNOTSUPP,
            f"{link.name!r}: it takes VLAN tags off, so that XDP would not see them; "
            f"run: ethtool -K {link.name} rxvlan off",
        )


def _refused(link: Link, error: OSError) -> InterfaceError:
    """Return the error with a remedy."""
    reasons = {
        errno.EPERM: "AF_XDP needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW: run as root, or grant them",
        errno.EOPNOTSUPP: "its driver has no native XDP; use driver='af_packet'",
        errno.EAFNOSUPPORT: "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS); use driver='af_packet'",
        errno.EBUSY: "another XDP program or AF_XDP socket has it; detach that first (ip link set … xdp off)",
        errno.ENOSPC: "its veth peer has more transmit queues than it has receive queues (ethtool -L)",
        errno.ERANGE: "frames are too large for native XDP: set the mtu (on veth the peer's too) to 3,498 or less",
        errno.ENOBUFS: "the limit of locked memory is too low for AF_XDP (ulimit -l); CAP_IPC_LOCK lifts it",
    }
    number = error.errno or errno.EIO
    said = error.strerror or str(error)
    reason = f"{reasons[number]} ({said})" if number in reasons else said
    return InterfaceError(number, f"{link.name!r}: {reason}")
