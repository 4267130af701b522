"""Frames between scapy's packets and the arrays of `Gateway.translate`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from natcore.choices import Framing
from natcore.errors import ConfigurationError
from natcore.internal.extras import extra

if TYPE_CHECKING:
    from numpy.typing import NDArray


def frames(packets: Iterable[Any], stride: int = 2048) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Lay packets out as the arrays that `Gateway.translate` takes.

    Parameters
    ----------
    packets
        scapy's packets, or bytes.
    stride
        Bytes of a row; a frame has at most so many.

    Returns
    -------
    frames, lengths
        uint8 (n, stride), one frame a row, and uint32 (n,), the bytes used in each.

    Raises
    ------
    ConfigurationError
        A packet is longer than a row.
    """
    data = [bytes(packet) for packet in packets]
    longest = max(map(len, data), default=0)
    if longest > stride:
        raise ConfigurationError(f"stride must be at least {longest}, the bytes of the longest packet, got {stride}")
    rows = np.zeros((len(data), stride), np.uint8)
    for row, frame in zip(rows, data, strict=True):
        row[: len(frame)] = np.frombuffer(frame, np.uint8)
    return rows, np.array([len(frame) for frame in data], np.uint32)


def scapy_packets(frames: NDArray[np.uint8], lengths: NDArray[np.uint32], framing: Framing = "ethernet") -> list[Any]:
    """Take arrays apart into scapy's packets.

    Parameters
    ----------
    frames, lengths
        As `frames` makes them, or `Gateway.translate` left them.
    framing
        "ethernet" or "ip": what a row begins with.

    Returns
    -------
    list
        scapy.layers.l2.Ether, or scapy.layers.inet.IP, one for each row.

    Raises
    ------
    MissingExtraError
        scapy is not installed: `natcore[testing]`.
    """
    with extra("testing"):
        from scapy.layers.inet import IP
        from scapy.layers.l2 import Ether
    layer = IP if framing == "ip" else Ether
    return [layer(row[:length].tobytes()) for row, length in zip(frames, lengths, strict=True)]
