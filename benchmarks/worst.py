"""The worst packet: what one that cannot be admitted takes, by kind, when everything it may run out of is used up.

Each packet is a batch of its own, so nothing is prefetched for it; the figure is its processor time. A kind is made and
timed `--repeats` times, each time the same to the last bit, and the least time of each packet counts: what the machine itself
did in between (an interrupt, another tenant) meets another packet each time. `--sessions 8388608` is the size that
docs/performance.md quotes; `--limit` makes a longer one an error (exit status 1).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiled import load_module
from natcore import DnatEntry, Gateway, NoNatEntry, Policy, Side, SnatEntry, Timeouts, Verdict
from natcore.entries.changes import Add
from natcore.testing.bulk import TCP, UDP, Frames, Lengths, fold, packets, put, word_sums

PACKETS = 2_000  # of a kind
BATCH = 65_536
REMOTE, STRANGER = 0xC6336401, 0x05000000
HOST = 0x0AF00001
TIMEOUTS = Timeouts(udp=300.0, unreplied=300.0)


@dataclass
class Kind:
    name: str
    gateway: Gateway
    frames: Any
    side: Side
    now: float  # s, of the first packet
    step: float  # s, between two
    refused: set[Verdict]


def made(sessions: int, pool: str = "203.0.0.0-203.0.1.255", policy: Policy | None = None) -> Gateway:
    gateway = Gateway(
        instance="worst",
        vpc_id="worst",
        max_sessions=sessions,
        timeouts=TIMEOUTS,
        policy=policy or Policy(),
        seed=1,
        records=4096,
    )
    gateway.add(SnatEntry("10.0.0.0/8", pool=pool))
    return gateway


def touched(gateway: Gateway) -> Gateway:
    """Its memory has come in: the machine's own work of bringing in a page is none of a packet's."""
    fill(gateway, 60_000, 0.0)
    gateway.end_all()
    gateway.take_records()
    return gateway


def fill(gateway: Gateway, count: int, now: float, first: int = 0, remote: int = REMOTE, accept: int = 0) -> None:
    """Sessions of as many inside endpoints, sixteen a host."""
    for at in range(first, first + count, BATCH):
        numbers = np.arange(at, min(at + BATCH, first + count), dtype=np.uint64)
        frames, lengths = packets(UDP, 0x0A000000 + numbers // 16, 20_000 + numbers % 16, remote, 443)
        verdicts = gateway.translate(frames, lengths, Side.INSIDE, now=now)
        if (verdicts != Verdict.OUTBOUND).sum() > accept:
            raise AssertionError(f"{(verdicts != Verdict.OUTBOUND).sum()} of {len(verdicts)} were refused")


def new_flows(count: int = PACKETS, remote: int = REMOTE) -> Any:
    numbers = np.arange(count, dtype=np.uint64)
    return packets(UDP, HOST + numbers, 9, remote, 443)[0]


def one_host(gateway: Gateway, count: int, now: float, mappings: int = 1) -> tuple[int, int]:
    """Sessions of one inside host; the outside port and address of the first mapping."""
    numbers = np.arange(count, dtype=np.uint64)
    frames, lengths = packets(UDP, HOST, 9 + numbers % mappings, 0xC6000000 + numbers, 443)
    out = frames.copy()
    if set(gateway.translate(out, lengths, Side.INSIDE, now=now)) != {Verdict.OUTBOUND}:
        raise AssertionError("the host's own sessions")
    return int(out[0, 34]) << 8 | int(out[0, 35]), int.from_bytes(bytes(out[0, 26:30]), "big")


def stranger_at_a_cap(sessions: int) -> Kind:
    gateway = made(sessions)
    fill(gateway, sessions - 4096, 0.0)
    port, address = one_host(gateway, 1, 200.0)
    numbers = np.arange(1024, dtype=np.uint64)
    gateway.translate(*packets(UDP, STRANGER + numbers, 9, address, port), Side.OUTSIDE, now=200.0)
    frames, _ = packets(UDP, STRANGER + 5000 + np.arange(PACKETS, dtype=np.uint64), 9, address, port)
    return Kind(
        "a stranger at a mapping's cap, all other sessions dead",
        gateway,
        frames,
        Side.OUTSIDE,
        310.0,
        0.001,
        {Verdict.DROP_OUTSIDE_LIMIT},
    )


def quota(sessions: int) -> Kind:
    gateway = made(sessions, policy=Policy(sessions_per_subscriber=10_000))
    fill(gateway, sessions - 20_000, 0.0)
    one_host(gateway, 10_000, 200.0, 500)
    frames = packets(UDP, HOST, 20_000 + np.arange(PACKETS, dtype=np.uint64), REMOTE, 443)[0]
    return Kind(
        "a subscriber at its quota of 10,000 sessions, all others' dead",
        gateway,
        frames,
        Side.INSIDE,
        310.0,
        0.001,
        {Verdict.DROP_SUBSCRIBER_LIMIT},
    )


def full_table(sessions: int) -> Kind:
    gateway = made(sessions)
    fill(gateway, sessions, 0.0)
    return Kind(
        "a full table of live sessions", gateway, new_flows(), Side.INSIDE, 1.0, 0.001, {Verdict.DROP_SESSION_LIMIT}
    )


def dead_table(sessions: int) -> Kind:
    gateway = made(sessions)
    fill(gateway, sessions, 0.0)
    return Kind("a full table of dead sessions", gateway, new_flows(), Side.INSIDE, 400.0, 0.001, {Verdict.OUTBOUND})


def dead_mapping(sessions: int) -> Kind:
    gateway = made(sessions)
    port, address = one_host(gateway, min(sessions, 1 << 20), 0.0)
    frames, _ = packets(UDP, STRANGER + np.arange(PACKETS, dtype=np.uint64), 9, address, port)
    return Kind(
        "a stranger at a mapping of very many dead sessions",
        gateway,
        frames,
        Side.OUTSIDE,
        400.0,
        0.001,
        {Verdict.DROP_NO_MAPPING},
    )


def full_pool(sessions: int) -> Kind:
    gateway = made(sessions, "203.0.0.0-203.0.31.255", Policy(port_ranges=((3000, 3007),), pooling="arbitrary"))
    fill(gateway, 8192 * 8, 0.0)
    return Kind(
        "a full pool of 8,192 addresses", gateway, new_flows(), Side.INSIDE, 1.0, 0.001, {Verdict.DROP_PORTS_EXHAUSTED}
    )


def resting_pool(sessions: int) -> Kind:
    gateway = made(sessions, "203.0.0.0-203.0.0.3", Policy(pooling="arbitrary"))
    fill(gateway, 4 * 64_512, 0.0)
    gateway.advance(310.0)
    return Kind(
        "a pool in which every port has just rested",
        gateway,
        new_flows(),
        Side.INSIDE,
        420.5,
        0.001,
        {Verdict.OUTBOUND},
    )


def overload(sessions: int) -> Kind:
    policy = Policy(ports="overload", mapping="address-and-port-dependent", filtering="address-and-port-dependent")
    gateway = made(sessions, "203.0.0.0", policy)
    fill(gateway, 64_512 - 64, 0.0)
    fill(gateway, 64, 0.0, first=64_512 - 64, remote=REMOTE + 1)
    fill(gateway, 16, 0.0, first=64_512, accept=16)
    return Kind(
        "overload with 64 ports left towards a remote",
        gateway,
        new_flows(),
        Side.INSIDE,
        1.0,
        0.001,
        {Verdict.OUTBOUND, Verdict.DROP_PORTS_EXHAUSTED},
    )


def blocks(sessions: int) -> Kind:
    policy = Policy(ports="block", block_size=512, blocks=8, port_ranges=((1024, 2047),), pooling="arbitrary")
    gateway = made(sessions, "203.0.0.0-203.0.31.255", policy)
    numbers = np.arange(8192 * 2, dtype=np.uint64)
    gateway.translate(*packets(UDP, 0x0A000000 + numbers, 9, REMOTE, 443), Side.INSIDE, now=0.0)
    return Kind(
        "port blocks used up at 8,192 addresses",
        gateway,
        new_flows(),
        Side.INSIDE,
        1.0,
        0.001,
        {Verdict.DROP_PORTS_EXHAUSTED},
    )


def targets(sessions: int) -> Kind:
    gateway = made(sessions)
    many = [(f"10.200.{n >> 8}.{n & 255}", 1 + n % 7) for n in range(1000)]
    gateway.add(DnatEntry("203.0.113.9", 80, many, 80, protocol="udp"))
    numbers = np.arange(PACKETS, dtype=np.uint64)
    frames, _ = packets(UDP, STRANGER + numbers, 9, 0xCB007109, 80)
    touched(gateway)
    return Kind("DNAT with 1,000 targets", gateway, frames, Side.OUTSIDE, 1.0, 0.001, {Verdict.INBOUND})


def block_quota(sessions: int) -> Kind:
    policy = Policy(ports="block", block_size=512, blocks=8)
    gateway = made(sessions, "203.0.0.0", policy)
    numbers = np.arange(8 * 512, dtype=np.uint64)
    for protocol in (UDP, TCP):  # the ports of one rest, and keep the blocks
        frames, lengths = packets(protocol, HOST, 1024 + numbers, REMOTE, 443)
        gateway.translate(frames, lengths, Side.INSIDE, now=0.0 if protocol == TCP else 200.0)
    frames, _ = packets(UDP, HOST, 20_000 + np.arange(PACKETS, dtype=np.uint64), REMOTE, 443)
    return Kind(
        "a subscriber at its quota of eight blocks, with ports that rest",
        gateway,
        frames,
        Side.INSIDE,
        359.0,
        0.001,
        {Verdict.DROP_SUBSCRIBER_LIMIT},
    )


def overload_refused(sessions: int) -> Kind:
    kind = overload(sessions)
    fill(kind.gateway, 64, 0.0, first=70_000, accept=64)
    kind.name, kind.refused = "overload with every port taken towards a remote", {Verdict.DROP_PORTS_EXHAUSTED}
    return kind


def syns(sessions: int) -> Kind:
    gateway = made(sessions, policy=Policy(unsolicited_syn="icmp"))
    numbers = np.arange(1023, dtype=np.uint64)
    gateway.translate(*packets(TCP, STRANGER + numbers // 255, numbers, 0xCB000001, 9), Side.OUTSIDE, now=1.0)
    frames, _ = packets(TCP, STRANGER, np.arange(PACKETS, dtype=np.uint64), 0xCB000001, 9)
    return Kind(
        "SYNs that nothing lets in, with the places of those all but taken",
        gateway,
        frames,
        Side.OUTSIDE,
        1.0,
        0.001,
        {Verdict.DROP_NO_MAPPING},
    )


def pieces_of(hosts: Any, identification: Any, at: int, more: bool) -> tuple[Frames, Lengths]:
    """Fragments of UDP datagrams of 1,480 bytes each; at: their first unit of 8 bytes."""
    frames, lengths = packets(UDP, hosts, 9, REMOTE, 443, length=1514)
    put(frames, 18, 2, identification)
    put(frames, 20, 2, 0x2000 * more | at)
    put(frames, 24, 2, 0)
    put(frames, 24, 2, fold(word_sums(frames, 14, 34)) ^ np.uint64(0xFFFF))
    return frames, lengths


def waiting_fragments(sessions: int) -> Kind:
    gateway = made(sessions)
    numbers = np.arange(PACKETS, dtype=np.uint64)
    frames, lengths = pieces_of(0x0A000000 + numbers, numbers, 185, True)
    gateway.translate(frames, lengths, Side.INSIDE, now=1.0)
    return Kind(
        "a later fragment, with as many held as fit",
        gateway,
        pieces_of(HOST + numbers, numbers, 185, True)[0],
        Side.INSIDE,
        1.0,
        0.001,
        {Verdict.HELD, Verdict.DROP_FRAGMENT},
    )


def dead_fragments(sessions: int) -> Kind:
    kind = waiting_fragments(sessions)
    kind.name, kind.now = "a later fragment, with as many held as fit, all timed out", 10.0
    return kind


def first_fragments(sessions: int) -> Kind:
    """Each releases those that wait for it."""
    gateway = touched(made(sessions))
    numbers = np.arange(16, dtype=np.uint64)
    for hosts in (HOST + numbers, HOST + 256 + numbers):
        for at in range(1, 44):
            gateway.translate(*pieces_of(hosts, numbers, 185 * at, at < 43), Side.INSIDE, now=1.0)
        if hosts[0] == HOST:
            gateway.translate(*pieces_of(hosts, numbers, 0, True), Side.INSIDE, now=1.0)
            gateway.take_generated()
    return Kind(
        "a first fragment, for which 43 wait",
        gateway,
        pieces_of(HOST + 256 + numbers, numbers, 0, True)[0],
        Side.INSIDE,
        1.0,
        0.001,
        {Verdict.OUTBOUND},
    )


def prefixes(sessions: int) -> Kind:
    gateway = Gateway(instance="worst", vpc_id="worst", max_sessions=sessions, timeouts=TIMEOUTS, seed=1)
    nested = [SnatEntry(f"10.{n >> 8}.{n & 255}.0/{24 + n % 2}", pool="203.0.0.0") for n in range(10_000)]
    gateway.apply(gateway.plan([Add(entry) for entry in [SnatEntry("10.0.0.0/8", pool="203.0.0.0"), *nested]]))
    numbers = np.arange(PACKETS, dtype=np.uint64)
    touched(gateway)
    return Kind(
        "the longest of 10,001 prefixes",
        gateway,
        packets(UDP, 0x0A000001 + numbers * 1021, 9, REMOTE, 443)[0],
        Side.INSIDE,
        1.0,
        0.001,
        {Verdict.OUTBOUND},
    )


def no_nat(sessions: int) -> Kind:
    gateway = made(sessions)
    gateway.apply(gateway.plan([Add(NoNatEntry("10.0.0.0/8", f"172.{n >> 8}.{n & 255}.0/24")) for n in range(10_000)]))
    touched(gateway)
    return Kind(
        "10,000 no-NAT entries, none of which is meant",
        gateway,
        new_flows(),
        Side.INSIDE,
        1.0,
        0.001,
        {Verdict.OUTBOUND},
    )


KINDS: list[Callable[[int], Kind]] = [
    stranger_at_a_cap, quota, full_table, dead_table, dead_mapping, full_pool, resting_pool, overload, overload_refused,
    blocks, block_quota, targets, syns, waiting_fragments, dead_fragments, first_fragments, prefixes, no_nat,
]  # fmt: skip


def timed(kind: Kind, counted: Any) -> Any:
    """Processor time of each packet, ns."""
    count = len(kind.frames)
    verdicts, took = np.full(count, 255, np.uint8), np.zeros(count, np.uint64)
    lengths = np.full(count, kind.frames.shape[1], np.uint32)
    nows = ((kind.now + kind.step * np.arange(count)) * 1e9).astype(np.uint64)
    capsule = kind.gateway._core.worker_capsule()
    counted.time_translate(capsule, kind.frames, lengths, np.full(count, kind.side, np.uint8), nows, verdicts, took)
    if not set(verdicts) <= kind.refused:
        raise AssertionError(f"{kind.name}: {dict(zip(*np.unique(verdicts, return_counts=True), strict=True))}")
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1 << 20)
    parser.add_argument("--limit", type=float, metavar="US", help="of the 99.9th percentile")
    parser.add_argument("--only", default="")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    counted = load_module("counted")
    print(f"{options.sessions:,} sessions; processor time of a packet, us{'':>13} median     99.9 %        max")
    worst = 0.0
    for build in KINDS:
        if options.only not in build.__name__:
            continue
        name, runs = "", []
        for _ in range(options.repeats):
            kind = build(options.sessions)
            name = kind.name
            runs.append(timed(kind, counted))
            kind.gateway.close()
        took = np.minimum.reduce(runs)
        middle, most = (float(np.percentile(took, p)) / 1000 for p in (50, 99.9))
        print(f"{name:<62} {middle:>8.1f} {most:>10.1f} {took.max() / 1000:>10.1f}", flush=True)
        worst = max(worst, most)
    return 1 if options.limit is not None and worst > options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
