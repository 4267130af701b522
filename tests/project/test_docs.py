"""The documents are true: links lead somewhere, files and functions that they name are there, examples print what they show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PLACES = (ROOT, ROOT / "natcore", ROOT / "python" / "natcore")  # what a path in a document may be relative to
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
    assert not {name for name in named if not re.search(rf"\b(def|cdef .*?\b|cpdef .*?\b){name}\(|\bdef {name}\(", source)}


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


def test_diagrams_are_drawn_from_their_texts() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "diagrams" / "draw.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"out of date: {run.stdout}; python docs/diagrams/draw.py"
