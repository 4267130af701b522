"""Sessions that begin and end, for someone who watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from natcore.api.watch import SessionTap
from natcore.dtypes import RECORD
from natcore.internal.closing import Closing

if TYPE_CHECKING:
    from natcore.api.workers import Workers

_TAKE_ROWS = 4096


class SessionFeed(Closing):
    """Create and end rows of a gateway from its making until `close`; `Gateway.watch_sessions` makes it."""

    def __init__(self, workers: Workers, capacity: int) -> None:
        self._tap = SessionTap(workers, capacity)

    @property
    def lost(self) -> int:
        """Rows that found `capacity` of them waiting, so far."""
        return self._tap.lost

    def take(self, most: int = _TAKE_ROWS) -> NDArray[np.void]:
        """Take RECORD (n,), at most `most`, oldest first; `number` has no meaning in them."""
        rows = np.zeros(most, RECORD)
        return rows[: self._tap.take(rows)].copy()

    def close(self) -> None:
        """Get nothing more; rows that wait can still be taken. Idempotent."""
        self._tap.close()
