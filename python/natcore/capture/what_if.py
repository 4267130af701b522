"""What would have become of a capture's traffic under each of several configurations, in one pass over the capture.

Theory of operation. Frames come in batches (natcore.capture.prepared). Each configuration's gateway translates copies of them,
as many as possible in one call. An answer goes to the outside endpoint that its inside endpoint has at that moment, so a call
ends before the first answer to a packet of the same call that may have opened a mapping. A mapping that carried a packet
within the shortest time-out is alive, and needs no such end; that it was is checked afterwards, and counted where not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from natcore.capture.forecast import Forecast, forecast
from natcore.capture.prepared import HEADER_BYTES, Frames, Ints, Preparer
from natcore.capture.readdress import endpoint_of_entries, quoted_endpoint, readdress_error
from natcore.capture.reader import Batch, CutShortError, batches
from natcore.capture.sides import Sides
from natcore.dtypes import FIELDS, RecordKind, format_ipv4
from natcore.errors import ConfigurationError
from natcore.gateway import Gateway
from natcore.internal.protocols import ICMP, TCP, UDP
from natcore.log.encode_sls import encode_logs
from natcore.verdict import Side, Verdict

SAMPLES = 120  # of ports and sessions over the capture
MOST_SUBSCRIBERS = 10  # that are named
NO_MAPPING = "answer to nothing in the capture"
MOVED = "answers after their mapping had moved"
_SKIPPED = 255  # in place of a verdict
_HOST = 0xFF  # in place of a protocol: any endpoint of the host
_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP}
CUT_SHORT = "the capture was cut off: its last frame is left out"
_NEVER = -(1 << 62)


class Sample(NamedTuple):
    """What a gateway had at one moment.

    Attributes
    ----------
    time
        Unix seconds.
    sessions
        Open sessions.
    ports
        Ports in use or held down, by protocol.
    """

    time: float
    sessions: int
    ports: dict[str, int]


@dataclass(slots=True)
class Outcome:
    """What would have become of the traffic under one configuration.

    Attributes
    ----------
    name
        The configuration's.
    verdicts
        How often each.
    skipped
        Answers that could not be sent, by reason.
    packets, bytes
        What was forwarded: "out" and "in".
    samples
        Ports and sessions over time.
    total_ports
        Ports of the pool, by protocol.
    sessions
        Sessions that began.
    peak_sessions, peak_ports
        The most at a sample; ports by protocol.
    peaks
        The subscribers with the most ports at a sample: address, ports, sessions.
    log_rows, log_bytes
        Window rows of the session log, and their raw bytes in Simple Log Service. log_lost: rows beyond `records`.
    block_rows
        Rows of port blocks.
    changed
        Frames that went otherwise than under the first configuration: (verdict there, verdict here). None: skipped.
    forecast
        When the pool runs out.
    """

    name: str
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    packets: dict[str, int] = field(default_factory=lambda: {"out": 0, "in": 0})
    bytes: dict[str, int] = field(default_factory=lambda: {"out": 0, "in": 0})
    samples: list[Sample] = field(default_factory=list)
    total_ports: dict[str, int] = field(default_factory=dict)
    sessions: int = 0
    peak_sessions: int = 0
    peak_ports: dict[str, int] = field(default_factory=dict)
    peaks: list[tuple[str, int, int]] = field(default_factory=list)
    log_rows: int = 0
    log_bytes: int = 0
    log_lost: int = 0
    block_rows: int = 0
    changed: Counter[tuple[Verdict | None, Verdict | None]] = field(default_factory=Counter)
    forecast: Forecast | None = None

    @property
    def refusals(self) -> dict[str, int]:
        """Drops by reason."""
        return {verdict.reason: count for verdict, count in sorted(self.verdicts.items()) if verdict.is_drop}


@dataclass(slots=True)
class WhatIf:
    """A capture under several configurations.

    Attributes
    ----------
    frames
        Frames of the capture.
    start, end
        Unix seconds of the first and the last frame that a gateway took.
    skipped, mended
        Frames that no gateway would see here or that are not understood, and those that the capture has otherwise than the
        wire had them; by reason.
    outcomes
        One for each configuration, in their order.
    """

    frames: int = 0
    start: float = 0.0
    end: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    outcomes: list[Outcome] = field(default_factory=list)


def what_if(path: Path, gateways: Mapping[str, Gateway], sides: Sides) -> WhatIf:
    """Send a capture through several gateways in memory and compare what becomes of it.

    Parameters
    ----------
    path
        A pcap or pcapng file of an inside link.
    gateways
        New gateways by the names of their configurations, without session logs; all their sessions end at the last frame.
    sides
        Which side a frame came from (natcore.capture.sides.make_sides).

    Returns
    -------
    WhatIf
        What became of it under each.

    Raises
    ------
    CaptureError
        The file is damaged; one that was cut off is taken up to there.
    ConfigurationError
        There is no gateway.
    """
    if not gateways:
        raise ConfigurationError("gateways must be one or more")
    found = WhatIf()
    mtu = min(min(gateway.inside.mtu, gateway.outside.mtu) for gateway in gateways.values())
    preparer = Preparer(sides, mtu)
    registries = {True: _Endpoints(True), False: _Endpoints(False)}
    runs = [_Run(name, gateway, registries[is_by_remote(gateway)]) for name, gateway in gateways.items()]
    source = _Source(path, preparer)
    seen = False
    for frames in preparer.run(source.batches()):
        for start in range(0, len(frames), _CALL):
            part = frames.take(slice(start, start + _CALL))
            if not seen:
                found.start, seen = int(part.time_ns[0]) / 1e9, True
                for run in runs:
                    run.start(int(part.time_ns[0]), source.step_ns)
            found.end = int(part.time_ns[-1]) / 1e9
            slots = {by_remote: each.slots(part) for by_remote, each in registries.items() if each.is_used}
            verdicts = [run.take(part, slots[run.endpoints.by_remote]) for run in runs]
            for run, others in zip(runs[1:], verdicts[1:], strict=True):
                run.compare(verdicts[0], others)
    for run in runs:
        run.finish()
    found.frames, found.skipped, found.mended = preparer.frames, preparer.skipped, preparer.mended
    found.outcomes = [run.outcome for run in runs]
    return found


_SPACE_BYTES = 8 << 20  # of the frames of one call
_CALL = 16_384  # frames that are prepared and translated together


class _Source:
    """A capture, and how far apart its samples should be."""

    def __init__(self, path: Path, preparer: Preparer) -> None:
        self._path = path
        self._preparer = preparer
        self.step_ns = 1

    def batches(self) -> Iterator[Batch]:
        """Yield the capture's batches, up to where it was cut off."""
        try:
            for number, batch in enumerate(batches(self._path)):
                if number == 0:  # as if it went on like this to its end
                    span = int(batch.time_ns.max() - batch.time_ns.min())
                    share = max(1.0, self._path.stat().st_size / int(batch.captured.sum() + 16 * len(batch)))
                    self.step_ns = max(int(span * share) // SAMPLES, 1)
                yield batch
        except CutShortError:
            self._preparer.mended[CUT_SHORT] += 1


def is_by_remote(gateway: Gateway) -> bool:
    """Whether an inside endpoint may have several outside endpoints."""
    names: Sequence[Any] = tuple(_PROTOCOLS)
    return any(gateway.policy.behaviour(name).mapping != "endpoint-independent" for name in names)


class _Slots(NamedTuple):
    """What a batch's frames have to do with inside endpoints. Numbers of slots, -1: none."""

    own: Ints  # of the endpoint
    host: Ints  # of the host
    order: Ints  # frames by slot, those of one slot in order of time
    known: int  # slots so far


class _Endpoints:
    """Inside endpoints, numbered as they come: for all configurations that map alike."""

    def __init__(self, by_remote: bool) -> None:
        self.by_remote = by_remote
        self.is_used = False
        self.count = 0
        self._keys, self._numbers = np.zeros(0, np.uint64), np.zeros(0, np.int64)  # in order of the keys
        self._endpoints: list[Ints] = []  # protocol, address, port: (count, 3) of each batch

    def key(self, protocol: Any, address: Any, port: Any, remote: Any, remote_port: Any) -> Any:
        """Return keys of inside endpoints: 64-bit arrays."""
        key = (np.asarray(protocol).astype(np.uint64) << np.uint64(48)) | (
            np.asarray(address).astype(np.uint64) << np.uint64(16)
        ) | np.asarray(port).astype(np.uint64)  # fmt: skip
        if self.by_remote:
            other = (np.asarray(remote).astype(np.uint64) << np.uint64(16)) | np.asarray(remote_port).astype(np.uint64)
            key = _mixed(key ^ _mixed(other + np.uint64(0x9E3779B97F4A7C15)))
        return key

    def slots(self, frames: Frames) -> _Slots:
        """Number the endpoints of a batch."""
        out = frames.side == Side.INSIDE
        address = np.where(out, frames.source, frames.destination)
        port = np.where(out, frames.source_port, frames.destination_port)
        remote = np.where(out, frames.destination, frames.source)
        remote_port = np.where(out, frames.destination_port, frames.source_port)
        remote_port[frames.protocol == ICMP] = 0
        has = port >= 0
        own, host = np.full(len(frames), -1, np.int64), np.zeros(len(frames), np.int64)
        own[has] = self._number(
            self.key(frames.protocol[has], address[has], port[has], remote[has], remote_port[has]),
            frames.protocol[has], address[has], port[has],
        )  # fmt: skip
        hosts = np.uint64(_HOST << 48) | address.astype(np.uint64) << np.uint64(16)
        host[:] = self._number(hosts, np.full(len(frames), _HOST), address, np.zeros(len(frames), np.int64))
        return _Slots(own, host, np.argsort(own, kind="stable"), self.count)

    def find(self, keys: NDArray[np.uint64]) -> Ints:
        """Return the numbers of known endpoints; -1: it is new."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._numbers[place], -1)

    def since(self, number: int) -> list[list[int]]:
        """Return protocol, address and port of the endpoints from a number on."""
        return np.concatenate([*self._endpoints, np.zeros((0, 3), np.int64)])[number:].tolist()  # type: ignore[no-any-return]

    def _number(self, keys: NDArray[np.uint64], protocol: Ints, address: Ints, port: Ints) -> Ints:
        numbers = self.find(keys)
        new = np.flatnonzero(numbers < 0)
        if not len(new):
            return numbers
        unique, first = np.unique(keys[new], return_index=True)
        first = new[first]
        self._endpoints.append(np.stack([protocol[first], address[first], port[first]], axis=1))
        place = np.searchsorted(self._keys, unique)
        self._keys = np.insert(self._keys, place, unique)
        self._numbers = np.insert(self._numbers, place, np.arange(self.count, self.count + len(unique)))
        self.count += len(unique)
        return self.find(keys)


def _mixed(value: Any) -> Any:
    """Mix 64 bits (splitmix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class _Run:
    """One configuration's gateway on its way through the capture."""

    def __init__(self, name: str, gateway: Gateway, endpoints: _Endpoints) -> None:
        self.outcome = Outcome(name)
        self.endpoints = endpoints
        endpoints.is_used = True
        self._gateway = gateway
        self._first_ns = self._last_ns = self._next_ns = 0
        self._step_ns = 1
        timeouts = gateway.timeouts
        alive = {TCP: min(timeouts.tcp_established, timeouts.tcp_transitory), UDP: timeouts.udp, ICMP: timeouts.icmp}
        self._alive_ns = np.zeros(256, np.int64)
        for protocol, seconds in alive.items():
            self._alive_ns[protocol] = int(seconds * 1e9)
        self._address, self._port = np.zeros(0, np.int64), np.zeros(0, np.int64)  # outside endpoints; -1: unknown
        self._last_out = np.zeros(0, np.int64)
        self._static = endpoint_of_entries(gateway)
        self._peaks = np.zeros((0, 3), np.int64)  # inside address, ports, sessions
        self._work: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._moved = 0
        self._is_refusing = False
        self._seen = 0

    def start(self, first_ns: int, step_ns: int) -> None:
        """Begin at the time of the first frame, with samples so far apart."""
        self._gateway.set_epoch(first_ns / 1e9)
        self._first_ns = self._last_ns = first_ns
        self._step_ns, self._next_ns = step_ns, first_ns + step_ns

    def take(self, frames: Frames, slots: _Slots) -> NDArray[np.uint8]:
        """Translate a batch; return its verdicts, _SKIPPED where there is none."""
        self._grow(slots.known)
        count = len(frames)
        verdicts = np.full(count, _SKIPPED, np.uint8)
        fresh, cuts = self._plan(frames, slots)
        steady_in = (frames.side == Side.OUTSIDE) & (frames.whole < 0)
        rows = frames.rows.copy()
        begin, refused = 0, False
        while begin < count:
            end = cuts.pop() if cuts else count
            self._sample(int(frames.time_ns[begin]))
            self._translate(frames, slots, rows, fresh, steady_in, begin, end, verdicts)
            if (fresh[begin:end] & (verdicts[begin:end] != Verdict.OUTBOUND)).any():
                refused = True
                if not self._is_refusing and end < count:
                    self._is_refusing = True
                    fresh, cuts = self._plan(frames, slots, end)
            begin = end
        self._is_refusing = refused
        self._count(frames, verdicts)
        return verdicts

    def _grow(self, count: int) -> None:
        had = len(self._address)
        if count <= had:
            return
        more = max(count, 2 * had) - had
        for name, value in (("_address", -1), ("_port", -1), ("_last_out", _NEVER)):
            setattr(self, name, np.concatenate([getattr(self, name), np.full(more, value, np.int64)]))
        if self._static is not None:
            for number, endpoint in enumerate(self.endpoints.since(self._seen), self._seen):
                if found := self._static(*endpoint):
                    self._address[number], self._port[number] = found
        self._seen = count

    def _plan(self, frames: Frames, slots: _Slots, begin: int = 0) -> tuple[NDArray[np.bool_], list[int]]:
        """Return which frames from inside may open a mapping, and where calls must end, the last one first.

        The first frame of an endpoint opens a mapping, if it is not refused: while some are, each frame may.
        """
        count = len(frames)
        order = slots.order[np.searchsorted(slots.own[slots.order], 0) :]  # those with an endpoint
        order = order[order >= begin] if begin else order
        own = slots.own[order]
        is_out = frames.side[order] == Side.INSIDE
        outs = order[is_out]
        out_slot, out_time = slots.own[outs], frames.time_ns[outs]
        before = np.where(self._address[out_slot] >= 0, self._last_out[out_slot], _NEVER)
        same = np.zeros(len(outs), bool)
        same[1:] = out_slot[1:] == out_slot[:-1]
        before[same] = out_time[:-1][same[1:]] if len(outs) else 0
        opens = out_time - before >= self._alive_ns[frames.protocol[outs]]
        if self._is_refusing:
            opens |= self._address[out_slot] < 0
        fresh = np.zeros(count, bool)
        fresh[outs[opens]] = True
        # the last frame before each answer that may have opened its mapping, of the same slot
        place = np.arange(len(order))
        last = np.maximum.accumulate(np.where(fresh[order], place, -1)) if len(order) else place
        group = np.zeros(len(order), np.int64)
        if len(order):
            starts = np.flatnonzero(np.concatenate([[True], own[1:] != own[:-1]]))
            group = np.repeat(starts, np.diff(np.append(starts, len(order))))
        waits = ~is_out & (last >= group)
        answers, opener = order[waits], order[last[waits]]
        by_time = np.argsort(answers, kind="stable")
        answers, opener = answers[by_time], opener[by_time]
        _, first = np.unique(opener, return_index=True)
        first.sort()
        needs = list(zip(answers[first].tolist(), opener[first].tolist(), strict=True))
        alone = (frames.side == Side.OUTSIDE) & ((slots.own < 0) | (frames.whole >= 0))
        needs += [(at, count) for at in np.flatnonzero(alone).tolist()]
        if frames.time_ns[-1] >= self._next_ns:
            samples = np.arange(self._next_ns, int(frames.time_ns[-1]) + 1, self._step_ns)[: count + 1]
            needs += [(at, count) for at in np.unique(np.searchsorted(frames.time_ns, samples)).tolist()]
        cuts = list[int]()
        for at, opened in sorted(needs):
            if at > begin and (opened == count or opened >= begin):
                cuts.append(at)
                begin = at
        return fresh, cuts[::-1]

    def _translate(
        self, frames: Frames, slots: _Slots, rows: NDArray[np.uint8], fresh: NDArray[np.bool_],
        answers: NDArray[np.bool_], begin: int, end: int, verdicts: NDArray[np.uint8],
    ) -> None:  # fmt: skip
        """Translate frames of which no answer depends on another of them."""
        part = slice(begin, end)
        chosen = np.arange(begin, end)
        inbound = chosen[answers[part]]
        address, port = self._targets(frames, slots, inbound)
        unknown = inbound[address < 0]
        known = address >= 0
        _readdress(frames, rows, inbound[known], address[known], port[known])
        out = np.ones(end - begin, bool)
        if len(unknown):
            self.outcome.skipped[NO_MAPPING] += len(unknown)
            out[unknown - begin] = False
        messages: list[tuple[int, bytes]] = []
        for at in chosen[frames.whole[part] >= 0].tolist():
            message = frames.messages[int(frames.whole[at])]
            if frames.side[at] == Side.OUTSIDE:
                changed = self._readdress_error(frames, at, message)
                if changed is None:
                    self.outcome.skipped[NO_MAPPING] += 1
                    out[at - begin] = False
                    continue
                message = changed
            messages.append((at, message))
        if not out.all():
            chosen = chosen[out]
        if not len(chosen):
            return
        space = max(_SPACE_BYTES // max(HEADER_BYTES, int(frames.length[chosen].max())), 1)
        for start in range(0, len(chosen), space):
            self._call(frames, slots, rows, chosen[start : start + space], dict(messages), fresh, verdicts)

    def _call(
        self, frames: Frames, slots: _Slots, rows: NDArray[np.uint8], chosen: Ints, messages: dict[int, bytes],
        fresh: NDArray[np.bool_], verdicts: NDArray[np.uint8],
    ) -> None:  # fmt: skip
        """Translate the chosen frames in one call."""
        lengths = frames.length[chosen].astype(np.uint32)
        work = self._space(len(chosen), max(HEADER_BYTES, int(lengths.max())))
        is_run = len(chosen) == chosen[-1] - chosen[0] + 1
        work[:, :HEADER_BYTES] = rows[chosen[0] : chosen[-1] + 1] if is_run else rows[chosen]
        for at, message in messages.items():
            place = int(np.searchsorted(chosen, at))
            if place < len(chosen) and chosen[place] == at:
                work[place, : len(message)] = np.frombuffer(message, np.uint8)[: work.shape[1]]
        nows = (frames.time_ns[chosen] - self._first_ns) / 1e9
        done = self._gateway.translate(work, lengths, frames.side[chosen], nows)
        verdicts[chosen] = done
        self._last_ns = int(frames.time_ns[chosen[-1]])
        self._learn(frames, slots, work, chosen, done, fresh)
        if (done == Verdict.HELD).any() or (done >= 128).any():
            self._gateway.take_generated()

    def _space(self, count: int, stride: int) -> NDArray[np.uint8]:
        """Return rows of at least so many bytes; what lies behind the headers is not read."""
        if self._work.size < count * stride:
            self._work = np.zeros(count * stride, np.uint8)
        return self._work[: count * stride].reshape(count, stride)

    def _targets(self, frames: Frames, slots: _Slots, which: Ints) -> tuple[Ints, Ints]:
        """Return the outside endpoints that answers go to; -1: none is known. A port of -1 stays as it is."""
        own = slots.own[which]
        address, port = self._address[own], self._port[own]
        bare = own < 0  # a later fragment, or a protocol without ports
        address[bare], port[bare] = self._address[slots.host[which[bare]]], -1
        return address, port

    def _readdress_error(self, frames: Frames, at: int, message: bytes) -> bytes | None:
        quoted = quoted_endpoint(message)
        if quoted is None:
            return None
        (slot,) = self.endpoints.find(self.endpoints.key(*(np.array([each]) for each in quoted))).tolist()
        if slot < 0 or slot >= len(self._address) or self._address[slot] < 0:
            return None
        return readdress_error(message, int(self._address[slot]), int(self._port[slot]))

    def _learn(
        self, frames: Frames, slots: _Slots, work: NDArray[np.uint8], chosen: Ints, done: NDArray[np.uint8],
        fresh: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Note the outside endpoints of what left."""
        left = np.flatnonzero((done == Verdict.OUTBOUND) & (frames.side[chosen] == Side.INSIDE))
        at = chosen[left]
        has = slots.own[at] >= 0
        lead = work[left, 26:30].astype(np.int64)
        address = (lead[:, 0] << 24) | (lead[:, 1] << 16) | (lead[:, 2] << 8) | lead[:, 3]
        self._address[slots.host[at]] = address
        left, at, address = left[has], at[has], address[has]
        l4 = frames.l4[at] + np.where(frames.protocol[at] == ICMP, 4, 0)
        port = (work[left, l4].astype(np.int64) << 8) | work[left, l4 + 1]
        own = slots.own[at]
        moved = (self._address[own] != address) | (self._port[own] != port)
        if moved.any():
            self._moved += int((moved & ~np.isin(own, own[fresh[at]])).sum())
        self._address[own], self._port[own], self._last_out[own] = address, port, frames.time_ns[at]

    def _count(self, frames: Frames, verdicts: NDArray[np.uint8]) -> None:
        found = np.bincount(verdicts, minlength=256)
        for number in np.flatnonzero(found[:_SKIPPED]).tolist():
            self.outcome.verdicts[Verdict(number)] += int(found[number])
        forwarded = verdicts <= Verdict.UNTRANSLATED
        for way, side in (("out", Side.INSIDE), ("in", Side.OUTSIDE)):
            mine = forwarded & (frames.side == side)
            self.outcome.packets[way] += int(mine.sum())
            self.outcome.bytes[way] += int((frames.length[mine] - 14).sum())
        self._take_rows()

    def _take_rows(self) -> None:
        rows = self._gateway.take_records(events=True)
        kinds = rows["kind"]
        windows = rows[kinds == RecordKind.WINDOW]
        self.outcome.log_rows += len(windows)
        if len(windows):
            self.outcome.log_bytes += len(encode_logs(windows.view("u1"), b"", FIELDS[:13]))
        blocks = (kinds == RecordKind.BLOCK_ALLOCATED) | (kinds == RecordKind.BLOCK_RELEASED)
        self.outcome.block_rows += int(blocks.sum())
        self.outcome.log_lost += int(rows["session"][kinds == RecordKind.GAP].sum())

    def _sample(self, time_ns: int) -> None:
        """Sample what the gateway has, if it is time."""
        if time_ns < self._next_ns:
            return
        self._next_ns += ((time_ns - self._next_ns) // self._step_ns + 1) * self._step_ns
        self._look(time_ns)
        if len(self.outcome.samples) >= 2 * SAMPLES:  # half as many, twice as far apart
            del self.outcome.samples[::2]
            self._step_ns *= 2

    def _look(self, time_ns: int) -> None:
        gateway, outcome = self._gateway, self.outcome
        now = (time_ns - self._first_ns) / 1e9
        gateway.advance(now)
        ports = gateway.ports()
        by_protocol, total = dict[str, int](), dict[str, int]()
        for name, number in _PROTOCOLS.items():
            mine = ports[ports["protocol"] == number]
            by_protocol[name] = int(mine["used"].sum(dtype=np.int64) + mine["held_down"].sum(dtype=np.int64))
            total[name] = int(mine["total"].sum(dtype=np.int64) - mine["reserved"].sum(dtype=np.int64))
        counters = gateway.counters()
        outcome.samples.append(Sample(time_ns / 1e9, counters["sessions"], by_protocol))
        outcome.total_ports = total
        subscribers = gateway.subscriber_rates(once=True).rows()
        now_has = np.stack(
            [subscribers[name].astype(np.int64) for name in ("inside_ip", "mappings", "sessions")], axis=1
        )
        both = np.concatenate([self._peaks, now_has])
        if len(both):
            both = both[np.argsort(both[:, 0], kind="stable")]
            starts = np.flatnonzero(np.append(True, both[1:, 0] != both[:-1, 0]))
            self._peaks = np.maximum.reduceat(both, starts)
        self._take_rows()

    def compare(self, first: NDArray[np.uint8], own: NDArray[np.uint8]) -> None:
        """Count what went otherwise than under the first configuration."""
        other = first != own
        if other.any():
            pairs = np.bincount(first[other].astype(np.int64) << 8 | own[other], minlength=1 << 16)
            for pair in np.flatnonzero(pairs).tolist():
                self.outcome.changed[_verdict(pair >> 8), _verdict(pair & 0xFF)] += int(pairs[pair])

    def finish(self) -> None:
        """End what is open, and conclude."""
        gateway, outcome = self._gateway, self.outcome
        self._look(self._last_ns)
        gateway.end_all()
        self._take_rows()
        counters = gateway.counters()
        outcome.sessions = counters["created"]
        outcome.peak_sessions = max(sample.sessions for sample in outcome.samples)
        outcome.peak_ports = {name: max(sample.ports[name] for sample in outcome.samples) for name in _PROTOCOLS}
        most = self._peaks[np.lexsort((self._peaks[:, 0], -self._peaks[:, 2], -self._peaks[:, 1]))][:MOST_SUBSCRIBERS]
        outcome.peaks = [(format_ipv4(address), ports, sessions) for address, ports, sessions in most.tolist()]
        if self._moved:
            outcome.skipped[MOVED] += self._moved
        outcome.forecast = forecast(
            [(sample.time, sample.ports) for sample in outcome.samples], outcome.total_ports,
            outcome.verdicts[Verdict.DROP_PORTS_EXHAUSTED],
        )  # fmt: skip


def _verdict(number: int) -> Verdict | None:
    return None if number == _SKIPPED else Verdict(number)


def _readdress(frames: Frames, rows: NDArray[np.uint8], which: Ints, address: Ints, port: Ints) -> None:
    """Give answers another destination, with the IPv4 checksum by RFC 1624; a gateway verifies no other one."""
    if not len(which):
        return
    part = rows[which]
    old = part[:, 30:34].astype(np.int64)
    total = ~((part[:, 24].astype(np.int64) << 8) | part[:, 25]) & 0xFFFF
    total += (~((old[:, 0] << 8) | old[:, 1]) & 0xFFFF) + (~((old[:, 2] << 8) | old[:, 3]) & 0xFFFF)
    total += (address >> 16) + (address & 0xFFFF)
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    part[:, 24], part[:, 25] = total >> 8, total & 0xFF
    for at in range(4):
        part[:, 30 + at] = address >> 8 * (3 - at) & 0xFF
    rows[which] = part
    has = port >= 0
    which, port = which[has], port[has]
    place = frames.l4[which] + np.where(frames.protocol[which] == ICMP, 4, 2)
    rows[which, place], rows[which, place + 1] = port >> 8, port & 0xFF


def gateways_of(files: Iterable[Path], seed: int | None = None) -> tuple[ExitStack, dict[str, Gateway], list[str]]:
    """Return the gateways of configuration files, what closes them, and the prefixes of their SNAT entries."""
    from dataclasses import replace

    from natcore.service.configuration_file import load

    stack = ExitStack()
    made: dict[str, Gateway] = {}
    prefixes: dict[str, None] = {}
    try:
        for file in files:
            settings = load(file)
            arguments = {**settings.gateway, "records": max(settings.gateway.get("records", 0), _RECORDS)}
            arguments["huge_pages"] = "never"  # several gateways share this machine's memory
            if seed is not None:
                arguments["seed"] = seed
            name = str(file)
            if name in made:
                raise ConfigurationError(f"--config must name different files, got {name} twice")
            made[name] = stack.enter_context(replace(settings, gateway=arguments).make_gateway())
            prefixes |= dict.fromkeys(str(entry.source) for entry in settings.snat)
    except BaseException:
        stack.close()
        raise
    return stack, made, list(prefixes)


_RECORDS = 1 << 16  # rows that wait between two batches
