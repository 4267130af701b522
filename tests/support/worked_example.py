"""The worked example of the session log's page: its hosts, its gateway, its conversation."""

from __future__ import annotations

from collections import Counter

import pytest

from natcore import Eip, Gateway, Policy, Side, SnatEntry, Verdict
from natcore.testing import craft
from natcore.testing.oracle.packets import ACK, FIN, SYN, Endpoint, parse

HOST, HOST_PORT = "172.16.20.21", 47176


SERVER, SERVER_PORT = "106.11.22.203", 12180


NAT, NAT_PORT, EIP = "172.16.10.13", 48155, "47.96.1.2"


PUSH = 0x08


CONVERSATION = [  # who speaks, flags, payload: 6 packets out and 4 back
    (Side.INSIDE, SYN, b""),
    (Side.OUTSIDE, SYN | ACK, b""),
    (Side.INSIDE, ACK, b""),
    (Side.INSIDE, ACK | PUSH, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"),
    (Side.OUTSIDE, ACK | PUSH, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    (Side.INSIDE, ACK, b""),
    (Side.INSIDE, FIN | ACK, b""),
    (Side.OUTSIDE, ACK, b""),
    (Side.OUTSIDE, FIN | ACK, b""),
    (Side.INSIDE, ACK, b""),
]


Flow = tuple[str, str, Endpoint, Endpoint]  # interface, direction, source, destination


def example_gateway() -> Gateway:
    gateway = Gateway(instance="ngw-1", vpc_id="vpc-1", policy=Policy(port_ranges=((NAT_PORT, NAT_PORT),)), seed=1)
    gateway.add(SnatEntry("172.16.20.0/24", Eip(EIP, private_ip=NAT)))
    return gateway


def converse(gateway: Gateway) -> tuple[Counter[Flow], Counter[Flow]]:
    """Packets and bytes as a flow log of both interfaces has them: each packet as it comes in and as it goes out."""
    packets: Counter[Flow] = Counter()
    lengths: Counter[Flow] = Counter()
    for number, (side, flags, payload) in enumerate(CONVERSATION):
        ends = (
            ((HOST, HOST_PORT), (SERVER, SERVER_PORT))
            if side is Side.INSIDE
            else ((SERVER, SERVER_PORT), (NAT, NAT_PORT))
        )
        frame = craft.ether(craft.tcp(*ends, flags, payload))
        verdict, sent = gateway.translate_one(frame, side, now=number * 0.01)
        assert verdict is (Verdict.OUTBOUND if side is Side.INSIDE else Verdict.INBOUND) and sent is not None
        came, left = ("inside", "outside") if side is Side.INSIDE else ("outside", "inside")
        for interface, direction, data in ((came, "in", frame), (left, "out", sent)):
            packet = parse(data, "ethernet", side)
            assert not isinstance(packet, Verdict)
            flow = (interface, direction, packet.source, packet.destination)
            packets[flow] += 1
            lengths[flow] += packet.total
    return packets, lengths


@pytest.fixture
def gateway() -> Gateway:
    return example_gateway()
