"""Rules of the session log's contract that have no test of their own elsewhere: R2, R5, R7, R11."""

from __future__ import annotations

import pytest

from natcore import ConfigurationError, DnatEntry, Eip, Gateway, NoNatEntry, Policy, Side, Timeouts, Verdict
from natcore.dtypes import OPENED_OUTSIDE, WINDOW
from natcore.sessionlog.collector import Collector
from natcore.sinks import MemorySink
from support.frames import Talk, gateway, one_port, udp
from support.log_fakes import FakeClock, ScriptedSink


def windows_of(over: Gateway):
    rows = over.take_records()
    return rows[rows["kind"] == WINDOW]


def test_R2_a_row_is_at_its_destination_within_five_minutes_of_its_windows_end():
    over, clock = gateway(timeouts=Timeouts(udp=2000.0)), FakeClock(0.0)
    collector = Collector(over._core.log_rows, instance="i", vpc_id="v", threads=False, clock=clock, wall=clock)
    sink = ScriptedSink(clock=clock, batch_seconds=None)  # DeliveryPolicy.linger
    log = collector.start(sink)
    talk = Talk(over)
    arrived = {}
    for second in range(0, 2000, 10):
        talk.now = clock.now = float(second)
        talk.out()
        over.advance(clock.now)
        collector.step()
        log._send()
        for batch in sink.taken:
            for row in batch.records:
                arrived.setdefault((int(row["start_time"]), int(row["end_time"])), clock.now)
        sink.taken.clear()
    assert len(arrived) == 3
    assert all(0 <= at - end / 1e6 <= 300 for (_, end), at in arrived.items())


def test_R5_sessions_of_dnat_and_no_nat_entries_are_not_captured():
    over = gateway()
    over.add(DnatEntry("203.0.113.1", 8443, "10.0.0.5", 443, protocol="udp"))
    over.add(NoNatEntry("10.0.0.0/8", "192.168.0.0/16"))
    inbound = udp("198.51.100.7", 5000, "203.0.113.1", 8443)
    assert over.translate_one(inbound, Side.OUTSIDE, 0.0)[0] is Verdict.INBOUND
    assert over.translate_one(udp(destination="192.168.0.1"), Side.INSIDE, 0.0)[0] is Verdict.UNTRANSLATED
    assert over.counters()["sessions"] == 2
    over.end_all()
    assert len(over.take_records(events=True)) == 0


def test_R5_of_a_hairpin_the_initiators_session_is_captured_and_the_responders_is_not():
    over = gateway(policy=Policy(filtering="endpoint-independent"))
    responder, initiator = Talk(over, host="10.0.0.6"), Talk(over, host="10.0.0.5")
    responder.out()
    address, port = responder.outside
    frame = udp("10.0.0.5", 7000, str(address), port)
    assert over.translate_one(frame, Side.INSIDE, 1.0)[0] is Verdict.HAIRPIN
    over.end_all(now=2.0)
    rows = windows_of(over)
    assert sorted(rows["pri_ip"].tolist()) == [0x0A000005, 0x0A000006]  # the second: its session of before
    hairpin = rows[rows["pri_ip"] == 0x0A000005][0]
    assert (hairpin["pub_port"], hairpin["pkts_from_vpc"], hairpin["pkts_from_pub"]) == (port, 1, 0)
    assert initiator.host == "10.0.0.5"


def test_R5_a_session_opened_from_outside_over_an_snat_mapping_is_captured():
    over = gateway()
    talk = Talk(over)
    talk.out()
    assert talk.back(source="198.51.100.99", sport=9) is Verdict.INBOUND
    over.end_all()
    rows = windows_of(over)
    opened = rows[rows["flags"] == OPENED_OUTSIDE]
    assert len(rows) == 2 and len(opened) == 1
    assert (opened["pub_ip"][0], opened["pub_port"][0]) == (0xC6336463, 9)
    assert (opened["pkts_from_pub"][0], opened["pkts_from_vpc"][0]) == (1, 0)


def test_R7_the_bind_mode_changes_from_multi_binded_to_nat_only():
    over = gateway(pool=[Eip("203.0.113.1", private_ip="172.16.10.13")], eip_bind_mode="MULTI_BINDED")
    over.modify(eip_bind_mode="NAT")
    assert over.eip_bind_mode == "NAT"
    with pytest.raises(ConfigurationError, match="only MULTI_BINDED can be changed"):
        over.modify(eip_bind_mode="MULTI_BINDED")


def test_R11_ipv6_leaves_no_row():
    over = gateway(policy=one_port())
    frame = bytes.fromhex("020000000001020000000002") + b"\x86\xdd" + bytes([0x60]) + bytes(39)
    assert over.translate_one(frame, Side.INSIDE, 0.0)[0] is Verdict.DROP_UNSUPPORTED
    sink = MemorySink()
    over.start_session_log(sink)
    over.translate_one(frame, Side.INSIDE, 0.0)
    over.close()
    assert not sink.batches
