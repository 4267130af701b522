"""KafkaSink: session logs to an Apache Kafka topic, a JSON object a row (the extra `kafka`: confluent-kafka)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, get_args
from urllib.parse import urlsplit

from natcore import choices
from natcore.errors import ConfigurationError, DeliveryAction, DeliveryError
from natcore.internal.extras import extra
from natcore.internal.http_request import Deadline
from natcore.internal.look_up import look_up
from natcore.internal.redaction import show
from natcore.internal.validation import check_choice, check_name, check_number, check_optional_text, is_text
from natcore.sinks._json_rows import json_rows
from natcore.sinks.base import BaseSink, Batch, Receipt

_log = logging.getLogger(__name__)  # librdkafka's own words
ACTIONS: Mapping[str, DeliveryAction] = {  # names of librdkafka's codes; any other: "backoff"
    "UNKNOWN_TOPIC_OR_PART": "unavailable",
    "_UNKNOWN_TOPIC": "unavailable",
    "_UNKNOWN_PARTITION": "unavailable",
    "TOPIC_EXCEPTION": "unavailable",
    "TOPIC_AUTHORIZATION_FAILED": "unavailable",
    "CLUSTER_AUTHORIZATION_FAILED": "unavailable",
    "POLICY_VIOLATION": "unavailable",
    "MSG_SIZE_TOO_LARGE": "split",
    "INVALID_RECORD": "reject",
    "INVALID_TIMESTAMP": "reject",
}
_PORT = 9092  # where a server's name has none
_GRACE_SECONDS = 2.0  # librdkafka looks for messages that are too old once a second


class KafkaSink(BaseSink):
    """Produces JSON rows to an Apache Kafka topic (extra `natcore[kafka]`): idempotent, acknowledged by all in-sync
    replicas.

    The key is run/session, so that a session's rows keep their order; the timestamp is the row's end. A batch may come
    again after a failure: a consumer knows a row by (run, number).

    Parameters
    ----------
    bootstrap_servers
        "host:port,host:port".
    topic
        Its name.
    username, password
        SASL; None: no authentication.
    mechanism
        "SCRAM-SHA-512", "SCRAM-SHA-256" or "PLAIN".
    tls
        True: encrypted.
    config
        More of librdkafka's settings, as they are.
    timeout
        Seconds until a batch without an acknowledgement has failed, 1 to 3,600.
    """

    delivery_type = "kafka"
    events = True
    gaps = True
    blocks = True
    refusals = True
    labels = True

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        *,
        username: str | None = None,
        password: str | None = None,
        mechanism: choices.SaslMechanism = "SCRAM-SHA-512",
        tls: bool = False,
        config: Mapping[str, Any] | None = None,
        timeout: float = 30.0,
    ) -> None:
        bootstrap_servers = check_name("bootstrap_servers", bootstrap_servers, "a list of HOST:PORT")
        topic = check_name("topic", topic)
        check_optional_text("username", username)
        check_optional_text("password", password)
        if config is not None and not (
            isinstance(config, Mapping)
            and all(is_text(k) and isinstance(v, str | int | float) for k, v in config.items())
        ):
            raise ConfigurationError(
                f"config must be a table of librdkafka's settings, texts and numbers, got {show(config)}"
            )
        if (username is None) != (password is None):
            raise ConfigurationError("username and password must be given together, got one of them")
        check_choice("mechanism", mechanism, get_args(choices.SaslMechanism))
        check_choice("tls", tls, (True, False))
        check_number("timeout", timeout, 1, 3600, unit="seconds")
        self._kafka = _client()
        self._bootstrap_servers, self._topic, self._timeout = bootstrap_servers, topic, timeout
        sasl = {"sasl.mechanism": mechanism, "sasl.username": username, "sasl.password": password}
        protocol = ("SASL_" if username is not None else "") + ("SSL" if tls else "PLAINTEXT")
        self._settings: Any = _Hidden({
            "compression.type": "lz4", **(sasl if username is not None else {}), "security.protocol": protocol,
            "log_level": 2,  # a failure is reported by the delivery, once
            **(config or {}),
            "bootstrap.servers": bootstrap_servers, "client.id": "natcore", "acks": "all", "enable.idempotence": True,
            "delivery.report.only.error": False, "message.timeout.ms": int(timeout * 1000), "linger.ms": 5,
        })  # fmt: skip
        self._producer: Any = None
        self._owner = 0
        self._errors: list[Any] = []  # of the batch in hand, as the next
        self._acknowledged = 0

    def __repr__(self) -> str:
        return f"<KafkaSink {self._bootstrap_servers} {self._topic}>"

    @property
    def destination(self) -> Mapping[str, str]:
        """What identifies the destination, without secrets."""
        return {"bootstrap_servers": self._bootstrap_servers, "topic": self._topic}

    def open(self) -> None:
        """Called in the delivering thread before the first delivery; it may raise as `deliver` does."""
        try:
            found = self._connect().list_topics(self._topic, timeout=self._timeout)
        except self._kafka.KafkaException as error:
            raise _delivery_error(error.args[0]) from error
        refusal = found.topics[self._topic].error
        if refusal is not None and refusal.name() != "LEADER_NOT_AVAILABLE":  # being made
            raise _delivery_error(refusal)

    def deliver(self, batch: Batch) -> Receipt:
        """Return when the batch is durable; raise `DeliveryError` if it is not."""
        producer = self._connect()
        rows = zip(json_rows(batch), batch.records["session"].tolist(), batch.records["end_time"].tolist(), strict=True)
        size = 0
        self._errors, self._acknowledged = [], 0
        for text, session, end_time in rows:
            key, value = f"{batch.run}/{session}".encode(), text.encode()
            self._produce(producer, key, value, max(0, end_time) // 1000)
            size += len(key) + len(value)
        left = producer.flush(self._timeout + _GRACE_SECONDS)
        missing = len(batch) - self._acknowledged
        if left or missing or self._errors:
            self._give_up(producer)
            if not self._errors:
                raise DeliveryError("_TIMED_OUT", f"{missing} rows not acknowledged within {self._timeout:g} s")
            raise _delivery_error(self._errors[0])
        return Receipt(size, size)

    def close(self) -> None:
        """Called once in the delivering thread, after the last delivery."""
        self._producer = None

    def _produce(self, producer: Any, key: bytes, value: bytes, milliseconds: int) -> None:
        while True:
            try:
                producer.produce(self._topic, value, key, timestamp=milliseconds, on_delivery=self._report)
                return
            except BufferError:  # librdkafka's own queue is full
                producer.poll(0.1)
            except self._kafka.KafkaException as error:
                self._errors.append(error.args[0])
                return

    def _report(self, error: Any, message: Any) -> None:
        if error is not None:
            self._errors.append(error)
        else:
            self._acknowledged += 1

    def _give_up(self, producer: Any) -> None:
        """Purge a failed batch: another producer sends all of it again."""
        producer.purge()
        producer.flush(_GRACE_SECONDS)
        self._producer = None

    def _connect(self) -> Any:
        """Return the delivering thread's producer, made again after a fork."""
        if self._producer is None or self._owner != os.getpid():
            _look_up_one(self._bootstrap_servers, Deadline(self._timeout))
            try:
                self._producer = self._kafka.Producer(dict(self._settings), logger=_log)
            except self._kafka.KafkaException as error:
                raise ConfigurationError(
                    f"config must be settings that librdkafka knows: {error.args[0].str()}"
                ) from error
            self._owner = os.getpid()
        return self._producer


class _Hidden(dict[str, Any]):
    """Settings with secrets among them, which no repr may show."""

    def __repr__(self) -> str:
        return f"<{len(self)} settings>"


def _look_up_one(servers: str, deadline: Deadline) -> None:
    """Raise DeliveryError if no server's name has an address in time.

    librdkafka looks names up in threads without a time limit, and the end of a producer waits for these: none is made
    as long as the resolver hangs.
    """
    failed = "no server is named"
    names = [name.strip() for name in servers.split(",") if name.strip()]
    for number, name in enumerate(names):
        try:
            parts = urlsplit(f"//{name.rpartition('://')[2]}")
            look_up(
                parts.hostname or "", parts.port or _PORT, socket.SOCK_STREAM, deadline.left() / (len(names) - number)
            )
            return
        except (OSError, ValueError) as error:  # ValueError: a port of letters
            failed = f"{name}: {error}"
    raise DeliveryError("_RESOLVE", failed)


def _client() -> ModuleType:
    """Import the client when the first sink is made: it is an extra."""
    with extra("kafka"):
        return import_module("confluent_kafka")


def _delivery_error(error: Any) -> DeliveryError:
    code = str(error.name())
    return DeliveryError(code, str(error.str()), ACTIONS.get(code, "backoff"))
