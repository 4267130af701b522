"""The exit statuses of every command: sysexits.h's numbers, and the few by which a command answers."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from enum import IntEnum

from natcore.errors import (
    CapacityError,
    ConfigurationError,
    ControlError,
    DeliveryError,
    InterfaceError,
    MissingExtraError,
    RestartNeededError,
    UntrustedFileError,
)


class ExitCode(IntEnum):
    """What became of a command, and of a request to a running gateway.

    Attributes
    ----------
    OK
        It was done.
    USAGE
        The command line is wrong.
    FAILED
        It was tried, and did not work.
    TRY_AGAIN
        What it needs is not there now.
    REFUSED
        A running gateway refuses this user.
    CONFIGURATION
        A file, the installation, or what this process may do must be changed first.
    """

    OK = 0
    USAGE = 64
    FAILED = 70
    TRY_AGAIN = 75
    REFUSED = 77
    CONFIGURATION = 78


class Answer(IntEnum):
    """What a command found, where that is no failure.

    Attributes
    ----------
    FINDINGS
        There are findings.
    AMBIGUOUS
        Several come into question.
    GAP
        The log cannot know.
    UNUSED
        No one.
    """

    FINDINGS = 1
    AMBIGUOUS = 3
    GAP = 4
    UNUSED = 5


INTERRUPTED = 130  # Ctrl-C, as a shell has it
READER_GONE = 141  # whoever read the output has gone

MEANINGS: Mapping[int, str] = {
    ExitCode.OK: "it was done; a command without an end of its own was ended in order",
    ExitCode.USAGE: "the command line is wrong: an option, a value, a file that is not there",
    ExitCode.FAILED: "it was tried and did not work, or a defect; of `natcore run`: a worker or a library failed",
    ExitCode.TRY_AGAIN: "try again: an interface is not there or down, another process has it, no memory, no space, no "
    'gateway answers, a log with `on_failure = "refuse"` has no destination now',
    ExitCode.REFUSED: "a running gateway refuses this user",
    ExitCode.CONFIGURATION: "configuration: a file is wrong or asks for what needs a restart, or a package, a capability, a "
    "permission or a kernel feature is missing",
    INTERRUPTED: "Ctrl-C before it was done",
    READER_GONE: "whoever read its output has gone",
}
"""What each status means, for every command."""

ANSWERS: Mapping[str, Mapping[int, str]] = {
    "who": {
        ExitCode.OK: "one subscriber or an entry had it, or has it",
        Answer.AMBIGUOUS: "several may have had it",
        Answer.GAP: "the log has a gap there",
        Answer.UNUSED: "no one had it",
    },
    "what": {
        ExitCode.OK: "these sessions and no others",
        Answer.GAP: "there may be more, or a session was perhaps not then",
        Answer.UNUSED: "no session",
    },
    "talked": {
        ExitCode.OK: "these sessions and no others",
        Answer.GAP: "there may be more, or a session was perhaps not then",
        Answer.UNUSED: "no session",
    },
    "log verify": {Answer.FINDINGS: "files are not as they were written"},
    "status": {
        ExitCode.FAILED: "an interface is down; with --active: or it is the standby",
        ExitCode.TRY_AGAIN: "none runs, or it is not ready in time",
    },
    "check": {ExitCode.CONFIGURATION: "the file is wrong, or, with --here, does not fit this machine"},
    "plan": {ExitCode.CONFIGURATION: "a reload would be refused"},
    "reload": {ExitCode.CONFIGURATION: "it is refused, and nothing has changed"},
    "demo": {ExitCode.FAILED: "a check of what went through did not hold"},
    "conformance": {Answer.FINDINGS: "a requirement is not met"},
    "replay": {ExitCode.FAILED: "a check of what went through did not hold"},
}
"""What a status means of one command, where it says more than `MEANINGS`."""

_NOT_NOW = {
    errno.ENODEV, errno.ENXIO, errno.ENETDOWN, errno.EBUSY, errno.EAGAIN, errno.EADDRINUSE, errno.EADDRNOTAVAIL,
    errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip
_NOT_PERMITTED = {errno.EPERM, errno.EACCES, errno.EROFS}
_NOT_HERE = {errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL}  # of an interface
_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def exit_code(error: BaseException, *, of_file: bool = False) -> int:
    """Return the status of a command, and the code of a request, that ended with an error.

    of_file: a wrong value is one of a configuration file, and not one of the command line.
    """
    from natcore.service.problems import SettingsError  # seldom needed

    given = ExitCode.CONFIGURATION if of_file else ExitCode.USAGE
    if isinstance(error, ControlError):
        return error.code
    if isinstance(error, SettingsError):
        # on_failure = "refuse" is such an error when the log's destination does not work now
        refused = error.key.endswith(".on_failure") and error.value == "refuse"
        return ExitCode.TRY_AGAIN if refused else ExitCode.CONFIGURATION
    if isinstance(error, RestartNeededError | MissingExtraError | UntrustedFileError):
        return ExitCode.CONFIGURATION
    if isinstance(error, ConfigurationError):
        return given
    if isinstance(error, CapacityError):
        return ExitCode.TRY_AGAIN
    if isinstance(error, DeliveryError):
        return ExitCode.FAILED if error.action == "reject" else ExitCode.TRY_AGAIN
    number = error.errno if isinstance(error, OSError) else None
    if number in _NOT_NOW:
        return ExitCode.TRY_AGAIN
    if number in _NOT_PERMITTED or (number in _NOT_HERE and isinstance(error, InterfaceError)):
        return ExitCode.CONFIGURATION
    return given if number in _NO_SUCH_FILE else ExitCode.FAILED
