"""The words of docs/glossary.md: the project's text uses no dialect and cites only rules that are defined."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
CONTRACT = ROOT / "docs" / "session-log-contract.md"

FOLDERS = ("natcore", "python", "tests", "benchmarks", "docs", ".ci")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "Makefile", "CMakeLists.txt", "pyproject.toml")
TEXT = {".py", ".pyi", ".pyx", ".pxd", ".h", ".c", ".md", ".toml", ".txt", ".yml", ""}

DIALECT = (
    r"whose",
    r"nobody",
    r"somebody",
    r"\b(he|his|him)\b",
    r"\banother's\b",
    r"\ballowed (is|are)\b",
    r"\bin vain\b",
    r"\brooms?\b",
    r"\btold of\b",
    r"\bholes?\b(?! punch)",
)
PHRASE = re.compile("|".join(DIALECT), re.IGNORECASE)

CITATION = re.compile(r"\bcontract,? (?:[RD]\d+|field \d+)(?:(?:,| and| to) [RD]\d+)*|\((?:[RD]\d+)\)", re.IGNORECASE)


@cache
def texts() -> dict[Path, str]:
    """Every file of the project's own text, but for the glossary and this test."""
    found = [ROOT / page for page in PAGES if (ROOT / page).exists()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in TEXT]
    made = {"__pycache__", "corpus"}
    shown = sorted(path for path in found if path not in (GLOSSARY, Path(__file__)) and not made & set(path.parts))
    return {path: path.read_text() for path in shown}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_dialect() -> None:
    found = [
        f"{name_of(path)}:{number}: {match[0]}"
        for path, text in texts().items()
        if PHRASE.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        for match in PHRASE.finditer(line)
    ]
    assert not found, f"see docs/glossary.md for the words to use: {found}"


def defined() -> set[str]:
    """The rules and fields of the session log's contract."""
    rows = [line.split("|")[1].strip() for line in CONTRACT.read_text().splitlines() if line.startswith("| ")]
    rules = {row for row in rows if re.fullmatch(r"[RD]\d+", row)}
    fields = {number for row in rows if re.fullmatch(r"\d+(, \d+)?", row) for number in row.split(", ")}
    return rules | {f"field {number}" for number in fields}


def test_the_contract_defines_what_is_cited() -> None:
    rules, cited = defined(), set()
    for path, text in texts().items():
        for match in CITATION.finditer(text):
            named = set(re.findall(r"[RD]\d+|field \d+", match[0], re.IGNORECASE))
            assert named <= rules, (
                f"{name_of(path)} cites {sorted(named - rules)}; {name_of(CONTRACT)} defines no such rule"
            )
            cited |= named
    assert {"R5", "D3", "field 8"} <= cited  # the search finds what is there


NAMED_FILE = re.compile(r"(?<![\w./-])(?:natcore/[\w/]+|_\w+)\.(?:pxd|pyx)\b")


def test_core_files_that_are_named_exist() -> None:
    named = {(name_of(path), match[0]) for path, text in texts().items() for match in NAMED_FILE.finditer(text)}
    assert len(named) > 20  # the search finds what is there
    missing = sorted((where, file) for where, file in named if not (ROOT / file).exists())
    assert not missing
