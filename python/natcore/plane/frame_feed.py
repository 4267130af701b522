"""Frames of a plane, as they came and as they leave, for someone who looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from natcore.internal.closing import Closing
from natcore.internal.endpoints import Criteria
from natcore.io.frame_view import FrameView
from natcore.verdict import Side, Verdict


class SeenFrame(NamedTuple):
    """A frame that a plane received, and what became of it; or one that the gateway originates (`is_own`)."""

    now: float
    """When it was translated, seconds on the gateway's clock."""
    verdict: Verdict
    """What became of it; of an own frame: of the packet that caused it."""
    side: Side
    """Where it came from; of an own frame: where it goes."""
    interface: str
    """The interface that it came by; of an own frame: that it leaves by."""
    worker: int
    """The worker that received it."""
    before: bytes
    """The frame as it came, cut to `snap` bytes; of an own frame empty."""
    before_length: int
    """Its bytes; 0: it is an own frame."""
    after: bytes | None
    """The frame as it leaves, cut likewise; None: it is not forwarded."""
    after_length: int
    """Its bytes; 0: it is not forwarded."""

    @property
    def is_own(self) -> bool:
        """Whether the gateway originates it: an ICMP error, an echo reply, or a fragment that was held or cut."""
        return self.before_length == 0

    @property
    def cause(self) -> str:
        """Why the gateway sends an own frame, in words; of others empty."""
        if not self.is_own:
            return ""
        if self.verdict is Verdict.HELD:
            return "a fragment that waited for its first one"
        if self.verdict.is_forwarded:
            return f"a further fragment of a packet that was cut ({self.verdict.name})"
        if self.verdict is Verdict.LOCAL:
            return "the answer to a packet for the gateway"
        return f"the answer to a packet with verdict {self.verdict.name}"


class FrameFeed(Closing):
    """Frames of a plane, its own among them, from its making until `close`; `Plane.watch_frames` makes it.

    attach, detach: show frames to the view, and end that. names: the interfaces, by number.
    """

    def __init__(
        self, criteria: Criteria, drops: bool, snap: int, capacity: int, names: Sequence[str],
        attach: Callable[[FrameView], None], detach: Callable[[FrameView], None],
    ) -> None:  # fmt: skip
        addresses, masks, ports, protocol, _ = criteria
        self._view = FrameView(addresses, masks, ports, protocol, drops, snap, capacity)
        self._names, self._detach = tuple(names), detach
        attach(self._view)

    @property
    def lost(self) -> int:
        """Frames that found no place, so far."""
        return self._view.lost

    def take(self, most: int = 256) -> list[SeenFrame]:
        """Take the frames since the last call, oldest first, at most `most`."""
        return [
            SeenFrame(
                at_ns / 1e9, Verdict(verdict), Side(side), self._names[number], worker, before, before_length,
                after if after_length else None, after_length,
            )
            for at_ns, verdict, side, number, worker, before_length, before, after_length, after in self._view.take(most)
        ]  # fmt: skip

    def close(self) -> None:
        """Get nothing more; frames that wait can still be taken. Idempotent."""
        self._detach(self._view)
