"""What the commands show: sessions, counters and checks, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
from rich import box
from rich.console import Console
from rich.table import Table

WIDE = 140  # columns, where the output is not a terminal
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP"}  # IANA

Row = dict[str, Any]


class Check(NamedTuple):
    """Something that must hold, and what was found."""

    text: str
    ok: bool
    found: str


def read_sessions(folder: Path) -> list[Row]:
    """The window rows in a folder of Parquet files, oldest first."""
    if not any(folder.glob("*.parquet")):
        return []
    with duckdb.connect() as database:
        database.execute("SET TimeZone = 'UTC'")
        found = database.execute(
            """
            SELECT instance, vpc_id, protocol, pri_ip, pri_port, pub_ip, pub_port, nat_ip, nat_port,
                   bytes_from_pub, pkts_from_pub, bytes_from_vpc, pkts_from_vpc,
                   epoch_us(start_time) AS start_time, epoch_us(end_time) AS end_time, session, number
            FROM read_parquet($files) WHERE kind = 'window' ORDER BY number
            """,
            {"files": str(folder / "*.parquet")},
        )
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def total(rows: Iterable[Row], column: str) -> int:
    return sum(int(row[column]) for row in rows)


def console(*, quiet: bool = False) -> Console:
    """Standard output; what is not a terminal is wide enough for every table."""
    made = Console(quiet=quiet, highlight=False)
    return made if made.is_terminal else Console(quiet=quiet, highlight=False, width=WIDE)


def sessions_table(rows: Sequence[Row], width: int = WIDE, title: str = "Session log") -> Table:
    """One line a row; start in UTC. width: columns of the screen; a narrow one leaves out start and seconds."""
    table = Table(title=title, caption=f"{len(rows)} rows", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("proto", "inside", "outside", "remote"):
        table.add_column(heading, overflow="fold")
    timed = ("start", "seconds") if width >= 120 else ()
    for heading in ("pkts out", "bytes out", "pkts in", "bytes in", *timed):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        remote = str(row["pub_ip"]) if row["protocol"] == 1 else f"{row['pub_ip']}:{row['pub_port']}"
        numbers = [f"{row[name]:,}" for name in ("pkts_from_vpc", "bytes_from_vpc", "pkts_from_pub", "bytes_from_pub")]
        if timed:
            start = datetime.fromtimestamp(row["start_time"] / 1e6, UTC)
            numbers += [f"{start:%H:%M:%S.%f}"[:-3], f"{(row['end_time'] - row['start_time']) / 1e6:.3f}"]
        endpoints = (f"{row['pri_ip']}:{row['pri_port']}", f"{row['nat_ip']}:{row['nat_port']}", remote)
        table.add_row(PROTOCOLS.get(row["protocol"], str(row["protocol"])), *endpoints, *numbers)
    return table


def counters_table(counters: Mapping[str, int], title: str = "Counters") -> Table:
    """Those that are not zero."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("counter")
    table.add_column("value", justify="right")
    for name, value in counters.items():
        if value:
            table.add_row(name, f"{value:,}")
    return table


def print_checks(console: Console, checks: Iterable[Check]) -> None:
    for check in checks:
        mark = "[green]holds[/]" if check.ok else "[bold red]fails[/]"
        console.print(f"{mark}  {check.text}: {check.found}", soft_wrap=True)


def print_json(value: object, *, indent: int | None = 2) -> None:
    """To standard output; what JSON has no word for becomes text."""
    print(json.dumps(value, indent=indent, default=str), flush=True)
