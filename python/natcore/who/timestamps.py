"""RFC 3161: a time stamp of a file by a service that others trust, through `openssl ts`, which must be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from natcore.errors import ConfigurationError, Error
from natcore.internal.files import read_regular, replaced
from natcore.internal.http_request import post
from natcore.internal.redaction import show, show_text

_SECONDS = 30.0
_MOST_BYTES = 1 << 20
_SUFFIX = ".tsr"


def stamp_of(path: str | os.PathLike[str]) -> Path:
    """Where the time stamp of the file is: beside it."""
    return Path(f"{os.fspath(path)}{_SUFFIX}")


def stamp(path: str | os.PathLike[str], url: str) -> Path:
    """Have the service at url say that the file is there now; -> its answer's file. Raises ConfigurationError, Error.

    The service sees the file's SHA-256, and nothing else of it. Its signature is checked by `check_stamp`.
    """
    if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https"):
        raise ConfigurationError(f"url must be the http or https address of a time stamp service, got {show(url)}")
    with tempfile.TemporaryDirectory() as folder:
        data, query = Path(folder) / "data", Path(folder) / "query"
        data.write_bytes(read_regular(Path(path)))
        _openssl("-query", "-data", str(data), "-sha256", "-cert", "-out", str(query))
        headers = {"Content-Type": "application/timestamp-query"}
        try:
            answer = post(url, query.read_bytes(), headers, seconds=_SECONDS, most_bytes=_MOST_BYTES)
        except OSError as error:
            raise Error(f"url={show(url)}: {show_text(str(error))}: there is no time stamp") from error
        if answer.status != 200:
            raise Error(f"url={show(url)}: HTTP status {answer.status}: there is no time stamp")
        found = Path(folder) / "reply"
        found.write_bytes(answer.body)
        text = _openssl("-reply", "-in", str(found), "-text", fails=f"url={show(url)}: its answer is no time stamp")
        if "Status: Granted" not in text:
            raise Error(f"url={show(url)}: the service grants no time stamp")
    with replaced(stamp_of(path), private=False) as file:
        file.write(answer.body)
    return stamp_of(path)


def check_stamp(path: str | os.PathLike[str], authority: str | os.PathLike[str]) -> None:
    """The time stamp beside the file is of this file, signed under a certificate in `authority` (PEM). Raises Error."""
    with tempfile.TemporaryDirectory() as folder:
        data, reply = Path(folder) / "data", Path(folder) / "reply"
        try:
            data.write_bytes(read_regular(Path(path)))
            reply.write_bytes(read_regular(stamp_of(path)))
        except OSError as error:
            raise Error(
                f"{show_text(str(error.filename or path))}: {error.strerror}: there is no time stamp"
            ) from error
        wrong = f"{show_text(str(stamp_of(path)))}: it is no time stamp of {show_text(str(path))} under {show(str(authority))}"
        _openssl("-verify", "-data", str(data), "-in", str(reply), "-CAfile", os.fspath(authority), fails=wrong)


def _openssl(*arguments: str, fails: str = "openssl ts fails") -> str:
    """What `openssl ts` prints."""
    program = shutil.which("openssl")
    if program is None:
        raise Error("time stamps need the program openssl, which is not there")
    done = subprocess.run([program, "ts", *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        raise Error(f"{fails}: {show_text(lines[-1])}")
    return done.stdout
