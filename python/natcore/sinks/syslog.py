"""SyslogSink: session logs to a syslog server, RFC 5424 over TCP or TLS (RFC 5425), with octet counting (RFC 6587).

A row is a message of structured data; the timestamp is the row's end, PROCID the run, MSGID the kind. The encoder is
natcore.log.encode_syslog.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from itertools import groupby

from natcore.dtypes import FIELDS
from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.internal.validation import check_integer, check_name, check_number, is_text
from natcore.log.encode_syslog import encode_frames
from natcore.sinks._connection import Tls, stream
from natcore.sinks.base import KINDS, BaseSink, Batch, Receipt

_NAMES = [f' {name}="'.encode() for name in FIELDS if name != "kind"]
_PRINTABLE = re.compile(r"[!-~]+")  # RFC 5424, 6.2: header fields are printable ASCII without spaces


class SyslogSink(BaseSink):
    """Sends rows to a syslog server as RFC 5424 messages over TCP or TLS, octet-counted (RFC 6587).

    A batch is delivered when the server's TCP has acknowledged it, which is all that syslog can say. Parameters of the
    structured data are the 15 fields with times in microseconds since 1970, then eip, session, number and flags; where the
    log has labels, `label` follows vpc_id.

    Parameters
    ----------
    host
        The server's name or address.
    port
        1 to 65,535; RFC 5425's port for TLS is 6514.
    facility
        RFC 5424's number, 0 to 23; 13 is log audit.
    severity
        RFC 5424's number, 0 to 7; 6 is informational.
    hostname
        HOSTNAME of the messages; None: this machine's.
    app_name
        APP-NAME of the messages.
    structured_data
        The SD-ID; the default is RFC 5612's number for documents, for lack of a private enterprise number.
    timeout
        Seconds of a connect or a send, 0.1 to 3,600.
    tls
        True, a table of PEM files ("ca", "certificate", "key"), or an ssl.SSLContext.
    """

    delivery_type = "syslog"
    events = True
    gaps = True
    blocks = True
    refusals = True
    labels = True

    def __init__(
        self,
        host: str,
        port: int = 514,
        *,
        facility: int = 13,
        severity: int = 6,
        hostname: str | None = None,
        app_name: str = "natcore",
        structured_data: str = "natcore@32473",
        timeout: float = 10.0,
        tls: Tls = False,
    ) -> None:
        host = check_name("host", host, "a name or an address")
        port = check_integer("port", port, 1, 65_535)
        check_integer("facility", facility, 0, 23)
        check_integer("severity", severity, 0, 7)
        timeout = check_number("timeout", timeout, 0.1, 3600, unit="seconds")
        hostname = socket.gethostname() if hostname is None else hostname
        for name, value, longest in (("hostname", hostname, 255), ("app_name", app_name, 48)):
            if not isinstance(value, str) or not _PRINTABLE.fullmatch(value) or len(value) > longest:
                raise ConfigurationError(
                    f"{name} must be at most {longest} printable ASCII characters, got {show(value)}"
                )
        if not is_text(structured_data) or not re.fullmatch(r'[^=\]" ]{1,32}', structured_data):
            raise ConfigurationError(
                f"structured_data must be NAME@NUMBER of at most 32 characters, got {show(structured_data)}"
            )
        self._host, self._port = host, port
        self._start = f"<{8 * facility + severity}>1 ".encode()
        self._header = f" {hostname} {app_name}"
        self._structured_data = structured_data
        self._connection = stream(host, port, timeout, tls)

    def __repr__(self) -> str:
        return f"<SyslogSink {self._host}:{self._port}>"

    @property
    def destination(self) -> Mapping[str, str]:
        """What identifies the destination, without secrets."""
        return {"host": self._host, "port": str(self._port)}

    def open(self) -> None:
        """Called in the delivering thread before the first delivery; it may raise as `deliver` does."""
        self._connection.connect()

    def deliver(self, batch: Batch) -> Receipt:
        """Return when the batch is durable; raise `DeliveryError` if it is not."""
        data = self.encode(batch)
        self._connection.connect()
        self._connection.send([data])
        return Receipt(len(data), len(data))

    def encode(self, batch: Batch) -> bytes:
        """Return the messages, each with its length before it."""
        if batch.labels is None:
            return encode_frames(batch.records.view("u1"), self._start, self._middles(batch, None), _NAMES)
        middles = {label: self._middles(batch, label) for label in set(batch.labels)}
        frames, at = [], 0
        for label, group in groupby(batch.labels):
            end = at + sum(1 for _ in group)
            frames.append(encode_frames(batch.records[at:end].view("u1"), self._start, middles[label], _NAMES))
            at = end
        return b"".join(frames)

    def _middles(self, batch: Batch, label: str | None) -> list[bytes]:
        """Return by kind what is between a message's timestamp and the row's first parameter."""
        of_all = f'instance="{_escaped(batch.instance)}" vpc_id="{_escaped(batch.vpc_id)}"'
        if label is not None:
            of_all += f' label="{_escaped(label)}"'
        return [
            f"{self._header} {batch.run} {KINDS.get(kind, '-')} [{self._structured_data} {of_all}".encode()
            for kind in range(len(KINDS) + 1)
        ]

    def close(self) -> None:
        """Called once in the delivering thread, after the last delivery."""
        self._connection.close()


def _escaped(value: str) -> str:
    """Return a PARAM-VALUE (RFC 5424, 6.3.3)."""
    return re.sub(r'(["\\\]])', r"\\\1", value)
