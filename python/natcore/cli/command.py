"""What all commands share: how a failure ends one, and the option for JSON."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from natcore.errors import ConfigurationError, ControlError, Error, InterfaceError
from natcore.internal.exit_codes import READER_GONE, ExitCode, exit_code
from natcore.internal.extras import extra
from natcore.internal.redaction import printable, redact

with extra("cli"):
    import typer
    from typer.core import TyperGroup

_LIBRARY_USAGE = 2  # of the command line's library, where the command line is wrong

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class Group(TyperGroup):
    """All commands: however one ends, it is with a status of `natcore.internal.exit_codes`."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _ending():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _ending():
            return super().invoke(ctx)


@contextmanager
def _ending() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _leave_output()
        raise typer.Exit(READER_GONE) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("click", "typer"):  # an end in order, or a wrong command line
            if getattr(error, "exit_code", 0) == _LIBRARY_USAGE:
                error.exit_code = ExitCode.USAGE  # type: ignore[attr-defined]
            raise
        traceback.print_exc()
        raise typer.Exit(ExitCode.FAILED) from None


def _leave_output() -> None:
    """Let what is still to be written go nowhere: its reader has gone."""
    try:
        number = sys.stdout.fileno()
    except OSError:  # no file, as in tests
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def say(text: object, *, err: bool = False, flush: bool = False) -> None:
    """Print text for a person. Foreign names (instances, files) may hold control sequences: they are escaped."""
    typer.echo(printable(redact(str(text)), keep="\n\t"), err=err)
    if flush:
        (sys.stderr if err else sys.stdout).flush()


@contextmanager
def failing(as_json: bool, *, of_file: bool = False) -> Iterator[None]:
    """Report natcore's errors, and the system's; they end the command with `exit_code`'s status, of_file as there."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (Error, OSError) as error:
        status = exit_code(error, of_file=of_file)
        text = (error.strerror if isinstance(error, InterfaceError) else None) or str(error)
        if as_json:
            from natcore.cli import report
            from natcore.service.problems import SettingsError

            told: dict[str, Any] = {"ok": False, "error": redact(text), "code": int(status)}
            if isinstance(error, SettingsError):
                told |= error.as_dict()
                told["errors"] = [each.as_dict() for each in error.errors]
            if isinstance(error, ControlError):
                told |= error.details
            report.print_json(told)
        else:
            lines = (
                text.splitlines()
                if isinstance(error, ConfigurationError | ControlError)
                else [" ".join(text.splitlines())]
            )
            for line in lines:
                say(f"error: {line}", err=True)
        raise typer.Exit(status) from None
