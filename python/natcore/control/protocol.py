"""What goes over the control socket: one JSON object a line, each a msgspec struct. docs/reference/control.md describes it.

The server greets. The client then asks one request after the other; each is answered by rows, as many as there are, and an end
or a failure. A client ends a request that has no end of its own by closing the connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natcore.errors import ControlError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra

with extra("cli"):
    import msgspec
    from msgspec import Struct

VERSION = 1  # it changes where a client of another version would misread; keys may be added without
MAX_REQUEST_BYTES = 65_536  # a request's line, with its newline
MAX_LINE_BYTES = 16 << 20  # an answer's line

Row = Mapping[str, Any]


class Greeting(Struct, frozen=True, tag="greeting"):
    """The server's first line.

    Parameters
    ----------
    protocol
        VERSION.
    natcore
        natcore's own version.
    instance
        The gateway's name.
    pid
        The process that has the gateway.
    writer
        Whether this peer may use verbs that change something.
    """

    protocol: int
    natcore: str
    instance: str
    pid: int
    writer: bool


class Request(Struct, frozen=True):
    """What a client asks.

    Parameters
    ----------
    verb
        Such as "sessions".
    arguments
        By name; what is left out has its default.
    id
        Repeated in each line of the answer.
    """

    verb: str
    arguments: dict[str, Any] = {}
    id: int = 0


class Rows(Struct, frozen=True, tag="rows"):
    """Some rows of an answer; more may follow."""

    id: int
    rows: list[Any]


class End(Struct, frozen=True, tag="end"):
    """The last line of an answer. summary: by the verb."""

    id: int
    summary: dict[str, Any] = {}


class Failure(Struct, frozen=True, tag="failure"):
    """The last line of a request that was not carried out.

    Parameters
    ----------
    id
        The request's; 0: it could not be read.
    message
        What was wrong.
    code
        An exit status.
    details
        More, by name, where there is more, such as the file and the key that are wrong.
    """

    id: int
    message: str
    code: int = ExitCode.FAILED
    details: Mapping[str, Any] = {}


Message = Greeting | Rows | End | Failure


def _plain(value: object) -> object:
    """What JSON does not have, as text; numpy's numbers as numbers."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_messages: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def encode(message: Message | Request) -> bytes:
    """Return a line."""
    return _encoder.encode(message) + b"\n"


def decode_message(line: bytes) -> Message:
    """Return what a server's line says. Raises ControlError."""
    try:
        return _messages.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ControlError(f"the server's answer is not of this protocol ({error})") from None


def decode_request(line: bytes) -> Request:
    """Return a client's request. Raises ControlError."""
    try:
        return _requests.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ControlError(
            f"a request must be an object with verb, arguments and id: {error}", ExitCode.USAGE
        ) from None
