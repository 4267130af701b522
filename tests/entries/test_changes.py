"""Changing entries while packets flow: planned, atomic, and unnoticed by the sessions that they do not concern."""

from __future__ import annotations

import ipaddress

import pytest

from natcore import (
    Add,
    ConfigurationError,
    DnatEntry,
    Eip,
    Error,
    Gateway,
    NoNatEntry,
    Policy,
    Remove,
    Replace,
    Side,
    SnatEntry,
    Verdict,
)  # fmt: skip
from support.frames import EIP, HOST, REMOTE, Talk, gateway, one_port, parsed, tcp, udp

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
SECOND = "203.0.113.2"
WEB = DnatEntry(EIP, 8443, HOST, 443)


def two_prefixes() -> tuple[Gateway, Talk, Talk]:
    """Two entries with a session each."""
    over = gateway(source="10.0.0.0/24")
    over.add(SnatEntry("10.0.1.0/24", pool=SECOND))
    talks = Talk(over), Talk(over, host="10.0.1.5")
    assert [talk.out() for talk in talks] == [Verdict.OUTBOUND] * 2
    return over, *talks


def state_of(over: Gateway) -> tuple[object, ...]:
    """All that a refused change must leave as it was."""
    rows = [over.sessions(), over.mappings(), over.ports()]
    return [(row.id, row.entry) for row in over.entries()], *(row.tobytes() for row in rows)


def test_a_plan_says_what_is_kept_drained_and_ended_and_changes_nothing() -> None:
    over, _, _ = two_prefixes()
    first, second = over.entries()
    before = state_of(over)
    plan = over.plan([Remove(first), Remove(second, drain=True)])
    assert (plan.kept, plan.drained, plan.ended) == (0, 1, 1)
    plan = over.plan([Remove(first), Add(WEB)])
    assert (plan.kept, plan.drained, plan.ended) == (1, 0, 1)
    assert str(plan) == "2 changes: 1 sessions kept, 0 drained, 1 ended"
    assert state_of(over) == before


def test_apply_does_what_the_plan_said() -> None:
    over, gone, stays = two_prefixes()
    first, second = over.entries()
    applied = over.apply(over.plan([Remove(first), Add(WEB)]), now=7.0)
    assert applied.ended == 1 and [row.entry for row in applied.added] == [WEB]
    assert over.entries() == [second, *applied.added]
    assert gone.back() is Verdict.DROP_NO_MAPPING and stays.back() is Verdict.INBOUND
    rows = over.take_records(events=True)
    assert [int(row["end_time"]) for row in rows if row["kind"] == 2] == [7_000_000]


def test_a_plan_is_good_for_the_entries_that_it_saw() -> None:
    over, _, _ = two_prefixes()
    plan = over.plan([Add(WEB)])
    over.add(NoNatEntry("10.0.0.0/24", "10.9.0.0/16"))
    with pytest.raises(Error, match="entries have changed"):
        over.apply(plan)


def test_nothing_changes_when_one_of_several_changes_is_refused() -> None:
    over, _, _ = two_prefixes()
    first, _ = over.entries()
    before = state_of(over)
    for wrong in (Add(SnatEntry("10.0.1.0/24", pool="203.0.113.9")), Add(DnatEntry(EIP, 8443, "10.0.0.9", 1))):
        with pytest.raises(ConfigurationError):
            over.plan([Remove(first), Add(WEB), wrong])
        assert state_of(over) == before


def test_a_port_held_by_a_live_mapping_names_the_holder_and_changes_nothing() -> None:
    over = gateway(policy=one_port(4000))
    Talk(over).out()
    before = state_of(over)
    held = DnatEntry(EIP, (3990, 4010), "10.0.0.9", (3990, 4010), protocol="any")
    with pytest.raises(ConfigurationError, match=r"port 4000 is held by the mapping of 10\.0\.0\.5:5000"):
        over.apply(over.plan([Add(WEB), Add(held)]))
    assert state_of(over) == before
    assert over.translate_one(tcp("S", REMOTE, 9, EIP, 8443), OUTSIDE, 0.0)[0] is Verdict.DROP_NO_MAPPING
    over.add(DnatEntry(EIP, (3990, 4010), "10.0.0.9", (3990, 4010), protocol="tcp"))  # TCP's port is free


def test_a_plan_says_beforehand_that_a_port_is_held() -> None:
    over = gateway(policy=one_port(4000))
    talk = Talk(over)
    talk.out()
    before = state_of(over)
    held = DnatEntry(EIP, (3990, 4010), "10.0.0.9", (3990, 4010), protocol="any")
    plan = over.plan([Add(WEB), Add(held)])
    assert "port 4000 is held by the mapping of 10.0.0.5:5000" in plan.held and plan.held in str(plan)
    assert state_of(over) == before and over.plan([Add(WEB)]).held == ""
    over.end_all()
    assert over.plan([Add(WEB), Add(held)]).held == ""


def test_a_plan_knows_the_ports_that_leaving_entries_give_back_and_draining_ones_keep() -> None:
    over = gateway(policy=one_port(4000))
    ports = over.add(DnatEntry(EIP, (100, 200), HOST, (100, 200)))
    other = over.add(DnatEntry(EIP, (201, 300), HOST, (201, 300)))
    talk = over.translate_one(tcp("S", REMOTE, 9, EIP, 150), OUTSIDE, 0.0)[0]
    assert talk is Verdict.INBOUND
    wide = Add(DnatEntry(EIP, (50, 350), "10.0.0.9", (50, 350)))
    assert over.plan([Remove(ports), Remove(other), wide]).held == ""
    drains = over.plan([Remove(ports, drain=True), Remove(other), wide])
    assert "port 100 is held by an entry that drains" in drains.held
    with pytest.raises(ConfigurationError, match="port 100 is held by an entry that drains"):
        over.apply(drains)
    assert over.apply(over.plan([Remove(ports), Remove(other), wide])).ended == 1


def test_a_dead_mapping_holds_no_port() -> None:
    over = gateway(policy=one_port(4000))
    Talk(over).out()
    entry = DnatEntry(EIP, 4000, "10.0.0.9", 80, protocol="udp")
    over.apply(over.plan([Add(entry)]), now=300.0)
    verdict, sent = over.translate_one(udp(REMOTE, 9, EIP, 4000), OUTSIDE, 300.0)
    assert verdict is Verdict.INBOUND and parsed(sent).dst == "10.0.0.9"


@pytest.mark.parametrize("other", [
    DnatEntry(EIP, 8443, "10.0.0.9", 1),
    DnatEntry(EIP, (8400, 8500), "10.0.0.9", (1, 101)),
    DnatEntry(EIP, "any", "10.0.0.9", "any"),
    DnatEntry(EIP, 8443, "10.0.0.9", 1, protocol="any"),
])  # fmt: skip
def test_overlapping_entries_are_refused_by_the_names_of_both(other: DnatEntry) -> None:
    over = gateway()
    over.add(WEB)
    with pytest.raises(ConfigurationError, match=r"must not overlap.*entry 3 .*and entry 2 "):
        over.add(other)
    over.add(DnatEntry(EIP, 8443, "10.0.0.9", 1, protocol="udp"))


def test_a_whole_address_in_a_pool_is_refused_by_the_names_of_both() -> None:
    over = gateway()
    with pytest.raises(ConfigurationError, match=r"1:1 entry.*entry 2 .*pool of entry 1 \(10\.0\.0\.0/8\)"):
        over.add(DnatEntry(EIP, "any", "10.0.0.9", "any", protocol="any"))


def test_removing_ends_at_once_with_the_records_written() -> None:
    over = gateway()
    talk = Talk(over)
    talk.out(load=b"x" * 72)
    (entry,) = over.entries()
    assert over.remove(entry, now=3.0) == 1
    window, end = (row for row in over.take_records(events=True) if row["kind"] != 1)
    assert (int(window["kind"]), int(end["kind"])) == (0, 2)
    assert int(window["end_time"]) == int(end["end_time"]) == 3_000_000
    assert talk.back() is Verdict.DROP_NO_MAPPING and talk.out() is Verdict.DROP_NO_SNAT_ENTRY


def test_a_draining_entry_lets_its_sessions_end_and_opens_none() -> None:
    over = gateway()
    talk = Talk(over)
    talk.out()
    (entry,) = over.entries()
    assert over.remove(entry, drain=True) == 0
    assert over.entries() == []
    assert talk.back() is Verdict.INBOUND and talk.out() is Verdict.OUTBOUND
    assert Talk(over, sport=5001).out() is Verdict.DROP_NO_SNAT_ENTRY
    over.advance(300.0)
    talk.now = 300.0
    assert talk.out() is Verdict.DROP_NO_SNAT_ENTRY


def test_a_draining_entry_takes_nothing_new_from_outside_and_gives_other_entries_their_hosts() -> None:
    over = gateway(pool="203.0.113.1")
    talk = Talk(over)
    talk.out()
    (entry,) = over.entries()
    [mapping] = over.mappings()
    over.add(SnatEntry(f"{HOST}/32", pool="203.0.113.9"))
    over.remove(entry, drain=True)
    stranger = udp("198.51.100.99", 9, EIP, int(mapping["outside_port"]))
    assert over.translate_one(stranger, OUTSIDE, 1.0)[0] is Verdict.DROP_NO_MAPPING
    assert talk.back() is Verdict.INBOUND and talk.out() is Verdict.OUTBOUND
    verdict, frame = over.translate_one(udp(HOST, 5000, "198.51.100.77", 53), INSIDE, 2.0)
    assert verdict is Verdict.OUTBOUND and parsed(frame).src == "203.0.113.9"
    for turn in range(3, 1000, 100):  # the new mapping goes on, the old one drains
        over.translate_one(udp(HOST, 5000, "198.51.100.77", 53), INSIDE, float(turn))
        over.translate_one(stranger, OUTSIDE, float(turn))
    assert [str(row.entry.source) for row in over.entries()] == [f"{HOST}/32"]
    assert set(over.mappings()["outside_ip"]) == {0xCB007109}


def test_a_connection_of_a_draining_entry_does_not_begin_anew() -> None:
    over = gateway()
    for flags, side in (("S", INSIDE), ("SA", OUTSIDE), ("A", INSIDE), ("FA", INSIDE), ("FA", OUTSIDE)):
        if side is INSIDE:
            verdict, sent = over.translate_one(tcp(flags, HOST, 5000), INSIDE, 0.0)
            port = parsed(sent).sport
        else:
            verdict, _ = over.translate_one(tcp(flags, REMOTE, 443, EIP, port), OUTSIDE, 0.0)
        assert verdict in (Verdict.OUTBOUND, Verdict.INBOUND)
    over.remove(over.entries()[0], drain=True)
    assert over.translate_one(tcp("S", HOST, 5000), INSIDE, 1.0)[0] is Verdict.DROP_NO_MAPPING
    assert over.translate_one(tcp("S", REMOTE, 443, EIP, port), OUTSIDE, 1.0)[0] is Verdict.DROP_NO_MAPPING


def test_a_drained_dnat_entry_gives_its_port_back() -> None:
    over = gateway()
    entry = over.add(WEB)
    over.translate_one(tcp("S", REMOTE, 9, EIP, 8443), OUTSIDE, 0.0)
    over.remove(entry, drain=True)
    with pytest.raises(ConfigurationError, match="drains"):
        over.add(WEB)
    over.advance(30.0)  # unreplied
    over.add(WEB)


def test_replacing_keeps_the_handle_and_the_sessions_that_still_fit() -> None:
    over = gateway(pool=[EIP], source="10.0.0.0/16")
    near, far = Talk(over), Talk(over, host="10.0.9.5")
    near.out()
    far.out()
    (entry,) = over.entries()
    narrower = SnatEntry("10.0.0.0/24", pool=[EIP, SECOND])
    plan = over.plan([Replace(entry, narrower)])
    assert (plan.kept, plan.ended) == (1, 1)
    outside = near.outside
    assert over.replace(entry, narrower) == 1
    assert over.entries() == [entry] and entry.entry == narrower and entry.id == 1
    assert near.out() is Verdict.OUTBOUND and near.outside == outside
    assert far.out() is Verdict.DROP_NO_SNAT_ENTRY


def test_a_dnat_entry_may_be_replaced_on_its_own_port() -> None:
    over = gateway()
    entry = over.add(WEB)
    over.replace(entry, DnatEntry(EIP, 8443, "10.0.0.9", 443))
    verdict, sent = over.translate_one(tcp("S", REMOTE, 9, EIP, 8443), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND and parsed(sent).dst == "10.0.0.9"


def test_a_refused_replacement_leaves_the_old_entry_working() -> None:
    over = gateway(policy=one_port(4000))
    Talk(over, sport=5000).out("S")
    entry = over.add(WEB)
    before = state_of(over)
    with pytest.raises(ConfigurationError, match="port 4000 is held"):
        over.replace(entry, DnatEntry(EIP, 4000, "10.0.0.9", 443))
    assert state_of(over) == before
    verdict, sent = over.translate_one(tcp("S", REMOTE, 9, EIP, 8443), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND and parsed(sent).dst == HOST


def test_sessions_not_concerned_never_notice() -> None:
    over, talk, _ = two_prefixes()
    first, second = over.entries()
    mine = [row.tobytes() for row in over.sessions() if str(talk.outside[1]) == str(row["outside_port"])]
    web = over.add(WEB)
    over.replace(web, DnatEntry(EIP, 8444, "10.0.0.9", 443))
    over.add(NoNatEntry("10.0.1.0/24", "10.9.0.0/16"))
    over.remove(second)
    over.remove(web)
    assert [row.tobytes() for row in over.sessions()] == mine
    outside = talk.outside
    assert talk.back() is Verdict.INBOUND and talk.out() is Verdict.OUTBOUND and talk.outside == outside
    assert over.entries()[0] is first


@pytest.mark.parametrize("changes", [[None], ["x"], [7]])
def test_only_changes_are_planned(changes: list[object]) -> None:
    with pytest.raises(ConfigurationError, match="Add, Remove, Replace and Modify"):
        gateway().plan(changes)  # type: ignore[arg-type]


def test_an_entry_is_changed_once_in_a_plan() -> None:
    over = gateway()
    (entry,) = over.entries()
    with pytest.raises(ConfigurationError, match="must change each entry once"):
        over.plan([Remove(entry), Remove(entry)])


def test_a_dnat_entry_may_name_the_eip_of_a_pool() -> None:
    over = gateway(pool=Eip(EIP, private_ip="172.16.0.9"), policy=Policy())
    over.add(WEB)
    verdict, sent = over.translate_one(tcp("S", REMOTE, 9, "172.16.0.9", 8443), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND and (parsed(sent).dst, parsed(sent).dport) == (HOST, 443)


def test_a_port_may_go_from_one_entry_to_another_in_one_change() -> None:
    over = gateway()
    web = over.add(WEB)
    over.apply(over.plan([Remove(web), Add(DnatEntry(EIP, (8440, 8450), "10.0.0.9", (1, 11)))]))
    verdict, sent = over.translate_one(tcp("S", REMOTE, 9, EIP, 8443), OUTSIDE, 0.0)
    assert verdict is Verdict.INBOUND and (parsed(sent).dst, parsed(sent).dport) == ("10.0.0.9", 4)


def test_a_dnat_entry_follows_its_eip_into_a_pool_and_out_of_it() -> None:
    over = gateway(source="10.0.1.0/24", pool=SECOND)
    over.add(WEB)
    for change, wire in ((True, "172.16.0.9"), (False, EIP)):
        if change:
            snat = over.add(SnatEntry("10.0.0.0/24", pool=Eip(EIP, private_ip="172.16.0.9")))
        else:
            over.remove(snat)
        verdict, sent = over.translate_one(tcp("S", REMOTE, 9, wire, 8443), OUTSIDE, 0.0)
        assert verdict is Verdict.INBOUND and (parsed(sent).dst, parsed(sent).dport) == (HOST, 443)
        assert {int(row["outside_ip"]) for row in over.sessions()} == {int(ipaddress.IPv4Address(wire))}


def test_a_plan_counts_no_dead_sessions_and_a_drained_entry_is_gone_when_its_last_session_died() -> None:
    over = gateway()
    web = over.add(WEB)
    over.translate_one(tcp("S", REMOTE, 9, EIP, 8443), OUTSIDE, 0.0)
    over.remove(web, drain=True)
    plan = over.plan([Add(DnatEntry(SECOND, 1, HOST, 1))])
    over.apply(plan, now=30.0)  # unreplied
    assert over.plan([Add(WEB)]).kept == 0
    over.apply(over.plan([Add(WEB)]))


def test_a_refused_change_leaves_ports_at_rest() -> None:
    over = gateway(policy=Policy(port_ranges=((4000, 4001),), ports="preserve"))
    Talk(over, sport=4000).out()
    over.advance(300.0)
    for space in ("", "S"):
        talk = Talk(over, sport=4001)
        talk.now = 300.0
        talk.out(space)
    with pytest.raises(ConfigurationError, match="port 4001 is held"):
        over.apply(over.plan([Add(DnatEntry(EIP, 4000, HOST, 80, protocol="any")), Add(DnatEntry(EIP, 4001, HOST, 1))]))
    other = Talk(over, host="10.0.0.6", sport=4000)
    other.now = 300.0
    assert other.out() is Verdict.DROP_PORTS_EXHAUSTED


def test_a_refused_change_leaves_each_address_its_eip_and_a_change_gives_it_a_new_one_with_its_entry() -> None:
    over = gateway()
    assert Talk(over, sport=4000).out() is Verdict.OUTBOUND
    held = one_port_of(over)
    over.add(DnatEntry("172.16.0.9", 80, HOST, 80))
    (first, _) = over.entries()
    pool = [Eip(EIP), Eip("203.0.113.9", private_ip="172.16.0.9")]
    shared = Replace(first, SnatEntry("10.0.0.0/16", pool=pool))
    with pytest.raises(ConfigurationError, match=f"port {held} is held"):
        over.apply(over.plan([shared, Add(DnatEntry(EIP, held, "10.0.0.9", 1, protocol="any"))]))
    assert eips_of(over)["172.16.0.9"] == "172.16.0.9"
    over.apply(over.plan([shared]))
    assert eips_of(over)["172.16.0.9"] == "203.0.113.9"


def one_port_of(over: Gateway) -> int:
    """The outside port of its only mapping."""
    (port,) = over.mappings()["outside_port"]
    return int(port)


def eips_of(over: Gateway) -> dict[str, str]:
    """The EIP of each outside address."""
    return {
        str(ipaddress.IPv4Address(int(row["outside_ip"]))): str(ipaddress.IPv4Address(int(row["eip"])))
        for row in over.ports()
    }


def test_a_subscriber_never_draws_from_an_address_that_left_the_pool() -> None:
    third = "203.0.113.3"
    over = gateway(source="10.0.0.0/24", pool=[EIP], policy=one_port(pooling="paired-soft"))
    (entry,) = over.entries()
    talks = [Talk(over, sport=5000 + n) for n in range(4)]
    talks[0].out()
    over.replace(entry, SnatEntry("10.0.0.0/24", pool=[EIP, SECOND]))
    talks[1].out()
    over.add(SnatEntry("10.0.1.0/24", pool=[EIP]))
    over.replace(entry, SnatEntry("10.0.0.0/24", pool=[SECOND, third]))
    over.advance(121.0)  # the first one's port has rested
    talks[2].now = 121.0
    assert talks[2].out() is Verdict.OUTBOUND and talks[2].outside[0] == third
