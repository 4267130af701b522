"""natcore/base/chacha20.pxd against the vectors of RFC 8439."""

from __future__ import annotations

from collections import Counter

import pytest

from natcore.testhooks.wrappers import RandomStream


def test_block_of_rfc8439_section_2_3_2() -> None:
    stream = RandomStream(bytes(range(32)))
    stream.seek(1, (0x09000000, 0x4A000000, 0x00000000))
    expected = (
        "e4e7f110 15593bd1 1fdd0f50 c47120a3 c7f4d1c7 0368c033 9aaa2204 4e6cd4c3 "
        "466482d2 09aa9f07 05d7c214 a2028bd9 d19c12b5 b94e16de e883d0cb 4e3c50a2"
    )
    assert [stream.word() for _ in range(16)] == [int(word, 16) for word in expected.split()]


def test_key_stream_of_rfc8439_appendix_a_1() -> None:
    """Vectors 1 and 2: two blocks in a row under the zero key."""
    stream = RandomStream(bytes(32))
    words = [stream.word() for _ in range(32)]
    assert b"".join(word.to_bytes(4, "little") for word in words).hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )


def test_the_counter_carries_into_its_second_word() -> None:
    last, next_one = RandomStream(bytes(32)), RandomStream(bytes(32))
    last.seek(0xFFFFFFFF, (0, 0, 0))
    next_one.seek(0, (1, 0, 0))
    words = [last.word() for _ in range(32)]
    assert words[16:] == [next_one.word() for _ in range(16)] != words[:16]


def test_numbers_below_a_bound_are_below_it_and_even() -> None:
    stream = RandomStream(b"k" * 32)
    counts = Counter(stream.below(10) for _ in range(20_000))
    assert set(counts) == set(range(10)) and all(1700 < count < 2300 for count in counts.values())
    assert {stream.below(1) for _ in range(100)} == {0}


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        RandomStream(b"short")
