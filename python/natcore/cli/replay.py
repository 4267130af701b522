"""The output of `natcore replay`: a capture through one gateway with checks, or under several configurations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from html import escape
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from natcore.capture import pcap
from natcore.capture.pcapng import PcapngWriter
from natcore.capture.replay import Replay
from natcore.capture.sides import Sides, make_sides
from natcore.capture.what_if import Outcome, WhatIf, gateways_of
from natcore.capture.what_if import what_if as ask_what_if
from natcore.cli import report
from natcore.config import SnatEntry
from natcore.console.charts import Chart, chart
from natcore.demo import demo
from natcore.errors import ConfigurationError
from natcore.gateway import Gateway
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra
from natcore.internal.files import replaced
from natcore.internal.redaction import show
from natcore.sinks import ParquetSink
from natcore.verdict import Verdict

with extra("cli"):
    from rich import box
    from rich.table import Table

Links = tuple[
    Sequence[str], Sequence[str], Sequence[str]
]  # the gateway's MAC addresses; interfaces from inside, from outside
_COLORS = ("#1f6feb", "#d29922", "#2da44e", "#cf222e", "#8250df", "#57606a")


def replay(
    file: Path, entries: Sequence[SnatEntry], inside: Sequence[str], links: Links, write: Path | None,
    annotate: Path | None, log: Path | None, seed: int | None, as_json: bool,
) -> int:  # fmt: skip
    """Send a capture through a gateway in memory and show what became of it; -> the exit status.

    write: a pcap file for the frames of the outside link. annotate: a pcapng file with comments. log: the folder of the session
    log, kept; None: it is not.
    """
    with ExitStack() as stack:
        folder = log or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="natcore-replay-")))
        gateway = stack.enter_context(Gateway(instance="replay", seed=seed))
        for entry in entries:
            gateway.add(entry)
        gateway.start_session_log(ParquetSink(folder), name="replay")
        sides = make_sides(inside or [str(entry.source) for entry in entries], *links)
        replayed = Replay(gateway, [IPv4Network(prefix) for prefix in sides.inside], sides=sides)
        writer = None
        if annotate is not None:
            writer = PcapngWriter(stack.enter_context(replaced(annotate, private=False)), "natcore replay")
        outside = _outside(replayed, file, writer)
        if write is not None:
            pcap.write(write, outside)
        for _ in outside:
            pass
        counters = gateway.counters()
        gateway.close()
        return _show_replay(replayed, counters, report.read_sessions(folder), as_json)


def _outside(replayed: Replay, file: Path, writer: PcapngWriter | None) -> Iterator[pcap.Packet]:
    """Replay the file; yield the frames of the outside link, and annotate what the file has."""
    for number, step in enumerate(replayed.steps(pcap.read(file)), 1):
        packet = step.packet
        if writer is not None:
            kept = packet.frame[: len(packet.frame) - packet.missing] if packet.missing else packet.frame
            comment = f"{packet.comment}\n{step.comment}" if packet.comment else step.comment
            writer.write(packet.interface, packet.time_ns, kept, len(packet.frame), comment, number)
            for each in step.outside:
                writer.write("outside", each.time_ns, each.frame, len(each.frame), step.comment, number)
        yield from step.outside


def _show_replay(replayed: Replay, counters: dict[str, int], rows: list[report.Row], as_json: bool) -> int:
    checks = demo.replay_checks(replayed, rows)
    if as_json:
        report.print_json(
            {
                "ok": all(item.ok for item in checks), "frames": replayed.frames, "skipped": replayed.skipped,
                "mended": replayed.mended,
                "verdicts": {verdict.name: count for verdict, count in replayed.verdicts.items()},
                "counters": counters, "sessions": rows, "checks": [item._asdict() for item in checks],
            }
        )  # fmt: skip
    else:
        console = report.console()
        console.print(_read_line(replayed.frames, replayed.skipped, replayed.mended), soft_wrap=True)
        console.print(report.counters_table(counters))
        console.print(report.sessions_table(rows, console.width))
        report.print_checks(console, checks)
    return ExitCode.OK if all(item.ok for item in checks) else ExitCode.FAILED


def _read_line(frames: int, skipped: dict[str, int], mended: dict[str, int]) -> str:
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
    changed = "; ".join(f"{count:,} {what}" for what, count in mended.items())
    return report.text(f"{frames:,} frames; skipped: {left_out or 'none'}{f'; {changed}' if changed else ''}")


# ---- several configurations ------------------------------------------------------------------------------------------


def what_if(
    file: Path, files: Sequence[Path], inside: Sequence[str], links: Links, picture: Path | None, seed: int | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Show what would become of a capture under each configuration; -> the exit status."""
    if picture is not None and picture.suffix != ".svg":
        raise ConfigurationError(f"--picture must be a file that ends in .svg, got {show(str(picture))}")
    stack, gateways, prefixes = gateways_of(files, seed)
    with stack:
        sides: Sides = make_sides(inside or prefixes, *links)
        found = ask_what_if(file, gateways, sides)
    if picture is not None:
        with replaced(picture, private=False) as made:
            made.write(svg(found).encode())
    if as_json:
        report.print_json(as_dict(found))
    else:
        console = report.console()
        console.print(_read_line(found.frames, found.skipped, found.mended), soft_wrap=True)
        console.print(_table(found))
        for line in _changes(found):
            console.print(report.text(line), soft_wrap=True)
    return ExitCode.OK


def as_dict(found: WhatIf) -> dict[str, Any]:
    """Return what was found, for JSON."""
    return {
        "ok": True, "frames": found.frames, "start": found.start, "end": found.end, "skipped": found.skipped,
        "mended": found.mended, "configurations": [_outcome(each) for each in found.outcomes],
    }  # fmt: skip


def _outcome(each: Outcome) -> dict[str, Any]:
    return {
        "name": each.name, "sessions": each.sessions, "peak_sessions": each.peak_sessions,
        "ports": each.total_ports, "peak_ports": each.peak_ports,
        "verdicts": {verdict.name: count for verdict, count in sorted(each.verdicts.items())},
        "refusals": each.refusals, "skipped": each.skipped, "packets": each.packets, "bytes": each.bytes,
        "subscribers": [{"subscriber": who, "ports": ports, "sessions": count} for who, ports, count in each.peaks],
        "log": {"rows": each.log_rows, "bytes": each.log_bytes, "lost": each.log_lost, "block_rows": each.block_rows},
        "samples": [sample._asdict() for sample in each.samples],
        "changed": [
            {"from": _name(before), "to": _name(after), "frames": count} for (before, after), count in each.changed.items()
        ],
        "forecast": None if each.forecast is None else each.forecast._asdict(),
    }  # fmt: skip


def _name(verdict: Verdict | None) -> str:
    return "skipped" if verdict is None else verdict.name


def _table(found: WhatIf) -> Table:
    seconds = found.end - found.start
    table = Table(title="What if", caption=f"{seconds:,.1f} s of traffic", box=box.SIMPLE_HEAD)
    table.add_column("")
    for each in found.outcomes:
        table.add_column(report.text(each.name), justify="right", overflow="fold")

    def row(name: str, values: list[str]) -> None:
        if any(value not in ("0", "") for value in values):
            table.add_row(name, *values)

    outcomes = found.outcomes
    row("sessions", [f"{each.sessions:,}" for each in outcomes])
    row("most sessions at once", [f"{each.peak_sessions:,}" for each in outcomes])
    for protocol in ("tcp", "udp", "icmp"):
        row(
            f"most {protocol} ports at once",
            [_of(each.peak_ports.get(protocol, 0), each.total_ports.get(protocol, 0)) for each in outcomes],
        )
    row(
        "most ports of a subscriber",
        [f"{each.peaks[0][1]:,} ({each.peaks[0][0]})" if each.peaks else "" for each in outcomes],
    )
    for way in ("out", "in"):
        row(f"packets {way}", [f"{each.packets[way]:,}" for each in outcomes])
        row(f"bytes {way}", [f"{each.bytes[way]:,}" for each in outcomes])
    for reason in sorted({reason for each in outcomes for reason in each.refusals}):
        row(f"refused: {reason}", [f"{each.refusals.get(reason, 0):,}" for each in outcomes])
    for reason in sorted({reason for each in outcomes for reason in each.skipped}):
        row(f"skipped: {reason}", [f"{each.skipped.get(reason, 0):,}" for each in outcomes])
    row("log rows", [f"{each.log_rows:,}" for each in outcomes])
    row("log bytes", [f"{each.log_bytes:,}" for each in outcomes])
    row("log rows lost", [f"{each.log_lost:,}" for each in outcomes])
    row("port block rows", [f"{each.block_rows:,}" for each in outcomes])
    row("the pool", [_forecast(each) for each in outcomes])
    return table


def _of(used: int, total: int) -> str:
    return f"{used:,} of {total:,}" if total and used else "0"


def _forecast(each: Outcome) -> str:
    told = each.forecast
    if told is None or told.state == "unknown":
        return "too short to tell"
    if told.state == "steady":
        return "does not run out"
    when = "" if told.time is None else f" {_moment(told.time)}"
    if told.state == "ran-out":
        return f"ran out{when}"
    return f"{told.protocol} runs out{when} ({told.growth_per_hour:+,.0f} ports an hour)"


def _moment(time: float) -> str:
    try:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return "after the year 9999"


def _changes(found: WhatIf) -> Iterator[str]:
    """Yield what went otherwise than under the first configuration."""
    for each in found.outcomes[1:]:
        total = sum(each.changed.values())
        if not total:
            yield f"{each.name}: every frame as under {found.outcomes[0].name}"
            continue
        parts = [f"{count:,} {_name(old)} now {_name(new)}" for (old, new), count in each.changed.most_common(8)]
        yield f"{each.name}: {total:,} frames otherwise than under {found.outcomes[0].name}: {', '.join(parts)}"


def svg(found: WhatIf) -> str:
    """Return charts of ports and sessions over time as a picture."""
    names = [each.name for each in found.outcomes]
    times = [sample.time for sample in found.outcomes[0].samples]
    series: list[tuple[str, list[list[float]]]] = [
        (f"{protocol.upper()} ports", [[sample.ports[protocol] for sample in each.samples] for each in found.outcomes])
        for protocol in ("tcp", "udp", "icmp")
    ]
    series.append(("Sessions", [[sample.sessions for sample in each.samples] for each in found.outcomes]))
    charts = []
    for title, values in series:
        whole = [
            (name, each) for name, each in zip(names, values, strict=True) if len(each) == len(times)
        ]  # fmt: skip
        if any(any(each) for _, each in whole):
            made = chart(title, times, whole, lambda value: f"{value:,.0f}")
            if made is not None:
                charts.append(made)
    width, height = 680, 170
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height * len(charts) + 24 * len(names) + 20}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for place, made in enumerate(charts):
        parts += _chart(made, 40, 30 + place * height)
    for place, name in enumerate(names):
        y = 30 + len(charts) * height + 24 * place
        parts.append(f'<rect x="40" y="{y - 9}" width="18" height="4" fill="{_color(place)}"/>')
        parts.append(f'<text x="66" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _chart(made: Chart, left: int, top: int) -> list[str]:
    start, end = (f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}" for time in (made.start, made.end))
    parts = [
        f'<g transform="translate({left},{top})"><title>{escape(made.about)}</title>',
        f'<text y="-8" font-weight="bold">{escape(made.title)}</text>',
        f'<text x="{made.width}" y="-8" text-anchor="end">{escape(made.top)}</text>',
        f'<rect width="{made.width}" height="{made.height}" fill="none" stroke="#d0d7de"/>',
    ]
    for place, line in enumerate(made.lines):
        parts += [
            f'<polyline points="{piece}" fill="none" stroke="{_color(place)}" stroke-width="1.5"/>'
            for piece in line.pieces
        ]
    parts.append(f'<text y="{made.height + 16}">{start}</text>')
    parts.append(f'<text x="{made.width}" y="{made.height + 16}" text-anchor="end">{end} UTC</text></g>')
    return parts


def _color(place: int) -> str:
    return _COLORS[place % len(_COLORS)]
