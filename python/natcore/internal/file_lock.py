"""A locked file, which says what one process alone may use.

The kernel ties such a lock to the open file, which a child has too until it executes its program, or for its life. So a lock
that is only closed would last as long as any child that began meanwhile: it is released by a call of its own.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from contextlib import suppress


class FileLock:
    """An exclusive lock of an open file, until `release`, the object's end, or the end of the process that took it.

    A forked child's copy releases nothing. Raises BlockingIOError: another open file has the lock; OSError: the file system
    has no locks. The descriptor stays the caller's then, and is closed with the lock otherwise.
    """

    def __init__(self, descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.release = weakref.finalize(self, release, descriptor, os.getpid())


def release(descriptor: int, owner: int) -> None:
    """Close a locked file; in the process that took the lock, end it first."""
    if os.getpid() == owner:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
