"""The exit statuses of `natcore run`, for whoever starts it: sysexits.h's numbers (docs/guide/service.md)."""

from __future__ import annotations

import errno
from enum import IntEnum

from natcore.errors import CapacityError, ConfigurationError, InterfaceError


class ExitCode(IntEnum):
    """What became of a run.

    Attributes
    ----------
    OK
        A signal ended it in order.
    USAGE
        The command line is wrong.
    FAILED
        It stopped by itself: a worker or a library failed.
    TRY_AGAIN
        What it needs is not there now: an interface, an address that another program has, memory, a log's destination.
    CONFIGURATION
        The file, or what this process may do, must be changed first.
    """

    OK = 0
    USAGE = 64
    FAILED = 70
    TRY_AGAIN = 75
    CONFIGURATION = 78


_NOT_NOW = {
    errno.ENODEV, errno.ENXIO, errno.ENETDOWN, errno.EBUSY, errno.EAGAIN, errno.EADDRINUSE, errno.EADDRNOTAVAIL,
    errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.ETIMEDOUT,
}  # fmt: skip
_NOT_HERE = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL}


def exit_code(error: BaseException) -> ExitCode:
    """Return the status that a run which ended with the error has."""
    if isinstance(error, ConfigurationError):
        # on_failure = "refuse" is such an error when the log's destination does not work now
        refused = getattr(error, "key", "").endswith(".on_failure") and getattr(error, "value", None) == "refuse"
        return ExitCode.TRY_AGAIN if refused else ExitCode.CONFIGURATION
    if isinstance(error, CapacityError):
        return ExitCode.TRY_AGAIN
    if isinstance(error, InterfaceError | OSError) and error.errno in _NOT_NOW:
        return ExitCode.TRY_AGAIN
    if isinstance(error, InterfaceError) and error.errno in _NOT_HERE:
        return ExitCode.CONFIGURATION
    return ExitCode.FAILED
