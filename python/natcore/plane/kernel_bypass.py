"""The kernel block: what a plane forwards is kept from the kernel's own stack, by nf_tables, set by netlink.

Two tables for each interface, both called natcore-INTERFACE:

- family netdev, a chain at the interface's ingress, as long as a plane has the interface: IPv4 for this machine's link
  address is dropped, but for the host's own addresses and DHCP answers. Of an address that gateway and host share, TCP and
  UDP to the gateway's ports are dropped; a later fragment has no port, and is reassembled by the kernel only if the first
  one was for a port of the host's. Packet sockets and XDP come before that hook, so
  a plane reads what is dropped here, and the kernel answers nothing.
- family ip, a chain at prerouting: whatever comes by the interface and is for no address of this host is not forwarded.
  It needs no list of addresses and no interface that is there, so it also holds while an interface is made anew, when the
  process has died, and after a stop (`block_when_stopped`).

Where the kernel can (6.9), both belong to the plane's socket and outlive it: `nft flush ruleset` leaves them, `nft delete
table` is refused. Elsewhere the plane watches nf_tables' events and puts them back.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path

from natcore.errors import InterfaceError
from natcore.plane import host_ports
from natcore.plane import nftables as nft
from natcore.plane.host_ports import ALL, TCP, UDP, Ports, ranges_of
from natcore.plane.interface_lock import Claim as Claim
from natcore.plane.steering import left_steered, unsteer

PREFIX = "natcore-"  # of table names: natcore-INTERFACE
OWNED = nft.OWNER | nft.PERSIST

_PRIORITY = -500  # before other chains: what they would forward or redirect is ours
_UNICAST = struct.pack("=I", 1)  # RTN_UNICAST
_log = logging.getLogger(__name__)


Shared = Mapping[int, tuple[Ports, Ports]]  # addresses (host order), with the TCP and UDP ports that the host has


def _ingress_rules(to_kernel: Iterable[int], shared: Shared) -> list[bytes]:
    """Expression lists: leave alone what is not for our link address and what the host may have; drop IPv4."""
    rules = [nft.meta(nft.PACKET_TYPE) + nft.compare(nft.NOT_EQUAL, b"\0") + nft.verdict(nft.ACCEPT)]
    for address in sorted(to_kernel):  # what is not IPv4 and looks like it would be accepted anyway
        asked = nft.load(nft.NETWORK_HEADER, 16, 4) + nft.compare(nft.EQUAL, struct.pack(">I", address))
        rules.append(asked + nft.verdict(nft.ACCEPT))
    rules.append(_dhcp_answer() + nft.verdict(nft.ACCEPT))
    for address in sorted(shared):
        asked = nft.load(nft.NETWORK_HEADER, 16, 4) + nft.compare(nft.EQUAL, struct.pack(">I", address))
        rules.append(asked + nft.verdict(nft.GOTO, _chain_of(address)))
    # by the Ethernet type: a frame with an 802.1Q tag has 0x8100 there, also where the device took the tag off
    ethertype = nft.load(nft.LINK_HEADER, 12, 2) + nft.compare(nft.EQUAL, b"\x08\x00")
    rules.append(ethertype + nft.verdict(nft.DROP))
    for tag in (b"\x81\x00", b"\x88\xa8"):  # a priority alone, of no VLAN: the kernel would take it for its own
        tagged = nft.load(nft.LINK_HEADER, 12, 6) + nft.mask(b"\xff\xff\x0f\xff\xff\xff")
        rules.append(tagged + nft.compare(nft.EQUAL, tag + b"\x00\x00\x08\x00") + nft.verdict(nft.DROP))
    return rules


def _dhcp_answer() -> bytes:
    """UDP 67 to 68, unfragmented and without options: to an address that the host does not have yet (RFC 2131 4.1)."""
    return (
        nft.load(nft.LINK_HEADER, 12, 3) + nft.compare(nft.EQUAL, b"\x08\x00\x45")
        + nft.load(nft.NETWORK_HEADER, 6, 2) + nft.mask(b"\x3f\xff") + nft.compare(nft.EQUAL, b"\0\0")
        + nft.load(nft.NETWORK_HEADER, 9, 1) + nft.compare(nft.EQUAL, bytes([socket.IPPROTO_UDP]))
        + nft.load(nft.NETWORK_HEADER, 20, 4) + nft.compare(nft.EQUAL, struct.pack(">HH", 67, 68))
    )  # fmt: skip


def _chain_of(address: int) -> str:
    return f"shared-{IPv4Address(address)}"


def _shared_rules(ports: tuple[Ports, Ports]) -> list[bytes]:
    """Expression lists for a shared address: drop what is for the gateway's ports, accept all else, ICMP too. The kernel
    answers no ICMP error and no echo reply, and the gateway translates those of its own sessions. A later fragment has no
    port: the kernel gives it up if the first one was dropped. The largest ranges come first."""
    later = nft.load(nft.NETWORK_HEADER, 6, 2) + nft.mask(b"\x1f\xff") + nft.compare(nft.NOT_EQUAL, b"\0\0")
    rules = [later + nft.verdict(nft.ACCEPT)]
    for protocol, hosts in ((socket.IPPROTO_TCP, ports[TCP]), (socket.IPPROTO_UDP, ports[UDP])):
        for first, last in sorted(ranges_of(ALL & ~hosts), key=lambda each: each[0] - each[1]):
            rules.append(
                nft.load(nft.NETWORK_HEADER, 9, 1) + nft.compare(nft.EQUAL, bytes([protocol]))
                + nft.load(nft.TRANSPORT_HEADER, 2, 2) + nft.compare(nft.AT_LEAST, struct.pack(">H", first))
                + nft.compare(nft.AT_MOST, struct.pack(">H", last)) + nft.verdict(nft.DROP)
            )  # fmt: skip
    return [*rules, nft.verdict(nft.ACCEPT)]


def _gone(name: str, flags: int) -> list[nft.Message]:
    """The tables away, whether they are there or not. flags: what new ones will have."""
    named = [nft.attribute(1, name)]
    messages = []
    for family in (nft.NETDEV, nft.IPV4):
        if flags:
            messages.append(nft.Message(nft.DESTROYTABLE, family, named))
        else:
            messages += [nft.Message(nft.NEWTABLE, family, named), nft.Message(nft.DELTABLE, family, named)]
    return messages


def _ingress(interface: str, to_kernel: Iterable[int], shared: Shared, flags: int) -> list[nft.Message]:
    name = PREFIX + interface
    table = [nft.attribute(1, name), nft.attribute(2, flags)]
    hooked = nft.chain(name, "ingress", nft.INGRESS, _PRIORITY, interface)
    messages = [nft.Message(nft.NEWTABLE, nft.NETDEV, table), nft.Message(nft.NEWCHAIN, nft.NETDEV, hooked)]
    for address, ports in shared.items():
        chain = _chain_of(address)
        messages.append(nft.Message(nft.NEWCHAIN, nft.NETDEV, nft.plain_chain(name, chain)))
        for rule in _shared_rules(ports):
            messages.append(nft.Message(nft.NEWRULE, nft.NETDEV, nft.rule(name, chain, rule)))
    for rule in _ingress_rules(to_kernel, shared):
        messages.append(nft.Message(nft.NEWRULE, nft.NETDEV, nft.rule(name, "ingress", rule)))
    return messages


def _routing(interface: str, flags: int) -> list[nft.Message]:
    name = PREFIX + interface
    table = [nft.attribute(1, name), nft.attribute(2, flags)]
    from_it = nft.meta(nft.INPUT_NAME) + nft.compare(nft.EQUAL, interface.encode().ljust(nft.NAME_BYTES, b"\0"))
    routed = from_it + nft.destination_type() + nft.compare(nft.EQUAL, _UNICAST) + nft.verdict(nft.DROP)
    return [
        nft.Message(nft.NEWTABLE, nft.IPV4, table),
        nft.Message(nft.NEWCHAIN, nft.IPV4, nft.chain(name, "prerouting", nft.PREROUTING, _PRIORITY)),
        nft.Message(nft.NEWRULE, nft.IPV4, nft.rule(name, "prerouting", routed)),
    ]


class Block:
    """The kernel block of some interfaces, held by one socket until `close`. One thread at a time.

    left: what `leave` gave in another process: this one owns that one's tables.
    """

    def __init__(self, left: tuple[int, int] | None = None) -> None:
        self._ruleset = nft.Ruleset(left)
        try:
            self.events = nft.Events(PREFIX)
        except BaseException:
            self._ruleset.close()
            raise
        self._flags = OWNED
        self._routing = True  # this kernel can drop by the destination's type
        self._marks: dict[tuple[int, str], tuple[object, ...]] = {}
        self._kept: dict[str, tuple[frozenset[int], Shared]] = {}
        self._missing: set[str] = set()  # what could not be restored

    def install(self, interface: str, to_kernel: Iterable[int], shared: Shared | None = None) -> None:
        """From now on, in one step, the kernel sees IPv4 from the interface for the addresses of to_kernel (host order) and the
        host's ports of shared ones only, and forwards none. What a dead plane left there is taken over. Raises
        InterfaceError."""
        kept = frozenset(to_kernel), shared or {}
        try:
            self._exchange(interface, kept)
        except OSError as error:
            raise _refused(interface, error) from error
        self._kept[interface] = kept
        self._missing.discard(interface)
        self._note(interface)

    def forward_nothing(self, interface: str) -> None:
        """The kernel's stack has the interface again, and still forwards nothing that comes by it; it need not be there."""
        try:
            self._exchange(interface, None)
        except OSError as error:
            raise _refused(interface, error) from error
        self._kept.pop(interface, None)

    def remove(self, interface: str) -> None:
        """The kernel sees and forwards everything again. Nothing there: nothing happens."""
        try:
            self._commit(lambda flags: _gone(PREFIX + interface, flags))
        except OSError as error:
            raise _refused(interface, error) from error
        self._kept.pop(interface, None)

    def restore(self) -> list[str]:
        """Puts back what others have changed or taken away; the interfaces of those."""
        restored = []
        for interface, kept in list(self._kept.items()):
            known = {key: mark for key, mark in self._marks.items() if key[1] == interface}
            if all(self._ruleset.mark(family, PREFIX + interface) == mark for (family, _), mark in known.items()):
                continue
            self._missing.add(interface)
            with suppress(InterfaceError):  # the interface is just going
                self.install(interface, *kept)
                restored.append(interface)
        return restored

    def is_installed(self, interface: str) -> bool:
        """Whether the interface's block stands; one that another program took away is put back at once, or is missing."""
        return interface in self._kept and interface not in self._missing

    def leave(self) -> tuple[int, int]:
        """Close it, and give the socket that owns the tables, which stay, for another process's Block."""
        self.events.close()
        return self._ruleset.leave()

    def close(self) -> None:
        """Existing tables stay and have no owner."""
        self._ruleset.close()
        self.events.close()

    def _exchange(self, interface: str, kept: tuple[frozenset[int], Shared] | None) -> None:
        def messages(flags: int) -> list[nft.Message]:
            wanted = _gone(PREFIX + interface, flags)
            if kept is not None:
                wanted += _ingress(interface, *kept, flags)
            return wanted + (_routing(interface, flags) if self._routing else [])

        try:
            self._commit(messages)
        except FileNotFoundError:
            if not self._routing or (kept is not None and not Path("/sys/class/net", interface).exists()):
                raise
            self._routing = False
            _log.warning(
                "this kernel cannot tell in nf_tables what is the host's own (CONFIG_NFT_FIB_IPV4): where "
                "forwarding is on, it forwards untranslated once the plane has ended"
            )
            self._commit(messages)

    def _commit(self, messages: Callable[[int], list[nft.Message]]) -> None:
        """With tables of our own if the kernel has such, plain ones else. messages: made for a table's flags."""
        try:
            self._ruleset.commit(messages(self._flags))
        except OSError as error:
            if not self._flags or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            self._ruleset.commit(messages(0))
            self._flags = 0

    def _note(self, interface: str) -> None:
        for family in (nft.NETDEV, nft.IPV4) if self._routing else (nft.NETDEV,):
            self._marks[family, interface] = self._ruleset.mark(family, PREFIX + interface)


def _refused(interface: str, error: OSError) -> InterfaceError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return InterfaceError(
            errno.EPERM,
            f"{interface!r}: keeping the kernel off it needs CAP_NET_ADMIN, and tables "
            f"{PREFIX}{interface} that no other process owns",
        )
    if error.errno in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        missing = "this kernel has no nf_tables at ingress (CONFIG_NF_TABLES_NETDEV)"
        return InterfaceError(error.errno, f"{interface!r}: {missing}")
    reason = error.strerror or str(error)
    return InterfaceError(error.errno or errno.EIO, f"{interface!r}: keeping the kernel off it failed: {reason}")


def install(interface: str, to_kernel: Iterable[int], shared: Shared | None = None) -> None:
    """As Block.install; the tables have no owner."""
    with _for_a_moment() as block:
        block.install(interface, to_kernel, shared)


def forward_nothing(interface: str) -> None:
    """As Block.forward_nothing; the tables have no owner."""
    with _for_a_moment() as block:
        block.forward_nothing(interface)


def remove(interface: str) -> None:
    """As Block.remove."""
    with _for_a_moment() as block:
        block.remove(interface)


@contextmanager
def _for_a_moment() -> Iterator[Block]:
    block = Block()
    try:
        yield block
    finally:
        block.close()


def check() -> None:
    """PermissionError, if this process may not, InterfaceError, if the kernel cannot: a table of no interface comes and
    goes in one step.
    """
    named = [nft.attribute(1, PREFIX)]
    try:
        with nft.Ruleset() as ruleset:
            ruleset.commit([nft.Message(kind, nft.NETDEV, named) for kind in (nft.NEWTABLE, nft.DELTABLE)])
    except PermissionError:
        raise
    except OSError as error:
        raise _refused("*", error) from error


def installed() -> list[str]:
    """The interfaces that a plane has blocked, alive or dead, in this network namespace."""
    return _names(nft.NETDEV)


def forwarding_nothing() -> list[str]:
    """The interfaces from which the kernel is kept from forwarding, by a plane that is there, has died or was stopped."""
    return _names(nft.IPV4)


def _names(family: int) -> list[str]:
    try:
        with nft.Ruleset() as ruleset:
            return nft.names(ruleset.tables(), family, PREFIX)
    except OSError as error:
        raise _refused("*", error) from error


def forwards(interface: str) -> bool:
    """Whether the kernel forwards IPv4 that comes by the interface (ip_forward)."""
    with suppress(OSError, ValueError):  # there is none of that name, or there cannot be
        return Path("/proc/sys/net/ipv4/conf", interface, "forwarding").read_text().strip() == "1"
    return False


def clean() -> list[str]:
    """Takes away what planes left behind that died or were stopped; interfaces of living ones are left alone. The names
    cleaned."""
    cleaned = []
    for interface in sorted({*installed(), *forwarding_nothing(), *host_ports.reserving(), *left_steered()}):
        with suppress(InterfaceError, OSError):
            claim = Claim(interface)
            try:
                remove(interface)
                host_ports.reserve(interface, 0)
                unsteer(interface)
                cleaned.append(interface)
            finally:
                claim.close()
    return cleaned
