"""A log in object storage answers as the folder does, says what is damaged there, and is an error where no answer comes."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("moto", reason="needs moto[server] (PyPI)")

from natcore import ConfigurationError, Error
from natcore.sessionlog import file_metadata
from natcore.sinks import ParquetSink, _parquet_compaction, _parquet_folder
from natcore.sinks._parquet_folder import Lock, compaction_lines, read_footer, roll_seconds_of
from natcore.sinks.compaction import compact
from natcore.who.bucket import Bucket
from natcore.who.evidence import ask_all
from natcore.who.files import Piece, Wanted
from natcore.who.places import source_at
from natcore.who.query import Store, what, who
from natcore.who.question import Question
from natcore.who.source import DamagedPart
from natcore.who.upload import upload
from natcore.who.usage import export, port_usage, top
from natcore.who.verify import verify
from support.lives import ANN, BOB, EPOCH, Log, at
from support.object_storage import KEY, SECRET, ObjectStorage

PUBLIC = "203.0.113.1"


@pytest.fixture(scope="module", params=["moto", "localbucket"])
def storage(request: pytest.FixtureRequest) -> Iterator[ObjectStorage]:
    pytest.importorskip(request.param, reason="PyPI")
    made = ObjectStorage(request.param)
    yield made
    made.close()


def write(folder: Path, hours: int = 3) -> Path:
    """A log with two files an hour, and a session in each."""
    log = Log(folder).tick(0)
    for half in range(2 * hours):
        start = half * 1800 + 100
        log.session(10 + half, (ANN, BOB)[half % 2], start, [(start, start + 300)], start + 300, port=4000 + half)
        log.tick(half * 1800 + 1700).write()
    return folder


def statuses(store: Store, hours: int = 3) -> list[str]:
    """The answer for each session of `write`."""
    return [
        who(store, PUBLIC, 4000 + half, protocol="tcp", at=at(half * 1800 + 200)).status for half in range(2 * hours)
    ]


def asked(storage: ObjectStorage, bucket: Bucket) -> list[str]:
    """The answers of a store that knows nothing yet."""
    return statuses(Store(storage.again(bucket.top, fresh=3600)))


def urls(storage: ObjectStorage, bucket: Bucket) -> list[str]:
    return [url for url in storage.urls(bucket) if url.endswith(".parquet")]


def seen(bucket: Bucket) -> tuple[object, ...]:
    result = verify(bucket)
    return result.files, result.rows, result.removed, result.anchor, result.findings, result.state


def test_what_was_uploaded_is_verified_as_the_folder_is(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    write(folder / "second", 1)
    done = upload(folder, bucket)
    assert (done.files, done.there, done.later, done.damaged) == (8, 0, 0, ())
    assert done.bytes == sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    assert verify(bucket).ok and seen(bucket) == seen(folder)  # type: ignore[arg-type]
    assert upload(folder, bucket).files == 0 and upload(folder, bucket).there == 8
    anchor = verify(folder).state
    assert verify(bucket, anchor).ok


def test_the_answers_and_figures_are_those_of_the_folder(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    store, local = Store(storage.again(bucket.top, fresh=3600)), Store(folder)
    assert statuses(store) == statuses(local) == ["exact"] * 6
    assert top(store) == top(local) and port_usage(store) == port_usage(local)
    assert export(store, tmp_path / "rows.jsonl") == export(local, tmp_path / "others.jsonl") > 0
    questions = [("1", Question(PUBLIC, 4001, "tcp", at(2000), None, 2.0, None))]
    evidence, _ = ask_all(questions, store)
    names, others = evidence.parts, ask_all(questions, local)[0].parts
    assert {name.rpartition("/")[2]: sha256 for name, sha256 in names.items()} == {
        Path(name).name: sha256 for name, sha256 in others.items()
    }
    assert all(name.startswith(f"{bucket.top}/") for name in names)


def test_only_what_is_sought_is_read(storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log")
    for day in range(30):
        log.tick(day * 86_400).write()
    bucket = storage.bucket()
    upload(log.folder, bucket)
    read: list[str] = []
    for name in ("read", "footer", "fetch", "sha256"):
        real = getattr(Bucket, name)
        monkeypatch.setattr(
            Bucket, name, lambda self, path, real=real, name=name: read.append(f"{name} {path}") or real(self, path)
        )
    store = Store(storage.again(bucket.top, fresh=3600))
    for _ in range(3):
        assert who(store, PUBLIC, 4000, protocol="tcp", at=at(15 * 86_400 - 1000)).status == "unused"
    assert len(read) == len(set(read))  # nothing is read twice
    assert sum(each.startswith("fetch") for each in read) <= 8 and not any(each.startswith("sha256") for each in read)
    assert sum(each.startswith("footer") for each in read) <= 12


def test_what_is_no_longer_kept_is_read_again(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    store = Store(storage.again(bucket.top, keep_bytes=0))
    assert statuses(store) == ["exact"] * 6 == statuses(store)


def test_compacted_files_are_read_by_the_manifest(storage: ObjectStorage, tmp_path: Path) -> None:
    """Also beside the files that they replaced, which stay in the bucket."""
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    assert compact(folder).files == 2
    assert asked(storage, bucket) == ["exact"] * 6
    done = upload(folder, bucket)
    assert done.files == 2 and len(urls(storage, bucket)) == 8
    assert verify(bucket).ok and verify(bucket).rows == verify(folder).rows
    assert verify(bucket).anchor == verify(folder).anchor
    store = Store(bucket)
    assert statuses(store) == ["exact"] * 6
    assert len(store.parts()) == len(Store(folder).parts())
    for url in urls(storage, bucket):
        if not (folder / url.rpartition("/")[2]).exists():
            storage.delete(url)  # by the operator
    assert seen(bucket) == seen(folder) and asked(storage, bucket) == ["exact"] * 6  # type: ignore[arg-type]
    storage.delete(f"{bucket.top}/compacted.jsonl")
    assert "gap" in asked(storage, bucket)
    assert not verify(bucket).ok


@pytest.mark.parametrize("addresses", [512, 1])  # that a footer names
def test_of_a_compacted_file_the_row_groups_that_are_sought_are_read(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addresses: int
) -> None:
    monkeypatch.setattr(_parquet_compaction, "GROUP_ROWS", 4)
    monkeypatch.setattr(file_metadata, "_MOST_ADDRESSES", addresses)
    log = Log(tmp_path / "log").tick(0)
    for number in range(60):
        log.session(number, ANN, 10 + number, [(10 + number, 40 + number)], 40 + number, port=4000 + number,
                    eip=0xCB007101 + number // 40)  # fmt: skip
        if number % 20 == 19:
            log.tick(60 + number).write()
    log.tick(7200).write()
    folder, bucket = log.folder, storage.bucket()
    assert compact(folder).files == 1
    upload(folder, bucket)
    (line, _), *_ = compaction_lines(folder)
    footer = read_footer(folder / line.file)
    assert footer is not None and len(footer.groups) > 30
    read: list[int] = []
    real = Bucket.fetch_pieces

    def fetch_pieces(self: Bucket, path: str, wanted: Wanted) -> set[Piece]:
        read.extend(piece.end - piece.start for piece in wanted.pieces or ())
        return real(self, path, wanted)

    monkeypatch.setattr(Bucket, "fetch_pieces", fetch_pieces)
    assert (footer.addresses is None) is (addresses == 1)
    ports = (4000, 4033, 4059, 4033)
    for keep_bytes in (1 << 30, 0):  # with nothing kept each is read again
        store, local = Store(storage.again(bucket.top, keep_bytes=keep_bytes)), Store(folder)
        for port in ports:
            asked = [who(each, PUBLIC, port, protocol="tcp", at=at(45)) for each in (store, local)]
            assert asked[0] == asked[1] and asked[0].status in ("exact", "unused")
        if keep_bytes:
            assert len(read) <= 1 + 2 * len(set(ports)) and read[0] == line.tail_bytes
        assert top(store) == top(local)
    data = storage.get(f"{bucket.top}/{line.file}")
    place = next(at for at, group in enumerate(footer.groups) if group.ports[0] <= 4033 <= group.ports[1])
    end = footer.groups[place].end
    storage.put(f"{bucket.top}/{line.file}", data[: end - 2] + bytes([data[end - 2] ^ 1]) + data[end - 1 :])
    store = Store(storage.again(bucket.top))
    statuses = [who(store, PUBLIC, port, protocol="tcp", at=at(45)).status for port in ports]
    assert statuses == ["unused", "gap", "unused", "gap"]
    with pytest.raises(DamagedPart):
        top(store)


def test_what_retention_removed_here_may_stay_there(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = tmp_path / "log", storage.bucket()
    write(folder)
    upload(folder, bucket)
    sink = ParquetSink(folder, keep_bytes=1)
    sink.open()
    log = Log(folder, first=1000)
    sink.deliver(log.tick(20_000).batch())
    sink.close()
    assert len(list(folder.glob("*.parquet"))) == 1
    upload(folder, bucket)
    assert verify(bucket).ok and verify(folder).ok
    assert verify(bucket).removed == 0 and verify(folder).removed == 6
    store = Store(bucket)
    assert statuses(store) == ["exact"] * 6 and store.removals() == []
    assert set(statuses(Store(folder))) == {"gap"} and len(Store(folder).removals()) == 6
    for url in urls(storage, bucket)[:2]:  # by the bucket's own rule, which is no finding: it was removed here before
        storage.delete(url)
    assert verify(bucket).ok and asked(storage, bucket)[:2] == ["gap", "gap"]
    assert len(Store(bucket).removals()) == 2


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "emptied", "exchanged"])
def test_damage_in_the_bucket_is_a_gap_and_a_finding(storage: ObjectStorage, tmp_path: Path, damage: str) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    third, fourth = urls(storage, bucket)[2:4]
    data = storage.get(third)
    if damage == "missing":
        storage.delete(third)
    elif damage == "exchanged":
        storage.put(third, storage.get(fourth))
    else:
        changed = {"truncated": data[: len(data) // 2], "emptied": b""}
        storage.put(third, changed.get(damage, data[:100] + bytes([data[100] ^ 4]) + data[101:]))
    store = Store(storage.again(bucket.top))
    assert statuses(store) == ["exact", "exact", "gap", "exact", "exact", "exact"]
    assert who(store, PUBLIC, 9999, protocol="tcp", at=at(2 * 1800 + 200)).status == "gap"  # and no "unused"
    assert what(store, "10.0.0.9", at=at(2 * 1800 + 200)).status == "incomplete"
    name = third.rpartition("/")[2]
    assert name in {finding.file for finding in verify(bucket).findings}
    if damage in ("truncated", "emptied"):  # it has another length, and is copied again
        assert upload(folder, storage.again(bucket.top)).files == 1
        assert verify(bucket).ok and asked(storage, bucket) == ["exact"] * 6


def test_an_object_that_changes_while_a_store_knows_it_is_noticed(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    store = Store(storage.again(bucket.top))
    assert statuses(store) == ["exact"] * 6
    third = urls(storage, bucket)[2]
    storage.put(third, storage.get(third)[:-1])
    assert statuses(store) == ["exact", "exact", "gap", "exact", "exact", "exact"] and store.damaged == [third]
    storage.delete(third)
    assert statuses(store)[2] == "gap" and store.damaged == []
    for url in storage.urls(bucket):
        storage.delete(url)
    with pytest.raises(Error, match="not there any more"):
        statuses(store)


def test_a_seal_that_is_gone_or_damaged_takes_the_newest_file_only(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    storage.put(f"{bucket.top}/newest.json", b"{")
    assert asked(storage, bucket) == ["exact"] * 5 + ["gap"]
    storage.delete(f"{bucket.top}/newest.json")
    assert asked(storage, bucket) == ["exact"] * 5 + ["gap"]


def test_a_file_that_may_yet_be_put_together_stays_for_later(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    paths = sorted(folder.glob("*.parquet"))
    for number, path in enumerate(paths):
        os.utime(path, (EPOCH + number * 1800, EPOCH + number * 1800))
    lock = Lock(folder, "a log")
    done = upload(folder, bucket, now=EPOCH + 3 * 1800 + 4500)
    assert (done.files, done.later) == (4, 2)
    assert verify(bucket).ok and verify(bucket).anchor is not None
    assert verify(bucket).anchor[0] == paths[3].name  # type: ignore[index]
    assert asked(storage, bucket) == ["exact"] * 4 + ["gap"] * 2
    lock.release()
    assert upload(folder, bucket, now=0).files == 2 and seen(bucket) == seen(folder)  # type: ignore[arg-type]
    lock = Lock(folder, "a log")  # what is there stays sealed
    assert (upload(folder, bucket, now=0).there, seen(bucket)) == (6, seen(folder))  # type: ignore[arg-type]
    lock.release()


def test_a_log_that_goes_on_is_uploaded_piece_by_piece(storage: ObjectStorage, tmp_path: Path) -> None:
    """The bucket is whole after each time, whatever the sink puts together meanwhile."""
    bucket, folder, now = storage.bucket(), tmp_path / "log", [0.0]
    sink = ParquetSink(folder, roll_seconds=1200, compact=True, clock=lambda: now[0], wall=lambda: EPOCH + now[0])
    sink.open()
    log = Log(folder).tick(0)
    for step in range(40):
        now[0] = step * 300.0
        log.session(100 + step, ANN, now[0], [(now[0], now[0] + 10)], now[0] + 10, port=4000 + step)
        sink.deliver(log.tick(now[0] + 11).batch())
        log.rows = []
        for path in folder.glob("*.parquet"):
            if path.stat().st_mtime > EPOCH + 1e6:  # new
                os.utime(path, (EPOCH + now[0], EPOCH + now[0]))
        if step % 3 == 2:
            done = upload(folder, bucket, settled=1500, now=EPOCH + now[0])
            assert done.damaged == ()
            if bucket.is_there():
                assert verify(bucket).findings == (), step
    sink.close()
    assert list(folder.glob("*.parquet")) and json.loads((folder / "newest.json").read_text())
    upload(folder, bucket)
    assert verify(bucket).ok and verify(bucket).rows == verify(folder).rows
    store, local = Store(storage.again(bucket.top, fresh=3600)), Store(folder)
    for step in range(40):
        moment = at(step * 300 + 5)
        answer = who(local, PUBLIC, 4000 + step, protocol="tcp", at=moment)
        assert answer.status == "exact" and who(store, PUBLIC, 4000 + step, protocol="tcp", at=moment) == answer


def test_files_that_a_log_may_yet_change_are_not_taken_for_settled(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    sink = ParquetSink(folder, roll_seconds=1200)
    sink.claim("the log audit")
    with pytest.raises(ConfigurationError, match=r"settled must be more than the 1200 s .* roll_seconds\), got 1200"):
        upload(folder, bucket, settled=1200)
    assert not bucket.is_there()
    upload(folder, bucket, settled=1201)
    sink.close()
    assert upload(folder, bucket, settled=0).damaged == ()  # no log writes there: nothing changes


def test_a_look_whether_a_log_writes_refuses_none_that_begins_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "log")
    assert roll_seconds_of(folder) is None
    looking = os.open(folder / "owner", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    waits: list[float] = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2 and not is_held:
            fcntl.flock(looking, fcntl.LOCK_UN)

    monkeypatch.setattr(_parquet_folder.time, "sleep", pause)
    is_held, sink = False, ParquetSink(folder, roll_seconds=77)
    sink.claim("the log audit")
    assert len(waits) == 2 and roll_seconds_of(folder) == 77
    sink.close()
    fcntl.flock(looking, fcntl.LOCK_SH)
    is_held = True
    with pytest.raises(
        ConfigurationError, match=r"folder must be of one log alone, got .*: the log audit, process [0-9]+ writes"
    ):
        sink.claim("another")
    assert sum(waits) < 0.5
    os.close(looking)


def test_an_upload_that_was_interrupted_goes_on(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    write_object, written = Bucket.write, list[str]()

    def fail(self: Bucket, path: str, source: object) -> None:
        if len(written) == 3:
            raise Error("the line is cut")
        written.append(path)
        write_object(self, path, source)  # type: ignore[arg-type]

    monkeypatch.setattr(Bucket, "write", fail)
    with pytest.raises(Error, match="cut"):
        upload(folder, bucket)
    monkeypatch.undo()
    assert asked(storage, bucket)[2:] == ["gap"] * 4  # without a seal
    done = upload(folder, storage.again(bucket.top))
    assert (done.files, done.there) == (3, 3) and seen(bucket) == seen(folder)  # type: ignore[arg-type]


def test_a_damaged_file_is_not_copied(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    paths = sorted(folder.glob("*.parquet"))
    data = bytearray(paths[1].read_bytes())
    data[100] ^= 1
    paths[1].write_bytes(data)
    done = upload(folder, bucket)
    assert done.damaged == (str(paths[1]),) and done.files == 5
    assert [finding.kind for finding in verify(bucket).findings if finding.file == paths[1].name] == ["missing"]
    assert asked(storage, bucket) == statuses(Store(folder)) == ["exact", "gap", "exact", "exact", "exact", "exact"]


def test_what_is_damaged_here_afterwards_stays_whole_there(storage: ObjectStorage, tmp_path: Path) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    before = seen(bucket)
    newest = max(folder.glob("*.parquet"))
    newest.write_bytes(b"PAR1" + newest.read_bytes()[4:-20])
    assert upload(folder, bucket).damaged == (str(newest),)
    assert seen(bucket) == before and verify(bucket).ok


def test_a_prefix_is_of_one_folder_alone(storage: ObjectStorage, tmp_path: Path) -> None:
    bucket = storage.bucket()
    upload(write(tmp_path / "log"), bucket)
    other = Log(tmp_path / "other", run="run2").tick(0).write()
    with pytest.raises(ConfigurationError, match="of this folder alone"):
        upload(other, bucket)
    assert verify(bucket).ok


def test_a_bucket_that_does_not_answer_is_an_error_that_names_it(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    store = Store(storage.again(bucket.top))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
        for act in (Store, verify, lambda where: upload(folder, where)):
            with pytest.raises(Error, match=rf"{bucket.top}: the bucket does not answer") as caught:
                act(storage.again(bucket.top, endpoint=closed, timeout=1))  # type: ignore[operator]
            assert SECRET not in str(caught.value) and KEY not in str(caught.value)
    with pytest.raises(Error, match=r"s3://no-such-bucket-here/log: .*NO_SUCH_BUCKET"):
        Store(storage.again("s3://no-such-bucket-here/log"))
    with pytest.raises(ConfigurationError, match=r"store must be .*got 's3://.*/none'"):
        Store(storage.again(f"{bucket.top}/none"))
    with caplog.at_level(logging.DEBUG):
        assert SECRET not in repr(store) + repr(bucket) + caplog.text


def test_an_object_that_may_not_be_read_is_a_gap(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if storage.kind != "moto":
        pytest.skip("it has no archive")
    """Such as one that was moved to an archive: Amazon's answer is 403 InvalidObjectState."""
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    third = urls(storage, bucket)[2]
    name, _, key = third.removeprefix("s3://").partition("/")
    storage.client.copy_object(Bucket=name, Key=key, CopySource={"Bucket": name, "Key": key}, StorageClass="GLACIER")
    again = storage.again(bucket.top)
    assert statuses(Store(again)) == ["exact", "exact", "gap", "exact", "exact", "exact"]
    (finding,) = (each for each in verify(again).findings if each.kind == "damaged")
    assert finding.file == third.rpartition("/")[2] and "cannot be read" in finding.text


def test_the_environment_and_the_address_say_where_it_is(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bucket = write(tmp_path / "log"), storage.bucket()
    upload(folder, bucket)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", storage.endpoint)
    assert statuses(source_at(f"{bucket.top}/")) == ["exact"] * 6  # type: ignore[arg-type]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert verify(f"{bucket.top}?endpoint={storage.endpoint}&region=eu-central-1&addressing=path").ok


@pytest.mark.parametrize(
    "url",
    [
        "s3://", "s3:///log", "s3://key:hidden@bucket/log", "s3://bucket/log?secret=hidden", "s3://bucket/../other", "s3://b/log",
        "s3://bucket/log?region=", "s3://bucket/log#part", "s3://bucket/log?endpoint", "gs://bucket/log",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError, match="url must be s3://BUCKET/PREFIX") as caught:
        Bucket(url)
    assert "hidden" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        Bucket("s3://bucket/log", endpoint="http://user:hidden@host")


class Recording(BaseHTTPRequestHandler):
    """A service that keeps what it is sent, whatever that is; `lost`: bytes that it does not keep."""

    sent: ClassVar[dict[str, bytes]] = {}
    lost: ClassVar[int] = 0

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.sent[self.path] = body[: len(body) - self.lost]
        self._answer(200)

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in self.sent else 404, len(self.sent.get(self.path, b"")))

    def do_GET(self) -> None:
        self._answer(404)

    def _answer(self, status: int, length: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"x"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_an_object_is_the_bytes_of_the_file_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Recording) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        bucket = Bucket(
            "s3://bucket/log",
            endpoint=f"http://127.0.0.1:{server.server_port}",
            access_key_id=KEY,
            access_key_secret=SECRET,
        )
        assert "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ
        bucket.write("s3://bucket/log/newest.json", io.BytesIO(b"0123456789"))
        assert Recording.sent == {"/bucket/log/newest.json": b"0123456789"}
        monkeypatch.setattr(Recording, "lost", 3)
        with pytest.raises(Error, match="sent 10 bytes, and has 7: it stores something else than it is sent"):
            bucket.write("s3://bucket/log/newest.json", io.BytesIO(b"0123456789"))
        server.shutdown()
