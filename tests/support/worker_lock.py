"""The lock of a worker, taken from its loop."""

from __future__ import annotations

from natcore.testhooks.planted_faults import lock_worker


def locked(worker: object) -> bool:
    """Lock the worker, unless its loop has it now."""
    try:
        lock_worker(worker)
    except RuntimeError:
        return False
    return True
