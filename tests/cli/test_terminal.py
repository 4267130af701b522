"""What others named, an instance or a file, reaches a terminal as text: no escape code, no markup, no secret."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import Error
from natcore.capture import pcap
from natcore.cli.command import say
from natcore.cli.main import _packets
from natcore.errors import DeliveryError
from natcore.internal.redaction import LONGEST, printable, redact, show
from natcore.sinks import Batch, ParquetSink
from support.command_line import call
from support.log_fakes import make_records

EVIL = "\x1b]0;owned\x07\x1b[31m[red]x[/]\x9b2J\u202e"


def harmless(text: str) -> bool:
    return all(each.isprintable() or each in "\n\t" for each in text)


def test_an_instance_s_name_is_text(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path / "log")
    sink.open()
    sink.deliver(Batch(EVIL, EVIL, "run1", make_records(3)))
    sink.close()
    told = call("log", "top", tmp_path / "log")
    assert harmless(told) and "[red]" in told.replace("\n", "")


@pytest.mark.parametrize(
    ("status", "command"),
    [
        (78, ["check"]),
        (78, ["explain"]),
        (64, ["log", "verify"]),
        (64, ["log", "top"]),
        (64, ["who", "203.0.113.1:1", "--protocol", "tcp", "--at", "2026-01-01T00:00:00Z", "--log"]),
    ],
)
def test_a_file_s_name_is_text(tmp_path: Path, status: int, command: list[str]) -> None:
    told = call(*command, tmp_path / f"[bold]{EVIL}", exit_code=status)
    assert harmless(told) and "[bold]" in told


def test_a_good_file_s_name_is_text(tmp_path: Path) -> None:
    file = tmp_path / f"[bold]{EVIL}.toml".replace("/", "")
    plane = "[plane]\ninside = 'lan0'\noutside = 'wan0'\n"
    file.write_text(plane + """[[log]]\nsink = "parquet"\nfolder = "[blue]\\u001bx"\n""")
    told = call("check", file)
    assert harmless(told) and "[bold]" in told and "[blue]" in told


def test_terminal_output_holds_no_control_sequences_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{EVIL}\nhttps://user:hunter2@host")
    told = capsys.readouterr().out
    assert harmless(told) and "hunter2" not in told and told.count("\n") == 2


def test_a_small_capture_makes_no_large_memory(tmp_path: Path) -> None:
    """16,000 packets of which there is nothing but a header, each claiming 262,144 bytes: 4.2 GB."""
    file = tmp_path / "small.pcap"
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)
    file.write_bytes(head + struct.pack("<IIII", 0, 0, 0, 262_144) * 1000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in _packets(None, file, 0.0)) == 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_capture_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(Error, match="regular file"):
            list(pcap.read(path))


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@host/x",
        "https://user:hunt@er/hunter2@host",
        "{'sasl.password': 'hunter2'}",
        '{"password": "hunter2"}',
        "access_key_secret='hunter2'",
        "access_key_secret=hunter2",
        "GET /?password=hunter2&x=1",
        "Authorization: Basic hunter2hunter2",
        "Bearer hunter2.x.y",
        "api-key: 'hunter2'",
        "kafka://a:hunter2@b refused",
        "SECURITY_TOKEN = hunter2",
        "secret=b'hunter2'",
    ],
)
def test_secrets_are_redacted(text: str) -> None:
    assert "hunter2" not in redact(text) and "***" in redact(text)
    assert "hunter2" not in str(Error(text)) + repr(Error(text)) + str(Error(text).args)
    error = DeliveryError("Code", text)
    assert "hunter2" not in str(error) + error.message + repr(error)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8123/x",
        "the password is missing",
        "lan0: no such interface",
        "folder must be a path",
        "10.0.0.5@wan",
        "a: 'b'",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text() | st.binary() | st.integers() | st.lists(st.text()) | st.dictionaries(st.text(), st.text()))
def test_a_value_in_a_message_is_one_short_printable_line(value: object) -> None:
    assert show(value).isprintable() and len(show(value)) <= 6 * LONGEST + 20
    assert show(value, "password") == "***"


@given(st.text())
def test_printable_text_stays_and_the_rest_is_escaped(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text
