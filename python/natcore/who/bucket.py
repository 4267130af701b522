"""A log's files in object storage that has Amazon S3's interface, for `Store` and `verify`; pyarrow speaks with it.

A file is believed by the SHA-256 of all its bytes, so that it is read whole before its first row counts. These bytes stay in a
folder of this process until it ends: what was hashed is what DuckDB reads, whatever becomes of the object meanwhile.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from natcore.errors import ConfigurationError, Error
from natcore.internal.extras import extra
from natcore.internal.files import write_all
from natcore.internal.redaction import MASK, show, show_text
from natcore.internal.validation import check_choice, check_integer, check_number, check_optional_text, check_url
from natcore.sessionlog.file_metadata import Footer
from natcore.sinks._parquet_folder import footer_in
from natcore.who.files import Files, Listing, Piece, Stamp, Wanted, has_hash
from natcore.who.source import PartsMoved

with extra("parquet"):
    import pyarrow as pa
    import pyarrow.fs

SCHEME = "s3://"
ADDRESSING = ("path", "virtual")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", re.IGNORECASE)
_OPTIONS = ("endpoint", "region", "addressing")  # of the address
_TAIL_BYTES = 1 << 18  # of a file, in which its footer is, or most of them
_FOOTER_BYTES = 1 << 26  # at most: a longer one is damage
_CHUNK_BYTES = 4 << 20
_ATTEMPTS = 3  # of a request, by pyarrow
_CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"
_OF_OBJECT = re.compile(r"ACCESS_DENIED|HTTP status 403|storage class")  # it may not be read, or is in an archive


class Bucket(Files):
    """The files of a log below a prefix of a bucket.

    Parameters
    ----------
    url
        "s3://BUCKET/PREFIX", which may have `?endpoint=…&region=…&addressing=…`.
    endpoint
        The service, "https://HOST:PORT"; None: as the address says, or AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL of the
        environment; without them Amazon's.
    region
        None: as the address says, or AWS_REGION or AWS_DEFAULT_REGION; without them "us-east-1".
    addressing
        "path": the bucket is in the path of a request, "virtual": in the host's name. None: as the address says, or "path"
        with an endpoint and "virtual" without.
    access_key_id, access_key_secret, security_token
        None: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or what else Amazon's SDK finds (its files, the
        machine's role).
    timeout
        Seconds without an answer until a request has failed, 0.1 to 3,600; it is tried three times.
    fresh
        Seconds, 0 to 86,400, for which the bucket is not listed again: a file that comes meanwhile is not seen.
    keep_bytes
        Of files that were read, on this machine's disk, in the folder of temporary files (TMPDIR); a question's own are kept
        until it is answered.
    clock
        Seconds of any origin; for tests.

    Raises
    ------
    ConfigurationError
        An argument is not as above.
    """

    at_once = 8

    def __init__(
        self,
        url: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        addressing: str | None = None,
        access_key_id: str | None = None,
        access_key_secret: str | None = None,
        security_token: str | None = None,
        timeout: float = 60.0,
        fresh: float = 60.0,
        keep_bytes: int = 8 << 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        bucket, prefix, told = _parts_of(url)
        endpoint = endpoint or told.get("endpoint") or _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        region = region or told.get("region") or _environment("AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1"
        addressing = addressing or told.get("addressing") or ("path" if endpoint else "virtual")
        check_choice("addressing", addressing, ADDRESSING)
        secrets = {
            "access_key_id": access_key_id,
            "access_key_secret": access_key_secret,
            "security_token": security_token,
        }
        for name, value in {"region": region, **secrets}.items():
            check_optional_text(name, value)
        if (access_key_id is None) != (access_key_secret is None):
            raise ConfigurationError("access_key_id and access_key_secret must both be given, or neither")
        check_number("timeout", timeout, 0.1, 3600, unit="seconds")
        check_number("fresh", fresh, 0, 86_400, unit="seconds")
        check_integer("keep_bytes", keep_bytes, 0, 1 << 60)
        self.top = self.name = f"{SCHEME}{bucket}/{prefix}".rstrip("/")
        self._secrets = [value for value in secrets.values() if value]
        self._fresh, self._clock = fresh, clock
        self._listings: dict[str, tuple[float, Listing | None, dict[str, Stamp]]] = {}
        self._copies = _Copies(keep_bytes)
        more: dict[str, Any] = {}
        if endpoint is not None:
            where = urlsplit(check_url("endpoint", endpoint))
            more = {"endpoint_override": where.netloc + where.path.rstrip("/"), "scheme": where.scheme}
        more |= {
            "access_key": access_key_id, "secret_key": access_key_secret, "session_token": security_token, "region": region,
            "connect_timeout": min(timeout, 10.0), "request_timeout": timeout, "background_writes": False,
            "force_virtual_addressing": addressing == "virtual",
            "retry_strategy": _interface().AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        }  # fmt: skip
        with self._answering(), _plain_bodies():
            try:
                self._service = _interface().S3FileSystem(
                    allow_delayed_open=True, **more
                )  # small objects by one request
            except TypeError:  # an older pyarrow
                self._service = _interface().S3FileSystem(**more)

    def __repr__(self) -> str:
        return f"<Bucket {self.name}>"

    # ---- what is there ----

    def is_there(self) -> bool:
        """Return whether there is anything below the prefix."""
        return self.listing(self.top) is not None

    def listing(self, folder: str, known: Listing | None = None) -> Listing | None:
        """Return what is below a prefix; it is listed again when `fresh` seconds are over."""
        return self._looked(folder)[1]

    def refresh(self) -> None:
        """Forget what is kept of listings."""
        self._listings.clear()

    def stamp(self, path: str) -> Stamp | None:
        """Return bytes and time of an object, as its listing has them."""
        return self._looked(path.rpartition("/")[0])[2].get(path)

    def _looked(self, folder: str) -> tuple[float, Listing | None, dict[str, Stamp]]:
        known, now = self._listings.get(folder), self._clock()
        if known is not None and 0 <= now - known[0] < self._fresh:
            return known
        try:
            with self._answering():
                found = self._service.get_file_info(_interface().FileSelector(_key(folder)))
        except FileNotFoundError:
            found = []
        folders, stamps = [], {}
        for each in found:
            path = SCHEME + each.path
            if each.type == _interface().FileType.Directory:
                folders.append(path)
            elif not path.endswith("/"):
                stamps[path] = (0, each.size, each.mtime_ns or 0)
        files = sorted(path for path in stamps if path.endswith(".parquet"))
        listing = Listing(0, 0, folders, files) if found else None
        looked = self._listings[folder] = (now, listing, stamps)
        return looked

    # ---- what is in it ----

    def read(self, path: str) -> bytes:
        """Return a small object."""
        with self._answering(path), self._service.open_input_stream(_key(path)) as stream:
            return bytes(stream.read())

    def footer(self, path: str) -> Footer | None:
        """Return a Parquet file's metadata, which is at its end: the rest is not read."""
        with self._answering(path), self._service.open_input_file(_key(path)) as file:
            size = file.size()
            tail = _last(file, size, _TAIL_BYTES)
            length = int.from_bytes(tail[-8:-4], "little") + 8
            if len(tail) < min(length, size) and length <= _FOOTER_BYTES:
                tail = _last(file, size, length)
        return footer_in(io.BytesIO(b"PAR1" + tail))

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of the object; nothing is kept."""
        return self._hashed(path, None)

    def fetch(self, path: str) -> str:
        """Return the SHA-256 of the object, and keep its bytes."""
        with self._copies.draft() as file:
            sha256 = self._hashed(path, file)
            self._copies.add(sha256, file)
        return sha256

    def fetch_pieces(self, path: str, wanted: Wanted) -> set[Piece]:
        """Return those pieces of the object that have their SHA-256, and keep their bytes."""
        found = set()
        with self._answering(path), self._service.open_input_file(_key(path)) as file:
            size = file.size()
            for piece in wanted.pieces or ():
                if piece.end > size:
                    continue
                file.seek(piece.start)
                data = file.read(piece.end - piece.start)
                if has_hash(piece, data):
                    found.add(piece)
                    self._copies.add_piece(_kept_as(wanted), piece, data)
        return found

    def _hashed(self, path: str, copy: BinaryIO | None) -> str:
        digest = hashlib.sha256()
        with self._answering(path):
            stream = self._service.open_input_stream(_key(path))
        try:
            while True:
                with self._answering(path):
                    chunk = stream.read(_CHUNK_BYTES)
                if not chunk:
                    return digest.hexdigest()
                digest.update(chunk)
                if copy is not None:
                    copy.write(chunk)
        finally:
            stream.close()

    @contextmanager
    def opened(self, paths: Mapping[str, Wanted]) -> Iterator[dict[str, str]]:
        """Yield what was read of the objects; what is not kept any more is read again."""
        with self._copies.pinned(map(_kept_as, paths.values())):
            missing = [path for path, wanted in paths.items() if not self._copies.has(_kept_as(wanted), wanted.pieces)]

            def again(path: str) -> bool:
                wanted = paths[path]
                try:
                    if wanted.pieces is None:
                        return self.fetch(path) == wanted.sha256
                    return self.fetch_pieces(path, wanted).issuperset(wanted.pieces)
                except OSError:
                    return False

            if not all(self.map(again, missing)):
                self.refresh()
                raise PartsMoved(f"{self.name}: files were put together or removed meanwhile; ask again")
            yield {path: self._copies.path(_kept_as(wanted)) for path, wanted in paths.items()}

    # ---- to write ----

    def write(self, path: str, source: BinaryIO) -> None:
        """Make an object of all that is in a file. If this raises, the object may be there, shorter, or as it should not be."""
        with self._answering(path):
            target = self._service.open_output_stream(_key(path))
        size = 0
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            with self._answering(path):
                target.write(chunk)
        with self._answering(path):
            target.close()
            there = self._service.get_file_info(_key(path)).size
        if there != size:
            raise Error(
                f"{path}: the service was sent {size} bytes, and has {there}: it stores something else than it is sent"
            )

    # ---- errors ----

    @contextmanager
    def _answering(self, path: str = "") -> Iterator[None]:
        """Turn what pyarrow raises into Error, and into OSError where it is of one object. path: of it."""
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
        except (OSError, pa.ArrowException) as error:
            text = str(error)
            for secret in self._secrets:
                text = text.replace(secret, MASK)
            if path and _OF_OBJECT.search(text):
                raise PermissionError(errno.EACCES, show_text(text), path) from None
            raise Error(f"{self.name}: the bucket does not answer as it should: {show_text(text)}") from None


def _kept_as(wanted: Wanted) -> str:
    """Return the name of a copy: of the whole object, or of some of its pieces."""
    return wanted.sha256 if wanted.pieces is None else f"{wanted.sha256}-pieces"


class _Copies:
    """Files by their SHA-256, in a folder that goes with the process.

    Some are sparse: of them only pieces are there. As these become more, the file gets another name each time:
    DuckDB remembers what it read under one.
    """

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._sizes: dict[str, int] = {}  # the one that was wanted last is the last
        self._pieces: dict[str, list[Piece]] = {}
        self._pins: Counter[str] = Counter()

    def path(self, name: str) -> str:
        return self._path(name, len(self._pieces.get(name, ())))

    def _path(self, name: str, pieces: int) -> str:
        return f"{self._folder}/{name}.{pieces}.parquet"

    def has(self, name: str, pieces: Iterable[Piece] | None) -> bool:
        """Return whether the copy is there; with these pieces, if it is of pieces."""
        with self._lock:
            return name in self._sizes and set(self._pieces.get(name, ())).issuperset(pieces or ())

    @contextmanager
    def draft(self) -> Iterator[BinaryIO]:
        """Yield a file to write a copy into."""
        with self._written(), tempfile.NamedTemporaryFile(dir=self._folder) as file:
            yield file  # type: ignore[misc]

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Make the folder. Raises Error where this machine's disk cannot be written to."""
        try:
            with self._lock:
                if self._folder is None:
                    self._folder = Path(tempfile.mkdtemp(prefix="natcore-"))
                    weakref.finalize(self, _remove, self._folder, os.getpid())
            yield
        except OSError as error:
            if not isinstance(error.filename, str) or not error.filename.startswith(
                SCHEME
            ):  # no object's: the disk is full
                raise Error(f"{self._folder or tempfile.gettempdir()}: {error.strerror or error}") from None
            raise

    def add(self, sha256: str, file: BinaryIO) -> None:
        """Keep the draft under its hash."""
        file.flush()
        with self._lock:
            if sha256 not in self._sizes:
                os.link(file.name, self._path(sha256, 0))
            self._sizes[sha256] = file.tell()
            self._make_space()

    def add_piece(self, name: str, piece: Piece, data: bytes) -> None:
        """Keep a piece of a file at its place."""
        with self._written(), self._lock:
            there = self._pieces.setdefault(name, [])
            if piece in there:
                return
            path = self._path(name, len(there) + 1)
            if there:
                os.link(self._path(name, len(there)), path)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.lseek(descriptor, piece.start, os.SEEK_SET)
                write_all(descriptor, data)
            finally:
                os.close(descriptor)
            there.append(piece)
            self._sizes[name] = self._sizes.pop(name, 0) + len(data)
            self._make_space()

    @contextmanager
    def pinned(self, names: Iterable[str]) -> Iterator[None]:
        """Keep these meanwhile, if they are there."""
        wanted = list(names)
        with self._lock:
            self._pins.update(wanted)
            for name in wanted:
                if name in self._sizes:
                    self._sizes[name] = self._sizes.pop(name)
        try:
            yield
        finally:
            with self._lock:
                self._pins.subtract(wanted)
                self._pins += Counter()  # those that are 0 go
                self._make_space()

    def _make_space(self) -> None:
        total = sum(self._sizes.values())
        for name in list(self._sizes):
            if total <= self._keep_bytes:
                return
            if not self._pins[name]:
                total -= self._sizes.pop(name)
                for pieces in range(len(self._pieces.pop(name, ())) + 1):
                    Path(self._path(name, pieces)).unlink(missing_ok=True)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and not a fork's
        shutil.rmtree(folder, ignore_errors=True)


def _interface() -> Any:
    """Return pyarrow's interface to S3."""
    if not hasattr(pyarrow.fs, "S3FileSystem"):
        raise Error("this build of pyarrow has no S3FileSystem: it cannot read a bucket")
    return pyarrow.fs


@contextmanager
def _plain_bodies() -> Iterator[None]:
    """Have a service made that sends an object's bytes and no more, unless the environment says otherwise.

    Amazon's SDK sends them in chunks with a checksum behind, as long as its environment is silent; other services may take all
    of that for the object.
    """
    if _CHECKSUMS in os.environ:
        yield
        return
    os.environ[_CHECKSUMS] = "when_required"
    try:
        yield
    finally:
        os.environ.pop(_CHECKSUMS, None)


def _parts_of(url: str) -> tuple[str, str, dict[str, str]]:
    """Return bucket, prefix and options of an address."""
    text = "url must be s3://BUCKET/PREFIX, without a secret, with ?endpoint=, region= and addressing= at most"
    try:
        where = urlsplit(url)
        told = dict(parse_qsl(where.query, keep_blank_values=True, strict_parsing=bool(where.query)))
    except (ValueError, AttributeError, TypeError):
        raise ConfigurationError(f"{text}, got {show(url)}") from None
    names = [name for name in where.path.split("/") if name]
    if (
        where.scheme != "s3" or not _NAME.fullmatch(where.netloc) or where.fragment or {".", ".."} & set(names)
        or not all(told.values()) or not set(_OPTIONS).issuperset(told)
    ):  # fmt: skip
        raise ConfigurationError(f"{text}, got {show(url)}")
    return where.netloc, "/".join(names), told


def _environment(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _key(path: str) -> str:
    """Return pyarrow's path."""
    return path.removeprefix(SCHEME)


def _last(file: Any, size: int, count: int) -> bytes:
    file.seek(max(0, size - count))
    return bytes(file.read(min(size, count)))
