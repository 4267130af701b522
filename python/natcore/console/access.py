"""Access: who may ask the console anything, what may be changed from a page, and what a browser may load for one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection
from urllib.parse import parse_qs, urlsplit

from natcore.internal.extras import extra

with extra("console"):
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Nothing is fetched from elsewhere, no script or style stands in a page, and no page shows this one in a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
MOST_BODY_BYTES = 65_536
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{more}
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/static/console.css">
<link rel="icon" href="/static/icon.svg" type="image/svg+xml"></head>
<body class="alone"><main><h1>{title}</h1><p>{text}</p></main></body></html>"""


class Access:
    """ASGI middleware in front of every page.

    A request must name this machine in its Host header: a name that a stranger points here (DNS rebinding) is refused. It must
    bring the token, once in the URL and from then on in a cookie that other sites' requests do not carry (SameSite=Strict)
    and scripts do not see (HttpOnly). What changes something must come from a page of this origin, with its form's key.

    Parameters
    ----------
    app
        What answers those that may ask.
    token
        What the printed URL has; None: a new one.
    hosts
        Names that the Host header may have besides addresses and localhost.
    public
        Paths that anyone may read: what the page without a token loads.
    cookie
        The cookie's name; of several consoles on a machine each has its own, for cookies do not know ports.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None = None,
        hosts: Collection[str] = (),
        public: Collection[str] = (),
        cookie: str = "natcore",
    ) -> None:
        self._app, self._public = app, frozenset(public)
        self.token = token or secrets.token_urlsafe(32)
        """The token, for the URL that is printed."""
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._cookie = cookie
        self._ticket = self._derived("cookie")
        self.form_key = self._derived("form")
        """What each form of a page has in its field `key`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have the application answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refused = self._refusal(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (refused or self._app)(scope, receive, send_with_headers)

    def is_form_key(self, given: str) -> bool:
        """Return whether a form came with its key."""
        return hmac.compare_digest(given.encode(), self.form_key.encode())

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to who may not ask, or to who comes with the token; None: it may."""
        headers, path = Headers(scope=scope), scope["path"]
        if not self._is_here(headers.get("host", "")):
            return _page(421, "Not this machine", "The address of this page must be this machine's own.")
        if path in self._public and scope["method"] in ("GET", "HEAD"):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if path == "/" and given:
            return self._let_in() if hmac.compare_digest(given.encode(), self.token.encode()) else _wrong_token()
        if not hmac.compare_digest(Request(scope).cookies.get(self._cookie, "").encode(), self._ticket.encode()):
            return _wrong_token()
        if scope["method"] not in ("GET", "HEAD") and not _is_own_page(headers):
            return _page(403, "Refused", "This request does not come from the console's own page.")
        return None

    def _let_in(self) -> Response:
        """Return a page that goes on by itself: a redirection of another site's link would not carry the cookie."""
        answer = _page(
            200, "natcore console", '<a href="/">Open the console</a>', '<meta http-equiv="refresh" content="0;url=/">'
        )
        answer.set_cookie(self._cookie, self._ticket, httponly=True, samesite="strict", path="/")
        return answer

    def _is_here(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _derived(self, use: str) -> str:
        return hmac.new(self.token.encode(), use.encode(), hashlib.sha256).hexdigest()


def _is_own_page(headers: Headers) -> bool:
    """Return whether a request comes from a page of this origin: browsers say so in Origin and Sec-Fetch-Site."""
    origin = headers.get("origin")
    if origin is None or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _wrong_token() -> Response:
    return _page(
        403, "A token is needed", "Open the address that <code>natcore console</code> printed when it started; its token is"
        " missing here, or is that of an earlier start.",
    )  # fmt: skip


def _page(status: int, title: str, text: str, more: str = "") -> Response:
    return HTMLResponse(_PAGE.format(title=title, text=text, more=more), status)
