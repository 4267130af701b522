"""Packets that were forwarded and found no next hop: no row counts them (contract R1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from natcore import Gateway, Side, SnatEntry, Verdict
from natcore.dtypes import END, WINDOW
from natcore.testhooks.planted_faults import undeliver
from support.frames import EIP, HOST, REMOTE, Talk, fragments, gateway, tcp, udp

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE


def lost(over: Gateway, frame: bytes, side: Side = INSIDE, now: float = 0.0, worker: int = 0) -> Verdict:
    """Translate the frame; its next hop does not answer."""
    verdict, sent = over.translate_one(frame, side, now, worker=worker)
    assert sent is not None
    undeliver(over._core.worker_capsule(worker), sent, side, verdict, Verdict.DROP_NO_NEIGHBOUR)
    return verdict


def windows(over: Gateway) -> list[tuple[int, int, int, int]]:
    """The rows of all sessions once they have ended: packets and bytes from inside, from outside."""
    over.end_all()
    rows = over.take_records(events=True)
    fields = ("pkts_from_vpc", "bytes_from_vpc", "pkts_from_pub", "bytes_from_pub")
    made: Any = [tuple(int(row[field]) for field in fields) for row in rows if row["kind"] == WINDOW]
    sums = np.sum(made, axis=0).tolist() if made else [0, 0, 0, 0]
    assert [int(rows[rows["kind"] == END][field].sum()) for field in fields] == sums
    return sorted(made)


def test_a_session_without_any_other_packet_has_no_window() -> None:
    over = gateway()
    assert lost(over, udp()) is Verdict.OUTBOUND
    assert windows(over) == []
    assert over.counters()["forwarded"] == 0 and over.counters()["dropped_no_neighbour"] == 1


def test_what_was_delivered_stays_in_both_directions() -> None:
    over = gateway()
    talk = Talk(over)
    assert (talk.out(), talk.out(), talk.back()) == (Verdict.OUTBOUND, Verdict.OUTBOUND, Verdict.INBOUND)
    lost(over, udp(load=bytes(100)))
    lost(over, udp(REMOTE, 53, *talk.outside, load=bytes(200)), OUTSIDE)
    ((out, out_bytes, back, back_bytes),) = windows(over)
    assert (out, back) == (2, 1) and out_bytes < 100 and back_bytes < 200


def test_the_packet_after_a_lost_one_opens_a_window_of_its_own() -> None:
    over = gateway(window=10.0)
    lost(over, udp())
    assert over.translate_one(udp(), INSIDE, 3.0)[0] is Verdict.OUTBOUND
    over.advance(13.0)
    (row,) = over.take_records()
    assert (row["start_time"], row["end_time"], row["pkts_from_vpc"]) == (3_000_000, 13_000_000, 1)


def test_a_hairpin_is_in_neither_session() -> None:
    over = gateway()
    other = Talk(over, host="10.0.0.6")
    assert other.out() is Verdict.OUTBOUND
    assert lost(over, udp(HOST, 5000, *other.outside)) is Verdict.HAIRPIN
    assert over.sessions()["packets_out"].sum() + over.sessions()["packets_in"].sum() == 1
    assert over.translate_one(udp(HOST, 5000, *other.outside), INSIDE, 0.0)[0] is Verdict.HAIRPIN
    assert over.sessions()["packets_out"].sum() == 2 and over.sessions()["packets_in"].sum() == 1
    assert over.counters()["undelivered_in_rows"] == 0


@pytest.mark.parametrize("worker", [0, 1])
def test_the_session_may_belong_to_another_worker(worker: int) -> None:
    over = Gateway(workers=2, seed=1)
    over.add(SnatEntry("10.0.0.0/8", pool=EIP))
    for n in range(1, 9):
        lost(over, udp(f"10.0.0.{n}"), worker=worker)
        assert over.translate_one(udp(f"10.0.0.{n}"), INSIDE, 0.0, worker=worker)[0] is Verdict.OUTBOUND
    assert [row[0] for row in windows(over)] == [1] * 8
    assert over.counters()["undelivered_in_rows"] == 0


def test_what_a_window_has_closed_on_is_counted() -> None:
    over = gateway(window=10.0)
    verdict, sent = over.translate_one(tcp("S"), INSIDE, 0.0)
    assert sent is not None
    over.advance(11.0)  # its window's row is written
    undeliver(over._core.worker_capsule(0), sent, INSIDE, verdict, Verdict.DROP_NO_NEIGHBOUR)
    assert over.counters()["undelivered_in_rows"] == 1
    assert [row[0] for row in windows(over)] == [1]


def test_a_fragment_has_no_ports_and_is_counted() -> None:
    over = gateway()
    first, later = fragments(udp(load=bytes(1000)), 600)
    lost(over, first)
    lost(over, later)
    assert over.counters()["undelivered_in_rows"] == 2
    assert [row[0] for row in windows(over)] == [2]
