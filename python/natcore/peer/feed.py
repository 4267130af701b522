"""Feed: tells a standby what a gateway has, and then what changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from natcore.api.peer import PeerFeed
from natcore.internal.closing import Closing
from natcore.internal.parts import parts_of
from natcore.peer.messages import ROW_BYTES, TIME, Kind, Message
from natcore.state.saving import base, write

if TYPE_CHECKING:
    from natcore.gateway import Gateway

BUFFER_BYTES = 1 << 20  # of the rows of one message


class Feed(Closing):
    """What a standby is to know about a gateway; one at a time, used by one thread.

    `snapshot` begins; `changes` follows, as often as the standby should be up to date; `refreshes` less often. Each yields
    messages that are valid until the next one is taken.

    Raises Error: the gateway feeds a standby already; CapacityError.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._core = PeerFeed(parts_of(gateway).core.workers)
        self._buffer = np.empty(BUFFER_BYTES, np.uint8)
        self._in_force: tuple[Any, ...] = ()
        self._lock = threading.Lock()
        self.rows = 0
        """Rows that were given so far: the number of the next one."""

    @property
    def is_outdated(self) -> bool:
        """Whether entries or settings are others than when the snapshot began: another one is due."""
        return self._in_force != self._settings()

    @property
    def waiting(self) -> int:
        """How many slots changed since they were given, about."""
        return self._core.waiting()

    def snapshot(self) -> Iterator[Message]:
        """Tell everything anew."""
        self._core.mark_all()
        parts = parts_of(self._gateway)
        with parts.change_lock:
            self._in_force = self._settings()
            sections = base(parts.core, parts.arguments(), parts.table.saved(), seeded=self._gateway.seed is not None)
        file = BytesIO()
        write(file, sections)
        yield Message(Kind.BASE, 0, self.rows, file.getbuffer())
        yield self._time()
        yield from self.changes()
        place: int | None = 0
        while place is not None:
            count, place = self._core.held_down(place, self._buffer)
            if count:
                yield self._message(Kind.HELD_DOWN, 0, count)
        yield self._time()
        yield Message(Kind.COMPLETE, 0, self.rows, b"")

    def changes(self) -> Iterator[Message]:
        """Tell what changed since it was told last; it ends with the time."""
        for kind in (Kind.ENDS, Kind.SESSIONS):  # limits are of all workers together
            for worker in range(self._core.worker_count):
                yield from self._pass(worker, kind)
        yield self._time()

    def refreshes(self) -> Iterator[Message]:
        """Tell which sessions packets have passed since that was told last."""
        for worker in range(self._core.worker_count):
            yield from self._pass(worker, Kind.REFRESHES)

    def _pass(self, worker: int, kind: Kind) -> Iterator[Message]:
        done = False
        while not done:
            count, done = self._core.take(worker, kind, self._buffer)
            if count:
                yield self._message(kind, worker, count)

    def _message(self, kind: Kind, worker: int, rows: int) -> Message:
        message = Message(kind, worker, self.rows, self._buffer[: rows * ROW_BYTES[kind]].data)
        self.rows += rows
        return message

    def _time(self) -> Message:
        epoch_ns = parts_of(self._gateway).core.log_rows.epoch_ns
        return Message(Kind.TIME, 0, self.rows, TIME.pack(self._core.now_ns(), epoch_ns, self._core.created()))

    def _settings(self) -> tuple[Any, ...]:
        gateway, table = self._gateway, parts_of(self._gateway).table
        draining = tuple(row.id for row in table.draining)
        return table.generation, draining, table.hosts, gateway.policy, gateway.timeouts, gateway.eip_bind_mode

    def close(self) -> None:
        """Note no changes any more. Idempotent."""
        self._core.close()
