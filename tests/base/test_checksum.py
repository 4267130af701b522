"""natcore/base/checksum.pxd against arithmetic from the RFCs' text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore.testhooks import wrappers

words = st.integers(0, 0xFFFF)
longs = st.integers(0, 0xFFFFFFFF)


def rfc1071(data: bytes) -> int:
    """RFC 1071 section 4.1: the complement of the ones' complement sum of 16-bit words."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def same_value(one: int, other: int) -> bool:
    """Equal in ones' complement, where 0xFFFF is another zero."""
    return one % 0xFFFF == other % 0xFFFF


def test_example_of_rfc1071() -> None:
    assert wrappers.checksum_of(bytes.fromhex("0001f203f4f5f6f7")) == (~0xDDF2 & 0xFFFF).to_bytes(2, "big")


@given(st.binary(max_size=200))
def test_checksum_of_bytes_is_rfc1071(data: bytes) -> None:
    assert int.from_bytes(wrappers.checksum_of(data), "big") == rfc1071(data)


def test_checksum_of_the_longest_packet_of_ones_carries_right() -> None:
    assert int.from_bytes(wrappers.checksum_of(b"\xff" * 65535), "big") == rfc1071(b"\xff" * 65535)


@given(st.integers(0, 2**64 - 1))
def test_fold_keeps_the_value(total: int) -> None:
    folded = wrappers.fold_of(total)
    assert same_value(folded, total) and (folded == 0) == (total == 0)


@given(words, words, words)
def test_update16_is_a_sum_from_scratch(kept: int, old: int, new: int) -> None:
    before = rfc1071(kept.to_bytes(2, "big") + old.to_bytes(2, "big"))
    after = rfc1071(kept.to_bytes(2, "big") + new.to_bytes(2, "big"))
    assert same_value(wrappers.update_of(before, wrappers.delta16_of(old, new)), after)


@given(longs, longs, longs)
def test_update32_is_a_sum_from_scratch(kept: int, old: int, new: int) -> None:
    head = (kept | 1 << 30).to_bytes(4, "big")  # a header's words are never all zero (RFC 1624 section 3)
    updated = wrappers.update_of(rfc1071(head + old.to_bytes(4, "big")), wrappers.delta32_of(old, new))
    assert updated == rfc1071(head + new.to_bytes(4, "big"))


def test_corner_of_rfc1624() -> None:
    """Section 4: equation 2 gives 0xFFFF here, equation 3 the right 0x0000."""
    assert wrappers.update_of(0xDD2F, wrappers.delta16_of(0x5555, 0x3285)) == 0x0000


@given(words, longs, longs)
def test_update_is_never_the_other_zero(checksum: int, old: int, new: int) -> None:
    assert wrappers.update_of(checksum, wrappers.delta32_of(old, new)) != 0xFFFF
    assert wrappers.update_of(checksum, 0) != 0xFFFF


@given(longs, longs, words, words)
def test_combined_deltas_are_both(old: int, new: int, port: int, other: int) -> None:
    one, two = wrappers.delta32_of(old, new), wrappers.delta16_of(port, other)
    assert wrappers.combine_of(one, two) != 0
    assert same_value(
        wrappers.update_of(0x1234, wrappers.combine_of(one, two)),
        wrappers.update_of(wrappers.update_of(0x1234, one), two),
    )


@given(words, longs, longs)
def test_unfinished_checksum_is_the_complement_of_a_finished_one(total: int, old: int, new: int) -> None:
    delta = wrappers.delta32_of(old, new)
    finished = wrappers.update_of(~total & 0xFFFF, delta)
    assert same_value(wrappers.update_partial_of(total, delta), ~finished & 0xFFFF)


@pytest.mark.parametrize("value", [0, 1, 0xFFFE, 0xFFFF])
def test_a_change_to_the_same_changes_nothing(value: int) -> None:
    assert wrappers.delta16_of(value, value) == 0xFFFF
    assert same_value(wrappers.update_of(0x1234, wrappers.delta16_of(value, value)), 0x1234)
