"""Simple Log Service as a destination of the common suite: natcore.testing.SlsServer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from natcore.sinks import Batch, Sink, SlsSink
from support.receivers import SECRET, Destination, Row


class Sls(Destination):
    toml = 'sink = "sls"\nendpoint = "http://127.0.0.1:1"\nproject = "p"\nlogstore = "l"\naccess_key_id_file = "{0}"\n'
    toml += 'access_key_secret_file = "{0}"'
    fails = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the SDK's own
            from natcore.testing import SlsServer
        self.server = SlsServer({"id": SECRET}).start()

    def make(self) -> Sink:
        return SlsSink(
            self.server.endpoint, "p", "l", region="cn-hangzhou", access_key_id="id", access_key_secret=SECRET
        )

    def rows(self, count: int) -> list[Row]:
        return self.server.rows("p", "l", unique=False)

    def expected(self, batch: Batch) -> list[Row]:
        rows: list[dict[str, Any]] = list(batch.rows())
        return [{**{key: str(value) for key, value in row.items()}, "__time__": str(row["end_time"])} for row in rows]

    def take_away(self) -> None:
        self.server.fail("WriteQuotaExceed", None)

    def bring_back(self) -> None:
        self.server.recover()

    def close(self) -> None:
        self.server.stop()
