"""Each transition of the TCP state machine, by segments through a gateway (RFC 6146, RFC 7857 section 2)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import Policy, Timeouts, Verdict
from natcore.testhooks.wrappers import TcpSession
from support.frames import Talk, gateway

INIT_OUT, INIT_IN, PICKED, ESTABLISHED, FIN_OUT, FIN_IN, CLOSING, TRANSITORY = range(8)
TIMEOUTS = Timeouts(tcp_established=7440, tcp_transitory=240, unreplied=30)
NEVER, BY_POLICY, ALWAYS = 0, 1, 2
CLASS_TRANSITORY, CLASS_ESTABLISHED, CLASS_UNREPLIED = 1, 2, 4


def talk(**policy: object) -> Talk:
    return Talk(gateway(timeouts=TIMEOUTS, policy=Policy(**policy)))  # type: ignore[arg-type]


def opened(**policy: object) -> Talk:
    """After the handshake: inside has sent up to 101 and acknowledged 501, outside the other way round."""
    made = talk(**policy)
    assert made.out("S", seq=100) is Verdict.OUTBOUND
    assert made.back("SA", seq=500, ack=101) is Verdict.INBOUND
    assert made.out("A", seq=101, ack=501) is Verdict.OUTBOUND
    assert made.session()["state"] == ESTABLISHED
    return made


def closing() -> Talk:
    made = opened()
    made.out("FA", seq=101, ack=501)
    made.back("FA", seq=501, ack=102)
    assert made.session()["state"] == CLOSING
    return made


def reset() -> Talk:
    made = opened()
    made.back("R", seq=501)
    assert made.session()["state"] == TRANSITORY
    return made


def timeout_of(made: Talk) -> float:
    row = made.session()
    return round(int(row["deadline_ns"] - row["last_seen_ns"]) / 1e9, 3)


# ---- a new connection on a live session


@pytest.mark.parametrize("seq", [50, 10_000_000, 1 << 31])
@pytest.mark.parametrize("before", ["established", "inside finished", "outside finished"])
def test_a_syn_ack_that_acknowledges_a_new_syn_restarts_the_state(before: str, seq: int) -> None:
    made = opened()
    if before != "established":
        (made.out if before == "inside finished" else made.back)("FA", seq=101 if before == "inside finished" else 501,
                                                                 ack=501 if before == "inside finished" else 101)  # fmt: skip
    assert made.out("S", seq=seq) is Verdict.OUTBOUND
    assert made.back("SA", seq=seq ^ 0xFFFF, ack=seq + 1) is Verdict.INBOUND
    assert made.out("A", seq=seq + 1, ack=(seq ^ 0xFFFF) + 1) is Verdict.OUTBOUND
    assert made.session()["state"] == ESTABLISHED
    assert made.gateway.counters()["created"] == 1  # the same session, and the same row
    assert made.back("FA", seq=(seq ^ 0xFFFF) + 1, ack=seq + 1) is Verdict.INBOUND
    assert made.session()["state"] == FIN_IN and timeout_of(made) == 7440  # the old FIN does not count
    assert made.back("R", seq=(seq ^ 0xFFFF) + 2) is Verdict.INBOUND
    assert made.session()["state"] == TRANSITORY


def test_the_outside_s_new_connection_restarts_the_state_too() -> None:
    made = opened()
    made.back("S", seq=9_000_000)
    assert made.out("SA", seq=77, ack=9_000_001) is Verdict.OUTBOUND
    assert made.back("R", seq=9_000_001) is Verdict.INBOUND
    assert made.session()["state"] == TRANSITORY


@pytest.mark.parametrize("answer", ["", "A", "SA"])
def test_a_lone_syn_changes_nothing_of_a_live_connection(answer: str) -> None:
    """Anybody may forge one; the host answers it with an acknowledgement of the old connection (RFC 5961 section 4)."""
    made = opened()
    made.back("S", seq=9_000_000)
    if answer:
        made.out(answer, seq=101, ack=501)
    made.back("R", seq=9_000_001)
    assert made.session()["state"] == ESTABLISHED
    made.back("R", seq=501)
    assert made.session()["state"] == TRANSITORY


def test_a_reset_that_refuses_a_new_connection_counts() -> None:
    made = opened()
    made.out("S", seq=5000)
    made.back("RA", seq=0, ack=4999)
    assert made.session()["state"] == ESTABLISHED
    made.back("RA", seq=0, ack=5001)
    assert made.session()["state"] == TRANSITORY


# ---- opening


def test_syn_from_inside_opens_and_the_answer_establishes() -> None:
    made = talk()
    made.out("S", seq=100)
    assert made.session()["state"] == INIT_OUT and timeout_of(made) == 240
    made.back("SA", seq=500, ack=101)
    assert made.session()["state"] == ESTABLISHED and timeout_of(made) == 7440


def test_simultaneous_open_establishes() -> None:
    """RFC 5382 REQ-2a: the remote's SYN carries no ACK."""
    made = talk()
    made.out("S", seq=100)
    made.back("S", seq=500)
    assert made.session()["state"] == ESTABLISHED


@pytest.mark.parametrize("flags", ["A", "FA", "PA"])
def test_other_segments_do_not_establish_what_a_syn_opened(flags: str) -> None:
    made = talk()
    made.out("S")
    assert made.back(flags) is Verdict.INBOUND
    assert made.out(flags) is Verdict.OUTBOUND
    assert made.out("S") is Verdict.OUTBOUND
    assert made.session()["state"] == INIT_OUT and timeout_of(made) == 240


def test_a_segment_without_a_session_is_picked_up_and_established_by_an_answer() -> None:
    made = talk()
    assert made.out("A") is Verdict.OUTBOUND
    assert made.session()["state"] == PICKED and timeout_of(made) == 240
    made.out("FA")
    assert made.session()["state"] == PICKED
    made.back("A")
    assert made.session()["state"] == ESTABLISHED


def test_without_pickup_only_a_syn_opens() -> None:
    made = talk(tcp_pickup=False)
    assert made.out("A") is Verdict.DROP_NO_MAPPING
    assert made.out("S") is Verdict.OUTBOUND


def test_a_reset_opens_nothing() -> None:
    made = talk()
    assert made.out("R") is Verdict.DROP_NO_MAPPING
    assert len(made.gateway.sessions()) == 0


def from_outside() -> Talk:
    """A SYN of another remote over the open mapping of an inside endpoint."""
    made = talk()
    made.out("S")
    made.remote = "198.51.100.99"
    assert made.back("S", seq=500) is Verdict.INBOUND
    return made


def row_from_outside(made: Talk) -> object:
    (row,) = [row for row in made.gateway.sessions() if row["opened_outside"]]
    return row


def test_syn_from_outside_is_unreplied_until_the_inside_s_syn() -> None:
    made = from_outside()
    row = row_from_outside(made)
    assert row["state"] == INIT_IN and row["deadline_ns"] - row["last_seen_ns"] == 30_000_000_000
    made.back("A")
    assert row_from_outside(made)["deadline_ns"] - row_from_outside(made)["last_seen_ns"] == 30_000_000_000
    made.out("SA", ack=501)
    row = row_from_outside(made)
    assert row["state"] == ESTABLISHED and row["deadline_ns"] - row["last_seen_ns"] == 7_440_000_000_000


def test_another_segment_from_inside_makes_it_transitory() -> None:
    made = from_outside()
    made.out("A")
    row = row_from_outside(made)
    assert row["state"] == INIT_IN and row["deadline_ns"] - row["last_seen_ns"] == 240_000_000_000


def test_only_a_syn_opens_from_outside() -> None:
    made = talk()
    made.out("S")
    made.remote = "198.51.100.99"
    for flags in ("A", "SR", "R", "FA", "RA"):
        assert made.back(flags) is Verdict.DROP_FILTERED
    assert made.back("SA") is Verdict.INBOUND  # a SYN, with ACK or not


# ---- closing


def test_fins_of_both_sides_close() -> None:
    made = opened()
    made.out("FA", seq=101, ack=501)
    assert made.session()["state"] == FIN_OUT and timeout_of(made) == 7440
    made.out("FA", seq=101, ack=501)
    assert made.session()["state"] == FIN_OUT
    made.back("FA", seq=501, ack=102)
    assert made.session()["state"] == CLOSING and timeout_of(made) == 240


def test_fins_in_the_other_order_close() -> None:
    made = opened()
    made.back("FA", seq=501, ack=101)
    assert made.session()["state"] == FIN_IN
    made.back("FA", seq=501, ack=101)
    assert made.session()["state"] == FIN_IN
    made.out("FA", seq=101, ack=502)
    assert made.session()["state"] == CLOSING


def test_last_acknowledgements_leave_it_closing() -> None:
    made = closing()
    made.out("A", seq=102, ack=502)
    made.back("A", seq=502, ack=102)
    made.back("FA", seq=501, ack=102)
    assert made.session()["state"] == CLOSING


# ---- resets


def test_a_reset_that_fits_from_outside_is_transitory_from_now() -> None:
    made = opened(inbound_refresh=False)
    made.now = 100.0
    assert made.back("R", seq=501) is Verdict.INBOUND
    assert made.session()["state"] == TRANSITORY
    assert (made.session()["last_seen_ns"], timeout_of(made)) == (100_000_000_000, 240)


def test_a_reset_at_the_end_of_what_its_own_side_sent_fits() -> None:
    """Its data is not acknowledged yet."""
    made = opened()
    made.out("PA", seq=101, ack=501, load=b"0123456789")
    made.out("R", seq=111)
    assert made.session()["state"] == TRANSITORY


def test_a_reset_at_what_the_other_side_acknowledged_fits() -> None:
    made = opened()
    made.out("PA", seq=101, ack=501, load=b"0123456789")
    made.out("R", seq=101)  # ack of the outside: 101
    assert made.session()["state"] == TRANSITORY


@pytest.mark.parametrize("sequence", [0, 500, 502, 100])
def test_a_reset_elsewhere_passes_and_changes_nothing(sequence: int) -> None:
    made = opened()
    made.now = 100.0
    assert made.back("R", seq=sequence) is Verdict.INBOUND
    row = made.session()
    assert row["state"] == ESTABLISHED and row["last_seen_ns"] == 0 and row["packets_in"] == 2


@pytest.mark.parametrize("state", [FIN_OUT, FIN_IN])
def test_a_half_closed_session_is_reset_too(state: int) -> None:
    made = opened()
    if state == FIN_OUT:
        made.out("FA", seq=101, ack=501)
    else:
        made.back("FA", seq=501, ack=101)
    assert made.session()["state"] == state
    made.out("R", seq=102 if state == FIN_OUT else 101)
    assert made.session()["state"] == TRANSITORY


def test_before_establishment_a_reset_passes_and_neither_refreshes_nor_ends() -> None:
    made = talk()
    made.out("S", seq=100)
    made.now = 10.0
    assert made.back("RA", seq=0, ack=101) is Verdict.INBOUND
    assert made.out("R", seq=101) is Verdict.OUTBOUND
    row = made.session()
    assert row["state"] == INIT_OUT and row["last_seen_ns"] == 0


def test_a_segment_after_a_reset_brings_the_session_back() -> None:
    """RFC 7857 section 2.2."""
    made = reset()
    made.back("R", seq=501)
    assert made.session()["state"] == TRANSITORY
    made.out("A", seq=101, ack=501)
    assert made.session()["state"] == ESTABLISHED and timeout_of(made) == 7440


# ---- a new connection on the old five-tuple


@pytest.mark.parametrize("make", [closing, reset])
def test_a_syn_after_the_end_begins_a_new_session_on_the_same_mapping(make: Callable[[], Talk]) -> None:
    over = make()
    before, outside = over.session(), over.outside
    over.gateway.take_records()
    over.now = 5.0
    assert over.out("S", seq=9000) is Verdict.OUTBOUND
    after = over.session()
    assert over.outside == outside
    assert (after["session"], after["state"], after["birth_ns"]) == (before["session"] + 1, INIT_OUT, 5_000_000_000)
    assert (after["packets_out"], after["packets_in"]) == (1, 0)
    rows = over.gateway.take_records(events=True)
    assert [(row["kind"], row["session"]) for row in rows] == [
        (0, before["session"]), (2, before["session"]), (1, after["session"]),
    ]  # fmt: skip
    assert rows["end_time"].tolist() == [5_000_000] * 3


@pytest.mark.parametrize("make", [closing, reset])
def test_a_syn_from_outside_after_the_end_begins_one_opened_from_outside(make: Callable[[], Talk]) -> None:
    over = make()
    assert over.back("S", seq=9000) is Verdict.INBOUND
    row = over.session()
    assert row["state"] == INIT_IN and row["opened_outside"] == 1 and timeout_of(over) == 30


@pytest.mark.parametrize("flags", ["SA", "SF", "SR", "A"])
def test_other_segments_after_the_end_do_not(flags: str) -> None:
    over = closing()
    number = over.session()["session"]
    over.out(flags, seq=102, ack=502)
    assert over.session()["session"] == number


def test_a_syn_while_established_begins_nothing() -> None:
    over = opened()
    number = over.session()["session"]
    assert over.out("S", seq=7) is Verdict.OUTBOUND
    assert (over.session()["session"], over.session()["state"]) == (number, ESTABLISHED)


# ---- time


def test_a_new_state_starts_its_timer_though_inbound_packets_do_not_refresh() -> None:
    """RFC 6146 section 3.5.2.2."""
    made = talk(inbound_refresh=False)
    made.out("S", seq=100)
    made.now = 200.0
    made.back("SA", seq=500, ack=101)
    assert made.session()["last_seen_ns"] == 200_000_000_000
    made.now = 300.0
    made.back("A", seq=501, ack=101)
    assert made.session()["last_seen_ns"] == 200_000_000_000


# ---- the module alone


def test_sequence_numbers_are_compared_modulo_their_range() -> None:
    """RFC 9293 section 3.4."""
    session = TcpSession(INIT_OUT, CLASS_TRANSITORY)
    session.step(0, 0x10, 0, acknowledgement=0xFFFFFFF0, end=0xFFFFFFFF)
    session.step(0, 0x10, 0, acknowledgement=0x10, end=5)
    assert (session.ack[0], session.end[0]) == (0x10, 5)
    session.step(0, 0x10, 0, acknowledgement=0xFFFFFFF8, end=0xFFFFFFFE)
    assert (session.ack[0], session.end[0]) == (0x10, 5)


def test_an_unsent_zero_fits_no_reset() -> None:
    session = TcpSession(PICKED, CLASS_TRANSITORY)
    session.step(0, 0x00, 0, end=10)
    session.step(1, 0x00, 0, end=20)
    assert session.state == ESTABLISHED
    assert session.step(1, 0x04, 0) == NEVER
    assert session.state == ESTABLISHED


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 255)), max_size=30),
    st.sampled_from([INIT_OUT, INIT_IN, PICKED]),
)
def test_class_follows_state_and_resets_never_refresh_by_policy(steps: list[tuple[int, int]], first: int) -> None:
    session = TcpSession(first, CLASS_UNREPLIED if first == INIT_IN else CLASS_TRANSITORY)
    spoken = first != INIT_IN
    for direction, flags in steps:
        refresh = session.step(direction, flags, sequence=1, acknowledgement=1, end=1)
        spoken = spoken or (direction == 0 and not flags & 0x04)
        assert refresh in ((NEVER, ALWAYS) if flags & 0x04 else (BY_POLICY, ALWAYS))
        expected = CLASS_ESTABLISHED if session.state in (ESTABLISHED, FIN_OUT, FIN_IN) else CLASS_TRANSITORY
        assert session.timeout_class == (expected if spoken or session.state != INIT_IN else CLASS_UNREPLIED)
        assert session.reopens(0x02) == (session.state in (CLOSING, TRANSITORY))
        assert not session.reopens(0x12) and not session.reopens(0x03)
