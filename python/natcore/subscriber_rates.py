"""SubscriberRates: what each subscriber sent and received since the look before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from natcore.api.subscriber_rates import SubscriberRates as Core
from natcore.dtypes import SUBSCRIBER_RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.api.workers import Workers
    from natcore.internal.endpoints import Criteria


class SubscriberRates:
    """Counts by inside address, from one look through all sessions to the next; `Gateway.subscriber_rates` makes it.

    From one thread at a time.

    Parameters
    ----------
    workers
        The gateway's: their tables are looked through.
    wanted
        What sessions must meet.
    once
        There is one look: nothing is remembered for another.
    """

    def __init__(self, workers: Workers, wanted: Criteria, *, once: bool = False) -> None:
        self._core = Core(workers, *wanted)
        self._core.once = once

    def look(self) -> bool:
        """Look at the next 32,768 sessions, a millisecond or two.

        Returns
        -------
        bool
            Whether there are more to look at; `rows` looks at those that are left.
        """
        return self._core.look()

    def rows(self) -> NDArray[np.void]:
        """Look at the sessions that are left, return what they counted, and begin anew.

        Returns
        -------
        numpy.ndarray
            SUBSCRIBER_RATE rows (docs/reference/arrays.md), one for each inside address with sessions, in no order. The first
            time the counts are those of the open sessions' whole lives, then those since the time before; what a session
            counted last, before it ended, is not in them.
        """
        while self._core.look():
            pass
        rows = np.zeros(self._core.count, SUBSCRIBER_RATE)
        self._core.take(rows)
        return rows
