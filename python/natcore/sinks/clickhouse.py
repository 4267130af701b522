"""ClickHouseSink: session logs to a ClickHouse table, RowBinary over HTTP. It needs nothing but this package.

The encoder is natcore.log.encode_rowbinary. A new table is a ReplacingMergeTree with a key that ends with (run, number): a
batch that came twice is one when its parts are merged, or at once with FINAL.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Iterator, Mapping
from urllib.parse import urlencode, urlsplit

from natcore.dtypes import FIELDS, RECORD
from natcore.errors import ConfigurationError, DeliveryAction, DeliveryError
from natcore.internal.http_request import post
from natcore.internal.redaction import show
from natcore.internal.validation import (
    check_choice,
    check_integer,
    check_number,
    check_optional_text,
    check_url,
)
from natcore.log.encode_rowbinary import encode_rows
from natcore.sinks.base import ADDRESSES, KINDS, TIMES, Batch, BatchedSink, Receipt, Records

ERRORS: Mapping[int, tuple[str, DeliveryAction]] = {  # src/Common/ErrorCodes.cpp; any other: "backoff"
    16: ("NO_SUCH_COLUMN_IN_TABLE", "unavailable"),
    60: ("UNKNOWN_TABLE", "unavailable"),
    81: ("UNKNOWN_DATABASE", "unavailable"),
    164: ("READONLY", "unavailable"),
    192: ("UNKNOWN_USER", "backoff"),
    193: ("WRONG_PASSWORD", "backoff"),
    194: ("REQUIRED_PASSWORD", "backoff"),
    241: ("MEMORY_LIMIT_EXCEEDED", "split"),
    252: ("TOO_MANY_PARTS", "backoff"),
    291: ("DATABASE_ACCESS_DENIED", "unavailable"),
    497: ("ACCESS_DENIED", "unavailable"),
    516: ("AUTHENTICATION_FAILED", "backoff"),
    27: ("CANNOT_PARSE_INPUT_ASSERTION_FAILED", "reject"),
    33: ("CANNOT_READ_ALL_DATA", "backoff"),  # a body that a proxy cut says nothing of its rows
    36: ("BAD_ARGUMENTS", "backoff"),  # nor does a setting that the server does not like
    691: ("UNKNOWN_ELEMENT_OF_ENUM", "reject"),
}
# The code of "too many parts" too, which come again; this one is the batch's: rows of more days than an INSERT may have.
_TOO_MANY_PARTITIONS = "partitions for single INSERT"
_FEW_ROWS = 1000  # a batch that is this small is not what the server's memory is used up by
_STATUS: Mapping[int, tuple[str, DeliveryAction]] = {413: ("PayloadTooLarge", "split")}
_FIELDS = FIELDS
COLUMNS = ("instance", "vpc_id", *_FIELDS, "run")
_LABEL = "label"  # a column of new tables, which only a log with labels writes
# By the outside endpoint and time, as questions are asked. What follows tells rows apart: facts share their numbers.
_ORDER = "nat_ip, protocol, nat_port, end_time, run, number, kind, pkts_from_vpc"
# Rows about the log itself are few, and read for every question.
_FACTS_INDEX = "INDEX facts kind TYPE set(16) GRANULARITY 4"
_BY_INSIDE = "PROJECTION by_inside (SELECT * ORDER BY pri_ip, end_time)"
_TIMED_KINDS = "('window', 'create', 'end', 'block-allocated', 'block-released', 'refusal', 'event', 'event-cover')"
_INTEGERS = {"u1": "UInt8", "u2": "UInt16", "u4": "UInt32", "u8": "UInt64", "i8": "Int64"}
_FIRST_WITH_TYPES = (20, 1)  # IPv4 came with 19.3, DateTime64 with 20.1
_FIRST_WITH_ASYNC_INSERT = (21, 11)
_FIRST_WITH_TOKENS = (22, 2)  # insert_deduplication_token, also where the table is not replicated
_FIRST_WITH_PROJECTIONS = (24, 8)  # in a table that merges rows which came twice
_REMEMBERED_INSERTS = 10_000  # by their tokens
_MOST_DAYS = 3_660  # a DateTime ends in 2106: beyond that a row would be removed at once
# The answer comes when the query is over, so that its status can tell of an exception; a Distributed table has written
# to its shards by then.
_SETTINGS = {"wait_end_of_query": "1", "insert_distributed_sync": "1"}
_EXCEPTION = re.compile(rb"Code: \d+[.,] |DB::Exception|__exception__")
_NOTHING: Mapping[str, str] = {}


class ClickHouseSink(BatchedSink):
    """Inserts rows into a ClickHouse table, RowBinary over HTTP; it needs no client library.

    Columns are the 15 fields, eip (0.0.0.0: the address has none), session, number, kind, flags, run, and label ('': it has
    none), which only a log with labels writes. Addresses are IPv4 and times DateTime64(6, 'UTC'); servers older than 20.1
    have UInt32 and Int64 (microseconds). A new table is a ReplacingMergeTree by day, ordered by outside endpoint and time,
    with a projection by inside address (from 24.8 on). A batch that came twice is not written again while its token is
    remembered (from 22.2 on), and merged later.

    Parameters
    ----------
    url
        "http://host:8123" or "https://host:8443".
    table, database
        Their names: letters, digits and '_'.
    user, password
        None: the server's default.
    create
        Make the database and the table where they are missing.
    cluster
        Make them on all servers of this cluster (`ON CLUSTER`): its name in the servers' configuration. None: on this one.
    replication_path
        A new table is replicated by ZooKeeper or Keeper under this path, with macros of the servers, such as
        "/clickhouse/tables/{shard}/nat/session_log": a ReplicatedReplacingMergeTree. None: it is not.
    replica
        The name of a replica: a macro of the servers.
    sharding_key
        An expression of columns, such as "cityHash64(nat_ip, protocol, nat_port)": `table` is a Distributed table then, over a
        table `table`_local on each server of the cluster. A row that comes twice must go to the same shard: take columns
        among nat_ip, protocol, nat_port, end_time, run and number. None: there is one table.
    insert_quorum
        Replicas, 1 to 1,000, that must have a batch before it is delivered; None: one, and the others follow.
    keep_days
        Days, 1 to 3,660, after which a new table removes sessions' rows; those about the log itself stay. It needs a
        server of 20.1 or later. None: never.
    batch_rows
        Rows of a batch at most; None: `DeliveryPolicy.batch`.
    batch_seconds
        Seconds that a batch may wait to fill; None: `DeliveryPolicy.linger`.
    timeout
        Seconds of a request, 0.1 to 3,600, connecting included.

    Notes
    -----
    Delivered means: the server answered 200, without an exception in header or body, and with nothing else in it. An
    INSERT waits until it is over, on the shards of a Distributed table and in the queue of asynchronous inserts too. With
    replicas one of them has the rows then; `insert_quorum` waits for more.
    """

    delivery_type = "clickhouse"
    events = True
    gaps = True
    blocks = True
    refusals = True
    labels = True
    facts = True

    def __init__(
        self,
        url: str,
        *,
        table: str = "session_log",
        database: str = "default",
        user: str | None = None,
        password: str | None = None,
        create: bool = True,
        cluster: str | None = None,
        replication_path: str | None = None,
        replica: str = "{replica}",
        sharding_key: str | None = None,
        insert_quorum: int | None = None,
        keep_days: int | None = None,
        batch_rows: int | None = 131_072,
        batch_seconds: float | None = 2.0,
        timeout: float = 30.0,
    ) -> None:
        url = check_url("url", url)
        for name, value in (("table", table), ("database", database)):
            if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_]\w{0,127}", value, re.ASCII):
                raise ConfigurationError(f"{name} must be letters, digits and '_', got {show(value)}")
        _check_cluster(cluster, replication_path, replica, sharding_key)
        if insert_quorum is not None:
            check_integer("insert_quorum", insert_quorum, 1, 1000)
        check_choice("create", create, (True, False))
        check_number("timeout", timeout, 0.1, 3600, unit="seconds")
        if keep_days is not None:
            check_integer("keep_days", keep_days, 1, _MOST_DAYS)
        super().__init__(batch_rows, batch_seconds)
        self._url, self._table, self._database = url, table, database
        self._create, self._timeout, self._keep_days = create, timeout, keep_days
        self._has_tokens = False
        check_optional_text("user", user)
        check_optional_text("password", password)
        named = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
        self._login = _Hidden({name: value for name, value in named.items() if value is not None})
        self._settings = dict(_SETTINGS)
        if insert_quorum is not None:
            self._settings["insert_quorum"] = str(insert_quorum)
        self._cluster, self._replication, self._sharding_key = cluster, (replication_path, replica), sharding_key
        self._tls = ssl.create_default_context() if urlsplit(url).scheme == "https" else None

    def __repr__(self) -> str:
        return f"<ClickHouseSink {self._url} {self._database}.{self._table}>"

    @property
    def destination(self) -> Mapping[str, str]:
        """What identifies the destination, without secrets."""
        return {"url": self._url, "database": self._database, "table": self._table}

    def open(self) -> None:
        """Called in the delivering thread before the first delivery; it may raise as `deliver` does."""
        version = self._version()
        if version >= _FIRST_WITH_ASYNC_INSERT:
            self._settings["wait_for_async_insert"] = "1"
        self._has_tokens = version >= _FIRST_WITH_TOKENS
        if self._create:
            if self._keep_days is not None and version < _FIRST_WITH_TYPES:
                raise DeliveryError(
                    "TooOld", f"{self._url}: keep_days needs ClickHouse 20.1, got {version[0]}.{version[1]}"
                )
            for statement in self.definitions(version):
                self._ask(statement, answers=self._cluster is not None)  # a row a server

    def _version(self) -> tuple[int, int]:
        answer = self._ask("SELECT version()", answers=True)
        found = re.match(rb"(\d+)\.(\d+)", answer)
        if found is None:
            raise DeliveryError("UnexpectedAnswer", f"{self._url}: not a version of ClickHouse: {_shown(answer)}")
        return int(found[1]), int(found[2])

    def definitions(self, version: tuple[int, int]) -> list[str]:
        """Return the statements that make the database and its tables on servers of this version, such as (24, 8)."""
        found = [f"CREATE DATABASE IF NOT EXISTS `{self._database}`{self._on_cluster}", self.table_definition(version)]
        if self._sharding_key is not None:
            found.append(
                f"CREATE TABLE IF NOT EXISTS `{self._database}`.`{self._table}`{self._on_cluster} "
                f"AS `{self._database}`.`{self._stored}` "
                f"ENGINE = Distributed(`{self._cluster}`, `{self._database}`, `{self._stored}`, {self._sharding_key})"
            )
        return found

    @property
    def _on_cluster(self) -> str:
        return "" if self._cluster is None else f" ON CLUSTER `{self._cluster}`"

    @property
    def _stored(self) -> str:
        """The name of the table that has the rows."""
        return self._table if self._sharding_key is None else f"{self._table}_local"

    def table_definition(self, version: tuple[int, int]) -> str:
        """Return the CREATE TABLE statement of the table with the rows, for a server of this version, such as (24, 8)."""
        has_types = version >= _FIRST_WITH_TYPES
        named = {name: _column_type(name, has_types) for name in COLUMNS} | {_LABEL: "String"}
        parts = [f"{name} {kind}{_codec(name) if has_types else ''}" for name, kind in named.items()]
        day = "toDate(end_time, 'UTC')" if has_types else "toDate(toDateTime(intDiv(end_time, 1000000)), 'UTC')"
        settings = {}
        if has_types:
            parts.append(_FACTS_INDEX)
        if version >= _FIRST_WITH_TOKENS:
            replicated = "" if self._replication[0] is not None else "non_"
            settings[f"{replicated}replicated_deduplication_window"] = str(_REMEMBERED_INSERTS)
        if version >= _FIRST_WITH_PROJECTIONS:
            parts.append(_BY_INSIDE)
            settings["deduplicate_merge_projection_mode"] = "'rebuild'"
        path, replica = self._replication
        engine = f"ReplicatedReplacingMergeTree('{path}', '{replica}')" if path is not None else "ReplacingMergeTree()"
        text = (
            f"CREATE TABLE IF NOT EXISTS `{self._database}`.`{self._stored}`{self._on_cluster} ({', '.join(parts)}) "
            f"ENGINE = {engine} PARTITION BY {day} ORDER BY ({_ORDER})"
        )
        if self._keep_days is not None:
            text += f" TTL toDateTime(end_time) + INTERVAL {self._keep_days} DAY DELETE WHERE kind IN {_TIMED_KINDS}"
        if settings:
            text += " SETTINGS " + ", ".join(f"{name} = {value}" for name, value in settings.items())
        return text

    def deliver(self, batch: Batch) -> Receipt:
        """Return when the batch is durable; raise `DeliveryError` if it is not."""
        head, tail = _text(batch.instance) + _text(batch.vpc_id), _text(batch.run)
        columns = ", ".join(COLUMNS)
        if batch.labels is None:
            data = encode_rows(batch.records.view("u1"), head, tail)
        else:
            columns += f", {_LABEL}"
            data = b"".join(encode_rows(rows.view("u1"), head, tail + _text(label)) for label, rows in _by_label(batch))
        settings = self._settings
        if self._has_tokens:  # of the bytes: batches of facts alone may agree in their numbers
            token = f"{batch.run}-{batch.first_number}-{hashlib.sha256(data).hexdigest()[:32]}"
            settings = {**settings, "insert_deduplication_token": token}
        try:
            self._ask(f"INSERT INTO `{self._database}`.`{self._table}` ({columns}) FORMAT RowBinary", data, settings)
        except DeliveryError as error:
            if error.code == "MEMORY_LIMIT_EXCEEDED" and len(batch) <= _FEW_ROWS:
                raise DeliveryError(error.code, error.message) from error
            raise
        return Receipt(len(data), len(data))

    def _ask(
        self, query: str, data: bytes = b"", settings: Mapping[str, str] = _NOTHING, *, answers: bool = False
    ) -> bytes:
        """Send one request on a new connection. answers: the query has an answer. Raises DeliveryError."""
        url = f"{self._url}/?{urlencode({'query': query, **settings})}"
        try:
            answer = post(url, data, self._login, seconds=self._timeout, tls=self._tls)
        except OSError as error:
            raise DeliveryError(type(error.__cause__ or error).__name__, f"{self._url}: {error}") from error
        body, code = answer.body, answer.headers.get("X-ClickHouse-Exception-Code")
        # The status was sent before the exception came, where the server did not wait for the query's end.
        if answer.status != 200 or code or _EXCEPTION.search(body):
            raise _delivery_error(answer.status, code, body)
        if body.strip() and not answers:
            raise DeliveryError("UnexpectedAnswer", f"{self._url}: {_shown(body)}")
        return body


def _check_cluster(cluster: object, path: object, replica: object, sharding_key: object) -> None:
    """Raise ConfigurationError for what could not stand in the statements that make tables."""
    for name, value, pattern, what in (
        ("cluster", cluster, r"[\w.-]{1,128}", "letters, digits, '_', '.' and '-'"),
        ("replication_path", path, r"/[\w./{}-]{1,1023}", "a path of letters, digits and '{}._-', from '/' on"),
        ("replica", replica, r"[\w./{}-]{1,128}", "letters, digits and '/{}._-'"),
        ("sharding_key", sharding_key, r"[^;]*[\w)]", "an expression of columns"),
    ):
        is_left_out = value is None and name != "replica"
        if not is_left_out and (not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII)):
            raise ConfigurationError(f"{name} must be {what}, got {show(value)}")
    if sharding_key is not None and cluster is None:
        raise ConfigurationError("cluster must be a cluster's name where there is a sharding_key, got None")


class _Hidden(dict[str, str]):
    """Headers with a password among them, which no repr may show."""

    def __repr__(self) -> str:
        return f"<{len(self)} headers>"


def _column_type(name: str, has_types: bool) -> str:
    if name not in _FIELDS:
        return "LowCardinality(String)" if has_types else "String"
    if name == "kind":
        return "Enum8(" + ", ".join(f"'{word}' = {number}" for number, word in sorted(KINDS.items())) + ")"
    if has_types and name in ADDRESSES:
        return "IPv4"
    if has_types and name in TIMES:
        return "DateTime64(6, 'UTC')"
    return _INTEGERS[RECORD[name].str[1:]]


def _codec(name: str) -> str:
    """Return the compression of a column: neighbours differ little in times and numbers."""
    is_counted = name in (*TIMES, "session", "number")
    return " CODEC(Delta, ZSTD(1))" if is_counted else " CODEC(ZSTD(1))"


def _text(text: str) -> bytes:
    """Return a String: its length as LEB128, and its bytes."""
    data, length = text.encode(), bytearray()
    size = len(data)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes((*length, size)) + data


def _by_label(batch: Batch) -> Iterator[tuple[str, Records]]:
    """Yield each label of the batch with its rows; '': they have none. The table has an order of its own."""
    places: dict[str, list[int]] = {}
    for place, label in enumerate(batch.labels or ()):
        places.setdefault(label or "", []).append(place)
    for label, of_label in places.items():
        yield label, batch.records[of_label]


def _shown(body: bytes) -> str:
    return repr(body.decode(errors="replace").strip()[:200])


def _delivery_error(status: int, header: str | None, body: bytes) -> DeliveryError:
    """Return the error by ClickHouse's code, which old servers have only in the text."""
    text = body.decode(errors="replace").strip()
    found = header or (match[1] if (match := re.search(r"Code: (\d+)", text)) else "")
    code, action = (
        ERRORS.get(int(found), (f"Code{found}", "backoff")) if found.isdigit() else (f"HTTP{status}", "backoff")
    )
    if not found:
        code, action = _STATUS.get(status, (code, action))
    if code == "TOO_MANY_PARTS" and _TOO_MANY_PARTITIONS in text:
        code, action = "TOO_MANY_PARTITIONS", "split"
    return DeliveryError(code, text[-500:] if status == 200 else text[:500], action)
