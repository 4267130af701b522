"""Deferral: first packets of sessions leave when the standby has these, so that nothing that was answered is lost.

Theory of operation. The feed tells a standby what has changed in cycles (`begin_cycle`), and the standby answers every message.
Once it has answered all of a cycle (`note_answer`), it has every session that began before that cycle, and the planes send the
frames that waited for it (natcore/io/deferred_frames.pxd). Frames wait from the first cycle on that was answered, since by then
the standby has a complete image, until `close`; and not while the standby answers nothing for `PATIENCE`: each would wait as
long as it may. A plane that holds back a frame makes `fileno` readable: the next cycle is due. Time is an argument.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from natcore.api.peer import PeerDeferral
from natcore.internal.closing import Closing
from natcore.internal.parts import parts_of

if TYPE_CHECKING:
    from natcore.gateway import Gateway


PATIENCE = 0.5  # seconds


class Deferral(Closing):
    """Of one stream to a standby; used by the feed's thread. wait: seconds that a frame is held back at most."""

    def __init__(self, gateway: Gateway, wait: float) -> None:
        self._wait_ms = max(1, round(wait * 1000))
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._told: deque[tuple[int, int, float]] = deque()  # messages by the end of a cycle, the cycle, and when
        self.holds = False
        """Whether frames wait."""
        self.acknowledged = 0
        """The newest cycle of which the standby has answered everything."""
        try:
            self._core = PeerDeferral(parts_of(gateway).core.workers, self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """Return the descriptor that is readable when a frame waits for a cycle that has not begun."""
        return self._fd

    def begin_cycle(self) -> int:
        """Return the number of the cycle that begins: what changed until now will be told."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        return self._core.begin_cycle()

    def end_cycle(self, cycle: int, messages: int, now: float) -> None:
        """It was told. messages: that were sent so far. now: seconds."""
        self._told.append((messages, cycle, now))
        if self.holds and now - self._told[0][2] > PATIENCE:
            self.release()

    def note_answer(self, answered: int, now: float) -> None:
        """The standby has answered so many messages."""
        told = None
        while self._told and self._told[0][0] <= answered:
            told = self._told.popleft()
        if told is None:
            return
        _, self.acknowledged, at = told
        self._core.acknowledge(self.acknowledged)
        if not self.holds and now - at <= PATIENCE:
            self.holds = True
            self._core.hold(self._wait_ms)

    def release(self) -> None:
        """Let everything leave at once from now on, until a cycle is answered again."""
        self.holds = False
        self._core.hold(0)

    def close(self) -> None:
        """Hold back nothing any more. Idempotent."""
        if self._fd >= 0:
            self._core.close()
            os.close(self._fd)
            self._fd = -1
