"""The commands that query the session log: who; and log top, usage, export, verify."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from natcore.cli import report
from natcore.cli.command import Json, failing, say
from natcore.cli.control import Instance, add_log_commands, print_live_owner
from natcore.errors import ConfigurationError
from natcore.internal import exit_codes
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra
from natcore.internal.protocols import NAMES, protocol_name
from natcore.internal.redaction import show

with extra("cli"):
    import typer

if TYPE_CHECKING:
    from rich.table import Table

    from natcore.who.query import Answer, Match
    from natcore.who.store import Store

EXIT_STATUS = {
    "exact": ExitCode.OK, "held-idle": ExitCode.OK, "static": ExitCode.OK, "ambiguous": exit_codes.Answer.AMBIGUOUS,
    "gap": exit_codes.Answer.GAP, "unused": exit_codes.Answer.UNUSED,
}  # fmt: skip


def add_to(app: typer.Typer) -> None:
    app.command()(who)
    app.add_typer(log_app, name="log")


def who(
    endpoint: Annotated[str, typer.Argument(metavar="ADDRESS:PORT", help="The outside address and port.")],
    protocol: Annotated[
        str | None, typer.Option(help="tcp, udp, icmp (the port is its identifier), or a number.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="When, with its zone: 2026-11-20T12:03:17Z, 2026-11-20T20:03:17+08:00.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="The folder of the log's Parquet files.")] = None,
    spool: Annotated[Path | None, typer.Option(help="The folder where rows wait for their destination.")] = None,
    config: Annotated[Path | None, typer.Option(help="The gateway's file: it names both folders.")] = None,
    remote: Annotated[str | None, typer.Option(metavar="ADDRESS[:PORT]", help="Whom it talked to.")] = None,
    tolerance: Annotated[float, typer.Option(help="Seconds by which the time may be wrong.")] = 2.0,
    live: Annotated[bool, typer.Option("--live", help="Who has it now: ask the running gateway.")] = False,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Who had an outside address and port then; with --live, who has it now.

    With the file of a gateway with ports = "deterministic", and without --log, --spool and --at, the answer is computed
    (RFC 7422).
    """
    with failing(as_json):
        if live:
            if any(value is not None for value in (at, log, spool, config)):
                raise ConfigurationError(
                    "natcore who --live: the running gateway is asked; --at, --log, --spool and --config ask the log"
                )
            address, port = _whole_endpoint(endpoint)
            raise typer.Exit(print_live_owner(address, port, protocol, remote, instance, as_json))
        if config is not None and log is None and spool is None and at is None:
            raise typer.Exit(_compute(endpoint, protocol, config, as_json))
        answer = _ask(endpoint, protocol, at, _places(log, spool, config), remote, tolerance)
    if as_json:
        report.print_json(answer.as_dict())
    else:
        _print_answer(answer)
    raise typer.Exit(EXIT_STATUS[answer.status])


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows are."""

    log: Path | None
    spool: Path | None


def _places(log: Path | None, spool: Path | None, config: Path | None) -> Places:
    if config is not None:
        from natcore.service.configuration_file import load

        settings = load(config)
        kept = [each for each in settings.logs if getattr(each.sink, "delivery_type", "") == "parquet"]
        if log is None and kept:
            log = Path(kept[0].arguments["folder"])
            spools = [each.options["spool"] for each in kept if "spool" in each.options]
            spool = spool or next((Path(folder) for folder in spools if Path(folder).is_dir()), None)
    if log is None and spool is None:
        found = f"{config} has no [[log]] with sink = 'parquet'" if config else "no --log, --spool or --config"
        raise ConfigurationError(f"where the log is: {found}; give one of them")
    return Places(log, spool)


def _compute(endpoint: str, protocol: str | None, config: Path, as_json: bool) -> int:
    """Print the host that has the port by the gateway's file alone; -> the exit status."""
    from natcore import deterministic
    from natcore.config import AnyEntry, Policy
    from natcore.service.configuration_file import load

    settings = load(config)
    policy = settings.gateway.get("policy", Policy())
    if policy.ports != "deterministic":
        raise ConfigurationError(
            f"--at is missing; only with ports = 'deterministic' it may be left out, got {show(policy.ports)}"
        )
    address, port = _whole_endpoint(endpoint)
    mode = settings.gateway.get("eip_bind_mode", "NAT")
    entries: list[AnyEntry] = [*settings.snat, *settings.dnat, *settings.no_nat]
    host = deterministic.who(entries, policy, address, port, protocol, eip_bind_mode=mode)
    if as_json:
        report.print_json({"status": "unused" if host is None else "computed", "subscriber": host})
    elif host is None:
        say(f"unused: by {config} no inside address has {endpoint}")
    else:
        say(f"computed: by {config} {host} has {endpoint}, at all times of this configuration")
    return EXIT_STATUS["unused"] if host is None else 0


def _whole_endpoint(text: str) -> tuple[str, int]:
    address, port = _endpoint("ADDRESS:PORT", text)
    if port is None:
        raise ConfigurationError(f"ADDRESS:PORT must be an address, a colon and a port, got {show(text)}")
    return address, port


def _ask(
    endpoint: str, protocol: str | None, at: str | None, places: Places, remote: str | None, tolerance: float
) -> Answer:
    from natcore.who import query

    address, port = _whole_endpoint(endpoint)
    if protocol is None or at is None:
        raise ConfigurationError(f"{'--protocol' if protocol is None else '--at'} is missing; give both")
    target = None if remote is None else _endpoint("--remote", remote)
    return query.who(
        places.log, address, port, protocol=int(protocol) if protocol.isdigit() else protocol, at=_moment("--at", at),
        remote=None if target is None else target[0] if target[1] is None else (target[0], target[1]),
        tolerance=tolerance, spool=places.spool,
    )  # fmt: skip


def _endpoint(name: str, text: str) -> tuple[str, int | None]:
    address, colon, port = text.partition(":")
    if colon and not port.isdigit():
        raise ConfigurationError(f"{name} must be an address, a colon and a port, got {show(text)}")
    return address, int(port) if colon else None


def _moment(name: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigurationError(f"{name} must be a time with its zone, such as 2026-11-20T12:03:17Z, got {show(text)}")
    return moment


def _print_answer(answer: Answer) -> None:
    protocol = NAMES.get(answer.protocol, f"protocol {answer.protocol}")
    say(f"{answer.status}: {answer.reason}")
    say(f"({answer.address}:{answer.port} {protocol} at {_utc(answer.at)} within {answer.tolerance:g} s)")
    for match in answer.matches:
        _print_match(match)
    for start, end, reason in answer.gaps:
        say(f"not known: {_utc(start)} to {_utc(end) if end else 'now'}: {reason}")


def _print_match(match: Match) -> None:
    remote = "a remote that is redacted" if match.pub_ip is None else f"{match.pub_ip}:{match.pub_port}"
    eip = "" if match.eip in (None, match.nat_ip) else f" (EIP {match.eip})"
    say(f"  {match.pri_ip}:{match.pri_port} as {match.nat_ip}:{match.nat_port}{eip} to {remote}")
    if match.window:
        say(f"    window {_utc(match.window[0])} to {_utc(match.window[1])}")
    say(f"    session {match.session}, seen {_utc(match.start)} to {_utc(match.end) if match.end else '…'}")


def _utc(moment: datetime) -> str:
    """Return the moment in UTC, in whole seconds if it is one."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")


# ---- natcore log ----------------------------------------------------------------------------------------------------

log_app = typer.Typer(
    no_args_is_help=True,
    help="The session logs of the running gateway (list, start, stop, retry), and their files (top, usage, export, verify).",
)
add_log_commands(log_app)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the log's Parquet files.")]
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
            {"address": each.address, "protocol": each.protocol, "start": _utc(each.start), "step": step,
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
        console.print(f"from {_utc(found[0].start)} to {_utc(last)}; a full block is {highest:,} ports")
    if plot is not None:
        console.print(f"drawn: {report.text(plot)}", soft_wrap=True)


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


def _store(folder: Path) -> Store:
    from natcore.who.store import Store

    return Store(folder)


def _range(start: str | None, until: str | None) -> dict[str, Any]:
    return {
        "start": None if start is None else _moment("--from", start),
        "end": None if until is None else _moment("--until", until),
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
