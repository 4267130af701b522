"""Who had this outside address and port at this time? Asked of the session log, wherever its rows are.

Rows in Parquet files are found by DuckDB, in the files whose footers say that they may matter; rows that still wait are
read from the spool, and those of a gateway in this process from its memory, open windows included.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from .config import Address, check_integer, check_number, parse_ipv4
from .errors import ConfigurationError
from .evidence import Finding, Holding, Knowledge, Row, holdings, judge
from .footer import Footer
from .records import GAP, GAP_DIED, GAP_LOST, GAP_RING, format_ipv4
from .sinks.base import KINDS, Batch
from .store import Gap, Store, StoredFile, missing_numbers

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["Answer", "Gap", "Match", "Store", "who"]

Status = Literal["exact", "held-idle", "ambiguous", "gap", "nobody"]
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}
REDACTED = "0.0.0.0"
LONGEST_IDLE = 7440.0  # seconds: Timeouts().tcp_established, the longest of the defaults
_WINDOW = 600_000_000  # microseconds, where no row tells of a longer one
_SLACK = 20_000_000  # microseconds: the sweep comes to each session within 8 s
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REASONS = {
    GAP_DIED: "the gateway's process ended without its end mark",
    GAP_RING: "the journal was full",
    GAP_LOST: "the log had no room for rows",
}
_COLUMNS = (
    "instance, vpc_id, run, number, kind, protocol, pri_ip, pri_port, pub_ip, pub_port, nat_ip, nat_port, eip, "
    "epoch_us(start_time), epoch_us(end_time), session"
)
_BETWEEN = "end_time BETWEEN make_timestamptz($from) AND make_timestamptz($until)"


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
    question = _Question(address, port, protocol, at, remote, tolerance, longest_idle)
    if store is None and spool is None and gateway is None:
        raise ConfigurationError("store=None: allowed is a folder, or else spool= or gateway=")
    waiting = list(_waiting(gateway, spool))  # before the files: a row goes from here to there
    opened = store if isinstance(store, Store) or store is None else Store(store)
    return _answer(question, opened, waiting, gateway)


class _Question:
    """What is asked, checked; times in microseconds since 1970."""

    def __init__(
        self,
        address: Address,
        port: int,
        protocol: str | int,
        at: datetime,
        remote: Address | tuple[Address, int] | None,
        tolerance: float,
        longest_idle: float,
    ) -> None:
        self.address = parse_ipv4(address, "address")
        check_integer("port", port, 0, 65_535)
        self.port = port
        self.protocol = _protocol(protocol)
        if not isinstance(at, datetime) or at.tzinfo is None:
            raise ConfigurationError(f"at={at!r}: allowed is a datetime with its time zone, such as {_EPOCH!r}")
        self.at = at
        check_number("tolerance", tolerance, 0, 86_400, unit="seconds")
        check_number("longest_idle", longest_idle, 0, 1e6, unit="seconds")
        self.tolerance = float(tolerance)
        moment = (at - _EPOCH) // timedelta(microseconds=1)
        self.start = moment - round(tolerance * 1e6)
        self.end = moment + round(tolerance * 1e6)
        self.idle = round(longest_idle * 1e6) + _SLACK
        address_asked, port_asked = remote if isinstance(remote, tuple) else (remote, None)
        self.remote = None if address_asked is None else str(parse_ipv4(address_asked, "remote"))
        if port_asked is not None:
            check_integer("remote port", port_asked, 0, 65_535)
        self.remote_port = port_asked

    def fits_remote(self, row: Row) -> bool:
        if self.remote is None or row.pub_ip == REDACTED:
            return True
        return row.pub_ip == self.remote and self.remote_port in (None, row.pub_port)

    def asks_of(self, addresses: Iterable[tuple[str, str | None]] | None) -> bool:
        """One of the (nat_ip, eip) pairs has the address; None: they are not told."""
        return addresses is None or any(str(self.address) in pair for pair in addresses)

    def answer(self, status: Status, reason: str, **more: Any) -> Answer:
        return Answer(status, reason, self.address, self.port, self.protocol, self.at, self.tolerance, **more)


def _protocol(protocol: str | int) -> int:
    if isinstance(protocol, str) and protocol.lower() in PROTOCOLS:
        return PROTOCOLS[protocol.lower()]
    if isinstance(protocol, bool) or not isinstance(protocol, int) or not 0 <= protocol <= 255:
        raise ConfigurationError(f"protocol={protocol!r}: allowed are {', '.join(PROTOCOLS)}, or 0 to 255")
    return protocol


# ---- gathering ------------------------------------------------------------------------------------------------------


def _waiting(gateway: Gateway | None, spool: str | os.PathLike[str] | None) -> Iterable[Batch]:
    if gateway is not None and gateway._collector is not None:
        yield from gateway._collector.waiting_rows()
    if spool is not None:
        from .spool_reading import waiting_rows

        yield from waiting_rows(spool)


def _answer(question: _Question, store: Store | None, waiting: list[Batch], gateway: Gateway | None) -> Answer:
    waits = [StoredFile("", Footer.of(batch)) for batch in waiting]
    longest = max([_WINDOW, *(file.footer.longest_window for file in waits)])
    reach = question.idle + longest
    stored = store.files(question.start - reach, question.end + reach) if store is not None else []
    longest = max([longest, *(file.footer.longest_window for file in stored)])
    files = sorted([*stored, *waits], key=attrgetter("order"))
    of_address = {file.footer.instance for file in files if question.asks_of(file.footer.addresses)}
    concerned = [file for file in files if not of_address or file.footer.instance in of_address]
    known = _knowledge(question, concerned, store, gateway, longest)
    memory = [*_rows_of(question, waiting), *_live_rows(question, gateway)]
    for before, after in ((0, longest), (question.idle, question.idle + longest)):  # mostly the first look is enough
        rows = [*memory, *_stored_rows(question, store, stored, question.start - before, question.end + after)]
        held = holdings(rows)
        sought = [each for each in held if question.fits_remote(each.row)]
        finding = judge(sought, question.start, question.end, known)
        if finding.traffic:
            break
    return _conclude(question, finding, [each for each in held if not question.fits_remote(each.row)], known)


def _stored_rows(
    question: _Question, store: Store | None, files: Sequence[StoredFile], start: int, end: int
) -> Iterable[Row]:
    """The rows of the address and port that ended from start to end."""
    if store is None:
        return
    near = [file for file in files if file.footer.first_time <= end and file.footer.last_time >= start]
    named = [file for file in near if file.footer.addresses is not None and question.asks_of(file.footer.addresses)]
    asked = str(question.address)
    nat_ips = {pair.nat_ip for file in named for pair in file.footer.addresses or () if asked in pair}
    values = {"port": question.port, "protocol": question.protocol, "from": start, "until": end}
    key = f"nat_port = $port AND protocol = $protocol AND {_BETWEEN}"
    found = []
    for nat_ip in sorted(nat_ips):  # an equality is pushed down to the file's dictionaries, other conditions are not
        holding = [file for file in named if any(pair.nat_ip == nat_ip for pair in file.footer.addresses or ())]
        found += store.rows(_COLUMNS, f"{key} AND nat_ip = $nat_ip", {**values, "nat_ip": nat_ip}, holding)
    unnamed = [file for file in near if file.footer.addresses is None]
    found += store.rows(_COLUMNS, f"{key} AND (nat_ip = $ip OR eip = $ip)", {**values, "ip": asked}, unnamed)
    for values_of_row in found:
        row = Row(*values_of_row)
        if asked in (row.nat_ip, row.eip):
            yield row


def _rows_of(question: _Question, batches: Iterable[Batch]) -> Iterable[Row]:
    asked = int(question.address)
    for batch in batches:
        rows = batch.records
        is_asked = (rows["nat_port"] == question.port) & (rows["protocol"] == question.protocol)
        is_asked &= ((rows["nat_ip"] == asked) | (rows["eip"] == asked)) & (rows["kind"] != GAP)
        for row in rows[is_asked]:
            yield Row(
                batch.instance, batch.vpc_id, batch.run, int(row["number"]), KINDS[int(row["kind"])],
                int(row["protocol"]), format_ipv4(row["pri_ip"]), int(row["pri_port"]), format_ipv4(row["pub_ip"]),
                int(row["pub_port"]), format_ipv4(row["nat_ip"]), int(row["nat_port"]),
                format_ipv4(row["eip"]) if row["eip"] else None, int(row["start_time"]), int(row["end_time"]),
                int(row["session"]),
            )  # fmt: skip


def _run_of(gateway: Gateway) -> str:
    """What names its rows; empty before its first session log."""
    return "" if gateway._collector is None else gateway._collector.run


def _live_rows(question: _Question, gateway: Gateway | None) -> Iterable[Row]:
    """The sessions that the gateway has now, and their open windows."""
    if gateway is None:
        return
    sessions, eips = gateway.sessions(), {int(row["outside_ip"]): int(row["eip"]) for row in gateway.ports()}
    outside = [ip for ip in {int(question.address), *eips} if int(question.address) in (ip, eips.get(ip))]
    is_asked = (sessions["outside_port"] == question.port) & (sessions["protocol"] == question.protocol)
    for live in sessions[is_asked]:
        if int(live["outside_ip"]) not in outside:
            continue
        eip = eips.get(int(live["outside_ip"]), 0)
        started, window = int(live["start_time"]), int(live["window_time"])
        seen = started + round((float(live["last_seen"]) - float(live["birth"])) * 1e6)
        row = Row(
            gateway.instance, gateway.vpc_id, _run_of(gateway), -1, "live", int(live["protocol"]),
            format_ipv4(live["inside_ip"]), int(live["inside_port"]), format_ipv4(live["remote_ip"]),
            int(live["remote_port"]) if live["protocol"] != PROTOCOLS["icmp"] else 0, format_ipv4(live["outside_ip"]),
            int(live["outside_port"]), format_ipv4(eip) if eip else None, started, seen, int(live["session"]),
        )  # fmt: skip
        yield row
        if window:
            yield row._replace(number=-2, kind="open", start=window, end=window + round(gateway.window * 1e6))


# ---- what the log does not know -------------------------------------------------------------------------------------


def _knowledge(
    question: _Question, files: Sequence[StoredFile], store: Store | None, gateway: Gateway | None, window: int
) -> Knowledge:
    runs: dict[tuple[str, str], tuple[int, int]] = {}
    for file in files:
        key, footer = file.run, file.footer
        first, last = runs.get(key, (footer.first_time, footer.last_time))
        runs[key] = min(first, footer.first_time), max(last, footer.last_time)
    if gateway is not None:
        key = (gateway.instance, _run_of(gateway))
        runs[key] = runs.get(key, (question.end, 0))[0], max(question.end, runs.get(key, (0, 0))[1])
    gaps = [*missing_numbers(files, window), *_told(files), *_uncovered(question, runs)]
    for removal in store.removals() if store is not None else ():
        text = f"{removal.file} was removed by {removal.reason}"
        gaps.append(Gap(removal.first_time - window, removal.last_time, text))
    return Knowledge({run: last for (_, run), (_, last) in runs.items()}, gaps, window)


def _told(files: Iterable[StoredFile]) -> Iterable[Gap]:
    for file in files:
        for gap in file.footer.gaps:
            why = _REASONS.get(gap.reason, f"reason {gap.reason}")
            yield Gap(gap.start, gap.end, f"a gap row of run {file.footer.run}: {why}")


def _uncovered(question: _Question, runs: dict[tuple[str, str], tuple[int, int]]) -> Iterable[Gap]:
    """What lies in no run of the log."""
    if any(first <= question.start and question.end <= last for first, last in runs.values()):
        return
    before = max((last for _, last in runs.values() if last < question.end), default=None)
    after = min((first for first, _ in runs.values() if first > question.start), default=None)
    if before is None and after is None:
        yield Gap(0, None, "the log has no rows")
    elif before is None:
        yield Gap(0, after, "that is before the log's first row")
    elif after is None:
        yield Gap(before, None, "that is after the log's last row")
    else:
        yield Gap(min(before, after), max(before, after), "that is between two runs of the gateway")


# ---- the answer -----------------------------------------------------------------------------------------------------


def _conclude(question: _Question, finding: Finding, others: list[Holding], known: Knowledge) -> Answer:
    gaps = [gap for gap in known.gaps if gap.overlaps(question.start, question.end)]
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
            return question.answer("ambiguous", text, **told)
        name = _names(subscribers)
        if finding.traffic:
            return question.answer("exact", f"{name} had it then", **told)
        return question.answer("held-idle", f"{name} held it then, without traffic", **told)
    told["matches"] = tuple(_match(each, question) for each in finding.unsure)
    if gaps or finding.unsure:
        text = "; ".join(dict.fromkeys(gap.reason for gap in gaps)) or "the session's end is not known"
        perhaps = sorted({each.subscriber for each in finding.unsure})
        text += f"; perhaps {_names(perhaps)}, who had it before" if perhaps else ""
        return question.answer("gap", text, **told)
    text = "no row has it then, and no row is missing"
    if told["others"]:
        names = sorted({str(match.pri_ip) for match in told["others"]})
        text = f"no session with {question.remote} had it then; {', '.join(names)} had it towards others"
    return question.answer("nobody", text, **told)


def _names(subscribers: Iterable[tuple[str, str, str]]) -> str:
    return ", ".join(dict.fromkeys(address for _, _, address in subscribers))


def _match(each: Holding, question: _Question) -> Match:
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
    return _EPOCH + timedelta(microseconds=microseconds)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, IPv4Address) else value
