"""Where the rows of a question come from: Parquet files, a spool, a running gateway; and what is not known there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .evidence import Knowledge, Row
from .question import PROTOCOLS, Question
from .records import GAP, GAP_DIED, GAP_LOST, GAP_RING, format_ipv4
from .sinks.base import KINDS, Batch
from .store import Gap, Store, StoredFile, missing_numbers

if TYPE_CHECKING:
    from .gateway import Gateway

_REASONS = {
    GAP_DIED: "the gateway's process ended without its end mark",
    GAP_RING: "the journal was full",
    GAP_LOST: "the log had no room for rows",
}
_COLUMNS = (  # what is the same in all rows of a file, its footer says
    "filename, number, kind, pri_ip, pri_port, pub_ip, pub_port, nat_ip, eip, epoch_us(start_time), epoch_us(end_time), "
    "session"
)
_BETWEEN = "end_time BETWEEN make_timestamptz($from) AND make_timestamptz($until)"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows that are in no file yet, and, by instance and run, until when (microseconds since 1970) all rows before the
    number were written: a log that is quiet is known too."""

    batches: tuple[Batch, ...]
    written: dict[tuple[str, str], tuple[int, int]]


def waiting(gateway: Gateway | None, spool: str | os.PathLike[str] | None) -> Waiting:
    """To be called before files are read: a row goes from here to there."""
    batches: list[Batch] = []
    written: dict[tuple[str, str], tuple[int, int]] = {}
    if gateway is not None and gateway._collector is not None:
        batches += gateway._collector.waiting_rows()
    if spool is not None:
        from .spool_reading import signs_of_life, waiting_rows

        for owner, beat in signs_of_life(spool):  # before the rows that it tells of
            written[owner.instance, owner.run] = (beat.now, beat.next_number)
        batches += waiting_rows(spool)
    return Waiting(tuple(batches), written)


def stored_rows(
    question: Question, store: Store | None, files: Sequence[StoredFile], start: int, end: int
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
    footers = {file.path: file.footer for file in near}
    for path, number, kind, pri_ip, pri_port, pub_ip, pub_port, nat_ip, eip, began, ended, session in found:
        footer = footers[path]
        if asked in (nat_ip, eip):
            yield Row(
                footer.instance, footer.vpc_id, footer.run, number, kind, question.protocol, pri_ip, pri_port,
                pub_ip, pub_port, nat_ip, question.port, eip, began, ended, session,
            )  # fmt: skip


def waiting_evidence(question: Question, batches: Iterable[Batch]) -> Iterable[Row]:
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


def live_rows(question: Question, gateway: Gateway | None) -> Iterable[Row]:
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


def knowledge(
    question: Question,
    files: Sequence[StoredFile],
    store: Store | None,
    gateway: Gateway | None,
    written: Mapping[tuple[str, str], tuple[int, int]],
    window: int,
) -> Knowledge:
    runs: dict[tuple[str, str], tuple[int, int]] = {}
    numbers: dict[tuple[str, str], int] = {}
    for file in files:
        key, footer = file.run, file.footer
        first, last = runs.get(key, (footer.first_time, footer.last_time))
        runs[key] = min(first, footer.first_time), max(last, footer.last_time)
        numbers[key] = max(numbers.get(key, 0), footer.last_number)
    for key, (until, next_number) in written.items():
        if key in runs and numbers[key] + 1 >= next_number:
            runs[key] = runs[key][0], max(runs[key][1], until)
    if gateway is not None:
        key = (gateway.instance, _run_of(gateway))
        runs[key] = runs.get(key, (question.end, 0))[0], max(question.end, runs.get(key, (0, 0))[1])
    uncovered = list(_uncovered(question, runs))
    gaps = [*missing_numbers(files, window), *_told(files), *uncovered]
    if uncovered and store is not None:
        for removal in store.removals():
            text = f"{removal.file} was removed by {removal.reason}"
            gaps.append(Gap(removal.first_time - window, removal.last_time, text))
    return Knowledge({run: times for (_, run), times in runs.items()}, gaps, window)


def _told(files: Iterable[StoredFile]) -> Iterable[Gap]:
    for file in files:
        for gap in file.footer.gaps:
            why = _REASONS.get(gap.reason, f"reason {gap.reason}")
            yield Gap(gap.start, gap.end, f"a gap row of run {file.footer.run}: {why}")


def _uncovered(question: Question, runs: dict[tuple[str, str], tuple[int, int]]) -> Iterable[Gap]:
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
