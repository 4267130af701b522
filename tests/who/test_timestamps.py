"""RFC 3161 time stamps of an anchor, from a service on this machine."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from natcore import ConfigurationError, Error
from natcore.who.timestamps import check_stamp, stamp, stamp_of
from support.receivers_more import Dripping

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
CONFIG = """
[tsa]
default_tsa = here
[here]
dir = {folder}
serial = $dir/serial
signer_cert = $dir/cert.pem
certs = $dir/cert.pem
signer_key = $dir/key.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
"""


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(folder: Path) -> Path:
    folder.mkdir()
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=time stamps", "-days", 2,
            "-addext", "extendedKeyUsage=critical,timeStamping", "-keyout", folder / "key.pem",
            "-out", folder / "cert.pem")  # fmt: skip
    (folder / "serial").write_text("01\n")
    (folder / "config").write_text(CONFIG.format(folder=folder))
    return folder / "cert.pem"


class Service(HTTPServer):
    folder: Path
    answer: bytes | None = None
    status = 200


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        folder = self.server.folder
        assert self.headers["Content-Type"] == "application/timestamp-query"
        (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        openssl("ts", "-reply", "-config", folder / "config", "-queryfile", folder / "query", "-out", folder / "reply")
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write((folder / "reply").read_bytes() if self.server.answer is None else self.server.answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    authority(tmp_path / "authority")
    server = Service(("127.0.0.1", 0), Handler)
    server.folder = tmp_path / "authority"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_time_stamp_is_of_one_file_and_one_authority(service: Service, tmp_path: Path) -> None:
    anchor, url = tmp_path / "anchor.json", f"http://127.0.0.1:{service.server_port}/"
    anchor.write_bytes(b"the state of a log\n")
    assert stamp(anchor, url) == stamp_of(anchor)
    check_stamp(anchor, service.folder / "cert.pem")
    with pytest.raises(Error, match="no time stamp of"):
        check_stamp(anchor, authority(tmp_path / "other"))
    anchor.write_bytes(b"another state\n")
    with pytest.raises(Error, match="no time stamp of"):
        check_stamp(anchor, service.folder / "cert.pem")
    stamp_of(anchor).unlink()
    with pytest.raises(Error, match="there is no time stamp"):
        check_stamp(anchor, service.folder / "cert.pem")


def test_what_is_no_time_stamp_is_not_kept(service: Service, tmp_path: Path) -> None:
    anchor, url = tmp_path / "anchor.json", f"http://127.0.0.1:{service.server_port}/"
    anchor.write_bytes(b"the state of a log\n")
    service.answer = b"<html>not found</html>"
    with pytest.raises(Error, match="its answer is no time stamp"):
        stamp(anchor, url)
    with pytest.raises(Error, match="there is no time stamp"):
        stamp(anchor, "http://127.0.0.1:9/")
    with pytest.raises(ConfigurationError, match="http or https"):
        stamp(anchor, "file:///etc/passwd")
    assert not stamp_of(anchor).exists()


def test_an_answer_that_is_an_error_or_too_long_is_no_time_stamp(service: Service, tmp_path: Path, monkeypatch) -> None:
    anchor, url = tmp_path / "anchor.json", f"http://127.0.0.1:{service.server_port}/"
    anchor.write_bytes(b"the state of a log\n")
    service.status = 503
    with pytest.raises(Error, match="HTTP status 503: there is no time stamp"):
        stamp(anchor, url)
    service.status = 200
    monkeypatch.setattr("natcore.who.timestamps._MOST_BYTES", 100)
    with pytest.raises(Error, match="an answer of more than 100 bytes"):
        stamp(anchor, url)
    assert not stamp_of(anchor).exists()


def test_a_service_that_drips_its_answer_does_not_make_the_request_last(tmp_path: Path, monkeypatch) -> None:
    """Every byte comes in time, the answer never does."""
    anchor, ticks = tmp_path / "anchor.json", iter(range(10_000))
    anchor.write_bytes(b"the state of a log\n")
    monkeypatch.setattr("natcore.internal.http_request.monotonic", lambda: next(ticks) / 10)
    with Dripping() as server, pytest.raises(Error, match="within 30 s: there is no time stamp"):
        stamp(anchor, server.url)
