"""natcore/base/flow_hash.pxd: both hashes, the portable one against SipHash-1-3 in plain Python."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore.testhooks import wrappers

MASK = (1 << 64) - 1
u64 = st.integers(0, MASK)
kinds = pytest.mark.parametrize("aes", [pytest.param(True, marks=pytest.mark.skipif(
    not wrappers.aes_available(), reason="no AES instructions in this build or processor")), False])  # fmt: skip


def siphash(rounds: int, last_rounds: int, k0: int, k1: int, message: bytes) -> int:
    """SipHash-c-d (Aumasson, Bernstein: 'SipHash: a fast short-input PRF', section 2)."""
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(x: int, by: int) -> int:
        return (x << by | x >> 64 - by) & MASK

    def turn() -> None:
        v[0] = (v[0] + v[1]) & MASK
        v[2] = (v[2] + v[3]) & MASK
        v[1], v[3] = rotate(v[1], 13) ^ v[0], rotate(v[3], 16) ^ v[2]
        v[0] = rotate(v[0], 32)
        v[2] = (v[2] + v[1]) & MASK
        v[0] = (v[0] + v[3]) & MASK
        v[1], v[3] = rotate(v[1], 17) ^ v[2], rotate(v[3], 21) ^ v[0]
        v[2] = rotate(v[2], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes((len(message) & 0xFF,))
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        for _ in range(rounds):
            turn()
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(last_rounds):
        turn()
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_the_plain_siphash_gives_the_paper_s_vector() -> None:
    """Appendix A, SipHash-2-4: so that the comparison below is with SipHash indeed."""
    key = bytes(range(16))
    halves = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    assert siphash(2, 4, *halves, bytes(range(15))) == 0xA129CA6149BE45E5


@given(u64, u64, u64, u64)
def test_siphash_1_3_is_siphash_1_3(k0: int, k1: int, one: int, other: int) -> None:
    message = one.to_bytes(8, "little") + other.to_bytes(8, "little")
    assert wrappers.siphash13_of(k0, k1, one, other) == siphash(1, 3, k0, k1, message)


@given(u64, u64, u64, st.integers(0, 0xFFFFFFFF), st.integers(0, 255))
def test_a_flow_s_portable_hash_covers_its_whole_key(
    low: int, high: int, addresses: int, ports: int, protocol: int
) -> None:
    expected = wrappers.siphash13_of(low, high, addresses, protocol << 32 | ports)
    assert wrappers.flow_hash_of(low, high, False, addresses, ports, protocol) == expected


@kinds
def test_every_bit_of_the_key_and_of_the_flow_matters(aes: bool) -> None:
    key, flow = (0x0123456789ABCDEF, 0xFEDCBA9876543210), (0x0A000005C6336407, 0x13880035, 17)
    base = wrappers.flow_hash_of(*key, aes, *flow)
    changed = [wrappers.flow_hash_of(key[0] ^ 1 << bit, key[1], aes, *flow) for bit in range(64)]
    changed += [wrappers.flow_hash_of(key[0], key[1] ^ 1 << bit, aes, *flow) for bit in range(64)]
    changed += [wrappers.flow_hash_of(*key, aes, flow[0] ^ 1 << bit, *flow[1:]) for bit in range(64)]
    changed += [wrappers.flow_hash_of(*key, aes, flow[0], flow[1] ^ 1 << bit, flow[2]) for bit in range(32)]
    changed += [wrappers.flow_hash_of(*key, aes, *flow[:2], flow[2] ^ 1 << bit) for bit in range(8)]
    flipped = [(base ^ other).bit_count() for other in changed]
    assert min(flipped) >= 10 and 28 < sum(flipped) / len(flipped) < 36  # of 64


@kinds
def test_flows_in_a_row_spread_over_buckets_and_tags(aes: bool) -> None:
    """Hosts and ports that count up: the high bits choose a bucket, the low ones a tag."""
    hashes = [
        wrappers.flow_hash_of(7, 9, aes, host << 32 | 0x0100000A, port, 6) for host in range(64) for port in range(256)
    ]
    assert len(set(hashes)) == len(hashes)
    buckets = Counter(value >> 56 for value in hashes)  # 64 a bucket expected, deviation 8
    tags = Counter(value & 0xFF for value in hashes)
    for counts in (buckets, tags):
        assert len(counts) == 256 and min(counts.values()) > 24 and max(counts.values()) < 112
