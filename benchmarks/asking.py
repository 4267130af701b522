"""What it costs to ask a running gateway: an answer's time, and the packets' time while someone asks ten times a second."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from natcore import Side, format_ipv4
from natcore.testing.load import FRAME_BYTES, Load

ASKS_A_SECOND = 10
PHASE_SECONDS = 1.0
BATCH = 65_536  # frames of a call, which runs without the GIL
BATCHES = 4

# Another process, as a client is: it asks for so many seconds as a line says, and answers with each answer's milliseconds.
_CLIENT = f"""
import json, sys, time
from natcore.control.client import Client
with Client(sys.argv[1]) as client:
    for line in sys.stdin:
        end, taken = time.monotonic() + float(line), []
        while (start := time.monotonic()) < end:
            rows = client.ask("sessions", subscriber=sys.argv[2])
            assert len(rows) == int(sys.argv[3]), len(rows)
            taken.append((time.monotonic() - start) * 1e3)
            time.sleep(max(0.0, 1 / {ASKS_A_SECOND} - (time.monotonic() - start)))
        print(json.dumps(taken), flush=True)
"""


class Asked:
    """A gateway with sessions, packets for them, and a client that asks for one subscriber's sessions."""

    def __init__(self, loaded: Load, client: subprocess.Popen[str]) -> None:
        self._loaded, self._client = loaded, client
        self._frames = [loaded.frames(Side.INSIDE, BATCH)[0] for _ in range(BATCHES)]
        self._work = np.empty_like(self._frames[0])
        self._verdicts = np.empty(BATCH, np.uint8)

    def asks(self, seconds: float) -> None:
        """Have the client ask from now on, for so long."""
        assert self._client.stdin is not None
        print(seconds, file=self._client.stdin, flush=True)

    def answers(self) -> list[float]:
        """Milliseconds of each answer, when all have come."""
        assert self._client.stdout is not None
        line = self._client.stdout.readline()
        if not line:
            raise AssertionError("the client has failed")
        found: list[float] = json.loads(line)
        return found

    def packet_seconds(self, seconds: float) -> float:
        """Processor time of a packet, over so long: other programs of the machine take turns, and none of it."""
        spent, done, end = 0.0, 0, time.monotonic() + seconds
        while time.monotonic() < end:
            np.copyto(self._work, self._frames[done // BATCH % BATCHES])
            lengths = np.full(BATCH, FRAME_BYTES, np.uint32)
            start = time.thread_time()
            self._loaded.gateway.translate(self._work, lengths, Side.INSIDE, now=self._loaded.now, out=self._verdicts)
            spent += time.thread_time() - start
            self._loaded.expect(self._verdicts, Side.INSIDE)
            done += BATCH
        return spent / done

    def alone(self) -> float:
        return self.packet_seconds(PHASE_SECONDS)

    def while_asked(self) -> float:
        self.asks(PHASE_SECONDS)
        found = self.packet_seconds(PHASE_SECONDS)
        if not self.answers():
            raise AssertionError("nothing was asked")
        return found


@contextmanager
def asked(sessions: int) -> Iterator[Asked]:
    """A gateway with so many sessions, served at a socket."""
    loaded = Load(sessions, churn=1)
    first = loaded.gateway.sessions()[0]
    count = sum(len(rows) for rows in loaded.gateway.find_sessions(subscriber=int(first["inside_ip"])))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s")
        loaded.gateway.serve_control(path)
        client = subprocess.Popen(
            [sys.executable, "-c", _CLIENT, str(path), format_ipv4(first["inside_ip"]), str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            yield Asked(loaded, client)
        finally:
            assert client.stdin is not None and client.stdout is not None
            client.stdin.close()
            client.wait(30)
            client.stdout.close()
            loaded.gateway.close()
