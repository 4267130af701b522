"""Page: one page of rows in order, found in one pass over all of them; what is kept does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.void]
Key = Callable[[Array], Any]
_GATHERED = 16_384  # rows between two choices of the first ones
_SLICES = 32  # between two moments in which others may have their turn: some hundred microseconds


class Page:
    """The first rows after a cursor, by a key and, where it is the same, by their number.

    The cursor is that of another page's first or last row, so that a page stays in its place while rows come and go.

    Parameters
    ----------
    key
        The key of each row, a number; the smallest comes first.
    number
        The column that no two rows share.
    count
        Rows of the page.
    after
        A row's cursor: only what comes after it is of the page. "": the first page.
    reverse
        The largest key comes first.
    """

    def __init__(self, key: Key, number: str, count: int, after: str = "", *, reverse: bool = False) -> None:
        self._key, self._number, self._count = key, number, count
        self._sign = -1 if reverse else 1
        self._after = None if not after else tuple(self._sign * int(part) for part in after.split(":", 1))
        self.matched = 0
        """Rows that were looked at: those of all pages."""
        self.before = 0
        """Of these, rows that come before the page."""
        self.more = False
        """Whether rows follow the page."""

    def take(self, slices: Iterable[Array]) -> Iterator[Array]:
        """Yield no rows for some slices each, and then those of the page, in order."""
        gathered: list[Array] = []
        waiting, kept = 0, None
        for number, found in enumerate(slices):
            if len(found):
                gathered.append(found)
                waiting += len(found)
            if waiting >= _GATHERED:
                kept = self._choose(kept, gathered)
                gathered, waiting = [], 0
            if number % _SLICES == 0:
                yield found[:0]
        if gathered:
            kept = self._choose(kept, gathered)
        if kept is not None:
            self.more = len(kept) > self._count
            yield kept[: self._count]

    def cursor(self, row: Array) -> str:
        """Return the cursor of rows of one."""
        (key,), (number,) = self._keys(row)
        return f"{self._sign * int(key)}:{self._sign * int(number)}"

    def _choose(self, kept: Array | None, gathered: list[Array]) -> Array:
        """Return the first rows of those kept and gathered, one more than the page has."""
        rows = _joined(gathered)
        self.matched += len(rows)
        keys, numbers = self._keys(rows)
        if self._after is not None:
            inside = _follows(keys, numbers, *self._after)
            self.before += len(rows) - int(inside.sum())
            rows, keys, numbers = rows[inside], keys[inside], numbers[inside]
        if kept is not None and len(kept) > self._count:
            (key,), (number,) = self._keys(kept[-1:])
            rows = rows[~_follows(keys, numbers, key, number)]
        if kept is not None:
            rows = _joined([kept, rows])
        keys, numbers = self._keys(rows)
        if len(rows) > 4 * self._count:  # a sort of few is cheaper
            most = np.partition(keys, self._count)[self._count]
            rows = rows[keys <= most]
            keys, numbers = self._keys(rows)
        return rows[np.lexsort((numbers, keys))[: self._count + 1]]

    def _keys(self, rows: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        keys = np.asarray(self._key(rows)).astype(np.int64)
        return self._sign * keys, self._sign * rows[self._number].astype(np.int64)


def _follows(keys: NDArray[np.int64], numbers: NDArray[np.int64], key: int, number: int) -> NDArray[np.bool_]:
    """Return which come after one."""
    found: NDArray[np.bool_] = (keys > key) | ((keys == key) & (numbers > number))
    return found


def _joined(rows: list[Array]) -> Array:
    """Return one array of all; a row of one field is joined whole, numpy joins others field by field."""
    kind = rows[0].dtype
    whole = np.dtype((np.void, kind.itemsize))
    return np.concatenate([np.ascontiguousarray(each).view(whole) for each in rows]).view(kind)
