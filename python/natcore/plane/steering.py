"""A network card gives each frame to a queue of its worker, where it can: set at a plane's start, put back at its end."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from natcore.internal.protocols import NAMES, TCP, UDP
from natcore.plane.ethtool import ADDRESSES, PORTS, TOEPLITZ, Device, Hashing, queues_of
from natcore.plane.rss import is_ours, key_for, table_for
from natcore.verdict import Side


class Steerable(Protocol):
    """What ethtool.Device does."""

    def hashing(self) -> Hashing: ...
    def set_hashing(self, wanted: Hashing) -> None: ...
    def fields(self, protocol: int) -> int: ...
    def set_fields(self, protocol: int, fields: int) -> None: ...


class NotSteeredError(Exception):
    """The device's RSS cannot tell workers apart; it is as it was. Its text says why."""


class Steering:
    """The device's RSS, ours from the making until `close`.

    side: the interface's. shares: of each worker the first of its queues and how many it has. Raises NotSteeredError.
    """

    def __init__(
        self, device: Steerable, side: Side, workers: int, port_unit: int, shares: Sequence[tuple[int, int]]
    ) -> None:
        self._device = device
        self._before: Hashing | None = None
        self._fields_before: dict[int, int] = {}
        try:
            before = device.hashing()
        except OSError as error:
            raise NotSteeredError(f"the device has no RSS that can be set ({error.strerror})") from error
        try:
            key = key_for(side, port_unit, before.key)
            table = table_for(side, workers, port_unit, shares, len(before.table))
        except ValueError as error:
            raise NotSteeredError(str(error)) from error
        if is_ours(before.key):  # of a plane that died
            before = _spread(before, sum(count for _, count in shares))
        try:
            self._set_fields(side)
            self._before = before
            wanted = Hashing(TOEPLITZ, 0, key, table)
            device.set_hashing(wanted)
            found = device.hashing()
        except OSError as error:
            self.close()
            raise NotSteeredError(f"the device refuses what its RSS would have to be ({error.strerror})") from error
        except NotSteeredError:
            self.close()
            raise
        if found != wanted:
            self.close()
            raise NotSteeredError("the device's RSS is not what it was set to")

    def _set_fields(self, side: Side) -> None:
        """From inside the source address is all that counts: a hash of addresses will do, with or without ports."""
        for protocol in (TCP, UDP):
            fields = self._device.fields(protocol)
            if fields == ADDRESSES | PORTS or (fields == ADDRESSES and side is Side.INSIDE):
                continue
            self._device.set_fields(protocol, ADDRESSES | PORTS)
            self._fields_before[protocol] = fields
            if self._device.fields(protocol) != ADDRESSES | PORTS:
                raise NotSteeredError(f"the device does not hash {NAMES[protocol]} by addresses and ports")

    def close(self) -> None:
        """Put back what was before, as far as the device is there and takes it. Idempotent."""
        before, self._before = self._before, None
        if before is not None:
            with suppress(OSError):
                self._device.set_hashing(before)
        while self._fields_before:
            with suppress(OSError):
                self._device.set_fields(*self._fields_before.popitem())


def left_steered() -> list[str]:
    """Return the interfaces that have a key of natcore's: a plane's, which may be dead."""
    found = []
    for _, name in socket.if_nameindex():
        with suppress(OSError):  # no RSS
            if is_ours(Device(name).hashing().key):
                found.append(name)
    return found


def unsteer(name: str) -> None:
    """Spread the frames of an interface that a dead plane left steered over all its queues, by a random key."""
    with suppress(OSError):
        device = Device(name)
        hashing = device.hashing()
        if is_ours(hashing.key):
            device.set_hashing(_spread(hashing, queues_of(name)))


def _spread(hashing: Hashing, queues: int) -> Hashing:
    """As a driver sets it at first."""
    table = tuple(entry % queues for entry in range(len(hashing.table)))
    return replace(hashing, key=os.urandom(len(hashing.key)), table=table)
