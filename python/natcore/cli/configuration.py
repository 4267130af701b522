"""The commands about the configuration file: config lists its keys, init writes one for this machine."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from natcore.cli.command import Json, failing, say
from natcore.errors import ConfigurationError
from natcore.internal.extras import extra
from natcore.internal.redaction import show

with extra("cli"):
    import typer

if TYPE_CHECKING:
    from natcore.service.keys import Key

WIDE = 120  # columns of text


def add_to(app: typer.Typer) -> None:
    app.command("config")(list_keys)
    app.command("init")(write_file)


def list_keys(
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="Only this one, such as policy.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List every key of the configuration file: type, unit, default, meaning."""
    with failing(as_json):
        from natcore.service.keys import keys

        found = [key for key in keys() if table is None or key.table == table]
        if not found:
            tables = ", ".join(dict.fromkeys(key.table for key in keys()))
            raise ConfigurationError(f"TABLE must be one of {tables}, got {show(table)}")
        if as_json:
            from natcore.cli import report

            report.print_json([asdict(key) for key in found])
            return
        heading = ""
        for key in found:
            if key.heading != heading:
                say(f"{chr(10) if heading else ''}{key.heading}")
                heading = key.heading
            say(_described(key))


def _described(key: Key) -> str:
    kind = " | ".join(f'"{word}"' for word in key.allowed) or key.type
    default = "must be given" if key.default is None else f"default {key.default}" if key.default else ""
    head = ", ".join(part for part in (kind, key.unit, default) if part)
    text = textwrap.fill(key.meaning, WIDE, initial_indent="      ", subsequent_indent="      ")
    return f"  {key.name}: {head}" + (f"\n{text}" if text else "")


def write_file(
    file: Annotated[Path, typer.Argument(metavar="GATEWAY.TOML", help="The file to write.")] = Path("gateway.toml"),
    as_json: Json = False,
) -> None:
    """Write a configuration file for this machine's interfaces, with every key as a comment; never over another file."""
    with failing(as_json):
        import socket

        from natcore.service.first_file import text_for
        from natcore.service.machine import interfaces

        there = interfaces()
        try:
            with file.open("x") as made:
                made.write(text_for(there, socket.gethostname()))
        except FileExistsError:
            raise ConfigurationError(f"{file} is there already, and is not overwritten") from None
    if as_json:
        from natcore.cli import report

        report.print_json({"ok": True, "file": str(file), "interfaces": [each.name for each in there]})
    else:
        say(f"{file} is written; look at [plane] and [[snat]], then: natcore check --here {file}")
