"""What would have become of a capture's traffic under each of several configurations, in one pass over the capture.

Theory of operation. Frames come in batches (natcore.capture.prepared). Each configuration's gateway translates copies of them,
one after the other (natcore.api.inside_link): an answer goes to the outside endpoint that its inside endpoint has at that
moment.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from natcore.api.inside_link import InsideLink
from natcore.capture.forecast import Forecast, forecast
from natcore.capture.prepared import Frames, Preparer
from natcore.capture.read_ahead import read_ahead
from natcore.capture.readdress import forwarded_endpoints, quoted_endpoint, readdress_error
from natcore.capture.reader import Batch, CutShortError, batches
from natcore.capture.sides import Sides
from natcore.dtypes import FIELDS, RecordKind, format_ipv4
from natcore.errors import ConfigurationError
from natcore.gateway import Gateway
from natcore.internal.parts import parts_of
from natcore.internal.protocols import ICMP, TCP, UDP
from natcore.log.encode_sls import encode_logs
from natcore.verdict import Side, Verdict

SAMPLES = 120  # of ports and sessions over the capture
PEAKS_EVERY = 4  # samples: how often all subscribers are looked at
MOST_SUBSCRIBERS = 10  # that are named
NO_MAPPING = "answer to nothing in the capture"
_SKIPPED = 255  # in place of a verdict
_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP}
CUT_SHORT = "the capture was cut off: its last frame is left out"


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
        The subscribers with the most ports at every PEAKS_EVERY-th sample: address, ports, sessions.
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
    runs = [_Run(name, gateway) for name, gateway in gateways.items()]
    source = _Source(path, preparer)
    seen = False
    for frames in read_ahead(preparer.run(source.batches())):
        for start in range(0, len(frames), _CALL):
            part = frames.take(slice(start, start + _CALL))
            if not seen:
                found.start, seen = int(part.time_ns[0]) / 1e9, True
                for run in runs:
                    run.start(int(part.time_ns[0]), source.step_ns)
            found.end = int(part.time_ns[-1]) / 1e9
            verdicts = [run.take(part) for run in runs]
            for run, others in zip(runs[1:], verdicts[1:], strict=True):
                run.compare(verdicts[0], others)
    for run in runs:
        run.finish()
    found.frames, found.skipped, found.mended = preparer.frames, preparer.skipped, preparer.mended
    found.outcomes = [run.outcome for run in runs]
    return found


_CALL = 16_384  # frames that each gateway takes before the next one does


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


class _Run:
    """One configuration's gateway on its way through the capture."""

    def __init__(self, name: str, gateway: Gateway) -> None:
        self.outcome = Outcome(name)
        self._gateway = gateway
        self._link = InsideLink(
            parts_of(gateway).core, is_by_remote(gateway), forwarded_endpoints(gateway), secrets.token_bytes(16)
        )
        self._first_ns = self._last_ns = self._next_ns = 0
        self._step_ns = 1
        self._looks = 0
        self._peaks = np.zeros((0, 3), np.int64)  # inside address, ports, sessions

    def start(self, first_ns: int, step_ns: int) -> None:
        """Begin at the time of the first frame, with samples so far apart."""
        self._gateway.set_epoch(first_ns / 1e9)
        self._first_ns = self._last_ns = first_ns
        self._step_ns, self._next_ns = step_ns, first_ns + step_ns

    def take(self, frames: Frames) -> NDArray[np.uint8]:
        """Translate frames; return their verdicts, _SKIPPED where there is none."""
        verdicts = np.empty(len(frames), np.uint8)
        time_ns, begin = frames.time_ns, 0
        while begin < len(frames):
            self._sample(int(time_ns[begin]))
            end = int(np.searchsorted(time_ns, self._next_ns))
            begin = self._link.feed(frames.rows, frames.fields, self._first_ns, verdicts, begin, end)
            if begin < end:
                verdicts[begin] = self._take_error(frames, begin)
                begin += 1
        self._last_ns = int(time_ns[-1])
        self._gateway.take_generated()
        self._count(frames, verdicts)
        return verdicts

    def _take_error(self, frames: Frames, at: int) -> int:
        """Translate an ICMP error as its sender sent it; return its verdict, or _SKIPPED."""
        one = frames.fields[at]
        message, side = frames.messages[int(one["message"])], Side(int(one["side"]))
        if side is Side.OUTSIDE:
            quoted = quoted_endpoint(message)
            outside = None if quoted is None else self._link.find(*quoted)
            if outside is None:
                return _SKIPPED
            message = readdress_error(message, *outside)
        now = (int(one["time_ns"]) - self._first_ns) / 1e9
        verdict, sent = self._gateway.translate_one(message, side, now)
        if verdict in (Verdict.OUTBOUND, Verdict.UNTRANSLATED) and side is Side.INSIDE and sent is not None:
            self._link.learn_host(int(one["source"]), int.from_bytes(sent[26:30], "big"))
        return verdict

    def _count(self, frames: Frames, verdicts: NDArray[np.uint8]) -> None:
        found = np.bincount(verdicts, minlength=256)
        for number in np.flatnonzero(found[:_SKIPPED]).tolist():
            self.outcome.verdicts[Verdict(number)] += int(found[number])
        if found[_SKIPPED]:
            self.outcome.skipped[NO_MAPPING] += int(found[_SKIPPED])
        forwarded = verdicts <= Verdict.UNTRANSLATED
        for way, side in (("out", Side.INSIDE), ("in", Side.OUTSIDE)):
            mine = forwarded & (frames.fields["side"] == side)
            self.outcome.packets[way] += (count := int(mine.sum()))
            self.outcome.bytes[way] += int(frames.fields["length"][mine].sum(dtype=np.int64)) - 14 * count
        self._take_rows()

    def _take_rows(self) -> None:
        rows = self._gateway.take_records(events=True)
        kinds = rows["kind"]
        windows = rows[kinds == RecordKind.WINDOW]
        self.outcome.log_rows += len(windows)
        for begin in range(0, len(windows), _ENCODED):
            part = np.ascontiguousarray(windows[begin : begin + _ENCODED]).view("u1")
            self.outcome.log_bytes += len(encode_logs(part, b"", FIELDS[:13]))
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
        self._take_rows()
        self._looks += 1
        if self._looks % PEAKS_EVERY == 0:
            self._look_at_subscribers()

    def _look_at_subscribers(self) -> None:
        subscribers = self._gateway.subscriber_rates(once=True).rows()
        now_has = np.stack(
            [subscribers[name].astype(np.int64) for name in ("inside_ip", "mappings", "sessions")], axis=1
        )
        both = np.concatenate([self._peaks, now_has])
        if len(both):
            both = both[np.argsort(both[:, 0], kind="stable")]
            starts = np.flatnonzero(np.append(True, both[1:, 0] != both[:-1, 0]))
            self._peaks = np.maximum.reduceat(both, starts)

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
        self._look_at_subscribers()
        gateway.end_all()
        self._take_rows()
        counters = gateway.counters()
        outcome.sessions = counters["created"]
        outcome.peak_sessions = max(sample.sessions for sample in outcome.samples)
        outcome.peak_ports = {name: max(sample.ports[name] for sample in outcome.samples) for name in _PROTOCOLS}
        most = self._peaks[np.lexsort((self._peaks[:, 0], -self._peaks[:, 2], -self._peaks[:, 1]))][:MOST_SUBSCRIBERS]
        outcome.peaks = [(format_ipv4(address), ports, sessions) for address, ports, sessions in most.tolist()]
        outcome.forecast = forecast(
            [(sample.time, sample.ports) for sample in outcome.samples], outcome.total_ports,
            outcome.verdicts[Verdict.DROP_PORTS_EXHAUSTED],
        )  # fmt: skip


def _verdict(number: int) -> Verdict | None:
    return None if number == _SKIPPED else Verdict(number)


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


_ENCODED = 4096  # rows at once, of which only the bytes are counted
_RECORDS = 1 << 16  # rows that wait between two batches
