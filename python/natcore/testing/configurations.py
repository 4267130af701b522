"""Random gateways: entries of every kind, policies, limits, and changes of the entries while packets flow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import Any

from natcore import (
    Add,
    Behaviour,
    ConfigurationError,
    DnatEntry,
    Eip,
    Gateway,
    Link,
    Modify,
    NoNatEntry,
    Policy,
    Remove,
    Replace,
    SnatEntry,
    Timeouts,
)  # fmt: skip
from natcore.choices import DnatProtocol, LogRows, Pooling
from natcore.config import FILTERINGS, IP_OPTIONS, MAPPINGS, POOLINGS, PORT_POLICIES, AnyEntry
from natcore.testing import craft
from natcore.testing.oracle.model import Nat
from natcore.testing.oracle.packets import TCP, UDP

HOSTS = [craft.address(a) for a in ("10.0.0.5", "10.0.0.6", "10.0.1.7", "10.0.255.254", "172.16.20.21")]
FOREIGN = craft.address("192.0.2.55")  # inside, in no entry
REMOTES = [craft.address(a) for a in ("198.51.100.7", "198.51.100.8", "8.8.8.8", "106.11.22.203")]
INSIDE_ADDRESS, OUTSIDE_ADDRESS = craft.address("10.0.0.1"), craft.address("203.0.113.254")
PORTS = [0, 7, 53, 80, 443, 1024, 40000, 65535]
RANGES = [((1024, 65535),), ((1024, 1026),), ((5000, 5000), (7000, 7003)), ((1, 3), (65535, 65535)), ((2000, 2099),)]
STARTS = [0.0, 0.0, 65536 * 9 - 3.5, 2**32 / 1000 - 2.25, 1_700_000_000.5]  # 16-bit seconds and 32-bit ms wrap
WORKERS = (1, 1, 2, 3)
SINGLE, RANGE = Eip("203.0.113.1", private_ip="172.31.0.1"), "203.0.113.8-203.0.113.10"
SOURCES = ["10.0.0.0/16", "10.0.1.0/24", "172.16.20.21/32", "10.0.0.5/32", "0.0.0.0/0", "10.0.255.0/24"]
OWN = ["203.0.113.40", "203.0.113.41"]  # outside addresses of DNAT entries alone
NAMED = [craft.address(a) for a in ("203.0.113.1", "172.31.0.1", "203.0.113.8", "203.0.113.9", *OWN)]
PLACES = ["203.0.113.1", "172.31.0.1", "203.0.113.8", "203.0.113.9", *OWN]


@dataclass(frozen=True)
class Configuration:
    """A gateway's keywords and first entries."""

    entries: list[AnyEntry]
    options: dict[str, Any]
    start: float = 0.0  # seconds: where the clock begins
    hosts: dict[int, set[tuple[int, int]]] = field(
        default_factory=dict
    )  # addresses that the host has too, and ports of it
    redact_destination: bool = False  # in the session log
    log_rows: LogRows = "all"  # of the session log

    def gateway(self, **more: Any) -> Gateway:
        """A gateway in memory. more: other keywords of `natcore.Gateway`, such as seed and epoch."""
        gateway = Gateway(**{**self.options, **more})
        for entry in self.entries:
            gateway.add(entry)
        return gateway

    def model(self) -> Nat:
        """The oracle."""
        return Nat(self.entries, **{name: value for name, value in self.options.items() if name != "workers"})


def configuration(random: Random, workers: Sequence[int] = WORKERS) -> Configuration:
    kind = random.choice(["internet", "internet", "vpc"])
    links = [
        Link(address=address if random.random() < 0.6 else None, mtu=random.choice([1500, 1500, 576, 100]))
        for address in (INSIDE_ADDRESS, OUTSIDE_ADDRESS)
    ]
    options: dict[str, Any] = {
        "kind": kind,
        "eip_bind_mode": random.choice(["NAT", "MULTI_BINDED"]) if kind == "internet" else "NAT",
        "workers": random.choice(workers) if len(workers) > 1 else workers[0],
        "max_sessions": random.choice([2, 5, 12, 64, 64, 100]),
        "max_mappings": random.choice([None, None, 3]),
        "max_subscribers": random.choice([None, None, 2]),
        "window": random.choice([1.5, 10.0, 600.0]),
        "inside": links[0],
        "outside": links[1],
        "decrement_ttl": random.random() < 0.8,
        "framing": "ethernet" if random.random() < 0.8 else "ip",
        "timeouts": timeouts(random),
        "policy": policy(random),
    }
    entries = first_entries(random, kind, options["policy"])
    shared = hosts(random, options["policy"]) if random.random() < 0.4 else {}
    return Configuration(entries, options, random.choice(STARTS), shared)


def followable(of: Configuration, *, spacious: bool = False, redact_destination: bool = False) -> Configuration:
    """The same as far as it can be followed from outside, by what leaves: one worker, one target an entry, no shared address.

    spacious: for a thousand sessions, without quotas and limits.
    """
    entries = [
        replace(each, internal_ip=each.internal_ip[:1]) if isinstance(each, DnatEntry) else each for each in of.entries
    ]
    options = {**of.options, "workers": 1}
    if spacious:
        options.update(max_sessions=1000, max_mappings=None, max_subscribers=None)
        options["policy"] = replace(options["policy"], **dict.fromkeys(QUOTAS))
    return replace(of, entries=entries, options=options, hosts={}, redact_destination=redact_destination)


def few_ports(of: Configuration, pooling: Pooling) -> Configuration:
    """The same with a few ports on each of three addresses, and without quotas: a host fills an address, and meets pooling."""
    policy = replace(of.options["policy"], **dict.fromkeys(QUOTAS))
    if policy.ports not in ("random", "preserve"):
        policy = replace(policy, ports="random")
    options = {**of.options, "max_sessions": 64, "max_mappings": None, "max_subscribers": None}
    options["policy"] = replace(policy, port_ranges=((1024, 1026),), pooling=pooling)
    return replace(of, entries=[SnatEntry("10.0.0.0/16", RANGE)], options=options)


def by_default(of: Configuration) -> Configuration:
    """The same with the policy that a gateway has unless it is told another one, and one SNAT entry."""
    return replace(of, entries=[SnatEntry("10.0.0.0/16", RANGE)], options={**of.options, "policy": Policy()})


def hosts(random: Random, of: Policy) -> dict[int, set[tuple[int, int]]]:
    """Addresses that the gateway's host has too: protocols and ports that it keeps of those that are drawn, few or most."""
    result: dict[int, set[tuple[int, int]]] = {}
    for address in random.sample(NAMED, random.choice([0, 1, 1, 2])):
        first, last = random.choice(of.drawn_ranges)
        span = min(last - first + 1, random.choice([1, 2, 40, 3000]))
        start = random.randrange(first, last - span + 2)
        result[address] = {
            (protocol, port)
            for protocol in random.choice([(TCP,), (UDP,), (TCP, UDP)])
            for port in range(start, start + span)
        }
    return result


def ports(random: Random) -> dict[str, Any]:
    """A port policy, and what it asks of the others."""
    kind = random.choice(["random", "random", "preserve", "preserve", "block", "block", "deterministic", "overload"])
    result: dict[str, Any] = {"ports": kind, "port_ranges": random.choice(RANGES)}
    result["pooling"] = random.choice(["paired", "paired", "paired-soft", "arbitrary"])
    if kind == "block":
        result["port_ranges"], result["block_size"] = random.choice(
            [(((1024, 65535),), 512), (((2000, 2099),), 3), (((2000, 2007), (3000, 3003)), 4), (((1, 5),), 1)]
        )
        result["blocks"] = random.choice([1, 2, 8])
    if kind == "deterministic":
        result["pooling"] = "paired"
        result["port_ranges"], result["block_size"] = random.choice(
            [(((1024, 65535),), 128), (((1024, 2047),), 4), (((2000, 2255),), 1)]
        )
    if kind == "overload":
        result |= {"mapping": MAPPINGS[1], "filtering": FILTERINGS[2], "tcp": None, "udp": None, "icmp": None}
    return result


def policy(random: Random) -> Policy:
    overrides: dict[str, Any] = {
        name: Behaviour(
            mapping=random.choice([None, *MAPPINGS]), filtering=random.choice([None, *FILTERINGS])
        )
        for name in ("tcp", "udp", "icmp")
        if random.random() < 0.2
    }  # fmt: skip
    chosen = {"mapping": random.choice([*MAPPINGS, MAPPINGS[0]]), "filtering": random.choice(FILTERINGS)}
    return Policy(
        **{**chosen, **overrides, **ports(random)},
        parity=random.random() < 0.3,
        hold_down=random.choice([0, 0.25, 2.0, 120.0]),
        hairpin=random.random() < 0.8,
        inbound_refresh=random.random() < 0.7,
        tcp_pickup=random.random() < 0.8,
        icmp_unreachable=random.random() < 0.8,
        ip_id=random.choice(["unique", "unique", "keep"]),
        icmp_queries=random.choice(["all", "all", "echo"]),
        reverse_path_filter=random.random() < 0.7,
        icmp_rate=random.choice([0, 2, 10, 100]),
        mss=random.choice([None, None, 536, 1360]),
        unsolicited_syn=random.choice(["silent", "icmp"]),
        ip_options=random.choice(IP_OPTIONS),
        link_local=random.random() < 0.3,
        class_e=random.random() < 0.3,
        sessions_per_subscriber=random.choice([None, None, 1, 4]),
        ports_per_subscriber=random.choice([None, None, 1, 3]),
        new_sessions_per_second=random.choice([None, None, 1, 3]),
        gateway_new_sessions_per_second=random.choice([None, None, None, 2, 6]),
        **thresholds(random),
    )


def thresholds(random: Random) -> dict[str, Any]:
    warn_at = random.choice([None, 0.01, 0.02, 0.05, 0.1, 0.8])
    return {"warn_at": warn_at, "rearm_at": random.choice([0, 0.5, 1]) * (warn_at or 0.7)}


def timeouts(random: Random) -> Timeouts:
    if random.random() < 0.3:
        return Timeouts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # below the RFCs' minima, so that more happens in a run
        return Timeouts(
            udp=random.choice([2.5, 120.0, 100_000.0]),
            tcp_established=random.choice([20.0, 7440.0, 900_000.0]),
            tcp_transitory=random.choice([4.0, 240.001]),
            icmp=random.choice([0.75, 60.0]),
            unreplied=random.choice([1.0, 30.0]),
            other=random.choice([3.0, 300.0]),
            fragment=random.choice([0.5, 5.0, 30.0]),
        )


FIXED = (
    "mapping",
    "filtering",
    "tcp",
    "udp",
    "icmp",
    "ports",
    "port_ranges",
    "block_size",
)  # some changes need a restart


def modification(random: Random, before: Policy) -> Modify:
    """Settings for a gateway that runs; not all of them are possible."""
    names = [item.name for item in fields(Policy) if item.name not in FIXED or random.random() < 0.02]
    given: dict[str, Any] = {}
    while not given:
        if random.random() < 0.7:
            given["policy"] = changed(random, before, random.sample(names, random.choice([1, 2, 5, 10])))
        if random.random() < 0.5:
            given["timeouts"] = timeouts(random)
        if random.random() < 0.2:
            given["eip_bind_mode"] = random.choice(["NAT", "NAT", "MULTI_BINDED"])
    return Modify(**given)


def changed(random: Random, before: Policy, names: Sequence[str]) -> Policy:
    """A policy with other values of some fields, as far as they go together."""
    other = policy(random)
    values = {name: getattr(other, name) for name in names}
    if random.random() < 0.2 and before.ports in ("random", "preserve"):
        values["ports"] = random.choice(["random", "preserve"])
    try:
        return replace(before, **{**values, "rearm_at": 0.01} if "warn_at" in values else values)
    except ConfigurationError:
        return before


SWITCHES = ("parity", "hairpin", "inbound_refresh", "tcp_pickup", "icmp_unreachable", "reverse_path_filter", "link_local",
            "class_e")  # fmt: skip
QUOTAS = (
    "sessions_per_subscriber",
    "ports_per_subscriber",
    "new_sessions_per_second",
    "gateway_new_sessions_per_second",
)
LIMITS = (*QUOTAS, "hold_down", "icmp_rate", "mss", "warn_at")
CHOICES: dict[str, Sequence[object]] = {
    **{f"{protocol} mapping": MAPPINGS for protocol in ("tcp", "udp", "icmp")},
    **{f"{protocol} filtering": FILTERINGS for protocol in ("tcp", "udp", "icmp")},
    "ports": PORT_POLICIES,
    "pooling": POOLINGS,
    "unsolicited_syn": ("silent", "icmp"),
    "ip_options": IP_OPTIONS,
    "ip_id": ("unique", "keep"),
    "icmp_queries": ("all", "echo"),
    **dict.fromkeys(SWITCHES, (True, False)),
    **dict.fromkeys(LIMITS, ("limited", "none")),
    "workers": sorted(set(WORKERS)),
    "kind": ("internet", "vpc"),
    "eip_bind_mode": ("NAT", "MULTI_BINDED"),
    "framing": ("ethernet", "ip"),
    "decrement_ttl": (True, False),
}
TRAITS = [f"{name}={value}" for name, values in CHOICES.items() for value in values]


def traits(of: Configuration) -> list[str]:
    """Those of TRAITS that a gateway has."""
    policy: Policy = of.options["policy"]

    def value(name: str) -> object:
        if name in of.options:
            return of.options[name]
        if name in LIMITS:
            return "limited" if getattr(policy, name) else "none"
        word, _, what = name.partition(" ")
        protocol: Any = word
        return getattr(policy.behaviour(protocol), what) if what else getattr(policy, name)

    return [f"{name}={value(name)}" for name in CHOICES]


# Entries


def first_entries(random: Random, kind: str, of: Policy) -> list[AnyEntry]:
    """Some that may stand together: the longer prefix wins, and they may share addresses where nothing is computed."""
    if of.ports == "deterministic":
        entries: list[AnyEntry] = [SnatEntry("10.0.0.0/24", "203.0.113.1"), SnatEntry("10.0.1.0/24", RANGE)]
    else:
        entries = [SnatEntry("10.0.0.0/16", pool(random, kind))]
        entries += [SnatEntry(source, pool(random, kind)) for source in SOURCES[1:3] if random.random() < 0.4]
    if random.random() < 0.5:
        entries.append(forward(random, "203.0.113.1", random.choice([80, 1025, 7001, 2050])))
    if random.random() < 0.35:
        entries.append(forward(random, OWN[0], random.choice([443, (1020, 1030), "any"])))
    if random.random() < 0.35:
        entries.append(DnatEntry(OWN[1], "any", random.choice(HOSTS), "any", protocol="any"))
    if random.random() < 0.35:
        entries.append(plain(random))
    return entries


def pool(random: Random, kind: str) -> Any:
    single = SINGLE if kind == "internet" else "203.0.113.1"
    return random.choice([single, RANGE, [single, "203.0.113.9"], "203.0.113.12/30"])


def forward(random: Random, place: str, outside: Any) -> DnatEntry:
    """A DNAT entry for a port, a range, or all ports of a protocol; to one target or several."""
    inside = [(host, random.choice([1, 1, 5])) for host in random.sample(HOSTS, random.choice([1, 1, 2, 3]))]
    if outside == "any":
        ports: Any = "any"
    elif isinstance(outside, tuple):
        first = random.choice([outside[0], 1, 20000])
        ports = first, first + outside[1] - outside[0]
    else:
        ports = random.choice([outside, 80, 7])
    choices: list[DnatProtocol] = ["tcp", "udp", *(("any",) if outside != "any" else ())]
    protocol = random.choice(choices)
    return DnatEntry(place, outside, inside, ports, protocol=protocol)


def plain(random: Random) -> NoNatEntry:
    source = random.choice(["10.0.0.0/16", "10.0.0.5/32", "172.16.20.21/32"])
    return NoNatEntry(source, random.choice(["198.51.100.0/24", "8.8.8.8/32", "106.0.0.0/8"]))


def entry(random: Random, kind: str) -> AnyEntry:
    """Any entry, also one that cannot stand beside the others."""
    draw = random.random()
    if draw < 0.4:
        return snat(random, kind)
    return forwarding(random) if draw < 0.85 else plain(random)


def snat(random: Random, kind: str = "internet") -> SnatEntry:
    return SnatEntry(random.choice(SOURCES), pool(random, kind))


def forwarding(random: Random) -> DnatEntry:
    """A DNAT entry for some ports, or for all that comes to an address."""
    if random.random() < 0.2:
        return DnatEntry(random.choice([*OWN, *PLACES]), "any", random.choice(HOSTS), "any", protocol="any")
    outside = random.choice([80, 443, 1025, 7001, (1020, 1030), (2000, 2049), 65535, "any"])
    return forward(random, random.choice(PLACES), outside)


def changes(random: Random, kind: str, handles: list[Any]) -> list[Any]:
    """One change or a few of the entries with these handles; not all of them are possible."""
    chosen = random.sample(handles, min(len(handles), random.choice([0, 0, 1, 1, 1, 2])))
    result: list[Any] = []
    for handle in chosen:
        draw = random.random()
        if draw < 0.6:
            result.append(Remove(handle, drain=random.random() < 0.5))
        else:
            by = (
                handle.entry
                if draw < 0.65
                else alike(random, kind, handle.entry)
                if draw < 0.85
                else entry(random, kind)
            )
            result.append(Replace(handle, by))
    result += [
        Add(entry(random, kind)) for _ in range(random.choice([1, 1, 2]) if not result else random.choice([0, 0, 1]))
    ]
    random.shuffle(result)
    return result


def alike(random: Random, kind: str, one: AnyEntry) -> AnyEntry:
    """The same with another pool or other targets."""
    if isinstance(one, SnatEntry):
        return SnatEntry(one.source, pool(random, kind))
    if isinstance(one, DnatEntry) and not one.is_one_to_one:
        return forward(random, str(one.external_ip), one.external_port)
    return entry(random, kind)
