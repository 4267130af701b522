"""The page who asks whatever the command line asks, and answers in its words: files, a spool, ClickHouse, a Logstore."""

from __future__ import annotations

import html
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from natcore.console.who import Who
from natcore.sinks import ClickHouseSink, SlsSink
from natcore.testing import SlsServer
from natcore.who.question_log import check
from support.command_line import call
from support.console import Visitor, asking
from support.lives import ANN, BOB, Log, at

ENDPOINT, REMOTE = "203.0.113.1:4000", "198.51.100.7:443"


def rows(folder: Path) -> Log:
    log = Log(folder).tick(0)
    log.session(7, ANN, 100, [(100, 400)], 400).session(8, BOB, 401, [(401, 500)], 500)
    return log.tick(9000)


def iso(seconds: float) -> str:
    return at(seconds).isoformat()


def page_of(visitor: Visitor, **query: str) -> str:
    return html.unescape(visitor.get(f"/g/ngw-1/who?{urlencode(query)}").text)


# Each question as the form has it, and as the command line has it.
QUESTIONS: list[tuple[dict[str, str], list[str], int]] = [
    ({"endpoint": ENDPOINT, "protocol": "tcp", "when": "then", "at": iso(200)},
     [ENDPOINT, "--protocol", "tcp", "--at", iso(200)], 0),
    ({"endpoint": ENDPOINT, "protocol": "tcp", "when": "then", "at": iso(400.5), "tolerance": "3"},
     [ENDPOINT, "--protocol", "tcp", "--at", iso(400.5), "--tolerance", "3"], 3),
    ({"endpoint": ENDPOINT, "protocol": "tcp", "when": "span", "from": iso(120), "until": iso(300), "at": "x"},
     [ENDPOINT, "--protocol", "tcp", "--from", iso(120), "--until", iso(300)], 0),
    ({"endpoint": "203.0.113.1", "protocol": "", "remote": REMOTE, "when": "then", "at": iso(200)},
     ["203.0.113.1", "--remote", REMOTE, "--at", iso(200)], 0),
    ({"endpoint": "203.0.113.1", "protocol": "tcp", "remote": "198.51.100.7", "when": "span", "from": iso(120),
      "until": iso(450)},
     ["203.0.113.1", "--protocol", "tcp", "--remote", "198.51.100.7", "--from", iso(120), "--until", iso(450)], 3),
]  # fmt: skip


def check_answers(visitor: Visitor, *where: object) -> None:
    """Each question has the command line's answer."""
    for form, options, code in QUESTIONS:
        told, page = call("who", *options, *where, exit_code=code), page_of(visitor, **form)
        assert told.strip() in page and '<figure class="timeline">' in page, form


def test_files_that_an_option_names_are_asked(tmp_path: Path) -> None:
    rows(tmp_path / "log").write()
    with asking(tmp_path, who=Who([str(tmp_path / "log")])) as visitor:
        check_answers(visitor, "--log", tmp_path / "log")
        assert "candidates are listed" in page_of(visitor)


def test_clickhouse_is_asked_by_its_address(tmp_path: Path) -> None:
    pytest.importorskip("chdb", reason="needs chdb (PyPI)")
    from support.chdb_server import ChdbServer

    with ChdbServer() as server:
        sink = ClickHouseSink(server.url, table="session_log", database="nat")
        sink.open()
        sink.deliver(rows(tmp_path / "unused").batch())
        url = f"{server.url}/nat/session_log"
        with asking(tmp_path, who=Who([url])) as visitor:
            check_answers(visitor, "--log", url)


def test_the_logstore_of_the_gateway_s_file_is_asked_with_its_key(tmp_path: Path) -> None:
    for name in ("id", "secret"):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o600)
    with SlsServer() as server:
        where: dict[str, Any] = {"region": "cn-hangzhou", "access_key_id": "id", "access_key_secret": "secret"}
        sink = SlsSink(server.endpoint, "project", "store", rows="all", **where)
        sink.open()
        sink.deliver(rows(tmp_path / "unused").batch())
        file = (
            f'[[log]]\nname = "cloud"\nsink = "sls"\nrows = "all"\nendpoint = "{server.endpoint}"\nproject = "project"\n'
            f'logstore = "store"\nregion = "cn-hangzhou"\naccess_key_id_file = "{tmp_path}/id"\n'
            f'access_key_secret_file = "{tmp_path}/secret"\n'
        )
        with asking(tmp_path, file) as visitor:
            check_answers(visitor, "--config", tmp_path / "gateway.toml")
            assert "disabled" not in page_of(visitor)


def test_rows_that_wait_in_the_spool_of_the_file_s_log_are_asked_too(tmp_path: Path) -> None:
    file = f'[[log]]\nname = "audit"\nsink = "parquet"\nfolder = "{tmp_path / "log"}"\nspool = "{tmp_path / "spool"}"\n'
    rows(tmp_path / "log").write()
    (tmp_path / "spool").mkdir()
    with asking(tmp_path, file) as visitor:
        check_answers(visitor, "--config", tmp_path / "gateway.toml")


def test_of_several_logs_the_form_says_which(tmp_path: Path) -> None:
    rows(tmp_path / "log").write()
    Log(tmp_path / "empty").tick(0).tick(9000).write()
    logs = [str(tmp_path / "empty"), str(tmp_path / "log")]
    asked = QUESTIONS[0][0]
    with asking(tmp_path, who=Who(logs)) as visitor:
        assert "unused:" in page_of(visitor, **asked)  # the first one, unless told
        assert "exact: 10.0.0.5" in page_of(visitor, **asked, log=logs[1])
        assert "exact: 10.0.0.5" in page_of(visitor, **asked, log=logs[1])  # by what it remembers
        assert "the session log must be" in page_of(visitor, **asked, log="/etc")


def test_a_file_that_cannot_be_read_is_told_and_the_rest_is_asked(tmp_path: Path) -> None:
    rows(tmp_path / "log").write()
    with asking(tmp_path, who=Who([str(tmp_path / "log")])) as visitor:
        (tmp_path / "gateway.toml").write_text("[")
        page = page_of(visitor, **QUESTIONS[0][0])
        assert "are not among those that can be asked" in page and "not TOML" in page and "exact: 10.0.0.5" in page


def test_without_a_log_the_page_says_what_is_missing(tmp_path: Path) -> None:
    with asking(tmp_path) as visitor:
        page = page_of(visitor, **QUESTIONS[0][0])
        assert "start the console with --log" in page and page.count(" disabled>") == 2


def test_who_asks_is_recorded_before_the_answer_is_given(tmp_path: Path) -> None:
    rows(tmp_path / "log").write()
    record = tmp_path / "asked.jsonl"
    with ExitStack() as stack:
        visitor = stack.enter_context(asking(tmp_path, who=Who([str(tmp_path / "log")], record=record)))
        page_of(visitor)
        page_of(visitor, endpoint=ENDPOINT, when="now", protocol="tcp")
        assert not record.exists()  # no log was asked
        page_of(visitor, **QUESTIONS[0][0])
        (line,) = [json.loads(line) for line in record.read_text().splitlines()]
        assert (line["status"], line["subscribers"], line["question"]["port"]) == ("exact", ["10.0.0.5"], 4000)
        check(record)
        record.chmod(0o400)
        record.unlink()
        record.mkdir()  # it cannot be written: there is no answer
        page = page_of(visitor, **QUESTIONS[0][0])
        assert "exact" not in page and "asked.jsonl" in page
