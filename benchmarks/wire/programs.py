"""XDP programs of the rig: one that makes frames, and one that only redirects them, the least that a fast path can do."""

from __future__ import annotations

import struct
import sys
import time
from dataclasses import dataclass

from natcore.io import bpf
from natcore.plane.bpf_assembler import (
    AT_LEAST,
    BELOW,
    DIFFERS,
    EQUAL,
    GREATER,
    KTIME_GET_NS,
    MAP_VALUE,
    REDIRECT_MAP,
    XDP_DROP,
    XDP_PASS,
    Assembler,
    word,
)  # fmt: skip

FRAME_BYTES = 60  # 64 on the wire, with the checksum that a device adds
FIRST_HOST = 0x0A010000  # 10.1.0.0; each inside host has 64 flows
FIRST_PORT, PORTS = 1024, 1 << 15
REMOTE_PORT = 9
SCATTER = 0x9E3779B1  # odd: n x SCATTER modulo a power of two visits each number once
_IP, _UDP, _LOAD = 14, 34, 42
_MADE, _INTERVAL, _DUE = 0, 8, 16  # of Maker.state
_LOOKS = 512  # at the clock, until a frame is due or the kernel's frame is given back unused


def device_map(index: int) -> int:
    """A map with one interface to redirect to; its descriptor."""
    devices = bpf.devices(1)
    bpf.set_element(devices, bytes(4), index.to_bytes(4, sys.byteorder))
    return devices


@dataclass(frozen=True, slots=True)
class Maker:
    """A program that makes each frame that it is run on the next one of the flows, and sends it by an interface.

    program, state: descriptors; state has how many frames it made, ns from one to the next, and when (CLOCK_MONOTONIC) the
    next is due.
    """

    program: int
    state: int

    def begin(self, rate: float) -> None:
        """The next frame is of flow 0. rate: frames a second."""
        bpf.set_element(self.state, bytes(4), struct.pack("=3Q", 0, round(1e9 / rate), time.monotonic_ns()))

    def made(self) -> int:
        """Frames since then."""
        return int.from_bytes(bpf.get_element(self.state, bytes(4), 24)[:8], sys.byteorder)


def maker(index: int, macs: bytes, remote: int, flows: int) -> Maker:
    """index: of the interface. macs: destination and source. remote: host order. flows: a power of two."""
    state = bpf.array(1, 24)
    program = Assembler()
    program.copy(6, 1)
    program.map(7, state, MAP_VALUE)
    program.load(8, 8, 7, _MADE)
    program.set(9, _LOOKS)
    program.label("early")
    program.add(9, -1)
    program.jump("drop", EQUAL, 9)
    program.call(KTIME_GET_NS)
    program.load(8, 4, 7, _DUE)
    program.jump("early", BELOW, 0, 4)
    program.load(8, 5, 7, _INTERVAL)
    program.add_register(4, 5)
    program.shift_left(5, 7)
    program.add_register(5, 4)
    program.jump("in time", AT_LEAST, 5, 0)
    program.copy(4, 0)  # it stood still: what was due is not sent at once
    program.label("in time")
    program.store(8, 7, _DUE, 4)
    program.copy(1, 6)
    _frame_at(program, FRAME_BYTES, "drop")
    program.copy(4, 8)
    program.add(8, 1)
    program.store(8, 7, _MADE, 8)
    program.set_wide(5, SCATTER)
    program.multiply(4, 5)
    program.mask(4, flows - 1)  # register 4: the flow

    template = _template(macs, remote)
    for at in range(0, 56, 8):
        program.set_wide(5, int.from_bytes(template[at : at + 8], sys.byteorder))
        program.store(8, 2, at, 5)
    program.set(5, 0)
    program.store(4, 2, 56, 5)

    program.copy(7, 4)  # its host
    program.shift_right(7, 6)
    program.add(7, FIRST_HOST)
    program.copy(8, 4)  # and port
    program.mask(8, PORTS - 1)
    program.add(8, FIRST_PORT)
    program.copy(9, 7)  # the sum of the host's address
    program.fold(9, 5, 2)
    program.copy(1, 9)
    program.add(1, _sum(template[_IP:_UDP]))
    _finish(program, 1)
    program.store(2, 2, _IP + 10, 1)
    program.add_register(9, 8)
    program.copy(1, 4)
    program.fold(1, 5, 2)
    program.add_register(1, 9)
    pseudo = template[_IP + 16 : _IP + 20] + (17).to_bytes(2) + template[_UDP + 4 : _UDP + 6]
    program.add(1, _sum(pseudo + template[_UDP:]))
    _finish(program, 1)
    program.jump("some sum", DIFFERS, 1, 0)
    program.set(1, 0xFFFF)
    program.label("some sum")
    program.store(2, 2, _UDP + 6, 1)
    for size, at, register in ((4, _IP + 12, 7), (2, _UDP, 8), (4, _LOAD, 4)):
        program.from_network(register, 8 * size)
        program.store(size, 2, at, register)
    _redirect(program, device_map(index))
    program.label("drop")
    program.set(0, XDP_DROP)
    program.end()
    return Maker(bpf.program(program.code()), state)


def redirect(index: int, macs: bytes) -> int:
    """A program that sends every IPv4 frame by the interface with that index, with the link addresses macs (destination and
    source); its descriptor."""
    program = Assembler()
    _frame_at(program, 34, "pass")
    program.load(2, 4, 2, 12)
    program.jump("ipv4", EQUAL, 4, value=word("0800"))
    program.jump("pass")
    program.label("ipv4")
    program.set_wide(4, int.from_bytes(macs[:8], sys.byteorder))
    program.store(8, 2, 0, 4)
    program.set_wide(4, int.from_bytes(macs[8:12], sys.byteorder))
    program.store(4, 2, 8, 4)
    _redirect(program, device_map(index))
    program.label("pass")
    program.set(0, XDP_PASS)
    program.end()
    return bpf.program(program.code())


def _frame_at(program: Assembler, length: int, otherwise: str) -> None:
    """Register 2: the frame, of at least that length."""
    program.load(4, 2, 1, 0)
    program.load(4, 3, 1, 4)
    program.copy(4, 2)
    program.add(4, length)
    program.jump(otherwise, GREATER, 4, 3)


def _redirect(program: Assembler, devices: int) -> None:
    program.map(1, devices)
    program.set(2, 0)
    program.set(3, XDP_DROP)
    program.call(REDIRECT_MAP)
    program.end()


def _finish(program: Assembler, register: int) -> None:
    """A sum becomes a checksum, as it is stored."""
    program.fold(register, 5, 2)
    program.toggle(register, 0xFFFF)
    program.from_network(register, 16)
    program.set(0, 0)


def _template(macs: bytes, remote: int) -> bytes:
    """What the frames of all flows have in common."""
    frame = bytearray(FRAME_BYTES)
    frame[:14] = macs + b"\x08\x00"
    frame[_IP : _IP + 10] = bytes.fromhex("4500") + (FRAME_BYTES - _IP).to_bytes(2) + bytes.fromhex("000040004011")
    frame[_IP + 16 : _IP + 20] = remote.to_bytes(4)
    frame[_UDP + 2 : _UDP + 6] = REMOTE_PORT.to_bytes(2) + (FRAME_BYTES - _UDP).to_bytes(2)
    return bytes(frame)


def _sum(words: bytes) -> int:
    return sum(int.from_bytes(words[at : at + 2]) for at in range(0, len(words), 2))
