"""What an interface's XDP program does with packets of offloaded sessions: it translates and redirects them by itself.

It decides nothing. An entry (natcore/tables/offload.pxd) says for one session and direction what the core would do with a plain
packet: whole, without IPv4 options, of an established session, that fits the next link. Every other packet goes the ordinary
way, and so does every packet with an entry that is out of date: of an older generation, past its window's end, or idle for
too long.
"""

from __future__ import annotations

import os
import platform
import secrets
import sys
from dataclasses import dataclass

from natcore.errors import CapacityError, InterfaceError
from natcore.io import bpf
from natcore.io.fast_path import FastPath
from natcore.plane.bpf_assembler import (
    AT_LEAST,
    DIFFERS,
    EQUAL,
    GREATER,
    KTIME_GET_COARSE_NS,
    LESS,
    MAP_LOOKUP,
    MAP_VALUE,
    NOT_EQUAL,
    NOT_POSITIVE,
    REDIRECT_MAP,
    SAME,
    XDP_DROP,
    Assembler,
    word,
)  # fmt: skip
from natcore.plane.links import INTERFACES_MOST

ENTRY_BYTES, WAYS = 64, 4  # of an entry; entries of a bucket (OffloadEntry, OFFLOAD_WAYS)

HOP_BYTES = 16  # of a next hop (OffloadHop)
UNIT_SHIFT = 20  # times are CLOCK_MONOTONIC_COARSE in units of 2^20 ns (OFFLOAD_UNIT_SHIFT)
MULTIPLIERS = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # of the hash of a flow (offload_hash)

# Bytes within OffloadEntry
_PORTS, _PROTOCOL, _INTERFACE, _HOP, _ADDRESS, _PORT, _NETWORK_DELTA, _TRANSPORT_DELTA = 8, 12, 13, 14, 16, 20, 22, 24
_UNTIL, _IDLE, _GENERATION, _BYTES, _PACKETS, _LAST_SEEN, _END, _ACK = 28, 32, 36, 40, 48, 52, 56, 60
_HOP_MTU, _HOP_DEVICE = 12, 14  # within OffloadHop, after the two link addresses

_IP, _L4 = 14, 34  # in the frame
_TCP, _UDP = 6, 17
_TTL_DELTA = int.from_bytes(bytes.fromhex("feff"), sys.byteorder)  # of the header checksum: one hop less

# On the stack
_NUMBER, _TOTAL, _PAYLOAD, _NOW, _KIND = -4, -8, -12, -16, -24


class SharedMaps:
    """The maps that a plane's programs share, open until `close`, and the table in them.

    sessions: offloaded at most. capacity: of the session table. outside: the outside interface's number. offset_ns: the
    gateway's clock - CLOCK_MONOTONIC. Raises CapacityError; InterfaceError without CAP_BPF.
    """

    def __init__(self, sessions: int, capacity: int, outside: int, offset_ns: int) -> None:
        self.outside, self.keys = outside, (secrets.randbits(64), secrets.randbits(64))
        self.bits = next(
            bits for bits in range(4, 32) if WAYS << bits >= 3 * sessions
        )  # two entries a session: 2/3 full
        self._fds: list[int] = []
        try:
            self.tags = self._keep(bpf.shared_array(1 << self.bits, 8))
            self.entries = self._keep(bpf.shared_array(WAYS << self.bits, ENTRY_BYTES))
            self.hops = self._keep(bpf.shared_array(1 << 16, HOP_BYTES))
            self.generation = self._keep(bpf.shared_array(1, 8))
            self.devices = self._keep(bpf.devices(INTERFACES_MOST))
            self.table = FastPath(
                self.tags, self.entries, self.hops, self.generation, self.bits, *self.keys, capacity, outside, offset_ns
            )
        except PermissionError as error:
            self.close()
            raise InterfaceError(
                error.errno, f"fast_path: {error}: it needs CAP_BPF: run as root, or grant it"
            ) from error
        except (OSError, MemoryError) as error:
            self.close()
            raise CapacityError(f"fast_path: {sessions} sessions: {error}") from error

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def set_device(self, number: int, index: int) -> None:
        """Have frames for the interface of that number of the plane leave by the one of this number of the system."""
        bpf.set_element(self.devices, number.to_bytes(4, sys.byteorder), index.to_bytes(4, sys.byteorder))

    def close(self) -> None:
        """The programs keep what they use. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())


@dataclass(frozen=True, slots=True)
class InterfaceMaps:
    """The maps, and what one interface's program needs to know.

    interface: its number. virtual: senders may leave checksums to offload. ordered: the processor's loads are seen in the order
    of the program.
    """

    shared: SharedMaps
    interface: int
    virtual: bool
    ordered: bool = platform.machine() == "x86_64"

    @property
    def outside(self) -> bool:
        """Whether it is the outside interface."""
        return self.interface == self.shared.outside


def translate_offloaded(program: Assembler, maps: InterfaceMaps) -> None:
    """Instructions for an untagged IPv4 frame at register 7, which ends at register 3, for this interface's link address.

    Register 8 is the frame as it came: another one than 7 has a priority tag. Falls through, with nothing changed, where the
    packet is not for the fast path; uses registers 0 to 5, 8 and 9.
    """
    program.jump("ordinary", DIFFERS, 7, 8)
    _find_entry(program, maps)
    _check_network(program, maps)
    program.load(1, 1, 7, _IP + 9)
    program.jump("tcp", EQUAL, 1, value=_TCP)
    program.jump("ordinary", NOT_EQUAL, 1, value=_UDP)
    _check_udp(program)
    _check_offload(program, maps, _UDP, _L4 + 6)
    program.jump("sound")
    program.label("tcp")
    _check_tcp(program)
    _check_offload(program, maps, _TCP, _L4 + 16)
    program.label("sound")
    _check_entry(program, maps)
    _rewrite(program, maps)
    _count(program)
    program.copy(2, 8)
    program.map(1, maps.shared.devices)
    program.set(3, XDP_DROP)  # the egress interface has just gone
    program.call(REDIRECT_MAP)
    program.end()
    program.label("ordinary")


def _check_network(program: Assembler, maps: InterfaceMaps) -> None:
    """The IPv4 header is plain, sound, and has a hop left; the frame ends where the packet does. Register 5: its length."""
    program.load(4, 3, 6, 4)
    program.load(2, 5, 7, _IP + 6)
    if maps.outside:
        program.mask(5, word("3fff"))
        program.jump("ordinary", NOT_EQUAL, 5)
    else:  # without DF it gets a new identification
        program.mask(5, word("7fff"))
        program.jump("ordinary", NOT_EQUAL, 5, value=word("4000"))
    program.load(1, 5, 7, _IP + 8)
    program.jump("ordinary", LESS, 5, value=2)
    program.load(2, 5, 7, _IP + 2)
    program.from_network(5, 16)
    program.jump("ordinary", LESS, 5, value=28)
    program.store(4, 10, _TOTAL, 5)
    program.copy(4, 7)
    program.add(4, _IP)
    program.add_register(4, 5)
    program.jump("ordinary", GREATER, 4, 3)
    program.add(4, 1)
    program.jump("whole", GREATER, 4, 3)
    program.jump("ordinary")  # padding, which must not leave
    program.label("whole")
    program.load(4, 1, 7, _IP)
    for at in range(4, 20, 4):
        program.load(4, 4, 7, _IP + at)
        program.add_register(1, 4)
    program.fold(1, 4, 3)
    program.jump("ordinary", NOT_EQUAL, 1, value=0xFFFF)


def _check_udp(program: Assembler) -> None:
    """Its length is at least its header's, at most what is there."""
    program.load(2, 4, 7, _L4 + 4)
    program.from_network(4, 16)
    program.jump("ordinary", LESS, 4, value=8)
    program.copy(1, 5)
    program.add(1, -20)
    program.jump("ordinary", GREATER, 4, 1)
    program.set(1, _UDP)
    program.store(8, 10, _KIND, 1)


def _check_tcp(program: Assembler) -> None:
    """A segment of an established connection that changes no state: ACK without SYN, FIN and RST."""
    program.copy(4, 7)
    program.add(4, _L4 + 20)
    program.jump("ordinary", GREATER, 4, 3)
    program.load(1, 4, 7, _L4 + 13)
    program.mask(4, 0x17)
    program.jump("ordinary", NOT_EQUAL, 4, value=0x10)
    program.load(1, 4, 7, _L4 + 12)
    program.shift_right(4, 4)
    program.shift_left(4, 2)
    program.jump("ordinary", LESS, 4, value=20)
    program.copy(1, 5)
    program.add(1, -20)
    program.jump("ordinary", GREATER, 4, 1)
    program.subtract(1, 4)
    program.store(4, 10, _PAYLOAD, 1)
    program.set(1, _TCP)
    program.store(8, 10, _KIND, 1)  # by which the verifier knows that the frame has a TCP header


def _check_offload(program: Assembler, maps: InterfaceMaps, protocol: int, checksum: int) -> None:
    """A checksum that a virtual link's sender left to offload is the pseudo-header's sum: the ordinary way finishes it."""
    if not maps.virtual:
        return
    program.load(4, 1, 7, _IP + 12)
    program.load(4, 4, 7, _IP + 16)
    program.add_register(1, 4)
    program.copy(4, 5)
    program.add(4, -20)
    program.from_network(4, 16)
    program.add_register(1, 4)
    program.add(1, word(f"{protocol:04x}"))
    program.fold(1, 4, 3)
    program.load(2, 4, 7, checksum)
    program.jump("ordinary", SAME, 1, 4)


def _find_entry(program: Assembler, maps: InterfaceMaps) -> None:
    """Register 9: the packet's entry. A packet without one looks at its bucket's tags alone.

    A branch for each tag, not arithmetic on all four: the processor guesses which it is, and loads the entry beside the tags.
    """
    program.copy(4, 7)
    program.add(4, _L4 + 8)
    program.jump("ordinary", GREATER, 4, 3)
    program.load(1, 4, 7, _IP)
    program.jump("ordinary", NOT_EQUAL, 4, value=0x45)
    program.load(1, 8, 7, _IP + 9)
    program.shift_left(8, 32)
    program.load(4, 4, 7, _L4)
    program.add_register(8, 4)  # ports and protocol
    program.set_wide(5, maps.shared.keys[1])
    program.toggle_register(8, 5)
    program.load(8, 1, 7, _IP + 12)
    program.set_wide(5, maps.shared.keys[0])
    program.toggle_register(1, 5)
    program.set_wide(5, MULTIPLIERS[0])
    program.multiply(1, 5)
    program.add_register(8, 1)
    program.copy(1, 8)
    program.shift_right(1, 32)
    program.toggle_register(8, 1)
    program.set_wide(5, MULTIPLIERS[1])
    program.multiply(8, 5)
    program.copy(1, 8)
    program.shift_right(1, 64 - maps.shared.bits)
    program.store(4, 10, _NUMBER, 1)
    _look_up(program, maps.shared.tags)

    program.shift_left(8, maps.shared.bits)
    program.shift_right(8, 48)
    program.set(1, 1)
    program.either(8, 1)  # its tag
    for way in range(WAYS):
        program.load(2, 4, 0, 2 * way)
        program.set(1, way << maps.shared.bits)
        program.jump("tagged", SAME, 4, 8)
    program.jump("ordinary")
    program.label("tagged")
    program.load(4, 5, 10, _NUMBER)
    program.add_register(5, 1)
    if not maps.ordered:
        program.toggle_register(4, 8)  # 0: the entry's address depends on the tag, so that it is loaded after that
        program.add_register(5, 4)
    program.store(4, 10, _NUMBER, 5)
    _look_up(program, maps.shared.entries)
    program.copy(9, 0)
    for size, at, of in ((8, _IP + 12, 0), (4, _L4, _PORTS), (1, _IP + 9, _PROTOCOL)):
        program.load(size, 1, 7, at)
        program.load(size, 4, 9, of)
        program.jump("ordinary", DIFFERS, 1, 4)
    program.load(1, 1, 9, _INTERFACE)
    program.jump("ordinary", NOT_EQUAL, 1, value=maps.interface)


def _check_entry(program: Assembler, maps: InterfaceMaps) -> None:
    """It holds still, and the packet fits the next link. Register 0: its next hop."""
    program.map(1, maps.shared.generation, MAP_VALUE)
    program.load(4, 1, 1, 0)
    program.load(4, 2, 9, _GENERATION)
    program.jump("ordinary", DIFFERS, 1, 2)
    if not maps.ordered:
        program.toggle_register(2, 1)  # 0: what was renewed is loaded after the generation
        program.mask(2, 0)  # and the verifier knows it
        program.add_register(9, 2)
    program.call(KTIME_GET_COARSE_NS)  # the exact clock waits for all loads before it: for the entry's line
    program.shift_right(0, UNIT_SHIFT)
    program.store(4, 10, _NOW, 0)
    program.load(4, 1, 9, _UNTIL)
    program.subtract(1, 0)
    program.shift_left(1, 32)
    program.jump("ordinary", NOT_POSITIVE, 1)
    program.load(4, 1, 9, _LAST_SEEN)
    program.subtract(0, 1)
    program.low_half(0)
    program.load(4, 1, 9, _IDLE)
    program.jump("ordinary", AT_LEAST, 0, 1)
    program.load(2, 1, 9, _HOP)
    program.store(4, 10, _NUMBER, 1)
    _look_up(program, maps.shared.hops)
    program.load(2, 1, 0, _HOP_MTU)
    program.load(4, 5, 10, _TOTAL)
    program.jump("ordinary", GREATER, 5, 1)


def _look_up(program: Assembler, array: int) -> None:
    """Register 0: the element with the number on the stack."""
    program.copy(2, 10)
    program.add(2, _NUMBER)
    program.map(1, array)
    program.call(MAP_LOOKUP)
    program.jump("ordinary", EQUAL, 0)


def _update(program: Assembler, delta: int, more: int) -> None:
    """Update the checksum in register 1 by a delta of the entry, and more (RFC 1624)."""
    program.toggle(1, 0xFFFF)
    program.load(2, 2, 9, delta)
    program.add_register(1, 2)
    program.add(1, more + 0xFFFF)
    program.fold(1, 2, 2)
    program.toggle(1, 0xFFFF)


def _rewrite(program: Assembler, maps: InterfaceMaps) -> None:
    """Link addresses, time to live, address, port and checksums. Register 8: the egress interface's number."""
    program.load(8, 1, 0, 0)
    program.store(8, 7, 0, 1)
    program.load(4, 1, 0, 8)
    program.store(4, 7, 8, 1)
    program.load(2, 8, 0, _HOP_DEVICE)

    program.load(1, 1, 7, _IP + 8)
    program.add(1, -1)
    program.store(1, 7, _IP + 8, 1)
    program.load(2, 1, 7, _IP + 10)
    _update(program, _NETWORK_DELTA, _TTL_DELTA)
    program.store(2, 7, _IP + 10, 1)
    program.load(4, 1, 9, _ADDRESS)
    program.store(4, 7, _IP + (16 if maps.outside else 12), 1)
    program.load(2, 1, 9, _PORT)
    program.store(2, 7, _L4 + (2 if maps.outside else 0), 1)

    program.load(8, 1, 10, _KIND)
    program.jump("rewrite tcp", EQUAL, 1, value=_TCP)
    program.load(2, 1, 7, _L4 + 6)
    program.jump("rewritten", EQUAL, 1)  # RFC 768: no checksum
    _update(program, _TRANSPORT_DELTA, 0)
    program.jump("some sum", NOT_EQUAL, 1)
    program.set(1, 0xFFFF)
    program.label("some sum")
    program.store(2, 7, _L4 + 6, 1)
    program.jump("rewritten")

    program.label("rewrite tcp")
    program.load(2, 1, 7, _L4 + 16)
    _update(program, _TRANSPORT_DELTA, 0)
    program.store(2, 7, _L4 + 16, 1)
    program.load(4, 1, 7, _L4 + 4)
    program.from_network(1, 32)
    program.load(4, 2, 10, _PAYLOAD)
    program.add_register(1, 2)
    _raise(program, _END, "end")
    program.load(4, 1, 7, _L4 + 8)
    program.from_network(1, 32)
    _raise(program, _ACK, "ack")
    program.label("rewritten")


def _raise(program: Assembler, mark: int, name: str) -> None:
    """A mark of the entry becomes register 1 unless it is ahead already (RFC 9293 section 3.4)."""
    program.load(4, 2, 9, mark)
    program.copy(3, 1)
    program.subtract(3, 2)
    program.shift_left(3, 32)
    program.jump(f"not {name}", NOT_POSITIVE, 3)
    program.store(4, 9, mark, 1)
    program.label(f"not {name}")


def _count(program: Assembler) -> None:
    program.load(4, 1, 10, _NOW)
    program.store(4, 9, _LAST_SEEN, 1)
    program.load(4, 1, 10, _TOTAL)
    program.count(9, _BYTES, 1)
    program.set(1, 1)
    program.count(9, _PACKETS, 1, size=4)
