"""`natcore restart` under real traffic: what the traffic, the session log and its questions say of it."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from natcore.demo.namespaces import Network
from natcore.who.query import who
from support.netns import CLIENT, POOL, SERVER, ping, until
from support.service import run
from support.traffic import Download, Flows, Idle, Iperf

FILE = """
[gateway]
max_sessions = 100000
[[snat]]
source = "10.0.0.0/24"
pool = "{pool}"
[[log]]
sink = "parquet"
folder = "{folder}/log"
name = "audit"
spool = "{folder}/spool"
[control]
path = "{folder}/nat.sock"
[state]
path = "{folder}/nat.state"
[plane]
inside = "lan0"
outside = "wan0"
"""


@dataclass
class Found:
    """wrong: in words. waited: seconds that packets waited, by restart. longest: seconds without an answer or data, by traffic.
    told: the last counters. dropped: frames from inside that found the ring full."""

    wrong: list[str] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    longest: dict[str, float] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0


def restart(network: Network, folder: Path) -> dict[str, Any]:
    """Ask for one, and return what is answered."""
    command = [sys.executable, "-m", "natcore.cli.main", "restart", "--json", "--instance", str(folder / "nat.sock")]
    done = network.run("gw", command, check=False)
    return {"error": done.stderr, **json.loads(done.stdout or "{}"), "status": done.returncode}


def look(
    network: Network, folder: Path, *, restarts: int, connections: int, size: int, seconds: float, iperf: str = "",
    more: str = "",
) -> Found:  # fmt: skip
    """Restart so often while all kinds of traffic go on, in these seconds, and look at everything after it."""
    found = Found()
    file = folder / "gateway.toml"
    file.write_text(FILE.format(folder=folder, pool=POOL) + more)
    with (folder / "told").open("w") as output:
        process = run(network, file, "--json", stdout=output, text=True)
        try:
            until(lambda: (folder / "nat.sock").exists())
            until(lambda: ping(network, "in", SERVER))
            flows = Flows(network, 20)
            idle = Idle(network, connections)
            traffic: list[Idle | Flows | Download | Iperf] = [idle, Idle(network, 20, every=0.5), flows]
            if iperf:
                traffic.append(Iperf(network, seconds, iperf))
            download = Download(network, size, rate=round(size / seconds))
            traffic.append(download)
            moments: list[datetime] = []
            began = time.monotonic()
            for number in range(restarts):
                time.sleep(max(0.0, began + seconds * (number + 0.5) / restarts - time.monotonic()))
                answer = restart(network, folder)
                if answer["status"]:
                    found.wrong.append(f"restart {number}: {answer['error'].strip()}")
                    continue
                found.waited.append(answer["seconds"])
                moments.append(datetime.now(UTC))
            for each in reversed(traffic):  # the idle ones last
                found.wrong += each.finish()
            found.longest = {"udp": flows.longest, "download": download.longest}
            # The last one has no [state], so that it closes all windows at its end.
            file.write_text(file.read_text().replace("[state]", "").replace(f'path = "{folder}/nat.state"', ""))
            answer = restart(network, folder)
            if answer["status"]:
                found.wrong.append(f"the last restart: {answer['error'].strip()}")
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                found.wrong.append(f"the service ended with {process.returncode}")
    lines = [json.loads(line) for line in (folder / "told").read_text().splitlines() if line.startswith('{"happened"')]
    stopped = [line for line in lines if line["happened"] == "stopped"]
    found.told = stopped[-1]["counters"]
    drops = sum(line["counters"].get("inside_ring_drops", 0) for line in stopped)
    found.dropped = drops
    _check_account(found, folder, flows)
    _check_answers(found, folder, flows, moments)
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return every row of the log, by its number."""
    import pyarrow.dataset

    files = sorted(map(str, folder.rglob("*.parquet")))
    table = pyarrow.dataset.dataset(files, format="parquet").to_table().to_pydict()
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    return sorted(rows, key=lambda row: (row["number"], row["kind"]))


def _check_account(found: Found, folder: Path, flows: Flows) -> None:
    """Each number is there once, no gap is told, and the sums are those of the traffic and of the gateway's counters."""
    rows = rows_of(folder / "log")
    if any(row["kind"] == "gap" for row in rows):
        found.wrong.append("the log tells of a gap")
    numbers = [int(row["number"]) for row in rows if row["kind"] in ("window", "create", "end")]
    if numbers != list(range(len(numbers))):
        found.wrong.append("numbers of rows are missing, or come twice")
    windows = [row for row in rows if row["kind"] == "window"]
    udp = [row for row in windows if row["protocol"] == 17 and row["pri_port"] in flows.sent]
    lost = sum(flows.sent.values()) - sum(int(row["pkts_from_vpc"]) for row in udp)
    if not 0 <= lost <= found.dropped:  # a ring that no one has read for too long is full, and counts
        found.wrong.append(f"of UDP {lost} packets are not in the log, {found.dropped} were dropped by the rings")
    for side, name in (("inside", "bytes_from_vpc"), ("outside", "bytes_from_pub")):
        logged, counted = sum(int(row[name]) for row in windows), found.told[f"bytes_from_{side}"]
        if logged != counted:
            found.wrong.append(f"{counted:,} bytes came from {side}, the log has {logged:,}")


def _check_answers(found: Found, folder: Path, flows: Flows, moments: list[datetime]) -> None:
    """Ask who had a flow's outside endpoint, just after each restart."""
    [(port, seen), *_] = flows.seen.items()
    for moment in moments:
        answer = who(
            folder / "log", POOL, next(iter(seen)), protocol="udp", at=moment, tolerance=0.0, spool=folder / "spool"
        )
        if answer.status != "exact" or answer.subscribers != [CLIENT]:
            found.wrong.append(f"who had port {port} at {moment}: {answer.status}, {answer.reason}")
            break
