"""Collector: a gateway's metrics for prometheus_client, read when they are scraped; nothing is kept up to date meanwhile.

docs/guide/metrics.md lists them. No label names a subscriber: the number of series depends on the configuration alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import natcore
from natcore.dtypes import PORTS
from natcore.errors import ConfigurationError
from natcore.events import LIMITS
from natcore.internal import machine_clock
from natcore.internal.extras import extra
from natcore.internal.parts import parts_of
from natcore.internal.protocols import TCP, UDP, protocol_name
from natcore.internal.redaction import show
from natcore.internal.validation import check_integer
from natcore.verdict import Verdict

with extra("metrics"):
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector as BaseCollector

if TYPE_CHECKING:
    from natcore.gateway import Gateway
    from natcore.peer.pair import Pair
    from natcore.sessionlog.session_log import SessionLog

KINDS = ("tcp", "udp", "icmp", "other")  # protocols of created and ended sessions, as the core counts them
PORT_STATES = ("used", "held_down", "reserved", "free")
# Of an interface: the event's label, by the counter of Plane.counters_by_interface.
INTERFACE_EVENTS = {
    "received": "received",
    "sent": "sent",
    "ring_drops": "ring_dropped",
    "send_dropped": "send_dropped",
}
LOSSES = ("queue_full", "spool_full", "damaged", "rejected", "shutdown")
GAPS = {"died": "gaps_died", "journal-full": "gaps_journal_full", "log-full": "gaps_log_full"}
PEER_ROLES = ("standby", "active", "stopping")
DEFERRED = ("acknowledged", "late", "alone", "overflow")  # outcomes
DESTINATIONS_SECONDS = 15.0  # between two looks at all destinations
ALL_ADDRESSES = "all"  # label of the sums, where there are more addresses than have series of their own


class Reloads(Protocol):
    """What a service tells of its configuration: `natcore.service.run.Service`."""

    @property
    def last_reload_ok(self) -> bool:
        """Whether the last reload went well; True while there was none."""
        ...

    @property
    def last_reload_at(self) -> float:
        """Unix seconds when the configuration in force was read."""
        ...


class _Totals(NamedTuple):
    """As `Core.totals` gives them."""

    verdicts: Sequence[int]
    named: Mapping[str, int]
    from_outside: Sequence[int]
    sessions: Mapping[str, Sequence[int]]
    refused: Sequence[int]
    handed_off: Sequence[int]


class Collector(BaseCollector):
    """The metrics of one gateway, for a `prometheus_client` registry; thread-safe.

    A scrape locks the gateway's workers for microseconds, and costs the same for one session or ten million. What a
    gateway counts down, since a packet that was forwarded found no next hop, stays as high here as it was: a counter
    never falls.

    Parameters
    ----------
    gateway
        The gateway; it may have planes and session logs, or none, and these may come and go.
    service
        Tells the reloads of a configuration file, and, where its gateway is one of a pair, how that is; None: neither.
    addresses
        Outside addresses that have series of their own, 0 to 1,024; with more in the pools their sums alone are given,
        with `outside_ip="all"`.

    Raises
    ------
    ConfigurationError
        An argument is none of these.

    Examples
    --------
    >>> from prometheus_client import REGISTRY, start_http_server
    >>> from natcore import Gateway, metrics
    >>> gateway = Gateway(instance="ngw-1")
    >>> REGISTRY.register(metrics.Collector(gateway))
    >>> _ = start_http_server(0, addr="127.0.0.1")
    """

    def __init__(self, gateway: Gateway, *, service: Reloads | None = None, addresses: int = 64) -> None:
        if not isinstance(gateway, natcore.Gateway):
            raise ConfigurationError(f"gateway must be a Gateway, got {show(gateway)}")
        self._gateway = gateway
        self._service = service
        self._addresses = check_integer("addresses", addresses, 0, 1024)
        self._started = time.time()
        self._highest: dict[tuple[str, ...], int] = {}
        self._most: Mapping[tuple[int, int], int] = {}
        self._looked = -DESTINATIONS_SECONDS
        self._lock = threading.Lock()

    def registry(self) -> CollectorRegistry:
        """Return a registry with this collector alone."""
        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def describe(self) -> Iterable[Metric]:
        """Return no metric: a registry need not scrape to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        totals = _Totals(*parts_of(self._gateway).core.inspection.totals())
        yield from self._about()
        yield from self._packets(totals)
        yield from self._sessions(totals)
        yield from self._ports()
        yield from self._interfaces(totals)
        yield from self._logs()
        yield from self._peer()

    def _rising(self, value: int, *key: str) -> int:
        """Return the highest value that a counter had."""
        with self._lock:
            self._highest[key] = highest = max(value, self._highest.get(key, 0))
            return highest

    def _about(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("natcore_build_info", "The version; always 1.", labels=["version"])
        build.add_metric([natcore.__version__], 1)
        yield build
        yield _gauge("natcore_start_time_seconds", "Unix time when the metrics began.", self._started)
        if self._service is not None:
            ok = int(self._service.last_reload_ok)
            yield _gauge(
                "natcore_config_last_reload_successful", "1: the last reload went well, or there was none.", ok
            )
            yield _gauge(
                "natcore_config_last_reload_timestamp_seconds", "Unix time when the configuration in force was read.",
                self._service.last_reload_at,
            )  # fmt: skip
        offset = self._clock_offset()
        if offset is not None:
            yield _gauge("natcore_clock_offset_seconds", "The session log's time less the machine's.", offset)

    def _clock_offset(self) -> float | None:
        """None: no plane moves the gateway's clock."""
        planes = self._gateway.planes
        if not planes:
            return None
        now = machine_clock.read()
        return (parts_of(self._gateway).core.log_rows.epoch_ns + now.monotonic + planes[0].offset_ns - now.real) / 1e9

    def _packets(self, totals: _Totals) -> Iterator[Metric]:
        packets = CounterMetricFamily(
            "natcore_packets",
            "Frames by the side that they came from and what became of them.",
            labels=["side", "verdict"],
        )
        outside = list(totals.from_outside)
        outside[Verdict.INBOUND] = totals.verdicts[Verdict.INBOUND]  # these two say the side themselves
        outside[Verdict.OUTBOUND] = 0
        sides = ([all_ - out for all_, out in zip(totals.verdicts, outside, strict=True)], outside)
        for side, counts in zip(("inside", "outside"), sides, strict=True):
            for verdict in (v for v in Verdict if not v.is_drop and v is not Verdict.HELD):
                if verdict not in _NEVER[side]:
                    name = verdict.name.lower()
                    packets.add_metric([side, name], self._rising(counts[verdict], "packets", side, name))
            packets.add_metric([side, "dropped"], self._rising(sum(counts[128:]), "packets", side, "dropped"))
        yield packets
        carried = CounterMetricFamily(
            "natcore_bytes", "IPv4 bytes of forwarded packets by the side that they came from.",
            labels=["side"],
        )  # fmt: skip
        for side in ("inside", "outside"):
            carried.add_metric([side], totals.named[f"bytes_from_{side}"])
        yield carried
        drops = CounterMetricFamily("natcore_dropped_packets", "Dropped frames by reason.", labels=["reason"])
        for drop in Verdict:
            if drop.is_drop:
                drops.add_metric([drop.reason], self._rising(totals.verdicts[drop], "dropped", drop.reason))
        yield drops

    def _sessions(self, totals: _Totals) -> Iterator[Metric]:
        named = totals.named
        yield _gauge("natcore_sessions", "Sessions in the tables.", named["sessions"])
        yield _gauge("natcore_sessions_limit", "max_sessions.", self._gateway.max_sessions)
        yield _gauge("natcore_mappings", "Mappings in the tables.", named["mappings"])
        for what in ("created", "ended"):
            family = CounterMetricFamily(
                f"natcore_sessions_{what}", f"Sessions {what}, by protocol.", labels=["protocol"]
            )
            for kind, count in zip(KINDS, totals.sessions[what], strict=True):
                family.add_metric([kind], self._rising(count, what, kind))
            yield family
        refusals = CounterMetricFamily(
            "natcore_limit_refusals", "Packets refused by a limit, by its name.", labels=["limit"]
        )
        for limit, count in zip(LIMITS, totals.refused, strict=True):
            if limit:
                refusals.add_metric([limit], count)
        yield refusals

    def _ports(self) -> Iterator[Metric]:
        parts = parts_of(self._gateway)
        rows = np.zeros(3 * parts.table.address_count, PORTS)
        rows = rows[: parts.core.inspection.ports(rows)]
        ports = GaugeMetricFamily(
            "natcore_ports", "Outside ports by address, protocol and state.", labels=["outside_ip", "protocol", "state"]
        )
        least = GaugeMetricFamily(
            "natcore_ports_free_ratio",
            "Free ports of the outside address that has the fewest, 0 to 1.",
            labels=["protocol"],
        )
        for number in sorted(set(rows["protocol"].tolist())):
            of_protocol = rows[rows["protocol"] == number]
            name = protocol_name(number).lower()
            if len(of_protocol) <= self._addresses:
                for row in of_protocol:
                    for state in PORT_STATES:
                        ports.add_metric([str(IPv4Address(int(row["outside_ip"]))), name, state], int(row[state]))
            else:
                for state in PORT_STATES:
                    ports.add_metric([ALL_ADDRESSES, name, state], int(of_protocol[state].sum()))
            usable = of_protocol["total"] - of_protocol["reserved"]
            free = of_protocol["free"][usable > 0] / usable[usable > 0]
            if len(free):
                least.add_metric([name], float(free.min()))
        yield ports
        yield least
        yield from self._destinations(rows)

    def _destinations(self, rows: NDArray[np.void]) -> Iterator[Metric]:
        """Ports in use towards the most used destination; only `ports="overload"` has a limit for each. rows: PORTS."""
        if self._gateway.policy.ports != "overload":
            return
        saturation = GaugeMetricFamily(
            "natcore_destination_saturation_ratio",
            "Ports in use towards the most used destination of the outside address, 0 to 1.",
            labels=["outside_ip", "protocol"],
        )
        most = self._most_taken()
        for row in rows if len(rows) <= 3 * self._addresses else ():
            usable = int(row["total"]) - int(row["reserved"])
            taken = most.get((int(row["outside_ip"]), int(row["protocol"])), 0)
            if usable > 0 and (taken or row["protocol"] in (TCP, UDP)):
                labels = [str(IPv4Address(int(row["outside_ip"]))), protocol_name(int(row["protocol"])).lower()]
                saturation.add_metric(labels, taken / usable)
        yield saturation

    def _most_taken(self) -> Mapping[tuple[int, int], int]:
        """Return the most ports in use towards one destination, by outside address and protocol; looked at each 15 s."""
        with self._lock:
            if time.monotonic() - self._looked < DESTINATIONS_SECONDS:
                return self._most
            self._looked = time.monotonic()
        core = parts_of(self._gateway).core
        most: dict[tuple[int, int], int] = {}
        place: int | None = 0
        while place is not None:
            found, place = core.inspection.most_taken(place)
            for key, taken in found.items():
                most[key] = max(taken, most.get(key, 0))
        self._most = most
        return most

    def _interfaces(self, totals: _Totals) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "natcore_interface_up", "1: the interface is there, up, and has a carrier.", labels=["interface", "side"]
        )
        block = GaugeMetricFamily(
            "natcore_kernel_block_installed",
            "1: the kernel's own stack is kept off the interface.",
            labels=["interface"],
        )
        packets = CounterMetricFamily(
            "natcore_interface_packets", "Frames of the interface's rings.", labels=["interface", "worker", "event"]
        )
        fast = GaugeMetricFamily("natcore_fast_path_sessions", "Sessions that XDP programs translate packets of.")
        fast.add_metric([], sum(plane.counters().get("fast_path_sessions", 0) for plane in self._gateway.planes))
        for plane in self._gateway.planes:
            for name, interface in plane.interfaces().items():
                up.add_metric([name, interface.side], int(interface.up))
                block.add_metric([name], int(interface.kernel_block))
            for worker in range(self._gateway.workers):
                for name, counters in plane.counters_by_interface(worker).items():
                    for counter, event in INTERFACE_EVENTS.items():
                        packets.add_metric([name, str(worker), event], counters.get(counter, 0))
        yield up
        yield block
        yield packets
        yield fast
        handed_off = CounterMetricFamily(
            "natcore_handed_off", "Frames that a worker got and another one's tables were used for.", labels=["worker"]
        )
        for worker, count in enumerate(totals.handed_off):
            handed_off.add_metric([str(worker)], count)
        yield handed_off

    def _logs(self) -> Iterator[Metric]:
        rows = CounterMetricFamily(
            "natcore_log_rows", "Rows of a session log by what became of them; reason: why rows are lost.",
            labels=["log", "result", "reason"],
        )  # fmt: skip
        waiting = GaugeMetricFamily("natcore_log_waiting_rows", "Undelivered rows by place.", labels=["log", "where"])
        oldest = GaugeMetricFamily(
            "natcore_log_oldest_waiting_seconds", "How long the oldest undelivered row has waited.", labels=["log"]
        )
        spool = GaugeMetricFamily("natcore_log_spool_bytes", "Bytes of the spool's files.", labels=["log"])
        unlabelled = CounterMetricFamily(
            "natcore_log_unlabelled_rows",
            "Delivered rows of which the log's labels could not be asked.",
            labels=["log"],
        )
        up = GaugeMetricFamily("natcore_log_up", "0: the destination fails.", labels=["log"])
        gaps = CounterMetricFamily("natcore_gap_rows", "Gap rows of all session logs, by reason.", labels=["reason"])
        collector = parts_of(self._gateway).collector
        logs: tuple[SessionLog, ...] = () if collector is None else collector.logs
        begun = dict.fromkeys(GAPS, 0)
        for log in logs:
            counters = log.counters()
            for result in ("accepted", "delivered", "dead_letter"):
                rows.add_metric([log.name, result, ""], self._rising(counters[result], "rows", log.name, result))
            for reason in LOSSES:
                rows.add_metric([log.name, "lost", reason.replace("_", "-")], counters[f"lost_{reason}"])
            for where in ("queued", "spooled"):
                waiting.add_metric([log.name, where], counters[where])
            oldest.add_metric([log.name], log.oldest_waiting)
            spool.add_metric([log.name], log.spool_bytes)
            unlabelled.add_metric([log.name], counters["unlabelled"])
            up.add_metric([log.name], int(log.delivery_status.state != "Failed"))
            for reason, counter in GAPS.items():
                begun[reason] += counters[counter]
        for reason, count in begun.items():
            gaps.add_metric([reason], self._rising(count, "gaps", reason))
        yield from (rows, waiting, oldest, spool, unlabelled, up, gaps)

    def _peer(self) -> Iterator[Metric]:
        """Of one gateway of a pair, which `natcore run` alone is."""
        pair: Pair | None = getattr(self._service, "pair", None)
        if pair is None:
            return
        counters, lag, lease = pair.counters(), pair.lag_seconds, pair.lease_seconds
        role = GaugeMetricFamily("natcore_peer_role", "1: the gateway's role in its pair.", labels=["role"])
        for name in PEER_ROLES:
            role.add_metric([name], int(pair.role == name))
        yield role
        yield _gauge("natcore_peer_connected", "1: the stream between the two gateways runs.", int(pair.connected))
        yield _gauge("natcore_peer_lag_records", "Rows that the standby does not have yet.", counters["lag_records"])
        if lag is not None:
            yield _gauge("natcore_peer_lag_seconds", "How long ago the standby had everything.", lag)
        if lease is not None:
            yield _gauge("natcore_peer_lease_seconds", "How long the gateway may translate by the votes it has.", lease)
        for what, unit, ways in (
            ("rows", "Rows of the stream", {"sent": "rows_sent", "applied": "rows_applied"}),
            ("snapshots", "Whole images", {"sent": "snapshots_sent", "received": "snapshots_received"}),
        ):
            family = CounterMetricFamily(f"natcore_peer_{what}", f"{unit}, by direction.", labels=["direction"])
            for way, counter in ways.items():
                family.add_metric([way], counters[counter])
            yield family
        for name, text in (
            ("bytes_sent", "Bytes of the stream."),
            ("stream_failures", "Streams that ended by a message that was wrong."),
            ("role_changes", "Changes of the role."),
        ):
            yield CounterMetricFamily(f"natcore_peer_{name}", text, value=counters[name])
        yield from self._deferred()

    def _deferred(self) -> Iterator[Metric]:
        """First packets of sessions that waited for the standby."""
        planes = [plane.counters() for plane in self._gateway.planes]
        text = "Packets that waited until the standby had their sessions, by why they left."
        frames = CounterMetricFamily("natcore_peer_deferred_packets", text, labels=["outcome"])
        for outcome in DEFERRED:
            frames.add_metric([outcome], sum(counters[f"deferred_{outcome}"] for counters in planes))
        yield frames
        waited = sum(counters["deferred_ms"] for counters in planes) / 1000
        yield CounterMetricFamily("natcore_peer_deferred_seconds", "How long all of them have waited.", value=waited)


_NEVER = {  # verdicts that no frame of the side has
    "inside": (Verdict.INBOUND,),
    "outside": (Verdict.OUTBOUND, Verdict.HAIRPIN),
}


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)
