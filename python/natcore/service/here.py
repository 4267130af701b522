"""Whether a configuration fits this machine: interfaces, addresses, routes, folders, rights, forwarding and firewall.

Everything is read; nothing is made or changed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal

from natcore.config import DnatEntry, SnatEntry
from natcore.entries.table import Entry, Rulebook
from natcore.errors import ConfigurationError, InterfaceError, UntrustedFileError
from natcore.internal.extras import extra
from natcore.internal.files import open_folder
from natcore.internal.validation import listed
from natcore.io import bpf
from natcore.labels import labels_at
from natcore.plane import kernel_bypass
from natcore.plane import nftables as nft
from natcore.plane.checks import check_capabilities
from natcore.service.configuration_file import Settings
from natcore.service.machine import ETHERNET, UP, addresses

with extra("plane"):
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

_XDP = getattr(socket, "AF_XDP", 44)
_MOST_NAMED = 4
Level = Literal["good", "note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    level: "error", `natcore run` would not work; "warning", packets may be lost; "note", worth knowing; "good". key: what it
    concerns in the file, such as "plane.outside".
    """

    level: Level
    key: str
    text: str


def look(settings: Settings) -> list[Finding]:
    """Return what was found of a file that is good, in the order of its keys; as this user, in this network namespace."""
    with IPRoute() as kernel:
        machine = _Machine(kernel, settings)
        return [
            *machine.interfaces(), *machine.pools(), *machine.routes(), *_rights(machine.driver), *_driver(machine),
            *_folders(settings), *_labels(settings), *machine.peer(), *_forwarding(machine.names), *_firewall(),
        ]  # fmt: skip


class _Machine:
    """The file's interfaces as the kernel has them."""

    def __init__(self, kernel: Any, settings: Settings) -> None:
        plane = settings.plane or {}
        inside = plane.get("inside", [])
        self.inside: list[str] = [inside] if isinstance(inside, str) else list(inside)
        self.outside: str = plane.get("outside", "")
        self.names = [*self.inside, self.outside]
        self.driver: str = plane.get("driver", "af_packet")
        self.workers: int = settings.gateway.get("workers", 1)
        self._settings, self._kernel = settings, kernel
        self._links = {link.get_attr("IFLA_IFNAME"): link for link in kernel.get_links()}
        self._name_of = {link["index"]: name for name, link in self._links.items()}
        self._addresses = {self._name_of.get(index, ""): found for index, found in addresses(kernel).items()}

    def key(self, name: str) -> str:
        return "plane.outside" if name == self.outside else "plane.inside"

    def queues(self, name: str) -> int:
        link = self._links.get(name)
        counts = [link.get_attr(f"IFLA_NUM_{each}_QUEUES") or 1 for each in ("RX", "TX")] if link else [1]
        return int(min(counts))

    def interfaces(self) -> Iterator[Finding]:
        """Yield what each interface is."""
        taken = _taken()
        for name in self.names:
            link, key = self._links.get(name), self.key(name)
            if link is None:
                there = ", ".join(sorted(self._links))
                yield Finding("error", key, f"{name}: no such interface; there are: {there}")
                continue
            addresses = ", ".join(map(str, self._addresses.get(name, []))) or "no IPv4 address"
            if link["ifi_type"] != ETHERNET:
                yield Finding("error", key, f"{name}: it is no Ethernet interface (type {link['ifi_type']})")
            elif not link["flags"] & UP:
                yield Finding("error", key, f"{name}: it is down; set it up first")
            elif not link.get_attr("IFLA_CARRIER", 1):
                yield Finding("warning", key, f"{name}: it has no carrier; packets wait for it")
            else:
                yield Finding("good", key, f"{name}: up, {addresses}, MTU {link.get_attr('IFLA_MTU')}")
            if name in taken:
                yield Finding("note", key, f"{name}: a gateway has it now")

    def pools(self) -> Iterator[Finding]:
        """Yield pool addresses that this host has inside, or for which routers outside need a route."""
        own = {address.ip: name for name, found in self._addresses.items() for address in found}
        networks = [address.network for address in self._addresses.get(self.outside, [])]
        gateway = self._settings.gateway
        book = Rulebook(gateway.get("kind", "internet"), gateway.get("eip_bind_mode", "NAT"), gateway.get("policy"))
        rows = [Entry(number, entry) for number, entry in enumerate(self._settings.entries, 1)]
        wires_of = book.wires(rows)
        for position, row in enumerate(rows):
            entry = row.entry
            wires = [IPv4Address(wire) for wire, _ in wires_of.of(row)]
            key = self._settings.key_of(position)[0]
            if not wires and isinstance(entry, SnatEntry) and not networks:
                yield Finding("error", key, f"pool is the interface's, and {self.outside} has no IPv4 address")
            for address in wires:
                if own.get(address) in self.inside:
                    yield Finding(
                        "error", key, f"{address} is this host's own on {own[address]}: it would be cut off from it"
                    )
            far = [address for address in wires if not any(address in network for network in networks)]
            if far and networks:
                named = listed(far, _MOST_NAMED)
                text = f"not in a network of {self.outside}: {named}; the routers there need a route by this machine"
                yield Finding("note", key, text)

    def routes(self) -> Iterator[Finding]:
        """Yield whether the kernel has routes to the inside networks by inside interfaces, and outside by the outside one."""
        for position, entry in enumerate(self._settings.entries):
            if isinstance(entry, SnatEntry):
                wanted = [self._some_host(IPv4Network(entry.source))]
            elif isinstance(entry, DnatEntry):
                wanted = [address for address, _ in entry.internal_ip]
            else:
                continue
            key = self._settings.key_of(position)[0]
            for address in wanted:
                by = self._route(address)
                if by not in self.inside:
                    shown = f"leads by {by}" if by else "is missing"
                    yield Finding(
                        "warning", key, f"the route to {address} {shown}: answers would not reach inside hosts"
                    )
        by = self._route(IPv4Address("198.51.100.1"))
        if by == self.outside:
            yield Finding("good", "plane.outside", f"the default route leads by {by}")
        else:
            shown = f"leads by {by}" if by else "is missing"
            yield Finding("warning", "plane.outside", f"the default route {shown}, and should lead by {self.outside}")

    def peer(self) -> Iterator[Finding]:
        """Yield whether the address is there at which the other gateway of a pair is answered, and the fence command."""
        peer = self._settings.peer
        if peer is None:
            return
        own = {str(address.ip) for found in self._addresses.values() for address in found}
        host = peer.listen.host
        if ":" not in host and host not in (*own, "0.0.0.0"):  # an IPv6 address, or any of this machine's
            yield Finding("error", "peer.listen", f"{host} is no IPv4 address of this machine")
        else:
            yield Finding("good", "peer.listen", f"{peer.peer_name} is answered at {peer.listen}")
        if peer.fence is not None and not os.access(peer.fence[0], os.X_OK):
            yield Finding("error", "peer.fence", f"{peer.fence[0]}: user {os.geteuid()} cannot run it")

    def _some_host(self, network: IPv4Network) -> IPv4Address:
        """Return an address of a network that is not this host's own, if there is one."""
        own = {address.ip for found in self._addresses.values() for address in found}
        first = network.network_address + (network.prefixlen < 31)
        return next((each for each in (first, first + 1, first + 2) if each in network and each not in own), first)

    def _route(self, address: IPv4Address) -> str:
        """Return the interface by which the kernel reaches an address; "": none."""
        try:
            found = self._kernel.route("get", dst=str(address))
        except NetlinkError:  # unreachable
            return ""
        return next((self._name_of.get(each.get_attr("RTA_OIF"), "") for each in found), "")


def _taken() -> list[str]:
    """Return the interfaces that gateways have now; none where this user may not ask."""
    try:
        return kernel_bypass.installed()
    except OSError:
        return []


def _rights(driver: str) -> Iterator[Finding]:
    try:
        check_capabilities()
    except InterfaceError as error:
        yield Finding("warning", "plane", f"as user {os.geteuid()}: {error.strerror}")
    else:
        yield Finding("good", "plane", f"user {os.geteuid()} may open packet rings and set the kernel block")
    if driver == "af_xdp":
        yield from _xdp()


def _xdp() -> Iterator[Finding]:
    key = "plane.driver"
    try:
        socket.socket(_XDP, socket.SOCK_RAW).close()
        os.close(bpf.sockets(1))
    except OSError as error:
        what = (
            "this kernel has no AF_XDP"
            if error.errno in (errno.EAFNOSUPPORT, errno.ENOSYS)
            else "AF_XDP cannot be used"
        )
        level: Level = "warning" if error.errno in (errno.EPERM, errno.EACCES) else "error"
        yield Finding(
            level, key, f"{what}: {error.strerror} (it needs CONFIG_XDP_SOCKETS, CAP_BPF, CAP_PERFMON and CAP_NET_RAW)"
        )
    else:
        yield Finding("good", key, "AF_XDP sockets and maps can be made")


def _driver(machine: _Machine) -> Iterator[Finding]:
    for name in machine.names if machine.driver == "af_xdp" else ():
        if machine.queues(name) < machine.workers:
            yield Finding(
                "error", "gateway.workers",
                f"{name} has {machine.queues(name)} queues, fewer than the {machine.workers} workers (ethtool -L)",
            )  # fmt: skip


def _folders(settings: Settings) -> Iterator[Finding]:
    """Yield whether each folder that logs write to can be written or made by this user."""
    for log in settings.logs:
        for name in ("spool", "folder"):
            place = log.options.get(name) or log.arguments.get(name)
            if place is None:
                continue
            folder, key = Path(place), f"{log.key}.{name}"
            there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
            if not there.is_dir():
                yield Finding("error", key, f"{folder}: {there} is not a folder")
                continue
            if not os.access(there, os.W_OK | os.X_OK):
                yield Finding("error", key, f"{folder}: user {os.geteuid()} may not write in {there}")
                continue
            try:
                if there == folder.absolute():
                    os.close(open_folder(folder))
            except UntrustedFileError as error:
                yield Finding("error", key, str(error))
            except OSError as error:
                yield Finding("error", key, f"{folder}: {error.strerror}")
            else:
                yield Finding(
                    "good", key, f"{folder}: {'written' if there == folder.absolute() else 'made'} by this user"
                )


def _labels(settings: Settings) -> Iterator[Finding]:
    """Yield whether each table of labels can be read; without it rows have none."""
    for log in settings.logs:
        if (path := log.options.get("labels")) is not None:
            try:
                labels_at(path)
            except ConfigurationError as error:
                yield Finding("warning", f"{log.key}.labels", str(error))
            else:
                yield Finding("good", f"{log.key}.labels", f"{path}: read by this user")


def _forwarding(names: Sequence[str]) -> Iterator[Finding]:
    on = [name for name in names if kernel_bypass.forwards(name)]
    if on:
        text = f"the kernel's forwarding is on for {', '.join(on)}: natcore does not need it, and only its kernel block keeps"
        yield Finding("note", "plane", f"{text} packets from leaving untranslated (sysctl net.ipv4.ip_forward=0)")
    else:
        yield Finding("good", "plane", "the kernel does not forward by these interfaces")


def _firewall() -> Iterator[Finding]:
    """Yield that a firewall is there which does not see what natcore forwards."""
    try:
        with closing(nft.Ruleset()) as ruleset:
            tables = sorted({name for _, name, _ in ruleset.tables() if not name.startswith(kernel_bypass.PREFIX)})
    except OSError:  # not as this user
        return
    if tables:
        names = ", ".join(tables[:_MOST_NAMED]) + (" and others" if len(tables) > _MOST_NAMED else "")
        yield Finding("note", "plane", f"nf_tables has {names}: what natcore forwards is not filtered there")
