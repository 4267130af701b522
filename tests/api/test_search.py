"""Searches of the tables: with several workers, while sessions come and go, and what they take from packets."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from natcore import ConfigurationError, Gateway, Side, SnatEntry, format_ipv4
from natcore.testing.bulk import UDP, packets
from support.frames import EIP, HOST, REMOTE, udp
from support.gateways import hosts_of, made

INSIDE = Side.INSIDE


def found(gateway: Gateway, **criteria: object) -> list[str]:
    rows = gateway.find_sessions(**criteria)  # type: ignore[arg-type]
    return sorted(format_ipv4(row["inside_ip"]) for each in rows for row in each)


def test_the_sessions_of_every_worker_are_found() -> None:
    with made(workers=2) as gateway:
        hosts = [host for worker in range(2) for host in hosts_of(gateway, worker, 3)]
        for host in hosts:
            gateway.translate_one(udp(host), INSIDE, now=1.0)
        assert found(gateway) == sorted(hosts)
        for host in hosts:
            assert found(gateway, subscriber=host) == [host]
        assert sorted(format_ipv4(row["inside_ip"]) for row in gateway.mappings()) == sorted(hosts)


def test_what_is_found_is_what_sessions_has() -> None:
    with Gateway(seed=7, max_sessions=5000) as gateway:
        gateway.add(SnatEntry("10.0.0.0/8", pool=EIP))
        for port in range(1, 3000, 7):
            gateway.translate_one(udp(HOST, port), INSIDE, now=1.0)
        rows = np.concatenate(list(gateway.find_sessions(protocol="udp")))
        for name in rows.dtype.names:
            assert (rows[name] == gateway.sessions()[name]).all()


def test_a_dead_session_and_an_ended_one_are_not_found() -> None:
    with made() as gateway:
        gateway.translate_one(udp(HOST, 1), INSIDE, now=1.0)
        gateway.translate_one(udp(HOST, 2), INSIDE, now=200.0)
        gateway.end(subscriber=f"{HOST}:2")
        assert found(gateway) == [HOST]
        gateway.advance(302.0)
        assert found(gateway) == []


def test_rows_meet_the_criteria_while_slots_are_used_again() -> None:
    """A line changes between the look without the lock and the copy with it: never is a row of something else given."""
    with Gateway(seed=7, max_sessions=4096) as gateway:
        gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.0/28"))
        ended = threading.Event()

        def churn() -> None:
            now, first = 1.0, 0
            while not ended.is_set():
                numbers = np.arange(first, first + 4096, dtype=np.uint64)
                frames, lengths = packets(UDP, 0x0A000000 + (numbers & np.uint64(0xFFFF)), 1000, 0xC6336407, 53)
                gateway.translate(frames, lengths, INSIDE, now=now)
                gateway.end_all()
                now, first = now + 1, first + 4096

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            rows = 0
            for _ in range(200):
                for each in gateway.find_sessions(subscriber="10.0.16.0/20", remote=f"{REMOTE}:53"):
                    rows += len(each)
                    assert ((each["inside_ip"] & 0xFFFFF000) == 0x0A001000).all()
                    assert (each["remote_ip"] == 0xC6336407).all() and (each["remote_port"] == 53).all()
                for each in gateway.find_mappings(subscriber="10.0.32.0/20"):
                    assert ((each["inside_ip"] & 0xFFFFF000) == 0x0A002000).all()
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("criteria", "said"),
    [
        ({"subscriber": None}, "subscriber must be an IPv4 address"),
        ({"remote": "198.51.100.7:"}, "remote must be an address or a prefix"),
        ({"outside": "2001:db8::1"}, "outside must be an address or a prefix"),
        ({"protocol": None}, "protocol must be"),
        ({"entry": 0}, "entry must be a whole number between 1"),
        ({"entry": "office"}, "entry must be a whole number"),
    ],
)
def test_a_criterion_that_is_none_is_refused(criteria: dict[str, object], said: str) -> None:
    with made() as gateway, pytest.raises(ConfigurationError, match=said):
        gateway.find_sessions(**criteria)  # type: ignore[arg-type]


def test_end_takes_prefixes_ports_and_entries() -> None:
    with Gateway(seed=7, max_sessions=100) as gateway:
        one = gateway.add(SnatEntry("10.0.0.0/16", pool=EIP))
        gateway.add(SnatEntry("10.1.0.0/16", pool="203.0.113.2"))
        for host in ("10.0.0.5", "10.0.0.6", "10.1.0.7"):
            for port in (1000, 2000):
                gateway.translate_one(udp(host, port), INSIDE, now=1.0)
        assert gateway.end(subscriber="10.0.0.5:1000") == 1
        assert gateway.end(subscriber="10.0.0.0/24", remote=f"{REMOTE}:54") == 0
        assert gateway.end(entry=one, subscriber="0.0.0.0/0:2000") == 2
        assert gateway.end(entry=one.id) == 1
        assert found(gateway) == ["10.1.0.7", "10.1.0.7"]
