"""SlsSink: session logs to Alibaba Cloud's Simple Log Service, as the cloud's own NAT gateway delivers them.

Encoded without the GIL (natcore.log.encode_sls), delivered by the SDK's public `put_log_raw`. What each error code means is
in ACTIONS; when to try again is the delivery machine's business.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

from natcore import choices
from natcore.errors import ConfigurationError, DeliveryAction, DeliveryError
from natcore.internal.extras import extra
from natcore.internal.read_only import ReadOnly
from natcore.internal.validation import check_choice, check_name, check_number, check_optional_text, check_url
from natcore.log.encode_sls import encode_logs
from natcore.sinks.base import CONTRACT, BaseSink, Batch, Receipt, row_tails

if TYPE_CHECKING:
    from natcore.sinks._sls_client import Client, Credentials

TOPIC = "natcore_session"
LARGEST_ROWS = 4096  # logs of a request
LARGEST_BYTES = 3 << 20  # of a request, before compression
ACTIONS: Mapping[str, DeliveryAction] = {  # the contract, D1; any other code: "backoff"
    "ProjectNotExist": "unavailable",
    "LogStoreNotExist": "unavailable",
    "ProjectForbidden": "unavailable",
    "Unauthorized": "unavailable",
    "PostBodyTooLarge": "split",
    "InvalidLogSize": "split",
    "PostBodyInvalid": "reject",
    "InvalidTimestamp": "reject",
    "InvalidEncoding": "reject",
    "InvalidKey": "reject",
}
HINTS = {
    "ShardWriteQuotaExceed": "the Logstore has too few shards for this traffic: split shards",
    "WriteQuotaExceed": "the project's write quota is used up (30 GB a minute unless it was raised)",
    "ProjectForbidden": "the project is disabled, possibly because of an overdue payment",
    "InvalidAccessKeyId": "the role or the access key does not exist",
    "SignatureNotMatch": "the access key's secret is wrong",
    "RequestTimeExpired": "this machine's clock is more than 15 minutes off",
}
# A public, private or accelerated endpoint of a region: cn-hangzhou.log.aliyuncs.com, cn-hangzhou-intranet.log.aliyuncs.com.
_HOST = re.compile(
    r"(?:[^.]+\.)?(?P<region>[a-z]{2,4}(?:-[a-z0-9]+)+?)(?:-intranet|-internal|-share)?\.(?:log|sls)\.aliyuncs\.com"
)
_PREVIEW_NAMES = {"instance": "intstance", "protocol": "portocol"}  # as the page of 2024 spells them
_NUMBERS = {*CONTRACT[2:]} - {"pri_ip", "pub_ip", "nat_ip"}
LOCAL = ("eip", "session", "number", "kind", "flags", "start_us", "end_us")  # as encode_logs takes them
MICROSECONDS: Mapping[str, str] = {"start_time": "start_us", "end_time": "end_us"}


class SlsSink(BaseSink):
    """Delivers window rows to a Logstore of Alibaba Cloud's Simple Log Service (extra `natcore[sls]`).

    The topic is natcore_session, the source the instance; the tags `run` and `first_number` tell rows apart that come
    twice.

    Parameters
    ----------
    endpoint
        "https://REGION.log.aliyuncs.com", or "http://127.0.0.1:PORT" for a local server (natcore.testing).
    project, logstore
        Their names.
    region
        The project's; None: taken from the endpoint. A gateway in another region is refused (docs/session-log-contract.md R6).
    access_key_id, access_key_secret, security_token
        Fixed credentials.
    credentials
        A callable that gives (id, secret, token), called for each request, in place of these three.
    create
        Make the project, the Logstore and its index where they are missing. False: nothing is checked before the first
        delivery.
    schema
        "2026", or "preview2024" with that page's spelling of two fields.
    rows
        "contract": window rows with the 15 fields. "all": rows of every kind with all fields (eip, session, number, kind,
        flags, run, start_us and end_us in microseconds), which `natcore.who.sls.SlsSource` needs; about 600 bytes a row.
    row
        True: a 16th field, "RUN/NUMBER", by which a query can drop rows that came twice.
    label
        True: it takes a log's labels: a row with one has the field `label`, behind all others. A Logstore
        that is there needs an index of it, type text.
    timeout
        Seconds of a request, 0.1 to 3,600, connecting included.
    """

    delivery_type = "sls"

    region = ReadOnly[str | None]("Where the project is; None: the endpoint does not say, and no argument did.")

    def __init__(
        self,
        endpoint: str,
        project: str,
        logstore: str,
        *,
        region: str | None = None,
        access_key_id: str | None = None,
        access_key_secret: str | None = None,
        security_token: str | None = None,
        credentials: Callable[[], Credentials] | None = None,
        create: bool = True,
        schema: choices.SlsSchema = "2026",
        rows: choices.SlsRows = "contract",
        row: bool = False,
        label: bool = False,
        timeout: float = 10.0,
    ) -> None:
        endpoint = check_url("endpoint", endpoint)
        project, logstore = check_name("project", project), check_name("logstore", logstore)
        if (credentials is None) == (not (access_key_id and access_key_secret)):
            raise ConfigurationError(
                "credentials must be access_key_id and access_key_secret, or a callable; give one of the two"
            )
        check_choice("schema", schema, get_args(choices.SlsSchema))
        check_choice("rows", rows, get_args(choices.SlsRows))
        if rows == "all" and schema != "2026":
            raise ConfigurationError(f"rows='all' must come with schema='2026', got {schema!r}")
        check_choice("create", create, (True, False))
        check_choice("row", row, (True, False))
        self.labels = check_choice("label", label, (True, False))
        check_number("timeout", timeout, 0.1, 3600, unit="seconds")
        for name, value in (("region", region), ("access_key_id", access_key_id), ("access_key_secret", access_key_secret),
                            ("security_token", security_token)):  # fmt: skip
            check_optional_text(name, value)
        if credentials is not None and not callable(credentials):
            raise ConfigurationError("credentials must be a callable that gives (id, secret, token)")
        self._sdk = _sdk()
        named = _HOST.fullmatch(urlsplit(endpoint).hostname or "")
        if named is not None and region not in (None, named["region"]):
            raise ConfigurationError(
                f"region must be {named['region']!r}, where the endpoint is, or None, got {region!r}"
            )
        self._region = region or (named["region"] if named is not None else None)
        self._endpoint, self._project, self._logstore = endpoint, project, logstore
        fixed: Credentials = (access_key_id or "", access_key_secret or "", security_token)
        self._credentials = credentials or (lambda: fixed)
        self._create = create
        self._schema, self._row = schema, row
        self._is_whole = rows == "all"
        if self._is_whole:
            self.events = self.gaps = self.blocks = self.refusals = self.facts = True
        self._timeout = timeout
        self._client: Client | None = None
        self._client_pid = 0

    def __repr__(self) -> str:
        return f"<SlsSink {self._endpoint} {self._project}/{self._logstore}>"

    @property
    def destination(self) -> Mapping[str, str]:
        """What identifies the destination, without secrets."""
        return {
            "endpoint": self._endpoint,
            "project": self._project,
            "logstore": self._logstore,
            "region": self.region or "",
        }

    def open(self) -> bool:
        """Called in the delivering thread before the first delivery; it may raise as `deliver` does."""
        if self._create:
            self.provision(create=True)
        return self._create

    def provision(self, *, create: bool = True, shards: int = 2, ttl: int = 30) -> list[str]:
        """Check that project, Logstore and index are there, and make what is missing; -> what was made.

        ttl: days that a new Logstore keeps its logs. Raises DeliveryError that names what is missing or not granted.
        """
        project, logstore, client = self._project, self._logstore, self._connect()
        steps: list[tuple[str, str, Callable[[], object], Callable[[], object]]] = [
            ("Project", "ProjectNotExist", lambda: client.get_project(project),
             lambda: client.create_project(project, "NAT session logs")),
            ("LogStore", "LogStoreNotExist", lambda: client.get_logstore(project, logstore),
             lambda: client.create_logstore(project, logstore, ttl=ttl, shard_count=shards)),
            ("Index", "IndexConfigNotExist", lambda: client.get_index_config(project, logstore),
             lambda: client.create_index(project, logstore, self._sdk.make_index(self._types(), ttl))),
        ]  # fmt: skip
        made = []
        for what, missing, look, make in steps:
            try:
                look()
            except self._sdk.LogException as error:
                if error.get_error_code() != missing:
                    raise self._refused(error, f"log:Get{what}") from error
                if not create:
                    raise self._refused(error, f"log:Get{what}", f"{what} is missing") from error
                self._make(what, make)
                made.append(what)
        return made

    def projects(self) -> list[str]:
        """Return the names of the account's projects at this endpoint. Raises DeliveryError: they may not be listed."""
        return self._listed(
            "log:ListProject", lambda client: client.list_project(size=-1).get_projects(), "projectName"
        )

    def logstores(self, project: str) -> list[str]:
        """Return the names of a project's Logstores. Raises DeliveryError: they may not be listed, or it does not exist."""
        project = check_name("project", project)
        return self._listed("log:ListLogStores", lambda client: client.list_logstore(project, size=-1).get_logstores())

    def _listed(self, action: str, look: Callable[[Any], Any], key: str = "") -> list[str]:
        try:
            found = look(self._connect())
        except self._sdk.LogException as error:
            raise self._refused(error, action) from error
        return sorted(str(each[key] if key else each) for each in found)

    def _make(self, what: str, make: Callable[[], object]) -> None:
        try:
            make()
        except self._sdk.LogException as error:
            if not str(error.get_error_code()).endswith("AlreadyExist"):  # another log was faster
                raise self._refused(error, f"log:Create{what}") from error

    def deliver(self, batch: Batch) -> Receipt:
        """Return when the batch is durable; raise `DeliveryError` if it is not."""
        if len(batch) > LARGEST_ROWS:
            raise DeliveryError(
                "PostBodyTooLarge", f"a batch must have at most {LARGEST_ROWS} logs, got {len(batch)}", "split"
            )
        group = self.encode(batch)
        if len(group) > LARGEST_BYTES and len(batch) > 1:
            raise DeliveryError(
                "PostBodyTooLarge", f"a batch must have at most {LARGEST_BYTES} bytes, got {len(group)}", "split"
            )
        client = self._connect()
        client.sent_bytes = 0
        try:
            client.put_log_raw(self._project, self._logstore, self._sdk.Encoded(group))
        except self._sdk.LogException as error:
            raise self._refused(error, "log:PostLogStoreLogs") from error
        return Receipt(len(group), client.sent_bytes)

    def encode(self, batch: Batch) -> bytes:
        """Return the LogGroup's protobuf, identical to that of the SDK's encoder."""
        names = [self._name(field) for field in CONTRACT]
        head = _content(names[0], batch.instance) + _content(names[1], batch.vpc_id)
        if self._is_whole:
            head += _content("run", batch.run)
        run = batch.run.encode() if self._row else None
        labels = row_tails(batch.labels, _label) if self.labels and batch.labels is not None else {}
        logs = encode_logs(batch.records.view("u1"), head, names[2:], run, LOCAL if self._is_whole else (), **labels)
        tags = _tag("run", batch.run) + _tag("first_number", str(batch.first_number))
        return logs + _text(3, TOPIC) + _text(4, batch.instance) + tags

    def close(self) -> None:
        """Called once in the delivering thread, after the last delivery."""
        self._client = None

    def _refused(self, error: Any, action: str, context: str = "") -> DeliveryError:
        """Return the error for the service's code. action: the permission that the request needs."""
        code, request = str(error.get_error_code()), error.get_request_id()
        hint = HINTS.get(code, "")
        if code == "Unauthorized":
            resource = f"project/{self._project}" + (
                "" if action.endswith("Project") else f"/logstore/{self._logstore}"
            )
            hint = f"the role or key is not granted {action} on acs:log:*:*:{resource}"
        parts = [context, hint, str(error.get_error_message())]
        message = "; ".join(part for part in parts if part) + (f" (request {request})" if request else "")
        return DeliveryError(code, message, ACTIONS.get(code, "backoff"))

    def _name(self, field: str) -> str:
        return _PREVIEW_NAMES.get(field, field) if self._schema == "preview2024" else field

    def _types(self) -> dict[str, str]:
        """Return the index type of each field."""
        kinds = {self._name(field): "long" if field in _NUMBERS else "text" for field in CONTRACT}
        if self._is_whole:
            kinds |= {"run": "text", **{name: "text" if name == "eip" else "long" for name in LOCAL}}
        added = (("row", self._row), ("label", self.labels))
        return kinds | {name: "text" for name, is_asked in added if is_asked}

    def _connect(self) -> Client:
        """Return the delivering thread's client, made again after a fork."""
        if self._client is None or self._client_pid != os.getpid():
            self._client = self._sdk.Client(self._endpoint, self.region, self._credentials, self._timeout)
            self._client_pid = os.getpid()
        return self._client


def _sdk() -> ModuleType:
    """Import the SDK when the first sink is made: it is slow to import, and an extra."""
    with extra("sls"):
        return import_module("._sls_client", __package__)


# Protobuf, length-delimited fields: a tag, a length, bytes.


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _content(key: str, value: str) -> bytes:
    return _field(2, _text(1, key) + _text(2, value))  # Log.Contents


def _label(text: str | None) -> bytes:
    return b"" if text is None else _content("label", text)


def _tag(key: str, value: str) -> bytes:
    return _field(6, _text(1, key) + _text(2, value))  # LogGroup.LogTags
