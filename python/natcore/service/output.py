"""The output of `natcore run`, written by a thread of its own: a caller never waits for a reader, and never fails.

A full disk, a closed pipe and a FIFO without a reader cost lines, which are counted; they never cost packets or a stop.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from natcore.internal import threads
from natcore.internal.closing import Closing

MOST_WAITING = 1000  # lines
CLOSE_SECONDS = 1.0  # that the end waits for lines to be written
_POLL_SECONDS = 0.2

Line = tuple[int, str]  # a descriptor, and what to write there


class LineWriter(Closing):
    """Called with what happened and its fields, from any thread. A context manager.

    line: makes what is written of them, in the writer's thread.
    """

    def __init__(self, line: Callable[[str, dict[str, Any]], Line], *, most: int = MOST_WAITING) -> None:
        self._line = line
        self._waiting: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(most)
        self._lock = threading.Lock()
        self._lost = self._reported_lost = 0
        self._closing = False
        self._thread = threads.start("natcore-output", self._run)

    @property
    def lost(self) -> int:
        """Lines that could not be written, or found the queue full."""
        return self._lost

    def __call__(self, what: str, fields: dict[str, Any]) -> None:
        try:
            self._waiting.put_nowait((what, fields))
        except queue.Full:
            self._lose()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Write the waiting lines, for at most `timeout` seconds. Idempotent."""
        self._closing = True
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            try:
                what, fields = self._waiting.get(timeout=_POLL_SECONDS) or ("", {})
            except queue.Empty:
                self._report_lost()
                if self._closing:
                    return
                continue
            self._report_lost()
            if not self._write_line(what, fields):
                self._lose()

    def _report_lost(self) -> None:
        lost = self._lost
        if lost > self._reported_lost and self._write_line(
            "lost", {"lines": lost - self._reported_lost, "lines_lost_in_all": lost}
        ):
            self._reported_lost = lost

    def _write_line(self, what: str, fields: dict[str, Any]) -> bool:
        """Whether the line was written whole."""
        try:
            descriptor, text = self._line(what, fields)
            _write(descriptor, text.encode(errors="backslashreplace"))
        except Exception:  # no space, no reader, or a line that cannot be made
            return False
        return True

    def _lose(self) -> None:
        with self._lock:
            self._lost += 1


def _write(descriptor: int, data: bytes) -> None:
    """Write past the interpreter's buffers: their flush at exit could fail or wait."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            select.select([], [descriptor], [], _POLL_SECONDS)


class _Records(logging.Handler):
    def __init__(self, write: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__(logging.WARNING)
        self._write_line = write
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._write_line(
            "log", {"level": record.levelname.lower(), "from": record.name, "message": self.format(record)}
        )


@contextmanager
def logging_to(write: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """Log records and warnings meanwhile become lines too, instead of going to a descriptor that may block."""
    handler, show = _Records(write), warnings.showwarning
    logging.getLogger().addHandler(handler)
    warnings.showwarning = lambda message, *_, **__: write("warning", {"message": str(message)})
    try:
        yield
    finally:
        warnings.showwarning = show
        logging.getLogger().removeHandler(handler)
