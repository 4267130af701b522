"""Answers in words, as the command line prints them and the console shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from natcore.cli.times import utc
from natcore.internal.protocols import NAMES

if TYPE_CHECKING:
    from natcore.control.protocol import Greeting, Row
    from natcore.who.query import Answer, Listing, Match


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


def listing_lines(answer: Listing) -> Iterator[str]:
    """Yield a list's status, question, sessions and gaps."""
    yield f"{answer.status}: {answer.reason}"
    parts = [f"inside {answer.inside}"] if answer.inside is not None else []
    if answer.remote is not None:
        parts.append(f"remote {answer.remote}" + ("" if answer.remote_port is None else f":{answer.remote_port}"))
    if answer.protocol is not None:
        parts.append(_protocol(answer.protocol))
    yield f"({', '.join(parts)}, {_time_of(answer)})"
    for match in answer.matches:
        yield from _match_lines(match)
    for match in answer.perhaps:
        yield "perhaps:"
        yield from _match_lines(match)
    for entry in answer.entries:
        yield f"besides: {entry}"
    yield from _gap_lines(answer)


def _protocol(number: int) -> str:
    return NAMES.get(number, f"protocol {number}")


def _time_of(answer: Answer | Listing) -> str:
    span = f"at {utc(answer.at)}" if answer.until is None else f"from {utc(answer.at)} to {utc(answer.until)}"
    return f"{span} within {answer.tolerance:g} s"


def _gap_lines(answer: Answer | Listing) -> Iterator[str]:
    for start, end, reason in answer.gaps:
        yield f"not known: {utc(start)} to {utc(end) if end else 'now'}: {reason}"


def answer_lines(answer: Answer) -> Iterator[str]:
    """Yield the answer, its question, each session and each gap of the log."""
    yield f"{answer.status}: {answer.reason}"
    endpoint = f"{answer.address}" if answer.port is None else f"{answer.address}:{answer.port}"
    protocol = "" if answer.protocol is None else f" {_protocol(answer.protocol)}"
    remote = ""
    if answer.remote is not None:
        remote = f" to {answer.remote}" + ("" if answer.remote_port is None else f":{answer.remote_port}")
    yield f"({endpoint}{protocol}{remote} {_time_of(answer)})"
    for match in answer.matches:
        yield from _match_lines(match)
    yield from _gap_lines(answer)


def _match_lines(match: Match) -> Iterator[str]:
    remote = "a remote that is redacted" if match.pub_ip is None else f"{match.pub_ip}:{match.pub_port}"
    eip = "" if match.eip in (None, match.nat_ip) else f" (EIP {match.eip})"
    if match.block is not None:
        first, last = match.block
        yield f"  {match.pri_ip} with ports {first} to {last} of {match.nat_ip}{eip}"
    else:
        yield f"  {match.pri_ip}:{match.pri_port} as {match.nat_ip}:{match.nat_port}{eip} to {remote}"
    for label in match.labels:
        yield f"    then {label}"
    for label in match.recorded_labels:
        if label not in match.labels:
            yield f"    recorded as {label}"
    if match.window:
        yield f"    window {utc(match.window[0])} to {utc(match.window[1])}"
    life = f"{utc(match.start)} to {utc(match.end) if match.end else '…'}"
    yield f"    assigned {life}" if match.block is not None else f"    session {match.session}, seen {life}"
