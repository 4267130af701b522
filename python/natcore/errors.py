"""The exception tree. Every message names the field, the value and what is allowed; bad packets never raise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from natcore.internal.redaction import redact

DeliveryAction = Literal["backoff", "unavailable", "split", "reject"]


class Error(Exception):
    """The root: everything that natcore raises on purpose. Its words hold no password and no key."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(each) if isinstance(each, str) else each for each in args))


class ConfigurationError(Error, ValueError):
    """A value out of its range, or two values that do not go together; the message names it and what is expected."""


class RestartNeededError(ConfigurationError):
    """A change that a running gateway cannot make, since sessions and mappings that there are depend on the old value.

    Attributes
    ----------
    fields
        What would change, each by its name: "Policy.block_size".
    """

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields


class PeerError(Error):
    """What the other gateway of a pair sent is none of its messages, or is no image of a gateway; or it cannot be reached."""


class StateError(Error):
    """A saved state that no gateway can be restored from: damaged, cut off, of a newer version, or of no gateway of ours.

    Nothing has been restored then.

    Parameters
    ----------
    message
        What is wrong, and with which file.
    section, row
        Where, for a report; -1: it is said in words.
    """

    def __init__(self, message: str, section: int = -1, row: int = -1) -> None:
        super().__init__(message)
        self.section, self.row = section, row


class CapacityError(Error):
    """A configured size is used up, or larger than this machine."""


class MissingExtraError(Error, ImportError):
    """A package that this use needs is not installed. The message names the extra that brings it; name: the package."""

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class RfcWarning(UserWarning):
    """A setting that an RFC advises against: the message names the requirement."""


class SecurityWarning(UserWarning):
    """A setting of natcore or of the machine by which packets can be forged, predicted or leaked."""


class InterfaceError(Error, OSError):
    """A network interface that is missing, down, or not ours to open."""


class UntrustedFileError(Error, OSError):
    """A file, a folder or a link that another user could have changed, where natcore would write or believe it."""


class ControlError(Error):
    """What a running gateway was asked over its control socket, and did not do.

    Parameters
    ----------
    message
        What was wrong.
    code
        An exit status: 64 the request is wrong, 70 it failed, 75 try again, 77 this
        user may not.
    details
        More, by name, such as the file and the key that are wrong.
    """

    def __init__(self, message: str, code: int = 70, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details: Mapping[str, Any] = details or {}


class DeliveryError(Error):
    """What a sink raises when a batch is not durable.

    Parameters
    ----------
    code
        The destination's own word, such as "WriteQuotaExceed".
    message
        What happened, in words; secrets in it are not shown.
    action
        What follows: "backoff", the same batch again after a pause; "unavailable", the destination is left alone for a
        while; "split", the batch is too large; "reject", these rows will never be taken.
    retry_after
        Seconds, where the destination said so; None: by the policy.
    """

    def __init__(
        self, code: str, message: str, action: DeliveryAction = "backoff", retry_after: float | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = redact(code)
        self.message = redact(message)
        self.action: DeliveryAction = action
        self.retry_after = retry_after
