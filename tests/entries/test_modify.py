"""Settings of a gateway that runs: what may change, from when on it holds, and what sessions that are there keep."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from natcore import (
    Add,
    Behaviour,
    ConfigurationError,
    DnatEntry,
    Eip,
    Error,
    Gateway,
    Modify,
    Policy,
    Remove,
    RestartNeededError,
    Side,
    SnatEntry,
    Timeouts,
    Verdict,
)
from natcore.dtypes import SETTING
from natcore.sessionlog import facts
from natcore.sinks import MemorySink
from natcore.testhooks.planted_faults import broken
from natcore.testing.craft import ether, icmp, tcp, udp
from support.frames import gateway

HOST, OTHER, REMOTE, EIP = "10.0.0.5", "10.0.0.6", "198.51.100.7", "203.0.113.1"
SYN, ACK = 2, 16


class FactsSink(MemorySink):
    facts = True


def out(over: Gateway, now: float, port: int = 4000, host: str = HOST, to: int = 53) -> Verdict:
    return over.translate_one(ether(udp((host, port), (REMOTE, to))), Side.INSIDE, now)[0]


def deadlines(over: Gateway) -> list[float]:
    return [each / 1e9 for each in over.sessions()["deadline_ns"].tolist()]


# ---- time-outs -------------------------------------------------------------------------------------------------------


def test_a_session_keeps_its_deadline_until_a_packet_refreshes_it() -> None:
    over = gateway(timeouts=Timeouts(udp=120))
    out(over, 10.0)
    assert over.modify(timeouts=Timeouts(udp=1000), now=100.0) == 0
    assert deadlines(over) == [130.0] and over.timeouts == Timeouts(udp=1000)
    out(over, 110.0)
    assert deadlines(over) == [1110.0]


def test_a_shorter_time_out_holds_from_the_change_on() -> None:
    over = gateway(timeouts=Timeouts(udp=1000))
    out(over, 0.0, port=4000)
    out(over, 500.0, port=4001)
    over.modify(timeouts=Timeouts(udp=200), now=900.0)
    assert sorted(deadlines(over)) == [1000.0, 1100.0]  # its own deadline; one time-out after the change
    over.advance(1_000_000.0)
    rows = over.take_records(events=True)
    assert sorted(rows[rows["kind"] == 2]["end_time"].tolist()) == [1_000_000_000, 1_100_000_000]


def test_what_is_dead_already_stays_dead() -> None:
    """The sweep has not met it: longer time-outs must not revive it."""
    over = gateway(timeouts=Timeouts(udp=120))
    out(over, 0.0)
    over.modify(timeouts=Timeouts(udp=1000), now=130.0)
    assert len(over.sessions()) == 0
    rows = over.take_records(events=True)
    assert rows[rows["kind"] == 2]["end_time"].tolist() == [120_000_000]


def test_each_kind_of_session_has_its_own_time_out() -> None:
    over = gateway(timeouts=Timeouts(udp=300, icmp=60, tcp_transitory=240, other=300))
    over.translate_one(ether(tcp((HOST, 4000), (REMOTE, 443), SYN)), Side.INSIDE, 0.0)
    over.translate_one(ether(icmp(HOST, REMOTE)), Side.INSIDE, 0.0)
    out(over, 0.0)
    over.modify(timeouts=Timeouts(udp=300, icmp=90, tcp_transitory=240, other=300), now=1.0)
    assert sorted(deadlines(over)) == [60.0, 240.0, 300.0]
    over.translate_one(ether(icmp(HOST, REMOTE)), Side.INSIDE, 2.0)
    assert sorted(deadlines(over)) == [92.0, 240.0, 300.0]


def test_last_seen_is_never_before_the_session() -> None:
    over = gateway(timeouts=Timeouts(udp=120))
    out(over, 5.5)
    over.modify(timeouts=Timeouts(udp=900_000), now=6.0)
    (row,) = over.sessions()
    assert (row["birth_ns"], row["last_seen_ns"], row["deadline_ns"]) == (5_500_000_000, 5_500_000_000, 125_500_000_000)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_workers_change_together(workers: int) -> None:
    over = Gateway(seed=1, max_sessions=1000, workers=workers, timeouts=Timeouts(udp=120))
    over.add(SnatEntry("10.0.0.0/8", EIP))
    for host in range(1, 60):
        out(over, 0.0, host=f"10.0.0.{host}")
    over.modify(timeouts=Timeouts(udp=130), policy=Policy(ports_per_subscriber=1), now=1.0)
    assert set(deadlines(over)) == {120.0}
    for host in range(1, 60):
        assert out(over, 2.0, host=f"10.0.0.{host}") is Verdict.OUTBOUND
        assert out(over, 2.0, host=f"10.0.0.{host}", port=4001) is Verdict.DROP_SUBSCRIBER_LIMIT
    assert set(deadlines(over)) == {132.0}
    assert broken(over._core.worker_capsule()) is None


def test_a_datagram_in_fragments_has_the_new_time_out() -> None:
    over = gateway(timeouts=Timeouts(fragment=30))
    later = ether(udp((HOST, 4000), (REMOTE, 53), b"x" * 32))
    frame = bytearray(later)
    frame[20:22] = (0x2000 >> 13 << 13 | 100).to_bytes(2, "big")  # more fragments, at an offset
    frame[24:26] = b"\0\0"
    total = sum(int.from_bytes(frame[i : i + 2], "big") for i in range(14, 34, 2))
    frame[24:26] = (0xFFFF - (total % 0xFFFF)).to_bytes(2, "big")
    assert over.translate_one(bytes(frame), Side.INSIDE, 0.0)[0] is Verdict.HELD
    over.modify(timeouts=Timeouts(fragment=5), now=4.0)
    assert over.counters()["held"] == 1
    over.advance(5.0)
    assert over.counters()["held"] == 0


# ---- the policy ------------------------------------------------------------------------------------------------------

RESTART: dict[str, Any] = {
    "mapping": {"mapping": "address-and-port-dependent"},
    "filtering": {"filtering": "address-dependent"},
    "ports": {"ports": "block"},
    "port_ranges": {"port_ranges": ((2000, 3000),)},
    "host_ports": {"host_ports": ((2000, 3000),)},
}


@pytest.mark.parametrize("name", RESTART)
def test_what_needs_a_restart_is_named_and_nothing_changes(name: str) -> None:
    over = gateway()
    out(over, 0.0)
    before = over.policy, over.timeouts
    modify = Modify(policy=replace(over.policy, hairpin=False, **RESTART[name]), timeouts=Timeouts(udp=500))
    for call in (lambda: over.plan([modify]), lambda: over.modify(policy=modify.policy, timeouts=modify.timeouts)):
        with pytest.raises(RestartNeededError, match=rf"Policy\.{name} must stay .*: a restart is needed") as caught:
            call()
        assert caught.value.fields == (f"Policy.{name}",)
    assert (over.policy, over.timeouts) == before and deadlines(over) == [300.0]


def test_all_that_need_a_restart_are_named_at_once() -> None:
    over = gateway(policy=Policy(ports="block", block_size=64))
    with pytest.raises(RestartNeededError) as caught:
        over.modify(policy=Policy(ports="random", block_size=128, filtering="address-dependent"))
    assert caught.value.fields == ("Policy.filtering", "Policy.ports", "Policy.block_size")
    with pytest.raises(RestartNeededError, match=r"Policy\.mapping must stay what it is for each protocol"):
        over.modify(policy=replace(over.policy, udp=Behaviour(mapping="address-and-port-dependent")))


@pytest.mark.parametrize("before, after", [
    (Policy(), Policy(udp=Behaviour(mapping="endpoint-independent"))),  # as it was, in other words
    (Policy(), Policy(filtering="address-and-port-dependent")),
    (Policy(), Policy(icmp=Behaviour(filtering="address-dependent"))),  # for which no index is kept
    (Policy(), Policy(ports="preserve")),
    (Policy(ports="preserve"), Policy()),
    (Policy(), Policy(block_size=64, blocks=2)),  # without blocks nothing depends on it
    (Policy(ports="block", blocks=2), Policy(ports="block", blocks=1)),
    (Policy(pooling="arbitrary"), Policy(pooling="paired")),
])  # fmt: skip
def test_what_no_session_depends_on_may_change(before: Policy, after: Policy) -> None:
    over = gateway(policy=before)
    out(over, 0.0)
    assert over.modify(policy=after) == 0 and over.policy == after
    assert out(over, 1.0) is out(over, 1.0, port=4001) is Verdict.OUTBOUND
    assert broken(over._core.worker_capsule()) is None


def test_every_other_field_may_change() -> None:
    fixed = {"mapping", "filtering", "tcp", "udp", "icmp", "ports", "port_ranges", "host_ports", "block_size"}
    tried = {"blocks", "pooling"}  # above
    values = {
        "parity": True, "hold_down": 5.0, "hairpin": False, "inbound_refresh": False, "mss": 1300, "tcp_pickup": False,
        "icmp_unreachable": False, "icmp_rate": 7, "icmp_queries": "echo", "ip_id": "keep", "reverse_path_filter": False,
        "unsolicited_syn": "icmp", "ip_options": "drop", "link_local": True, "class_e": True, "sessions_per_subscriber": 9,
        "ports_per_subscriber": 9, "new_sessions_per_second": 9, "gateway_new_sessions_per_second": 9, "rearm_at": 0.4,
        "warn_at": 0.5,
    }  # fmt: skip
    assert {item.name for item in fields(Policy)} == fixed | tried | values.keys()
    over = gateway()
    for name, value in values.items():
        over.modify(policy=replace(over.policy, **{name: value}))
        assert getattr(over.policy, name) == value


def test_a_quota_that_comes_counts_the_sessions_that_there_are() -> None:
    over = gateway(timeouts=Timeouts(udp=120))
    for port in range(5):
        out(over, 0.0, port=4000 + port)
    over.modify(policy=Policy(sessions_per_subscriber=3), now=1.0)
    assert len(over.sessions()) == 5
    assert out(over, 2.0, port=5000) is Verdict.DROP_SUBSCRIBER_LIMIT
    assert out(over, 2.0, port=4000) is Verdict.OUTBOUND  # one of those that there are
    assert out(over, 121.0, port=5000) is Verdict.OUTBOUND  # at the limit it looks among its own for dead ones
    assert broken(over._core.worker_capsule()) is None
    over.modify(policy=Policy(), now=122.0)
    for port in range(5):
        assert out(over, 122.0, port=6000 + port) is Verdict.OUTBOUND


def test_a_rate_that_comes_counts_from_then_on() -> None:
    over = gateway()
    assert [out(over, 1.0, port=port) for port in (1, 2)] == [Verdict.OUTBOUND] * 2
    over.modify(policy=Policy(new_sessions_per_second=1, gateway_new_sessions_per_second=2))
    assert [out(over, 1.5, port=port) for port in (3, 4)] == [Verdict.OUTBOUND, Verdict.DROP_RATE_LIMIT]
    assert out(over, 1.5, host=OTHER) is Verdict.OUTBOUND
    assert out(over, 1.5, host="10.0.0.7") is Verdict.DROP_RATE_LIMIT


def test_a_port_rests_as_long_as_it_was_promised() -> None:
    over = gateway(policy=Policy(hold_down=120), timeouts=Timeouts(udp=120))
    out(over, 0.0)
    out(over, 10.0, port=4001)
    over.advance(120.0)  # the first port rests until 240
    over.modify(policy=Policy(hold_down=10), now=121.0)
    over.advance(140.0)  # the second rested from 130 to 140
    assert over.ports()["held_down"].sum() == 1
    over.advance(240.0)
    assert over.ports()["held_down"].sum() == 0


def test_filtering_that_comes_is_asked_of_strangers_alone() -> None:
    over = gateway()
    _, sent = over.translate_one(ether(udp((HOST, 4000), (REMOTE, 53))), Side.INSIDE, 0.0)
    assert sent is not None
    port = int.from_bytes(sent[34:36], "big")

    def back(source: str) -> Verdict:
        return over.translate_one(ether(udp((source, 53), (EIP, port))), Side.OUTSIDE, 1.0)[0]

    assert back("9.9.9.9") is Verdict.INBOUND
    over.modify(policy=Policy(filtering="address-and-port-dependent"))
    assert back("9.9.9.9") is back(REMOTE) is Verdict.INBOUND  # their sessions are there
    assert back("9.9.9.8") is Verdict.DROP_FILTERED


def test_held_syns_are_answered_though_no_more_are_held() -> None:
    over = gateway(policy=Policy(unsolicited_syn="silent"))

    def syn(port: int, now: float) -> None:
        over.translate_one(ether(tcp((REMOTE, port), (EIP, 99), SYN)), Side.OUTSIDE, now)

    syn(1, 0.0)
    over.modify(policy=Policy(unsolicited_syn="icmp"))
    syn(2, 1.0)
    over.modify(policy=Policy())
    syn(3, 2.0)
    over.advance(20.0)
    (answer,) = over.take_generated()
    assert answer.frame[14 + 28 + 20 : 14 + 28 + 22] == (2).to_bytes(2, "big")  # the quoted SYN's source port


def test_a_plane_filters_whatever_the_policy_says() -> None:
    over = gateway()
    over._core.set_reverse_path_filter(True)
    spoofed = ether(udp((OTHER, 53), (EIP, 4000)))
    for policy in (Policy(reverse_path_filter=False), Policy(reverse_path_filter=True)):
        over.modify(policy=policy)
        assert over.translate_one(spoofed, Side.OUTSIDE, 0.0)[0] is Verdict.DROP_SPOOFED
    over._core.set_reverse_path_filter(False)
    over.modify(policy=Policy(reverse_path_filter=False))
    assert over.translate_one(spoofed, Side.OUTSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING


def test_an_entry_that_the_new_policy_bars_is_named() -> None:
    over = Gateway(max_sessions=10, policy=Policy(class_e=True))
    over.add(SnatEntry("240.0.0.0/8", EIP, name="far"))
    with pytest.raises(ConfigurationError, match=r"SnatEntry\.source must be a forwarded.*, in entry 1 'far'"):
        over.modify(policy=Policy())
    assert over.policy.class_e


# ---- one change with the entries -------------------------------------------------------------------------------------


def test_entries_and_settings_change_in_one_moment() -> None:
    over = gateway()
    (snat,) = over.entries()
    out(over, 0.0)
    policy = Policy(sessions_per_subscriber=1, hairpin=False)
    plan = over.plan([
        Remove(snat, drain=True),
        Modify(policy=policy, timeouts=Timeouts(udp=400)),
        Add(DnatEntry("203.0.113.9", 80, OTHER, 80)),
    ])  # fmt: skip
    assert (plan.kept, plan.drained, plan.ended) == (0, 1, 0) and over.policy == Policy()
    (added,) = over.apply(plan, now=1.0).added
    assert (over.policy, over.timeouts, over.entries()) == (policy, Timeouts(udp=400), [added])
    with pytest.raises(Error, match="have changed"):
        over.apply(plan)


def test_an_apply_that_fails_changes_no_setting() -> None:
    over = gateway()
    _, sent = over.translate_one(ether(udp((HOST, 4000), (REMOTE, 53))), Side.INSIDE, 0.0)
    assert sent is not None
    port = int.from_bytes(sent[34:36], "big")
    plan = over.plan([Modify(policy=Policy(hairpin=False)), Add(DnatEntry(EIP, port, OTHER, 80, protocol="udp"))])
    with pytest.raises(ConfigurationError, match="is held by the mapping"):
        over.apply(plan)
    assert over.policy == Policy() and len(over.entries()) == 1
    over.end_all()


def test_the_bind_mode_s_effect_is_planned() -> None:
    over = gateway(pool=[Eip(EIP, private_ip="172.16.0.9")], eip_bind_mode="MULTI_BINDED")
    out(over, 0.0)
    plan = over.plan([Modify(eip_bind_mode="NAT")])
    assert (plan.kept, plan.ended) == (0, 1) and over.eip_bind_mode == "MULTI_BINDED"
    assert over.apply(plan).ended == 1 and over.eip_bind_mode == "NAT"


def test_a_modification_has_something_once() -> None:
    over = gateway()
    with pytest.raises(ConfigurationError, match="give policy, timeouts or eip_bind_mode"):
        over.modify()
    with pytest.raises(ConfigurationError, match="one Modify at most, got 2"):
        over.plan([Modify(timeouts=Timeouts()), Modify(policy=Policy())])
    with pytest.raises(ConfigurationError, match="policy must be a Policy, got 'random'"):
        over.modify(policy="random")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="timeouts must be a Timeouts, got 5"):
        Modify(timeouts=5)  # type: ignore[arg-type]


# ---- the log ---------------------------------------------------------------------------------------------------------


def test_the_log_says_from_when_on_time_outs_hold() -> None:
    over, sink = gateway(timeouts=Timeouts(udp=120)), FactsSink()
    (snat,) = over.entries()
    log = over.start_session_log(sink)
    out(over, 0.0)
    over.remove(snat, drain=True)  # what drains changes no generation
    over.modify(timeouts=Timeouts(udp=900, tcp_established=8000), policy=Policy(ports="preserve"), now=7.0)
    over.modify(timeouts=Timeouts(udp=800), now=8.0)
    log.stop()
    rows = sink.records[sink.records["kind"] == SETTING]
    told = {code: [] for code in (1, 2, facts.PORTS_CODE)}  # type: dict[int, list[tuple[int, int]]]
    for row in rows:
        if int(row["session"]) in told:
            told[int(row["session"])].append((int(row["bytes_from_pub"]), int(row["start_time"])))
    times = [(120_000_000, 0), (900_000_000, 7_000_000), (800_000_000, 8_000_000)]
    assert told == {1: times, 2: [(7_440_000_000, 0), (8_000_000_000, 7_000_000), (7_440_000_000, 8_000_000)],
                    facts.PORTS_CODE: [(0, 0), (1, 7_000_000)]}  # fmt: skip
    settled = facts.NO_FACTS.after(sink.records).settings
    assert facts.longest_idle(settled) == 8_000_000_000  # a look-back reaches as far as any of them
    over.close()
