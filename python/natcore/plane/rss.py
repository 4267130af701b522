"""Receive-side scaling made to say a frame's worker: what key and table a device must have. No device is touched here.

A device's hash is Toeplitz's: for each bit of source address, destination address, source port and destination port, in this
order, that is set, the 32 bits of the key that begin at the bit's number, all of them by exclusive or. The low bits of the
hash name an entry of the table, and that a queue. A queue is of a worker's whoever the remote is, only if the low seven bits
depend on nothing but the inside address, or the outside port: on the key's bits 25 to 126, where the seven lowest bits of each
32 lie, are ones where they meet the bits that shall count, and zeros elsewhere.

From inside, that makes a lane (internal/affinity.py) of the source address: for each of the shifts that its exclusive ors
come to there is a one. From outside, seven bits of the port come as they are: one one. Both come with their bits reversed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from natcore.internal.affinity import LANES, SHIFTS, worker_of_port
from natcore.verdict import Side

BITS = LANES.bit_length() - 1  # of the hash that are made to say the lane
FIRST, AFTER = 32 - BITS, 96 + 31  # bits of a key that the low bits of the hash of an address pair and ports come from
KEY_BYTES_LEAST = -(-AFTER // 8)


def toeplitz(key: bytes, data: bytes) -> int:
    """Return the 32-bit hash of data, of which the key must be four bytes longer at least (Microsoft's RSS specification)."""
    if len(key) < len(data) + 4:
        raise ValueError(f"key must have at least {len(data) + 4} bytes, got {len(key)}")
    bits, found = int.from_bytes(key), 0
    for number in range(8 * len(data)):
        if data[number // 8] << number % 8 & 0x80:
            found ^= bits >> (8 * len(key) - 32 - number)
    return found & 0xFFFFFFFF


def hashed(source: int, destination: int, ports: tuple[int, int] | None = None) -> bytes:
    """Return what a device hashes of an IPv4 packet: its addresses, and source and destination port if it looks at them."""
    return struct.pack(">II", source, destination) + (struct.pack(">HH", *ports) if ports else b"")


def key_for(side: Side, port_unit: int, random: bytes) -> bytes:
    """Return the key for an interface of a side, the other bits as they are in random, which has the key's length."""
    if len(random) < KEY_BYTES_LEAST:
        raise ValueError(f"its key has {len(random)} bytes, not {KEY_BYTES_LEAST} or more")
    length = 8 * len(random)
    mask = (1 << length - FIRST) - (1 << length - AFTER)
    ones = 0
    for place in _places(side, port_unit):
        ones |= 1 << length - 1 - place
    return (int.from_bytes(random) & ~mask | ones).to_bytes(len(random))


def is_ours(key: bytes) -> bool:
    """Return whether a key is one of `key_for`, left behind by a plane that died."""
    units = [1 << shift for shift in range(16)]
    return len(key) >= KEY_BYTES_LEAST and any(
        key == key_for(side, unit, key) for side in Side for unit in (units if side is Side.OUTSIDE else units[:1])
    )


def table_for(
    side: Side, workers: int, port_unit: int, shares: Sequence[tuple[int, int]], entries: int
) -> tuple[int, ...]:
    """Return the table: for each value of the hash's low bits a queue. shares: (first queue, count) of each worker. Raises
    ValueError: why there is none."""
    if entries < LANES or entries & (entries - 1):
        raise ValueError(f"its table has {entries} entries, not a power of two of {LANES} or more")
    if port_unit & (port_unit - 1):
        raise ValueError(f"blocks of {port_unit} ports are no power of two")
    if any(count == 0 for _, count in shares):
        raise ValueError(f"it has fewer receive queues than the {workers} workers")
    given = [0] * workers
    of_lane = []
    for low in range(LANES):
        reverse = int(f"{low:0{BITS}b}"[::-1], 2)
        worker = reverse % workers if side is Side.INSIDE else _worker_of(reverse, workers, port_unit)
        first, count = shares[worker]
        of_lane.append(first + given[worker] % count)
        given[worker] += 1
    return tuple(of_lane[entry % LANES] for entry in range(entries))


def _places(side: Side, port_unit: int) -> list[int]:
    """The key's ones: bits of the key by their numbers."""
    if side is Side.OUTSIDE:
        return [AFTER - BITS - _lowest_bit(port_unit)]
    shifts = 1
    for shift in SHIFTS:
        shifts ^= shifts << shift
    return [31 + FIRST - shift for shift in range(32) if shifts >> shift & 1]


def _lowest_bit(port_unit: int) -> int:
    """Of the port's seven bits that are told: those of its lane, or, where the lanes are fewer, the port's highest ones."""
    return min(port_unit.bit_length() - 1, 16 - BITS)


def _worker_of(told: int, workers: int, port_unit: int) -> int:
    return worker_of_port(told << _lowest_bit(port_unit), workers, port_unit)
