"""For users' tests: SlsServer, a strict Simple Log Service on 127.0.0.1 that fails on request.

It needs the extra `testing` (lz4 and the SDK's protobuf classes). Nothing leaves the machine and nothing is kept.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from natcore.internal.extras import extra
from natcore.testing.sls_query import run_query
from natcore.testing.sls_signature import Refusal, check_signature

with extra("testing"):
    import lz4.block  # type: ignore[import-untyped]
    import pyarrow as pa
    from aliyun.log.log_logs_pb2 import LogGroup  # type: ignore[attr-defined]
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

STATUS = {
    "ProjectNotExist": 404, "LogStoreNotExist": 404, "IndexConfigNotExist": 404, "ProjectForbidden": 403,
    "Unauthorized": 401, "InvalidAccessKeyId": 401, "SignatureNotMatch": 401, "WriteQuotaExceed": 403,
    "ShardWriteQuotaExceed": 403, "InternalServerError": 500, "ServerBusy": 503,
}  # fmt: skip
ACTIONS = {  # (method, path): what a RAM policy calls it
    ("GET", "*"): "log:ListProject",  # without a project in the Host
    ("GET", ""): "log:GetProject",
    ("GET", "logstores"): "log:ListLogStores",
    ("POST", ""): "log:CreateProject",
    ("POST", "logstores"): "log:CreateLogStore",
    ("GET", "logstores/*"): "log:GetLogStore",
    ("POST", "logstores/*/index"): "log:CreateIndex",
    ("GET", "logstores/*/index"): "log:GetIndex",
    ("POST", "logstores/*/shards/lb"): "log:PostLogStoreLogs",
    ("POST", "logstores/*/logs"): "log:GetLogStoreLogs",
}
_PROJECT_FIELDS = ("description", "region", "owner", "createTime", "lastModifyTime")
_LOGSTORE_FIELDS = {
    "ttl": 30, "shardCount": 2, "enable_tracking": False, "appendMeta": False, "autoSplit": False, "maxSplitShard": 64,
    "createTime": 0, "lastModifyTime": 0,
}  # fmt: skip
LARGEST_BYTES = 10 << 20  # of a request's logs
FAULTS = ("drop", "lost-answer", "html-502")  # besides every error code


@dataclass
class Logstore:
    """What has been written, as it came: requests are small, decoded they are ten times as large."""

    writes: list[_Request] = field(default_factory=list)
    count: int = 0  # logs
    index: dict[str, Any] | None = None

    @property
    def groups(self) -> list[Any]:
        """LogGroups in the order of arrival."""
        return [LogGroup.FromString(_decompress(write)) for write in self.writes]


@dataclass
class _Fault:
    name: str
    count: int | None
    only_writes: bool


class SlsServer:
    """A strict local Simple Log Service: projects, Logstores, indexes, writes; signatures v1 and v4, digests, lz4 and
    zstd are checked.

    It is a context manager, and thread-safe.

    Parameters
    ----------
    keys
        Access key id -> secret; None: "id" -> "secret".
    port
        0: any that is free.
    clock
        Unix seconds, from which signatures may differ by 15 minutes.
    """

    def __init__(
        self, keys: dict[str, str] | None = None, *, port: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self.keys = {"id": "secret"} if keys is None else dict(keys)
        self.projects: dict[str, dict[str, Logstore]] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, what was answered: "200" or a code
        self.delay = 0.0  # seconds before each answer
        self.progress = "Complete"  # or "Incomplete": what the answers to queries say of themselves
        self.granted = set(ACTIONS.values())  # what the keys may do; anything else is answered Unauthorized
        self._clock = clock
        self._faults: deque[_Fault] = deque()
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", port), _Handler)
        self._http.sls = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="sls", daemon=True)

    @property
    def endpoint(self) -> str:
        """The URL that a sink is given."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> SlsServer:
        """Listen from now on."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Idempotent."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def __enter__(self) -> SlsServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def fail(self, fault: str, count: int | None = 1, *, only_writes: bool = True) -> None:
        """Answer the next requests so: an error code, "drop" (close the connection), "lost-answer" (do it, then close),
        or "html-502". count: how many; None: until `recover`."""
        with self._lock:
            self._faults.append(_Fault(fault, count, only_writes))

    def recover(self) -> None:
        """Forget the faults."""
        with self._lock:
            self._faults.clear()

    def make(self, project: str, logstore: str | None = None) -> None:
        """A project, and a Logstore in it, without a request."""
        with self._lock:
            stores = self.projects.setdefault(project, {})
            if logstore is not None:
                stores.setdefault(logstore, Logstore())

    def rows(self, project: str, logstore: str, *, unique: bool = True) -> list[dict[str, str]]:
        """The logs as dicts in the order of arrival, with `__time__`.

        unique: without what came twice, known by the tags run and first_number and the position in the group. Nothing has
        arrived in a Logstore that is not there.
        """
        with self._lock:
            store = self.projects.get(project, {}).get(logstore, Logstore())
            groups = Logstore(list(store.writes)).groups
        seen: set[Any] = set()
        rows = []
        for group in groups:
            tags = tuple(sorted((tag.Key, tag.Value) for tag in group.LogTags))
            for position, log in enumerate(group.Logs):
                if not (unique and tags and (tags, position) in seen):
                    seen.add((tags, position))
                    rows.append({**{c.Key: c.Value for c in log.Contents}, "__time__": str(log.Time)})
        return rows

    # A request

    def answer(self, request: _Request) -> tuple[int, bytes] | None:
        """Status and body; None: close the connection without a word."""
        if self.delay:
            time.sleep(self.delay)
        fault = self._next_fault(request)
        code = "200"
        try:
            if fault in STATUS or (fault is not None and fault not in FAULTS):
                raise Refusal(fault, "as requested")
            if fault in ("drop", "html-502"):
                code = fault
                return None if fault == "drop" else (502, b"<html>Bad Gateway</html>")
            check_signature(
                request.method, request.path, request.query, request.headers, request.body, self.keys, self._clock()
            )
            with self._lock:
                body = self._route(request)
            if fault == "lost-answer":
                code = fault
                return None
            return 200, json.dumps(body).encode()
        except Refusal as refusal:
            code = refusal.code
            text = json.dumps({"errorCode": refusal.code, "errorMessage": refusal.message})
            return STATUS.get(refusal.code, 400), text.encode()
        finally:
            with self._lock:
                self.requests.append((request.method, request.path, code))

    def _next_fault(self, request: _Request) -> str | None:
        with self._lock:
            for fault in self._faults:
                if fault.only_writes and not request.is_write:
                    continue
                if fault.count is not None:
                    fault.count -= 1
                    if fault.count == 0:
                        self._faults.remove(fault)
                return fault.name
        return None

    def _route(self, request: _Request) -> dict[str, Any]:
        if request.action and request.action not in self.granted:
            raise Refusal("Unauthorized", f"denied by sts or ram, action: {request.action}")
        match request.method, [part for part in request.path.split("/") if part]:
            case "POST", []:
                name = json.loads(request.body)["projectName"]
                if name in self.projects:
                    raise Refusal("ProjectAlreadyExist", name)
                self.projects[name] = {}
                return {}
            case "GET", [] if not request.project:
                return _page(request, "projects", [{"projectName": name} for name in sorted(self.projects)])
            case "GET", ["logstores"]:
                return _page(request, "logstores", sorted(self._stores(request)))
            case "GET", []:
                self._stores(request)
                return {"projectName": request.project, "status": "Normal", **dict.fromkeys(_PROJECT_FIELDS, "")}
            case "POST", ["logstores"]:
                name = json.loads(request.body)["logstoreName"]
                if name in self._stores(request):
                    raise Refusal("LogStoreAlreadyExist", name)
                self._stores(request)[name] = Logstore()
                return {}
            case "GET", ["logstores", name]:
                self._store(request, name)
                return {"logstoreName": name, **_LOGSTORE_FIELDS}
            case "POST", ["logstores", name, "index"]:
                store = self._store(request, name)
                if store.index is not None:
                    raise Refusal("IndexAlreadyExist", name)
                store.index = json.loads(request.body)
                return {}
            case "GET", ["logstores", name, "index"]:
                store = self._store(request, name)
                if store.index is None:
                    raise Refusal("IndexConfigNotExist", "index config doesn't exist")
                return {"ttl": 30, "lastModifyTime": 0, **store.index}
            case "POST", ["logstores", name, "logs"]:
                return self._query(self._store(request, name), json.loads(request.body))
            case "POST", ["logstores", name, "shards", "lb"]:
                self._write(self._store(request, name), request)
                return {}
        raise Refusal("ParameterInvalid", f"{request.method} {request.path} is not known here")

    def _query(self, store: Logstore, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a search and its analysis of the logs from `from` on and before `to`; a log that came twice is there twice."""
        if store.index is None:
            raise Refusal("IndexConfigNotExist", "index config doesn't exist")
        types = {name: key["type"] for name, key in store.index["keys"].items()}
        logs = [
            {content.Key: content.Value for content in log.Contents} for group in store.groups for log in group.Logs
            if int(asked["from"]) <= log.Time < int(asked["to"])
        ]  # fmt: skip
        data = run_query(logs, asked.get("query") or "*", types)
        if "|" not in asked.get("query", ""):
            data = data[int(asked["offset"]) : int(asked["offset"]) + min(100, int(asked["line"]))]
        return {"meta": {"progress": self.progress, "count": len(data), "hasSQL": True}, "data": data}

    def _stores(self, request: _Request) -> dict[str, Logstore]:
        if request.project not in self.projects:
            raise Refusal("ProjectNotExist", f"The Project does not exist : {request.project}")
        return self.projects[request.project]

    def _store(self, request: _Request, name: str) -> Logstore:
        stores = self._stores(request)
        if name not in stores:
            raise Refusal("LogStoreNotExist", f"logstore {name} does not exist")
        return stores[name]

    def _write(self, store: Logstore, request: _Request) -> None:
        data = _decompress(request)
        try:
            group = LogGroup.FromString(data)
        except DecodeError as error:
            raise Refusal("PostBodyInvalid", str(error)) from error
        if not group.Logs:
            raise Refusal("PostBodyInvalid", "no logs")
        if len(group.Logs) > 40_960:
            raise Refusal("InvalidLogSize", f"{len(group.Logs)} logs")
        if any(not log.Contents for log in group.Logs):
            raise Refusal("PostBodyInvalid", "a log without contents")
        # The length of an empty key is a byte of zeros; each content is looked at only where there is one.
        if b"\0" in data and not all(content.Key for log in group.Logs for content in log.Contents):
            raise Refusal("InvalidKey", "an empty key")
        store.writes.append(request)
        store.count += len(group.Logs)


def _page(request: _Request, name: str, found: list[Any]) -> dict[str, Any]:
    """Return the page of a list that the request asks for."""
    offset, size = (int(request.query.get(key, default)) for key, default in (("offset", 0), ("size", 100)))
    page = found[offset : offset + size]
    return {name: page, "total": len(found), "count": len(page)}


def _decompress(request: _Request) -> bytes:
    size = int(request.headers.get("x-log-bodyrawsize", -1))
    if not 0 <= size <= LARGEST_BYTES:
        raise Refusal("PostBodyTooLarge", f"x-log-bodyrawsize {size}")
    kind = request.headers.get("x-log-compresstype", "")
    try:
        if kind == "lz4":
            data: bytes = lz4.block.decompress(request.body, uncompressed_size=size)
        elif kind == "zstd":
            data = pa.Codec("zstd").decompress(request.body, size, asbytes=True)
        elif kind == "":
            data = request.body
        else:
            raise Refusal("PostBodyInvalid", f"x-log-compresstype must be lz4, zstd or none, got {kind}")
    except (lz4.block.LZ4BlockError, OSError) as error:
        raise Refusal("PostBodyUncompressError", str(error)) from error
    if len(data) != size:
        raise Refusal("PostBodyInvalid", f"{len(data)} bytes, x-log-bodyrawsize says {size}")
    return data


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def project(self) -> str:
        """The Host's first part; "": the Host is the server's address alone."""
        host = self.headers.get("host", "")
        return "" if host.partition(":")[0].replace(".", "").isdigit() else host.split(".", 1)[0]

    @property
    def action(self) -> str:
        """As a RAM policy calls it; "" for a path that is not known."""
        parts = [part for part in self.path.split("/") if part]
        parts[1:2] = ["*"] * len(parts[1:2])  # the Logstore's name
        if not parts and not self.project and self.method == "GET":
            parts = ["*"]
        return ACTIONS.get((self.method, "/".join(parts)), "")

    @property
    def is_write(self) -> bool:
        return self.path.endswith("/shards/lb")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    sls: SlsServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer is one segment: the second of two would wait for the client's delayed ACK
    server: _Server

    def _serve(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        answer = self.server.sls.answer(_Request(self.command, url.path, query, headers, body))
        if answer is None:
            self.close_connection = True
            return
        status, data = answer
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("x-log-requestid", "local")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
