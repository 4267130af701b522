"""Who had this outside address and port at this time? Asked of the session log, wherever its rows are.

Rows in Parquet files are found by DuckDB, in the files whose footers say that they may matter; rows that still wait are
read from the spool, and those of a gateway in this process from its memory, open windows included.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from .config import Address
from .errors import ConfigurationError
from .evidence import Finding, Holding, Knowledge, holdings, judge
from .footer import Footer
from .gathering import Waiting, knowledge, live_rows, stored_rows, waiting, waiting_evidence
from .question import EPOCH, LONGEST_IDLE, REDACTED, Question
from .store import DamagedFile, Store, StoredFile

if TYPE_CHECKING:
    from .gateway import Gateway

_log = logging.getLogger(__name__)
__all__ = ["Answer", "Match", "Store", "who"]

Status = Literal["exact", "held-idle", "ambiguous", "gap", "nobody"]
_WINDOW = 600_000_000  # microseconds, where no row tells of a longer one


@dataclass(frozen=True, slots=True)
class Match:
    """A session that had the port. start, end: of the session, as far as the rows around then say (end None: none does).

    window: the row's window that covers the question; None: it held the port without traffic then.
    pub_ip None: the log's destinations are redacted.
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
    """status: "exact": one subscriber had traffic then; "held-idle": one held the port without traffic then;
    "ambiguous": several did; "gap": nobody is known, and the log has a hole there; "nobody": and it has none.

    matches: the sessions. others: sessions of the port towards other remotes than the one asked for. gaps: where the
    log does not know all about that time, whatever the status is: (start, end or None, why).
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

    @property
    def subscriber(self) -> IPv4Address | None:
        """The inside address, where it is one."""
        return self.matches[0].pri_ip if self.status in ("exact", "held-idle") else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601, addresses dotted."""
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
    longest_idle: float = LONGEST_IDLE,
    spool: str | os.PathLike[str] | None = None,
    gateway: Gateway | None = None,
) -> Answer:
    """Who had `address`:`port` at `at`, give or take `tolerance` seconds (the complaint's clock).

    store: a folder of Parquet files, or a Store, which remembers what it read. address: either one of an EIP. port: for
    ICMP the identifier, for a protocol without ports 0. remote: an address, or (address, port), that it talked to.
    longest_idle: the gateway's longest idle time-out, seconds: a session is sought so long before and after.
    spool: the folder of logs whose rows still wait; gateway: the running one, which may still have rows in memory.
    Raises ConfigurationError: a time without a zone, a port out of range, no such folder.
    """
    question = Question(address, port, protocol, at, remote, tolerance, longest_idle)
    if store is None and spool is None and gateway is None:
        raise ConfigurationError("store=None: allowed is a folder, or else spool= or gateway=")
    there = waiting(gateway, spool)
    opened = store if isinstance(store, Store) or store is None else Store(store)
    while True:
        try:
            return _answer(question, opened, there, gateway)
        except DamagedFile as error:  # its rows are a hole now
            _log.error("%s", error)


def _answer(question: Question, store: Store | None, there: Waiting, gateway: Gateway | None) -> Answer:
    waits = [StoredFile("", Footer.of(batch)) for batch in there.batches]
    longest = max([_WINDOW, *(file.footer.longest_window for file in waits)])
    reach = question.idle + longest
    stored = store.files(question.start - reach, question.end + reach) if store is not None else []
    longest = max([longest, *(file.footer.longest_window for file in stored)])
    files = sorted([*stored, *waits], key=attrgetter("order"))
    of_address = {file.footer.instance for file in files if question.asks_of(file.footer.addresses)}
    concerned = [file for file in files if not of_address or file.footer.instance in of_address]
    known = knowledge(question, concerned, store, gateway, there.written, longest)
    rows = [*waiting_evidence(question, there.batches), *live_rows(question, gateway)]
    for start, end in _looks(question, known):
        rows += stored_rows(question, store, stored, start, end)
        held = holdings(rows)
        finding = judge(filter(question.fits_remote, held), question.start, question.end, known)
        if finding.traffic:
            break
    return _conclude(question, finding, [each for each in held if not question.fits_remote(each)], known)


def _looks(question: Question, known: Knowledge) -> Iterator[tuple[int, int]]:
    """When the rows ended that are looked at, one look after the other, until there is traffic.

    Windows that cover the time ended soon after it. Who held the port without traffic was seen within the longest idle
    time before; where the log does not know all of that time, he is sought in what came after.
    """
    earliest, soon = question.start - question.idle, question.end + known.window
    yield question.start, soon
    yield earliest, question.start - 1
    if not known.is_whole(earliest, question.end):
        yield soon + 1, soon + question.idle


def _conclude(question: Question, finding: Finding, others: list[Holding], known: Knowledge) -> Answer:
    since = min(
        [question.start, *(each.seen for each in finding.unsure)]
    )  # his end may be among the rows that are missing
    gaps = [gap for gap in known.gaps if gap.overlaps(since, question.end)]
    told: dict[str, Any] = {
        "gaps": tuple((_time(gap.start), None if gap.end is None else _time(gap.end), gap.reason) for gap in gaps),
        "others": tuple(_match(each, question) for each in others if each.begun <= question.end
                        and (each.end is None or each.end >= question.start)),
    }  # fmt: skip
    certain = finding.traffic or finding.idle
    if certain:
        told["matches"] = tuple(_match(each, question) for each in certain)
        subscribers = sorted({each.subscriber for each in certain})
        if len(subscribers) > 1:
            text = f"{len(subscribers)} subscribers had it within {question.tolerance:g} s: {_names(subscribers)}"
            return _answered(question, "ambiguous", text, **told)
        name = _names(subscribers)
        if finding.traffic:
            return _answered(question, "exact", f"{name} had it then", **told)
        return _answered(question, "held-idle", f"{name} held it then, without traffic", **told)
    told["matches"] = tuple(_match(each, question) for each in finding.unsure)
    if gaps or finding.unsure:
        text = "; ".join(dict.fromkeys(gap.reason for gap in gaps)) or "the session's end is not known"
        perhaps = sorted({each.subscriber for each in finding.unsure})
        text += f"; perhaps {_names(perhaps)}, who had it before" if perhaps else ""
        return _answered(question, "gap", text, **told)
    text = "no row has it then, and no row is missing"
    if told["others"]:
        names = sorted({str(match.pri_ip) for match in told["others"]})
        text = f"no session with {question.remote} had it then; {', '.join(names)} had it towards others"
    return _answered(question, "nobody", text, **told)


def _answered(question: Question, status: Status, reason: str, **told: Any) -> Answer:
    return Answer(
        status, reason, question.address, question.port, question.protocol, question.at, question.tolerance, **told
    )


def _names(subscribers: Iterable[tuple[str, str, str]]) -> str:
    return ", ".join(dict.fromkeys(address for _, _, address in subscribers))


def _match(each: Holding, question: Question) -> Match:
    row = each.row
    window = each.window_at(question.start, question.end)
    return Match(
        row.instance, row.vpc_id, row.protocol, IPv4Address(row.pri_ip), row.pri_port,
        None if row.pub_ip == REDACTED else IPv4Address(row.pub_ip), row.pub_port, IPv4Address(row.nat_ip),
        row.nat_port, IPv4Address(row.eip) if row.eip else None, _time(each.begun),
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
