"""ClickHouse's own engine (chdb, from PyPI) behind HTTP on 127.0.0.1, as its server answers what a sink and a source send."""

from __future__ import annotations

import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_INSERT = re.compile(r"INSERT INTO (?P<table>\S+) \((?P<columns>[^)]*)\) FORMAT RowBinary")


class ChdbServer:
    """A context manager. The engine is one of the process: a server begins by dropping the tables of those before it."""

    _session: Any = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        import chdb.session

        if ChdbServer._session is None:
            ChdbServer._session = chdb.session.Session()
        self.queries: list[str] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.made = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> ChdbServer:
        tables = (
            "SELECT database, name FROM system.tables WHERE lower(database) NOT IN ('system', 'information_schema')"
        )
        for line in self.ask(tables).decode().splitlines():
            self.ask(f"DROP TABLE `{'`.`'.join(line.split(chr(9)))}` SYNC")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def ask(self, query: str, form: str = "TabSeparated") -> bytes:
        with self._lock:
            self.queries.append(query)
            return bytes(self._session.query(query, form).bytes() or b"")

    def answer(self, parameters: dict[str, str], body: bytes) -> bytes:
        query = parameters.get("query")
        if query is None:
            return self.ask(body.decode(), parameters.get("default_format", "TabSeparated"))
        insert = _INSERT.fullmatch(query)
        return self.ask(query) if insert is None else self._insert(insert["table"], insert["columns"], parameters, body)

    def _insert(self, table: str, columns: str, parameters: dict[str, str], body: bytes) -> bytes:
        types = dict(line.split("\t")[:2] for line in self.ask(f"DESCRIBE TABLE {table}").decode().splitlines())
        structure = (
            ", ".join(f"{name} {types[name]}" for name in columns.split(", ")).replace("\\'", "'").replace("'", "\\'")
        )
        token = parameters.get("insert_deduplication_token")
        setting = f" SETTINGS insert_deduplication_token = '{token}'" if token else ""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows"
            path.write_bytes(body)
            return self.ask(
                f"INSERT INTO {table} ({columns}){setting} SELECT {columns} FROM file('{path}', 'RowBinary', '{structure}')"
            )


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        parameters = dict(parse_qsl(urlsplit(self.path).query))
        try:
            status, data = 200, self.server.made.answer(parameters, body)  # type: ignore[attr-defined]
        except Exception as error:
            status, data = 500, str(error).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
