"""Sessions, counters and checks as tables or as JSON, for all commands."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from natcore.internal.extras import extra
from natcore.internal.files import open_regular
from natcore.internal.protocols import ICMP, protocol_name
from natcore.internal.redaction import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 140  # columns, where the output is not a terminal

Row = dict[str, Any]


class Check(NamedTuple):
    """A condition that must hold, whether it does, and what was found."""

    text: str
    ok: bool
    found: str


def read_sessions(folder: Path) -> list[Row]:
    """Return the window rows in a folder of Parquet files, oldest first. Raises UntrustedFileError: one is a link."""
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        return []
    for path in paths:  # DuckDB follows a link
        os.close(open_regular(path))
    with extra("query"):
        import duckdb

    with duckdb.connect() as database:
        database.execute("SET TimeZone = 'UTC'")
        found = database.execute(
            """
            SELECT instance, vpc_id, protocol, pri_ip, pri_port, pub_ip, pub_port, nat_ip, nat_port,
                   bytes_from_pub, pkts_from_pub, bytes_from_vpc, pkts_from_vpc,
                   epoch_us(start_time) AS start_time, epoch_us(end_time) AS end_time, session, number
            FROM read_parquet($files) WHERE kind = 'window' ORDER BY number
            """,
            {"files": [str(path) for path in paths]},
        )
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def total(rows: Iterable[Row], column: str) -> int:
    return sum(int(row[column]) for row in rows)


def text(value: object) -> str:
    """Escape a value for a rich console: neither its markup nor a terminal's takes effect."""
    from rich.markup import escape

    return escape(printable(str(value), keep="\n"))


def console(*, quiet: bool = False) -> Console:
    """Return a console on standard output; without a terminal it is wide enough for every table."""
    from rich.console import Console

    made = Console(quiet=quiet, highlight=False)
    return made if made.is_terminal else Console(quiet=quiet, highlight=False, width=WIDE)


def as_text(table: Table) -> str:
    """Render a table as text, without its last line end."""
    from rich.console import Console

    shown = console()
    made = Console(file=io.StringIO(), highlight=False, width=shown.width, force_terminal=shown.is_terminal)
    made.print(table)
    return made.file.getvalue().rstrip("\n")  # type: ignore[attr-defined,no-any-return]


def sessions_table(rows: Sequence[Row], width: int = WIDE, title: str = "Session log") -> Table:
    """One line a row; start in UTC. width: columns of the screen; a narrow one gets ports below their addresses."""
    from rich import box
    from rich.table import Table

    wide = width >= 120
    table = Table(title=title, caption=f"{len(rows)} rows", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("proto", "inside", "outside", "remote"):
        table.add_column(heading, overflow="fold")
    for heading in ("pkts out", "bytes out", "pkts in", "bytes in", *(("start", "seconds") if wide else ())):
        table.add_column(heading if wide else heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        endpoints = [_endpoint(row, name, ":" if wide else "\n:") for name in ("pri", "nat", "pub")]
        numbers = [f"{row[name]:,}" for name in ("pkts_from_vpc", "bytes_from_vpc", "pkts_from_pub", "bytes_from_pub")]
        if wide:
            start = datetime.fromtimestamp(row["start_time"] / 1e6, UTC)
            numbers += [f"{start:%H:%M:%S.%f}"[:-3], f"{(row['end_time'] - row['start_time']) / 1e6:.3f}"]
        table.add_row(protocol_name(row["protocol"]), *endpoints, *numbers)
    return table


def _endpoint(row: Row, name: str, colon: str) -> str:
    """Return address and port; an ICMP session has an id on the gateway's two sides, and no port at its remote."""
    if name == "pub" and row["protocol"] == ICMP:
        return str(row["pub_ip"])
    return f"{row[f'{name}_ip']}{colon}{row[f'{name}_port']}"


def counters_table(counters: Mapping[str, int], title: str = "Counters") -> Table:
    """Return the counters that are not zero."""
    from rich import box
    from rich.table import Table

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
        console.print(f"{mark}  {text(check.text)}: {text(check.found)}", soft_wrap=True)


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print to standard output; values that JSON does not have become text."""
    print(json.dumps(value, indent=indent, default=str), flush=True)
