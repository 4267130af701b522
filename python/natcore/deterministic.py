"""ports="deterministic" (RFC 7422): who has which outside address and ports, computed from the configuration alone.

Host h of an SNAT entry (0 for the first address of its prefix) has block h mod B of the pool's address h div B, where B is
how many blocks of block_size ports the port ranges hold; the same ports of all protocols. No state and no log is needed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

from natcore.config import AnyEntry, DnatEntry, Eip, OutsideInterface, Policy, SnatEntry
from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.internal.validation import Address, check_integer, parse_ipv4

if not TYPE_CHECKING:
    from natcore.internal.values import dataclass
else:
    from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """What an inside host has.

    Attributes
    ----------
    inside
        Its address.
    outside
        The address of the pool, as the entry names it.
    first_port, last_port
        Its ports, both included.
    """

    inside: ipaddress.IPv4Address
    outside: Eip
    first_port: int
    last_port: int


def block_starts(policy: Policy) -> list[int]:
    """Return the first port of each block of an outside address, ascending.

    Parameters
    ----------
    policy
        The gateway's policy.
    """
    return [
        port
        for first, last in policy.drawn_ranges
        for port in range(first, last + 2 - policy.block_size, policy.block_size)
    ]


def check_fit(entry: SnatEntry, policy: Policy) -> None:
    """Raise ConfigurationError, with the numbers, unless each address of the prefix gets a block of the pool."""
    hosts, blocks = _network(entry).num_addresses, len(block_starts(policy))
    if entry.follows_interface:
        raise ConfigurationError(
            "SnatEntry.pool must be addresses that stay with ports='deterministic', got the outside interface's"
        )
    if hosts > blocks * len(entry.pool):
        raise ConfigurationError(
            f"SnatEntry.pool must have at least {-(-hosts // blocks):,} addresses, got {len(entry.pool)}: "
            f"{blocks * len(entry.pool):,} blocks of {policy.block_size} ports ({blocks} an address) are fewer than the "
            f"{hosts:,} addresses of {entry.source}; a smaller Policy.block_size makes more of them"
        )


def ports_of(entries: Iterable[AnyEntry], policy: Policy, inside: Address) -> Share | None:
    """What an inside host has by the SNAT entry of the longest prefix.

    A port of a DNAT entry within a share is the entry's.

    Parameters
    ----------
    entries
        The gateway's entries of that time.
    policy
        Its policy, with ports="deterministic".
    inside
        The inside address.

    Returns
    -------
    Share or None
        None: no entry covers it.
    """
    _check(policy)
    host = parse_ipv4(inside, "inside")
    covering = [entry for entry in entries if isinstance(entry, SnatEntry) and host in _network(entry)]
    if not covering:
        return None
    entry = max(covering, key=lambda entry: _network(entry).prefixlen)
    starts = block_starts(policy)
    number, block = divmod(int(host) - int(_network(entry).network_address), len(starts))
    return Share(host, entry.eips[number], starts[block], starts[block] + policy.block_size - 1)


def who(
    entries: Iterable[AnyEntry],
    policy: Policy,
    address: Address,
    port: int,
    protocol: str | None = None,
    *,
    eip_bind_mode: str = "NAT",
) -> ipaddress.IPv4Address | None:
    """The inside host behind an outside endpoint.

    Parameters
    ----------
    entries
        The gateway's entries of that time.
    policy
        Its policy, with ports="deterministic".
    address
        An EIP or, in bind mode "NAT" (contract, field 8), the private one that it has on the wire.
    port
        The outside port, 0 to 65,535.
    protocol
        "tcp", "udp" or "icmp"; it matters where a DNAT entry has the port of one protocol alone. None: any.
    eip_bind_mode
        "NAT" or "MULTI_BINDED".

    Returns
    -------
    ipaddress.IPv4Address or None
        None: no host has it.

    Raises
    ------
    ConfigurationError
        The port is of a DNAT entry with several targets, or the policy is another one.
    """
    _check(policy)
    outside = parse_ipv4(address, "address")
    check_integer("port", port, 0, 65535)
    entries = list(entries)
    if eip_bind_mode != "NAT":  # a private address is then no name of its EIP, and may be a DNAT entry's own
        entries = [_without_private(entry) for entry in entries]
    forwarded = _forwarded(entries, outside, port, protocol)
    if forwarded is not None:
        return forwarded
    starts = block_starts(policy)
    block = next((b for b, first in enumerate(starts) if first <= port < first + policy.block_size), None)
    if block is None:
        return None
    for entry in entries:
        if isinstance(entry, SnatEntry):
            for number, eip in enumerate(entry.eips):
                if outside in (eip.address, eip.private_ip):
                    host = number * len(starts) + block
                    network = _network(entry)
                    return network[host] if host < network.num_addresses else None
    return None


def _check(policy: Policy) -> None:
    if policy.ports != "deterministic":
        raise ConfigurationError(
            f"Policy.ports must be 'deterministic', got {show(policy.ports)}; other ports are in the session log"
        )


def _network(entry: SnatEntry) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(entry.source)


def _without_private(entry: AnyEntry) -> AnyEntry:
    if not isinstance(entry, SnatEntry):
        return entry
    return SnatEntry(entry.source, [Eip(eip.address) for eip in entry.eips], entry.name)


def _forwarded(
    entries: list[AnyEntry], outside: ipaddress.IPv4Address, port: int, protocol: str | None
) -> ipaddress.IPv4Address | None:
    """Return the inside host to which a DNAT entry forwards an outside endpoint."""
    for entry in entries:
        if not isinstance(entry, DnatEntry) or outside not in _names_of(entry, entries):
            continue
        first, last, _ = entry.ports
        if not first <= port <= last or (entry.protocol != "any" and protocol not in (None, entry.protocol)):
            continue
        if protocol == "icmp" and not entry.is_one_to_one:
            continue  # "any" are TCP and UDP: ids are a 1:1 entry's alone
        if len(entry.internal_ip) > 1:
            targets = ", ".join(str(target) for target, _ in entry.internal_ip)
            raise ConfigurationError(
                f"port must be one with a single host behind it, got {port}: a DNAT entry spreads it over {targets}"
            )
        target: ipaddress.IPv4Address = entry.internal_ip[0][0]
        return target
    return None


def _names_of(entry: DnatEntry, entries: list[AnyEntry]) -> tuple[object, ...]:
    """A DNAT entry's outside address; as the EIP or private address that goes with it in the first pool that has it."""
    for other in entries:
        if isinstance(other, SnatEntry):
            for eip in other.eips:
                if entry.external_ip in (eip.address, eip.private_ip):
                    return eip.address, eip.private_ip
    return () if isinstance(entry.external_ip, OutsideInterface) else (entry.external_ip,)
