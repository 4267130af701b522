"""The commands that need the extra `sls`: `demo --sls` and `sls-server`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Annotated

from natcore.cli.command import Json, failing, say
from natcore.errors import ConfigurationError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra

with extra("cli"):
    import typer


def show_demo(as_json: bool) -> int:
    """Show the demo of `natcore.demo.sls`; -> the exit status."""
    from rich import box
    from rich.table import Table

    from natcore.cli import report
    from natcore.demo import sls

    console = report.console(quiet=as_json)
    console.print(
        "A Simple Log Service on this machine, which fails on purpose. The traffic: the shipped capture, again and again."
    )
    with console.status("…") as status:
        story = sls.run(lambda stage: status.update(report.text(stage.text)))
    if as_json:
        report.print_json(
            {
                "ok": story.ok, "endpoint": story.endpoint, "stages": [stage._asdict() for stage in story.stages],
                "counters": story.counters, "sessions": story.sessions,
                "checks": [item._asdict() for item in story.checks],
            }
        )  # fmt: skip
        return ExitCode.OK if story.ok else ExitCode.FAILED
    table = Table(title=f"What the session log to {report.text(story.endpoint)} says", box=box.SIMPLE_HEAD)
    table.add_column("then", overflow="fold")
    table.add_column("delivery status")
    for heading in ("rows delivered", "rows waiting"):
        table.add_column(heading, justify="right")
    for stage in story.stages:
        color = "green" if stage.state == "Success" else "red"
        state = f"[{color}]{stage.state}[/] {report.text(stage.cause)}"
        table.add_row(report.text(stage.text), state, str(stage.delivered), str(stage.waiting))
    console.print(table)
    console.print(report.counters_table(story.counters, "The log's account (rows and bytes)"))
    report.print_checks(console, story.checks)
    return ExitCode.OK if story.ok else ExitCode.FAILED


def add_to(app: typer.Typer) -> None:
    app.command("sls-server")(sls_server)


def sls_server(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")] = 18_080,
    key: Annotated[list[str] | None, typer.Option(metavar="ID:SECRET", help="An access key; else id:secret.")] = None,
    logstore: Annotated[list[str] | None, typer.Option(metavar="PROJECT/LOGSTORE", help="Made at the start.")] = None,
    as_json: Json = False,
) -> None:
    """Run a strict local Simple Log Service to test against, until SIGTERM or SIGINT; nothing is kept."""
    with failing(as_json):
        _serve(port, key or ["id:secret"], logstore or [], as_json)


def _serve(port: int, keys: Sequence[str], logstores: Sequence[str], as_json: bool) -> None:
    """Run the server: print its address, and at the end what it received."""
    from natcore.cli import report
    from natcore.demo import sls

    pairs = dict(_pair(key, ":", "key") for key in keys)
    made = [_pair(name, "/", "logstore") for name in logstores]
    server = sls.testing().SlsServer(pairs, port=port)
    for project, logstore in made:
        server.make(project, logstore)
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    with server:
        if as_json:
            report.print_json({"endpoint": server.endpoint}, indent=None)
        else:
            say(f"{server.endpoint}, access keys {', '.join(pairs)}; SIGTERM or Ctrl-C ends it", flush=True)
        end.wait()
    counts = {
        f"{project}/{logstore}": store.count
        for project, stores in server.projects.items()
        for logstore, store in stores.items()
    }
    if as_json:
        report.print_json({"requests": len(server.requests), "logs": counts}, indent=None)
    else:
        say("\n".join(f"{name}: {count:,} logs" for name, count in counts.items()) or "nothing was written")


def _pair(text: str, separator: str, name: str) -> tuple[str, str]:
    first, found, second = text.partition(separator)
    if not (first and found and second):
        raise ConfigurationError(f"{name} must be two words with {separator!r} between them, got {first!r}")
    return first, second
