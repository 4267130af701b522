"""The commands that ask the session log, as an administrator meets them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from natcore.sinks import ParquetSink
from support.command_line import call, call_json
from support.lives import ANN, BOB, Log, at

WHO = ("who", "203.0.113.1:4000", "--protocol", "tcp", "--at")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = Log(tmp_path / "log").tick(0)
    log.session(7, ANN, 100, [(100, 400)], 400).session(8, BOB, 401, [(401, 500)], 500)
    return log.tick(9000).write()


def iso(seconds: float) -> str:
    return at(seconds).isoformat()


def test_who_tells_the_subscriber_and_the_session(folder: Path) -> None:
    text = call(*WHO, iso(200), "--log", folder)
    assert text.startswith("exact: 10.0.0.5 had it then\n(203.0.113.1:4000 TCP at 2023-11-14T22:16:40Z within 2 s)")
    assert "10.0.0.5:555 as 172.16.10.13:4000 (EIP 203.0.113.1) to 198.51.100.7:443" in text
    assert "window 2023-11-14T22:15:00Z to 2023-11-14T22:20:00Z" in text


def test_who_s_exit_status_says_which_answer_it_is(folder: Path) -> None:
    assert call(*WHO, iso(400.5), "--log", folder, exit_code=3).startswith("ambiguous: 2 subscribers")
    assert call(*WHO, iso(9900), "--log", folder, exit_code=4).startswith("gap: that is after the log's last row")
    assert call(*WHO, iso(3000), "--log", folder, exit_code=5).startswith("unused:")


def test_who_as_json(folder: Path) -> None:
    answer = call_json(*WHO, "2023-11-14T22:16:40Z", "--log", folder, "--remote", "198.51.100.7:443")
    assert (answer["status"], answer["subscriber"], answer["port"]) == ("exact", "10.0.0.5", 4000)
    assert answer["matches"][0]["window"] == ["2023-11-14T22:15:00Z", "2023-11-14T22:20:00Z"]
    assert call_json(*WHO, iso(200), "--log", folder, "--remote", "198.51.100.8", exit_code=5)["status"] == "unused"


def test_who_finds_the_log_by_the_gateway_s_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"[[log]]\nsink = 'parquet'\nfolder = '{folder}'\nspool = '{tmp_path / 'spool'}'\n")
    assert call(*WHO, iso(200), "--config", file).startswith("exact")
    file.write_text("[gateway]\ninstance = 'x'\n")
    assert "has no [[log]]" in call(*WHO, iso(200), "--config", file, exit_code=64)


def test_who_refuses_what_it_cannot_understand(folder: Path) -> None:
    for change, text in (
        (("who", "203.0.113.1", "--protocol", "tcp", "--at", iso(0)), "a colon and a port"),
        (("who", "203.0.113.1:x", "--protocol", "tcp", "--at", iso(0)), "a colon and a port"),
        (("who", "203.0.113.1:1", "--protocol", "tpc", "--at", iso(0)), "got 'tpc'"),
        ((*WHO, "2023-11-14T22:16:40"), "with its zone"),
        ((*WHO, "yesterday"), "with its zone"),
    ):
        assert text in call(*change, "--log", folder, exit_code=64)
    assert "no --log, --spool or --config" in call(*WHO, iso(0), exit_code=64)
    assert "error" in call_json(*WHO, iso(0), exit_code=64)


def test_who_without_a_port_names_candidates(folder: Path) -> None:
    asked = ("who", "203.0.113.1", "--log", folder, "--remote", "198.51.100.7:443")
    assert "(203.0.113.1 to 198.51.100.7:443 at 2023-" in call(*asked, "--at", iso(200))
    text = call(*asked, "--from", iso(200), "--until", iso(450), exit_code=3)
    assert text.startswith("ambiguous: 2 subscribers") and "from 2023-11-14T22:16:40Z to 2023-11-14T22:20:50Z" in text
    assert "or --from and --until together" in call(*asked, "--from", iso(200), exit_code=64)


def test_what_and_talked_list_sessions(folder: Path) -> None:
    span = ("--from", iso(10), "--until", iso(1000), "--log", folder)
    text = call("what", "10.0.0.5", *span)
    assert text.startswith("complete: 1 session, and no row is missing\n(inside 10.0.0.5, from 2023-")
    assert "10.0.0.5:555 as 172.16.10.13:4000 (EIP 203.0.113.1) to 198.51.100.7:443" in text
    assert call("what", "10.0.0.77", *span, exit_code=5).startswith("unused: ")
    assert call("talked", "198.51.100.7:443", *span).count(" as 172.16.10.13:4000") == 2
    late = call("talked", "198.51.100.7", "--at", iso(99_000), "--log", folder, exit_code=4)
    assert late.startswith("incomplete: 0 sessions; there may be more: that is after the log's last row")
    found = call_json("talked", "198.51.100.7", *span)
    assert found["status"] == "complete" and found["remote"] == "198.51.100.7" and len(found["matches"]) == 2
    assert "--at is missing" in call("what", "10.0.0.5", "--log", folder, exit_code=64)


def test_many_questions_and_who_asked_them(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, evidence, asked = tmp_path / "asked.csv", tmp_path / "evidence.json", tmp_path / "kept" / "asked.jsonl"
    file.write_text(f"address,port,protocol,at\n203.0.113.1,4000,tcp,{iso(200)}\n203.0.113.1,4000,tcp,{iso(3000)}\n")
    monkeypatch.setenv("NATCORE_QUESTION_LOG", str(asked))
    text = call("who", "--questions", file, "--evidence", evidence, "--log", folder)
    assert text == f"2 questions: 1 exact, 1 unused: {evidence}\n"
    told = json.loads(evidence.read_text())
    assert [each["answer"]["status"] for each in told["answers"]] == ["exact", "unused"]
    assert "exact" in call(*WHO, iso(200), "--log", folder, "--evidence", evidence)
    lines = [json.loads(line) for line in asked.read_text().splitlines()]
    assert [line["subscribers"] for line in lines] == [["10.0.0.5"], [], ["10.0.0.5"]] and lines[0]["user"]
    monkeypatch.setenv("NATCORE_QUESTION_LOG", str(folder))  # it cannot be written: no answer
    assert "10.0.0.5" not in call(*WHO, iso(200), "--log", folder, exit_code=64)
    assert "--questions needs --evidence" in call("who", "--questions", file, "--log", folder, exit_code=64)


def test_top_as_a_table_and_as_json(folder: Path) -> None:
    assert "10.0.0.5" in call("log", "top", folder, "--by", "ports")
    first, *_ = call_json("log", "top", folder, "--from", iso(50), "--until", iso(450))
    assert (first["pri_ip"], first["bytes"], first["sessions"]) == ("10.0.0.5", 100, 1)
    assert "got 'x'" in call("log", "top", folder, "--by", "x", exit_code=64)


def test_usage_as_a_picture_in_the_terminal_and_as_json(folder: Path) -> None:
    text = call("log", "usage", folder, "--step", 100)
    assert "172.16.10.13" in text and "█" in text and "a full block is" in text
    (found,) = call_json("log", "usage", folder, "--step", 100, "--from", iso(0), "--until", iso(500))
    assert found["peaks"][:5] == [1, 2, 2, 2, 2] and found["start"] == "2023-11-14T22:13:20Z"
    assert "plot must end in" in call("log", "usage", folder, "--plot", "x.gif", exit_code=64)


def test_usage_draws_a_picture(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra natcore[plot]")
    assert "drawn:" in call("log", "usage", folder, "--plot", tmp_path / "usage.svg")
    assert (tmp_path / "usage.svg").stat().st_size > 1000


def test_export(folder: Path, tmp_path: Path) -> None:
    assert call("log", "export", folder, tmp_path / "rows.csv") == f"8 rows: {tmp_path / 'rows.csv'}\n"
    assert call_json("log", "export", folder, tmp_path / "rows.jsonl", "--until", iso(450))["rows"] == 5


def test_a_logstore_with_all_fields_is_found_by_the_gateway_s_file(tmp_path: Path) -> None:
    pytest.importorskip("aliyun.log", reason="the extra natcore[sls]")
    from natcore.sinks import SlsSink
    from natcore.testing import SlsServer

    log = Log(tmp_path / "unused").tick(0).session(7, ANN, 100, [(100, 400)], 400).tick(9000)
    for name in ("id", "secret"):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o600)
    with SlsServer() as server:
        sink = SlsSink(
            server.endpoint,
            "project",
            "store",
            region="cn-hangzhou",
            access_key_id="id",
            access_key_secret="secret",
            rows="all",
        )
        sink.open()
        sink.deliver(log.batch())
        file = tmp_path / "gateway.toml"
        file.write_text(
            f'[[log]]\nsink = "sls"\nrows = "all"\nendpoint = "{server.endpoint}"\nproject = "project"\nlogstore = "store"\n'
            f'region = "cn-hangzhou"\naccess_key_id_file = "{tmp_path}/id"\naccess_key_secret_file = "{tmp_path}/secret"\n'
        )
        assert call(*WHO, iso(200), "--config", file).startswith("exact: 10.0.0.5")
        file.write_text(file.read_text().replace('rows = "all"', ""))
        assert "has no [[log]]" in call(*WHO, iso(200), "--config", file, exit_code=64)


def test_labels_name_the_account(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "accounts.csv").write_text("prefix,label\n10.0.0.5,account 4711\n")
    asked = (*WHO, iso(200), "--log", folder, "--labels", tmp_path / "accounts.csv")
    assert "\n    then account 4711\n" in call(*asked)
    assert call_json(*asked)["matches"][0]["labels"] == ["account 4711"]
    assert "labels must be a readable file" in call(*asked[:-1], f"kea:{tmp_path / 'none'}", exit_code=64)


def test_a_label_that_a_row_has_is_shown_as_recorded(tmp_path: Path) -> None:
    log = Log(tmp_path / "log").tick(0).session(7, ANN, 100, [(100, 400)], 400).tick(9000)
    batch = log.batch()
    sink = ParquetSink(tmp_path / "log")
    sink.deliver(replace(batch, labels=("account 4711",) * len(batch)))
    sink.close()
    asked = (*WHO, iso(200), "--log", tmp_path / "log")
    assert "\n    recorded as account 4711\n" in call(*asked)
    (match,) = call_json(*asked)["matches"]
    assert match["recorded_labels"] == ["account 4711"] and match["labels"] == []
    (tmp_path / "accounts.csv").write_text("prefix,label\n10.0.0.5,account 4711\n")
    text = call(*asked, "--labels", tmp_path / "accounts.csv")
    assert "\n    then account 4711\n" in text and "recorded as" not in text


def test_a_timeline_in_the_terminal_or_a_file(folder: Path, tmp_path: Path) -> None:
    asked = ("what", "10.0.0.5", "--from", iso(10), "--until", iso(1000), "--log", folder, "--timeline")
    assert "█" in call(*asked, "-") and "▲" in call(*WHO, iso(200), "--log", folder, "--timeline", "-")
    assert "plot must end in" in call(*asked, tmp_path / "x.gif", exit_code=64)
    assert "█" not in call(*asked[:-1], "--json")


def test_compact(folder: Path) -> None:
    Log(folder, "run2").tick(9100).write()
    assert call("log", "compact", folder) == f"0 files are 0 now, of 0 rows: {folder}\n"  # one file a run and hour
    assert call_json("log", "compact", folder) == {"ok": True, "parts": 0, "files": 0, "rows": 0}
    assert "a ParquetSink's folder" in call("log", "compact", folder / "none", exit_code=64)


def test_verify(folder: Path) -> None:
    assert "1 files, 8 rows, 0 files removed by retention: as they were written\n" in call("log", "verify", folder)
    (path,) = folder.glob("*.parquet")
    path.rename(folder / "x.parquet")
    assert "renamed: x.parquet: it holds rows from 0 of run run1" in call("log", "verify", folder, exit_code=1)
    kinds = {finding["kind"] for finding in call_json("log", "verify", folder, exit_code=1)["findings"]}
    assert "renamed" in kinds


def test_a_log_in_a_bucket_is_uploaded_verified_and_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto", reason="needs moto[server] (PyPI)")
    from support.object_storage import KEY, SECRET, ObjectStorage

    for name, value in {"ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET, "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    storage = ObjectStorage()
    try:
        url = storage.bucket().top
        monkeypatch.setenv("AWS_ENDPOINT_URL", storage.endpoint)
        text = call("log", "upload", folder, url)
        assert text.startswith("1 files, ") and text.endswith(" bytes copied; 0 were there, 0 are for later\n")
        again = call_json("log", "upload", folder, url)
        assert (again["ok"], again["files"], again["there"], again["later"]) == (True, 0, 1, 0)
        assert call("log", "verify", url) == call("log", "verify", folder)
        assert call(*WHO, iso(200), "--log", url) == call(*WHO, iso(200), "--log", folder)
        span = ("--from", iso(0), "--until", iso(9000))
        for command in (("what", "10.0.0.5", *span, "--log"), ("talked", "198.51.100.7", *span, "--log"), ("log", "top"),
                        ("log", "usage")):  # fmt: skip
            assert call(*command, url) == call(*command, folder)
        assert call("log", "export", url, tmp_path / "rows.csv").startswith("8 rows: ")
        (path,) = folder.glob("*.parquet")
        path.write_bytes(b"")
        assert "is not copied" in call("log", "upload", folder, url, exit_code=1)
    finally:
        storage.close()
    text = call(*WHO, iso(200), "--log", url, exit_code=70)
    assert f"{url}: the bucket does not answer" in text and SECRET not in text
    assert "s3://BUCKET/PREFIX" in call("log", "verify", f"s3://{KEY}:{SECRET}@bucket/log", exit_code=64)


def test_who_is_computed_where_ports_are_deterministic(folder: Path, tmp_path: Path) -> None:
    """Without a log; with one, or with a time, the log is asked."""
    file = tmp_path / "gateway.toml"
    file.write_text(
        "[policy]\nports = 'deterministic'\n[[snat]]\nsource = '10.0.0.0/25'\npool = ['203.0.113.1', '203.0.113.2']\n"
        f"[[log]]\nsink = 'parquet'\nfolder = '{folder}'\n"
    )
    assert "computed: " in call("who", "203.0.113.1:4000", "--config", file)
    found = call_json("who", "203.0.113.1:4000", "--config", file)
    assert found == {"status": "computed", "subscriber": "10.0.0.5"}  # 4000 is in the sixth block of 512 from 1024 on
    assert call("who", "203.0.113.9:4000", "--config", file, exit_code=5).startswith("unused: by ")
    assert call(*WHO, iso(200), "--config", file).startswith("exact: 10.0.0.5")
    assert "--at is missing" in call("who", "203.0.113.1:4000", "--log", folder, "--protocol", "tcp", exit_code=64)
    assert "--protocol is missing" in call("who", "203.0.113.1:4000", "--log", folder, "--at", iso(0), exit_code=64)
    file.write_text("[gateway]\ninstance = 'x'\n")
    assert "--at is missing" in call("who", "203.0.113.1:4000", "--config", file, exit_code=64)


def test_verify_writes_an_anchor_and_compares_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATCORE_ANCHOR_KEY", "a key of sixteen bytes or more")
    folder, anchor = tmp_path / "log", tmp_path / "anchor.json"
    Log(folder).tick(0).tick(10).write()
    assert "the anchor is written" in call("log", "verify", folder, "--write-anchor", anchor)
    assert "as they were written" in call("log", "verify", folder, "--anchor", anchor)
    shutil.rmtree(folder)
    Log(folder, run="forged").tick(0).write()
    other = tmp_path / "other.json"
    text = call("log", "verify", folder, "--anchor", anchor, "--write-anchor", other, exit_code=1)
    assert "by the anchor" in text and "no anchor is written" in text and not other.exists()
    for option, value in (("--timestamp-url", "http://127.0.0.1/"), ("--timestamp-ca", anchor)):
        assert f"{option} needs " in call("log", "verify", folder, option, value, exit_code=64)
    anchor.write_bytes(anchor.read_bytes().replace(b"run1", b"run2"))
    assert "its HMAC is not one of this key" in call("log", "verify", folder, "--anchor", anchor, exit_code=64)
