"""The commands of the session log's files: log top, usage, refusals, export, verify, compact, upload."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from natcore.cli import report
from natcore.cli.command import Json, failing, say
from natcore.cli.control import add_log_commands
from natcore.cli.times import moment_of, utc
from natcore.errors import ConfigurationError
from natcore.internal import exit_codes
from natcore.internal.extras import extra
from natcore.internal.protocols import protocol_name

with extra("cli"):
    import typer

if TYPE_CHECKING:
    from rich.table import Table

    from natcore.who.store import Store


def add_to(app: typer.Typer) -> None:
    app.add_typer(log_app, name="log")


# ---- natcore log ----------------------------------------------------------------------------------------------------

log_app = typer.Typer(
    no_args_is_help=True,
    help="The session logs of the running gateway (list, start, stop, retry), and their files (top, usage, refusals, export, "
    "verify, compact, upload).",
)
add_log_commands(log_app)

Folder = Annotated[
    str, typer.Argument(metavar="FOLDER|URL", help="The folder of the log's Parquet files, or s3://BUCKET/PREFIX.")
]
LocalFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the log's Parquet files.")]
From = Annotated[str | None, typer.Option("--from", help="Rows that ended at this time or later, with its zone.")]
Until = Annotated[str | None, typer.Option("--until", help="Rows that ended before this time.")]


@log_app.command()
def top(
    folder: Folder,
    by: Annotated[str, typer.Option(help="bytes, sessions or ports.")] = "bytes",
    limit: Annotated[int, typer.Option(help="Lines.")] = 10,
    start: From = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """Who uses most: the subscribers with most bytes, sessions or outside ports."""
    with failing(as_json):
        from natcore.who import usage

        talkers = usage.top(_store(folder), by=by, limit=limit, **_range(start, until))  # type: ignore[arg-type]
    if as_json:
        report.print_json([asdict(talker) | {"bytes": talker.bytes} for talker in talkers])
        return
    table = _table("inside", "gateway", numbers=("bytes", "bytes out", "bytes in", "packets", "sessions", "ports"))
    for each in talkers:
        counts = (each.bytes, each.bytes_from_vpc, each.bytes_from_pub, each.packets, each.sessions, each.ports)
        table.add_row(str(each.pri_ip), report.text(each.instance), *(f"{count:,}" for count in counts))
    report.console().print(table)


@log_app.command("usage")
def show_usage(
    folder: Folder,
    step: Annotated[float, typer.Option(help="Seconds; the most ports at a time in each.")] = 300.0,
    address: Annotated[str | None, typer.Option(help="This outside address (as on the wire) only.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw into this .png or .svg file.")] = None,
    start: From = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """SNAT ports in use over time, for each outside address and protocol."""
    with failing(as_json):
        from natcore.who import plots, usage

        if plot is not None:
            plots.check_picture(plot)
        found = usage.port_usage(_store(folder), step=step, address=address, **_range(start, until))
        if plot is not None:
            plots.save(found, plot)
    if as_json:
        report.print_json([
            {"address": each.address, "protocol": each.protocol, "start": utc(each.start), "step": step,
             "peaks": each.peaks} for each in found
        ])  # fmt: skip
        return
    table = _table("outside", "proto", numbers=("now", "most"), last="use over time")
    highest = max((max(each.peaks) for each in found), default=0)
    console = report.console()
    for each in found:
        line = plots.blocks(each.peaks, highest, max(10, console.width - 50))
        protocol = protocol_name(each.protocol)
        table.add_row(str(each.address), protocol, f"{each.peaks[-1]:,}", f"{max(each.peaks):,}", line)
    console.print(table)
    if found:
        last = found[0].start + len(found[0].peaks) * found[0].step
        console.print(f"from {utc(found[0].start)} to {utc(last)}; a full block is {highest:,} ports")
    if plot is not None:
        console.print(f"drawn: {report.text(plot)}", soft_wrap=True)


@log_app.command("refusals")
def show_refusals(
    log: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|URL",
            help="The log's Parquet files (a folder, or s3://BUCKET/PREFIX), or ClickHouse's "
            "http://HOST:8123/DATABASE/TABLE.",
        ),
    ],
    start: Annotated[str, typer.Option("--from", help="The begin of the span, with its zone.")],
    until: Annotated[str, typer.Option("--until", help="The end of the span.")],
    subscriber: Annotated[str | None, typer.Option(help="This inside address only.")] = None,
    spool: Annotated[Path | None, typer.Option(help="The folder where rows wait for their destination.")] = None,
    as_json: Json = False,
) -> None:
    """What was refused to whom, when and why, and other events: of a log with refusals = true.

    Exit status 0: this is all. Else as of natcore who: there may be more.
    """
    with failing(as_json):
        from natcore.who.places import source_at
        from natcore.who.refusals import refusals

        answer = refusals(
            source_at(log), start=moment_of("--from", start), end=moment_of("--until", until), subscriber=subscriber,
            spool=spool,
        )  # fmt: skip
    if as_json:
        report.print_json(answer.as_dict())
    else:
        table = _table("from", "until", "subscriber", "reason", "limit", "first to", numbers=("count",))
        for row in (*answer.rows, *answer.perhaps):
            table.add_row(
                utc(row.start), utc(row.end), "several" if row in answer.perhaps else str(row.subscriber or row.outside or ""),
                row.reason, row.limit, _place(row.destination, row.port, row.protocol), f"{row.count:,}",
            )  # fmt: skip
        report.console().print(table)
        say(f"{answer.status}: {answer.count:,} in {len(answer.rows):,} rows")
        for begin, end, why in answer.gaps:
            say(f"  {utc(begin)} to {utc(end)}: {why}")
    raise typer.Exit(0 if answer.status == "complete" else exit_codes.Answer.GAP)


def _place(address: object, port: int, protocol: int) -> str:
    where = "" if address is None else f"{address}:{port}" if port else f"{address}"
    return f"{where} {protocol_name(protocol)}".strip() if protocol else where


@log_app.command()
def export(
    folder: Folder,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="To write: .csv, .jsonl or .parquet.")],
    start: From = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """Write rows into a file for another program."""
    with failing(as_json):
        from natcore.who import usage

        rows = usage.export(_store(folder), target, **_range(start, until))
    if as_json:
        report.print_json({"ok": True, "rows": rows, "file": target})
    else:
        say(f"{rows:,} rows: {target}")


@log_app.command()
def verify(
    folder: Folder,
    anchor: Annotated[
        str | None, typer.Option(help="A SHA-256 that an earlier verification printed, or the file that it wrote.")
    ] = None,
    write_anchor: Annotated[Path | None, typer.Option(help="Write the state as it is now into this file.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="The key of the anchor's HMAC; without it NATCORE_ANCHOR_KEY, if that is set.")
    ] = None,
    timestamp_url: Annotated[
        str | None, typer.Option(help="Have this RFC 3161 service stamp the anchor that is written: anchor.tsr.")
    ] = None,
    timestamp_ca: Annotated[
        Path | None, typer.Option(help="The anchor's time stamp must be under a certificate in this file (PEM).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Whether files were changed, removed or put in another order."""
    with failing(as_json):
        from natcore.who.anchor import read_anchor, read_key
        from natcore.who.timestamps import check_stamp, stamp
        from natcore.who.verify import verify as verify_files

        if timestamp_url is not None and write_anchor is None:
            raise ConfigurationError("--timestamp-url needs --write-anchor: it stamps the anchor that is written")
        if timestamp_ca is not None and anchor is None:
            raise ConfigurationError("--timestamp-ca needs --anchor with a file: it checks the time stamp beside it")
        key = read_key(key_file)
        is_file = anchor is not None and re.fullmatch(r"[0-9a-fA-F]{64}", anchor) is None
        if anchor is not None and timestamp_ca is not None:
            check_stamp(anchor, timestamp_ca)
        result = verify_files(folder, read_anchor(anchor, key) if anchor is not None and is_file else anchor)
        if write_anchor is not None and result.ok:
            result.state.write(write_anchor, key)
            if timestamp_url is not None:
                stamp(write_anchor, timestamp_url)
    if as_json:
        shown = asdict(result)
        del shown["state"]
        report.print_json({"ok": result.ok, **shown})
    else:
        for finding in result.findings:
            say(f"{finding.kind}: {finding.file or 'a file'}: {finding.text}")
        state = "as they were written" if result.ok else f"{len(result.findings)} findings"
        say(f"{result.files:,} files, {result.rows:,} rows, {result.removed:,} files removed by retention: {state}")
        if result.anchor is not None:
            say(f"anchor {result.anchor[1]} ({result.anchor[0]})")
        if write_anchor is not None:
            say(f"{write_anchor}: " + ("the anchor is written" if result.ok else "no anchor is written of such a log"))
    raise typer.Exit(0 if result.ok else exit_codes.Answer.FINDINGS)


@log_app.command("compact")
def compact_files(
    folder: LocalFolder,
    as_json: Json = False,
) -> None:
    """Put the files of each hour that is over into sorted ones, by which questions of an endpoint are faster.

    No gateway may be writing into the folder: there the sink's `compact = true` does it.
    """
    with failing(as_json):
        from natcore.sinks.compaction import compact

        done = compact(folder)
    if as_json:
        report.print_json({"ok": True, **asdict(done)})
    else:
        say(f"{done.parts:,} files are {done.files:,} now, of {done.rows:,} rows: {folder}")


@log_app.command("upload")
def upload_files(
    folder: LocalFolder,
    target: Annotated[str, typer.Argument(metavar="URL", help="s3://BUCKET/PREFIX, of this folder alone.")],
    settled: Annotated[
        float,
        typer.Option(help="Seconds without a change after which a file stays: more than the sink's roll_seconds."),
    ] = 4500.0,
    as_json: Json = False,
) -> None:
    """Copy the closed files into object storage; again, for what has come since. Nothing there is deleted.

    The endpoint, the region and the key are AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the
    environment.
    """
    with failing(as_json):
        from natcore.who.upload import upload

        done = upload(folder, target, settled=settled)
    if as_json:
        report.print_json({"ok": not done.damaged, **asdict(done)})
    else:
        for path in done.damaged:
            say(f"damaged: {path}: it is not as it was written, and is not copied; natcore log verify tells more")
        say(
            f"{done.files:,} files, {done.bytes:,} bytes copied; {done.there:,} were there, {done.later:,} are for later"
        )
    raise typer.Exit(exit_codes.Answer.FINDINGS if done.damaged else 0)


def _store(folder: str) -> Store:
    from natcore.who.store import Store

    return Store(folder)


def _range(start: str | None, until: str | None) -> dict[str, Any]:
    return {
        "start": None if start is None else moment_of("--from", start),
        "end": None if until is None else moment_of("--until", until),
    }


def _table(*texts: str, numbers: tuple[str, ...], last: str = "") -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in texts:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    if last:
        table.add_column(last, no_wrap=True)
    return table
