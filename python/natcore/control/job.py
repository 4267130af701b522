"""A slow verb's answer, made by a thread of its own and taken by the server's loop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from natcore.control.protocol import Row
from natcore.control.verb import Answer
from natcore.internal import threads

_WAITING = 32  # what the thread may be ahead of the loop
_LOOK_SECONDS = 0.2  # between looks at whether anyone still wants it


class Job:
    """Runs a verb. start: begins its answer. wake: called, by the thread, when something is there to take."""

    def __init__(self, start: Callable[[], Answer], wake: Callable[[], None], ended: Callable[[Job], None]) -> None:
        self._start, self._wake, self._ended = start, wake, ended
        self._found: queue.Queue[Row | list[Row] | BaseException | _End | None] = queue.Queue(_WAITING)
        self._unwanted = threading.Event()
        self.thread = threads.start("natcore-verb", self._run)

    def answer(self) -> Answer:
        """What the loop takes; closing it tells the thread to end."""
        try:
            while True:
                try:
                    found = self._found.get_nowait()
                except queue.Empty:
                    yield None
                    continue
                if isinstance(found, BaseException):
                    raise found
                if isinstance(found, _End):
                    return found.summary
                yield found
        finally:
            self._unwanted.set()

    def _run(self) -> None:
        try:
            answer = self._start()
            while not self._unwanted.is_set():
                try:
                    found = next(answer)
                except StopIteration as done:
                    self._put(_End(done.value))
                    break
                if found is None:
                    self._unwanted.wait(_LOOK_SECONDS)
                elif found != []:
                    self._put(found)
            answer.close()
        except Exception as error:
            self._put(error)
        finally:
            self._ended(self)

    def _put(self, found: Row | list[Row] | BaseException | _End) -> None:
        while not self._unwanted.is_set():
            try:
                self._found.put(found, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            self._wake()
            return


class _End:
    """The answer's end."""

    def __init__(self, summary: Mapping[str, Any] | None) -> None:
        self.summary = summary
