"""Verification of a log's Parquet files, in a folder or a bucket: each file has the SHA-256 of the file before it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.sessionlog.file_metadata import Footer, Numbers, joined_ranges, missing_numbers
from natcore.sinks._parquet_folder import COMPACTED, REMOVED, SEAL, Compaction, Removal, Seal
from natcore.who.anchor import Anchor, Chain
from natcore.who.files import Files, files_at

_NAME = re.compile(r"\d{8}T\d{6}Z-(?P<run>[^-]+)-(?P<number>\d+)(-\d+)?\.parquet")


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that differs from what was written.

    Attributes
    ----------
    kind
        "changed", "missing", "renamed", "reordered", "added" or "damaged".
    file
        Its name; empty: the folder as a whole.
    text
        How that is known.
    """

    kind: Literal["changed", "missing", "renamed", "reordered", "added", "damaged"]
    file: str
    text: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Whoever can write into the folder can write the whole chain anew: an anchor that is kept elsewhere, and given to a
    later `verify`, shows that too.

    Attributes
    ----------
    files, rows
        Looked at.
    removed
        Files that retention removed, by its own account.
    anchor
        (name, SHA-256) of the newest file; None: there is none.
    findings
        Files that are not as they were written.
    state
        An anchor that tells of every folder and number.
    """

    files: int
    rows: int
    removed: int
    anchor: tuple[str, str] | None
    findings: tuple[Finding, ...]
    state: Anchor

    @property
    def ok(self) -> bool:
        """True without findings."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    sha256: str
    footer: Footer


def verify(folder: Files | str | os.PathLike[str], anchor: str | Anchor | None = None) -> Verification:
    """Read every file of a ParquetSink's folder, and of the folders in it, and compare them.

    Parameters
    ----------
    folder
        The folder; "s3://BUCKET/PREFIX"; or a `natcore.who.bucket.Bucket`.
    anchor
        A SHA-256 that an earlier verification gave, of any of them, or its whole state; None: none is asked for.

    Returns
    -------
    Verification
        `.ok`, and the findings.
    """
    place = files_at("folder", folder)
    if isinstance(anchor, str) and not re.fullmatch(r"[0-9a-fA-F]{64}", anchor):
        raise ConfigurationError(f"anchor must be the 64 hexadecimal digits of a SHA-256, got {show(anchor)}")
    chains = [_verify(place, each) for each in _folders(place)]
    findings = [finding for chain in chains for finding in chain.findings]
    if not chains:
        findings.append(Finding("missing", "", "there is no file of a session log"))
    if isinstance(anchor, Anchor):
        findings += _anchored(anchor, chains)
    elif anchor is not None and not any(anchor.lower() in chain.known for chain in chains):
        findings.append(Finding("missing", "", f"no file has the anchor {anchor}, nor had one that retention removed"))
    newest = max((chain for chain in chains if chain.anchor), key=lambda chain: chain.last_time, default=None)
    return Verification(
        sum(chain.files for chain in chains), sum(chain.rows for chain in chains),
        sum(chain.removed for chain in chains), None if newest is None else newest.anchor, tuple(_sorted(findings)),
        Anchor(tuple(chain.state for chain in chains if chain.anchor is not None)),
    )  # fmt: skip


def _folders(place: Files) -> list[str]:
    """Return the folders that a log writes into, or has written into."""
    found, waiting = [], [place.top]
    while waiting:
        folder = waiting.pop()
        listing = place.listing(folder)
        if listing is None:  # it went meanwhile
            continue
        waiting += listing.folders
        if listing.files or any(place.stamp(f"{folder}/{name}") is not None for name in (REMOVED, SEAL)):
            found.append(folder)
    return sorted(found)


@dataclass(frozen=True, slots=True)
class _Chain:
    """A folder's files. known: every SHA-256 that one of them has, or had when it was removed or put together.

    state: what of them an anchor keeps."""

    files: int
    rows: int
    removed: int
    anchor: tuple[str, str] | None
    last_time: int
    known: frozenset[str]
    findings: tuple[Finding, ...]
    state: Chain


def _read(place: Files, path: str) -> tuple[Footer | None, str, str]:
    """Return a file's footer and SHA-256; None: why there is none."""
    try:
        footer = place.footer(path)
        if footer is None:
            return None, "", "it is damaged, or no file of a session log"
        return footer, place.sha256(path), ""
    except FileNotFoundError:  # the folder is written to: what was listed is not what is there
        raise
    except OSError as error:
        return None, "", f"it cannot be read: {error.strerror or error}"


def _verify(place: Files, path: str) -> _Chain:
    files: dict[str, _File] = {}
    findings: list[Finding] = []
    listing = place.listing(path)
    paths = [] if listing is None else listing.files
    for each, (footer, sha256, why) in zip(paths, place.map(partial(_read, place), paths), strict=True):
        name = each.rpartition("/")[2]
        if footer is None:
            findings.append(Finding("damaged", name, why))
        else:
            files[name] = _File(name, sha256, footer)
    compacted, seal = place.compactions(path), place.seal(path)
    for name in _unfinished(files, seal, compacted):
        del files[name]
    merged = {name for file in files.values() for name, _ in file.footer.replaces}
    for name in merged & files.keys():  # a crash left it beside the file that has its rows
        del files[name]
    lines = place.removals(path)
    removals = {removal.file: removal for removal, _ in lines}
    findings += [*_names(files), *_links(files, removals, compacted), *_ends(files), *_removals(files, lines)]
    findings += [*_compactions(seal, files, removals, compacted), *_sealed(seal, files, lines)]
    prefix = "" if path == place.top else f"{path.removeprefix(f'{place.top}/')}/"
    named = tuple(Finding(each.kind, f"{prefix}{each.file}", each.text) for each in findings)
    known = {file.sha256 for file in files.values()} | {removal.sha256 for removal, _ in lines}
    known |= {sha256 for file in files.values() for _, sha256 in file.footer.replaces}
    known |= {sha256 for line, _ in compacted for sha256 in line.replaces.values()}
    tip = _tip(files)
    return _Chain(
        len(files), sum(file.footer.rows for file in files.values()), len(removals.keys() - files.keys()),
        None if tip is None else (f"{prefix}{tip.name}", tip.sha256), 0 if tip is None else tip.footer.last_time,
        frozenset(known), named,
        Chain(prefix.rstrip("/"), tip.name if tip else "", tip.sha256 if tip else "", _numbers(files, removals.values())),
    )  # fmt: skip


def _unfinished(files: dict[str, _File], seal: Seal | None, compacted: Sequence[tuple[Compaction, str]]) -> list[str]:
    """Return the files that a crash left beside all their parts, before the seal or a next file named them."""
    named = {file.footer.previous for file in files.values()} | ({seal.file} if seal is not None else set())
    named |= {line.file for line, _ in compacted}
    here = {(file.name, file.sha256) for file in files.values()}
    return [
        file.name
        for file in files.values()
        if file.footer.replaces and file.name not in named and here.issuperset(file.footer.replaces)
    ]


def _numbers(files: dict[str, _File], removals: Iterable[Removal]) -> dict[str, tuple[Numbers, ...]]:
    """Of the rows that are there, and of those that were in the files that retention removed."""
    found: dict[str, list[Numbers]] = {}
    for file in files.values():
        found.setdefault(f"{file.footer.instance} {file.footer.run}", []).extend(file.footer.ranges)
    for removal in removals:
        if removal.last_number >= removal.first_number:
            numbers = removal.first_number, removal.last_number
            found.setdefault(f"{removal.instance} {removal.run}", []).append(numbers)
    return {key: joined_ranges(found[key]) for key in sorted(found)}


def _anchored(anchor: Anchor, chains: Sequence[_Chain]) -> Iterator[Finding]:
    """Each folder of the anchor is there, continues the file that was its newest then, and lacks no number."""
    now = {chain.state.folder: chain for chain in chains}
    for each in anchor.chains:
        chain = now.get(each.folder)
        if chain is None:
            yield Finding("missing", each.folder, "the anchor knows this folder")
            continue
        if each.sha256 not in chain.known:
            text = "it was the newest file, by the anchor, and none has its SHA-256, nor had one that retention removed"
            yield Finding("missing", f"{each.folder}/{each.newest}".lstrip("/"), text)
        for key, numbers in each.numbers.items():
            for first, last in missing_numbers(numbers, chain.state.numbers.get(key, ())):
                instance, run = key.rsplit(" ", 1)
                text = f"rows {first} to {last} of run {run} of {instance} were there, by the anchor"
                yield Finding("missing", each.folder, text)


def _removals(files: dict[str, _File], lines: Sequence[tuple[Removal, str]]) -> Iterator[Finding]:
    """Check the removals: each line names the one before, files name the last line of their time, the oldest go first."""
    before = ""
    for removal, sha256 in lines:
        if removal.before != before:
            yield Finding("changed", REMOVED, f"the line about {removal.file} does not continue the one before it")
        before = sha256
    heads = {"", *(sha256 for _, sha256 in lines)}
    for file in files.values():
        if file.footer.removals not in heads:
            yield Finding("changed", REMOVED, f"{file.name} knew a line that is not there any more")
    for removal, _ in lines:
        older = [file for file in files.values() if file.footer.last_time < removal.first_time]
        if older and removal.file not in files:
            yield Finding("missing", removal.file, f"retention removes the oldest first, and {older[0].name} is older")


def _compactions(
    seal: Seal | None, files: dict[str, _File], removals: dict[str, Removal], lines: Sequence[tuple[Compaction, str]]
) -> Iterator[Finding]:
    """Check the manifest: each line names the one before, the seal and files name the last line of their time, and its files
    are as they were written, or were removed by retention."""
    before = ""
    for line, sha256 in lines:
        if line.before != before:
            yield Finding("changed", COMPACTED, f"the line about {line.file} does not continue the one before it")
        before = sha256
        file, removal = files.get(line.file), removals.get(line.file)
        if file is None and removal is None:
            yield Finding("missing", line.file, f"{COMPACTED} knows it, and retention did not remove it")
        elif (file.sha256 if file is not None else removal.sha256 if removal else "") != line.sha256:
            yield Finding("changed", line.file, f"{COMPACTED} knew it otherwise")
    heads, known = {"", *(sha256 for _, sha256 in lines)}, {line.file for line, _ in lines}
    for file in files.values():
        if file.footer.compactions not in heads:
            yield Finding("changed", COMPACTED, f"{file.name} knew a line that is not there any more")
        if file.footer.order and file.name not in known:
            yield Finding("added", file.name, f"{COMPACTED} does not know it")
    if seal is not None and seal.compactions != before:
        yield Finding("changed", COMPACTED, "its last line is not the one that the seal knows")


def _sealed(seal: Seal | None, files: dict[str, _File], lines: Sequence[tuple[Removal, str]]) -> Iterator[Finding]:
    """Check that the newest file and the last removal are those of the seal."""
    tip = _tip(files)
    if seal is None:
        yield Finding("missing", SEAL, "the seal of the newest file is not there, or damaged")
    elif tip is None or seal.file not in files:
        yield Finding("missing", seal.file, "it was the newest file, by its seal")
    elif files[seal.file].sha256 != seal.sha256:
        yield Finding("changed", seal.file, "its seal knew it otherwise")
    elif tip.name != seal.file:
        yield Finding("added", tip.name, f"the newest file is {seal.file}, by its seal")
    if seal is not None and seal.removals != (lines[-1][1] if lines else ""):
        yield Finding("changed", REMOVED, "its last line is not the one that the seal knows")


def _names(files: dict[str, _File]) -> Iterator[Finding]:
    """Check that a file's name has its run and its first number."""
    for file in files.values():
        match = _NAME.fullmatch(file.name)
        if match is None or (match["run"], int(match["number"])) != (file.footer.run, file.footer.first_number):
            text = f"it holds rows from {file.footer.first_number} of run {file.footer.run}, which is not what it is called"
            yield Finding("renamed", file.name, text)


def _links(
    files: dict[str, _File], removals: dict[str, Removal], compacted: Sequence[tuple[Compaction, str]]
) -> Iterator[Finding]:
    """Check that each file's predecessor is there, unchanged and before it, or was removed by retention."""
    by_hash = {file.sha256: file for file in files.values()}
    merged = {sha256 for file in files.values() for _, sha256 in file.footer.replaces}
    merged |= {sha256 for line, _ in compacted for sha256 in line.replaces.values()}
    for file in files.values():
        name, expected = file.footer.previous, file.footer.previous_sha256
        before, removal = files.get(name), removals.get(name)
        if not name or expected in merged or (before is not None and before.sha256 == expected):
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
    if before.footer.ranges and after.footer.first_number <= before.footer.last_number:
        text = f"its rows begin at {after.footer.first_number}, and {before.name}, which it continues, ends later"
        yield Finding("reordered", after.name, text)


def _ends(files: dict[str, _File]) -> Iterator[Finding]:
    """Check that a gateway's files are one chain without a fork."""
    followers = Counter((file.footer.previous, file.footer.instance) for file in files.values())
    for file in files.values():
        previous, instance = file.footer.previous, file.footer.instance
        if followers[previous, instance] > 1:
            what = f"continues {previous}" if previous else "begins a chain"
            yield Finding("added", file.name, f"it {what}, and so does another file")


def _tip(files: dict[str, _File]) -> _File | None:
    name = newest_of({name: file.footer for name, file in files.items()})
    return None if name is None else files[name]


def newest_of(footers: Mapping[str, Footer]) -> str | None:
    """Return the newest file of a folder by name: no other continues it. None: there is none.

    The newest one is never compacted where a log writes; a bucket may have compacted ones alone."""
    followed = {footer.previous for footer in footers.values()}
    ends = [name for name, footer in footers.items() if name not in followed and not footer.order]
    return max(ends or footers, key=lambda name: footers[name].last_time, default=None)


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(dict.fromkeys(findings), key=lambda finding: (finding.file, finding.kind))
