"""Scripts and pages that are made from the commands themselves: a shell's completion, man pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import natcore
from natcore.cli.command import Json, failing, say
from natcore.internal.exit_codes import ANSWERS, MEANINGS
from natcore.internal.extras import extra
from natcore.internal.validation import check_choice

with extra("cli"):
    import typer
    from typer import completion as typers
    from typer.main import get_command

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "natcore"
VARIABLE = "_NATCORE_COMPLETE"


def init() -> None:
    """Let this process answer a shell that asks for completions."""
    typers.completion_init()  # type: ignore[attr-defined]


def add_to(app: typer.Typer) -> None:
    @app.command("completion")
    def show_completion(shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")]) -> None:
        """Print a script that completes natcore's commands and options: `source <(natcore completion bash)`."""
        with failing(False):
            check_choice("SHELL", shell, SHELLS)
        script = typers.get_completion_script  # type: ignore[attr-defined]
        typer.echo(script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell))

    @app.command("man")
    def write_man_pages(
        folder: Annotated[Path, typer.Argument(help="Where to write them, such as /usr/local/share/man/man1.")],
        as_json: Json = False,
    ) -> None:
        """Write a man page for each command."""
        with failing(as_json):
            folder.mkdir(parents=True, exist_ok=True)
            written = []
            for name, page in man_pages(app):
                (folder / f"{name}.1").write_text(page)
                written.append(folder / f"{name}.1")
        if as_json:
            from natcore.cli import report

            report.print_json({"ok": True, "files": written})
        else:
            say(f"{len(written)} pages: {folder}")


def man_pages(app: typer.Typer, today: datetime | None = None) -> Iterator[tuple[str, str]]:
    """Yield (name, text in man(7)) of each command and group."""
    date = (today or datetime.now(UTC)).strftime("%Y-%m-%d")
    yield from _pages(get_command(app), (PROGRAM,), None, date)


def _pages(command: Any, path: tuple[str, ...], parent: Any, date: str) -> Iterator[tuple[str, str]]:
    context = command.context_class(command, info_name=path[-1], parent=parent)
    name = "-".join(path)
    inner = {each: found for each, found in sorted(getattr(command, "commands", {}).items()) if not found.hidden}
    yield name, "".join(f"{line}\n" for line in _page(command, context, path, inner, date))
    for each, found in inner.items():
        yield from _pages(found, (*path, each), context, date)


def _page(command: Any, context: Any, path: tuple[str, ...], inner: dict[str, Any], date: str) -> Iterator[str]:
    name = "-".join(path)
    text = inspect.cleandoc(command.help or "")
    summary = text.partition("\n\n")[0]
    version = _escaped(f"natcore {natcore.__version__}")
    yield f'.TH "{_escaped(name.upper())}" "1" "{date}" "{version}" "natcore"'
    yield ".SH NAME"
    yield f"{_escaped(name)} \\- {_escaped(' '.join(summary.split()).rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield f"\\fB{_escaped(' '.join(path))}\\fR {_escaped(' '.join(command.collect_usage_pieces(context)))}"
    yield ".SH DESCRIPTION"
    for number, paragraph in enumerate(text.split("\n\n")):
        yield from (".PP",) if number else ()
        yield _escaped(" ".join(paragraph.split()))
    records = {
        title: [
            record
            for each in command.get_params(context)
            if each.param_type_name == kind and (record := _record(each, context))
        ]
        for title, kind in (("ARGUMENTS", "argument"), ("OPTIONS", "option"))
    }
    for title, found in records.items():
        if found:
            yield f".SH {title}"
        for words, meaning in found:
            yield ".TP"
            yield f"\\fB{_escaped(words)}\\fR"
            yield _escaped(meaning or "\u00a0")
    if inner:
        yield ".SH COMMANDS"
    for each, found_command in inner.items():
        yield ".TP"
        yield f"\\fB{_escaped(f'{name}-{each}')}\\fR(1)"
        yield _escaped(" ".join(inspect.cleandoc(found_command.help or "").partition("\n\n")[0].split()))
    yield ".SH EXIT STATUS"
    for status, meaning in statuses(" ".join(path[1:])).items():
        yield ".TP"
        yield f"\\fB{status}\\fR"
        yield _escaped(meaning)
    yield ".SH SEE ALSO"
    yield _escaped("https://natcore.github.io/natcore/")


def statuses(command: str) -> dict[int, str]:
    """Return what each exit status of a command means: "log verify"."""
    own = ANSWERS.get(command, {})
    return {int(status): own.get(status, MEANINGS.get(status, "")) for status in sorted({*own, *MEANINGS})}


def _record(parameter: Any, context: Any) -> tuple[str, str] | None:
    """Return a parameter's words and meaning, without markup."""
    found = parameter.get_help_record(context)
    if found is None and parameter.param_type_name == "argument":
        found = (parameter.make_metavar(context), getattr(parameter, "help", "") or "")
    if found is None:
        return None
    words, meaning = (re.sub(r"\[/?[a-z_ ]+\]", "", " ".join(text.split())) for text in found)
    return words, meaning


def _escaped(text: str) -> str:
    """Return text that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return f"\\&{text}" if text.startswith((".", "'")) else text
