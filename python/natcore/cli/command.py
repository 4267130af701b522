"""What all commands share: the report of a failure, and the option for JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from natcore.errors import ConfigurationError, ControlError, Error, InterfaceError
from natcore.internal.extras import extra
from natcore.internal.redaction import printable, redact

with extra("cli"):
    import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def say(text: object, *, err: bool = False, flush: bool = False) -> None:
    """Print text for a person. Foreign names (instances, files) may hold control sequences: they are escaped."""
    typer.echo(printable(redact(str(text)), keep="\n\t"), err=err)
    if flush:
        (sys.stderr if err else sys.stdout).flush()


@contextmanager
def failing(as_json: bool, exit_code: Callable[[BaseException], int] = lambda _: 1) -> Iterator[None]:
    """Report natcore's errors, and the system's; the exit status is 1, a running gateway's code, or exit_code's."""
    try:
        yield
    except (Error, OSError) as error:
        text = (error.strerror if isinstance(error, InterfaceError) else None) or str(error)
        if as_json:
            from natcore.cli import report
            from natcore.service.configuration_file import SettingsError

            told: dict[str, Any] = {"ok": False, "error": redact(text)}
            if isinstance(error, SettingsError):
                told |= error.as_dict()
                told["errors"] = [each.as_dict() for each in error.errors]
            if isinstance(error, ControlError):
                told |= {"code": error.code, **error.details}
            report.print_json(told)
        else:
            lines = (
                text.splitlines()
                if isinstance(error, ConfigurationError | ControlError)
                else [" ".join(text.splitlines())]
            )
            for line in lines:
                say(f"error: {line}", err=True)
        raise typer.Exit(error.code if isinstance(error, ControlError) else exit_code(error)) from None
