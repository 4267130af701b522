"""Random frames through `Gateway.translate`, half of them damaged: no crash, and counters that add up exactly.

They go through gateways of every filtering and number of workers, with entries of every kind; every protocol number is met.
`python tests/runs/fuzz_frames.py --frames 1000000 [--seed 1]`; under the sanitizers by `make sanitize`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/

import argparse
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from natcore import DnatEntry, Gateway, Link, NoNatEntry, Policy, Side, SnatEntry, Verdict
from natcore.config import FILTERINGS
from natcore.testing.bulk import (
    ETHERNET,
    ICMP,
    IPV4,
    TCP,
    UDP,
    Frames,
    Lengths,
    answers,
    endpoints,
    fold,
    get,
    headers_right,
    layer4_sums,
    packets,
    put,
    word_sums,
)

BATCH = 4_096
STRIDE = 160
POOL_FIRST, POOL_SIZE = 0xCB007100, 4  # 203.0.113.0/30
OWN = (0xCB007108, 0xCB007109)  # outside addresses of DNAT entries alone: all ports of UDP, and 1:1
UNTRANSLATED = 0xC6336409  # a remote that a no-NAT entry leads to
REMOTES = np.array(
    [0xC6336407, 0xC6336408, UNTRANSLATED, POOL_FIRST, POOL_FIRST + 1, *OWN, 0x0A000001, 0x7F000001, 0xE0000001],
    np.uint64,
)
WORKERS = (1, 2, 3)
GATEWAYS = 2 * len(FILTERINGS) * len(WORKERS)
VLANS = (0x8100, 0x88A8)

Rows = NDArray[np.intp]
Damage = Callable[[np.random.Generator, Frames, Lengths, Rows], None]


def make_gateway(seed: int) -> Gateway:
    """Small in every respect, so that every limit is met. GATEWAYS seeds in a row are all kinds there are."""
    filtering = FILTERINGS[seed // 2 % len(FILTERINGS)]
    gateway = Gateway(
        instance="ngw-fuzz",
        vpc_id="vpc-fuzz",
        max_sessions=6_000 if seed % 2 else 400,  # the ports run out first, or the slots
        inside=Link(address="10.0.0.1", mtu=140),
        outside=Link(address="203.0.113.254", mtu=120),
        policy=Policy(
            port_ranges=((1024, 1087),), hold_down=5.0, icmp_rate=1000, mss=1200, unsolicited_syn="icmp",
            filtering=filtering, reverse_path_filter=seed % 5 > 0,
        ),
        workers=WORKERS[seed // (2 * len(FILTERINGS)) % len(WORKERS)],
        seed=seed,
    )  # fmt: skip
    gateway.add(SnatEntry("10.0.0.0/16", pool=f"203.0.113.0-203.0.113.{POOL_SIZE - 1}"))
    gateway.add(DnatEntry("203.0.113.1", 1, [("10.0.0.5", 1), ("10.0.0.6", 2)], 8080, protocol="tcp"))
    gateway.add(DnatEntry("203.0.113.8", "any", "10.0.0.7", "any", protocol="udp"))
    gateway.add(DnatEntry("203.0.113.9", "any", "10.0.0.8", "any", protocol="any"))
    gateway.add(NoNatEntry("10.0.0.0/16", "198.51.100.9/32"))
    return gateway


def sound(random: np.random.Generator, count: int, back: Frames) -> tuple[Frames, Lengths, NDArray[np.uint8]]:
    """Frames without a fault, and the side of each. back: what remotes answer to known flows."""
    frames, lengths = np.zeros((count, STRIDE), np.uint8), np.zeros(count, np.uint32)
    sides = np.zeros(count, np.uint8)
    kinds = random.integers(0, 9, count)
    for kind in range(9):
        rows = np.flatnonzero(kinds == kind)
        some = len(rows)
        if kind == 7 and len(back):  # answers
            frames[rows] = back[random.integers(0, len(back), some)]
            lengths[rows] = get(frames[rows], ETHERNET + 2, 2) + ETHERNET
            sides[rows] = Side.OUTSIDE
            continue
        protocol = (TCP, UDP, ICMP, TCP, UDP, UDP, UDP, UDP, UDP)[kind]
        source, source_port = 0x0A000002 + random.integers(0, 512, some), random.integers(1, 9, some)
        remote, remote_port = random.choice(REMOTES, some), random.integers(1, 4, some).astype(np.uint64)
        if kind in (5, 6) and len(back):  # to open outside endpoints: from each other, and from strangers
            chosen = back[random.integers(0, len(back), some)]
            remote, remote_port = endpoints(chosen, "destination")
            if kind == 6:
                source, sides[rows] = 0x08000000 + random.integers(0, 1 << 20, some), Side.OUTSIDE
        flags = random.choice([0x02, 0x02, 0x10, 0x11, 0x04, 0x12, 0x18], some)
        frames[rows], lengths[rows] = packets(
            protocol, source, source_port, remote, remote_port,
            length=int(random.integers(60, STRIDE + 1)), stride=STRIDE, tcp_flags=flags,
        )  # fmt: skip
        if kind == 8:  # of any protocol number, from either side
            frames[rows, ETHERNET + 9] = random.integers(0, 256, some)
            sides[rows] = random.integers(0, 2, some)
            mend_headers(frames, rows)
    whole = np.flatnonzero(random.random(count) < 0.5)
    frames[whole, ETHERNET + 6] |= 0x40  # DF
    mend_headers(frames, whole)
    return frames, lengths, sides


def mend_headers(frames: Frames, rows: Rows) -> None:
    """A right IPv4 checksum over the first 20 bytes, so that the damage is met behind that check."""
    part = frames[rows]
    put(part, ETHERNET + 10, 2, 0)
    put(part, ETHERNET + 10, 2, fold(word_sums(part, ETHERNET, ETHERNET + IPV4)) ^ np.uint64(0xFFFF))
    frames[rows] = part


def field_damage(at: int, size: int, highest: int) -> Damage:
    """Random numbers in one header field, the IPv4 checksum mended."""

    def damage(random: np.random.Generator, frames: Frames, lengths: Lengths, rows: Rows) -> None:
        part = frames[rows]
        put(part, at, size, random.integers(0, highest + 1, len(rows)).astype(np.uint64))
        frames[rows] = part
        mend_headers(frames, rows)

    return damage


def noise(random: np.random.Generator, frames: Frames, lengths: Lengths, rows: Rows) -> None:
    frames[rows] = random.integers(0, 256, (len(rows), STRIDE), np.uint8)
    lengths[rows] = random.integers(0, STRIDE + 1, len(rows))


def flips(random: np.random.Generator, frames: Frames, lengths: Lengths, rows: Rows) -> None:
    for _ in range(3):
        frames[rows, random.integers(0, 64, len(rows))] ^= random.integers(1, 256, len(rows), np.uint8)


def cut(random: np.random.Generator, frames: Frames, lengths: Lengths, rows: Rows) -> None:
    lengths[rows] = (lengths[rows] * random.random(len(rows))).astype(np.uint32)


def padded(random: np.random.Generator, frames: Frames, lengths: Lengths, rows: Rows) -> None:
    lengths[rows] = STRIDE


def tagged(random: np.random.Generator, frames: Frames, lengths: Lengths, rows: Rows) -> None:
    """One to three VLAN tags in front; what no longer fits is cut."""
    for _ in range(int(random.integers(1, 4))):
        frames[rows, 16:] = frames[rows, 12:-4]
        part = frames[rows]
        put(part, 12, 2, random.choice(np.array(VLANS, np.uint64), len(rows)))
        frames[rows] = part
        lengths[rows] = np.minimum(lengths[rows] + 4, STRIDE)


DAMAGE: tuple[Damage, ...] = (
    noise,
    flips,
    cut,
    padded,
    tagged,
    field_damage(12, 2, 0xFFFF),  # ethertype
    field_damage(ETHERNET, 1, 0xFF),  # version and IHL
    field_damage(ETHERNET + 2, 2, 200),  # total length
    field_damage(ETHERNET + 6, 2, 0xFFFF),  # fragment flags and offset
    field_damage(ETHERNET + 8, 1, 2),  # TTL
    field_damage(ETHERNET + 9, 1, 0xFF),  # protocol
    field_damage(ETHERNET + 12, 4, 0xFFFFFFFF),  # source
    field_damage(ETHERNET + 16, 4, 0xFFFFFFFF),  # destination
    field_damage(ETHERNET + IPV4, 2, 0xFFFF),  # ICMP type and code, source port
    field_damage(ETHERNET + IPV4 + 2, 2, 0xFFFF),  # destination port
    field_damage(ETHERNET + IPV4 + 4, 2, 200),  # UDP length
    field_damage(ETHERNET + IPV4 + 12, 2, 0xFFFF),  # TCP data offset and flags
)


class Fuzz:
    """One gateway, its frames, and what their verdicts should have counted."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.gateway = make_gateway(seed)
        self.verdicts: Counter[int] = Counter()
        self.protocols: Counter[int] = Counter()  # of the sound packets that were forwarded
        self.causes: Counter[Verdict] = Counter()  # of what was generated
        self.now = 0.0
        self.back: Frames = np.zeros((0, STRIDE), np.uint8)

    def batch(self, count: int) -> None:
        """count frames, the second half damaged; one batch in eight goes singly, each in memory of its exact size."""
        frames, lengths, sides = sound(self.random, count, self.back)
        damaged = np.arange(count // 2, count)
        kinds = self.random.integers(0, len(DAMAGE), len(damaged))
        for kind, damage in enumerate(DAMAGE):
            damage(self.random, frames, lengths, damaged[kinds == kind])
        sides ^= self.random.random(count) < 0.05
        self.step_clock()
        before = frames.copy()
        if self.random.random() < 0.125:
            verdicts = self.one_by_one(frames, lengths, sides)
        else:
            verdicts = self.gateway.translate(frames, lengths, sides, now=self.now)
        self.verdicts.update(verdicts.tolist())
        self.check_sound(before[: count // 2], frames[: count // 2], lengths, verdicts[: count // 2])
        check_translated(frames, lengths, verdicts)
        self.take_generated()

    def step_clock(self) -> None:
        self.now += float(self.random.choice([0.0, 0.01, 1.0, 40.0, 400.0, -3.0], p=[0.2, 0.3, 0.2, 0.15, 0.1, 0.05]))
        self.now = max(self.now, 0.0)

    def one_by_one(self, frames: Frames, lengths: Lengths, sides: NDArray[np.uint8]) -> NDArray[np.uint8]:
        verdicts = np.zeros(len(frames), np.uint8)
        for i, length in enumerate(lengths.tolist()):
            exact = frames[i : i + 1, : max(length, 1)].copy()
            used = lengths[i : i + 1].copy()
            verdicts[i] = self.gateway.translate(exact, used, Side(int(sides[i])), now=self.now)[0]
            frames[i, : exact.shape[1]], lengths[i] = exact[0], used[0]
        return verdicts

    def check_sound(self, before: Frames, after: Frames, lengths: Lengths, verdicts: NDArray[np.uint8]) -> None:
        """Sound packets that went on have right checksums and one hop less; outbound ones will be answered.

        Layer 4 is looked at where the packet was not cut into fragments.
        """
        forwarded = verdicts <= Verdict.HAIRPIN
        assert headers_right(after[forwarded]).all()
        self.protocols.update(before[forwarded, ETHERNET + 9].tolist())
        assert (after[forwarded, ETHERNET + 8] == before[forwarded, ETHERNET + 8] - 1).all()
        whole = (after[:, ETHERNET + 6] & 0x20) == 0
        forwarded &= whole
        for protocol in (ICMP, TCP, UDP):
            of_protocol = np.flatnonzero(forwarded & (before[:, ETHERNET + 9] == protocol))
            totals = get(after[of_protocol], ETHERNET + 2, 2)
            for total in np.unique(totals).tolist():
                rows = of_protocol[totals == total]
                right = layer4_sums(before[rows], protocol, total) == 0xFFFF  # not where the protocol was drawn at last
                assert (layer4_sums(after[rows[right]], protocol, total) == 0xFFFF).all()
        sent = after[(verdicts == Verdict.OUTBOUND) & whole & (after[:, ETHERNET + 9] != ICMP)]
        if len(sent):
            self.back = answers(sent, lengths[: len(sent)])[0]

    def take_generated(self) -> None:
        """The gateway's own messages are right; only an echo reply may carry on a damage of the request's data."""
        for item in self.gateway.take_generated():
            self.causes[item.cause] += 1
            frame = np.frombuffer(item.frame, np.uint8)
            start = ip_offset(frame[None, :])[0]
            ip = frame[None, start - ETHERNET :]
            assert headers_right(ip).all()
            if item.cause.is_drop:
                assert layer4_sums(ip, ICMP, ip.shape[1] - ETHERNET)[0] == 0xFFFF

    def check_counters(self) -> None:
        """Every verdict was counted once, under its own name, and nothing else was."""
        counters = self.gateway.counters()  # it completes what is due, answers too
        self.take_generated()
        total = sum(self.verdicts.values())
        assert counters["received"] == total
        assert (
            counters["received"] == counters["forwarded"] + counters["local"] + counters["dropped"] + counters["held"]
        )
        released = self.causes[Verdict.HELD]
        assert counters["forwarded"] == sum(self.verdicts[v] for v in (0, 1, 2, 3)) + released
        more = counters["local"] - self.verdicts[Verdict.LOCAL]  # of the fragments that waited
        for verdict in Verdict:
            if verdict.is_drop:
                assert counters[verdict.counter] >= self.verdicts[verdict], verdict.counter
                more += counters[verdict.counter] - self.verdicts[verdict]
        assert more == self.verdicts[Verdict.HELD] - released - counters["held"]
        assert counters["generated"] == self.causes.total() - released
        assert counters["created"] - counters["ended"] == counters["sessions"]


def ip_offset(frames: Frames) -> NDArray[np.intp]:
    """Bytes before each IPv4 header: 14, and 4 for each of up to two VLAN tags."""
    offsets = np.full(len(frames), ETHERNET)
    for _ in range(2):
        rows = np.arange(len(frames))
        ethertypes = frames[rows, offsets - 2].astype(int) << 8 | frames[rows, offsets - 1]
        offsets[np.isin(ethertypes, VLANS)] += 4
    return offsets


def check_translated(frames: Frames, lengths: Lengths, verdicts: NDArray[np.uint8]) -> None:
    """Damaged or not: nothing goes out with an inside source, nothing comes in to anything but an inside host."""
    for verdict, field in ((Verdict.OUTBOUND, 12), (Verdict.INBOUND, 16), (Verdict.HAIRPIN, 12), (Verdict.HAIRPIN, 16)):
        chosen = frames[verdicts == verdict]
        if not len(chosen):
            continue
        at = ip_offset(chosen)[:, None] + np.arange(field, field + 4)
        address = get(np.take_along_axis(chosen, at, 1), 0, 4)
        if field == 12:
            assert ((address >= POOL_FIRST) & (address < POOL_FIRST + POOL_SIZE) | np.isin(address, OWN)).all()
        else:
            assert (address >> np.uint64(16) == 0x0A00).all()
    assert (lengths <= STRIDE).all()


def run(frames: int, seed: int) -> tuple[Counter[int], Counter[int]]:
    """Translate that many random frames by one gateway and check everything; how often each verdict was given, and the
    protocols of what was forwarded."""
    fuzz = Fuzz(seed)
    for start in range(0, frames, BATCH):
        fuzz.batch(min(BATCH, frames - start))
    fuzz.check_counters()
    fuzz.gateway.close()
    return fuzz.verdicts, fuzz.protocols


def run_all(frames: int, seed: int) -> tuple[Counter[int], Counter[int]]:
    """Likewise by a gateway of each kind, that many frames in all."""
    verdicts: Counter[int] = Counter()
    protocols: Counter[int] = Counter()
    for kind in range(GATEWAYS):
        given, forwarded = run(frames // GATEWAYS + 1, seed * GATEWAYS + kind)
        verdicts += given
        protocols += forwarded
    return verdicts, protocols


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    verdicts, _ = run_all(options.frames, options.seed)
    for verdict, count in sorted(verdicts.items()):
        print(f"{Verdict(verdict).name:24} {count:>9,}")
    print(f"{sum(verdicts.values()):,} frames, seed {options.seed}: counters add up exactly")
    return 0


if __name__ == "__main__":
    sys.exit(main())
