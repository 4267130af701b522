"""Answers in words, as the command line prints them and the console shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from natcore.internal.protocols import NAMES

if TYPE_CHECKING:
    from natcore.control.protocol import Greeting, Row
    from natcore.who.query import Answer, Match


def owner_lines(rows: Sequence[Row], summary: Row) -> Iterator[str]:
    """Yield who has an outside endpoint now: an answer to the verb who, a line each."""
    for row in rows:
        if summary["status"] == "static":
            yield f"static: entry {row['entry_name'] or row['entry']} leads to {row['subscriber']}; it has no session now"
            continue
        yield (
            f"{summary['status']}: {row['subscriber']} has it now, from its {row['protocol']} port {row['port']}, in"
            f" {row['sessions']:,} session{'s' if row['sessions'] != 1 else ''}"
        )
    if not rows:
        reserved = summary["reserved_for"]
        yield f"unused: no one has it now{f'; it is reserved for {reserved}' if reserved else ''}"


def explanation_text(summary: Row, greeting: Greeting) -> str:
    """Return an answer to the verb explain."""
    name: Any = greeting.instance or "natcore"
    return f"{summary['text']}\nasked: the running gateway {name} (process {greeting.pid}); nothing was changed"


def answer_lines(answer: Answer) -> Iterator[str]:
    """Yield the answer, its question, each session and each gap of the log."""
    protocol = NAMES.get(answer.protocol, f"protocol {answer.protocol}")
    yield f"{answer.status}: {answer.reason}"
    yield f"({answer.address}:{answer.port} {protocol} at {utc_text(answer.at)} within {answer.tolerance:g} s)"
    for match in answer.matches:
        yield from _match_lines(match)
    for start, end, reason in answer.gaps:
        yield f"not known: {utc_text(start)} to {utc_text(end) if end else 'now'}: {reason}"


def _match_lines(match: Match) -> Iterator[str]:
    remote = "a remote that is redacted" if match.pub_ip is None else f"{match.pub_ip}:{match.pub_port}"
    eip = "" if match.eip in (None, match.nat_ip) else f" (EIP {match.eip})"
    yield f"  {match.pri_ip}:{match.pri_port} as {match.nat_ip}:{match.nat_port}{eip} to {remote}"
    if match.window:
        yield f"    window {utc_text(match.window[0])} to {utc_text(match.window[1])}"
    yield f"    session {match.session}, seen {utc_text(match.start)} to {utc_text(match.end) if match.end else '…'}"


def utc_text(moment: datetime) -> str:
    """Return the moment in UTC, in whole seconds if it is one."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")
