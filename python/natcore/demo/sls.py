"""`natcore demo --sls`: a session log to a Simple Log Service on this machine, which fails and comes back."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from importlib.resources import as_file, files
from ipaddress import IPv4Network
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from natcore.capture import pcap
from natcore.capture.replay import Replay
from natcore.cli.report import Check, Row, read_sessions
from natcore.config import DeliveryPolicy, SnatEntry
from natcore.demo.demo import POOL, replay_checks
from natcore.errors import Error
from natcore.gateway import Gateway
from natcore.sinks import ParquetSink, SlsSink

if TYPE_CHECKING:
    from natcore.sessionlog.session_log import SessionLog
    from natcore.testing import SlsServer

PROJECT, LOGSTORE = "natcore-demo", "session-log"
UNAVAILABLE_SECONDS = 1.5  # in the cloud and unless told: 300
_ROUND_SECONDS = 4 * 3600  # of the gateway's clock: longer than any session is idle
_PATIENCE_SECONDS = 20.0


class Stage(NamedTuple):
    """A moment of the story: what was done, and what the log says then."""

    text: str
    state: str
    cause: str
    delivered: int
    waiting: int


@dataclass(slots=True)
class Story:
    """What happened. sessions: the rows as the Parquet files beside have them."""

    endpoint: str = ""
    stages: list[Stage] = field(default_factory=list)
    sessions: list[Row] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)


def run(progress: Callable[[Stage], None] = lambda stage: None) -> Story:
    """Replay the shipped capture again and again, and deliver its sessions to a server that fails on purpose.

    progress: called with each stage. Raises MissingExtraError without the extra `testing`.
    """
    with ExitStack() as stack:
        server = stack.enter_context(testing().SlsServer())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="natcore-demo-sls-")))
        gateway = stack.enter_context(Gateway(instance="ngw-demo", vpc_id="vpc-demo", region="local"))
        gateway.add(SnatEntry("10.0.0.0/24", pool=POOL))
        scenario = _Scenario(server, gateway, folder, progress)
        scenario.run()
        gateway.close()
        scenario.check()
    return scenario.story


def testing() -> ModuleType:
    """natcore.testing.sls_server; MissingExtraError without the extra `testing`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the SDK's own
        return import_module("natcore.testing.sls_server")


class _Scenario:
    """Tells the story: makes traffic, tells the server what to do, waits for what the log says."""

    def __init__(self, server: SlsServer, gateway: Gateway, folder: Path, progress: Callable[[Stage], None]) -> None:
        self.story = Story(endpoint=server.endpoint)
        self._server, self._gateway, self._folder, self._progress = server, gateway, folder, progress
        self._replay = Replay(gateway, [IPv4Network("10.0.0.0/24")])
        self._rounds = 0
        sink = SlsSink(
            server.endpoint, PROJECT, LOGSTORE, region="local", access_key_id="id", access_key_secret="secret"
        )
        policy = DeliveryPolicy(unavailable=UNAVAILABLE_SECONDS, backoff_min=0.2, backoff_max=1.0, linger=0.0)
        gateway.start_session_log(ParquetSink(folder / "parquet"), name="beside")
        self._log: SessionLog = gateway.start_session_log(sink, name="sls", spool=folder / "spool", delivery=policy)

    def run(self) -> None:
        self._wait(lambda: self._log.delivery_status.state == "Success")
        self._report(f"project {PROJECT}, Logstore {LOGSTORE} and its index were missing: made")
        self._traffic()
        self._wait(self._is_settled)
        self._report("sessions ended: their rows are delivered")
        self._unavailable()
        self._server.fail("WriteQuotaExceed", 2)
        self._traffic()
        self._wait(lambda: self._log.delivery_status.state == "Failed")
        self._report("the project's write quota is used up: tried again after a pause, a longer one each time")
        self._wait(self._is_settled)
        self._report("the quota is free again")
        self._server.fail("lost-answer")
        self._traffic()
        self._wait(self._is_settled)
        self._report("a batch was accepted and its answer lost: sent again, and known by its tags to be the same")

    def _unavailable(self) -> None:
        self._server.fail("LogStoreNotExist", None)
        tries = self._tries()
        self._traffic()
        self._wait(lambda: self._log.delivery_status.state == "Failed")
        self._report("the Logstore is gone: no try for a while, new rows wait in the spool on disk")
        self._traffic()
        self._wait(lambda: self._tries() >= tries + 2)
        self._report(f"one test delivery each {UNAVAILABLE_SECONDS:g} s (300 s by default)")
        self._server.recover()
        self._wait(self._is_settled)
        self._report("the Logstore is back: what waited is delivered first, in order")

    def check(self) -> None:
        """The Logstore has each row of the Parquet files once, and in their order."""
        self.story.sessions = read_sessions(self._folder / "parquet")
        self.story.counters = counters = self._log.counters()
        arrived = self._server.rows(PROJECT, LOGSTORE)
        twice = len(self._server.rows(PROJECT, LOGSTORE, unique=False)) - len(arrived)
        same = list(map(_as_logged, self.story.sessions)) == [_numbers(row) for row in arrived]
        self.story.checks = [
            *replay_checks(self._replay, self.story.sessions),
            Check("the Logstore has each row of the Parquet files once, in order", same, f"{len(arrived)} rows"),
            Check("a row that came twice was known", twice > 0, f"{twice} rows"),
            Check("every row is delivered, none is lost",
                  counters["delivered"] == counters["accepted"] and not counters["lost"],
                  f"{counters['delivered']} of {counters['accepted']}, {counters['lost']} lost"),
        ]  # fmt: skip

    def _traffic(self) -> None:
        """The capture once more, some hours later, until all its sessions have ended."""
        offset_ns = self._rounds * _ROUND_SECONDS * 1_000_000_000
        with as_file(files("natcore.demo") / "data" / "demo.pcap") as path:
            self._replay.run(self._shifted(path, offset_ns))
        self._rounds += 1
        self._gateway.advance(now=self._rounds * _ROUND_SECONDS - 1)

    @staticmethod
    def _shifted(path: Path, offset_ns: int) -> Iterator[pcap.Packet]:
        for packet in pcap.read(path):
            yield packet._replace(time_ns=packet.time_ns + offset_ns)

    def _is_settled(self) -> bool:
        counters = self._log.counters()
        made = self._gateway.counters()["ended"]
        return counters["delivered"] == counters["accepted"] >= made and self._log.delivery_status.state == "Success"

    def _tries(self) -> int:
        return sum(path.endswith("/shards/lb") for _, path, _ in list(self._server.requests))

    def _report(self, text: str) -> None:
        status, counters = self._log.delivery_status, self._log.counters()
        waiting = counters["queued"] + counters["spooled"]
        cause = " ".join(word for word in (status.code, status.cause) if word)
        self.story.stages.append(Stage(text, status.state, cause, counters["delivered"], waiting))
        self._progress(self.story.stages[-1])

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise Error(
                    f"demo --sls: stuck after {self.story.stages[-1:]}; the log says {self._log.delivery_status}"
                )
            time.sleep(0.02)


def _as_logged(row: Row) -> Row:
    """A Parquet row as the page's 15 fields, which have whole seconds."""
    fields = {name: value for name, value in row.items() if name not in ("session", "number")}
    return fields | {name: row[name] // 1_000_000 for name in ("start_time", "end_time")}


def _numbers(row: dict[str, str]) -> Row:
    return {name: int(value) if value.isdigit() else value for name, value in row.items() if name != "__time__"}
