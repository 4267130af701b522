"""A session log is enabled from the page though the gateway's file has none, or the page says what is missing."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest

from natcore.control.client import Client
from natcore.errors import ControlError
from natcore.service import configuration_file
from natcore.testing import SlsServer
from support.console import Visitor, asking

REGION = '[gateway]\ninstance = "ngw-1"\nregion = "cn-hangzhou"\n'
ENABLE = "/g/ngw-1/log/enable"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the environment of the gateway's process."""
    pytest.importorskip("aliyun.log", reason="the extra natcore[sls]")
    monkeypatch.setenv("NATCORE_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("NATCORE_ACCESS_KEY_SECRET", "secret")


def page_of(visitor: Visitor, path: str) -> str:
    return html.unescape(visitor.get(path).text)


def test_one_is_enabled_watched_and_stopped(tmp_path: Path, key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with SlsServer() as sls, asking(tmp_path, REGION) as visitor:
        monkeypatch.setenv("NATCORE_SLS_ENDPOINT", sls.endpoint)
        sls.make("nat-logs", "sessions")
        assert "can be enabled all the same" in page_of(visitor, "/g/ngw-1/log")
        form = page_of(visitor, ENABLE)
        assert sls.endpoint in form and ">nat-logs</option>" in form and ">sessions</option>" in form
        fields = {"key": visitor.key(ENABLE), "name": "nat", "project_how": "select", "project": "nat-logs"}
        made = {**fields, "logstore_how": "create", "new_logstore": "made-here"}
        assert visitor.post(ENABLE, made).status == 303
        with Client(tmp_path / "ngw-1.sock") as client:
            (log,) = client.ask("logs")
            assert client.summary == {}  # one runs
            assert (log["name"], log["type"], log["destination"]["logstore"]) == ("nat", "sls", "made-here")
            with pytest.raises(ControlError, match="session log 'nat' runs already"):
                client.ask("log-start", name="nat", project="nat-logs", logstore="sessions")
        stop = "/g/ngw-1/log/stop"
        assert visitor.post(stop, {"key": visitor.key(f"{stop}?name=nat"), "name": "nat"}).status == 303
        assert sls.projects["nat-logs"]["made-here"].index is not None
        assert "can be enabled all the same" in page_of(visitor, "/g/ngw-1/log")


def test_without_a_key_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATCORE_ACCESS_KEY_ID", "NATCORE_ACCESS_KEY_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with asking(tmp_path, REGION) as visitor:
        for path in ("/g/ngw-1/log", ENABLE):
            shown = page_of(visitor, path)
            assert "NATCORE_ACCESS_KEY_ID and NATCORE_ACCESS_KEY_SECRET are not in the environment" in shown
        assert "Enable Session Log</a>" not in page_of(visitor, "/g/ngw-1/log")


def test_without_a_region_the_page_says_so(tmp_path: Path, key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATCORE_SLS_ENDPOINT", raising=False)
    with asking(tmp_path) as visitor:
        assert "[gateway] has no region" in page_of(visitor, ENABLE)


def test_it_goes_to_the_region_of_the_gateway(tmp_path: Path, key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks cannot say where rows and key go."""
    monkeypatch.delenv("NATCORE_SLS_ENDPOINT", raising=False)
    made: list[dict[str, Any]] = []
    real = configuration_file.new_log

    def noted(source: Path, raw: dict[str, Any]) -> Any:
        made.append(raw)
        return real(source, raw)

    monkeypatch.setattr(configuration_file, "new_log", noted)
    with asking(tmp_path, REGION) as visitor:
        page_of(visitor, "/g/ngw-1/log")
        assert {raw["endpoint"] for raw in made} == {"https://cn-hangzhou.log.aliyuncs.com"}
        with Client(tmp_path / "ngw-1.sock") as client:
            with pytest.raises(ControlError, match="project and logstore must be given"):
                client.ask("log-start", name="nat")
            with pytest.raises(ControlError, match="unknown argument 'endpoint'"):
                client.ask("log-start", name="nat", project="p", logstore="l", endpoint="http://127.0.0.1:1")
