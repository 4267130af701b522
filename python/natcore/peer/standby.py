"""Standby: a gateway that is kept as another one is, until it takes over."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from natcore.api.peer import PeerStandby
from natcore.errors import Error, PeerError, StateError
from natcore.internal.parts import parts_of
from natcore.peer.messages import ROW_BYTES, TIME, Kind, Message
from natcore.state.restoring import MAX_TIME_NS, MOST_SESSIONS, read_state, restore
from natcore.state.settings import entry_kinds

if TYPE_CHECKING:
    from natcore.gateway import Gateway
    from natcore.state.restoring import SavedGateway

WHERE = "what the active gateway sent"


class Standby:
    """The image of an active gateway. changes: arguments of Gateway that are others here (restore's; tables as large, at
    least). One thread at a time.

    A snapshot that comes replaces the image when it is complete; until then the one before would take over.
    """

    def __init__(self, gateway_type: type[Gateway], **changes: Any) -> None:
        self._type, self._changes = gateway_type, changes
        self._image: _Image | None = None  # complete
        self._coming: _Image | None = None  # of a snapshot that is not complete yet
        self.applied = 0
        """Rows that were applied, of this stream."""
        self.snapshots = 0
        """Complete snapshots so far."""

    @property
    def is_complete(self) -> bool:
        """Whether it could take over."""
        return self._image is not None

    @property
    def image(self) -> Gateway | None:
        """The gateway that would take over; it is `receive`'s until then. None: there is none yet."""
        image = self._image
        return None if image is None else image.gateway

    @property
    def evicted(self) -> int:
        """Sessions of the image that made way for a newer row, before their own end was told."""
        return 0 if self._image is None else self._image.core.evicted

    def begin(self) -> None:
        """A new stream begins: its rows are numbered from 0, and a snapshot comes first."""
        self.applied = 0
        if self._coming is not None:
            self._coming.gateway.close()
            self._coming = None
        if self._image is not None:
            self._image.is_followed = False

    def receive(self, message: Message) -> None:
        """Apply a message. Raises PeerError: it is none that an active gateway sends now; the stream must begin anew, and the
        last complete image stays as it is."""
        try:
            self._receive(message)
        except (StateError, Error) as error:
            told = "" if not isinstance(error, StateError) or error.section < 0 else f", in row {error.row}"
            if self._coming is None and self._image is not None:
                self._image.is_followed = False
            raise error if isinstance(error, PeerError) else PeerError(f"{WHERE} is wrong: {error}{told}") from None

    def _receive(self, message: Message) -> None:
        if message.number != self.applied:
            raise PeerError(f"{WHERE} has a gap: row {message.number:,} came, and {self.applied:,} was next")
        if message.kind == Kind.BASE:
            coming, self._coming = self._coming, None
            if coming is not None:
                coming.gateway.close()
            saved = read_state(BytesIO(message.body))
            self._coming = _Image(restore(self._type, saved, changes=self._changes), saved)
            return
        image = self._coming or (self._image if self._image is not None and self._image.is_followed else None)
        if image is None:
            raise PeerError(f"{WHERE} does not begin with a snapshot")
        if message.kind in ROW_BYTES:
            image.core.apply(message.worker, message.kind, np.frombuffer(message.body, np.uint8))
            self.applied += message.rows
        elif message.kind == Kind.TIME:
            if len(message.body) != TIME.size:
                raise PeerError(f"{WHERE} has a time of {len(message.body)} bytes")
            now_ns, epoch_ns, created = TIME.unpack(message.body)
            if now_ns > MAX_TIME_NS or abs(epoch_ns) > MAX_TIME_NS or created > MOST_SESSIONS:
                raise PeerError(f"{WHERE} has a time, or a number of sessions, that no gateway has")
            image.set_time(now_ns, epoch_ns, created)
        elif message.kind == Kind.COMPLETE and image is self._coming:
            if self._image is not None:
                self._image.gateway.close()
            self._image, self._coming = image, None
            self.snapshots += 1
        else:
            raise PeerError(f"{WHERE} has a message of kind {message.kind}, which is none here")

    def promote(self, *, elapsed: float, grace: float) -> Gateway:
        """Return the gateway, to be used from now on; the standby has none then.

        elapsed: seconds since the last sign of life. grace: how old, in seconds, the last refresh of a session may be; idle
        times are counted that much shorter. Raises Error: no snapshot was complete yet.
        """
        if self._image is None:
            raise Error("the standby has no complete image of the active gateway yet")
        image, self._image = self._image, None
        self.begin()
        now_ns = min(image.now_ns + round(elapsed * 1e9), MAX_TIME_NS)
        image.core.promote(now_ns, image.created, round(grace * 1000))
        parts_of(image.gateway).set_epoch_ns(image.epoch_ns)
        return image.gateway

    def close(self) -> None:
        """Forget the image. Idempotent."""
        self.begin()
        if self._image is not None:
            self._image.gateway.close()
            self._image = None


class _Image:
    """A gateway that rows are applied to. is_followed: it is as the stream has it so far."""

    def __init__(self, gateway: Gateway, saved: SavedGateway) -> None:
        self.gateway = gateway
        arguments, kinds = saved.settings.arguments, entry_kinds(saved.settings.entries)
        self.core = PeerStandby(parts_of(gateway).core.workers, arguments["workers"], arguments["max_sessions"], kinds)
        self.now_ns, self.epoch_ns, self.created = saved.now_ns, saved.epoch_ns, 0
        self.is_followed = True

    def set_time(self, now_ns: int, epoch_ns: int, created: int) -> None:
        self.core.set_time(now_ns)
        self.now_ns, self.epoch_ns, self.created = max(now_ns, self.now_ns), epoch_ns, created
