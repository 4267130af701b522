"""The documents are true: links lead somewhere, files and functions that they name are there, examples print what they show."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PLACES = (
    ROOT,
    ROOT / "natcore",
    ROOT / "python" / "natcore",
    ROOT / "tests",
)  # what a path in a document may be relative to
SOURCES = [*(ROOT / "natcore").rglob("*.p[yx][xd]"), *(ROOT / "python" / "natcore").rglob("*.py")]
CODE = re.compile(r"^(```|~~~).*?^\1", re.S | re.M)


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return CODE.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """What a link may lead to within a document: its headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(document), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        place = document.parent / path if path else document
        assert place.exists(), f"{document.name} links to {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{document.name} links to {target}: there are {sorted(anchors(place))}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_are_named_are_there(document: Path) -> None:
    """A path in backticks with an ending of the source's, such as `nat/pipeline.pyx`."""
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:pyx|pxd|py|pyi|md|c|h))`", prose(document))
    missing = [path for path in named if "NAME" not in path and not any((place / path).exists() for place in PLACES)]
    assert not missing


def test_the_architecture_names_functions_of_the_core() -> None:
    source = "\n".join(path.read_text() for path in SOURCES)
    named = set(re.findall(r"`(\w+)\(\)`", prose(ROOT / "docs" / "architecture.md")))
    assert len(named) > 10
    assert not {
        name for name in named if not re.search(rf"\b(def|cdef .*?\b|cpdef .*?\b){name}\(|\bdef {name}\(", source)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_tests_that_are_named_are_there(document: Path) -> None:
    """`test_x.py::test_y`, and `::test_z` of the same file after it."""
    last = ""
    for file, test in re.findall(r"`((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?`", prose(document)):
        last = file.removeprefix("tests/") or last
        if last and (file or test):
            found = [
                path for path in (ROOT / "tests").glob(f"**/{last}") if not test or f"def {test}(" in path.read_text()
            ]
            assert found, f"{document.name} names {last}::{test}"


def printed() -> list[tuple[Path, int]]:
    """Python blocks that are followed by what they print."""
    return [
        (document, number)
        for document in DOCUMENTS
        for number in range(len(pairs(document)))
        if document.name != "README.md" or document.parent != ROOT
    ]


def pairs(document: Path) -> list[tuple[str, str]]:
    blocks = r"^```python\n((?:(?!```).*\n)*)```\n+```text\n((?:(?!```).*\n)*)```$"
    return re.findall(blocks, document.read_text(), re.M)


@pytest.mark.parametrize(
    ("document", "number"), printed(), ids=lambda value: name_of(value) if isinstance(value, Path) else str(value)
)
def test_examples_print_what_they_show(document: Path, number: int, tmp_path: Path) -> None:
    code, shown = pairs(document)[number]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == shown


@pytest.mark.parametrize("script", ["diagrams/draw.py", "reference/tables.py"])
def test_what_is_written_from_sources_is_up_to_date(script: str) -> None:
    command = [sys.executable, str(ROOT / "docs" / script), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"out of date: {run.stdout}{run.stderr}; python docs/{script} writes it"


def test_the_site_has_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = set(re.findall(r"([\w./-]+\.md)$", nav, re.M))
    missing = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} - named
    assert not missing


def test_the_reference_has_every_public_name() -> None:
    """Each has its own heading; arrays, an array's format and the version of the C interface stand in tables or with others."""
    init = (ROOT / "python" / "natcore" / "__init__.py").read_text()
    public = set(re.findall(r'^    "(\w+)",$', init.partition("__all__ = [")[2], re.M))
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    errors = {name for name in public if name.endswith(("Error", "Warning"))}  # natcore.errors, as a whole
    shown = set(re.findall(r"^::: natcore\.(?:\w+\.)*(\w+)$|^## (\w+)$", pages, re.M)) - {("", "")}
    names = {name for pair in shown for name in pair if name}
    assert not public - names - errors - {"ABI_VERSION", "C_API", "get_include", "format_ipv4"}


def test_counters_that_are_named_are_counted() -> None:
    """Counters that a page names, such as `dropped_mtu`, are those of a gateway, a plane or a log."""
    source = (ROOT / "docs" / "reference" / "counters.md").read_text() + (
        ROOT / "docs" / "reference" / "verdicts.md"
    ).read_text()
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"]
    for document in pages:
        for name in re.findall(r"`(dropped_\w+[a-z]|lost_\w+[a-z])`", document.read_text()):
            assert f"`{name}`" in source or name == "lost_ring", f"{name_of(document)} names {name}"


def test_the_workflows_use_what_is_there() -> None:
    """Targets of the Makefile and scripts that the workflows run; actionlint looks at the rest where it is installed."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for workflow in workflows:
        text = workflow.read_text()
        assert set(re.findall(r"run: make ([a-z]+)", text)) <= targets
        assert all((ROOT / script).exists() for script in re.findall(r"run: (\.ci/\w+)", text))
    if tool := shutil.which("actionlint"):
        run = subprocess.run([tool, *map(str, workflows)], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout
