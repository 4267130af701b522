"""Items made in a thread of their own, a few ahead of who takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from natcore.internal import threads

T = TypeVar("T")
AHEAD = 2  # items that wait
_END = object()


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items in their order, and raise what making them raised. A caller that takes no more ends the thread."""
    waiting: queue.Queue[object] = queue.Queue(AHEAD)
    ended = threading.Event()

    def make() -> None:
        last: object = _END
        try:
            for item in items:
                waiting.put(item)
                if ended.is_set():
                    return
        except BaseException as error:
            last = _Raised(error)
        waiting.put(last)

    thread = threads.start("natcore-capture", make)
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        ended.set()
        while thread.is_alive():
            try:
                waiting.get_nowait()
            except queue.Empty:
                thread.join(0.001)


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error
