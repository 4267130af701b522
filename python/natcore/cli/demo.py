"""The output of `natcore demo` and `natcore replay`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network
from pathlib import Path

from natcore.capture import pcap
from natcore.capture.replay import Replay
from natcore.choices import Driver
from natcore.cli import report
from natcore.config import SnatEntry
from natcore.demo import demo
from natcore.demo.clients import Outcome
from natcore.gateway import Gateway
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra
from natcore.sinks import ParquetSink

with extra("cli"):
    from rich import box
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table


def show_demo(keep: bool, driver: Driver, as_json: bool) -> int:
    """Run `natcore.demo.demo` over a driver and show it; -> the exit status."""
    console = report.console(quiet=as_json)
    with _Progress(console) as progress:
        result = demo.run(keep=keep, progress=progress.show, driver=driver)
    if as_json:
        report.print_json(
            {
                "ok": result.ok, "mode": result.mode, "reason": result.reason,
                "programs": [outcome._asdict() for outcome in result.outcomes],
                "counters": result.counters, "sessions": result.sessions,
                "checks": [item._asdict() for item in result.checks],
                "folder": result.folder, "namespaces": result.namespaces,
            }
        )  # fmt: skip
    else:
        _print_demo(console, result)
    return ExitCode.OK if result.ok else ExitCode.FAILED


def replay(
    file: Path, entries: Sequence[SnatEntry], write: Path | None, log: Path | None, seed: int | None, as_json: bool
) -> int:
    """Send a capture through a gateway in memory and show what became of it; -> the exit status.

    write: a pcap file for the frames of the outside link. log: the folder of the session log, kept; None: it is not.
    """
    with ExitStack() as stack:
        folder = log or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="natcore-replay-")))
        gateway = stack.enter_context(Gateway(instance="replay", seed=seed))
        for entry in entries:
            gateway.add(entry)
        gateway.start_session_log(ParquetSink(folder), name="replay")
        replayed = Replay(gateway, [IPv4Network(entry.source) for entry in entries], keep=write is not None)
        replayed.run(pcap.read(file))
        counters = gateway.counters()
        gateway.close()
        if write is not None:
            pcap.write(write, replayed.outside)
        return _show_replay(replayed, counters, report.read_sessions(folder), as_json)


class _Progress:
    """Shows the demo's progress: live on a terminal, else a line for each program as it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._told = 0

    def show(self, outcomes: list[Outcome], counters: dict[str, int]) -> None:
        if self._live is not None:
            live_counters = report.counters_table(counters, "Live counters")
            self._live.update(Group(_programs(outcomes), live_counters), refresh=True)
            return
        for outcome in outcomes[self._told :]:
            self._console.print(f"{'done' if outcome.ok else 'failed'}: {report.text(outcome.command)}")
        self._told = len(outcomes)

    def __enter__(self) -> _Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def _programs(outcomes: list[Outcome]) -> Table:
    table = Table(title="What went through", box=box.SIMPLE_HEAD)
    for heading in ("program", "protocol", "what came of it"):
        table.add_column(heading)
    table.add_column("seconds", justify="right")
    for outcome in outcomes:
        detail = ("[green]" if outcome.ok else "[bold red]failed: ") + report.text(outcome.detail)
        table.add_row(report.text(outcome.command), outcome.protocol, detail, f"{outcome.seconds:.2f}")
    return table


def _print_demo(console: Console, result: demo.Result) -> None:
    if result.mode == "memory":
        console.print(f"In memory, from a capture that is shipped with natcore ({report.text(result.reason)}).")
    else:
        console.print(f"{demo.INSIDE} - gateway ({demo.POOL}) - {demo.SERVER}, in network namespaces")
        console.print(_programs(result.outcomes))
    console.print(report.counters_table(result.counters))
    console.print(report.sessions_table(result.sessions, console.width))
    report.print_checks(console, result.checks)
    if result.folder is not None:
        console.print(f"kept: SELECT * FROM '{report.text(result.folder)}/*.parquet' (DuckDB)", soft_wrap=True)
    for name in result.namespaces:
        console.print(f"kept: ip netns exec {name} …")


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
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in replayed.skipped.items())
        mended = "; ".join(f"{count:,} {what}" for what, count in replayed.mended.items())
        console.print(f"{replayed.frames:,} frames; skipped: {skipped or 'none'}{f'; {mended}' if mended else ''}")
        console.print(report.counters_table(counters))
        console.print(report.sessions_table(rows, console.width))
        report.print_checks(console, checks)
    return ExitCode.OK if all(item.ok for item in checks) else ExitCode.FAILED
