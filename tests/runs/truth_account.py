"""The truth's own account: who held which outside endpoint when, by the packets that were sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Held:
    """A session as the packets say: who held which outside endpoint, with whom, from when to when (true seconds)."""

    instance: str
    host: str
    outside: tuple[str, int]
    remote: tuple[str, int]
    protocol: str
    timeout: float
    start: float
    last: float
    ended: float | None = None
    packets: list[float] = field(default_factory=list)

    @property
    def end(self) -> float:
        idle = self.last + self.timeout
        return idle if self.ended is None else min(idle, self.ended)


@dataclass
class Static:
    instance: str
    entry: Any
    address: str
    port: int | None
    host: str
    start: float
    end: float = 1e18


@dataclass
class Block:
    """A port block of a subscriber, as the gateway's table had it after each packet."""

    instance: str
    host: str
    address: str
    first: int
    last: int
    start: float
    end: float = 1e18


class Truth:
    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._assigned: dict[tuple[Any, ...], Block] = {}
        self.held: list[Held] = []
        self.by_outside: dict[tuple[str, int, str], list[Held]] = {}
        self.statics: list[Static] = []
        self._live: dict[tuple[Any, ...], Held] = {}

    def sent(self, run: str, instance: str, host: str, host_port: int, outside: tuple[str, int], remote: tuple[str, int],
             protocol: str, timeout: float, now: float) -> None:  # fmt: skip
        key = (run, host, host_port, remote, protocol)
        known = self._live.get(key)
        if known is not None and known.end > now and known.outside == outside:
            known.last, known.timeout = now, timeout
            known.packets.append(now)
            return
        new = Held(instance, host, outside, remote, protocol, timeout, now, now, packets=[now])
        self._live[key] = new
        self.held.append(new)
        self.by_outside.setdefault((*outside, protocol), []).append(new)

    def assigned(self, run: str, instance: str, blocks: set[tuple[str, str, int, int]], now: float) -> None:
        """blocks: (host, outside address, first port, last port) of all that are assigned."""
        for key, block in list(self._assigned.items()):
            if key[0] == run and key[1:] not in blocks:
                block.end = now
                del self._assigned[key]
        for each in blocks:
            if (run, *each) not in self._assigned:
                self._assigned[run, *each] = Block(instance, *each, now)
                self.blocks.append(self._assigned[run, *each])

    def block_holders(self, outside: tuple[str, int], start: float, end: float) -> set[tuple[str, str]]:
        return {
            (each.instance, each.host) for each in self.blocks
            if each.address == outside[0] and each.first <= outside[1] <= each.last and each.start <= end and each.end >= start
        }  # fmt: skip

    def end(self, run: str, now: float, outside: str | None = None) -> None:
        for key, held in list(self._live.items()):
            if key[0] == run and (outside is None or held.outside[0] == outside):
                held.ended = now if held.ended is None else held.ended
                del self._live[key]

    def holders(self, outside: tuple[str, int], protocol: str, start: float, end: float, remote: Any) -> list[Held]:
        found = []
        for held in self.by_outside.get((*outside, protocol), ()):
            if held.start > end or held.end < start:
                continue
            if remote is not None and remote != held.remote and remote != held.remote[0]:
                continue
            found.append(held)
        return found

    def sessions(
        self, start: float, end: float, *, address: str | None, host: str | None, protocol: str | None, remote: Any
    ) -> list[Held]:
        """All that were alive from start to end; None: any."""
        return [
            held for held in self.held
            if held.start <= end and held.end >= start and address in (None, held.outside[0])
            and host in (None, held.host) and protocol in (None, held.protocol)
            and (remote is None or remote in (held.remote, held.remote[0]))
        ]  # fmt: skip
