"""The questions of a random life, and how its answers are judged: by the packets that were sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from natcore.who.conclude import FOREVER, Gap
from natcore.who.query import Answer, Listing, Store
from natcore.who.source import DamagedPart, FoundRow, LostRun, Part, Sought, without_redacted_copies
from runs.truth_account import Held, Truth

MARGIN = 0.01  # seconds within which a moment at an edge is not judged


class Loaded(Store):
    """A folder as it is now: what the store gives of it, kept in memory, so that a question costs little.

    A life is shorter than a day, so that the store would give all files to every question.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        while True:
            self._all = super().parts()
            try:
                self._found = super().find(Sought(), self._all, 0, FOREVER)
                self._blocks = super().find_blocks(Sought(), self._all, 0, FOREVER)
                break
            except DamagedPart:
                continue

    def parts(self, start: int | None = None, end: int | None = None) -> list[Part]:
        return self._all

    @cached_property
    def _removed(self) -> dict[str, list[Gap]]:
        return super().removed()

    def removed(self) -> dict[str, list[Gap]]:
        return self._removed

    @cached_property
    def _lost(self) -> list[LostRun]:
        return super().lost()

    def lost(self, start: int | None = None, end: int | None = None) -> list[LostRun]:
        return self._lost

    @cached_property
    def _by_port(self) -> dict[int | None, list[FoundRow]]:
        by_port: dict[int | None, list[FoundRow]] = {None: self._found}
        for each in self._found:
            by_port.setdefault(each.row.nat_port, []).append(each)
        return by_port

    def find(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[FoundRow]:
        paths = {part.name for part in parts}
        found = [
            each for each in self._by_port.get(sought.port, ())
            if each.part in paths and start <= each.row.end <= end and sought.fits(each.row)
        ]  # fmt: skip
        return without_redacted_copies(sought, parts, found)

    def find_blocks(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[FoundRow]:
        return [each for each in self._blocks if start <= each.row.end <= end and sought.is_in_block(each.row)]


@dataclass(frozen=True)
class Asking:
    """kind: "who", "address" (no port is known), "what" or "talked". span: seconds that are asked for."""

    outside: tuple[str, int]
    protocol: str
    at: float
    remote: Any
    tolerance: float
    kind: str = "who"
    span: float = 0.0
    inside: str = ""


def judge(truth: Truth, answer: Answer, asked: Asking, at: float) -> str:
    """Why the answer is wrong; empty: it is not."""
    outside, protocol = asked.outside, asked.protocol
    loose, strict, inner = _holders(truth, asked, at)
    start, end = at - asked.tolerance, at + asked.span + asked.tolerance
    is_whole = asked.kind == "address"
    fixed = [static for static in truth.statics if static.address == outside[0]
             and (static.port is None or (is_whole and protocol in ("", "udp"))
                  or (not is_whole and (outside[1], protocol) == (static.port, "udp")))
             and static.start <= end + MARGIN and static.end >= start - MARGIN]  # fmt: skip
    if answer.status == "exact" and answer.matches[0].block is not None:
        match = answer.matches[0]
        told = {(match.instance, str(match.pri_ip))}
        if not told <= truth.block_holders(outside, start - MARGIN, end + MARGIN):
            return f"the block was not {told}"
        others = {(each.instance, each.host) for each in strict} - told
        others |= truth.block_holders(outside, *inner) - told if end > start else set()
        return f"{others} had it too" if others else ""
    if answer.status in ("exact", "held-idle"):
        hosts = {(each.instance, each.host) for each in loose}
        match = answer.matches[0]
        if (match.instance, str(match.pri_ip)) not in hosts:
            return f"wrong subscriber {match.pri_ip} of {match.instance}, not {hosts}"
        others = {(each.instance, each.host) for each in strict} - {(match.instance, str(match.pri_ip))}
        if others and answer.status == "held-idle":
            return f"{others} held it too"
        if any(
            inner[0] <= at <= inner[1] for each in strict if (each.instance, each.host) in others for at in each.packets
        ):
            return f"{others} had traffic too"
    elif answer.status == "unused":
        if strict:
            return f"held by {[(each.instance, each.host, each.start, each.end) for each in strict]}"
        if [each for each in fixed if each.start + MARGIN < at < each.end - MARGIN]:
            return "an entry had it, or may have had"
    elif answer.status == "static":
        computed = "computed" in answer.reason
        if computed:
            if strict and {each.host for each in strict} != {str(answer.subscriber)}:
                return f"computed {answer.subscriber}, held by {[(each.instance, each.host) for each in strict]}"
        elif not fixed:
            return "no entry had it"
        elif strict:
            return "a session had it"
    return ""


def _holders(truth: Truth, asked: Asking, at: float) -> tuple[list[Held], list[Held], tuple[float, float]]:
    """Who may have been meant, who surely was, and the time that is surely asked for."""
    start, end = at - asked.tolerance, at + asked.span + asked.tolerance
    inner = (start + MARGIN, end - MARGIN) if end > start else (start, end)

    def holders(start: float, end: float) -> list[Held]:
        if asked.kind == "who":
            return truth.holders(asked.outside, asked.protocol, start, end, asked.remote)
        return truth.sessions(
            start, end, address=asked.outside[0] if asked.kind == "address" else None,
            host=asked.inside if asked.kind == "what" else None, protocol=asked.protocol or None, remote=asked.remote,
        )  # fmt: skip

    strict = holders(*inner)
    if end == start:
        strict = [each for each in strict if each.start + MARGIN < at < each.end - MARGIN]
    return holders(start - MARGIN, end + MARGIN), strict, inner


def judge_listing(truth: Truth, answer: Listing, asked: Asking, at: float) -> str:
    """Every listed session was there, and in a complete listing every one that was there is listed."""
    loose, strict, _ = _holders(truth, asked, at)

    def keys(found: list[Held]) -> set[tuple[Any, ...]]:
        return {(each.instance, each.host, *each.outside, *each.remote, each.protocol) for each in found}

    names = {1: "icmp", 6: "tcp", 17: "udp"}
    blocks = [each for each in answer.matches if each.block is not None]
    sessions = [each for each in answer.matches if each.block is None]
    start, end = at - asked.tolerance - MARGIN, at + asked.span + asked.tolerance + MARGIN
    for each in blocks:
        holders = truth.block_holders((str(each.nat_ip), each.nat_port), start, end)
        if (each.instance, str(each.pri_ip)) not in holders:
            return f"no such block: {each}"
    told = {
        (each.instance, str(each.pri_ip), str(each.nat_ip), each.nat_port, str(each.pub_ip), each.pub_port,
         names[each.protocol])
        for each in sessions if each.pub_ip is not None
    }  # fmt: skip
    if told - keys(loose):
        return f"no such session: {told - keys(loose)}"
    unsaid = {(each.instance, str(each.pri_ip), str(each.nat_ip), each.nat_port) for each in sessions}
    if unsaid - {key[:4] for key in keys(loose)}:
        return f"no such session: {unsaid}"
    if answer.status in ("complete", "unused"):
        missing = [
            key for key in keys(strict) if key not in told and key[:4] not in unsaid
            and not any(
                (each.instance, str(each.pri_ip), str(each.nat_ip)) == key[:3] and each.nat_port <= key[3] <= each.block[1]
                for each in blocks if each.block is not None
            )
        ]  # fmt: skip
        if missing:
            return f"not listed: {missing}"
    return ""
