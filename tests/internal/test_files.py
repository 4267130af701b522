"""Files that natcore writes or trusts: planted links and other owners lead nowhere; what is not ours is set aside."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natcore import RECORD, ConfigurationError, UntrustedFileError
from natcore.capture.pcap import Packet, read, write
from natcore.cli.report import read_sessions
from natcore.internal.files import make_private, open_private, read_private, replaced, set_aside
from natcore.sessionlog.dead_letter import DeadLetters
from natcore.sessionlog.heartbeat import Beat
from natcore.sessionlog.ledger import Ledger
from natcore.sessionlog.spool.format import Identity, encode_frame, encode_segment_header
from natcore.sessionlog.spool.reading import waiting_rows
from natcore.sessionlog.spool.spool import Spool
from natcore.sinks import Batch, JsonLinesSink, ParquetSink
from natcore.who.source import PartsMoved
from natcore.who.store import Store
from support.log_fakes import make_records

ANOTHER_USER = 12_345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user's: root alone can")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of root's that an attacker wants written to."""
    path = tmp_path / "victim"
    path.write_text("root's")
    return path


def a_batch(count: int = 3) -> Batch:
    return Batch("i", "v", "run1", make_records(count))


def spool_of(folder: Path, ledger: Ledger | None = None) -> Spool:
    return Spool(folder, Identity("i", "v", "run2"), bound_bytes=1 << 20, ledger=ledger or Ledger())


# ---- links ---------------------------------------------------------------------------------------------------------------


def test_a_planted_draft_link_is_not_written_through(tmp_path: Path, victim: Path) -> None:
    for name in (".x.csv.draft", "..x.csv.export.draft", ".x.csv.export"):
        (tmp_path / name).symlink_to(victim)
    with replaced(tmp_path / "x.csv", private=False) as file:
        file.write(b"rows")
    assert victim.read_text() == "root's" and (tmp_path / "x.csv").read_bytes() == b"rows"
    assert mode_of(tmp_path / "x.csv") == 0o600


def test_a_link_in_the_place_of_an_export_is_replaced(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "x.csv").symlink_to(victim)
    with replaced(tmp_path / "x.csv", private=False) as file:
        file.write(b"rows")
    assert victim.read_text() == "root's" and not (tmp_path / "x.csv").is_symlink()


def test_a_link_in_the_place_of_a_capture_is_replaced(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "x.pcap").symlink_to(victim)
    assert write(tmp_path / "x.pcap", [Packet(7, b"frame")]) == 1
    assert victim.read_text() == "root's" and [each.frame for each in read(tmp_path / "x.pcap")] == [b"frame"]


def test_a_parquet_file_that_became_a_link_is_not_read(tmp_path: Path) -> None:
    """DuckDB would follow it: after its SHA-256 was looked at, and at the next question."""
    folder, elsewhere = tmp_path / "log", tmp_path / "elsewhere.parquet"
    sink = ParquetSink(folder)
    sink.open()
    sink.deliver(a_batch())
    sink.close()
    store = Store(folder)
    files = store.parts()
    assert len(store.rows("filename, number", "true", {}, files)) == len(read_sessions(folder)) == 3
    path = Path(files[0].name)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(PartsMoved, match="ask again"):
        store.rows("filename, number", "true", {}, files)
    assert store.parts() == [] and store.damaged == [str(path)]
    with pytest.raises(UntrustedFileError, match="link"):
        read_sessions(folder)


def test_an_export_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replaced(tmp_path / "x.csv", private=False):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mark", "lock"])
def test_a_spool_s_files_are_not_links(tmp_path: Path, victim: Path, name: str) -> None:
    folder = tmp_path / "spool"
    make_private(folder)
    (folder / name).symlink_to(victim)
    with pytest.raises(UntrustedFileError, match=f"{name}.*link"):
        spool_of(folder)
    assert victim.read_text() == "root's"


def test_a_dead_letter_is_not_written_through_a_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "dead-letter.jsonl").symlink_to(victim)
    with pytest.raises(UntrustedFileError, match="link"):
        DeadLetters(tmp_path, 1 << 20).add(a_batch(), "code", "words")
    assert victim.read_text() == "root's"


@pytest.mark.parametrize("sink", [JsonLinesSink, ParquetSink])
def test_a_log_s_files_are_not_links(tmp_path: Path, victim: Path, sink: Any) -> None:
    """The names of the files can be foretold: by the time, the run and the number."""
    folder = tmp_path / "log"
    made = sink(folder)
    made.open()
    made.deliver(a_batch())
    made.close()
    for each in list(folder.iterdir()):  # a sidecar and the owner's lock among them
        each.unlink()
        each.symlink_to(victim)
    again = sink(folder)
    try:
        again.open()
        again.deliver(a_batch())
        again.close()
    except UntrustedFileError:
        pass
    assert victim.read_text() == "root's"


@needs_root
def test_a_link_of_another_user_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "way").symlink_to(tmp_path / "real")
    make_private(tmp_path / "way" / "spool")  # our own link may be there
    os.lchown(tmp_path / "way", ANOTHER_USER, ANOTHER_USER)
    with pytest.raises(UntrustedFileError, match="'way' on the way belongs to user 12345"):
        make_private(tmp_path / "way" / "spool")
    with pytest.raises(UntrustedFileError), replaced(tmp_path / "way" / "x.csv", private=False):
        pass


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        make_private(tmp_path / "a" / "spool")


def test_folders_and_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b")
        os.close(open_private(tmp_path / "a" / "b" / "file", os.O_WRONLY))
    finally:
        os.umask(before)
    assert [mode_of(tmp_path / name) for name in ("a", "a/b", "a/b/file")] == [0o700, 0o700, 0o600]


# ---- owners and modes -------------------------------------------------------------------------------------------------------


@needs_root
def test_a_file_of_another_user_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "dead-letter.jsonl"
    path.write_text("")
    os.chown(path, ANOTHER_USER, ANOTHER_USER)
    with pytest.raises(UntrustedFileError, match="user 12345's"):
        open_private(path, os.O_WRONLY | os.O_APPEND)


@pytest.mark.parametrize("mode, wrong", [(0o666, "others may write.*0666"), (0o602, "0602")])
def test_a_file_that_others_may_write_to_is_not_ours(tmp_path: Path, mode: int, wrong: str) -> None:
    path = tmp_path / "removed.jsonl"
    path.write_text("x")
    path.chmod(mode)
    for attempt in (lambda: open_private(path, os.O_RDWR | os.O_TRUNC), lambda: read_private(path)):
        with pytest.raises(UntrustedFileError, match=wrong):
            attempt()
    assert path.read_text() == "x"


def test_a_file_with_another_name_elsewhere_is_not_ours(tmp_path: Path, victim: Path) -> None:
    os.link(victim, tmp_path / "file")
    with pytest.raises(UntrustedFileError, match="2 names"):
        open_private(tmp_path / "file", os.O_WRONLY | os.O_TRUNC)
    assert victim.read_text() == "root's"


def test_a_fifo_does_not_hold_anybody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mark", 0o600)
    with pytest.raises(UntrustedFileError, match="not a regular file"):
        open_private(tmp_path / "mark", os.O_RDWR)


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o1777])
def test_a_folder_that_others_may_write_to_is_no_spool(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UntrustedFileError, match=f"others may write to it .mode {mode:04o}"):
        spool_of(folder)


@needs_root
def test_a_folder_of_another_user_is_no_log(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir(mode=0o700)
    os.chown(folder, ANOTHER_USER, ANOTHER_USER)
    for sink in (JsonLinesSink(folder), ParquetSink(folder)):
        with pytest.raises(UntrustedFileError, match="user 12345's"):
            sink.open()


def test_retention_removes_files_of_its_own_folder_only(tmp_path: Path, victim: Path) -> None:
    folder = tmp_path / "log"
    make_private(folder)
    line = {
        "file": "../victim", "sha256": "", "instance": "i", "run": "r", "first_number": 0, "last_number": 0, "first_time": 0,
        "last_time": 0, "size_bytes": 0, "removed_at": 0.0, "reason": "keep_days",
    }  # fmt: skip
    (folder / "removed.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "removed.jsonl").chmod(0o600)
    ParquetSink(folder).open()
    assert victim.exists()


# ---- what is not ours, or a later version's ------------------------------------------------------------------------------


def segment(*frames: bytes, magic: bytes = b"NATCSPL1", **more: Any) -> bytes:
    text = json.dumps({"instance": "i", "vpc_id": "v", "run": "run1", **more}).encode()
    return struct.pack("<8sII", magic, len(text), zlib.crc32(text)) + text + b"".join(frames)


def other_frame(payload: bytes = b"five!") -> bytes:
    rest = struct.pack("<IIB3xIQ", len(payload), zlib.crc32(payload), 9, 7, 0)
    return b"NFRM" + struct.pack("<I", zlib.crc32(rest)) + rest + payload


def filled(tmp_path: Path, content: bytes, name: str = "0000000001.segment") -> Path:
    make_private(tmp_path / "spool")
    descriptor = open_private(tmp_path / "spool" / name, os.O_WRONLY)
    os.write(descriptor, content)
    os.close(descriptor)
    return tmp_path / "spool"


def rows_of(spool: Spool) -> int:
    rows = 0
    while (batch := spool.take(1000)) is not None:
        rows += len(batch)
        spool.acknowledge()
    return rows


@pytest.mark.parametrize(
    "name", ["notes.segment", "1.segment", "x0000000001.segment", "\u0661.segment", "-000000001.segment"]
)
def test_a_stray_segment_is_set_aside_and_counted(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = filled(tmp_path, segment(encode_frame(make_records(5))))
    (folder / name).write_bytes(b"not ours")
    assert sum(map(len, waiting_rows(folder))) == 5
    spool = spool_of(folder)
    assert (rows_of(spool), spool.set_aside) == (5, 1)
    spool.close()
    assert (folder / f"{name}.foreign").read_bytes() == b"not ours" and "set aside" in caplog.text
    again = spool_of(folder)
    assert again.set_aside == 0
    again.close()


def test_a_segment_that_is_a_link_or_a_folder_is_set_aside(tmp_path: Path, victim: Path) -> None:
    folder = filled(tmp_path, segment(encode_frame(make_records(5))))
    (folder / "0000000002.segment").symlink_to(victim)
    (folder / "0000000003.segment").mkdir()
    (folder / "0000000004.segment").write_bytes(segment(encode_frame(make_records(2))))
    (folder / "0000000004.segment").chmod(0o666)
    spool = spool_of(folder)
    assert (rows_of(spool), spool.set_aside) == (5, 3)
    spool.close()
    assert victim.read_text() == "root's"


def test_a_frame_of_an_unknown_type_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = filled(tmp_path, segment(encode_frame(make_records(5)), other_frame(), encode_frame(make_records(4, 5))))
    assert sum(map(len, waiting_rows(folder))) == 9
    ledger = Ledger()
    spool = spool_of(folder, ledger)
    assert rows_of(spool) == 9 and ledger.counters()["lost"] == 0
    assert "type 9" in caplog.text
    spool.close()


def test_a_key_more_in_a_header_is_passed_over(tmp_path: Path) -> None:
    folder = filled(tmp_path, segment(encode_frame(make_records(5)), region="r", more={"a": [1]}))
    assert sum(map(len, waiting_rows(folder))) == 5
    spool = spool_of(folder)
    assert rows_of(spool) == 5
    spool.close()


@pytest.mark.parametrize("header", [{"run": 5}, {"run": None}, {"instance": ["x"]}])
def test_a_header_that_is_no_header_is_damage(tmp_path: Path, header: dict[str, Any]) -> None:
    folder = filled(tmp_path, segment(encode_frame(make_records(5)), **header))
    assert sum(map(len, waiting_rows(folder))) == 0
    ledger = Ledger()
    spool = spool_of(folder, ledger)
    assert rows_of(spool) == 0 and ledger.counters()["lost_damaged"] == 5
    spool.close()
    assert list(folder.glob("*.damaged"))


def test_a_later_version_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    folder = filled(tmp_path, content := segment(encode_frame(make_records(5)), magic=b"NATCSPL2"))
    with pytest.raises(ConfigurationError, match=r"0000000001.segment.*must have version 1, got 2"):
        spool_of(folder)
    assert (folder / "0000000001.segment").read_bytes() == content


def test_a_later_version_s_run_is_refused_by_name(tmp_path: Path) -> None:
    folder = filled(tmp_path, segment(magic=b"NATCRUN3"), "run")
    spool = spool_of(folder)
    with pytest.raises(ConfigurationError, match=r"run: .*version 2, got 3"):
        spool.begin_run(Beat(0, 0, 0, 0))
    spool.close()


def test_any_file_in_a_spool_lets_the_log_start(tmp_path: Path) -> None:
    """Damage of every kind, by chance: the log starts, and each row is delivered, lost or set aside."""
    random = np.random.default_rng(5)
    whole = segment(encode_frame(make_records(20)), other_frame(), encode_frame(make_records(20, 20)))
    for turn in range(60):
        data = bytearray(whole)
        for _ in range(random.integers(1, 6)):
            at = int(random.integers(0, len(data)))
            if random.random() < 0.5:
                data[at] = int(random.integers(0, 256))
            else:
                del data[at : at + int(random.integers(1, 200))]
        here = tmp_path / str(turn)
        if data[:7] == b"NATCSPL" and data[7:8].isdigit() and data[7:8] > b"1":
            continue  # a later version
        folder = filled(here, bytes(data))
        descriptor = open_private(folder / "mark", os.O_WRONLY)
        os.write(descriptor, random.bytes(64))
        os.close(descriptor)
        ledger = Ledger()
        spool = spool_of(folder, ledger)
        rows_of(spool)
        spool.close()


def test_a_file_set_aside_overwrites_no_other(tmp_path: Path) -> None:
    for content in (b"1", b"2"):
        (tmp_path / "x.segment").write_bytes(content)
        set_aside(tmp_path / "x.segment", ".foreign")
    assert sorted(each.read_bytes() for each in tmp_path.glob("*.foreign")) == [b"1", b"2"]


def test_a_spool_s_layout_has_no_room_for_surprises() -> None:
    assert encode_segment_header(Identity("i", "v", "run1"))[:8] == b"NATCSPL1" and RECORD.itemsize == 96


def test_every_claim_of_the_security_page_has_its_test() -> None:
    root = Path(__file__).parents[1]
    page = (root.parent / "docs" / "security.md").read_text()
    named = re.findall(r"`(\w+/test_\w+\.py)?(?:::(test_\w+))?`", page)
    assert len(named) > 40
    file = ""
    for given, function in named:
        file = given or file
        assert (root / file).is_file(), file
        assert not function or f"def {function}(" in (root / file).read_text(), f"{file}::{function}"
