"""Whether a folder of Parquet files is as it was written: each file names the one before it with its SHA-256."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import ConfigurationError
from .footer import Footer
from .redaction import show
from .sinks._parquet_folder import Removal, read_footer, read_removals, sha256_of

_NAME = re.compile(r"\d{8}T\d{6}Z-(?P<run>[^-]+)-(?P<number>\d+)(-\d+)?\.parquet")


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: "changed", "missing", "renamed", "reordered", "added" or "damaged"; file: which; text: how one knows."""

    kind: Literal["changed", "missing", "renamed", "reordered", "added", "damaged"]
    file: str
    text: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found. files, rows: looked at; removed: files that retention told of.

    anchor: (name, SHA-256) of the newest file that will not grow any more. Whoever can write into the folder can write
    the whole chain anew: an anchor that is kept elsewhere, and given to a later `verify`, shows that too.
    """

    files: int
    rows: int
    removed: int
    anchor: tuple[str, str] | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    sha256: str
    footer: Footer


def verify(folder: str | os.PathLike[str], anchor: str | None = None) -> Verification:
    """Read every file of a ParquetSink's folder and compare. anchor: a SHA-256 that an earlier verification gave."""
    path = Path(folder)
    if not path.is_dir():
        raise ConfigurationError(f"folder={show(str(folder))}: allowed is the folder of a ParquetSink")
    if anchor is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", anchor):
        raise ConfigurationError(f"anchor={show(anchor)}: allowed are the 64 hexadecimal digits of a SHA-256")
    files: dict[str, _File] = {}
    findings: list[Finding] = []
    for each in sorted(path.glob("*.parquet")):
        footer = read_footer(each)
        if footer is None:
            findings.append(Finding("damaged", each.name, "it is damaged, or no file of a session log"))
        else:
            files[each.name] = _File(each.name, sha256_of(each), footer)
    removals = {removal.file: removal for removal in read_removals(path)}
    findings += [*_names(files), *_links(files, removals), *_ends(files)]
    if anchor is not None and not _is_known(anchor.lower(), files, removals):
        findings.append(Finding("missing", "", f"no file has the anchor {anchor}, nor had one that retention removed"))
    return Verification(
        len(files), sum(_rows(file) for file in files.values()), len(removals.keys() - files.keys()), _anchor(files),
        tuple(_sorted(findings)),
    )  # fmt: skip


def _rows(file: _File) -> int:
    missing = sum(hole.last - hole.first + 1 for hole in file.footer.missing)
    return file.footer.last_number - file.footer.first_number + 1 - missing


def _names(files: dict[str, _File]) -> Iterator[Finding]:
    """A file's name tells its run and its first number."""
    for file in files.values():
        match = _NAME.fullmatch(file.name)
        if match is None or (match["run"], int(match["number"])) != (file.footer.run, file.footer.first_number):
            text = f"it holds rows from {file.footer.first_number} of run {file.footer.run}, which is not what it is called"
            yield Finding("renamed", file.name, text)


def _links(files: dict[str, _File], removals: dict[str, Removal]) -> Iterator[Finding]:
    """Each file's predecessor is there, as it was, and before it; or retention removed it."""
    by_hash = {file.sha256: file for file in files.values()}
    for file in files.values():
        name, expected = file.footer.previous, file.footer.previous_sha256
        before, removal = files.get(name), removals.get(name)
        if not name or (before is not None and before.sha256 == expected):
            if before is not None and before.footer.run == file.footer.run:
                yield from _order(before, file)
        elif expected in by_hash:
            text = f"it is {name} by its content, which {file.name} continues"
            yield Finding("reordered" if before else "renamed", by_hash[expected].name, text)
        elif before is not None:
            yield Finding("changed", name, f"{file.name} was written after it, and knew it otherwise")
        elif removal is None:
            yield Finding("missing", name, f"{file.name} continues it, and retention did not remove it")
        elif removal.sha256 != expected:
            yield Finding("changed", name, f"it was changed before retention removed it: {file.name} knew it otherwise")


def _order(before: _File, after: _File) -> Iterator[Finding]:
    if after.footer.first_number <= before.footer.last_number:
        text = f"its rows begin at {after.footer.first_number}, and {before.name}, which it continues, ends later"
        yield Finding("reordered", after.name, text)


def _ends(files: dict[str, _File]) -> Iterator[Finding]:
    """A gateway's files are one chain: it forks nowhere."""
    followers = Counter((file.footer.previous, file.footer.instance) for file in files.values())
    for file in files.values():
        previous, instance = file.footer.previous, file.footer.instance
        if followers[previous, instance] > 1:
            what = f"continues {previous}" if previous else "begins a chain"
            yield Finding("added", file.name, f"it {what}, and so does another file")


def _is_known(anchor: str, files: dict[str, _File], removals: dict[str, Removal]) -> bool:
    return anchor in {file.sha256 for file in files.values()} | {removal.sha256 for removal in removals.values()}


def _anchor(files: dict[str, _File]) -> tuple[str, str] | None:
    """The predecessor of the newest file."""
    followed = {file.footer.previous for file in files.values()}
    ends = [file for file in files.values() if file.name not in followed and file.footer.previous]
    newest = max(ends, key=lambda file: file.footer.last_time, default=None)
    return None if newest is None else (newest.footer.previous, newest.footer.previous_sha256)


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(dict.fromkeys(findings), key=lambda finding: (finding.file, finding.kind))
