"""The kernel's NAT (nftables) between two network namespaces, as a data path: for comparison, and as an example."""

from __future__ import annotations

import os
import platform
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from ipaddress import IPv4Address
from itertools import count
from typing import ClassVar

from natcore.config import DnatEntry, NoNatEntry, Policy, SnatEntry, Timeouts
from natcore.demo.namespaces import Network, inside
from natcore.errors import InterfaceError
from natcore.testing.checker import Sent
from natcore.testing.configurations import Configuration
from natcore.testing.data_path import DataPath, NotSupportedError
from natcore.verdict import Side

_MAC = "02:00:00:00:00:01"  # that the frames are sent to
_IPV4 = 0x0800
_NOARP = 0x80  # linux/if.h: the interface's neighbours need no resolving
_SOON = 0.04  # seconds in which a frame has left, or does not
_QUIET = 0.004  # seconds without a frame after the first
_SECTION = "net/netfilter/nf_conntrack_"
_TIMEOUTS = {  # of natcore's Timeouts, each with what conntrack has for it
    "udp": ("udp_timeout", "udp_timeout_stream"),
    "tcp_established": ("tcp_timeout_established",),
    "tcp_transitory": tuple(
        f"tcp_timeout_{name}"
        for name in ("syn_sent", "syn_recv", "fin_wait", "close_wait", "last_ack", "time_wait", "close")
    ),
    "icmp": ("icmp_timeout",),
    "other": ("generic_timeout",),
}
_POLICY = {  # values other than natcore's defaults that this ruleset can be asked for; None: any
    "port_ranges": None,
    "filtering": ("address-and-port-dependent",),
    "ports": ("preserve",),
    "icmp_unreachable": None,
    "hold_down": (0.0,),
}
_LEAST_SESSIONS = 64  # fewer cannot be asked for
_numbers = count()
_making = threading.Lock()


class KernelNat(DataPath):
    """The kernel's NAT: masquerading by nftables in a namespace, as a router at home has it.

    It needs root, and the program nft. Its clock is real: `natcore conformance` waits for as long as `--wait` says. It can be
    asked for one range of ports, time-outs, an MTU, a pool of contiguous addresses, DNAT entries of whole addresses and
    no-NAT entries; everything else raises `NotSupportedError`.

    Examples
    --------
    ``natcore conformance natcore.testing.kernel_nat:KernelNat --wait 310 --page kernel.md``
    """

    title: ClassVar[str] = "Conformance of the kernel's NAT"
    is_real_time: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1.0
    _network: Network | None = None

    @classmethod
    def about(cls) -> str:
        """Return what is tested, in Markdown: the kernel, and the ruleset."""
        ruleset = _ruleset(Configuration([SnatEntry("10.0.0.0/8", pool="203.0.113.1")], {}))
        release = ".".join(platform.release().split(".")[:2])
        return (
            f"Linux {release} with this ruleset in a network namespace, between one inside and one outside; where a case asks "
            f"for other entries or ports, rules for them are added.\n\n```text\n{ruleset}```"
        )

    def start(self, configuration: Configuration) -> None:
        """Make the namespaces and load the rules."""
        _check(configuration)
        if os.geteuid() != 0:
            raise InterfaceError(1, "the kernel's NAT needs root: namespaces (CAP_SYS_ADMIN) and rules (CAP_NET_ADMIN)")
        if shutil.which("nft") is None:
            raise InterfaceError(2, "the kernel's NAT needs the program nft: apt-get install nftables")
        prefix = f"natcore-nat-{os.getpid()}-{next(_numbers)}-"
        with _making:
            network = self._network = Network(prefix, ["inside", "gateway", "outside"])
            for member, interface in (("inside", "lan0"), ("outside", "wan0")):
                network.pair("gateway", interface, member, "eth0")
                network.up(member, "eth0")
            self._set_up(configuration, network)
        self._sockets = {Side.INSIDE: _socket(prefix + "inside"), Side.OUTSIDE: _socket(prefix + "outside")}

    def _set_up(self, configuration: Configuration, network: Network) -> None:
        options = configuration.options
        settings: dict[str, object] = {"net/ipv4/ip_forward": 1}
        for interface in ("all", "default"):
            settings |= {f"net/ipv4/conf/{interface}/rp_filter": 0, f"net/ipv4/conf/{interface}/send_redirects": 0}
        for path, value in settings.items():
            network.setting("gateway", path, value)
        for side, interface in (("inside", "lan0"), ("outside", "wan0")):
            link = options.get(side)
            with network.netlink("gateway") as netlink:
                (index,) = netlink.link_lookup(ifname=interface)
                netlink.link("set", index=index, address=_MAC)
                netlink.link("set", index=index, flags=_NOARP, change=_NOARP)
            network.up("gateway", interface, mtu=None if link is None else link.mtu)
        (snat,) = (each for each in configuration.entries if isinstance(each, SnatEntry))
        network.up("gateway", "wan0", f"{snat.eips[0].address}/32")
        network.up("gateway", "lan0", "10.0.0.1/32")
        network.route("gateway", "10.0.0.0/8", interface="lan0")
        for half in ("0.0.0.0/1", "128.0.0.0/1"):
            network.route("gateway", half, interface="wan0")
        with inside(network.name("gateway")):
            done = subprocess.run(
                ["nft", "-f", "-"], input=_ruleset(configuration), capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise InterfaceError(22, f"nft: {done.stderr.strip()}")
        timeouts, usual = options.get("timeouts") or Timeouts(), Timeouts()
        for name, keys in _TIMEOUTS.items():
            if getattr(timeouts, name) != getattr(usual, name):
                for key in keys:
                    network.setting("gateway", f"{_SECTION}{key}", int(getattr(timeouts, name)))

    def translate(self, frame: bytes, side: Side, now: float) -> list[Sent]:
        """Send a frame into a namespace, and return what comes out of both within 40 ms."""
        sent = list(self._arrived(0.0))
        self._sockets[side].send(frame)
        return [*sent, *self._arrived(_SOON)]

    def advance(self, now: float) -> list[Sent]:
        """Return what has come out meanwhile."""
        return list(self._arrived(_QUIET))

    def events(self) -> None:
        """Return None: it tells none."""

    def stop(self) -> None:
        """Remove the namespaces."""
        for each in self.__dict__.pop("_sockets", {}).values():
            each.close()
        if self._network is not None:
            with _making:
                self._network.close()

    def _arrived(self, wait: float) -> Iterator[Sent]:
        end, poll = time.monotonic() + wait, select.poll()
        sides = {each.fileno(): (side, each) for side, each in self._sockets.items()}
        for number in sides:
            poll.register(number, select.POLLIN)
        while ready := poll.poll(max(0.0, end - time.monotonic()) * 1000):
            for number, _ in ready:
                side, each = sides[number]
                yield Sent(side, each.recv(65536))
            end = time.monotonic() + min(wait, _QUIET)


def _socket(namespace: str) -> socket.socket:
    """Return a socket that sends and receives IPv4 in Ethernet on a namespace's eth0."""
    with inside(namespace):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_IPV4))
    made.bind(("eth0", _IPV4))
    return made


def _check(configuration: Configuration) -> None:
    """Raise NotSupportedError unless rules can be made for a configuration."""
    options = configuration.options
    policy, usual = options.get("policy") or Policy(), Policy()
    for each in fields(Policy):
        value = getattr(policy, each.name)
        able = _POLICY.get(each.name, ())
        if value != getattr(usual, each.name) and able is not None and value not in able:
            raise NotSupportedError(f"Policy.{each.name}={value!r}")
    if len(policy.port_ranges) > 1:
        raise NotSupportedError(f"Policy.port_ranges={policy.port_ranges!r}")
    for name in ("max_sessions", "max_mappings", "max_subscribers"):
        if (options.get(name) or _LEAST_SESSIONS) < _LEAST_SESSIONS:
            raise NotSupportedError(f"{name}={options[name]}")
    for entry in configuration.entries:
        if isinstance(entry, DnatEntry) and not entry.is_one_to_one:
            raise NotSupportedError(f"{entry!r}")


def _ruleset(configuration: Configuration) -> str:
    """Return the rules for a configuration, as nft reads them."""
    policy = configuration.options.get("policy") or Policy()
    (snat,) = (each for each in configuration.entries if isinstance(each, SnatEntry))
    before, after = [], []
    for entry in configuration.entries:
        if isinstance(entry, NoNatEntry):
            after.append(f"ip saddr {entry.source} ip daddr {entry.destination} accept")
        if isinstance(entry, DnatEntry):
            target = entry.internal_ip[0][0]
            before.append(f"ip daddr {entry.external_ip} dnat to {target}")
            after.append(f'oifname "wan0" ip saddr {target} snat to {entry.external_ip}')
    if before:
        after.append(f'oifname "lan0" ct status dnat snat to {snat.eips[0].address}')
    after += _translations(snat, policy)
    refused = "reject with icmp admin-prohibited" if policy.icmp_unreachable else "drop"
    chains = {
        "prerouting": ("nat", "dstnat", before),
        "postrouting": ("nat", "srcnat", after),
        "forward": ("filter", "filter; policy drop", [
            "ct state established,related accept", "ct status dnat accept",
            f'iifname "lan0" ip saddr {snat.source} accept', f'iifname "lan0" {refused}',
        ]),
        "input": ("filter", "filter; policy drop", [
            "ct state established,related accept", 'iifname "lan0" icmp type echo-request accept',
        ]),
    }  # fmt: skip
    lines = ["table ip router {"]
    for name, (kind, priority, rules) in chains.items():
        if rules:
            lines += [f"  chain {name} {{", f"    type {kind} hook {name} priority {priority};"]
            lines += [*(f"    {rule}" for rule in rules), "  }"]
    return "\n".join([*lines, "}"]) + "\n"


def _translations(snat: SnatEntry, policy: Policy) -> list[str]:
    """Return the rules that translate sources to a pool: those of protocols with ports to a range of these."""
    addresses = [int(each.address) for each in snat.eips]
    first, last = min(addresses), max(addresses)
    if last - first + 1 != len(addresses):
        raise NotSupportedError("a pool that is not contiguous")
    ((low, high),) = policy.port_ranges
    rule = f'oifname "wan0" ip saddr {snat.source}'
    range_of = f"{IPv4Address(first)}-{IPv4Address(last)}"
    ported = f"masquerade to :{low}-{high}" if first == last else f"snat to {range_of}:{low}-{high} persistent"
    plain = "masquerade" if first == last else f"snat to {range_of} persistent"
    if policy.port_ranges == Policy().port_ranges:
        return [f"{rule} {plain}"]
    return [f"{rule} meta l4proto {{ tcp, udp }} {ported}", f"{rule} {plain}"]
