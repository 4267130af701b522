"""A network card gives each frame to a queue of its worker, where it can: set at a plane's start, put back at its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from natcore.internal.protocols import NAMES, TCP, UDP
from natcore.plane.ethtool import ADDRESSES, PORTS, TOEPLITZ, Hashing
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
            queues = sum(count for _, count in shares)
            spread = tuple(entry % queues for entry in range(len(before.table)))
            before = replace(before, key=os.urandom(len(before.key)), table=spread)
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
