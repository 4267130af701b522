"""Packets by the million: numpy arrays of Ethernet frames with right checksums, as `Gateway.translate` takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Frames = NDArray[np.uint8]
Lengths = NDArray[np.uint32]

ICMP, TCP, UDP = 1, 6, 17
ETHERNET, IPV4 = 14, 20  # bytes
LAYER4 = {ICMP: 8, TCP: 20, UDP: 8}
CHECKSUM_AT = {ICMP: 2, TCP: 16, UDP: 6}  # bytes into the layer-4 header
SYN, ACK = 0x02, 0x10


def put(frames: Frames, at: int, size: int, values: ArrayLike) -> None:
    """Write values, big-endian and size bytes wide, at one offset of every frame."""
    numbers = np.broadcast_to(np.asarray(values, np.uint64), len(frames))
    for i in range(size):
        frames[:, at + i] = (numbers >> np.uint64(8 * (size - 1 - i))).astype(np.uint8)


def get(frames: Frames, at: int, size: int) -> NDArray[np.uint64]:
    """The big-endian numbers, size bytes wide, at one offset of every frame."""
    numbers = np.zeros(len(frames), np.uint64)
    for i in range(size):
        numbers = numbers << np.uint64(8) | frames[:, at + i]
    return numbers


def word_sums(frames: Frames, start: int, stop: int) -> NDArray[np.uint64]:
    """The sum of the big-endian 16-bit words in [start, stop) of every frame, an odd last byte padded with zero."""
    part = frames[:, start:stop].astype(np.uint64)
    sums: NDArray[np.uint64] = part[:, 0::2].sum(1) * np.uint64(256) + part[:, 1::2].sum(1)
    return sums


def fold(sums: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Fold sums of words into 16 bits each, with end-around carry (RFC 1071)."""
    for _ in range(4):
        sums = (sums & np.uint64(0xFFFF)) + (sums >> np.uint64(16))
    return sums


def pseudo_sums(frames: Frames, protocol: int, layer4_bytes: int) -> NDArray[np.uint64]:
    """The sum of the pseudo-header's words (RFC 768, RFC 9293)."""
    return word_sums(frames, ETHERNET + 12, ETHERNET + 20) + np.uint64(protocol + layer4_bytes)


def layer4_sums(frames: Frames, protocol: int, total_length: int) -> NDArray[np.uint64]:
    """Folded sums over what the layer-4 checksum covers, itself included: 0xFFFF where it is right."""
    sums = word_sums(frames, ETHERNET + IPV4, ETHERNET + total_length)
    if protocol != ICMP:
        sums = sums + pseudo_sums(frames, protocol, total_length - IPV4)
    return fold(sums)


def packets(
    protocol: int,
    source: ArrayLike,
    source_port: ArrayLike,
    destination: ArrayLike,
    destination_port: ArrayLike,
    *,
    length: int = 64,
    stride: int | None = None,
    ttl: ArrayLike = 64,
    tcp_flags: ArrayLike = SYN,
    sequence: ArrayLike = 1,
    icmp_type: int = 8,
    dont_fragment: bool = True,
) -> tuple[Frames, Lengths]:
    """Frames of one protocol, each `length` bytes from the Ethernet header on; addresses and ports as host integers.

    Any of the fields may be an array (they are broadcast). ICMP: echo messages; the identifier is the port of the
    inside endpoint: source_port of a request (8), destination_port of a reply (0). dont_fragment: DF is set, as on
    most hosts; without it the gateway numbers what leaves.
    Returns uint8 (count, stride) and uint32 (count,).
    """
    fields: Any = np.broadcast_arrays(*(np.atleast_1d(np.asarray(f, np.uint64)) for f in
                                        (source, source_port, destination, destination_port)))  # fmt: skip
    count, total = len(fields[0]), length - ETHERNET
    frames = np.zeros((count, stride or length), np.uint8)
    frames[:, :ETHERNET] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]
    frames[:, ETHERNET] = 0x45
    frames[:, ETHERNET + 6] = 0x40 * dont_fragment
    for at, size, value in ((2, 2, total), (8, 1, ttl), (9, 1, protocol), (12, 4, fields[0]), (16, 4, fields[2])):
        put(frames, ETHERNET + at, size, value)
    put(frames, ETHERNET + 10, 2, fold(word_sums(frames, ETHERNET, ETHERNET + IPV4)) ^ np.uint64(0xFFFF))

    layer4 = ETHERNET + IPV4
    if protocol == ICMP:
        put(frames, layer4, 1, icmp_type)
        put(frames, layer4 + 4, 2, fields[3] if icmp_type == 0 else fields[1])
    else:
        put(frames, layer4, 2, fields[1])
        put(frames, layer4 + 2, 2, fields[3])
    if protocol == TCP:
        put(frames, layer4 + 4, 4, sequence)
        put(frames, layer4 + 12, 2, 5 << 12 | np.asarray(tcp_flags, np.uint64))
    if protocol == UDP:
        put(frames, layer4 + 4, 2, total - IPV4)
    frames[:, layer4 + LAYER4[protocol] : length] = np.arange(length - layer4 - LAYER4[protocol], dtype=np.uint8)
    checksums = layer4_sums(frames, protocol, total) ^ np.uint64(0xFFFF)
    if protocol == UDP:
        checksums[checksums == 0] = 0xFFFF  # RFC 768: 0 says that there is none
    put(frames, layer4 + CHECKSUM_AT[protocol], 2, checksums)
    return frames, np.full(count, length, np.uint32)


def endpoints(frames: Frames, at: str) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(addresses, ports) of every frame's "source" or "destination"; TCP and UDP without IPv4 options."""
    first = at == "source"
    return (
        get(frames, ETHERNET + (12 if first else 16), 4),
        get(frames, ETHERNET + IPV4 + (0 if first else 2), 2),
    )


def answers(frames: Frames, lengths: Lengths) -> tuple[Frames, Lengths]:
    """What the remote of each TCP or UDP frame sends back: both endpoints exchanged; no checksum changes by that."""
    back = frames.copy()
    for one, other, size in ((0, 6, 6), (ETHERNET + 12, ETHERNET + 16, 4), (ETHERNET + IPV4, ETHERNET + IPV4 + 2, 2)):
        back[:, one : one + size] = frames[:, other : other + size]
        back[:, other : other + size] = frames[:, one : one + size]
    return back, lengths.copy()


def headers_right(frames: Frames) -> NDArray[np.bool_]:
    """Whether each frame's IPv4 header (without options) sums to 0xFFFF."""
    right: NDArray[np.bool_] = fold(word_sums(frames, ETHERNET, ETHERNET + IPV4)) == np.uint64(0xFFFF)
    return right
