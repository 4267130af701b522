"""What the tests of sinks deliver to: one class a destination, that starts it, reads it back and takes it away."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import duckdb

from natcore.sinks import Batch, IpfixSink, JsonLinesSink, MemorySink, ParquetSink, Sink
from support.ipfix_decoder import Decoder, expected_of

Row = dict[str, Any]
SECRET = "hush-hush"


class Destination:
    """The words of the common suite. `rows`: what arrived, in order; `expected`: how it should look there."""

    toml: ClassVar[str] = ""  # of [[log]], if a file can name it; {0} is the folder
    fails = False  # it can be taken away and brought back

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "log"

    def make(self) -> Sink:
        raise NotImplementedError

    def rows(self, count: int) -> list[Row]:
        """What arrived; `count` of them are waited for, where delivery tells the sender only that they left."""
        raise NotImplementedError

    def expected(self, batch: Batch) -> list[Row]:
        return list(batch.rows(local=True))

    def take_away(self) -> None:
        """From now on deliveries fail."""

    def bring_back(self) -> None:
        """They work again."""

    def close(self) -> None:
        """End what was started."""


class Memory(Destination):
    def make(self) -> Sink:
        self.sink = MemorySink()
        self.before = [*getattr(self, "before", []), self.sink]
        return self.sink

    def rows(self, count: int) -> list[Row]:
        return [row for sink in self.before for row in sink.rows(local=True)]


class JsonLines(Destination):
    toml = 'sink = "jsonlines"\nfolder = "{0}"'

    def make(self) -> Sink:
        return JsonLinesSink(self.folder)

    def rows(self, count: int) -> list[Row]:
        paths = sorted(self.folder.glob("*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


class Parquet(Destination):
    toml = 'sink = "parquet"\nfolder = "{0}"'

    def make(self) -> Sink:
        return ParquetSink(self.folder)

    def expected(self, batch: Batch) -> list[Row]:
        return [{"label": None} | row for row in super().expected(batch)]

    def rows(self, count: int) -> list[Row]:
        columns = "* REPLACE (epoch_us(start_time) AS start_time, epoch_us(end_time) AS end_time)"
        with duckdb.connect() as connection:
            relation = connection.sql(f"SELECT {columns} FROM '{self.folder}/*.parquet' ORDER BY run, number")
            return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


class TcpReceiver:
    """Listens on loopback; each connection's bytes go through a parser of its own. Also goes away and comes back."""

    def __init__(
        self, make_parser: Callable[[], Callable[[bytearray], Iterator[Row]]], tls: ssl.SSLContext | None = None
    ) -> None:
        self._make_parser = make_parser
        self._tls = tls
        self.rows: list[Row] = []
        self.connections = 0
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._readers: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.port = 0
        self.listen()

    def listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        self._accepting = self._start(self._accept, self._listener)

    @staticmethod
    def _start(work: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        return thread

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            with self._changed:
                self._open.append(connection)
                self.connections += 1
            self._readers.append(self._start(self._read, connection))

    def _read(self, connection: socket.socket) -> None:
        parser, waiting = self._make_parser(), bytearray()
        try:
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            while data := connection.recv(1 << 16):
                waiting += data
                with self._changed:
                    self.rows += parser(waiting)
                    self._changed.notify_all()
        except OSError:
            pass
        except BaseException as error:
            with self._changed:
                self.error = error
                self._changed.notify_all()

    def wait(self, count: int) -> list[Row]:
        with self._changed:
            assert self._changed.wait_for(lambda: self.error or len(self.rows) >= count, 60), len(self.rows)
            if self.error:
                raise self.error
            return list(self.rows)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()  # no connection comes after that
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._readers:
            thread.join()
        for connection in self._open:
            connection.close()
        self._open, self._readers = [], []


class Ipfix(Destination):
    toml = 'sink = "ipfix"\nhost = "127.0.0.1"\ntransport = "udp"\nobservation_domain = 7'
    fails = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.receiver = TcpReceiver(self._parser)

    @staticmethod
    def _parser() -> Callable[[bytearray], Iterator[Row]]:
        decoder = Decoder()

        def parse(waiting: bytearray) -> Iterator[Row]:
            while len(waiting) >= 4 and len(waiting) >= (length := struct.unpack_from(">H", waiting, 2)[0]):
                message = bytes(waiting[:length])
                del waiting[:length]
                yield from decoder.decode(message)

        return parse

    def make(self) -> Sink:
        return IpfixSink("127.0.0.1", self.receiver.port)

    def rows(self, count: int) -> list[Row]:
        return self.receiver.wait(count)

    def expected(self, batch: Batch) -> list[Row]:
        return [expected_of(row) for row in batch.rows(local=True)]

    def take_away(self) -> None:
        self.receiver.close()

    def bring_back(self) -> None:
        self.receiver.listen()

    def close(self) -> None:
        self.receiver.close()


DESTINATIONS: dict[str, type[Destination]] = {
    "memory": Memory,
    "jsonlines": JsonLines,
    "parquet": Parquet,
    "ipfix": Ipfix,
}
