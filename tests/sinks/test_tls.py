"""TLS to syslog servers and IPFIX collectors: who is trusted, who is shown, and what is no delivery."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from natcore import ConfigurationError, DeliveryError
from natcore.service.configuration_file import load
from natcore.sinks import IpfixSink, SyslogSink
from support.batches import batch_of
from support.ipfix_decoder import expected_of
from support.receivers import Ipfix, TcpReceiver
from support.receivers_more import parse_frames

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make certificates")
PARSERS = {SyslogSink: lambda: parse_frames, IpfixSink: Ipfix._parser}


def certificate(folder: Path, name: str, *names: str) -> tuple[str, str]:
    """(certificate, key): PEM files of one that vouches for itself."""
    files = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    alternatives = ",".join(names)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName={alternatives}", "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


class Place:
    """A receiver with a certificate for 127.0.0.1, and files for those who come."""

    def __init__(self, folder: Path, sink: Any, *, wants: bool = False) -> None:
        self.ca, key = certificate(folder, "server", "IP:127.0.0.1")
        self.client = certificate(folder, "client", "DNS:gateway")
        self.sink = sink
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca, key)
        if wants:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.client[0])
        self.receiver = TcpReceiver(PARSERS[sink], context)

    def make(self, host: str = "127.0.0.1", tls: Any = None) -> Any:
        return self.sink(host, self.receiver.port, tls={"ca": self.ca} if tls is None else tls, timeout=60.0)


@pytest.fixture(params=[SyslogSink, IpfixSink])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, request.param)
    yield made
    made.receiver.close()


@needs_openssl
def test_every_row_arrives_over_one_connection(place: Place) -> None:
    """The tickets that the receiver sends unasked are not taken for its end."""
    sink = place.make()
    sink.open()
    batches = [batch_of(500), batch_of(300, 500)]
    for batch in batches:
        sink.deliver(batch)
    rows = [row for batch in batches for row in batch.rows(local=True)]
    arrived = place.receiver.wait(800)
    if place.sink is IpfixSink:
        assert arrived == [expected_of(row) for row in rows]
    else:
        assert [row["number"] for row in arrived] == [row["number"] for row in rows]
    assert place.receiver.connections == 1
    sink.close()


@needs_openssl
@pytest.mark.parametrize("tls", [True, "other"])
def test_a_receiver_with_an_untrusted_certificate_gets_nothing(place: Place, tmp_path: Path, tls: Any) -> None:
    trusted = {"ca": certificate(tmp_path, "other", "IP:127.0.0.1")[0]} if tls == "other" else tls
    with pytest.raises(DeliveryError) as refused:
        place.make(tls=trusted).open()
    assert refused.value.code == "CERTIFICATE_VERIFY_FAILED" and not place.receiver.rows


@needs_openssl
def test_a_certificate_for_another_name_is_none(place: Place) -> None:
    with pytest.raises(DeliveryError) as refused:
        place.make(host="localhost").open()
    assert refused.value.code == "CERTIFICATE_VERIFY_FAILED"


@needs_openssl
@pytest.mark.parametrize("sink_type", PARSERS)
def test_a_receiver_that_asks_who_comes_is_shown(tmp_path: Path, sink_type: Any) -> None:
    place = Place(tmp_path, sink_type, wants=True)
    batch, (shown, key) = batch_of(40), place.client
    with pytest.raises(DeliveryError) as refused:
        place.make().deliver(batch)
    assert "CERTIFICATE_REQUIRED" in refused.value.code and not place.receiver.rows
    sink = place.make(tls={"ca": place.ca, "certificate": shown, "key": key})
    sink.deliver(batch)
    assert len(place.receiver.wait(40)) == 40
    sink.close()
    place.receiver.close()


@needs_openssl
def test_a_receiver_that_went_away_is_no_delivery_and_is_found_again(place: Place) -> None:
    sink = place.make()
    sink.deliver(batch_of(10))
    place.receiver.close()
    with pytest.raises(DeliveryError):
        sink.deliver(batch_of(10, 10))
    place.receiver.listen()
    sink.deliver(batch_of(10, 10))
    assert len(place.receiver.wait(20)) == 20
    sink.close()


@needs_openssl
def test_a_file_names_it_and_a_context_has_it_all(tmp_path: Path) -> None:
    ca, _ = certificate(tmp_path, "server", "IP:127.0.0.1")
    file = tmp_path / "gateway.toml"
    file.write_text(f"""
        [gateway]
        instance = "ngw-1"
        [[snat]]
        source = "10.0.0.0/8"
        pool = ["203.0.113.1"]
        [[log]]
        sink = "syslog"
        host = "127.0.0.1"
        port = 6514
        tls = {{ ca = "{ca}" }}
        [[log]]
        sink = "ipfix"
        host = "127.0.0.1"
        tls = true
    """)
    assert [log.make_sink().delivery_type for log in load(file).logs] == ["syslog", "ipfix"]
    SyslogSink("127.0.0.1", tls=ssl.create_default_context())


@pytest.mark.parametrize(
    "tls", ["yes", 1, {"cafile": "x"}, {"key": "x"}, {"ca": "/nowhere/ca.pem"}, {"certificate": "/nowhere"}]
)
def test_bad_arguments_are_refused(tls: Any) -> None:
    for made in (SyslogSink, IpfixSink):
        with pytest.raises(ConfigurationError, match=r"tls must .*, got "):
            made("127.0.0.1", tls=tls)


def test_datagrams_have_no_tls() -> None:
    with pytest.raises(ConfigurationError, match="tls must be False with transport='udp'"):
        IpfixSink("127.0.0.1", transport="udp", tls=True)


def talker(context: ssl.SSLContext | None) -> tuple[socket.socket, threading.Thread]:
    """A receiver that reads nothing and says something for ever."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError), closing(connection):
                    made = connection if context is None else context.wrap_socket(connection, server_side=True)
                    with made:
                        while True:
                            made.sendall(b"x" * 65_536)

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    return listener, thread


@needs_openssl
@pytest.mark.parametrize("sink_type", PARSERS)
@pytest.mark.parametrize("has_tls", [False, True])
def test_a_receiver_that_never_stops_talking_is_left(tmp_path: Path, sink_type: Any, has_tls: bool) -> None:
    context = None
    ca, key = certificate(tmp_path, "server", "IP:127.0.0.1")
    if has_tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(ca, key)
    listener, thread = talker(context)
    sink = sink_type("127.0.0.1", listener.getsockname()[1], tls={"ca": ca} if has_tls else False, timeout=2.0)
    with suppress(DeliveryError):  # with TLS its first words are listened to at once
        sink.open()
        connected = sink._connection._socket
        with socket.socket(fileno=os.dup(connected.fileno())) as raw:
            raw.setblocking(True)
            raw.recv(100_000, socket.MSG_PEEK | socket.MSG_WAITALL)  # until more has been said than is listened to
        assert sink._connection._is_closed(connected)
    for _ in range(3):
        with suppress(DeliveryError):  # a row may be acknowledged before the first word is there
            sink.deliver(batch_of(10))
    sink.close()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(60)
    assert not thread.is_alive()
