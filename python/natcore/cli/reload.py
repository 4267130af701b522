"""The commands that change a running gateway's configuration: reload, and plan, which says what that would do; and restart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from natcore.cli.command import Json, failing, say
from natcore.cli.control import Instance, ask, asking, print_done
from natcore.errors import ConfigurationError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra

with extra("cli"):
    import typer


def add_to(app: typer.Typer) -> None:
    app.command("reload")(reload_file)
    app.command("plan")(plan)
    app.command("restart")(restart)


def reload_file(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Instead of the file that it was started with.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do, as `natcore plan` does.")
    ] = False,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Put the changed file of a running gateway into force: all of it, or, where it is refused, nothing."""
    with failing(as_json):
        done = _ask(instance, file, dry_run)
    _print(done, as_json)


def plan(
    file: Annotated[Path, typer.Argument(metavar="NEW.TOML", help="The file to come.", show_default=False)],
    old: Annotated[
        Path | None,
        typer.Argument(metavar="OLD.TOML", help="The file in force, where no gateway runs here.", show_default=False),
    ] = None,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Say what a reload of the file would keep, drain and end; nothing is changed.

    The running gateway is asked, with its sessions. With OLD.TOML two files are compared, and no gateway is asked.
    """
    with failing(as_json):
        if old is None:
            done = _ask(instance, file, True)
        elif instance is not None:
            raise ConfigurationError("natcore plan: give either OLD.TOML or --instance")
        else:
            done = _compare(old, file)
    _print(done, as_json)


def restart(instance: Instance = None, as_json: Json = False) -> None:
    """Let a new process take over from a running gateway: for an upgrade, or a file that a reload cannot put into force.

    The new process starts beside the old one, reads the file, and takes over sessions, session logs and interfaces when it is
    ready; packets wait for a moment. If it cannot, the old one goes on, and this says why.
    """
    with failing(as_json):
        done = ask(instance, "restart")
    waited = f"packets waited {done['seconds']:.3f} s"
    print_done(done, as_json, f"process {done['pid']} forwards, with {done['sessions']:,} sessions; {waited}")


def _ask(instance: str | None, file: Path | None, dry_run: bool) -> dict[str, Any]:
    path = None if file is None else str(file.absolute())
    with asking(instance, timeout=None) as client:  # a log that is stopped has its time
        steps = client.ask("reload", file=path, dry_run=dry_run)
        return {"steps": steps, **client.summary}


def _compare(old: Path, new: Path) -> dict[str, Any]:
    from natcore.service.configuration_file import load
    from natcore.service.reload import find, plan_of

    before, after = load(old, to_run=True), load(new, to_run=True)
    with before.make_gateway() as gateway:
        planned = find(before, after, gateway, [log.name for log in before.logs])
        return planned.said(dry_run=True, plan=plan_of(planned, gateway)).as_dict()


def _print(done: Mapping[str, Any], as_json: bool) -> None:
    refused = bool(done["needs_restart"])
    if as_json:
        from natcore.cli import report

        report.print_json({"ok": not refused, **done})
    else:
        for line in lines_of(done):
            say(line)
    if refused:
        raise typer.Exit(ExitCode.CONFIGURATION)


def lines_of(done: Mapping[str, Any]) -> list[str]:
    """Return a reload in words, a line each."""
    from natcore.service.reload import Step

    steps, needs_restart = ([Step(**each) for each in done[name]] for name in ("steps", "needs_restart"))
    if needs_restart:
        return [
            f"a reload of {done['file']} would be refused, and change nothing: a restart is needed",
            *(f"  {step}" for step in needs_restart),
        ]
    words = ("would keep", "drain", "end") if done["dry_run"] else ("kept", "drained", "ended")
    counts = [f"{word} {done[name]:,}" for word, name in zip(words, ("kept", "drained", "ended"), strict=True)]
    first = f"{counts[0]} sessions, {counts[1]}, {counts[2]}; unchanged entries and logs: {done['unchanged']:,}"
    return [first, *(f"  {step}" for step in steps)]
