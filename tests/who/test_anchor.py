"""An anchor that is kept elsewhere tells of every folder and every number; its HMAC, that it is as it was written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import ConfigurationError
from natcore.sessionlog.file_metadata import missing_numbers
from natcore.sinks import Batch, ParquetSink
from natcore.who.anchor import read_anchor, read_key
from natcore.who.verify import verify
from support.log_fakes import make_records

KEY = b"a key of sixteen bytes or more"


def write(folder: Path, first: int, files: int, run: str = "run1", **more: object) -> None:
    """One file a batch of one row."""
    sink = ParquetSink(folder, batch_rows=1, **more)  # type: ignore[arg-type]
    sink.open()
    for number in range(first, first + files):
        records = make_records(1, number)
        records["start_time"] += number * 3_600_000_000
        records["end_time"] += number * 3_600_000_000
        sink.deliver(Batch("ngw-1", "vpc-1", run, records))
    sink.close()


def test_an_anchor_holds_while_the_log_grows_and_retention_removes(tmp_path: Path) -> None:
    log, anchor = tmp_path / "log", tmp_path / "anchor"
    write(log / "a", 0, 4)
    write(log / "b", 0, 3, "run2")
    verify(log).state.write(anchor, KEY)
    write(log / "a", 4, 3)
    write(log / "b", 3, 1, "run2", keep_bytes=1)
    result = verify(log, read_anchor(anchor, KEY))
    assert result.ok and result.removed == 3


def test_a_folder_that_is_gone_is_found_though_the_others_are_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", 0, 4)
    write(tmp_path / "b", 0, 3, "run2")
    state = verify(tmp_path).state
    shutil.rmtree(tmp_path / "a")
    assert verify(tmp_path).ok
    assert [(each.kind, each.file) for each in verify(tmp_path, state).findings] == [("missing", "a")]


def test_a_log_that_was_written_anew_with_fewer_rows_is_found(tmp_path: Path) -> None:
    """The forger writes a whole chain with its seal; the numbers are not those of the anchor."""
    log = tmp_path / "log"
    write(log, 0, 5)
    state = verify(log).state
    shutil.rmtree(log)
    write(log, 0, 2)
    write(log, 3, 2)
    assert verify(log).ok
    texts = [each.text for each in verify(log, state).findings]
    assert len(texts) == 2 and "rows 2 to 2 of run run1 of ngw-1 were there, by the anchor" in texts


def test_an_anchor_that_was_changed_or_has_another_key_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "log", 0, 2)
    anchor = tmp_path / "anchor"
    verify(tmp_path / "log").state.write(anchor, KEY)
    assert read_anchor(anchor) == read_anchor(anchor, KEY) == verify(tmp_path / "log").state
    written = anchor.read_bytes()
    for data in (written.replace(b"run1", b"run2"), written.split(b"\n")[0] + b"\n", written.replace(b"hmac", b"hmax")):
        anchor.write_bytes(data)
        with pytest.raises(ConfigurationError, match="HMAC"):
            read_anchor(anchor, KEY)
    anchor.write_bytes(written)
    with pytest.raises(ConfigurationError, match="HMAC") as caught:
        read_anchor(anchor, KEY + b"!")
    assert KEY.decode() not in str(caught.value)
    anchor.write_bytes(b"no anchor")
    with pytest.raises(ConfigurationError, match="must be a SHA-256, or a file"):
        read_anchor(anchor)


def test_the_key_is_in_a_file_or_in_the_environment_and_in_no_message(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY + b"\n")
    assert read_key(path) == read_key(None, {"NATCORE_ANCHOR_KEY": KEY.decode()}) == KEY
    assert read_key(None, {}) is None
    path.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="5 bytes") as caught:
        read_key(path)
    assert "short" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="must be a file with a key"):
        read_key(tmp_path / "none")


NUMBERS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)).map(lambda pair: (pair[0], pair[0] + pair[1])))


@given(NUMBERS, NUMBERS)
def test_missing_numbers_are_those_that_were_there_and_are_not(before: list, now: list) -> None:
    def spread(ranges: object) -> set[int]:
        return {number for first, last in ranges for number in range(first, last + 1)}  # type: ignore[attr-defined]

    assert spread(missing_numbers(tuple(before), tuple(now))) == spread(before) - spread(now)
