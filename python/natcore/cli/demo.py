"""The output of `natcore demo`."""

from __future__ import annotations

from natcore.choices import Driver
from natcore.cli import report
from natcore.demo import demo
from natcore.demo.clients import Outcome
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra

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
