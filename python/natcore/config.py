"""What a gateway is made of: frozen values, checked once when they are made."""

from __future__ import annotations

import ipaddress
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from natcore import choices
from natcore.errors import ConfigurationError, RfcWarning
from natcore.internal.redaction import show
from natcore.internal.validation import (
    MAX_SECONDS,
    MAX_TIME,
    Address,
    as_integer,
    check_choice,
    check_integer,
    check_number,
    exact_ns,
    is_text,
    parse_ipv4,
    parse_network,
    to_ns,
)

if not TYPE_CHECKING:
    from natcore.internal.values import dataclass
else:
    from dataclasses import dataclass

__all__ = [  # what is checked by is to be had from here too
    "FILTERINGS", "IP_OPTIONS", "MAPPINGS", "MAX_TIME", "POOLINGS", "PORT_POLICIES", "Address", "AnyEntry", "Behaviour",
    "DeliveryPolicy", "DnatEntry", "Eip", "Link", "NoNatEntry", "OutsideInterface", "Policy", "SnatEntry", "Timeouts",
    "check_choice", "check_integer", "check_number", "exact_ns", "expand_pool", "parse_ipv4", "parse_network", "to_ns",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One of the gateway's own links.

    Parameters
    ----------
    address
        The gateway's IPv4 address on the link: the source of its ICMP errors, and an address that it answers echo requests
        for. None: it has none, or, on a plane, the interface's own.
    mtu
        Bytes of an IPv4 packet on the link, 68 to 65,535. A plane takes the interface's own where this is the default.
    """

    address: ipaddress.IPv4Address | None = None
    mtu: int = 1500

    if TYPE_CHECKING:

        def __init__(self, *, address: Address | None = None, mtu: int = 1500) -> None: ...

    def __post_init__(self) -> None:
        if self.address is not None:
            object.__setattr__(self, "address", parse_ipv4(self.address, "Link.address"))
        _set(self, mtu=check_integer("Link.mtu", self.mtu, 68, 65535))  # RFC 791: every link carries 68


def _set(made: object, **values: object) -> None:
    """Set the checked fields of a frozen value while it is made."""
    for name, value in values.items():
        object.__setattr__(made, name, value)


# Idle seconds that the RFCs demand at least; less is accepted with a warning.
_MINIMA = {
    "udp": (120.0, "RFC 4787 REQ-5"),
    "tcp_established": (7440.0, "RFC 5382 REQ-5"),
    "tcp_transitory": (240.0, "RFC 5382 REQ-5"),
    "icmp": (60.0, "RFC 5508 REQ-2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Idle seconds after which a session ends, 0.001 to 1,000,000 each.

    The resolution is 1 ms. A session is dead at exactly its time-out. A time-out below what an RFC asks for is accepted with a
    warning.

    Parameters
    ----------
    udp
        UDP sessions. RFC 4787 REQ-5 asks for 120 or more.
    tcp_established
        Established TCP sessions. RFC 5382 REQ-5 asks for 7,440 or more.
    tcp_transitory
        TCP sessions that are opening or closing. RFC 5382 REQ-5 asks for 240 or more.
    icmp
        ICMP queries. RFC 5508 REQ-2 asks for 60 or more.
    unreplied
        A session that was opened from outside, until the inside answers.
    other
        Protocols without ports.
    fragment
        How long a datagram in fragments may take; a fragment that waits for its first one is dropped then.
    """

    udp: float = 300.0
    tcp_established: float = 7440.0
    tcp_transitory: float = 240.0
    icmp: float = 60.0
    unreplied: float = 30.0
    other: float = 300.0
    fragment: float = 5.0

    def __post_init__(self) -> None:
        for name in Timeouts.__annotations__:
            value = check_number(f"Timeouts.{name}", getattr(self, name), 0.001, MAX_SECONDS, unit="seconds")
            _set(self, **{name: value})
            minimum, source = _MINIMA.get(name, (0.0, ""))
            if value < minimum:
                warnings.warn(
                    f"Timeouts.{name}={value:g}: {source} asks for {minimum:g} s or more",
                    RfcWarning,
                    stacklevel=3,
                )


MAPPINGS: tuple[choices.Mapping, ...] = get_args(choices.Mapping)  # by their numbers in the core, as the next
FILTERINGS: tuple[choices.Filtering, ...] = get_args(choices.Filtering)
PORT_POLICIES: tuple[choices.Ports, ...] = get_args(choices.Ports)  # PortPolicy of natcore/tables/ports.pxd
BLOCKED = ("block", "deterministic")  # those that divide the port ranges into blocks
IP_OPTIONS: tuple[choices.IpOptions, ...] = get_args(choices.IpOptions)  # IpOptions of natcore/workers/worker.pxd
POOLINGS: tuple[choices.Pooling, ...] = get_args(choices.Pooling)
_SWITCHES = ("parity", "hairpin", "inbound_refresh", "tcp_pickup", "icmp_unreachable", "reverse_path_filter",
             "link_local", "class_e")  # fmt: skip
_UNLIMITED = frozenset(
    {
        "mss",
        "sessions_per_subscriber",
        "ports_per_subscriber",
        "new_sessions_per_second",
        "gateway_new_sessions_per_second",
    }
)  # None: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """A protocol's own mapping and filtering (RFC 7857 sections 5 and 6).

    Parameters
    ----------
    mapping
        As `Policy.mapping`; None: what the policy says.
    filtering
        As `Policy.filtering`; None: what the policy says.
    """

    mapping: choices.Mapping | None = None
    filtering: choices.Filtering | None = None

    def __post_init__(self) -> None:
        if self.mapping is not None:
            _set(self, mapping=check_choice("Behaviour.mapping", self.mapping, MAPPINGS))
        if self.filtering is not None:
            _set(self, filtering=check_choice("Behaviour.filtering", self.filtering, FILTERINGS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a gateway maps, filters and allocates ports.

    Parameters
    ----------
    mapping
        Which packets of an inside endpoint have one outside endpoint (RFC 4787 section 4): "endpoint-independent", all;
        "address-and-port-dependent", those to one remote endpoint.
    filtering
        Which remotes may open a session over a mapping (RFC 4787 section 5): "endpoint-independent", any;
        "address-dependent", addresses that the inside has sent to; "address-and-port-dependent", endpoints that it has sent to.
    tcp, udp, icmp
        A protocol's own mapping and filtering; None: as above.
    ports
        Which outside port a new mapping gets. "random": any free one (RFC 6056). "preserve": the inside port where it is free.
        "block": one of the host's blocks (RFC 6888 REQ-13 to 15). "deterministic": one of the block that its address has by
        computation, so that no log is needed (RFC 7422). "overload": one port for many remotes (RFC 7857 section 3); it needs
        address-and-port-dependent mapping and filtering.
    port_ranges
        (first, last) pairs, both included, 1 to 65,535, none overlapping. For ICMP they hold the identifiers. Blocks begin with
        the first port of each range; what is left at its end is not used.
    host_ports
        Of an outside address that the gateway's host has on its outside interface too: (first, last) pairs of TCP and UDP
        ports that stay the host's, beside those that its sockets use and all that are not in port_ranges. None: the kernel's
        ephemeral ports (net.ipv4.ip_local_port_range).
    parity
        An even port for an even inside port, an odd one for an odd one, where one is free (RFC 4787 REQ-4).
    block_size
        Ports of a block, 1 to 65,535; with ports="block" and "deterministic".
    blocks
        Blocks that a host may have over all addresses, 1 to 256; with ports="block".
    hold_down
        Seconds that a released port is kept from other hosts, 0 to 1,000,000 (RFC 6888 REQ-8).
    pooling
        Outside addresses of a host (RFC 4787 REQ-2, RFC 7857 section 4). "paired": one; when it is full, new sessions are
        refused. "paired-soft": another one then. "arbitrary": any.
    hairpin
        Inside hosts reach each other by their outside endpoints (RFC 4787 REQ-9).
    inbound_refresh
        Packets from outside keep a session alive as well (RFC 4787 REQ-6).
    mss
        Bytes, 28 to 65,495: the MSS option of a SYN is lowered to this, both ways. None: it stays as it is.
    tcp_pickup
        A TCP segment from inside, or to a DNAT entry's port, opens a session where there is none.
    icmp_unreachable
        The sender of a refused packet gets an ICMP error (RFC 5508 REQ-8, RFC 6888 REQ-11).
    icmp_rate
        ICMP errors a second that each side may cause, 0 to 1,000,000, and as many 'fragmentation needed' besides. One address
        gets a quarter, 8 at least.
    icmp_queries
        Which ICMP queries have sessions (RFC 5508 REQ-1): "all" (echo, timestamp, information, address mask) or "echo".
    ip_id
        IPv4 identification of what leaves translated: "unique", the next one for an outside address, remote and protocol,
        where a packet is a fragment or DF is not set (RFC 6864 section 5.3.1); "keep", the sender's.
    reverse_path_filter
        A packet from outside with an inside source opens no session: DROP_SPOOFED. An inside source is an address of an SNAT or
        no-NAT prefix longer than 0, or a DNAT target. False is for networks behind one another with the same prefix
        (RFC 4787 REQ-7). A plane always filters.
    unsolicited_syn
        The answer to a SYN from outside that nothing lets in: "silent", none; "icmp", port unreachable after 6 s if the inside
        has not opened the same connection (RFC 5382 REQ-4).
    ip_options
        IPv4 options of a forwarded packet: "rfc7126", what RFC 7126 lets pass by default; "pass", all that are well-formed;
        "drop", none. A source route is always dropped.
    link_local
        169.254/16 is forwarded; RFC 3927 section 7 says that it must not be.
    class_e
        Inside hosts and remotes may have addresses of 240/4.
    sessions_per_subscriber
        Sessions that an inside host may have opened, 1 or more (RFC 6888 REQ-4); None: no limit. Sessions that were opened from
        outside never count, here and below.
    ports_per_subscriber
        Ports that an inside host may have, 1 or more; None: no limit.
    new_sessions_per_second
        Sessions that an inside host may open in a second of the clock, 1 or more; None: no limit.
    gateway_new_sessions_per_second
        Sessions that all inside hosts together may open in a second, 1 or more; None: no limit.
    warn_at
        The share in use, 0.01 to 1, that is an event: of the ports of an outside address and protocol, of the blocks of an
        outside address, of max_sessions. None: never; below 100 ports or sessions there is none either.
    rearm_at
        The event may come again after the share was below this, 0 to warn_at.
    """

    mapping: choices.Mapping = "endpoint-independent"
    filtering: choices.Filtering = "endpoint-independent"
    tcp: Behaviour | None = None
    udp: Behaviour | None = None
    icmp: Behaviour | None = None
    ports: choices.Ports = "random"
    port_ranges: tuple[tuple[int, int], ...] = ((1024, 65535),)
    host_ports: tuple[tuple[int, int], ...] | None = None
    parity: bool = False
    block_size: int = 512
    blocks: int = 8
    hold_down: float = 120.0
    pooling: choices.Pooling = "paired"
    hairpin: bool = True
    inbound_refresh: bool = True
    mss: int | None = None
    tcp_pickup: bool = True
    icmp_unreachable: bool = True
    icmp_rate: int = 100
    icmp_queries: choices.IcmpQueries = "all"
    ip_id: choices.IpId = "unique"
    reverse_path_filter: bool = True
    unsolicited_syn: choices.UnsolicitedSyn = "silent"
    ip_options: choices.IpOptions = "rfc7126"
    link_local: bool = False
    class_e: bool = False
    sessions_per_subscriber: int | None = None
    ports_per_subscriber: int | None = None
    new_sessions_per_second: int | None = None
    gateway_new_sessions_per_second: int | None = None
    warn_at: float | None = 0.8
    rearm_at: float = 0.7

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            mapping: choices.Mapping = "endpoint-independent",
            filtering: choices.Filtering = "endpoint-independent",
            tcp: Behaviour | None = None,
            udp: Behaviour | None = None,
            icmp: Behaviour | None = None,
            ports: choices.Ports = "random",
            port_ranges: Sequence[tuple[int, int]] = ((1024, 65535),),
            host_ports: Sequence[tuple[int, int]] | None = None,
            parity: bool = False,
            block_size: int = 512,
            blocks: int = 8,
            hold_down: float = 120.0,
            pooling: choices.Pooling = "paired",
            hairpin: bool = True,
            inbound_refresh: bool = True,
            mss: int | None = None,
            tcp_pickup: bool = True,
            icmp_unreachable: bool = True,
            icmp_rate: int = 100,
            icmp_queries: choices.IcmpQueries = "all",
            ip_id: choices.IpId = "unique",
            reverse_path_filter: bool = True,
            unsolicited_syn: choices.UnsolicitedSyn = "silent",
            ip_options: choices.IpOptions = "rfc7126",
            link_local: bool = False,
            class_e: bool = False,
            sessions_per_subscriber: int | None = None,
            ports_per_subscriber: int | None = None,
            new_sessions_per_second: int | None = None,
            gateway_new_sessions_per_second: int | None = None,
            warn_at: float | None = 0.8,
            rearm_at: float = 0.7,
        ) -> None: ...

    def __post_init__(self) -> None:
        words = {
            "mapping": MAPPINGS, "filtering": FILTERINGS, "ports": PORT_POLICIES, "pooling": POOLINGS,
            "unsolicited_syn": get_args(choices.UnsolicitedSyn), "ip_options": IP_OPTIONS,
            "icmp_queries": get_args(choices.IcmpQueries), "ip_id": get_args(choices.IpId),
            **dict.fromkeys(_SWITCHES, (True, False)),
        }  # fmt: skip
        integers = {
            "block_size": (1, 65535), "blocks": (1, 256), "icmp_rate": (0, 1_000_000),
            "mss": (28, 65495),  # RFC 791: 68 and 65,535 bytes, less 40 of headers
            **dict.fromkeys(sorted(_UNLIMITED - {"mss"}), (1, (1 << 32) - 2)),
        }  # fmt: skip
        for name in ("tcp", "udp", "icmp"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Behaviour):
                raise ConfigurationError(f"Policy.{name} must be a Behaviour or None, got {show(value)}")
        for name, allowed in words.items():
            _set(self, **{name: check_choice(f"Policy.{name}", getattr(self, name), allowed)})
        for name, (low, high) in integers.items():
            if name not in _UNLIMITED or getattr(self, name) is not None:
                _set(self, **{name: check_integer(f"Policy.{name}", getattr(self, name), low, high)})
        _set(self, port_ranges=_check_ranges("port_ranges", self.port_ranges))
        if self.host_ports is not None:
            _set(self, host_ports=_check_ranges("host_ports", self.host_ports, least=0))
        _set(self, hold_down=check_number("Policy.hold_down", self.hold_down, 0, MAX_SECONDS, unit="seconds"))
        if self.warn_at is not None:
            _set(self, warn_at=check_number("Policy.warn_at", self.warn_at, 0.01, 1))
            _set(self, rearm_at=check_number("Policy.rearm_at", self.rearm_at, 0, self.warn_at))
        self._check_port_policy()

    def _check_port_policy(self) -> None:
        """Check the settings that the port policies need."""
        if self.ports in BLOCKED and not self.drawn_ranges:
            raise ConfigurationError(
                f"Policy.block_size must be at most the size of a range of port_ranges ({show(self.port_ranges)}), "
                f"got {show(self.block_size)}"
            )
        if self.ports == "deterministic" and self.pooling != "paired":
            raise ConfigurationError(
                f"Policy.pooling must be 'paired' with ports='deterministic', which computes the address, "
                f"got {show(self.pooling)}"
            )
        strict = Behaviour(mapping="address-and-port-dependent", filtering="address-and-port-dependent")
        loose = [name for name in ("tcp", "udp", "icmp") if self.behaviour(name) != strict]
        if self.ports == "overload" and loose:
            raise ConfigurationError(
                f"Policy.ports='overload': mapping and filtering must be 'address-and-port-dependent', "
                f"they are not for {', '.join(loose)}"
            )

    @property
    def drawn_ranges(self) -> tuple[tuple[int, int], ...]:
        """The port ranges as far as ports are allocated from them: whole blocks, where there are blocks."""
        size = self.block_size if self.ports in BLOCKED else 1
        whole = ((first, (last + 1 - first) // size * size) for first, last in self.port_ranges)
        return tuple((first, first + count - 1) for first, count in whole if count)

    def behaviour(self, protocol: choices.Protocol) -> Behaviour:
        """Mapping and filtering of a protocol: "tcp", "udp" or "icmp"; neither field is None."""
        own: Behaviour = getattr(self, protocol, None) or Behaviour()
        return Behaviour(mapping=own.mapping or self.mapping, filtering=own.filtering or self.filtering)


def _check_ranges(name: str, value: object, least: int = 1) -> tuple[tuple[int, int], ...]:
    try:
        given = [(as_integer(first), as_integer(last)) for first, last in value]  # type: ignore[attr-defined]
        ranges = sorted((first, last) for first, last in given if first is not None and last is not None)
        whole = least <= len(ranges) == len(given)
    except Exception:  # a foreign iterator may raise anything
        whole, ranges = False, []
    end = 0
    for first, last in ranges:
        whole = whole and end < first <= last <= 65535
        end = last
    if not whole:
        raise ConfigurationError(
            f"Policy.{name} must be {'one ' if least else ''}(first, last) pair{' or more' if least else 's'}, "
            f"1 <= first <= last <= 65535, none overlapping, got {show(value)}"
        )
    return tuple(ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """How a session log meets its destination (docs/session-log-contract.md R2, R3).

    Parameters
    ----------
    unavailable
        Seconds that an unavailable destination is left alone, 0 to 86,400 (contract D1).
    backoff_min, backoff_max
        Seconds between tries, 0 to 86,400: the first pause, and the longest.
    linger
        Seconds that a batch may wait to fill, 0 to 86,400.
    batch
        Rows of a batch at most, 1 to 1,000,000.
    spool_bytes
        Bytes on disk at most, 65,536 to 2^50; beyond them the oldest rows are lost, counted.
    """

    unavailable: float = 300.0
    backoff_min: float = 0.5
    backoff_max: float = 60.0
    linger: float = 1.0
    batch: int = 4096
    spool_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("unavailable", "backoff_min", "backoff_max", "linger"):
            value = check_number(f"DeliveryPolicy.{name}", getattr(self, name), 0, 86400, unit="seconds")
            _set(self, **{name: value})
        if self.backoff_max < self.backoff_min:
            raise ConfigurationError(
                f"DeliveryPolicy.backoff_max must be at least backoff_min ({self.backoff_min:g}), got {show(self.backoff_max)}"
            )
        _set(self, batch=check_integer("DeliveryPolicy.batch", self.batch, 1, 1_000_000))
        _set(self, spool_bytes=check_integer("DeliveryPolicy.spool_bytes", self.spool_bytes, 1 << 16, 1 << 50))


@dataclass(frozen=True, slots=True)
class Eip:
    """An elastic IP address.

    Parameters
    ----------
    address
        The external IPv4 address.
    private_ip
        What outside frames carry in bind mode NAT; the edge beyond swaps the two. None: the address itself.
    """

    address: ipaddress.IPv4Address
    private_ip: ipaddress.IPv4Address | None = None

    if TYPE_CHECKING:

        def __init__(self, address: Address, private_ip: Address | None = None) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", parse_ipv4(self.address, "Eip.address"))
        if self.private_ip is not None:
            object.__setattr__(self, "private_ip", parse_ipv4(self.private_ip, "Eip.private_ip"))


@dataclass(frozen=True, slots=True)
class OutsideInterface:
    """In a pool, or as a DNAT entry's: the addresses of the plane's outside interface, whatever they are at the time.

    The gateway and its host share them: the host keeps the ports of `Policy.host_ports` and those that its sockets use. When
    the interface loses an address, the sessions over it end, with their rows. A gateway without a plane has no such interface:
    `Gateway.translate` and its like raise ConfigurationError until a plane has begun.

    Parameters
    ----------
    addresses
        Of these alone, where the interface has them: an address, "first-last", a prefix, or a sequence of these. None: all.
    """

    addresses: tuple[ipaddress.IPv4Address, ...] | None = None

    if TYPE_CHECKING:

        def __init__(
            self, addresses: Address | ipaddress.IPv4Network | Sequence[Address | ipaddress.IPv4Network] | None = None
        ) -> None: ...

    def __post_init__(self) -> None:
        if self.addresses is not None:
            found = expand_pool(self.addresses, "OutsideInterface.addresses")
            if not all(isinstance(each, Eip) and each.private_ip is None for each in found):
                raise ConfigurationError(
                    f"OutsideInterface.addresses must be addresses, ranges or prefixes, got {show(self.addresses)}"
                )
            _set(self, addresses=tuple(each.address for each in found if isinstance(each, Eip)))

    def __str__(self) -> str:
        only = "" if self.addresses is None else f" ({', '.join(str(address) for address in self.addresses)})"
        return f"the outside interface's addresses{only}"


INTERFACE = "interface"  # in a pool: OutsideInterface()
Prefix = str | ipaddress.IPv4Network
PoolItem = Address | Eip | OutsideInterface | ipaddress.IPv4Network
Pool = PoolItem | Sequence[PoolItem]


@dataclass(frozen=True, slots=True)
class SnatEntry:
    """Inside sources of a prefix leave through a pool; the longest prefix wins.

    Parameters
    ----------
    source
        An IPv4 prefix, such as "10.0.0.0/16".
    pool
        Outside addresses: an address, "first-last", a prefix, an `Eip`, `OutsideInterface()` or "interface", or a sequence of
        these; 65,536 at most, none twice. One that the outside interface has is shared with the host (`Policy.host_ports`).
    name
        A label for people, 1,024 bytes of UTF-8 at most.
    """

    source: ipaddress.IPv4Network
    pool: tuple[Eip | OutsideInterface, ...] = ()
    name: str | None = None

    if TYPE_CHECKING:

        def __init__(self, source: Prefix, pool: Pool, name: str | None = None) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", parse_network(self.source, "SnatEntry.source"))
        object.__setattr__(self, "pool", expand_pool(self.pool))
        _check_name("SnatEntry", self.name)

    @property
    def eips(self) -> tuple[Eip, ...]:
        """The addresses of the pool that are known without a plane: all but those of an `OutsideInterface`."""
        return tuple(each for each in self.pool if isinstance(each, Eip))

    @property
    def follows_interface(self) -> bool:
        """Whether its pool has an `OutsideInterface`."""
        return len(self.eips) < len(self.pool)


Port = int | tuple[int, int] | Literal["any"]


@dataclass(frozen=True, slots=True)
class DnatEntry:
    """Traffic to an outside endpoint reaches an inside host.

    Both ports and the protocol "any" make a 1:1 entry: the whole address, both ways.

    Parameters
    ----------
    external_ip
        An outside address of the gateway; it may name the EIP. `OutsideInterface()` or "interface": the first address of the
        plane's outside interface, whatever it is at the time; not for a 1:1 entry.
    external_port
        A port, (first, last), or "any".
    internal_ip
        An inside address, or [(address, weight), …] with weights of 1 to 65,535: remotes are spread over these by their
        address, always to the same one.
    internal_port
        As many ports as external_port.
    protocol
        "tcp", "udp" or "any".
    name
        A label for people, 1,024 bytes of UTF-8 at most.
    """

    external_ip: ipaddress.IPv4Address | OutsideInterface
    external_port: Port
    internal_ip: tuple[tuple[ipaddress.IPv4Address, int], ...]
    internal_port: Port
    protocol: choices.DnatProtocol = "tcp"
    name: str | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            external_ip: Address | OutsideInterface,
            external_port: Port,
            internal_ip: Address | Sequence[tuple[Address, int]],
            internal_port: Port,
            protocol: choices.DnatProtocol = "tcp",
            name: str | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if isinstance(self.external_ip, str) and self.external_ip == INTERFACE:
            _set(self, external_ip=OutsideInterface())
        if not isinstance(self.external_ip, OutsideInterface):
            _set(self, external_ip=parse_ipv4(self.external_ip, "DnatEntry.external_ip"))
        object.__setattr__(self, "internal_ip", _check_targets(self.internal_ip))
        _set(self, protocol=check_choice("DnatEntry.protocol", self.protocol, get_args(choices.DnatProtocol)))
        outside = _check_ports("DnatEntry.external_port", self.external_port)
        inside = _check_ports("DnatEntry.internal_port", self.internal_port)
        _set(self, external_port=_plain_port(self.external_port), internal_port=_plain_port(self.internal_port))
        if (self.external_port == "any") != (self.internal_port == "any") or outside[1] - outside[0] != inside[
            1
        ] - inside[0]:
            raise ConfigurationError(
                f"DnatEntry.internal_port must be as many ports as external_port ({show(self.external_port)}), "
                f"or 'any' for both, got {show(self.internal_port)}"
            )
        if self.is_one_to_one and self.follows_interface:
            raise ConfigurationError(
                "DnatEntry.external_ip of a 1:1 entry must be an address, got the outside interface's: the host would be cut "
                "off from it"
            )
        if self.is_one_to_one and len(self.internal_ip) > 1:
            raise ConfigurationError(
                f"DnatEntry.internal_ip of a 1:1 entry must be one address, got {show(self.internal_ip)}"
            )
        _check_name("DnatEntry", self.name)

    @property
    def is_one_to_one(self) -> bool:
        """Whether it is a 1:1 entry: both ports and the protocol are "any"."""
        return self.external_port == "any" and self.protocol == "any"

    @property
    def follows_interface(self) -> bool:
        """Whether its outside address is the outside interface's."""
        return isinstance(self.external_ip, OutsideInterface)

    @property
    def ports(self) -> tuple[int, int, int]:
        """First outside port, last outside port, first inside port."""
        first, last = _check_ports("DnatEntry.external_port", self.external_port)
        return first, last, _check_ports("DnatEntry.internal_port", self.internal_port)[0]


@dataclass(frozen=True, slots=True)
class NoNatEntry:
    """Packets between two prefixes pass untranslated; they have sessions, but no rows (RFC 6888 REQ-6).

    Parameters
    ----------
    source
        An IPv4 prefix inside.
    destination
        An IPv4 prefix; where a route leads there by an inside link, packets are routed there without a session.
    name
        A label for people, 1,024 bytes of UTF-8 at most.
    """

    source: ipaddress.IPv4Network
    destination: ipaddress.IPv4Network
    name: str | None = None

    if TYPE_CHECKING:

        def __init__(self, source: Prefix, destination: Prefix, name: str | None = None) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", parse_network(self.source, "NoNatEntry.source"))
        object.__setattr__(self, "destination", parse_network(self.destination, "NoNatEntry.destination"))
        _check_name("NoNatEntry", self.name)


AnyEntry = SnatEntry | DnatEntry | NoNatEntry


def _check_name(kind: str, name: object) -> None:
    if name is not None and not (is_text(name) and len(name.encode()) <= 1024):
        raise ConfigurationError(
            f"{kind}.name must be a str of at most 1,024 bytes of UTF-8, or None, got {show(name)}"
        )


def _check_ports(name: str, value: object) -> tuple[int, int]:
    """Return the first and last port of a port, a pair of ports, or "any"."""
    if isinstance(value, str) and value == "any":
        return 0, 65535
    pair: tuple[Any, ...] = tuple(value) if isinstance(value, tuple | list) and len(value) == 2 else (value, value)
    first, last = as_integer(pair[0]), as_integer(pair[1])
    if first is None or last is None or not 1 <= first <= last <= 65535:
        raise ConfigurationError(
            f"{name} must be a port between 1 and 65535, a pair (first, last), or 'any', got {show(value)}"
        )
    return first, last


def _plain_port(value: Any) -> Port:
    """Return a checked port as Python ints."""
    if isinstance(value, str):
        return "any"
    if isinstance(value, tuple | list):
        return as_integer(value[0]) or 0, as_integer(value[1]) or 0
    return as_integer(value) or 0


def _check_targets(value: object) -> tuple[tuple[ipaddress.IPv4Address, int], ...]:
    rows: list[Any] = list(value) if isinstance(value, list | tuple) else [(value, 1)]
    expected = "must be an address, or [(address, weight), …] with whole weights between 1 and 65,535"
    targets = []
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != 2:
            raise ConfigurationError(f"DnatEntry.internal_ip {expected}, got {show(value)}")
        weight = check_integer("DnatEntry.internal_ip: weight", row[1], 1, 65535)
        targets.append((parse_ipv4(row[0], "DnatEntry.internal_ip"), weight))
    if not targets or len({address for address, _ in targets}) != len(targets):
        raise ConfigurationError(f"DnatEntry.internal_ip {expected}, none twice, got {show(value)}")
    if (total := sum(weight for _, weight in targets)) > 0xFFFFFFFF:
        raise ConfigurationError(
            f"DnatEntry.internal_ip must have weights of at most 4,294,967,295 together, got {total:,} "
            f"of {len(targets):,} targets"
        )
    return tuple(targets)


MAX_POOL = 65_536


def expand_pool(value: object, name: str = "SnatEntry.pool") -> tuple[Eip | OutsideInterface, ...]:
    """Return every address of the pool as an Eip, in the given order, none twice; an OutsideInterface stays."""
    items = (
        value
        if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)
        else (value,)
    )
    pool: list[Eip | OutsideInterface] = []
    for item in items:
        pool.extend(_expand(item, name))
        if len(pool) > MAX_POOL:
            raise ConfigurationError(f"{name} must have at most {MAX_POOL:,} addresses, got {show(value)}")
    if not pool:
        raise ConfigurationError(f"{name} must have at least one address, got {show(value)}")
    seen: set[object] = set()
    for eip in pool:
        key = eip.address if isinstance(eip, Eip) else INTERFACE
        if key in seen:
            raise ConfigurationError(f"{name} must have each address once, got {show(value)}: {key} twice")
        seen.add(key)
    return tuple(pool)


def _expand(item: object, name: str) -> Iterable[Eip | OutsideInterface]:
    if isinstance(item, Eip | OutsideInterface):
        return (item,)
    if isinstance(item, str) and item == INTERFACE:
        return (OutsideInterface(),)
    if isinstance(item, str) and "-" in item:
        first, last = (parse_ipv4(part.strip(), name) for part in item.split("-", 1))
        if first > last or int(last) - int(first) >= MAX_POOL:
            raise ConfigurationError(f"{name} must be first-last with at most {MAX_POOL:,} addresses, got {show(item)}")
        return (Eip(a) for a in range(int(first), int(last) + 1))
    if isinstance(item, ipaddress.IPv4Network) or (isinstance(item, str) and "/" in item):
        network = parse_network(item, name)
        if network.num_addresses > MAX_POOL:
            raise ConfigurationError(f"{name} must have at most {MAX_POOL:,} addresses, got {show(item)}")
        return (Eip(a) for a in network)
    return (Eip(parse_ipv4(item, name)),)  # type: ignore[arg-type]
