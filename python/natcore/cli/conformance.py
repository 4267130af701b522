"""`natcore conformance`: what the RFCs require, asked of natcore or of another data path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from natcore.cli import report
from natcore.cli.command import Json, failing, say
from natcore.errors import ConfigurationError
from natcore.internal.exit_codes import Answer
from natcore.internal.extras import extra
from natcore.internal.redaction import show

with extra("cli"):
    import typer

if TYPE_CHECKING:
    from natcore.testing.conformance import Outcome, Verdict
    from natcore.testing.data_path import DataPath

_AT_ONCE = 16  # cases of a data path with a real clock, which wait most of the time


def add_to(app: typer.Typer) -> None:
    app.command()(conformance)


def conformance(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODULE:NAME",
            help="A subclass of natcore.testing.DataPath, or a function that takes a configuration and returns translate; "
            "without it natcore itself.",
            show_default=False,
        ),
    ] = None,
    rfc: Annotated[list[str] | None, typer.Option(help="Only this RFC; may be repeated.")] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write the page here, in Markdown.")] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="Of a real clock: what takes longer is not judged.")
    ] = 10.0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cases at once; by default 1, and 16 of a real clock.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the requirements of RFC 4787, 5382, 5508, 6888 and 7857 against natcore, or against another data path.

    The cases send frames and look at what leaves. As root, natcore.testing.kernel_nat:KernelNat is the kernel's NAT.
    """
    with failing(as_json):
        from natcore.internal.validation import check_number
        from natcore.testing import conformance as suite

        check_number("--wait", wait, 0, 1_000_000, unit="seconds")
        for each in rfc or ():
            if each not in suite.TITLES:
                raise ConfigurationError(f"--rfc must be one of {', '.join(suite.TITLES)}, got {show(each)}")
        make = found(target)
        path = make()
        verdicts = suite.run(
            make, rfcs=rfc or (), patience=wait, is_natcore=target is None,
            jobs=jobs or (_AT_ONCE if path.is_real_time else 1), progress=_progress(path, as_json),
        )  # fmt: skip
        if page is not None:
            title = path.title or (f"Conformance of {target}" if target else "Conformance")
            page.write_text(
                suite.page(verdicts, title=title, command=_command(target, rfc, page, wait), about=path.about()),
                encoding="utf-8",
            )
        _show(verdicts, as_json)
        if any(each.finding in ("failed", "not supported") for each in verdicts):
            raise typer.Exit(Answer.FINDINGS)


def found(target: str | None) -> Callable[[], DataPath]:
    """Return what makes the data paths that a target names. Raises ConfigurationError."""
    from natcore.testing.data_path import DataPath

    if target is None:
        return DataPath
    module, colon, name = target.partition(":")
    expected = "MODULE:NAME must name a subclass of natcore.testing.DataPath, or a function of a configuration"
    if not colon or not module or not name:
        raise ConfigurationError(f"{expected}, got {show(target)}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules of the current folder, as python -m has them
    try:
        value: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{expected}, got {show(target)}: {error}") from error
    if isinstance(value, type) and issubclass(value, DataPath):
        return value
    if isinstance(value, type) or not callable(value):
        raise ConfigurationError(f"{expected}, got {show(target)}: {type(value).__name__}")
    return DataPath.of(value)


def _command(target: str | None, rfcs: Sequence[str] | None, page: Path, wait: float) -> str:
    words = ["natcore conformance", *([target] if target else []), *(f"--rfc {each}" for each in rfcs or ())]
    return " ".join([*words, *([f"--wait {wait:g}"] if wait != 10 else []), f"--page {page}"])


def _progress(path: DataPath, as_json: bool) -> Callable[[Outcome], None]:
    """Tell each case where one may take minutes."""

    def tell(outcome: Outcome) -> None:
        case = outcome.case
        say(f"RFC {case.rfc} REQ-{case.number} {case.name}: {outcome.finding}", err=True)

    return tell if path.is_real_time and not as_json else lambda outcome: None


def _show(verdicts: Sequence[Verdict], as_json: bool) -> None:
    from natcore.testing.conformance import summary

    if as_json:
        rows = [
            {
                "rfc": each.requirement.rfc, "requirement": each.requirement.number, "text": each.requirement.text,
                "finding": each.finding, "mark": each.mark,
                "cases": [
                    {"name": one.case.name, "finding": one.finding, "reason": one.reason} for one in each.outcomes
                ],
            }
            for each in verdicts
        ]  # fmt: skip
        report.print_json({"ok": not any(each.finding == "failed" for each in verdicts), "requirements": rows})
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("RFC", "REQ", "asks for", "mark"):
        table.add_column(heading)
    colours = {"passed": "green", "failed": "bold red", "not supported": "yellow", "not judged": "dim"}
    for each in verdicts:
        mark = f"[{colours[each.finding]}]{report.text(each.mark)}[/]"
        table.add_row(each.requirement.rfc, each.requirement.number, report.text(each.requirement.text), mark)
    console = report.console()
    console.print(table)
    console.print(summary(verdicts))
