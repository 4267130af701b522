"""Checks of Simple Log Service's request signatures, v1 (HMAC-SHA1) and v4, written from their documents."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from calendar import timegm
from email.utils import parsedate
from time import strptime
from urllib.parse import quote

SKEW_SECONDS = 900
_V4 = re.compile(r"SLS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]*)/sls/aliyun_v4_request,Signature=([0-9a-f]{64})")
_V1 = re.compile(r"LOG ([^:]+):(\S+)")


class Refusal(Exception):
    """A request that is answered with an error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


def check_signature(
    method: str,
    path: str,
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
    keys: dict[str, str],
    now: float,
) -> None:
    """Raises Refusal unless the request is signed by one of the keys, its digest right and its time near now.

    headers: names in lower case. keys: access key id -> secret.
    """
    authorization = headers.get("authorization", "")
    if found := _V4.fullmatch(authorization):
        _check_v4(found, method, path, query, headers, body, keys, now)
    elif found := _V1.fullmatch(authorization):
        _check_v1(found, method, path, query, headers, body, keys, now)
    else:
        raise Refusal("Unauthorized", "no signature of version 1 or 4")


def _check_v1(
    found: re.Match[str], method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes,
    keys: dict[str, str], now: float,
) -> None:  # fmt: skip
    date = headers.get("date", headers.get("x-log-date", ""))
    parsed = parsedate(date)
    _check_time(None if parsed is None else timegm(parsed), now)
    digest = hashlib.md5(body).hexdigest().upper() if body else ""
    if headers.get("content-md5", "").upper() != digest:
        raise Refusal("PostBodyInvalid", "Content-MD5 does not match")
    # x-log-date repeats Date behind the signature, for proxies that drop Date.
    extra = sorted((n, v) for n, v in headers.items() if n.startswith(("x-log-", "x-acs-")) and n != "x-log-date")
    resource = path + ("?" + "&".join(f"{name}={value}" for name, value in sorted(query.items())) if query else "")
    text = "\n".join(
        [method, headers.get("content-md5", ""), headers.get("content-type", ""), date]
        + [f"{name}:{value}" for name, value in extra]
        + [resource]
    )
    secret = _secret_of(found[1], keys)
    expected = base64.b64encode(hmac.new(secret.encode(), text.encode(), hashlib.sha1).digest()).decode()
    _compare(expected, found[2])


def _check_v4(
    found: re.Match[str], method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes,
    keys: dict[str, str], now: float,
) -> None:  # fmt: skip
    key, day, region, signature = found.groups()
    stamp = headers.get("x-log-date", "")
    try:
        at = timegm(strptime(stamp, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        at = None
    _check_time(at, now)
    digest = hashlib.sha256(body).hexdigest()
    if headers.get("x-log-content-sha256") != digest:
        raise Refusal("PostBodyInvalid", "x-log-content-sha256 does not match")
    signed = sorted(n for n in headers if n in ("content-type", "host") or n.startswith(("x-log-", "x-acs-")))
    pairs = sorted((name, quote(value, safe="~")) for name, value in query.items())
    request = "\n".join(
        [method, path, "&".join(f"{name}={value}" if value else name for name, value in pairs)]
        + [f"{name}:{headers[name].strip()}" for name in signed]
        + ["", ";".join(signed), digest]
    )
    scope = f"{day}/{region}/sls/aliyun_v4_request"
    text = "\n".join(["SLS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    secret = ("aliyun_v4" + _secret_of(key, keys)).encode()
    for part in (day, region, "sls", "aliyun_v4_request"):
        secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
    _compare(hmac.new(secret, text.encode(), hashlib.sha256).hexdigest(), signature)


def _secret_of(key: str, keys: dict[str, str]) -> str:
    if key not in keys:
        raise Refusal("InvalidAccessKeyId", f"The access key id you provided not exist: {key}")
    return keys[key]


def _check_time(at: float | None, now: float) -> None:
    if at is None or abs(now - at) > SKEW_SECONDS:
        raise Refusal("RequestTimeExpired", "the request's time is missing or more than 15 minutes off")


def _compare(expected: str, given: str) -> None:
    if not hmac.compare_digest(expected, given):
        raise Refusal("SignatureNotMatch", "the signature does not match")
