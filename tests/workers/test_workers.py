"""Several workers: affinity, totals, and that nothing but the allocated ports depends on their number."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import ICMP

from natcore import (
    Add,
    ConfigurationError,
    DnatEntry,
    Error,
    Gateway,
    NoNatEntry,
    Policy,
    Remove,
    Side,
    SnatEntry,
    Verdict,
)
from natcore.dtypes import END, WINDOW
from natcore.flowlog import FlowLog
from natcore.testing import bulk, craft
from support.frames import EIP, HOST, REMOTE, echo, parsed, tcp, udp
from support.gateways import INSIDE, OUTSIDE, arrays, hosts_of, made, owner

SERVER = "10.0.0.9"


def back(sent: bytes | None) -> bytes:
    """The remote's answer to a UDP frame that reached it."""
    assert sent is not None
    return craft.ether(
        craft.udp(
            (int.from_bytes(sent[30:34], "big"), int.from_bytes(sent[36:38], "big")),
            (int.from_bytes(sent[26:30], "big"), int.from_bytes(sent[34:36], "big")),
        )
    )


def test_every_host_has_one_owner_and_the_owners_share_them_evenly() -> None:
    gateway = made(4)
    frames, lengths = bulk.packets(bulk.UDP, 0x0A000000 + np.arange(1, 4001), 5000, 0xC6336407, 53)
    owners = gateway.owner(frames, lengths, INSIDE)
    assert owners.dtype == np.uint8 and set(owners) == {0, 1, 2, 3}
    assert np.bincount(owners).min() > 800
    other, lengths = bulk.packets(bulk.UDP, 0x0A000000 + np.arange(1, 4001), 6000, 0xC6336408, 99)
    assert (gateway.owner(other, lengths, INSIDE) == owners).all()


@pytest.mark.parametrize("workers", [2, 3])
def test_an_answer_belongs_to_the_worker_that_has_the_port(workers: int) -> None:
    gateway = made(workers)
    for number in range(50):
        frame = udp(f"10.0.1.{number}")
        verdict, sent = gateway.translate_one(frame, INSIDE, now=0.0)
        assert verdict is Verdict.OUTBOUND and sent is not None
        assert owner(gateway, back(sent), OUTSIDE) == owner(gateway, frame, INSIDE)
        assert gateway.translate_one(back(sent), OUTSIDE, now=0.0)[0] is Verdict.INBOUND
    assert gateway.counters()["handed_over"] == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("side", [INSIDE, OUTSIDE])
def test_a_query_that_is_refused_ends_no_dead_session(workers: int, side: Side) -> None:
    """Whoever looks for its owner must not do what the packet does not."""
    gateway = made(workers, policy=Policy(icmp_queries="echo"))
    _, sent = gateway.translate_one(echo(ident=77), INSIDE, now=0.0)
    assert sent is not None
    outside = parsed(sent)
    refused = echo(kind=18, ident=77) if side is INSIDE else echo(REMOTE, outside.src, kind=17, ident=outside[ICMP].id)
    gateway.advance(now=40.0)  # packets sweep nothing for the next 30 s
    verdict, _ = gateway.translate_one(refused, side, now=61.0)  # the session is over since 60.0
    assert verdict is Verdict.DROP_UNSUPPORTED
    assert END not in gateway.take_records(events=True)["kind"]


def test_plain_translation_hands_nothing_over_and_draws_from_the_workers_own_blocks() -> None:
    gateway = made(2)
    frames, lengths = bulk.packets(bulk.UDP, 0x0A000000 + np.arange(1, 2001), 5000, 0xC6336407, 53)
    owners = gateway.owner(frames, lengths, INSIDE)
    for worker in range(2):
        own = frames[owners == worker].copy()
        verdicts = gateway.translate(own, lengths[: len(own)].copy(), INSIDE, now=0.0, worker=worker)
        assert (verdicts == Verdict.OUTBOUND).all()
        _, ports = bulk.endpoints(own, "source")
        assert set(ports.astype(int) // 64 % 2) == {worker}
        answers, answer_lengths = bulk.answers(own, lengths[: len(own)])
        assert (gateway.translate(answers, answer_lengths, OUTSIDE, now=0.0, worker=worker) == Verdict.INBOUND).all()
    assert gateway.counters()["handed_over"] == 0


def test_what_another_worker_owns_is_handed_over_and_counted() -> None:
    gateway = made(2)
    host = hosts_of(gateway, 1, 1)[0]
    verdict, sent = gateway.translate_one(udp(host), INSIDE, now=0.0, worker=0)
    assert verdict is Verdict.OUTBOUND
    assert gateway.translate_one(back(sent), OUTSIDE, now=0.0, worker=0)[0] is Verdict.INBOUND
    assert gateway.translate_one(udp(host), INSIDE, now=0.0, worker=1)[0] is Verdict.OUTBOUND
    counters = gateway.counters()
    assert counters["handed_over"] == 2 and counters["sessions"] == 1 and counters["received"] == 3
    by_worker = [gateway.counters(worker=w) for w in range(2)]
    assert [c["handed_over"] for c in by_worker] == [2, 0]
    assert [c["received"] for c in by_worker] == [2, 1] and [c["sessions"] for c in by_worker] == [0, 1]


def test_one_host_may_use_every_port_of_an_address() -> None:
    """64,512 of 64,512 with two workers: one borrows what the other does not use."""
    gateway = made(2, max_sessions=70_000, policy=Policy(hold_down=0))
    host = int.from_bytes(bytes(map(int, HOST.split("."))), "big")
    ports = np.arange(64_512 + 10)
    frames, lengths = bulk.packets(bulk.UDP, host, ports + 1, 0xC6336407, 53)
    verdicts = gateway.translate(frames, lengths, INSIDE, now=0.0)
    _, drawn = bulk.endpoints(frames[verdicts == Verdict.OUTBOUND], "source")
    assert len(drawn) == len(np.unique(drawn)) == 64_512
    assert gateway.counters()["dropped_ports_exhausted"] == 10
    other = hosts_of(gateway, 1 - owner(gateway, udp(), INSIDE), 1)[0]
    assert gateway.translate_one(udp(other), INSIDE, now=0.0)[0] is Verdict.DROP_PORTS_EXHAUSTED
    own = frames[:1].copy()
    answers, answer_lengths = bulk.answers(own, lengths[:1])
    for worker in range(2):
        verdict = gateway.translate(answers.copy(), answer_lengths.copy(), OUTSIDE, now=0.0, worker=worker)
        assert verdict[0] == Verdict.INBOUND


def both_ways(gateway: Gateway, frame: bytes, side: Side, now: float, worker: int) -> tuple[str, int]:
    verdict, _ = gateway.translate_one(frame, side, now=now, worker=worker)
    return verdict.name, len(gateway.take_generated())


@pytest.mark.parametrize("worker", [0, 1])
def test_limits_are_totals(worker: int) -> None:
    """Whichever worker takes the frames: max_sessions, and what all of the inside may open in a second."""
    gateway = made(2, max_sessions=10, policy=Policy(gateway_new_sessions_per_second=12))
    hosts = hosts_of(gateway, 0, 6) + hosts_of(gateway, 1, 6)
    got = [both_ways(gateway, udp(host), INSIDE, 0.0, worker)[0] for host in hosts]
    assert got == ["OUTBOUND"] * 10 + ["DROP_SESSION_LIMIT"] * 2
    assert gateway.counters()["sessions"] == 10
    rated = made(2, policy=Policy(gateway_new_sessions_per_second=5))
    got = [both_ways(rated, udp(host), INSIDE, 0.5, worker)[0] for host in hosts[3:10]]
    assert got == ["OUTBOUND"] * 5 + ["DROP_RATE_LIMIT"] * 2
    assert both_ways(rated, udp(hosts[11]), INSIDE, 1.0, worker)[0] == "OUTBOUND"


@pytest.mark.parametrize("worker", [0, 1])
def test_a_draw_in_vain_changes_nothing_of_the_one_that_follows(worker: int) -> None:
    """No port is free until what is dead has ended, for which all workers are held: explain foretold the port then drawn."""
    for turn in range(8):
        policy = Policy(port_ranges=((2000, 2031),), hold_down=0)
        gateway = Gateway(workers=2, seed=turn, policy=policy)
        gateway.add(SnatEntry("10.0.0.0/8", EIP))
        host = hosts_of(gateway, 0, 1)[0]
        frames, lengths = arrays(*(udp(host, sport=port) for port in range(32)))
        assert set(gateway.translate(frames, lengths, INSIDE, now=0)) == {Verdict.OUTBOUND}
        gateway.advance(290)  # so that the packet carries no slice of the sweep
        told = gateway.explain(udp(host, sport=99), INSIDE, now=310)
        verdict, sent = gateway.translate_one(udp(host, sport=99), INSIDE, now=310, worker=worker)
        assert (told.verdict, told.frame) == (verdict, sent) and verdict is Verdict.OUTBOUND


def test_a_full_table_makes_room_by_the_other_workers_dead_sessions() -> None:
    gateway = made(2, max_sessions=4)
    first, second = hosts_of(gateway, 0, 4), hosts_of(gateway, 1, 4)
    for host in first:
        assert gateway.translate_one(udp(host), INSIDE, now=0.0)[0] is Verdict.OUTBOUND
    assert gateway.translate_one(udp(second[0]), INSIDE, now=1.0)[0] is Verdict.DROP_SESSION_LIMIT
    for host in second:
        assert gateway.translate_one(udp(host), INSIDE, now=400.0)[0] is Verdict.OUTBOUND
    assert gateway.counters()["ended"] == 4


@pytest.mark.parametrize("taker", [0, 1])
@pytest.mark.parametrize("talker", [0, 1])
def test_a_hairpin_spans_two_workers(taker: int, talker: int) -> None:
    gateway = made(2)
    one = hosts_of(gateway, talker, 1)[0]
    other = hosts_of(gateway, 1 - talker, 2)[1]
    _, sent = gateway.translate_one(udp(one, 5000), INSIDE, now=0.0)
    assert sent is not None
    endpoint = (EIP, int.from_bytes(sent[34:36], "big"))
    verdict, turned = gateway.translate_one(udp(other, 6000, *endpoint), INSIDE, now=0.0, worker=taker)
    assert verdict is Verdict.HAIRPIN and turned is not None
    assert turned[30:34] == bytes(map(int, one.split("."))) and turned[36:38] == (5000).to_bytes(2, "big")
    answer = udp(one, 5000, EIP, int.from_bytes(turned[34:36], "big"))
    assert gateway.translate_one(answer, INSIDE, now=0.0, worker=1 - taker)[0] is Verdict.HAIRPIN
    assert gateway.counters()["sessions"] == 3


def test_port_forwarding_and_untranslated_traffic_find_their_owner() -> None:
    for server in (hosts_of(made(), 0, 1)[0], hosts_of(made(), 1, 1)[0]):
        for worker in range(2):
            gateway = made()
            gateway.add(DnatEntry(EIP, 8443, server, 443))
            gateway.add(NoNatEntry("10.0.0.0/8", "192.0.2.0/24"))
            verdict, sent = gateway.translate_one(tcp("S", REMOTE, 999, EIP, 8443), OUTSIDE, now=0.0, worker=worker)
            assert verdict is Verdict.INBOUND and sent is not None
            reply = tcp("SA", server, 443, REMOTE, 999)
            assert gateway.translate_one(reply, INSIDE, now=0.1, worker=1 - worker)[0] is Verdict.OUTBOUND
            assert owner(gateway, tcp("A", REMOTE, 999, EIP, 8443), OUTSIDE) == owner(gateway, reply, INSIDE)
            plain = udp(server, 7, "192.0.2.1", 9)
            assert gateway.translate_one(plain, INSIDE, now=0.2, worker=worker)[0] is Verdict.UNTRANSLATED
            answer = udp("192.0.2.1", 9, server, 7)
            assert gateway.translate_one(answer, OUTSIDE, now=0.3, worker=1 - worker)[0] is Verdict.UNTRANSLATED


def test_a_second_call_on_one_worker_is_refused_and_on_the_other_is_not() -> None:
    gateway = made()
    gateway._core.claim(0)
    try:
        with pytest.raises(Error, match="translating already"):
            gateway.translate_one(udp(), INSIDE, now=0.0, worker=0)
        assert gateway.translate_one(udp(), INSIDE, now=0.0, worker=1)[0] is Verdict.OUTBOUND
        with pytest.raises(Error, match="translating already"):
            gateway.translate(*arrays(udp()), INSIDE, now=0.0)
        gateway.translate(*arrays(udp()), INSIDE, now=0.0, worker=1)  # the refused call has claimed nothing
    finally:
        gateway._core.unclaim(0)
    gateway.translate(*arrays(udp()), INSIDE, now=0.0)


@pytest.mark.parametrize("workers", [0, 65, True, "2", None])
def test_a_number_of_workers_that_cannot_be_is_refused(workers: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"workers must be a whole number between 1 and 64, got "):
        Gateway(workers=workers)


def test_a_worker_that_is_not_there_is_refused() -> None:
    gateway = made(2)
    calls: list[Callable[[], object]] = [
        lambda: gateway.translate(*arrays(udp()), INSIDE, now=0.0, worker=2),
        lambda: gateway.translate_one(udp(), INSIDE, now=0.0, worker=-1),
        lambda: gateway.counters(worker=2),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match=r"worker must be a whole number between 0 and 1, got "):
            call()


def test_control_calls_work_over_all_workers() -> None:
    gateway = made(2, policy=Policy(hold_down=0))
    hosts = hosts_of(gateway, 0, 5) + hosts_of(gateway, 1, 5)
    for host in hosts:
        gateway.translate_one(udp(host), INSIDE, now=0.0)
        gateway.translate_one(echo(host), INSIDE, now=0.0)
    assert len(gateway.sessions()) == len(gateway.mappings()) == 20
    assert sorted(gateway.sessions()["session"]) == list(range(1, 21))
    assert gateway.ports()["used"].tolist() == [0, 10, 10]
    assert gateway.explain(udp(hosts[9]), INSIDE).verdict is Verdict.OUTBOUND
    assert gateway.end(subscriber=hosts[9]) == 2 and gateway.end(protocol="icmp") == 9
    entry = gateway.entries()[0]
    plan = gateway.plan([Remove(entry), Add(SnatEntry("10.0.0.0/8", "203.0.113.77"))])
    assert plan.ended == 9
    assert gateway.apply(plan, now=1.0).ended == 9
    assert gateway.counters()["sessions"] == 0 and gateway.counters()["mappings"] == 0
    rows = gateway.take_records(events=True)
    assert sorted(rows["session"][rows["kind"] == END]) == list(range(1, 21))
    for host in hosts:
        verdict, sent = gateway.translate_one(udp(host), INSIDE, now=2.0, worker=0)
        assert verdict is Verdict.OUTBOUND and sent is not None and sent[26:30] == bytes([203, 0, 113, 77])


def test_rows_come_in_the_order_of_their_ends_over_all_workers() -> None:
    """Same input, same seed, same now: the same rows, byte for byte."""
    outcomes = []
    for _ in range(2):
        gateway = made(3)
        for number in range(300):
            gateway.translate_one(udp(f"10.0.{number % 7}.{number % 31}", 1000 + number), INSIDE, now=number * 0.01)
        gateway.advance(1000.0)
        rows = gateway.take_records(events=True)
        ends = rows[rows["kind"] == END]
        assert (np.diff(ends["end_time"]) >= 0).all() and len(ends) == 300
        outcomes.append(rows.tobytes())
    assert outcomes[0] == outcomes[1]


def test_the_flow_log_sees_every_worker() -> None:
    gateway = made(2)
    hosts = hosts_of(gateway, 0, 3) + hosts_of(gateway, 1, 3)
    with FlowLog(gateway) as flows:
        for host in hosts:
            for worker in range(2):
                gateway.translate_one(udp(host), INSIDE, now=0.0, worker=worker)
        rows = flows.take()
    assert len(rows) == 12 and (rows["packets"] == 2).all()


def run_together(calls: list[Callable[[], None]]) -> None:
    """Each in a thread of its own; raises what one of them raised."""
    failures: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_single_frames_and_control_calls_from_threads_do_not_wait_for_each_other(workers: int) -> None:
    """A thread with the interpreter's lock does not wait for a worker that waits for that lock."""
    gateway = made(workers)
    hosts = [f"10.3.0.{n}" for n in range(200)]

    def frames() -> None:
        for host in hosts * 20:
            assert gateway.translate_one(udp(host), INSIDE, now=0.0)[0] is Verdict.OUTBOUND

    def looks() -> None:
        for _ in range(2000):
            gateway.counters()
            gateway.ports()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that either may be interrupted anywhere
    try:
        run_together([frames, looks])
    finally:
        sys.setswitchinterval(before)
    assert gateway.counters()["sessions"] == 200


@pytest.mark.parametrize("steered", [True, False])
@pytest.mark.parametrize("ports", ["random", "block", "overload"])
def test_workers_translate_at_once_while_control_calls_go_on(steered: bool, ports: str) -> None:
    """Every frame gets a verdict, no port is had twice, and all tables are empty in the end."""
    behaviour: dict[str, Any] = {"ports": ports, "hold_down": 0.0, "block_size": 64, "blocks": 16}
    if ports == "overload":
        behaviour |= {
            "mapping": "address-and-port-dependent",
            "filtering": "address-and-port-dependent",
        }
    gateway = made(2, f"{EIP}-203.0.113.4", max_sessions=30_000, policy=Policy(**behaviour))
    rounds, count = 12, 2000
    sources = 0x0A000000 + np.arange(1, count + 1)
    frames, lengths = bulk.packets(bulk.UDP, sources, 5000, 0xC6336407, 53)
    owners = gateway.owner(frames, lengths, INSIDE)
    busy = threading.Event()

    def work(worker: int) -> None:
        mine = np.flatnonzero((owners == worker) == steered)
        for turn in range(rounds):
            for part in np.array_split(mine, 4):
                sent = frames[part].copy()
                used = lengths[part].copy()
                verdicts = gateway.translate(sent, used, INSIDE, now=float(turn), worker=worker)
                assert (verdicts == Verdict.OUTBOUND).all(), np.unique(verdicts)
                answers, answer_lengths = bulk.answers(sent, used)
                verdicts = gateway.translate(answers, answer_lengths, OUTSIDE, now=float(turn), worker=worker)
                assert np.isin(verdicts, [Verdict.INBOUND, Verdict.DROP_NO_MAPPING]).all(), np.unique(verdicts)

    def control() -> None:
        while not busy.is_set():
            rows = gateway.sessions()
            assert len(np.unique(rows["session"])) == len(rows)
            used = gateway.ports()
            assert (used["used"] + used["held_down"] + used["reserved"] + used["free"] == used["total"]).all()
            gateway.end(subscriber="10.0.0.77")
            gateway.explain(udp(), INSIDE)
            gateway.take_events()

    def workers() -> None:
        try:
            run_together([lambda: work(0), lambda: work(1)])
        finally:
            busy.set()

    run_together([workers, control])
    counters = gateway.counters()
    assert counters["received"] == 2 * rounds * count
    assert counters["received"] == counters["forwarded"] + counters["dropped"]
    rows = gateway.sessions()
    ends = rows["outside_ip"].astype(np.uint64) << np.uint64(16) | rows["outside_port"]
    if ports != "overload":
        assert len(np.unique(ends)) == len(rows)
    if ports == "random":
        assert (counters["handed_over"] == 0) == steered
    gateway.advance(10_000.0)
    counters = gateway.counters()
    assert counters["sessions"] == counters["mappings"] == counters["ports_used"] == 0
    assert counters["created"] == counters["ended"]


def test_a_fragment_ends_a_dead_session_of_whichever_worker() -> None:
    """Any packet ends a dead session that it meets: inbound, protocols without ports do not show their worker."""
    gateway = made(2)
    host = int.from_bytes(bytes(map(int, hosts_of(gateway, 1, 1)[0].split("."))), "big")
    assert (
        gateway.translate_one(craft.ether(craft.ipv4(47, host, REMOTE, b"12345678")), INSIDE, 0.0)[0]
        is Verdict.OUTBOUND
    )
    gateway.take_records(events=True)
    first = craft.ether(craft.ipv4(47, REMOTE, EIP, b"12345678", fragment=0x2000))
    assert gateway.translate_one(first, OUTSIDE, 300.0, worker=0)[0] is Verdict.DROP_NO_MAPPING
    assert gateway.take_records(events=True)["kind"].tolist() == [WINDOW, END]
