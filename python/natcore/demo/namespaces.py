"""Network namespaces, veth pairs, addresses and routes by netlink: what the demo and the tests build networks of."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from natcore.errors import InterfaceError
from natcore.internal.closing import Closing
from natcore.internal.extras import extra

with extra("plane"):
    from pyroute2 import IPRoute, netns

RUN = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096


def _call(function: str, *arguments: Any) -> None:
    """Calls the C library; os.setns and os.unshare are there from Python 3.12 on, mount is not."""
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments):
        error = ctypes.get_errno()
        raise InterfaceError(error, f"{function}: {os.strerror(error)}; it needs CAP_SYS_ADMIN")


def _create(name: str) -> None:
    """Makes a namespace in a thread of its own: a fork, which pyroute2 takes for it, copies the caller's page tables."""
    RUN.mkdir(parents=True, exist_ok=True)
    path = RUN / name
    path.touch(mode=0o444, exist_ok=False)

    def bind() -> None:
        _call("unshare", _CLONE_NEWNET)
        _call("mount", b"/proc/thread-self/ns/net", os.fsencode(path), b"none", _MS_BIND, None)

    with ThreadPoolExecutor(1, "natcore-netns") as thread:
        try:
            thread.submit(bind).result()
        except OSError:
            path.unlink()
            raise


@contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the namespace: sockets, processes and threads made there belong to it for good."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            there = os.open(RUN / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            there_are = ", ".join(names()) or "none"
            raise InterfaceError(f"namespace={name!r}: there is none; there are: {there_are}") from None
        try:
            _call("setns", there, _CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


def names() -> list[str]:
    """The namespaces that have a name."""
    return sorted(path.name for path in RUN.iterdir()) if RUN.is_dir() else []


def _refused(error: OSError) -> InterfaceError:
    missing = f"namespaces: {error.strerror or error}; they need CAP_SYS_ADMIN and CAP_NET_ADMIN (root)"
    return InterfaceError(error.errno or 1, missing)


class Network(Closing):
    """Namespaces with a common prefix, joined by veth pairs; all gone after `close`. A context manager.

    >>> with Network("demo-", ["in", "gw"]) as network:          # doctest: +SKIP
    ...     network.pair("in", "eth0", "gw", "lan0")
    ...     network.up("in", "eth0", "10.0.0.2/24")
    ...     network.route("in", "default", via="10.0.0.1")
    ...     network.run("in", ["ping", "-c1", "10.0.0.1"])
    """

    def __init__(self, prefix: str, members: Sequence[str]) -> None:
        self.prefix = prefix
        self.members = list(members)
        self._processes: list[subprocess.Popen[Any]] = []
        try:
            for member in self.members:
                if self.name(member) in names():
                    netns.remove(self.name(member))
                _create(self.name(member))
        except OSError as error:
            self.close()
            raise _refused(error) from error
        for member in self.members:
            with self.netlink(member) as link:
                link.link("set", index=1, state="up")

    def name(self, member: str) -> str:
        """What the namespace is called outside."""
        return self.prefix + member

    @contextmanager
    def netlink(self, member: str) -> Iterator[IPRoute]:
        """A netlink socket of the namespace."""
        with inside(self.name(member)), IPRoute() as link:
            yield link

    def _index(self, link: IPRoute, interface: str) -> int:
        found = link.link_lookup(ifname=interface)
        if not found:
            raise InterfaceError(f"interface={interface!r}: there is none")
        return int(found[0])

    def pair(self, one: str, interface: str, other: str, peer: str) -> None:
        """A veth pair: `interface` in the member `one`, `peer` in the member `other`; both still down."""
        descriptor = os.open(RUN / self.name(other), os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self.netlink(one) as link:
                link.link("add", ifname=interface, kind="veth", peer={"ifname": peer, "net_ns_fd": descriptor})
        finally:
            os.close(descriptor)

    def up(self, member: str, interface: str, *addresses: str, mtu: int | None = None) -> None:
        """Gives the interface addresses ("10.0.0.1/24"), perhaps an MTU, and sets it up."""
        with self.netlink(member) as link:
            index = self._index(link, interface)
            for address in addresses:
                host, _, bits = address.partition("/")
                link.addr("add", index=index, address=host, prefixlen=int(bits or 32))
            link.link("set", index=index, state="up", **({"mtu": mtu} if mtu else {}))

    def down(self, member: str, interface: str) -> None:
        with self.netlink(member) as link:
            link.link("set", index=self._index(link, interface), state="down")

    def remove(self, member: str, interface: str) -> None:
        """Deletes the interface, and so its peer."""
        with self.netlink(member) as link:
            link.link("del", index=self._index(link, interface))

    def route(self, member: str, destination: str, *, via: str | None = None, interface: str | None = None) -> None:
        """destination: "default" or a prefix; by a gateway, or on the link of the interface."""
        with self.netlink(member) as link:
            where: dict[str, Any] = {"gateway": via} if via else {}
            if interface:
                where["oif"] = self._index(link, interface)
            link.route("replace", dst=destination, **where)

    def mac(self, member: str, interface: str) -> str:
        with self.netlink(member) as link:
            return str(link.get_links(self._index(link, interface))[0].get_attr("IFLA_ADDRESS"))

    def statistics(self, member: str, interface: str) -> dict[str, int]:
        """The interface's own counters: rx_packets, tx_packets, rx_bytes, tx_bytes, …"""
        with self.netlink(member) as link:
            return dict(link.get_links(self._index(link, interface))[0].get_attr("IFLA_STATS64"))

    def setting(self, member: str, path: str, value: object) -> None:
        """A sysctl of the namespace: path as below /proc/sys ("net/ipv4/ip_forward")."""
        with inside(self.name(member)):
            Path("/proc/sys", path).write_text(str(value))

    def popen(self, member: str, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A process in the namespace; ended by `close` at the latest."""
        with inside(self.name(member)):
            process = subprocess.Popen(list(command), **options)
        self._processes.append(process)
        return process

    def run(
        self, member: str, command: Sequence[str], *, timeout: float = 60.0, check: bool = True,
        stdin: IO[Any] | None = None, environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Runs a program in the namespace to its end; its output as text."""
        with inside(self.name(member)):
            return subprocess.run(
                list(command), capture_output=True, text=True, timeout=timeout, check=check, stdin=stdin,
                env=None if environment is None else dict(environment),
            )  # fmt: skip

    def close(self) -> None:
        """Ends the processes, deletes the namespaces. Idempotent."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._processes.clear()
        for member in self.members:
            if self.name(member) in names():
                netns.remove(self.name(member))
