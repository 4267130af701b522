"""Pages of rows in order: together they are all rows, sorted, and one may go back and forth between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from natcore.control import page as page_module
from natcore.control.page import Page
from natcore.dtypes import SESSION

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1 << 40)), max_size=60)


def table(rows: list[tuple[int, int]]) -> Any:
    found = np.zeros(len(rows), SESSION)
    found["session"] = np.random.default_rng(1).permutation(len(rows)) + 1
    found["bytes_out"] = [few for few, _ in rows]
    found["bytes_in"] = [many for _, many in rows]
    return found


def key(rows: Any) -> Any:
    return -rows["bytes_out"].astype(np.int64)


@given(rows=ROWS, count=st.integers(1, 20), reverse=st.booleans(), cut=st.integers(1, 9), gathered=st.integers(1, 40))
def test_pages_are_all_rows_in_order(rows: Any, count: int, reverse: bool, cut: int, gathered: int) -> None:
    before, page_module._GATHERED = page_module._GATHERED, gathered
    try:
        found = table(rows)
        slices = [found[first : first + cut] for first in range(0, len(found), cut)]
        order = np.lexsort((found["session"], key(found)))
        wanted = found["session"][order[::-1] if reverse else order].tolist()
        seen: list[int] = []
        cursor = ""
        while True:
            page = Page(key, "session", count, cursor, reverse=reverse)
            (taken,) = [each for each in page.take(iter(slices)) if len(each)] or [found[:0]]
            assert taken["session"].tolist() == wanted[len(seen) : len(seen) + count]
            assert (page.matched, page.before) == (len(found), len(seen) if found.size else 0)
            if len(taken) and seen:  # and back again
                back = Page(key, "session", count, page.cursor(taken[:1]), reverse=not reverse)
                (earlier,) = [each for each in back.take(iter(slices)) if len(each)]
                assert earlier["session"].tolist()[::-1] == seen[-count:]
            seen += taken["session"].tolist()
            assert page.more is (len(seen) < len(found))
            if not page.more:
                break
            cursor = page.cursor(taken[-1:])
        assert seen == wanted
    finally:
        page_module._GATHERED = before
