"""The queries of the session log: who had an outside endpoint at a time, what an inside address had, who talked to a remote.

Rows come from a `Source`; those that still wait are read from the spool, and those of a gateway in this process from its
memory, open windows included. What follows from them is natcore.who.conclude's business.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence, Set
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from natcore.config import Address
from natcore.errors import ConfigurationError
from natcore.who.conclude import (
    FOREVER,
    Asked,
    Conclusion,
    Gap,
    Holding,
    Row,
    Run,
    Static,
    Status,
    conclude,
    holdings,
    is_alone,
)
from natcore.who.knowledge import Knowledge
from natcore.who.question import EPOCH, LONGEST_IDLE, LONGEST_WINDOW, Question
from natcore.who.source import DamagedPart, FoundRow, Part, Source
from natcore.who.store import Store
from natcore.who.waiting import Waiting, waiting, waiting_blocks, waiting_evidence

if TYPE_CHECKING:
    from natcore.gateway import Gateway

_log = logging.getLogger(__name__)
_DAY = 86_400_000_000  # microseconds
# Before the time, in which a list of the port blocks is sought; None: all.
_BLOCK_REACHES = (_DAY + _DAY // 8, 32 * _DAY, None)
__all__ = ["Answer", "Listing", "Match", "Source", "Store", "talked", "what", "who"]


@dataclass(frozen=True, slots=True)
class Match:
    """A session that had the port, or a subscriber's port block with it.

    Attributes
    ----------
    instance, vpc_id
        The gateway's.
    protocol
        IANA number.
    pri_ip, pri_port, pub_ip, pub_port, nat_ip, nat_port
        Inside, remote and outside endpoint; pub_ip None: the log's destinations are redacted.
    eip
        The external address; None: it has none.
    start, end
        Of the session, as far as the rows around then say; end None: none does.
    window
        The row's window that covers the question; None: it held the port without traffic then.
    run, session
        Name the session for ever.
    recorded_labels
        Of the inside address, as the session's rows of that time have them (`Gateway.start_session_log(labels=)`).
    block
        First and last port of the port block; None: it is a session. Then pri_port, pub_ip and pub_port tell nothing.
    labels
        Of the inside address then (natcore.labels); empty where none were asked for.
    """

    instance: str
    vpc_id: str
    protocol: int
    pri_ip: IPv4Address
    pri_port: int
    pub_ip: IPv4Address | None
    pub_port: int
    nat_ip: IPv4Address
    nat_port: int
    eip: IPv4Address | None
    start: datetime
    end: datetime | None
    window: tuple[datetime, datetime] | None
    run: str
    session: int
    labels: tuple[str, ...] = ()
    recorded_labels: tuple[str, ...] = ()
    block: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Who had an outside endpoint at a time, or why the log cannot say.

    docs/truth.md says from what each status follows.

    Parameters
    ----------
    status
        "exact": one subscriber had traffic then, or the port block. "held-idle": one held the port then, and no row tells of
        traffic. "static": an entry has it, and its traffic has no rows. "ambiguous": several did, or perhaps did. "gap": no
        holder is known, and the log does not know all of that time. "unused": no subscriber had it.
    reason
        The status in words.
    address, port, protocol, at, until, remote, remote_port, tolerance
        The question.
    matches
        The sessions. Where several subscribers are candidates and no port was asked for, the likeliest first.
    others
        Sessions of the port towards other remotes than the one asked for.
    gaps
        Where the log does not know all about that time, whatever the status is: (start, end or None, why).
    entry, entry_host
        The entry in words, and its inside host.
    """

    status: Status
    reason: str
    address: IPv4Address
    port: int | None
    protocol: int | None
    at: datetime
    tolerance: float
    matches: tuple[Match, ...] = ()
    others: tuple[Match, ...] = ()
    gaps: tuple[tuple[datetime, datetime | None, str], ...] = ()
    entry: str | None = None
    entry_host: IPv4Address | None = None
    until: datetime | None = None
    remote: IPv4Address | None = None
    remote_port: int | None = None

    @property
    def subscriber(self) -> IPv4Address | None:
        """The inside address, where it is one."""
        return self.matches[0].pri_ip if self.status in ("exact", "held-idle") else self.entry_host

    @property
    def subscribers(self) -> list[str]:
        """The inside addresses that are named, dotted."""
        found = [str(each.pri_ip) for each in self.matches]
        return list(dict.fromkeys(found + ([str(self.entry_host)] if self.entry_host is not None else [])))

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: times in ISO 8601, addresses dotted."""
        result: dict[str, Any] = plain(self)
        return result | {"subscriber": plain(self.subscriber)}


@dataclass(frozen=True, slots=True)
class Listing:
    """All sessions of an inside address, or with a remote, in a span.

    Parameters
    ----------
    status
        "complete": these sessions and no others. "unused": none, and no row is missing. "incomplete": there may be
        more, or some may not have been then.
    reason
        The status in words.
    inside, remote, remote_port, address, port, protocol, at, until, tolerance
        The question.
    matches
        Sessions that surely were then, in the order of their begin.
    perhaps
        Sessions that may have been then, or with that remote.
    gaps
        Where the log does not know all about that time: (start, end or None, why).
    entries
        Entries without rows in words (DNAT, 1:1, no-NAT): traffic as is asked for may have been theirs.
    """

    status: Status
    reason: str
    inside: IPv4Address | None
    remote: IPv4Address | None
    remote_port: int | None
    address: IPv4Address | None
    port: int | None
    protocol: int | None
    at: datetime
    until: datetime | None
    tolerance: float
    matches: tuple[Match, ...] = ()
    perhaps: tuple[Match, ...] = ()
    gaps: tuple[tuple[datetime, datetime | None, str], ...] = ()
    entries: tuple[str, ...] = ()

    @property
    def subscribers(self) -> list[str]:
        """The inside addresses that are named, dotted."""
        return list(dict.fromkeys(str(each.pri_ip) for each in (*self.matches, *self.perhaps)))

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: times in ISO 8601, addresses dotted."""
        result: dict[str, Any] = plain(self)
        return result


def who(
    store: Source | str | os.PathLike[str] | None,
    address: Address,
    port: int | None = None,
    *,
    protocol: str | int | None = None,
    at: datetime,
    until: datetime | None = None,
    remote: Address | tuple[Address, int] | None = None,
    tolerance: float = 2.0,
    longest_idle: float | None = None,
    spool: str | os.PathLike[str] | None = None,
    gateway: Gateway | None = None,
) -> Answer:
    """Say who had an outside endpoint at a time, or talked with a remote from an outside address.

    Parameters
    ----------
    store
        Where the rows are: a `Source`, which remembers what it read, or a folder of Parquet files; None: only spool and
        gateway are asked.
    address
        The outside address, either one of an EIP.
    port
        The outside port; for ICMP the identifier, for a protocol without ports 0. None: it is not known; the remote must
        be given then, and the matches of an ambiguous answer are ranked: those with traffic nearest to the time first.
    protocol
        "tcp", "udp", "icmp", or a number from 0 to 255. None: any, where no port is given.
    at
        The time, with a time zone.
    until
        The end of a span that begins at `at`; None: a moment is asked for.
    remote
        An address, or (address, port), that it talked to; None: any.
    tolerance
        Seconds by which the question's clock may be wrong.
    longest_idle
        Seconds that a session may have been idle, if longer than the time-outs that the log tells of.
    spool
        The folder of logs with rows that still wait.
    gateway
        The running one, which may still have rows in memory.

    Returns
    -------
    Answer
        Its status says what is certain.

    Raises
    ------
    ConfigurationError
        A time without a zone, a port out of range, neither port nor remote, no such folder.
    """
    question = Question(address, port, protocol, at, remote, tolerance, longest_idle, until=until)
    return _answer_of(question, found_for(question, store, spool, gateway))


def what(
    store: Source | str | os.PathLike[str] | None,
    inside: Address,
    *,
    at: datetime,
    until: datetime | None = None,
    protocol: str | int | None = None,
    remote: Address | tuple[Address, int] | None = None,
    tolerance: float = 0.0,
    longest_idle: float | None = None,
    spool: str | os.PathLike[str] | None = None,
    gateway: Gateway | None = None,
) -> Listing:
    """List the sessions of an inside address in a span: its outside endpoints, and whom it talked to.

    Parameters
    ----------
    inside
        The inside address.
    store, at, until, protocol, remote, tolerance, longest_idle, spool, gateway
        As of `who`; a protocol of None: any.

    Returns
    -------
    Listing
        Of all gateways of which there are logs.

    Raises
    ------
    ConfigurationError
        As `who`.
    """
    question = Question(None, None, protocol, at, remote, tolerance, longest_idle, inside=inside, until=until)
    return _listing_of(question, found_for(question, store, spool, gateway))


def talked(
    store: Source | str | os.PathLike[str] | None,
    remote: Address | tuple[Address, int],
    *,
    at: datetime,
    until: datetime | None = None,
    protocol: str | int | None = None,
    tolerance: float = 0.0,
    longest_idle: float | None = None,
    spool: str | os.PathLike[str] | None = None,
    gateway: Gateway | None = None,
) -> Listing:
    """List the sessions with a remote in a span: who talked to it.

    Parameters
    ----------
    remote
        An address, or (address, port).
    store, at, until, protocol, tolerance, longest_idle, spool, gateway
        As of `who`; a protocol of None: any.

    Returns
    -------
    Listing
        Of all gateways of which there are logs. Sessions of a redacted log are in `perhaps`.

    Raises
    ------
    ConfigurationError
        As `who`.
    """
    question = Question(None, None, protocol, at, remote, tolerance, longest_idle, until=until)
    return _listing_of(question, found_for(question, store, spool, gateway))


@dataclass(frozen=True, slots=True)
class Found:
    """What was concluded, and from what: the rows that were looked at, with their parts' names, these parts, and the time
    (microseconds since 1970) in which rows were searched."""

    asked: Asked
    concluded: Conclusion
    rows: tuple[FoundRow, ...]
    parts: tuple[Part, ...]
    searched: tuple[int, int]


def found_for(
    question: Question,
    store: Source | str | os.PathLike[str] | None,
    spool: str | os.PathLike[str] | None = None,
    gateway: Gateway | None = None,
) -> Found:
    """Return the conclusion for a question, and what it follows from."""
    if store is None and spool is None and gateway is None:
        raise ConfigurationError("store must be a folder unless spool or gateway is given, got None")
    there = waiting(question, gateway, spool)
    return found_in(question, store if isinstance(store, Source) or store is None else Store(store), there)


def found_in(question: Question, source: Source | None, there: Waiting) -> Found:
    """Return the conclusion from a source, and from rows that waited before it was read."""
    if source is None:
        return _told(question, None, there)
    without: set[str] = set()
    while True:
        try:
            return source.retried(lambda: _told(question, source, there, without))
        except DamagedPart as error:  # its rows are a gap now
            _log.error("%s", error)
            without.update(error.parts)


def answered(question: Question, source: Source | None, there: Waiting) -> Answer | Listing:
    """Return the answer from a source, and from rows that waited before it was read."""
    return answer_of(question, found_in(question, source, there))


def answer_of(question: Question, found: Found) -> Answer | Listing:
    """Return what was found as an answer, or a listing where all sessions are asked for."""
    if question.subject in ("inside", "remote"):
        return _listing_of(question, found)
    return _answer_of(question, found)


def _told(question: Question, source: Source | None, there: Waiting, without: Set[str] = frozenset()) -> Found:
    """Return the conclusion from the sessions' rows; where these do not suffice, from those of port blocks.

    Of a remote, of which rows of blocks tell nothing, and of all sessions, those rows are asked only where those of sessions
    have nothing at all.
    """
    found = _found(question, source, there, without)
    concluded = found.concluded
    if question.subject == "endpoint":
        suffices = concluded.status not in ("gap", "ambiguous")
    else:
        suffices = concluded.status not in ("gap", "incomplete") or bool(concluded.matches or concluded.perhaps)
    if suffices:
        return found
    by_blocks = _found_by_blocks(question, source, there, without)
    return found if by_blocks is None or by_blocks.concluded.status == "gap" != found.concluded.status else by_blocks


def _parts(source: Source | None, start: int | None, end: int | None, without: Set[str]) -> Sequence[Part]:
    """Return the parts without those that the question met damage in."""
    parts = source.parts(start, end) if source is not None else []
    return [part for part in parts if part.name not in without] if without else parts


def _found_by_blocks(question: Question, source: Source | None, there: Waiting, without: Set[str]) -> Found | None:
    """Return the conclusion from the rows of port blocks; None: there are no such blocks.

    A block may have been assigned long before. Rows are read from the last list of all blocks on, and a day behind the time;
    where no list is known, all that there are.
    """
    asked = question.asked(there.now)
    for reach in _BLOCK_REACHES if source is not None else (None,):
        since, until = (None, None) if reach is None else (question.start - reach, question.end + _DAY)
        parts = _parts(source, since, until, without)
        known = _knowledge(source, parts, there, question.longest_idle)
        if not known.has_blocks(question):
            return None
        runs = known.runs_by_blocks(question)
        begin = known.blocks_since(asked, runs)
        if begin is not None:
            break
    statics = known.statics(question, runs)
    read = (-FOREVER, FOREVER) if begin is None or source is None else (begin, asked.end + _DAY)
    found = [FoundRow("", row) for row in waiting_blocks(question.sought, there.batches)]
    if source is not None:
        found += source.find_blocks(question.sought, parts, read[0] - known.doubt, read[1] + known.doubt)
    rows = [known.doubtful(each.row) for each in found]
    lost: list[Gap] = []
    if source is not None and asked.subject in ("inside", "remote"):
        told = {run.run for run in runs}
        lost = [each.gap for each in source.lost(since, until) if each.run not in told]
    concluded = conclude(asked, runs, statics, rows, *read, lost)
    if concluded.gaps and source is not None:
        removed = source.removed()
        runs = [replace(run, gaps=(*run.gaps, *removed.get(run.instance, ()))) for run in runs]
        concluded = conclude(asked, runs, statics, rows, *read, lost)
    if question.protocol is None and concluded.status in ("unused", "complete"):
        concluded = replace(
            concluded, status="gap" if concluded.status == "unused" and question.subject == "address" else "incomplete",
            reason=f"{concluded.reason}; what has no ports needs no port block: it is known of TCP, UDP and ICMP only",
        )  # fmt: skip
    return Found(asked, concluded, tuple(found), tuple(parts), (max(0, read[0]), read[1]))


def _found(question: Question, source: Source | None, there: Waiting, without: Set[str]) -> Found:
    asked = question.asked(there.now)
    reach = (question.longest_idle or round(LONGEST_IDLE * 1e6)) + round(LONGEST_WINDOW * 1e6)
    while True:
        parts = _parts(source, question.start - reach, question.end + reach, without)
        known = _knowledge(source, parts, there, question.longest_idle)
        idle, window = known.reach(question)
        needed = idle + window + 2 * known.doubt
        if needed <= reach or source is None:
            break
        reach = needed
    runs = known.runs(question)
    statics = known.statics(question, runs)
    found = [FoundRow("", row) for row in (*waiting_evidence(question, there.batches), *there.live)]
    doubt = known.doubt

    def read(start: int, end: int) -> None:
        if source is not None and start <= end:
            found.extend(source.find(question.sought, parts, start, end))

    # Rows are searched by their labels, which may be off: what is concluded holds of a time that is shorter on both sides.
    span = (asked.start - doubt, asked.end + window + doubt)
    read(span[0] - doubt, span[1] + doubt)
    concluded = _settled(asked, runs, statics, [known.doubtful(each.row) for each in found], span)
    if concluded is not None:
        return Found(asked, concluded, tuple(found), tuple(parts), span)
    since, until = asked.start - idle - window - doubt, span[1]
    read(since - doubt, span[0] - doubt - 1)
    if not all(_looks_back(run, asked) for run in runs if run.holds):
        read(until + doubt + 1, until + doubt + idle)
        until += idle
    sure = [known.doubtful(each.row) for each in found]
    lost = []
    if source is not None and asked.subject in (
        "inside",
        "remote",
    ):  # else some gateway surely had the address, or none
        told = {run.run for run in runs}
        lost = [
            Gap(each.gap.start - doubt, None if each.gap.end is None else each.gap.end + doubt, each.gap.reason)
            for each in source.lost(question.start - reach, question.end + reach) if each.run not in told
        ]  # fmt: skip
    concluded = conclude(asked, runs, statics, sure, since, until, lost)
    if concluded.gaps and source is not None:  # say what retention has to do with it
        removed = source.removed()
        runs = [replace(run, gaps=(*run.gaps, *removed.get(run.instance, ()))) for run in runs]
        concluded = conclude(asked, runs, statics, sure, since, until, lost)
    return Found(asked, concluded, tuple(found), tuple(parts), (since, until))


def _knowledge(source: Source | None, parts: Sequence[Part], there: Waiting, idle: int | None) -> Knowledge:
    """Return the logs' knowledge; that of the last query, of its parts or of all of them, if nothing has changed since."""
    last = source.remembered if source is not None else ()
    for known in last:
        if isinstance(known, Knowledge) and known.is_of(parts, there, idle):
            break
    else:
        known = Knowledge(parts, there, idle)
    if source is not None:
        source.remembered = (known, *(each for each in last if each is not known))[:2]
    return known


def _settled(
    asked: Asked, runs: list[Run], statics: list[Static], rows: list[Row], read: tuple[int, int]
) -> Conclusion | None:
    """Return the answer if a row has traffic for all of the queried time: no row before or after can change it."""
    by_run = {(run.instance, run.run): run for run in runs}
    for held in holdings(rows):
        if not held.window_at(asked.start, asked.end) or asked.fits(held) is not True:
            continue
        if is_alone(held, asked, by_run.get((held.row.instance, held.row.run)), read):
            return conclude(asked, runs, statics, rows, *read)
    return None


def _looks_back(run: Run, asked: Asked) -> bool:
    """Return whether each holder of a port has a row that ended before, or soon after."""
    start, end = max(asked.start, run.begin), min(asked.end, run.end)
    return start > end or any(
        known.made >= end and (known.whole or start - run.idle - run.window >= known.start) for known in run.known
    )


def _answer_of(question: Question, found: Found) -> Answer:
    asked, concluded = found.asked, found.concluded
    static = concluded.static
    assert question.address is not None
    return Answer(
        concluded.status, concluded.reason, question.address, question.port, question.protocol, question.at,
        question.tolerance, tuple(_match(each, asked) for each in concluded.matches),
        tuple(_match(each, asked) for each in concluded.others), _gaps_of(concluded),
        None if static is None else static.text,
        IPv4Address(static.subscriber[2]) if static and static.subscriber and concluded.status == "static" else None,
        question.until, question.remote_address, question.remote_port,
    )  # fmt: skip


def _listing_of(question: Question, found: Found) -> Listing:
    concluded = found.concluded
    return Listing(
        concluded.status, concluded.reason, question.inside, question.remote_address, question.remote_port,
        question.address, question.port, question.protocol, question.at, question.until, question.tolerance,
        tuple(_match(each, found.asked) for each in concluded.matches),
        tuple(_match(each, found.asked) for each in concluded.perhaps), _gaps_of(concluded),
        tuple(dict.fromkeys(each.text for each in concluded.statics)),
    )  # fmt: skip


def _gaps_of(concluded: Conclusion) -> tuple[tuple[datetime, datetime | None, str], ...]:
    return tuple((_time(gap.start), None if gap.end is None else _time(gap.end), gap.reason) for gap in concluded.gaps)


def _match(each: Holding, asked: Asked) -> Match:
    row = each.row
    window = each.window_at(asked.start, asked.end)
    return Match(
        row.instance, row.vpc_id, row.protocol, IPv4Address(row.pri_ip), row.pri_port,
        None if each.remote is None else IPv4Address(each.remote), each.remote_port, IPv4Address(row.nat_ip),
        row.nat_port, IPv4Address(row.eip) if row.eip else None, _time(each.begun if each.created is None else each.created),
        None if each.end is None else _time(each.end), window and (_time(window[0]), _time(window[1])),
        row.run, row.session, recorded_labels=each.labels_at(asked.start, asked.end),
        block=(row.nat_port, row.pub_port) if each.is_block else None,
    )  # fmt: skip


def _time(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


def plain(value: Any) -> Any:
    """Return a value for JSON: a dataclass as a dict, times in ISO 8601, addresses dotted."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, IPv4Address) else value
