"""What the kernel knows of links, addresses, routes and neighbours, by netlink, watched in a thread of its own."""

from __future__ import annotations

import errno
import os
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from natcore.entries.table import flatten
from natcore.errors import InterfaceError
from natcore.internal import threads
from natcore.internal.extras import extra
from natcore.plane.kernel_bypass import clean, installed
from natcore.plane.nftables import attributes

with extra("plane"):
    from pyroute2 import IPRoute

__all__ = [
    "NO_ROUTE",
    "ON_LINK",
    "Link",
    "Listener",
    "Range",
    "Watcher",
    "carrier_of",
    "clean",
    "installed",
    "ranges_of",
    "vlans_on",
]

ON_LINK = 0  # via: the destination is its own next hop
NO_ROUTE = 0xFFFFFFFF  # via: nothing leads there

# linux/rtnetlink.h, linux/neighbour.h, linux/if.h
_GROUPS = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 6  # RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE
_LINK, _ADDRESS, _ROUTE, _NEIGHBOUR = (16, 17), (20, 21), (24, 25), (28, 29)  # RTM_NEW…, RTM_DEL…
_NLM_REQUEST, _NLM_CREATE, _NLM_REPLACE = 0x1, 0x400, 0x100
_NTF_USE = 0x1
_REACHABLE, _NUD_FAILED, _NUD_PERMANENT = 0x02, 0x20, 0x80
_NUD_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # reachable, stale, delay, probe, noarp, permanent
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_ARPHRD_ETHER = 1
_MAIN_TABLE = 254
_RTN_UNICAST, _REFUSING = 1, (6, 7, 8)  # blackhole, unreachable, prohibit
_RTNH_F_DEAD = 1
_NDMSG = struct.Struct("=BxxxiHBB")
_HEADER = struct.Struct("=IHHII")

INTERFACES_MOST = 16  # interfaces of a plane
TICK = 0.1  # seconds between two calls of Listener.tick
PROBE_EVERY = 10.0  # seconds between two looks for neighbours in use that the kernel is not sure of
ROUTES_EVERY = 0.05  # seconds between two readings of the routing table at least


@dataclass(frozen=True, slots=True)
class Link:
    """An interface: its number, link address (6 bytes), bytes of an IPv4 packet, whether it is up and has a carrier."""

    name: str
    index: int
    mac: bytes
    mtu: int
    up: bool
    carrier: bool


Range = tuple[int, int, int]  # first destination, via, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """What the watcher calls, in its own thread. number: the position of the interface's name."""

    begin: Callable[[], None]
    link_changed: Callable[[int, Link | None], None]  # number, link
    addresses_changed: Callable[[set[int], Sequence[Sequence[int]]], None]  # the host's, those of each interface
    routes_changed: Callable[[int, list[Range]], None]  # group of interfaces, ranges
    neighbour_changed: Callable[[int, int, bytes | None, bool], None]  # number, address, MAC, whether it failed
    take_resolve_requests: Callable[[], list[tuple[int, int]]]  # next hops to resolve: (number, address)
    take_used: Callable[[int], list[int]]  # next hops of an interface that packets went to
    tick: Callable[[], None]
    end: Callable[[BaseException | None], None]


def ranges_of(routes: Iterable[Any], numbers: Mapping[int, int]) -> list[Range]:
    """Return disjoint ranges of destinations in order, with the next hop of each, over some interfaces.

    routes: RTM_NEWROUTE messages of one table; numbers: of the interfaces, by their index. Of several
    routes to a prefix the lowest metric counts; routes over other interfaces do not, as in a look-up that is bound to
    these.
    """
    best: dict[tuple[int, int], tuple[int, tuple[int, int]]] = {}
    for route in routes:
        hop = _hop(route, numbers)
        if hop is None:
            continue
        first = int(IPv4Address(route.get_attr("RTA_DST") or 0))
        last = first | (0xFFFFFFFF >> route["dst_len"])
        metric = route.get_attr("RTA_PRIORITY") or 0
        if (first, last) not in best or metric < best[first, last][0]:
            best[first, last] = (metric, hop)
    found = flatten((first, last, hop) for (first, last), (_, hop) in best.items())
    return [(start, *(hop or (NO_ROUTE, 0))) for start, hop in found]


def _hop(route: Any, numbers: Mapping[int, int]) -> tuple[int, int] | None:
    """Return the next hop of a route and the number of its interface; None: the route uses none of the interfaces."""
    if route["type"] in _REFUSING:
        return NO_ROUTE, 0
    if route["type"] != _RTN_UNICAST or route["flags"] & _RTNH_F_DEAD:
        return None
    hops = [(route.get_attr("RTA_OIF"), route)]
    hops += [(hop["oif"], hop) for hop in route.get_attr("RTA_MULTIPATH") or ()]
    for interface, hop in hops:
        if interface in numbers:
            if hop.get_attr("RTA_VIA") is not None:  # a next hop of another family
                return NO_ROUTE, 0
            return int(IPv4Address(hop.get_attr("RTA_GATEWAY") or 0)), numbers[interface]
    return None


def vlans_on(index: int) -> list[str]:
    """The names of VLAN interfaces on top of an interface of this network namespace."""
    with IPRoute() as kernel:
        found = [link for link in kernel.get_links(kind="vlan") if link.get_attr("IFLA_LINK") == index]
    return sorted(link.get_attr("IFLA_IFNAME") for link in found)


def carrier_of(index: int) -> str | None:
    """Return the interface below a VLAN interface; None: it is no VLAN, or the one below is in another namespace."""
    with IPRoute() as kernel:
        for link in kernel.get_links(index):
            kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
            below = link.get_attr("IFLA_LINK")
            if kind == "vlan" and below and link.get_attr("IFLA_LINK_NETNSID") is None:
                return socket.if_indextoname(below)
    return None


def look_once() -> None:
    """Read the kernel's links, addresses, routes and neighbours: what a first reading imports is there then for a watcher's."""
    with _open_events(), IPRoute() as kernel:
        index = [link["index"] for link in kernel.get_links(ifname="lo")]
        ranges_of(kernel.get_routes(family=socket.AF_INET, table=_MAIN_TABLE), dict.fromkeys(index, 0))
        for message in (
            *kernel.get_addr(family=socket.AF_INET), *kernel.get_neighbours(family=socket.AF_INET, ifindex=index[0]),
        ):  # fmt: skip
            message.get_attr("IFA_LOCAL")


class Watcher:
    """Follows interfaces by name and calls the listener; also has neighbours resolved and kept fresh.

    groups: positions of the names; the listener gets the routes over the interfaces of each.
    """

    def __init__(self, names: Sequence[str], groups: Sequence[Sequence[int]], listener: Listener) -> None:
        self.names = tuple(names)
        self._groups = groups
        self.links: list[Link | None] = [None] * len(self.names)
        self.requests_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable: a loop has resolve requests
        self._stop_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._listener = listener
        self._stopping = False
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threads.made("natcore-watch", self._main)
        self._dirty: set[str] = set()
        self._settling: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self._states: list[dict[int, int]] = [{} for _ in self.names]  # NUD state of each neighbour, by number
        self._routes_read = 0.0
        self._ticked = 0.0
        self._probed = 0.0
        self._others: dict[int, Callable[[], object]] = {}  # descriptors that others watch in this thread

    def watch(self, descriptor: int, readable: Callable[[], object]) -> None:
        """Call a function in the watcher's thread whenever the descriptor is readable. For the listener's begin()."""
        self._others[descriptor] = readable

    def start(self) -> None:
        """Read everything once, call begin(), then watch. An error before that is raised here."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            self._close()
            raise self._error

    def stop(self) -> None:
        """End the thread; the listener's end() has run when this returns. Idempotent."""
        self.stop_soon()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._close()

    @property
    def ticked(self) -> float:
        """When its thread turned last: seconds of CLOCK_MONOTONIC; 0.0: not yet."""
        return self._ticked

    def settle(self) -> None:
        """Wait for a tick that began after this call, or for the watcher's end."""
        done = threading.Event()
        self._settling.put(done)
        if self.requests_fd >= 0:
            os.eventfd_write(self.requests_fd, 1)
        while self._thread.is_alive() and threading.current_thread() is not self._thread and not done.wait(0.1):
            pass

    def stop_soon(self) -> None:
        """Ask for a tick without waiting; from any thread."""
        self._stopping = True
        if self._stop_fd >= 0:
            os.eventfd_write(self._stop_fd, 1)

    def _close(self) -> None:
        for name in ("requests_fd", "_stop_fd"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                setattr(self, name, -1)
                os.close(descriptor)

    def _main(self) -> None:
        error: BaseException | None = None
        try:
            # Sockets are opened and bound by the thread that reads them, before the first reading: no event is missed.
            with _open_events() as events, IPRoute() as kernel:
                self._events, self._kernel = events, kernel
                self._read_links()
                self._read_addresses()
                self._listener.begin()
                self._read_all()
                self._ready.set()
                self._watch()
        except BaseException as raised:
            error = raised
        finally:
            if not self._ready.is_set():
                self._error = error
            try:
                self._listener.end(error)
            finally:
                self._ready.set()

    def _watch(self) -> None:
        poll = select.poll()
        for descriptor in (self._events.fileno(), self.requests_fd, self._stop_fd, *self._others):
            poll.register(descriptor, select.POLLIN)
        while not self._stopping:
            ready = [descriptor for descriptor, _ in poll.poll(TICK * 1000)]
            if self._events.fileno() in ready:
                self._take_events()
            if self.requests_fd in ready:
                with suppress(BlockingIOError):
                    os.eventfd_read(self.requests_fd)
                self._resolve(self._listener.take_resolve_requests())
            for descriptor in ready:
                if descriptor in self._others:
                    self._others[descriptor]()
            settling = [self._settling.get() for _ in range(self._settling.qsize())]
            self._refresh(time.monotonic(), at_once=bool(settling))
            for done in settling:
                done.set()

    def _refresh(self, now: float, *, at_once: bool) -> None:
        if "links" in self._dirty:
            self._read_links()
        if "addresses" in self._dirty:
            self._read_addresses()
        if "routes" in self._dirty and now - self._routes_read >= ROUTES_EVERY:
            self._read_routes(now)
        if at_once or now - self._ticked >= TICK:
            self._ticked = now
            self._listener.tick()
        if now - self._probed >= PROBE_EVERY:
            self._probed = now
            self._probe()

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _read_all(self) -> None:
        self._read_addresses()
        self._read_routes(time.monotonic())
        for number in range(len(self.names)):
            self.read_neighbours(number)

    def _read_links(self) -> None:
        self._dirty.discard("links")
        for number, name in enumerate(self.names):
            before, link = self.links[number], self._read_link(name)
            if link == before:
                continue
            self.links[number] = link
            self._listener.link_changed(number, link)
            self._dirty.update(("routes", "addresses"))  # the kernel sends no event when it drops a link's routes
            if self._ready.is_set() and link is not None and (before is None or before.index != link.index):
                self.read_neighbours(number)

    def _read_link(self, name: str) -> Link | None:
        found = list(self._kernel.get_links(ifname=name))
        if not found:
            return None
        message = found[0]
        mac = message.get_attr("IFLA_ADDRESS") or ""
        if message["ifi_type"] != _ARPHRD_ETHER:
            raise InterfaceError(errno.EPFNOSUPPORT, f"{name!r}: it must be an Ethernet interface")
        return Link(
            name=name,
            index=message["index"],
            mac=bytes.fromhex(mac.replace(":", "")),
            mtu=message.get_attr("IFLA_MTU"),
            up=bool(message["flags"] & _IFF_UP),
            carrier=bool(message["flags"] & _IFF_LOWER_UP),
        )

    def every_link(self) -> list[str]:
        """The names of all interfaces, for a message."""
        return sorted(message.get_attr("IFLA_IFNAME") for message in self._kernel.get_links())

    def _read_addresses(self) -> None:
        self._dirty.discard("addresses")
        own: set[int] = set()
        by_interface: list[list[int]] = [[] for _ in self.names]
        for message in self._kernel.get_addr(family=socket.AF_INET):
            address = int(IPv4Address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")))
            if address >> 24 == 127:
                continue
            own.add(address)
            for number, link in enumerate(self.links):
                if link is not None and link.index == message["index"]:
                    by_interface[number].append(address)
        self._listener.addresses_changed(own, by_interface)

    def _read_routes(self, now: float) -> None:
        self._dirty.discard("routes")
        self._routes_read = now
        routes = list(self._kernel.get_routes(family=socket.AF_INET, table=_MAIN_TABLE))
        for group, numbers in enumerate(self._groups):
            links = [(number, self.links[number]) for number in numbers]
            self._listener.routes_changed(
                group, ranges_of(routes, {link.index: number for number, link in links if link})
            )

    def read_neighbours(self, number: int) -> None:
        """Pass all of the kernel's neighbours of an interface to the listener. The watcher's thread only."""
        link = self.links[number]
        self._states[number] = {}
        if link is None:
            return
        for message in self._kernel.get_neighbours(family=socket.AF_INET, ifindex=link.index):
            if message["ifindex"] != link.index:
                continue
            mac = message.get_attr("NDA_LLADDR")
            address = int(IPv4Address(message.get_attr("NDA_DST")))
            self._neighbour(number, address, message["state"], bytes.fromhex(mac.replace(":", "")) if mac else None)

    # ---- events -----------------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        for _ in range(64):
            try:
                data = self._events.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._read_links()  # events were lost: read everything anew
                self._read_all()
                return
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, offset)
                self._take_event(kind, data[offset + _HEADER.size : offset + length])
                offset += max(_HEADER.size, (length + 3) & ~3)

    def _take_event(self, kind: int, body: bytes) -> None:
        if kind in _LINK:
            self._dirty.add("links")
        elif kind in _ADDRESS:
            self._dirty.update(("addresses", "routes"))
        elif kind in _ROUTE:
            self._dirty.add("routes")
        elif kind in _NEIGHBOUR:
            self._take_neighbour(kind, body)

    def _take_neighbour(self, kind: int, body: bytes) -> None:
        family, index, state, _, _ = _NDMSG.unpack_from(body)
        if family != socket.AF_INET:
            return
        found = attributes(body, _NDMSG.size)
        address, mac = found.get(1), found.get(2)  # NDA_DST, NDA_LLADDR
        for number, link in enumerate(self.links):
            if link is not None and link.index == index and address is not None and len(address) == 4:
                self._neighbour(number, int.from_bytes(address), 0 if kind == _NEIGHBOUR[1] else state, mac)

    def _neighbour(self, number: int, address: int, state: int, mac: bytes | None) -> None:
        known = bool(state & _NUD_KNOWN) and mac is not None and len(mac) == 6
        if state:
            self._states[number][address] = state
        else:
            self._states[number].pop(address, None)
        self._listener.neighbour_changed(number, address, mac if known else None, bool(state & _NUD_FAILED))

    # ---- neighbours -------------------------------------------------------------------------------------------------

    def _resolve(self, requests: Iterable[tuple[int, int]]) -> None:
        """Make the kernel resolve these neighbours, or probe them, as if it had a packet for them."""
        messages = []
        for number, address in requests:
            link = self.links[number]
            if link is None:
                continue
            body = _NDMSG.pack(socket.AF_INET, link.index, 0, _NTF_USE, 0)
            body += struct.pack("=HH4s", 8, 1, address.to_bytes(4))  # NDA_DST
            flags = _NLM_REQUEST | _NLM_CREATE | _NLM_REPLACE
            messages.append(_HEADER.pack(_HEADER.size + len(body), _NEIGHBOUR[0], flags, 0, 0) + body)
        for start in range(0, len(messages), 256):
            with suppress(OSError):  # the table is full, the link goes down: asked again by the next packet
                self._events.send(b"".join(messages[start : start + 256]))

    def _probe(self) -> None:
        """Probe neighbours in use that may be stale: the kernel does not see the traffic that uses them."""
        sure = _REACHABLE | _NUD_PERMANENT
        for number in range(len(self.names)):
            states = self._states[number]
            self._resolve([(number, a) for a in self._listener.take_used(number) if not states.get(a, 0) & sure])


def _open_events() -> socket.socket:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    with suppress(OSError):
        events.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), 1 << 22)
    events.bind((0, _GROUPS))
    events.setblocking(False)
    return events
