"""Gateways with several workers, and hosts that belong to each."""

from __future__ import annotations

from functools import partial
from typing import Any

from natcore import (
    Gateway,
    Side,
    SnatEntry,
)
from support.arrays import arrays as rows_of
from support.frames import EIP, udp

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
arrays = partial(rows_of, stride=2048)


def made(workers: int = 2, pool: Any = EIP, **options: Any) -> Gateway:
    gateway = Gateway(workers=workers, seed=7, **options)
    gateway.add(SnatEntry("10.0.0.0/8", pool))
    return gateway


def owner(gateway: Gateway, frame: bytes, side: Side) -> int:
    return int(gateway.owner(*arrays(frame), side)[0])


def hosts_of(gateway: Gateway, worker: int, count: int) -> list[str]:
    """Inside addresses that a worker owns."""
    hosts = (f"10.1.{n >> 8}.{n & 255}" for n in range(1, 4000))
    return [
        host
        for host, _ in zip((h for h in hosts if owner(gateway, udp(h), INSIDE) == worker), range(count), strict=False)
    ]
