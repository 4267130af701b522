"""Events: who ran out of what, once each until they are read, and a descriptor to wait for them."""

from __future__ import annotations

import select
from ipaddress import IPv4Address

from natcore import Event, Side
from natcore.events import Digest
from natcore.testhooks import wrappers
from natcore.testing import craft
from support.frames import HOST, REMOTE, Talk, gateway, one_port, udp

INSIDE = Side.INSIDE


def test_events_are_once_each_with_a_count() -> None:
    over = gateway(policy=one_port(), max_sessions=3)
    over.translate_one(udp(), INSIDE, 0.0)
    for now in (1.0, 2.0, 3.0):
        over.translate_one(udp("10.0.0.6", dport=99), INSIDE, now)
    over.translate_one(udp("10.0.0.7"), INSIDE, 4.0)
    events = over.take_events()
    assert events == [
        Event(1.0, "ports-exhausted", IPv4Address("10.0.0.6"), IPv4Address(REMOTE), 99, 17, 3, "pool"),
        Event(4.0, "ports-exhausted", IPv4Address("10.0.0.7"), IPv4Address(REMOTE), 53, 17, 1, "pool"),
    ]
    assert over.take_events() == []
    over.translate_one(udp(dport=1), INSIDE, 5.0)
    over.translate_one(udp(dport=2), INSIDE, 5.0)
    over.translate_one(udp(dport=3), INSIDE, 5.0)
    assert [(event.reason, event.port) for event in over.take_events()] == [("session-limit", 3)]


def test_events_can_be_waited_for() -> None:
    over = gateway(policy=one_port())
    over.translate_one(udp(), INSIDE, 0.0)
    assert select.select([over], [], [], 0)[0] == []
    for now in (1.0, 2.0):
        over.translate_one(udp("10.0.0.6"), INSIDE, now)
        assert select.select([over], [], [], 0)[0] == [over]
    over.take_events()
    assert select.select([over], [], [], 0)[0] == []


def test_a_limit_from_outside_is_an_event_of_the_one_behind_the_mapping() -> None:
    made = Talk(gateway())
    wrappers.preset_caps(made.gateway._core.worker_capsule(), 0, 0)
    made.out()
    made.back(source="198.51.100.99", sport=7)
    assert made.gateway.take_events() == [
        Event(0.0, "outside-limit", IPv4Address(HOST), IPv4Address("198.51.100.99"), 7, 17, 1, "opened-outside")
    ]


def test_a_flood_of_refusals_loses_no_other_event_and_counts_every_one() -> None:
    """Whoever finds no place in the list is counted under the reason alone."""
    over = gateway(policy=one_port())
    over.translate_one(udp("10.9.9.9"), INSIDE, 0.0)  # has the port
    subscribers = [f"10.0.{number // 250}.{1 + number % 250}" for number in range(5000)]
    for subscriber in subscribers:
        over.translate_one(craft.ether(craft.udp((subscriber, 5000), (REMOTE, 53))), INSIDE, 1.0)
    events = over.take_events()
    assert sum(event.count for event in events) == 5000 == over.counters()["dropped_ports_exhausted"]
    (rest,) = [event for event in events if event.subscriber is None]
    assert (rest.reason, rest.destination) == ("ports-exhausted", None) and rest.count > 3900
    assert over.counters()["events_lost"] == 0 and len(events) <= 1025
    over.translate_one(udp(), INSIDE, 2.0)
    assert [event.count for event in over.take_events()] == [1]


def test_a_subscriber_s_refusals_are_told_once_a_minute_with_their_sum() -> None:
    """60 subscribers over their quota for 150 s, looked at five times a second: three lines each hold every refusal."""
    digest, told = Digest(), list[Event]()
    hosts = [IPv4Address(0x0A000000 + number) for number in range(60)]
    for look in range(750):
        events = [Event(look / 5, "subscriber-limit", host, IPv4Address(REMOTE), 53, 17, 7, "blocks") for host in hosts]
        told += digest.add(events, look / 5)
    assert len(told) == 60 * 3
    told += digest.rest()
    assert sum(event.count for event in told) == 750 * 60 * 7
    assert {event.subscriber for event in told} == set(hosts)
    assert digest.add([], 1000.0) == [] and digest.add(events[:1], 1000.0) == events[:1]  # quiet for a minute: at once


def test_a_digest_is_bounded_and_its_sum_is_not() -> None:
    digest, told = Digest(most=10), list[Event]()
    for look in range(3):
        for number in range(1000):
            event = Event(0.0, "rate-limit", IPv4Address(number), IPv4Address(REMOTE), 53, 17, 1)
            told += digest.add([event], 30.0 * look)
    told += digest.rest()
    assert sum(event.count for event in told) == 3000 and len(told) < 50
    assert any(event.subscriber is None for event in told)
