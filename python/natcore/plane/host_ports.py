"""Ports of an address that a gateway and its host share: which the host has, and how the kernel's own choice avoids the others.

A set of ports is an int with a bit for each. The kernel chooses a socket's port from net.ipv4.ip_local_port_range, but for
net.ipv4.ip_local_reserved_ports: the gateway's ports are added there. What was added is noted in a file beside the interfaces'
locks before it is, so that it can be taken away after the process has died.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from natcore.config import Policy
from natcore.errors import ConfigurationError, InterfaceError
from natcore.plane.interface_lock import lock_folder, network_namespace

Ports = int

ALL: Ports = (1 << 65536) - 1
TCP, UDP = 0, 1  # port spaces
_TABLES = (("tcp", TCP), ("tcp6", TCP), ("udp", UDP), ("udp6", UDP))
_LISTENS = "0A"  # TCP_LISTEN
_RANGE, _RESERVED = "ip_local_port_range", "ip_local_reserved_ports"
_SUFFIX = ".ports"


# ---- sets of ports -------------------------------------------------------------------------------------------------------


def ports_in(ranges: Iterable[tuple[int, int]]) -> Ports:
    """Return the set of the ports of ranges (first, last)."""
    found = 0
    for first, last in ranges:
        found |= ((1 << (last - first + 1)) - 1) << first
    return found


def ranges_of(ports: Ports) -> list[tuple[int, int]]:
    """Return a set as ranges (first, last), ascending.

    >>> ranges_of(ports_in([(5, 7), (8, 9), (80, 80)]))
    [(5, 9), (80, 80)]
    """
    found = []
    at = 0
    while ports:
        empty = (ports & -ports).bit_length() - 1
        ports >>= empty
        length = (~ports & (ports + 1)).bit_length() - 1
        found.append((at + empty, at + empty + length - 1))
        ports >>= length
        at += empty + length
    return found


# ---- what the host has ---------------------------------------------------------------------------------------------------


class Socket(NamedTuple):
    """A socket of the host: its port space, address (host order; 0: any), port, and inode."""

    space: int
    address: int
    port: int
    listens: bool  # a TCP listener, or UDP without a remote
    inode: int

    def __str__(self) -> str:
        protocol = "tcp" if self.space == TCP else "udp"
        return f"{protocol} {IPv4Address(self.address)}:{self.port} of {_process_of(self.inode)}"


def sockets(folder: Path, *, listening: bool = False) -> list[Socket]:
    """Return the TCP and UDP sockets of a network namespace that may get IPv4 packets of others. folder: its /proc/…/net.

    listening: those alone that wait for any remote. The kernel lists these TCP sockets first: the others are not read.
    """
    found = []
    for name, space in _TABLES:
        with suppress(OSError), (folder / name).open() as table:
            next(table, None)
            for line in table:
                parts = line.split()
                if listening and space == TCP and parts[3] != _LISTENS:
                    break
                entry = _socket(space, parts)
                if entry is not None and (entry.listens or not listening):
                    found.append(entry)
    return found


def _socket(space: int, parts: Sequence[str]) -> Socket | None:
    """A line of /proc/net/tcp and its like; None: the socket is bound to an IPv6 or a loopback address, or to no port."""
    local, _, port = parts[1].partition(":")
    address = 0
    if local.strip("0"):
        mapped = len(local) == 8 or local[:24] == "0000000000000000FFFF0000"
        if not mapped:
            return None
        address = int.from_bytes(bytes.fromhex(local[-8:]), "little")  # a word as the machine has it
    if address >> 24 == 127 or not int(port, 16):
        return None
    listens = parts[3] == _LISTENS if space == TCP else not parts[2].partition(":")[2].strip("0")
    return Socket(space, address, int(port, 16), listens, int(parts[9]))


def _process_of(inode: int) -> str:
    """The process that has a socket, as far as it can be seen."""
    wanted = f"socket:[{inode}]"
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for link in (folder / "fd").iterdir():
                with suppress(OSError):
                    if str(link.readlink()) == wanted:
                        return f"{(folder / 'comm').read_text().strip()} (process {folder.name})"
    return "a process of this host"


def ephemeral() -> tuple[int, int]:
    """Return the kernel's range for sockets without a port of their own."""
    with suppress(OSError, ValueError):
        first, last = map(int, _setting(_RANGE).read_text().split())
        return first, last
    return 32768, 60999


class HostPorts:
    """The TCP and UDP ports of each shared address that the host keeps. One thread at a time; that which makes it is in the
    host's network namespace, and outlives it.

    Beside those that the policy says, these are the ports that its sockets use when a plane begins, and those that sockets
    listen at later, as soon as no mapping has them. They stay the host's, so that a service may be started again.
    """

    def __init__(self, policy: Policy) -> None:
        self._drawn = ports_in(policy.drawn_ranges)
        kernels = ephemeral()
        self._kept = ports_in([kernels] if policy.host_ports is None else policy.host_ports)
        if not self._drawn & ~self._kept:
            asked = f"port_ranges={policy.port_ranges}" + (
                f", host_ports={policy.host_ports}" if policy.host_ports is not None else ""
            )
            raise ConfigurationError(
                f"Policy.host_ports must leave the gateway some of port_ranges, got {asked}"
                + ("" if policy.host_ports is not None else f" and the kernel's {_RANGE} {kernels[0]}-{kernels[1]}")
            )
        if not ports_in([kernels]) & (self._kept | ~self._drawn):
            raise ConfigurationError(
                f"Policy.host_ports must have ports of the kernel's {_RANGE}, {kernels[0]} to {kernels[1]}, for the host's own "
                f"connections, got {policy.host_ports}"
            )
        self._folder = Path("/proc/self/task", str(threading.get_native_id()), "net")
        self._used: dict[int, list[Ports]] = {}  # TCP and UDP ports by address (0: any)
        self._add(sockets(self._folder))

    def look(self) -> None:
        """Take sockets that listen by now into account."""
        self._add(sockets(self._folder, listening=True))

    def _add(self, found: Iterable[Socket]) -> None:
        for each in found:
            self._used.setdefault(each.address, [0, 0])[each.space] |= 1 << each.port

    def of(self, address: int) -> tuple[Ports, Ports]:
        """Return the TCP and the UDP ports of an address (host order) that the host keeps."""
        kept = self._kept | (ALL & ~self._drawn)
        used = [self._used.get(at, [0, 0]) for at in (0, address)]
        return kept | used[0][TCP] | used[1][TCP], kept | used[0][UDP] | used[1][UDP]

    def used_by(self, address: int, space: int, first: int, last: int) -> Socket | None:
        """Return a socket of the host that listens at one of the ports now, or None."""
        for each in sockets(self._folder, listening=True):
            if each.space == space and each.address in (0, address) and first <= each.port <= last:
                return each
        return None


# ---- the kernel's own choice of ports ------------------------------------------------------------------------------------


def reserve(interface: str, wanted: Ports) -> None:
    """From now on the kernel chooses none of these ports for a socket, besides those that it chose none of before; 0: what was
    added for the interface is taken away. Raises OSError."""
    with _Note(interface) as note:
        ours, now = note.read(), _read_setting()
        before = now & ~(ours & ~_others(interface))
        added = wanted & ~before
        if added == ours and before | wanted == now:
            return
        if ours | added:
            note.write(ours | added)
        ranges = ",".join(f"{first}-{last}" for first, last in ranges_of(before | wanted))
        _setting(_RESERVED).write_text(ranges + "\n")
        if added:
            note.write(added)
        else:
            note.remove()


def reserving() -> list[str]:
    """Return the interfaces for which ports are reserved in this network namespace."""
    try:
        folder = lock_folder("*")
    except InterfaceError:
        return []
    try:
        return sorted(_notes(folder))
    finally:
        os.close(folder)


def _setting(name: str) -> Path:
    return Path("/proc/sys/net/ipv4", name)


def _read_setting() -> Ports:
    text = _setting(_RESERVED).read_text()
    return ports_in((int(first), int(last or first)) for first, last in re.findall(r"(\d+)(?:-(\d+))?", text))


def _notes(folder: int) -> Iterator[str]:
    begin = f"{network_namespace()}-"
    for name in os.listdir(folder):
        if name.startswith(begin) and name.endswith(_SUFFIX):
            yield name.removeprefix(begin).removesuffix(_SUFFIX)


def _others(interface: str) -> Ports:
    """What is reserved for other interfaces."""
    found = 0
    for name in reserving():
        if name != interface:
            with _Note(name) as note:
                found |= note.read()
    return found


class _Note:
    """The note of what was added for an interface. A context manager."""

    def __init__(self, interface: str) -> None:
        self._folder = lock_folder(interface)
        self._name = f"{network_namespace()}-{interface}{_SUFFIX}"

    def read(self) -> Ports:
        try:
            descriptor = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return 0
        with os.fdopen(descriptor) as file, suppress(ValueError, TypeError):
            return ports_in((int(first), int(last)) for first, last in json.load(file))
        return 0

    def write(self, ports: Ports) -> None:
        draft = self._name + ".draft"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600, dir_fd=self._folder)
        with os.fdopen(descriptor, "w") as file:
            json.dump(ranges_of(ports), file)
        os.rename(draft, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder)

    def __enter__(self) -> _Note:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)
