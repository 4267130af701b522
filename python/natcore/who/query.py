"""The query of the session log, who had an outside address and port at a time.

Rows in Parquet files are found by DuckDB, in the files that may matter by their footers; rows that still wait are
read from the spool, and those of a gateway in this process from its memory, open windows included.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from natcore.config import Address
from natcore.errors import ConfigurationError
from natcore.who.conclude import Asked, Conclusion, Holding, Row, Run, Static, Status, conclude, holdings, is_alone
from natcore.who.question import EPOCH, LONGEST_IDLE, LONGEST_WINDOW, Question
from natcore.who.sources import Knowledge, Waiting, removed_gaps, stored_rows, waiting, waiting_evidence
from natcore.who.store import DamagedFile, Store, StoredFile

if TYPE_CHECKING:
    from natcore.gateway import Gateway

_log = logging.getLogger(__name__)
__all__ = ["Answer", "Match", "Store", "who"]


@dataclass(frozen=True, slots=True)
class Match:
    """A session that had the port.

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


@dataclass(frozen=True, slots=True)
class Answer:
    """Who had an outside endpoint at a time, or why the log cannot say.

    docs/truth.md says from what each status follows.

    Parameters
    ----------
    status
        "exact": one subscriber had traffic then. "held-idle": one held the port then, and no row tells of traffic.
        "static": an entry has it, and its traffic has no rows. "ambiguous": several did, or perhaps did. "gap": no
        holder is known, and the log does not know all of that time. "unused": no subscriber had it.
    reason
        The status in words.
    address, port, protocol, at, tolerance
        The question.
    matches
        The sessions.
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
    port: int
    protocol: int
    at: datetime
    tolerance: float
    matches: tuple[Match, ...] = ()
    others: tuple[Match, ...] = ()
    gaps: tuple[tuple[datetime, datetime | None, str], ...] = ()
    entry: str | None = None
    entry_host: IPv4Address | None = None

    @property
    def subscriber(self) -> IPv4Address | None:
        """The inside address, where it is one."""
        return self.matches[0].pri_ip if self.status in ("exact", "held-idle") else self.entry_host

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: times in ISO 8601, addresses dotted."""
        result: dict[str, Any] = _plain(asdict(self))
        return result | {"subscriber": _plain(self.subscriber)}


def who(
    store: Store | str | os.PathLike[str] | None,
    address: Address,
    port: int,
    *,
    protocol: str | int,
    at: datetime,
    remote: Address | tuple[Address, int] | None = None,
    tolerance: float = 2.0,
    longest_idle: float | None = None,
    spool: str | os.PathLike[str] | None = None,
    gateway: Gateway | None = None,
) -> Answer:
    """Say who had an outside endpoint at a time.

    Parameters
    ----------
    store
        A folder of Parquet files, or a `Store`, which remembers what it read; None: only spool and gateway are asked.
    address
        The outside address, either one of an EIP.
    port
        The outside port; for ICMP the identifier, for a protocol without ports 0.
    protocol
        "tcp", "udp", "icmp", or a number from 0 to 255.
    at
        The time, with a time zone.
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
        A time without a zone, a port out of range, no such folder.
    """
    question = Question(address, port, protocol, at, remote, tolerance, longest_idle)
    if store is None and spool is None and gateway is None:
        raise ConfigurationError("store must be a folder unless spool or gateway is given, got None")
    there = waiting(question, gateway, spool)
    return answered(question, store if isinstance(store, Store) or store is None else Store(store), there)


def answered(question: Question, store: Store | None, there: Waiting) -> Answer:
    """Return the answer from a store, and from rows that waited before it was read."""
    while True:
        try:
            if store is None:
                return _answer(question, None, there)
            return store.retried(lambda: _answer(question, store, there))
        except DamagedFile as error:  # its rows are a gap now
            _log.error("%s", error)


def _answer(question: Question, store: Store | None, there: Waiting) -> Answer:
    asked = question.asked(there.now)
    reach = (question.longest_idle or round(LONGEST_IDLE * 1e6)) + round(LONGEST_WINDOW * 1e6)
    while True:
        stored = store.files(question.start - reach, question.end + reach) if store is not None else []
        known = _knowledge(store, stored, there, question.longest_idle)
        idle, window = known.reach(question)
        needed = idle + window + known.doubt
        if needed <= reach or store is None:
            break
        reach = needed
    runs = known.runs(question)
    statics = known.statics(question, runs)
    rows: list[Row] = [*waiting_evidence(question, there.batches), *there.live]
    doubt = known.doubt
    span = (asked.start - doubt, asked.end + window + doubt)
    rows += stored_rows(question, store, stored, *span)
    concluded = _settled(asked, runs, statics, [known.doubtful(row) for row in rows], span)
    if concluded is None:
        rows += stored_rows(question, store, stored, asked.start - idle - window - doubt, span[0] - 1)
        since, until = asked.start - idle - window - doubt, span[1]
        if not all(_looks_back(run, asked) for run in runs if run.holds):
            rows += stored_rows(question, store, stored, until + 1, until + idle)
            until += idle
        sure = [known.doubtful(row) for row in rows]
        concluded = conclude(asked, runs, statics, sure, since, until)
        if concluded.gaps and store is not None:  # say what retention has to do with it
            removed = removed_gaps(store)
            runs = [replace(run, gaps=(*run.gaps, *removed.get(run.instance, ()))) for run in runs]
            concluded = conclude(asked, runs, statics, sure, since, until)
    return _answer_of(question, asked, concluded)


def _knowledge(store: Store | None, stored: list[StoredFile], there: Waiting, idle: int | None) -> Knowledge:
    """Return the logs' knowledge; the last query's, if nothing has changed since."""
    last = store.remembered if store is not None else None
    if isinstance(last, Knowledge) and last.is_of(stored, there, idle):
        return last
    known = Knowledge(stored, there, idle)
    if store is not None:
        store.remembered = known
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


def _answer_of(question: Question, asked: Asked, concluded: Conclusion) -> Answer:
    static = concluded.static
    return Answer(
        concluded.status, concluded.reason, question.address, question.port, question.protocol, question.at,
        question.tolerance, tuple(_match(each, asked) for each in concluded.matches),
        tuple(_match(each, asked) for each in concluded.others),
        tuple((_time(gap.start), None if gap.end is None else _time(gap.end), gap.reason) for gap in concluded.gaps),
        None if static is None else static.text,
        IPv4Address(static.subscriber[2]) if static and static.subscriber and concluded.status == "static" else None,
    )  # fmt: skip


def _match(each: Holding, asked: Asked) -> Match:
    row = each.row
    window = each.window_at(asked.start, asked.end)
    return Match(
        row.instance, row.vpc_id, row.protocol, IPv4Address(row.pri_ip), row.pri_port,
        None if each.remote is None else IPv4Address(each.remote), each.remote_port, IPv4Address(row.nat_ip),
        row.nat_port, IPv4Address(row.eip) if row.eip else None, _time(each.begun if each.created is None else each.created),
        None if each.end is None else _time(each.end), window and (_time(window[0]), _time(window[1])),
        row.run, row.session,
    )  # fmt: skip


def _time(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, IPv4Address) else value
