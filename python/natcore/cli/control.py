"""The commands that ask a running gateway over its control socket: status, sessions, top, watch, end and others."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from natcore.cli import report
from natcore.cli.command import Json, failing, say
from natcore.cli.words import explanation_text, owner_lines
from natcore.errors import ConfigurationError, ControlError
from natcore.internal.exit_codes import Answer, ExitCode
from natcore.internal.extras import extra
from natcore.internal.redaction import show

with extra("cli"):
    import typer

if TYPE_CHECKING:
    from rich.table import Table

    from natcore.capture.pcapng import PcapngWriter
    from natcore.control.client import Client

Row = Mapping[str, Any]
POLL_SECONDS = 0.2

Instance = Annotated[
    str | None,
    typer.Option(help="The gateway's name, or its socket's path; not needed where one alone runs.", show_default=False),
]
Subscriber = Annotated[
    str | None, typer.Option(metavar="ENDPOINT", help="The inside address or prefix; a port may follow a colon.")
]
Remote = Annotated[str | None, typer.Option(metavar="ENDPOINT", help="The remote address, likewise.")]
Outside = Annotated[str | None, typer.Option(metavar="ENDPOINT", help="The outside address, likewise.")]
Protocol = Annotated[str | None, typer.Option(help="tcp, udp, icmp, or a number.")]
EntryName = Annotated[str | None, typer.Option("--entry", metavar="NAME", help="An entry, by its name or number.")]
Sort = Annotated[str | None, typer.Option(metavar="KEY", help="What comes first; a wrong one lists the keys.")]
Limit = Annotated[int, typer.Option(help="Rows at most; 0: all.")]
DEFAULT_LIMIT = 1000


def add_to(app: typer.Typer) -> None:
    for command in (status, sessions, mappings, ports, blocks, metrics, top, watch, end, capture):
        app.command()(command)


# ---- asking ---------------------------------------------------------------------------------------------------------


@contextmanager
def asking(instance: str | None, *, timeout: float | None = 30.0) -> Iterator[Client]:
    """Connect to the gateway."""
    from natcore.control import client

    with client.Client(client.find(instance), timeout=timeout) as connected:
        yield connected


def ask(instance: str | None, verb: str, **arguments: Any) -> Row:
    """Ask for a change, however long it takes; return what the gateway says of it."""
    with asking(instance, timeout=None) as client:
        list(client.ask(verb, **arguments))
        return client.summary


def print_done(done: Row, as_json: bool, text: str) -> None:
    """Print that a change is done, as an object or in words."""
    if as_json:
        report.print_json({"ok": True, **done})
    else:
        say(text)


class Column(NamedTuple):
    """A column of a text table: heading, width, what it shows of a row, and whether it is a number."""

    heading: str
    width: int
    of: Callable[[Row], object]
    number: bool = False


def _field(name: str, width: int, heading: str | None = None) -> Column:
    return Column(heading or name, width, lambda row: row[name], True)


def _endpoint(side: str) -> Column:
    """Return address and port; an ICMP session's remote has no port."""
    return Column(side, 21, lambda row: f"{row[f'{side}_ip']}:{row[f'{side}_port']}")


def _entry_of(row: Row) -> object:
    return row["entry_name"] or row["entry"]


PROTOCOL = Column("proto", 5, lambda row: row["protocol"])
SESSION_COLUMNS = (
    PROTOCOL, _endpoint("inside"), _endpoint("outside"), _endpoint("remote"),
    Column("state", 16, lambda row: row["state"] or "-"), Column("entry", 10, _entry_of),
    _field("packets_out", 9, "pkts-out"), _field("bytes_out", 12, "bytes-out"),
    _field("packets_in", 9, "pkts-in"), _field("bytes_in", 12, "bytes-in"),
    Column("age", 8, lambda row: f"{row['age']:.0f}", True), Column("idle", 6, lambda row: f"{row['idle']:.0f}", True),
    Column("expires", 7, lambda row: f"{row['expires']:.0f}", True),
)  # fmt: skip
MAPPING_COLUMNS = (
    PROTOCOL, _endpoint("inside"), _endpoint("outside"), _field("sessions", 8), Column("entry", 10, _entry_of),
)  # fmt: skip
PORT_COLUMNS = (
    Column("outside", 15, lambda row: row["outside_ip"]), Column("eip", 15, lambda row: row["eip"] or "-"), PROTOCOL,
    _field("total", 7), _field("used", 7), _field("held_down", 9, "held-down"), _field("reserved", 8), _field("free", 7),
)  # fmt: skip
BLOCK_COLUMNS = (
    Column("outside", 15, lambda row: row["outside_ip"]), Column("eip", 15, lambda row: row["eip"] or "-"),
    Column("subscriber", 15, lambda row: row["inside_ip"]), _field("first_port", 5, "first"),
    _field("last_port", 5, "last"), _field("ports", 6),
)  # fmt: skip


def _line(columns: Iterable[Column], texts: Iterable[object]) -> str:
    cells = [
        f"{text!s:{'>' if column.number else '<'}{column.width}}" for column, text in zip(columns, texts, strict=True)
    ]
    return "  ".join(cells).rstrip()


def _list(instance: str | None, as_json: bool, verb: str, columns: tuple[Column, ...], **asked: object) -> None:
    """Print an answer's rows as they come: a line of JSON each, or of a table."""
    with failing(as_json), asking(instance) as client:
        rows = client.rows(verb, **asked)
        if as_json:
            for row in rows:
                report.print_json(row, indent=None)
            return
        first = list(islice(rows, 1))  # or an error, and no heading
        say(_line(columns, (column.heading for column in columns)))
        for row in chain(first, rows):
            say(_line(columns, (column.of(row) for column in columns)))
        count = client.summary["rows"]
        more = "; there are more: --limit 0 lists all" if client.summary["more"] else ""
        say(f"{count:,} {verb if count != 1 else verb.removesuffix('s')}{more}", err=True)


def sessions(
    subscriber: Subscriber = None,
    remote: Remote = None,
    outside: Outside = None,
    protocol: Protocol = None,
    entry: EntryName = None,
    sort: Sort = None,
    limit: Limit = DEFAULT_LIMIT,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """List live sessions that match every criterion given, as `conntrack -L` does."""
    _list(
        instance, as_json, "sessions", SESSION_COLUMNS, subscriber=subscriber, remote=remote, outside=outside,
        protocol=protocol, entry=entry, sort=sort, limit=limit,
    )  # fmt: skip


def mappings(
    subscriber: Subscriber = None,
    outside: Outside = None,
    protocol: Protocol = None,
    entry: EntryName = None,
    sort: Sort = None,
    limit: Limit = DEFAULT_LIMIT,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """List live mappings: which outside endpoint stands for an inside endpoint."""
    _list(
        instance, as_json, "mappings", MAPPING_COLUMNS, subscriber=subscriber, outside=outside, protocol=protocol,
        entry=entry, sort=sort, limit=limit,
    )  # fmt: skip


def ports(
    outside: Outside = None,
    protocol: Protocol = None,
    sort: Sort = None,
    limit: Limit = DEFAULT_LIMIT,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """List how many ports of each outside address and protocol are used, held down, reserved and free."""
    _list(instance, as_json, "ports", PORT_COLUMNS, outside=outside, protocol=protocol, sort=sort, limit=limit)


def blocks(
    subscriber: Subscriber = None,
    outside: Outside = None,
    sort: Sort = None,
    limit: Limit = DEFAULT_LIMIT,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """List port blocks and the subscribers that have them."""
    _list(instance, as_json, "blocks", BLOCK_COLUMNS, subscriber=subscriber, outside=outside, sort=sort, limit=limit)


# ---- metrics --------------------------------------------------------------------------------------------------------


def metrics(instance: Instance = None, as_json: Json = False) -> None:
    """Print a running gateway's metrics in OpenMetrics, as `/metrics` does; with --json a line for each sample."""
    with failing(as_json), asking(instance) as client:
        for row in client.rows("metrics", text=not as_json):
            if as_json:
                report.print_json(row, indent=None)
            else:
                typer.echo(row["text"], nl=False)


# ---- status ---------------------------------------------------------------------------------------------------------


def status(
    wait_ready: Annotated[
        bool, typer.Option("--wait-ready", help="Wait until it forwards and its logs deliver.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that --wait-ready waits.")] = 30.0,
    active: Annotated[
        bool, typer.Option("--active", help="Fail also where it is the standby of a pair, with status 70.")
    ] = False,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Say how a running gateway is."""
    with failing(as_json):
        found = _ready_status(instance, timeout) if wait_ready else _status(instance)
    if as_json:
        report.print_json(found)
    else:
        _print_status(found)
    if found["state"] == "degraded" or (active and found.get("peer", {}).get("role") == "standby"):
        raise typer.Exit(ExitCode.FAILED)


def _status(instance: str | None) -> Row:
    with asking(instance) as client:
        client.ask("status")
        return client.summary


def _ready_status(instance: str | None, timeout: float) -> Row:
    end = time.monotonic() + timeout
    while True:
        try:
            found = _status(instance)
            if found["ready"]:
                return found
            reason = "; ".join(found["waiting_for"])
        except ControlError as error:
            if error.code != ExitCode.TRY_AGAIN:
                raise
            reason = str(error)
        if time.monotonic() >= end:
            raise ControlError(f"not ready after {timeout:g} seconds: {reason}", ExitCode.TRY_AGAIN)
        time.sleep(POLL_SECONDS)


def _peer_lines(peer: Row) -> list[str]:
    """Return how one gateway of a pair is."""
    lag, counters = peer["lag_seconds"], peer["counters"]
    if peer["role"] == "standby":
        if not peer["connected"]:
            stream = "does not reach it"
        elif not peer["has_image"]:
            stream = "gets its sessions"
        else:
            stream = f"heard it {lag:.2f} s ago"
        has = (
            f"; has its sessions, {counters['rows_applied']:,} rows"
            if peer["has_image"]
            else "; could take over nothing"
        )
        lines = [f"{peer['name']} is the standby of {peer['peer_name']}: {stream}{has}"]
    else:
        stream = "is not followed" if not peer["connected"] else (
            f"its standby {peer['peer_name']} is {counters['lag_records']:,} rows and {lag:.2f} s behind"
        )  # fmt: skip
        lines = [f"{peer['name']} is {peer['role']}: {stream}"]
    if peer["lease_seconds"] is not None:
        votes = ", ".join(f"{voter}'s to {holder or 'no one'}" for voter, holder in sorted(peer["votes"].items()))
        lines.append(f"it may translate for {peer['lease_seconds']:.2f} s; votes: {votes or 'none heard'}")
    return lines


def _print_status(found: Row) -> None:
    lines = [f"{found['instance'] or 'natcore'}: {found['state']}, natcore {found['natcore']}, process {found['pid']}"]
    if found.get("started"):
        lines.append(
            f"forwarding since {datetime.fromtimestamp(found['started'], UTC):%Y-%m-%dT%H:%M:%SZ}, by {found['file']}"
        )
    if "peer" in found:
        lines += _peer_lines(found["peer"])
    for plane in found["planes"]:
        lines.append(
            f"between {', '.join(plane['inside'])} (inside) and {plane['outside']} (outside): {plane['state']}"
        )
    lines.append(f"sessions {found['sessions']:,} of {found['sessions_limit']:,}")
    lines.append(f"mappings {found['mappings']:,} of {found['mappings_limit']:,}; entries {found['entries']:,}")
    counters = found["counters"]
    lines.append(
        ", ".join(f"{name} {counters[name]:,}" for name in ("received", "forwarded", "local", "dropped", "held"))
    )
    lines += [f"  {name} {value:,}" for name, value in counters.items() if name.startswith("dropped_") and value]
    for log in found["logs"]:
        why = f" ({log['code']}: {log['message']})" if log["state"] == "Failed" else ""
        sums = ", ".join(f"{name} {value:,}" for name, value in log["counters"].items() if value)
        lines.append(
            f"session log {log['name']} to {log['type']}: {log['status']}, {log['state']}{why}; {sums or 'no rows'}"
        )
    for line in lines:
        say(line)


# ---- top ------------------------------------------------------------------------------------------------------------


def top(
    sort: Annotated[str, typer.Option(metavar="KEY", help="bits, packets, sessions or ports.")] = "bits",
    limit: Annotated[int, typer.Option(help="Subscribers.")] = 20,
    subscriber: Subscriber = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = 2.0,
    samples: Annotated[int, typer.Option(help="How many looks; 0: until Ctrl-C.")] = 0,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Show the subscribers with the most traffic, sessions or ports, again and again."""
    with failing(as_json), _until_interrupted(), asking(instance, timeout=interval + 30) as client:
        rows = client.rows("top", sort=sort, limit=limit, subscriber=subscriber, interval=interval, samples=samples)
        if as_json:
            for row in rows:
                report.print_json(row, indent=None)
            return
        _show_top(rows, sort)


def _show_top(samples: Iterator[Row], sort: str) -> None:
    from rich.live import Live

    console = report.console()
    if not console.is_terminal:
        for sample in samples:
            console.print(_top_table(sample, sort))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for sample in samples:
            live.update(_top_table(sample, sort), refresh=True)


def _top_table(sample: Row, sort: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=f"subscribers by {sort}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("subscriber", no_wrap=True)
    for heading in ("bit/s out", "bit/s in", "pkt/s out", "pkt/s in", "sessions", "ports"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sample["subscribers"]:
        numbers = [row[name] for name in ("bits_out", "bits_in", "packets_out", "packets_in")]
        table.add_row(
            row["subscriber"],
            *(_with_prefix(number) for number in numbers),
            f"{row['sessions']:,}",
            f"{row['ports']:,}",
        )
    return table


def _with_prefix(number: float) -> str:
    for prefix in ("", "k", "M"):
        if number < 10_000:
            return f"{number:,.0f}{prefix and ' ' + prefix}"
        number /= 1000
    return f"{number:,.0f} G"


# ---- watch ----------------------------------------------------------------------------------------------------------


def watch(
    what: Annotated[str, typer.Argument(metavar="[events|sessions|drops]", help="What to watch.")] = "sessions",
    subscriber: Subscriber = None,
    remote: Remote = None,
    outside: Outside = None,
    protocol: Protocol = None,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Tell what happens as it happens, until Ctrl-C: sessions as `conntrack -E` does, events, or dropped packets."""
    texts = {"events": _event_text, "sessions": _session_text, "drops": _drop_text}
    with failing(as_json), _until_interrupted():
        if what not in texts:
            raise ConfigurationError(f"WHAT must be events, sessions or drops, got {show(what)}")
        criteria = {"subscriber": subscriber, "remote": remote, "outside": outside, "protocol": protocol}
        if what == "events":
            if any(criteria.values()):
                raise ConfigurationError("watch events takes no criteria")
            criteria = {}
        with asking(instance, timeout=None) as client:
            for row in client.rows(f"watch-{what}", **criteria):
                if as_json:
                    report.print_json(row, indent=None)
                else:
                    say(
                        f"{row['lost']:,} more were not told: too many at once" if "lost" in row else texts[what](row),
                        flush=True,
                    )


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C is the way to end what has no end of its own."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.OK) from None


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S.%f}"[:-3]


def _session_text(row: Row) -> str:
    inside, outside, remote = (f"{row[f'{side}_ip']}:{row[f'{side}_port']}" for side in ("inside", "outside", "remote"))
    sums = ""
    if row["event"] == "end":
        sums = (
            f"  {row['packets_out']:,} packets {row['bytes_out']:,} bytes out, {row['packets_in']:,} packets"
            f" {row['bytes_in']:,} bytes in, {row['seconds']:.3f} s"
        )
    arrow = "<-" if row["opened_outside"] else "->"
    return f"{_clock(row['time'])} {row['event']:<5} {row['protocol']:<4} {inside} {arrow} {remote} as {outside}{sums}"


def _event_text(row: Row) -> str:
    parts = [f"{row['time']:.3f} {row['reason']}"]
    parts += [f"{name} {row[name]}" for name in ("subscriber", "outside", "limit") if row[name]]
    if row["destination"]:
        parts.append(f"to {row['destination']}:{row['port']} ({row['protocol']})")
    return ", ".join([*parts, f"{row['count']:,} times"])


def _drop_text(row: Row) -> str:
    head = f"{_clock(row['time'])} {row['verdict']:<20} {row['side']:<7} {row['interface']:<10}"
    return f"{head} answered: {row['packet']}" if row["own"] else f"{head} {row['packet']}"


# ---- end ------------------------------------------------------------------------------------------------------------


def end(
    subscriber: Subscriber = None,
    remote: Remote = None,
    outside: Outside = None,
    protocol: Protocol = None,
    entry: EntryName = None,
    everything: Annotated[bool, typer.Option("--all", help="Every session.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """End the sessions that match every criterion given, with their rows in the session log, as `conntrack -D` does."""
    with failing(as_json), asking(instance, timeout=600.0) as client:
        client.ask(
            "end", subscriber=subscriber, remote=remote, outside=outside, protocol=protocol, entry=entry, all=everything,
            dry_run=dry_run,
        )  # fmt: skip
    count = client.summary["sessions"]
    if as_json:
        report.print_json(client.summary)
    else:
        say(f"{'would end' if dry_run else 'ended'} {count:,} session{'s' if count != 1 else ''}")


# ---- capture --------------------------------------------------------------------------------------------------------


def capture(
    write: Annotated[Path, typer.Option("--write", "-w", metavar="FILE", help="A pcapng file; it is replaced.")],
    subscriber: Subscriber = None,
    remote: Remote = None,
    outside: Outside = None,
    protocol: Protocol = None,
    drops: Annotated[
        bool, typer.Option("--drops", help="Only packets that are dropped, and the answers to them.")
    ] = False,
    snap: Annotated[int, typer.Option(help="Bytes of a packet that are kept.")] = 2048,
    count: Annotated[int, typer.Option(help="Packets; 0: until Ctrl-C.")] = 0,
    seconds: Annotated[float, typer.Option(help="Seconds at most; 0: until Ctrl-C.")] = 0.0,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Write packets as they came and as they leave, with their verdict, until Ctrl-C.

    A packet that is forwarded is two frames with one packet number, on the interface that it came by and the one that it
    leaves by; each has a comment. Frames of the gateway's own (ICMP errors, echo replies, fragments) have their cause.
    """
    from natcore.capture.pcapng import PcapngWriter
    from natcore.internal.files import replaced

    packets = lost = 0
    with failing(as_json), asking(instance, timeout=None) as client, replaced(write, private=True) as file:
        writer = PcapngWriter(file, f"natcore {client.greeting.natcore}")
        try:
            rows = client.rows(
                "capture", subscriber=subscriber, remote=remote, outside=outside, protocol=protocol, drops=drops,
                snap=snap, seconds=seconds or None,
            )  # fmt: skip
            for row in rows:
                if "lost" in row:
                    lost += row["lost"]
                    continue
                packets += 1
                _write_frames(writer, row, packets)
                if packets == count:
                    break
        except KeyboardInterrupt:
            pass
    if as_json:
        report.print_json({"packets": packets, "lost": lost})
    else:
        say(
            f"{packets:,} packet{'s' if packets != 1 else ''} in {write}{f'; {lost:,} more came too fast' if lost else ''}"
        )


def _write_frames(writer: PcapngWriter, row: Row, number: int) -> None:
    """Write a packet's frames."""
    if row["own"]:
        comment = f"the gateway's own, {row['cause']}: {row['packet']}"
        writer.write(row["out"], row["time_ns"], base64.b64decode(row["after"]), row["after_length"], comment, number)
        return
    verdict = f"{row['verdict']}: {row['packet']}"
    if row["after"] is None:
        comment = f"{verdict}, from {row['side']}"
    else:
        comment = f"{verdict} leaves by {row['out']} as {row['packet_after']}"
    writer.write(
        row["interface"], row["time_ns"], base64.b64decode(row["before"]), row["before_length"], comment, number
    )
    if row["after"] is not None:
        comment = f"{row['verdict']}: {row['packet_after']} came by {row['interface']} as {row['packet']}"
        writer.write(row["out"], row["time_ns"], base64.b64decode(row["after"]), row["after_length"], comment, number)


# ---- who --live, explain --live, log list … --------------------------------------------------------------------------


def print_live_owner(
    address: str, port: int, protocol: str | None, remote: str | None, instance: str | None, as_json: bool
) -> int:
    """Print who has an outside endpoint now; return the exit status."""
    with asking(instance) as client:
        rows = client.ask("who", address=address, port=port, protocol=protocol, remote=remote)
        summary = client.summary
    if as_json:
        report.print_json({**summary, "rows": rows})
    else:
        for line in owner_lines(rows, summary):
            say(line)
    found = {"exact": ExitCode.OK, "static": ExitCode.OK, "ambiguous": Answer.AMBIGUOUS}
    return found.get(str(summary["status"]), Answer.UNUSED)


def print_live_explanation(frame: bytes, side: str, instance: str | None, as_json: bool) -> None:
    """Print what the running gateway would do with a frame."""
    with asking(instance) as client:
        client.ask("explain", frame=frame.hex(), side=side)
        summary, greeting = dict(client.summary), client.greeting
    if as_json:
        del summary["text"]
        report.print_json(summary)
    else:
        say(explanation_text(summary, greeting))


def add_log_commands(log_app: typer.Typer) -> None:
    for name, command in (("list", log_list), ("start", log_start), ("stop", log_stop), ("retry", log_retry)):
        log_app.command(name)(command)


Name = Annotated[str, typer.Argument(metavar="NAME", help="The session log's name; `natcore log list` has them.")]


def log_list(instance: Instance = None, as_json: Json = False) -> None:
    """List the running gateway's session logs, and how their deliveries go."""
    with failing(as_json), asking(instance) as client:
        rows = client.ask("logs")
    for row in rows:
        if as_json:
            report.print_json(row, indent=None)
        else:
            say(_log_text(row))
    if not rows and not as_json:
        say("the gateway has no session log")


def log_start(name: Name, instance: Instance = None, as_json: Json = False) -> None:
    """Start a session log of the gateway's file that was stopped."""
    _ask_log("log-start", name, instance, as_json)


def log_stop(
    name: Name,
    timeout: Annotated[float, typer.Option(help="Seconds that deliveries may take.")] = 10.0,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Stop a session log; its open windows are delivered as partial rows."""
    _ask_log("log-stop", name, instance, as_json, timeout=timeout)


def log_retry(name: Name, instance: Instance = None, as_json: Json = False) -> None:
    """End the pause after a failed delivery: the waiting rows are tried now."""
    _ask_log("log-retry", name, instance, as_json)


def _ask_log(verb: str, name: str, instance: str | None, as_json: bool, **more: object) -> None:
    with failing(as_json), asking(instance, timeout=600.0) as client:
        client.ask(verb, name=name, **more)
    if as_json:
        report.print_json(client.summary)
    else:
        say(_log_text(client.summary))


def _log_text(log: Row) -> str:
    if "state" not in log:
        return f"{log['name']}: {log['status']}"
    where = ", ".join(f"{name} {value}" for name, value in log["destination"].items())
    lines = [f"{log['name']}: {log['status']}, {log['state']}, to {log['type']}{f' ({where})' if where else ''}"]
    if log["state"] == "Failed":
        cause = f" ({log['cause']})" if log["cause"] else ""
        lines.append(
            f"  {log['code']}{cause} since {datetime.fromtimestamp(log['since'], UTC):%Y-%m-%dT%H:%M:%SZ}: {log['message']}"
        )
    lines.append(
        "  " + (", ".join(f"{name} {value:,}" for name, value in log["counters"].items() if value) or "no rows")
    )
    if log.get("rows_left"):
        lines.append(f"  {log['rows_left']:,} rows are not delivered")
    return "\n".join(lines)
