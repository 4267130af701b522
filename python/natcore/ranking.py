"""SessionRanking: the first live sessions in an order, and pages of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np

from natcore import choices
from natcore.api.ranking import SessionRanking as Core
from natcore.dtypes import SESSION
from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.internal.validation import check_choice, check_integer, digits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.api.workers import Workers
    from natcore.internal.endpoints import Criteria

ORDERS: tuple[choices.SessionOrder, ...] = get_args(choices.SessionOrder)  # the core knows them by their place
MOST_RANKED = 100_000


class SessionRanking:
    """The first live sessions in an order; `Gateway.rank_sessions` makes it.

    `rows` looks through the tables and returns them. Who has other things to do meanwhile calls `look` until it returns False.

    Parameters
    ----------
    workers
        The gateway's: their tables are looked through.
    wanted
        What sessions must meet.
    by
        The order.
    limit
        Sessions at most.
    after
        A cursor, "": none.
    reverse
        The other way round.
    """

    def __init__(
        self, workers: Workers, wanted: Criteria, by: choices.SessionOrder, limit: int, after: str = "", *,
        reverse: bool = False,
    ) -> None:  # fmt: skip
        check_choice("by", by, ORDERS)
        self.limit = check_integer("limit", limit, 1, MOST_RANKED)
        """Sessions at most."""
        self._core = Core(workers, *wanted)
        self._core.rank(ORDERS.index(by), self.limit, reverse, _parsed(after))

    def look(self) -> bool:
        """Look at the next 65,536 sessions, a millisecond or two.

        Returns
        -------
        bool
            Whether there are more to look at.
        """
        self._core.look()
        return not self._core.done

    def rows(self) -> NDArray[np.void]:
        """Look at the sessions that are left, and copy the first ones.

        Returns
        -------
        numpy.ndarray
            SESSION rows (docs/reference/arrays.md) in their order, each as it is now; one that has ended since is left out.
        """
        self._finish()
        rows, keys = np.zeros(self.limit, SESSION), np.zeros(self.limit, np.int64)
        count = self._core.fill(rows, keys)
        rows, keys = rows[:count], keys[:count]
        numbers = rows["session"].astype(np.int64)
        return rows[np.lexsort((-numbers if self._core.reverse else numbers, keys))]  # packets may have changed keys

    @property
    def matched(self) -> int:
        """Sessions that meet the criteria; of all pages."""
        self._finish()
        return self._core.matched

    @property
    def before(self) -> int:
        """Of these, sessions before the page."""
        self._finish()
        return self._core.before

    @property
    def more(self) -> bool:
        """Whether sessions follow the page."""
        return self.matched - self.before > self.limit

    @property
    def first(self) -> str:
        """The cursor of the page's first session; "": it has none."""
        return self._end(0)

    @property
    def last(self) -> str:
        """The cursor of its last one: `after` of the next page. The page before is that after `first` in reverse."""
        return self._end(1)

    def _end(self, which: int) -> str:
        self._finish()
        ends = self._core.ends
        return "" if ends is None else "{}:{}".format(*ends[which])

    def _finish(self) -> None:
        while not self._core.done:
            self._core.look()


def _parsed(cursor: str) -> tuple[int, int] | None:
    """Return a cursor's key and session number. Raises ConfigurationError."""
    if cursor == "":
        return None
    parts = cursor.split(":") if isinstance(cursor, str) else []
    found = [digits(part.removeprefix("-")) for part in parts]
    values = [value for value in found if value is not None and value < 1 << 62]
    if len(parts) != 2 or len(values) != 2:
        raise ConfigurationError(f"after must be a cursor of another page, got {show(cursor)}")
    key, number = (-value if part.startswith("-") else value for part, value in zip(parts, values, strict=True))
    return key, number
