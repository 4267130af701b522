"""Session logs that were not stopped: they are flushed at the program's end, and when their gateway is collected.

A program that ends (its last line, `sys.exit`, an uncaught exception) delivers or spools what waits, as
`Gateway.close` does: planes first, then the logs, within 10 s. Threads that are not daemons have ended by then. A gateway
without references is collected, and its logs are flushed by the thread that feeds them. Both are reported by a
ResourceWarning. `os._exit` and a signal that kills leave no time for anything: the spool has what was in it.
"""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from typing import TYPE_CHECKING

from natcore.internal.alive import Alive

if TYPE_CHECKING:
    from natcore.gateway import Gateway
    from natcore.sessionlog.collector import Collector

_watched: Alive[Collector] = Alive()


def watch(gateway: Gateway, collector: Collector) -> None:
    """Flush the collector's logs when the gateway is collected or the program ends."""
    collector.owner, collector.owner_pid = weakref.ref(gateway), os.getpid()
    _watched.add(collector)
    weakref.finalize(gateway, _collected, weakref.ref(collector), repr(gateway)).atexit = False


def _collected(reference: weakref.ref[Collector], name: str) -> None:
    """Called by the garbage collector, in any thread and at any place: it waits for nothing and takes no lock."""
    collector = reference()
    if collector is None or not collector.active or collector.owner_pid != os.getpid():
        return
    collector.is_collected = True  # its own thread looks
    warnings.warn(f"{name} was garbage-collected while a session log ran: call close()", ResourceWarning, stacklevel=2)


@atexit.register
def _finish() -> None:
    """Do nothing in a child process: the logs are its parent's."""
    for collector in _watched:
        if collector.owner_pid != os.getpid():
            continue
        gateway = collector.owner() if collector.owner is not None else None
        if collector.active:
            warnings.warn(
                f"{gateway!r}: the program ends while a session log runs: close() ends it",
                ResourceWarning,
                stacklevel=2,
            )
        if gateway is not None:
            gateway.close()
        else:
            collector.close()  # or waits for the thread that is at it
