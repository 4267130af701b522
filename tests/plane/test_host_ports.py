"""Sets of ports, the host's sockets as the kernel lists them, and the ports that the kernel is not to choose."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import ConfigurationError, Policy
from natcore.demo.namespaces import Network
from natcore.plane import host_ports
from natcore.plane.host_ports import ALL, TCP, UDP, HostPorts, ports_in, ranges_of, reserve
from support.netns import at, needs_root

FOLDER = Path("/proc/thread-self/net")
RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


@given(st.sets(st.integers(0, 65535), max_size=50))
def test_a_set_of_ports_is_its_ranges(ports: set[int]) -> None:
    found = ranges_of(ports_in((port, port) for port in ports))
    assert {port for first, last in found for port in range(first, last + 1)} == ports
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(found))


def test_all_and_no_ports_are_one_range_and_none() -> None:
    assert ranges_of(ALL) == [(0, 65535)] and ranges_of(0) == []


def test_sockets_that_strangers_reach_are_found_with_their_process() -> None:
    with ExitStack() as stack:
        made = {}
        for name, kind, family, address in (
            ("tcp", socket.SOCK_STREAM, socket.AF_INET, "0.0.0.0"),
            ("tcp6", socket.SOCK_STREAM, socket.AF_INET6, "::"),
            ("mapped", socket.SOCK_STREAM, socket.AF_INET6, "::ffff:127.0.0.1"),
            ("udp", socket.SOCK_DGRAM, socket.AF_INET, "0.0.0.0"),
            ("loopback", socket.SOCK_STREAM, socket.AF_INET, "127.0.0.1"),
        ):
            one = made[name] = stack.enter_context(socket.socket(family, kind))
            one.bind((address, 0))
            if kind == socket.SOCK_STREAM:
                one.listen()
        ports = {name: one.getsockname()[1] for name, one in made.items()}
        for listening in (False, True):
            found = {(each.space, each.port): each for each in host_ports.sockets(FOLDER, listening=listening)}
            assert (TCP, ports["tcp"]) in found and (TCP, ports["tcp6"]) in found and (UDP, ports["udp"]) in found
            assert (TCP, ports["loopback"]) not in found and (TCP, ports["mapped"]) not in found
        assert str(found[TCP, ports["tcp"]]).startswith(f"tcp 0.0.0.0:{ports['tcp']} of ")
        assert "(process " in str(found[TCP, ports["tcp"]])


def test_the_host_keeps_what_the_policy_says_and_what_its_sockets_use() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server, socket.create_server(("127.0.0.1", 0)) as local:
        port, other = server.getsockname()[1], local.getsockname()[1]
        kept = ((port - 1, port - 1),) if host_ports.ephemeral()[0] <= port - 1 else ((port + 1, port + 1),)
        hosts = HostPorts(Policy(host_ports=kept))
        tcp, udp = hosts.of(0xC6120001)
        assert tcp >> port & 1 and not udp >> port & 1 and not tcp >> other & 1
        assert tcp >> kept[0][0] & 1 and udp >> kept[0][0] & 1
        assert tcp & udp & ((1 << 1024) - 1) == (1 << 1024) - 1
        found = hosts.used_by(0xC6120001, TCP, port, port)
        assert found is not None and found.port == port
        assert hosts.used_by(0xC6120001, UDP, port, port) is None
    assert hosts.used_by(0xC6120001, TCP, port, port) is None


def test_policies_that_leave_one_of_the_two_nothing_are_refused() -> None:
    first, last = host_ports.ephemeral()
    with pytest.raises(ConfigurationError, match="host_ports must leave the gateway some of port_ranges"):
        HostPorts(Policy(port_ranges=((first, last),)))
    with pytest.raises(
        ConfigurationError, match=f"must have ports of the kernel's ip_local_port_range, {first} to {last}"
    ):
        HostPorts(Policy(host_ports=((1024, 1030),)))


@pytest.fixture
def alone() -> Iterator[Network]:
    with Network(f"natcore-ports-{os.getpid()}-", ["a"]) as network:
        yield network


@needs_root
def test_ports_are_reserved_beside_those_of_others_and_given_back(alone: Network) -> None:
    with at(alone, "a"):
        RESERVED.write_text("8080,9000-9009")
        reserve("one", ports_in([(1024, 2047), (9005, 9020)]))
        assert RESERVED.read_text().strip() == "1024-2047,8080,9000-9020"
        reserve("two", ports_in([(2000, 3000)]))
        assert RESERVED.read_text().strip() == "1024-3000,8080,9000-9020"
        reserve("one", ports_in([(1500, 1600)]))
        assert RESERVED.read_text().strip() == "1500-1600,2048-3000,8080,9000-9009"
        assert host_ports.reserving() == ["one", "two"]
        reserve("two", 0)
        reserve("one", 0)
        assert RESERVED.read_text().strip() == "8080,9000-9009"
        assert host_ports.reserving() == []


@needs_root
def test_a_range_of_thousands_of_ports_is_written_whole(alone: Network) -> None:
    with at(alone, "a"):
        many = ports_in((port, port) for port in range(1025, 1625, 2))
        reserve("one", many)
        assert RESERVED.read_text().count(",") == 299
        reserve("one", 0)
        assert RESERVED.read_text().strip() == ""
