"""Simple Log Service's SDK as SlsSink uses it: the one module that imports it (the extra `sls`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from aliyun.log import IndexConfig, IndexKeyConfig, IndexLineConfig, LogClient, LogException
from aliyun.log.credentials import Credentials as SdkCredentials
from aliyun.log.credentials import CredentialsProvider

Credentials = tuple[str, str, str | None]  # access key id, secret, security token

__all__ = ["Client", "Credentials", "Encoded", "LogException", "make_index"]


class Client(LogClient):
    """The SDK's client. v4 signatures where the region is known: v1 changes the process's locale at each request."""

    def __init__(
        self, endpoint: str, region: str | None, credentials: Callable[[], Credentials], timeout: float
    ) -> None:
        super().__init__(
            endpoint, source="natcore", auth_version="v4" if region else "v1", region=region or "",
            credentials_provider=_Provider(credentials),
        )  # fmt: skip
        self.timeout = timeout  # type: ignore[assignment]  # seconds; requests takes fractions
        self.sent_bytes = 0  # bodies, compressed, each try
        host = urlsplit(endpoint).hostname or ""
        if host.replace(".", "").isdigit():  # the SDK knows only an address without scheme and port
            self._isRowIp = True

    def _send(self, method: str, project: str, body: bytes | None, *arguments: Any, **more: Any) -> Any:
        self.sent_bytes += len(body or b"")
        return super()._send(method, project, body, *arguments, **more)  # type: ignore[misc]


class _Provider(CredentialsProvider):
    """What the SDK asks for credentials, at each request."""

    def __init__(self, credentials: Callable[[], Credentials]) -> None:
        self._credentials = credentials

    def get_credentials(self) -> SdkCredentials:
        return SdkCredentials(*self._credentials())


class Encoded:
    """What put_log_raw takes for a LogGroup."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:
        return self._data


def make_index(types: Mapping[str, str], ttl: int) -> Any:
    """An index of whole lines and of each field: "long" or "text" by name. ttl: days."""
    words = [",", " ", "\t", "\n", ";"]
    keys = {
        name: IndexKeyConfig(token_list=words if kind == "text" else None, index_type=kind, doc_value=True)
        for name, kind in types.items()
    }
    return IndexConfig(ttl=ttl, line_config=IndexLineConfig(words), key_config_list=keys)
