"""Simple Log Service's SDK as SlsSink uses it: the one module that imports it (the extra `sls`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from aliyun.log import IndexConfig, IndexKeyConfig, IndexLineConfig, LogClient, LogException
from aliyun.log.credentials import Credentials as SdkCredentials
from aliyun.log.credentials import CredentialsProvider
from requests import Session
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from natcore.internal.http_request import Deadline, TimedSocket, connect

Credentials = tuple[str, str, str | None]  # access key id, secret, security token

__all__ = ["Client", "Credentials", "Encoded", "LogException", "make_index"]


class Client(LogClient):
    """The SDK's client without its retries: a request is sent once, within `timeout` seconds in all, or fails.

    v4 signatures where the region is known: v1 changes the process's locale at each request.
    """

    def __init__(
        self, endpoint: str, region: str | None, credentials: Callable[[], Credentials], timeout: float
    ) -> None:
        super().__init__(
            endpoint, source="natcore", auth_version="v4" if region else "v1", region=region or "",
            credentials_provider=_Provider(credentials),
        )  # fmt: skip
        self._deadline = Deadline(timeout)
        self._http = Session()
        self._http.headers["Connection"] = "close"
        for scheme in ("http://", "https://"):
            self._http.mount(scheme, _Adapter(self._deadline))
        self.sent_bytes = 0  # bodies, compressed
        host = urlsplit(endpoint).hostname or ""
        if host.replace(".", "").isdigit():  # the SDK knows only an address without scheme and port
            self._isRowIp = True

    def _send(self, method: str, project: str, body: bytes | None, *arguments: Any, **more: Any) -> Any:
        self.sent_bytes += len(body or b"")
        try:
            return super()._send(method, project, body, *arguments, **more)  # type: ignore[misc]
        except _Answer as answer:
            raise answer.error from None

    def _sendRequest(self, *arguments: Any, **more: Any) -> Any:
        try:
            body, headers = super()._sendRequest(*arguments, **more)  # type: ignore[misc]
            request = next((value for name, value in headers.items() if name.lower() == "x-log-requestid"), "")
            if not request:  # a proxy's or a captive portal's own 200
                raise LogException("BadResponse", "the answer is not Simple Log Service's: no x-log-requestid")
            if isinstance(body, dict) and body.get("errorCode"):
                raise LogException(str(body["errorCode"]), str(body.get("errorMessage", "")), request, 200)
        except LogException as error:
            raise _Answer(error) from error
        return body, headers

    def _getHttpResponse(self, method: str, url: str, params: Any, body: Any, headers: dict[str, str]) -> Any:
        headers["User-Agent"] = self._user_agent  # type: ignore[attr-defined]
        try:
            self._deadline.begin()
            answer = self._http.request(
                method, url, params=params, data=body, headers=headers, timeout=self._deadline.left(),
                allow_redirects=False,
            )  # fmt: skip
            return answer.status_code, answer.content, answer.headers
        except Exception as error:
            raise LogException("LogRequestError", str(error)) from error
        finally:
            self._http.close()  # its connections: one that the service closed meanwhile would cost an attempt


class _Answer(Exception):
    """Carries the error of the one attempt past the SDK, which would try again."""

    def __init__(self, error: LogException) -> None:
        super().__init__(str(error))
        self.error = error


class _Adapter(HTTPAdapter):
    """Connections with one deadline for all waits, through a proxy too."""

    def __init__(self, deadline: Deadline) -> None:
        self._pools = _pools(deadline)
        super().__init__(max_retries=0)

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *arguments: Any, **more: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **more)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _pools(deadline: Deadline) -> dict[str, type[HTTPConnectionPool]]:
    class Timed:
        host: str
        port: int
        sock: Any

        def _new_conn(self) -> Any:
            return connect(self.host, self.port, deadline)

        def connect(self) -> None:
            super().connect()  # type: ignore[misc]
            self.sock = TimedSocket(self.sock, deadline)

    class Plain(Timed, HTTPConnection): ...

    class Tls(Timed, HTTPSConnection): ...

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


class _Provider(CredentialsProvider):
    """The SDK's credentials provider, called at each request."""

    def __init__(self, credentials: Callable[[], Credentials]) -> None:
        self._credentials = credentials

    def get_credentials(self) -> SdkCredentials:
        return SdkCredentials(*self._credentials())


class Encoded:
    """The LogGroup argument of put_log_raw."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:
        return self._data


def make_index(types: Mapping[str, str], ttl: int) -> Any:
    """Return an index of whole lines and of each field: "long" or "text" by name. ttl: days."""
    words = [",", " ", "\t", "\n", ";"]
    keys = {
        name: IndexKeyConfig(token_list=words if kind == "text" else None, index_type=kind, doc_value=True)
        for name, kind in types.items()
    }
    return IndexConfig(ttl=ttl, line_config=IndexLineConfig(words), key_config_list=keys)
