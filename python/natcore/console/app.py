"""The console as an ASGI application, and the server that runs it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import natcore
from natcore.console import changes, pages
from natcore.console.access import MOST_BODY_BYTES, Access
from natcore.console.connection import Connection
from natcore.console.gateways import Gateways
from natcore.console.live import Streams
from natcore.console.who import Who
from natcore.console.words import FILTERS
from natcore.control.client import Client
from natcore.errors import ConfigurationError, ControlError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra
from natcore.internal.redaction import redact
from natcore.internal.validation import digits

with extra("console"):
    import uvicorn
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
    from starlette.types import Receive, Scope, Send

MOST_CONNECTIONS = 256
STATUS = {ExitCode.USAGE: 400, ExitCode.REFUSED: 403, ExitCode.TRY_AGAIN: 503}  # of an answer, by a ControlError's code
DONE = {"started": "The session log is started.", "stopped": "The session log is stopped. What was delivered stays.",
        "retried": "The delivery is tried again now."}  # fmt: skip


class Console:
    """The console: an ASGI application over the control sockets of gateways.

    Parameters
    ----------
    gateways
        Which gateways.
    write
        Whether session logs may be started and stopped from a page.
    token
        What the printed URL has; None: a new one.
    hosts
        Names that it is asked by, besides addresses and localhost.
    cookie
        The name of its cookie.
    who
        What answers the page who; None: it asks the logs that the gateways name.
    """

    def __init__(
        self,
        gateways: Gateways,
        *,
        write: bool = False,
        token: str | None = None,
        hosts: Sequence[str] = (),
        cookie: str = "natcore",
        who: Who | None = None,
    ) -> None:
        self._gateways, self._write = gateways, write
        self._pages = pages.PAGES | {"who": (pages.PAGES["who"][0], (who or Who()).view)}
        self._streams = Streams()
        self._templates = Environment(
            loader=PackageLoader("natcore.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self._templates.filters |= FILTERS | {"quoted": lambda name: quote(str(name), safe="")}
        folder = Path(__file__).parent / "static"
        public = [f"/static/{path.name}" for path in folder.iterdir()]
        routes = [
            Mount("/static", StaticFiles(directory=folder)),
            Route("/", self._list),
            Route("/live", self._list_live),
            Route("/g/{gateway}/log/enable", self._enable, methods=["GET", "POST"]),
            Route("/g/{gateway}/log/logstores", self._logstores),
            Route("/g/{gateway}/log/stop", self._stop, methods=["GET", "POST"]),
            Route("/g/{gateway}/log/retry", self._retry, methods=["POST"]),
            Route("/g/{gateway}/live/top", self._top_live),
            Route("/g/{gateway}/live/{page:path}", self._live),
            Route("/g/{gateway}", lambda request: RedirectResponse(f"{request.url.path}/", 308)),
            Route("/g/{gateway}/{page:path}", self._page),
        ]
        answers = {ControlError: self._failed, HTTPException: self._refused}
        self._app = Starlette(routes=routes, exception_handlers=answers)
        self.access = Access(self._app, token=token, hosts=hosts, public=public, cookie=cookie)
        """Who may ask, and the token."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self.access(scope, receive, send)

    # ---- looking ----------------------------------------------------------------------------------------------------

    def _list(self, request: Request) -> Response:
        names = self._gateways.names()
        if len(names) == 1:
            return RedirectResponse(f"/g/{quote(names[0], safe='')}/", 303)
        return self._render("list.html", title="Gateways", cards=pages.cards(self._gateways), live="/live")

    async def _list_live(self, request: Request) -> Response:
        def part() -> str:
            return self._text("parts/list.html", cards=pages.cards(self._gateways))

        return self._streams.answer("", lambda: self._streams.repeated(part, pages.LIVE_SECONDS))

    def _page(self, request: Request) -> Response:
        gateway, page = self._named(request)
        title, look = self._pages[page]
        with self._gateways.asking(gateway) as client:
            view = look(client, request.query_params)
        live = f"/g/{quote(gateway, safe='')}/live/{page}"
        live = live if page in pages.LIVE or page == "top" else ""
        query, done = request.url.query, DONE.get(request.query_params.get("done", ""))
        return self._render(
            f"{page or 'overview'}.html", gateway=gateway, page=page, title=title, done=done,
            live=f"{live}?{query}" if live and query else live, **view,
        )  # fmt: skip

    async def _live(self, request: Request) -> Response:
        gateway, page = self._named(request)
        _, look = self._pages[page]
        if page not in pages.LIVE:
            raise HTTPException(404)

        def part() -> str:
            with self._gateways.asking(gateway) as client:
                view = look(client, request.query_params)
            return self._text(f"parts/{page or 'overview'}.html", gateway=gateway, **view)

        return self._streams.answer(_whole(request), lambda: self._streams.repeated(part, pages.LIVE[page]))

    async def _top_live(self, request: Request) -> Response:
        gateway = request.path_params["gateway"]
        sort = request.query_params.get("sort", "bits")
        clients: list[Client] = []

        def parts() -> Iterator[str]:
            with self._gateways.asking(gateway) as client:
                interval = pages.top_interval(pages.status_of(client))
            with self._gateways.asking(gateway, timeout=interval + 60) as client:
                clients.append(client)
                for sample in client.rows("top", sort=sort, limit=pages.TOP_ROWS, interval=interval):
                    yield self._text(
                        "parts/top.html",
                        gateway=gateway,
                        sample=sample,
                        interval=interval,
                        sort=sort,
                        sorts=pages.TOP_SORTS,
                    )

        def close() -> None:
            for client in clients:
                client.close()

        return self._streams.answer(_whole(request), lambda: self._streams.followed(parts(), close))

    # ---- changing ---------------------------------------------------------------------------------------------------

    async def _enable(self, request: Request) -> Response:
        gateway = request.path_params["gateway"]
        self._check_write()
        given = await self._form(request) if request.method == "POST" else dict(request.query_params)

        def answer() -> Response:
            problem = ""
            if request.method == "POST":
                try:
                    self._change(gateway, changes.start, given)
                    return self._back(gateway, "started")
                except ControlError as error:
                    problem = str(error)
            with self._gateways.asking(gateway, timeout=60.0) as client:
                view = changes.enable_form(client, given)
            return self._render(
                "enable.html", 400 if problem else 200, gateway=gateway, page="log", title="Enable Session Log",
                **(view | {"problem": problem}),
            )  # fmt: skip

        return await run_in_threadpool(answer)

    def _logstores(self, request: Request) -> Response:
        self._check_write()
        query = request.query_params
        with self._gateways.asking(request.path_params["gateway"], timeout=60.0) as client:
            found = changes.logstores(client, query.get("name", ""), query.get("project", ""))
        return HTMLResponse(self._text("parts/options.html", names=found))

    async def _stop(self, request: Request) -> Response:
        gateway = request.path_params["gateway"]
        self._check_write()
        if request.method == "POST":
            given = await self._form(request)
            await run_in_threadpool(self._change, gateway, changes.stop, given)
            return self._back(gateway, "stopped")
        return self._render(
            "stop.html",
            gateway=gateway,
            page="log",
            title="Stop Session Log",
            name=request.query_params.get("name", ""),
        )

    async def _retry(self, request: Request) -> Response:
        gateway = request.path_params["gateway"]
        self._check_write()
        given = await self._form(request)
        await run_in_threadpool(self._change, gateway, changes.retry, given)
        return self._back(gateway, "retried")

    def _change(
        self, gateway: str, change: Callable[[Client, Mapping[str, str]], object], given: Mapping[str, str]
    ) -> None:
        with self._gateways.asking(gateway, timeout=changes.STOP_SECONDS) as client:
            change(client, given)

    def _check_write(self) -> None:
        if not self._write:
            raise HTTPException(403, "This console may only look; start it with --write to change something.")

    async def _form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form that one of our pages sent."""
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BODY_BYTES:
                raise HTTPException(413, f"A form has at most {MOST_BODY_BYTES:,} bytes.")
        given = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        if not self.access.is_form_key(given.pop("key", "")):
            raise HTTPException(403, "This form is not of this console's own page.")
        return given

    def _back(self, gateway: str, done: str) -> Response:
        return RedirectResponse(f"/g/{quote(gateway, safe='')}/log?{urlencode({'done': done})}", 303)

    # ---- answers ----------------------------------------------------------------------------------------------------

    def _named(self, request: Request) -> tuple[str, str]:
        """Return the gateway and the page that a request is about."""
        page = request.path_params["page"].strip("/")
        if page not in pages.PAGES:
            raise HTTPException(404, "There is no such page.")
        return request.path_params["gateway"], page

    def _failed(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ControlError)
        status = STATUS.get(ExitCode(error.code) if error.code in set(ExitCode) else ExitCode.FAILED, 502)
        return self._problem(request, status, redact(str(error)))

    def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._problem(request, error.status_code, error.detail)

    def _problem(self, request: Request, status: int, text: str) -> Response:
        if "text/html" not in request.headers.get("accept", "text/html"):
            return PlainTextResponse(text, status)
        gateway = request.path_params.get("gateway", "")
        title = HTTPStatus(status).phrase
        return self._render("problem.html", status, gateway=gateway, page=None, title=title, text=text)

    def _render(self, template: str, code: int = 200, **view: Any) -> Response:
        return HTMLResponse(self._text(template, **view), code)

    def _text(self, template: str, **view: Any) -> str:
        names = {
            "write": self._write, "key": self.access.form_key, "pages": pages.PAGES, "version": natcore.__version__,
            "names": self._gateways.names(), "gateway": "", "page": None, "live": "", "done": None,
        }  # fmt: skip
        return self._templates.get_template(template).render(names | view)


def _whole(request: Request) -> str:
    """Return a live part's path with its query: the part's name."""
    return f"{request.url.path}?{request.url.query}"


def listen(address: str) -> tuple[str, int]:
    """Return host and port of "127.0.0.1:8433", "[::1]:8433" or "localhost:8433". Raises ConfigurationError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    number = digits(port)
    if not (colon and host) or number is None or number > 0xFFFF:
        raise ConfigurationError(f"--listen must be an address and a port, such as 127.0.0.1:8433, got {address!r}")
    return host, number


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError."""
    family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(64)
    except BaseException:
        made.close()
        raise
    return made


class Server(uvicorn.Server):
    """Runs a console on a listening socket until a signal, or `should_exit`; live pages end with it."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            uvicorn.Config(
                console, log_level="warning", access_log=False, lifespan="off", server_header=False, date_header=True,
                timeout_graceful_shutdown=1, ws="none", limit_concurrency=MOST_CONNECTIONS, http=Connection,
            )
        )  # fmt: skip


def url_of(bound: socket.socket, token: str) -> str:
    """Return the address that opens the console."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/?token={token}"
