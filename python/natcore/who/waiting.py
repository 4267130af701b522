"""Rows that are in no file or table yet: those that wait in a spool or in memory, and a running gateway's live sessions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from natcore.dtypes import GAP, format_ipv4, is_of_block
from natcore.internal.parts import parts_of
from natcore.internal.protocols import ICMP
from natcore.sessionlog.facts import Clock, Cover
from natcore.sinks.base import KINDS, Batch
from natcore.who.conclude import Row
from natcore.who.question import Question
from natcore.who.source import Sought

if TYPE_CHECKING:
    from natcore.gateway import Gateway

Key = tuple[str, str]  # a gateway's instance and its run


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows that are in no file yet, and signs of life by instance and run, each a cover (sequence: of the last fact before):
    a quiet log is known too."""

    batches: tuple[Batch, ...] = ()
    signs: tuple[tuple[Key, Cover], ...] = ()
    ended: tuple[tuple[Key, Cover], ...] = ()  # what a running gateway says, with all its live sessions listed
    now: int | None = None
    live: tuple[Row, ...] = ()
    clocks: tuple[tuple[Key, Clock], ...] = ()  # changes that no log has recorded yet

    def with_live(self, rows: Iterable[Row]) -> Waiting:
        """Return the same with other live rows, for another question."""
        return replace(self, live=tuple(rows))


def waiting(question: Question, gateway: Gateway | None, spool: str | os.PathLike[str] | None) -> Waiting:
    """Read the waiting rows. Call this before files are read: rows move from here to there."""
    batches: list[Batch] = []
    signs: list[tuple[Key, Cover]] = []
    ended: list[tuple[Key, Cover]] = []
    now: int | None = None
    live: tuple[Row, ...] = ()
    clocks: tuple[tuple[Key, Clock], ...] = ()
    if gateway is not None:
        parts = parts_of(gateway)
        parts.settle()
        collector = parts.collector
        if collector is not None:
            cover = collector.cover()  # before the rows that it tells of
            if cover is not None:
                key = (gateway.instance, collector.run)
                (ended if cover.swept >= cover.made - 1000 else signs).append((key, cover))
            batches += collector.waiting_rows()
            clocks = tuple(((gateway.instance, collector.run), clock) for clock in collector.unlogged_clocks())
        now = parts.core.log_rows.label(parts.core.now_ns)
        live = tuple(live_rows(question, gateway, now))
    if spool is not None:
        from natcore.sessionlog.spool.reading import signs_of_life, waiting_rows

        for owner, beat in signs_of_life(spool):  # before the rows that it tells of
            key = (owner.instance, owner.run)
            signs.append((key, Cover(beat.next_number, beat.facts - 1, beat.made, beat.swept, 0)))
        batches += waiting_rows(spool)
    return Waiting(tuple(batches), tuple(signs), tuple(ended), now, live, clocks)


def waiting_evidence(question: Question, batches: Iterable[Batch]) -> Iterable[Row]:
    """Return the asked rows of the batches, whatever their remotes."""
    for batch in batches:
        rows = batch.records
        is_asked = rows["kind"] < GAP
        for name, value in (("nat_port", question.port), ("protocol", question.protocol), ("pri_ip", question.inside)):
            if value is not None:
                is_asked &= rows[name] == int(value)
        if question.address is not None:
            is_asked &= (rows["nat_ip"] == int(question.address)) | (rows["eip"] == int(question.address))
        for row in rows[is_asked]:
            yield _row(batch, row, int(row["number"]))


def waiting_blocks(sought: Sought, batches: Iterable[Batch]) -> Iterable[Row]:
    """Return the batches' rows of port blocks with the sought address, port and inside address."""
    for batch in batches:
        for row in batch.records[is_of_block(batch.records)]:
            found = _row(batch, row, int(row["pkts_from_vpc"]))
            if sought.is_in_block(found):
                yield found


def _row(batch: Batch, row: Any, number: int) -> Row:
    return Row(
        batch.instance, batch.vpc_id, batch.run, number, KINDS[int(row["kind"])],
        int(row["protocol"]), format_ipv4(row["pri_ip"]), int(row["pri_port"]),
        format_ipv4(row["pub_ip"]) if row["pub_ip"] else None,
        int(row["pub_port"]), format_ipv4(row["nat_ip"]), int(row["nat_port"]),
        format_ipv4(row["eip"]) if row["eip"] else None, int(row["start_time"]), int(row["end_time"]),
        int(row["session"]),
    )  # fmt: skip


def _run_of(gateway: Gateway) -> str:
    """Return the key of its rows; empty before its first session log."""
    collector = parts_of(gateway).collector
    return "" if collector is None else collector.run


def live_rows(question: Question, gateway: Gateway, now: int) -> Iterable[Row]:
    """Return the gateway's live sessions and their open windows."""
    sessions, eips = gateway.sessions(), {int(row["outside_ip"]): int(row["eip"]) for row in gateway.ports()}
    is_asked = np.ones(len(sessions), np.bool_)
    for name, value in (
        ("outside_port", question.port), ("protocol", question.protocol), ("inside_ip", question.inside),
    ):  # fmt: skip
        if value is not None:
            is_asked &= sessions[name] == int(value)
    if question.address is not None:
        asked = int(question.address)
        outside = [ip for ip in {asked, *eips} if asked in (ip, eips.get(ip))]
        is_asked &= np.isin(sessions["outside_ip"], outside)
    for live in sessions[is_asked]:
        eip = eips.get(int(live["outside_ip"]), 0)
        started, window = int(live["start_time"]), int(live["window_time"])
        row = Row(
            gateway.instance, gateway.vpc_id, _run_of(gateway), -1, "live", int(live["protocol"]),
            format_ipv4(live["inside_ip"]), int(live["inside_port"]), format_ipv4(live["remote_ip"]),
            int(live["remote_port"]) if live["protocol"] != ICMP else 0, format_ipv4(live["outside_ip"]),
            int(live["outside_port"]), format_ipv4(eip) if eip else None, started, now, int(live["session"]),
        )  # fmt: skip
        yield row
        if window:
            yield row._replace(number=-2, kind="open", start=window, end=min(now, window + round(gateway.window * 1e6)))
