"""A table that is full to its last session: buckets overflow, new sessions come between established ones, all in one batch."""

from __future__ import annotations

import numpy as np
import pytest

from natcore import Gateway, Policy, Side, SnatEntry, Verdict
from natcore.testing import bulk

SESSIONS = 20_000  # of 4,000 buckets one in 73 overflows
POOL = 0xCB007101


def flows(first: int, count: int) -> tuple[bulk.Frames, bulk.Lengths]:
    """Each with an inside endpoint of its own, sixteen a host."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    hosts, ports = np.divmod(numbers, np.uint64(16))
    return bulk.packets(bulk.UDP, 0x0A000001 + hosts, 20_000 + ports, 0xC6336401, 53)


def made(**policy: object) -> Gateway:
    gateway = Gateway(seed=1, max_sessions=SESSIONS, policy=Policy(**policy))  # type: ignore[arg-type]
    gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.1"))
    return gateway


def translated(gateway: Gateway, frames: bulk.Frames, lengths: bulk.Lengths, side: Side) -> bulk.Frames:
    out = frames.copy()
    verdicts = gateway.translate(out, lengths.copy(), side, now=1.0)
    assert set(verdicts) == {Verdict.OUTBOUND if side == Side.INSIDE else Verdict.INBOUND}
    assert (bulk.layer4_sums(out, bulk.UDP, int(lengths[0]) - 14) == 0xFFFF).all() and bulk.headers_right(out).all()
    return out


@pytest.mark.parametrize("ports", ["random", "preserve"])
@pytest.mark.parametrize("filtering", ["endpoint-independent", "address-dependent"])
def test_every_session_of_a_full_table_is_found_both_ways(ports: str, filtering: str) -> None:
    gateway = made(ports=ports, filtering=filtering)
    frames, lengths = flows(0, SESSIONS)
    order = np.random.default_rng(1).permutation(SESSIONS)
    mixed = np.concatenate([np.arange(SESSIONS // 2), order])  # half of them come again, and the others amid them
    out = translated(gateway, frames[mixed], lengths[mixed], Side.INSIDE)
    assert gateway.counters()["created"] == gateway.counters()["sessions"] == SESSIONS
    first = {int(row): bytes(frame) for row, frame in zip(mixed, out, strict=True)}
    assert all(first[int(row)] == bytes(frame) for row, frame in zip(mixed, out, strict=True))
    outer, ports_drawn = bulk.endpoints(out[SESSIONS // 2 :], "source")
    assert set(outer) == {POOL} and len(set(ports_drawn)) == SESSIONS

    back = translated(gateway, *bulk.answers(out, lengths[mixed]), Side.OUTSIDE)
    for one, other in zip(bulk.endpoints(back, "destination"), bulk.endpoints(frames[mixed], "source"), strict=True):
        assert (one == other).all()
    assert gateway.counters()["created"] == SESSIONS

    more, more_lengths = flows(SESSIONS, 100)
    assert set(gateway.translate(more, more_lengths, Side.INSIDE, now=1.0)) == {Verdict.DROP_SESSION_LIMIT}


def test_the_same_new_flow_many_times_in_a_batch_is_one_session() -> None:
    """What is foreseen for each is one port after another; only one is drawn."""
    gateway = made()
    frames, lengths = flows(0, 5)
    rows = np.random.default_rng(2).integers(0, 5, 600)
    out = translated(gateway, frames[rows], lengths[rows], Side.INSIDE)
    assert gateway.counters()["created"] == 5
    assert len(set(zip(rows.tolist(), bulk.endpoints(out, "source")[1].tolist(), strict=True))) == 5
