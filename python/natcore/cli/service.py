"""The commands of the service kit: install a systemd unit for a file, and find the files of the package."""

from __future__ import annotations

import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Annotated

from natcore.cli.command import Json, failing, say
from natcore.internal.extras import extra

with extra("cli"):
    import typer

service_app = typer.Typer(no_args_is_help=True, help="Run a gateway as a systemd service, and watch it.")
SHIPPED = {"alerts": "alerts.yml", "dashboard": "dashboard.json"}  # in natcore/metrics
NOTIFY_RELOAD_SINCE = 253  # systemd


def add_to(app: typer.Typer) -> None:
    app.add_typer(service_app, name="service")


@service_app.command()
def install(
    file: Annotated[
        Path, typer.Argument(metavar="GATEWAY.TOML", help="The gateway's file, where the service will read it.")
    ] = Path("/etc/natcore/gateway.toml"),
    root: Annotated[
        Path,
        typer.Option(
            help="Write below this folder, a package's or another system's; the file is read there, if it is."
        ),
    ] = Path("/"),
    show: Annotated[bool, typer.Option("--print", help="Print what would be written, and write nothing.")] = False,
    program: Annotated[str | None, typer.Option(help="The command natcore that the unit starts.")] = None,
    reload: Annotated[
        str,
        typer.Option(help="How systemd reloads: notify (253 or later), signal, or auto: by this machine's version."),
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Write a systemd unit for a gateway's file, with its user and folders.

    The unit grants what the file needs: the capabilities of its driver, the secrets that it names, the folders that its
    logs write to. It starts nothing: `systemd-sysusers`, `systemd-tmpfiles --create`, `systemctl daemon-reload`, and
    `systemctl enable --now natcore` do.
    """
    with failing(as_json):
        from natcore.internal.validation import check_choice
        from natcore.service import units
        from natcore.service.configuration_file import load

        check_choice("--reload", reload, ("auto", "notify", "signal"))
        notify = reload == "notify" or (reload == "auto" and _systemd_version() >= NOTIFY_RELOAD_SINCE)
        there = root / file.absolute().relative_to("/")
        made = units.files(
            load(there if there.exists() else file), file=file.absolute(), program=program, notify_reload=notify
        )
        if show:
            for text in units.lines(made):
                typer.echo(text)
            return
        written = units.install(made, root)
    if as_json:
        from natcore.cli import report

        report.print_json({"ok": True, "files": written})
        return
    for path in written:
        say(path)
    if root == Path("/"):
        unit = units.unit_name(file)
        say("next: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload")
        say(f"      systemctl enable --now {unit}")


@service_app.command()
def files(
    copy: Annotated[Path | None, typer.Option(help="Copy them into this folder.")] = None, as_json: Json = False
) -> None:
    """Print where the alert rules and the dashboard are, or copy them."""
    with failing(as_json):
        found = {}
        for name, file in SHIPPED.items():
            path = Path(str(resources.files("natcore.metrics") / file))
            if copy is not None:
                copy.mkdir(parents=True, exist_ok=True)
                path = Path(shutil.copyfile(path, copy / f"natcore-{file}"))
            found[name] = path
    if as_json:
        from natcore.cli import report

        report.print_json({"ok": True, **found})
    else:
        for name, path in found.items():
            say(f"{name}: {path}")


def _systemd_version() -> int:
    """Return systemd's version here; a recent one where it cannot be asked."""
    try:
        told = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        return int(told.split()[1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return NOTIFY_RELOAD_SINCE
