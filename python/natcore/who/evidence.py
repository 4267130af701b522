"""Evidence: answers with the rows, files and hashes from which they follow, as one document for whoever must check them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natcore.internal.files import replaced
from natcore.labels import Labels
from natcore.who.conclude import Row
from natcore.who.labels import labelled
from natcore.who.query import Answer, Found, Listing, answer_of, found_in
from natcore.who.question import EPOCH, Question
from natcore.who.source import Source
from natcore.who.waiting import live_rows, waiting

if TYPE_CHECKING:
    from natcore.gateway import Gateway

FORMAT = "natcore evidence 1"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Answers, and from what they follow.

    Attributes
    ----------
    asked_at
        When the questions were asked, in UTC.
    answers
        In the order of the questions: each one's id, question, answer, rows and names of the parts that were searched.
    parts
        SHA-256 by name, of all parts that were searched; None: the part is no file.
    """

    asked_at: datetime
    answers: tuple[dict[str, Any], ...]
    parts: dict[str, str | None]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "format": FORMAT, "natcore": version("natcore"), "asked_at": _text(self.asked_at), "answers": list(self.answers),
            "parts": self.parts,
        }  # fmt: skip

    def write(self, path: str | os.PathLike[str]) -> None:
        """Replace the file at path, durably."""
        with replaced(Path(path), private=False) as file:
            file.write(json.dumps(self.as_dict(), indent=1).encode() + b"\n")


def ask_all(
    questions: Sequence[tuple[str, Question]],
    source: Source | None,
    *,
    spool: str | os.PathLike[str] | None = None,
    gateway: Gateway | None = None,
    labels: Labels | None = None,
    now: datetime | None = None,
) -> tuple[Evidence, tuple[Answer | Listing, ...]]:
    """Answer many questions, with their evidence.

    Parameters
    ----------
    questions
        Each with its id.
    source, spool, gateway
        Where the rows are, as of `who`.
    labels
        Of inside addresses; None: no label is looked for.
    now
        When the questions are asked; None: by this machine's clock.

    Returns
    -------
    evidence, answers
        In the order of the questions.
    """
    asked_at = now or datetime.now(UTC)
    # Questions of one time follow one another: what the source read for the last one serves the next one too.
    places = sorted(range(len(questions)), key=lambda place: questions[place][1].start)
    before = waiting(questions[places[0]][1], gateway, spool) if places else None

    def found(place: int) -> Found:
        assert before is not None
        (_, question), there = questions[place], before
        if gateway is not None and there.now is not None and place != places[0]:
            there = there.with_live(live_rows(question, gateway, there.now))
        return found_in(question, source, there)

    results: dict[int, tuple[Answer | Listing, dict[str, Any]]] = {}
    parts: dict[str, str | None] = {}
    with ThreadPoolExecutor(1 if source is None else source.at_once, "nat-questions") as threads:
        for place, each in zip(places, threads.map(found, places), strict=True):
            name, question = questions[place]
            answer = answer_of(question, each)
            if labels is not None:
                answer = labelled(answer, labels)
            used = _used(each)
            parts.update((part.name, part.sha256 or None) for part in each.parts if part.name in used)
            results[place] = answer, {
                "id": name, "question": _question(question), "answer": answer.as_dict(), "rows": _rows(each),
                "parts": sorted(used),
            }  # fmt: skip
    ordered = [results[place] for place in range(len(questions))]
    return Evidence(asked_at, tuple(told for _, told in ordered), parts), tuple(answer for answer, _ in ordered)


def _used(found: Found) -> set[str]:
    """Return the names of the parts of the time that was searched: those without a row of it prove that there is none."""
    start, end = found.searched
    return {
        part.name for part in found.parts if part.footer.first_time <= end and part.footer.last_time >= start
    } - {""}  # fmt: skip


def _rows(found: Found) -> list[dict[str, Any]]:
    """Return the rows of the sessions in the answer, each with its part ("": it waits, or is a running gateway's)."""
    concluded = found.concluded
    sessions = {
        (each.row.instance, each.row.run, each.row.session)
        for each in (*concluded.matches, *concluded.others, *concluded.perhaps)
    }
    return [
        _row(each.row) | {"part": each.part}
        for each in sorted(
            set(found.rows), key=lambda each: (each.row.instance, each.row.run, each.row.number, each.part)
        )
        if (each.row.instance, each.row.run, each.row.session) in sessions
    ]


def _row(row: Row) -> dict[str, Any]:
    values = row._asdict()
    del values["early"], values["late"]
    return values | {"start": _time(row.start), "end": _time(row.end)}


def _question(question: Question) -> dict[str, Any]:
    fields = {
        "address": question.address, "port": question.port, "protocol": question.protocol, "inside": question.inside,
        "remote": question.remote_address, "remote_port": question.remote_port, "at": question.at, "until": question.until,
        "tolerance": question.tolerance,
    }  # fmt: skip
    return {name: _plain(value) for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return _text(value)
    return str(value) if isinstance(value, IPv4Address) else value


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _time(microseconds: int) -> str:
    return _text(EPOCH + timedelta(microseconds=microseconds))
