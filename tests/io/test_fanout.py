"""Steering: the program of a fan-out group against the gateway's own word, interpreted here and run by the kernel."""

from __future__ import annotations

import functools
import os
import socket
import struct
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import Gateway, Policy, Side, SnatEntry
from natcore.demo.namespaces import Network
from natcore.io.af_packet import PacketRing
from natcore.io.fanout import join
from natcore.plane.fanout_program import steering
from natcore.testing import craft
from natcore.testing.oracle.packets import ICMP, TCP, UDP
from natcore.testing.strategies import ip_fields, payloads, ports
from support.netns import at, needs_root, until

POOL = "203.0.113.1-203.0.113.8"
WORKERS = (2, 3, 8, 64)
POLICIES = {"random": Policy(), "block": Policy(ports="block", block_size=256)}
NETWORK, ETHERTYPE = -0x100000, -0x1000  # linux/filter.h: SKF_NET_OFF, SKF_AD_OFF


@functools.cache
def gateway(workers: int, policy: str) -> Gateway:
    made = Gateway(workers=workers, max_sessions=1000, policy=POLICIES[policy])
    made.add(SnatEntry("10.0.0.0/8", POOL))
    return made


def owner(made: Gateway, frame: bytes, side: Side) -> int:
    return int(made.owner(np.frombuffer(frame, np.uint8).copy()[None, :], np.array([len(frame)], np.uint32), side)[0])


def interpreted(program: bytes, frame: bytes) -> int:
    """What the kernel's interpreter would return: a load behind the frame's end ends the program with 0."""
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = index = at = 0
    while True:
        operation, if_so, if_not, constant = code[at]
        at += 1
        if operation & 7 in (0, 1) and operation != 0xB1:  # BPF_LD
            offset = constant - (1 << 32) + (index if operation & 0xE0 == 0x40 else 0)
            if offset == ETHERTYPE:
                accumulator = int.from_bytes(frame[12:14], "big")
                continue
            start, size = 14 + offset - NETWORK, {0x00: 4, 0x08: 2, 0x10: 1}[operation & 0x18]
            if start + size > len(frame):
                return 0
            accumulator = int.from_bytes(frame[start : start + size], "big")
        elif operation == 0xB1:  # BPF_LDX | BPF_MSH
            index = 4 * (frame[14 + constant - (1 << 32) - NETWORK] & 15)
        elif operation == 0x07:  # BPF_MISC | BPF_TAX
            index = accumulator
        elif operation == 0xAC:  # BPF_ALU | BPF_XOR | BPF_X
            accumulator ^= index
        elif operation & 7 == 4:  # BPF_ALU, modulo 2^32
            accumulator = {
                0x30: lambda a, k: a // k,
                0x70: lambda a, k: a >> k,
                0x90: lambda a, k: a % k,
            }[operation & 0xF0](accumulator, constant) & 0xFFFFFFFF
        elif operation & 7 == 5:  # BPF_JMP
            met = accumulator == constant if operation & 0xF0 == 0x10 else accumulator & constant != 0
            at += if_so if met else if_not
        else:  # BPF_RET
            return accumulator if operation & 0x10 else constant


@st.composite
def whole_packets(draw: st.DrawFn, side: Side) -> bytes:
    """With ports or an echo's identifier."""
    address, fields = st.integers(0x0A000002, 0x0AFFFFFE), draw(ip_fields)
    inside, remote = (draw(address), draw(ports)), (draw(st.integers(0x08000000, 0x09FFFFFF)), draw(ports))
    pooled = (draw(st.integers(craft.address("203.0.113.1"), craft.address("203.0.113.8"))), draw(ports))
    source, target = (inside, remote) if side is Side.INSIDE else (remote, pooled)
    protocol = draw(st.sampled_from((TCP, UDP, ICMP)))
    if protocol == ICMP:
        identifier = source[1] if side is Side.INSIDE else target[1]
        kind = 8 if side is Side.INSIDE else 0
        return craft.icmp(source[0], target[0], kind, identifier=identifier, payload=draw(payloads), **fields)
    if protocol == UDP:
        return craft.udp(source, target, draw(payloads), **fields)
    return craft.tcp(source, target, 0x10, draw(payloads), **fields)


@pytest.mark.parametrize("side", Side)
@given(st.data(), st.sampled_from(WORKERS), st.sampled_from(sorted(POLICIES)))
def test_the_program_names_the_owner(side: Side, data: st.DataObject, workers: int, policy: str) -> None:
    made, frame = gateway(workers, policy), craft.ether(data.draw(whole_packets(side)))
    program = steering(side, workers, made._core.port_unit)
    assert interpreted(program, frame) == owner(made, frame, side)


@given(st.sampled_from(list(Side)), st.sampled_from(WORKERS), st.binary(max_size=80), st.booleans())
def test_whatever_comes_is_some_workers(side: Side, workers: int, data: bytes, ipv4: bool) -> None:
    frame = craft.ether(data, ethertype=0x0800 if ipv4 else 0x86DD)
    if ipv4 and len(data) < 20:
        frame = frame.ljust(60, b"\0")  # as on the wire
    found = interpreted(steering(side, workers, 64), frame)
    assert 0 <= found < workers
    assert ipv4 or found == 0


@given(st.integers(0, 0xFFFFFFFF), st.sampled_from(WORKERS), st.binary(min_size=8, max_size=8), st.integers(1, 0x3FFF))
def test_fragments_of_one_remote_go_together(source: int, workers: int, data: bytes, fragment: int) -> None:
    program = steering(Side.OUTSIDE, workers, 64)
    pieces = [craft.ipv4(UDP, source, "203.0.113.1", data, fragment=each) for each in (fragment, 0x2000)]
    assert len({interpreted(program, craft.ether(piece)) for piece in pieces}) == 1


# ---- the kernel ------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("at_once", [False, True], ids=["blocks", "at once"])
def test_the_kernel_gives_each_frame_to_its_owners_ring_and_to_no_other(at_once: bool) -> None:
    random, made = Random(1), gateway(3, "random")
    with Network(f"natcore-fanout-{os.getpid()}-", ["a", "b"]) as network:
        network.pair("a", "one", "b", "two")
        for member, interface in (("a", "one"), ("b", "two")):
            network.setting(member, "net/ipv6/conf/all/disable_ipv6", 1)  # no frames but ours
            network.setting(member, "net/ipv6/conf/default/disable_ipv6", 1)
            network.up(member, interface)
        with at(network, "a"):
            sender = PacketRing(socket.if_nametoindex("one"))
        with at(network, "b"):
            index = socket.if_nametoindex("two")
            rings = [PacketRing(index, at_once=at_once, shared=True) for _ in range(3)]
        frames = []
        for number in range(200):
            target = (f"203.0.113.{random.randint(1, 8)}", random.randint(1, 65535))
            options = bytes(4 * random.randint(0, 3))
            frames.append(
                craft.ether(craft.udp(("9.9.9.9", 53), target, number.to_bytes(4, "big"), ip_options=options))
            )
        sender.send(frames[0])  # nothing comes before they have joined
        assert [ring.receive() for ring in rings] == [[], [], []]
        join([ring.fd for ring in rings], steering(Side.OUTSIDE, 3, made._core.port_unit))
        for frame in frames:
            sender.send(frame)
        rings[0].send(frames[0])  # nor is what they send seen again
        got: list[list[bytes]] = [[], [], []]

        def arrived() -> bool:
            for ring, kept in zip(rings, got, strict=True):
                kept += [frame for frame, *_ in ring.receive()]
            return sum(map(len, got)) >= len(frames)

        until(arrived)
        for worker, kept in enumerate(got):
            assert kept == [frame for frame in frames if owner(made, frame, Side.OUTSIDE) == worker]
            assert len(kept) > 30
        for ring in (sender, *rings):
            ring.close()


@needs_root
def test_a_program_that_the_kernel_refuses_is_an_error() -> None:
    with Network(f"natcore-fanout-{os.getpid()}-", ["a", "b"]) as network:
        network.pair("a", "one", "b", "two")
        with at(network, "a"):
            ring = PacketRing(socket.if_nametoindex("one"), shared=True)
        with pytest.raises(OSError, match="PACKET_FANOUT_DATA: Invalid argument"):
            join([ring.fd], bytes(8))
        ring.close()
