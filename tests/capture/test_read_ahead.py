"""Items that a thread makes ahead: all of them, in order, with their error; and the thread ends with who takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from natcore.capture.read_ahead import AHEAD, read_ahead


def made(count: int, error: BaseException | None = None, told: list[int] | None = None) -> Iterator[int]:
    for number in range(count):
        if told is not None:
            told.append(number)
        yield number
    if error is not None:
        raise error


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("natcore-capture")]


def test_all_come_in_order_and_the_thread_ends() -> None:
    assert list(read_ahead(made(1000))) == list(range(1000)) and not threads()


def test_an_error_comes_behind_what_was_made_before_it() -> None:
    found = []
    with pytest.raises(ValueError, match="damaged"):
        for item in read_ahead(made(5, ValueError("damaged"))):
            found.append(item)
    assert found == list(range(5)) and not threads()


def test_who_takes_no_more_ends_the_thread() -> None:
    told = list[int]()
    items = read_ahead(made(1 << 62, told=told))
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert not threads() and len(told) <= AHEAD + 4


def test_no_more_than_a_few_wait() -> None:
    told = list[int]()
    for item in read_ahead(made(200, told=told)):
        assert len(told) <= item + AHEAD + 3
