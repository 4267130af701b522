"""Who may ask the console, and what a page of another site cannot make it do."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import ExitStack

import pytest

from natcore.console import connection
from natcore.console.live import MOST_STREAMS
from support.console import Visitor, World, serving
from support.netns import until

PAGES = ("", "log", "sessions", "ports", "top", "who", "explain", "entries", "log/enable", "log/stop?name=audit")


def test_the_token_is_asked_for_everywhere_but_for_the_style(visitor: Visitor) -> None:
    for path in [
        "/",
        *(f"/g/ngw-1/{page}" for page in PAGES),
        "/g/ngw-1/live/",
        "/g/ngw-1/live/top",
        "/live",
        "/nowhere",
    ]:
        answer = visitor.get(path, Cookie=None)
        assert answer.status == 403 and "A token is needed" in answer.text, path
        assert "ngw-1" not in answer.text
    assert visitor.get("/static/console.css", Cookie=None).status == 200
    for path in ("/static/nowhere", "/static/", "/static/../g/ngw-1/", "/static/..%2fapp.py"):
        answer = visitor.get(path, Cookie=None)
        assert answer.status == 403 and "A token is needed" in answer.text, path
    assert visitor.post("/static/console.css", {}, Cookie=None).status == 403
    assert (
        visitor.post(
            "/g/ngw-1/log/stop", {"name": "audit", "key": visitor.key("/g/ngw-1/log/stop?name=audit")}, Cookie=None
        ).status
        == 403
    )


@pytest.mark.parametrize("wrong", ["x", "", "{}x", "%C3%A9", "{}&token="])
def test_a_wrong_token_is_refused(visitor: Visitor, wrong: str) -> None:
    answer = visitor.get(
        f"/?token={wrong.format(visitor.token)}" if wrong != "{}&token=" else "/?token=&token=", Cookie=None
    )
    assert answer.status == 403 and "set-cookie" not in answer.headers
    cookie = visitor.headers["Cookie"]
    assert visitor.get("/", Cookie=f"{cookie[:-1]}{'0' if cookie[-1] != '0' else '1'}").status == 403
    assert visitor.get("/", Cookie=f"{cookie.partition('=')[0]}={visitor.token}").status == 403  # it is another secret


def test_the_cookie_is_for_this_site_alone_and_not_for_scripts(visitor: Visitor) -> None:
    cookie = visitor.get(f"/?token={visitor.token}", Cookie=None).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert visitor.token not in cookie


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:8433", 200), ("192.0.2.7:80", 200), ("evil.example", 421),
     ("evil.example:8433", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example", 421), ("", 421), ("[::1", 421)],
)  # fmt: skip
def test_a_name_that_a_stranger_points_here_is_refused(visitor: Visitor, host: str, status: int) -> None:
    assert visitor.get("/", Host=host).status == status
    assert visitor.get(f"/?token={visitor.token}", Host=host, Cookie=None).status == status


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": None}, {"Sec_Fetch_Site": "cross-site"},
     {"Sec_Fetch_Site": "same-site"}, {"Origin": "http://localhost"}],
)  # fmt: skip
def test_a_form_of_another_site_changes_nothing(here: World, visitor: Visitor, headers: dict[str, str | None]) -> None:
    fields = {"name": "audit", "key": visitor.key("/g/ngw-1/log/stop?name=audit")}
    assert visitor.post("/g/ngw-1/log/stop", fields, **headers).status == 403
    assert here.parquet.status == "Enabled"


def test_a_form_without_its_key_changes_nothing(here: World, visitor: Visitor) -> None:
    for fields in ({"name": "audit"}, {"name": "audit", "key": "0" * 64}, {"name": "audit", "key": visitor.token}):
        for action in ("stop", "enable", "retry"):
            assert visitor.post(f"/g/ngw-1/log/{action}", fields).status == 403
    assert visitor.post("/g/ngw-1/log/stop", {"name": "x" * 70_000}).status == 413
    assert here.parquet.status == "Enabled"


def test_without_write_no_form_is_shown_and_none_is_taken(here: World) -> None:
    with serving(here.folder, write=False, only="ngw-1") as (console, url):
        visitor = Visitor(url)
        assert visitor.get("/").headers["location"] == "/g/ngw-1/"  # the one gateway that there is
        page = visitor.get("/g/ngw-1/log").text
        assert "read-only" in page and "log/stop" not in page and 'method="post"' not in page
        for path in ("log/stop?name=audit", "log/enable", "log/logstores?name=nat&project=x"):
            assert visitor.get(f"/g/ngw-1/{path}").status == 403
        for action in ("stop", "enable", "retry"):
            assert (
                visitor.post(f"/g/ngw-1/log/{action}", {"name": "audit", "key": console.access.form_key}).status == 403
            )
    assert here.parquet.status == "Enabled"


def test_nothing_comes_from_elsewhere_and_no_script_stands_in_a_page(visitor: Visitor) -> None:
    for page in ("/", *(f"/g/ngw-1/{page}" for page in PAGES), "/nowhere", "/static/console.js"):
        answer = visitor.get(page)
        policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert policy.pop("default-src") == policy.pop("base-uri") == policy.pop("frame-ancestors") == "'none'"
        assert set(policy.values()) == {"'self'"}
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        if "html" in answer.headers["content-type"]:
            assert " style=" not in answer.text and " on" + "click" not in answer.text
            assert (
                answer.text.count("<script")
                == answer.text.count('<script src="/static/console.js" defer></script>')
                == 1
            )


def test_so_many_live_pages_at_once_and_no_more(visitor: Visitor) -> None:
    """All are asked for before the first one is answered."""
    host, port = visitor.host.split(":")
    request = f"GET /g/ngw-1/live/ HTTP/1.1\r\nHost: {visitor.host}\r\nCookie: {visitor.headers['Cookie']}\r\n\r\n"
    with ExitStack() as stack:
        asking = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            for _ in range(MOST_STREAMS + 6)
        ]
        for each in asking:
            each.sendall(request.encode())
        told = Counter(each.recv(12, socket.MSG_WAITALL) for each in asking)
        assert told == {b"HTTP/1.1 200": MOST_STREAMS, b"HTTP/1.1 503": 6}
    until(lambda: visitor.status_of_live("/g/ngw-1/live/") == 200)  # their places are free again


def test_who_asks_nothing_gives_the_place_back(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects needs no token: halves of requests keep no place."""
    with serving(here.folder) as (_, url), ExitStack() as stack:
        visitor = Visitor(url)
        host, port = visitor.host.split(":")
        with monkeypatch.context() as short:
            short.setattr(connection, "HEAD_SECONDS", 0.05)
            for piece in (b"", b"G", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
                taken = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
                taken.sendall(piece)
                until(lambda taken=taken: is_closed(taken))  # type: ignore[misc]
        assert visitor.get("/g/ngw-1/").status == 200


def is_closed(taken: socket.socket) -> bool:
    """Whether the other side has ended the connection, without an answer."""
    try:
        return taken.recv(1) == b""
    except ConnectionResetError:
        return True
