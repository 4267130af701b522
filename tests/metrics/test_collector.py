"""The metrics of a gateway: each says what its tables say, no counter falls, and no label names a subscriber."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import natcore
from natcore import ConfigurationError, DeliveryPolicy, Gateway, Policy, Side, SnatEntry, Verdict, metrics
from natcore.control.client import Client
from natcore.control.server import ControlServer
from natcore.events import LIMITS
from natcore.sessionlog.ledger import Ledger
from natcore.sinks import MemorySink
from natcore.testhooks.planted_faults import undeliver
from support.frames import EIP, REMOTE, Talk, fragments, gateway, one_port, tcp, udp
from support.netns import Nat, nat, needs_root, network, ping, until

__all__ = ["nat", "network"]  # fixtures
INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
ROOT = Path(__file__).resolve().parents[2]


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(name, labels)
    assert found is not None, f"no {name}{labels}"
    return found


def families(registry: CollectorRegistry) -> list[Metric]:
    """As a client reads them: OpenMetrics, which forbids what is not well-formed."""
    return list(text_string_to_metric_families(generate_latest(registry).decode()))


def test_packets_and_bytes_are_counted_by_the_side_that_they_came_from() -> None:
    over = gateway()
    registry = metrics.Collector(over).registry()
    talk = Talk(over)
    talk.out()
    talk.back()
    talk.out()
    over.translate_one(udp(REMOTE, 53, EIP, 9), OUTSIDE, 0.0)  # a stranger's
    over.translate_one(b"\0" * 14, INSIDE, 0.0)
    rows = over.sessions()
    counted = {
        (side, verdict): value(registry, "natcore_packets_total", side=side, verdict=verdict)
        for side, verdict in [
            ("inside", "outbound"),
            ("outside", "inbound"),
            ("outside", "dropped"),
            ("inside", "dropped"),
        ]
    }
    assert list(counted.values()) == [2, 1, 1, 1]
    assert value(registry, "natcore_bytes_total", side="inside") == rows["bytes_out"].sum() > 0
    assert value(registry, "natcore_bytes_total", side="outside") == rows["bytes_in"].sum() > 0
    assert value(registry, "natcore_dropped_packets_total", reason="no-mapping") == 1
    total = sum(s.value for f in families(registry) if f.name == "natcore_packets" for s in f.samples)
    assert total == over.counters()["received"]


def test_fragments_that_waited_are_counted_when_they_leave() -> None:
    over = gateway()
    first, *later = fragments(udp(load=bytes(4000)), 1000)
    for frame in later:
        assert over.translate_one(frame, INSIDE, 0.0)[0] is Verdict.HELD
    assert over.counters()["bytes_from_inside"] == 0
    over.translate_one(first, INSIDE, 0.0)
    assert len(over.take_generated()) == len(later)
    assert over.counters()["bytes_from_inside"] == over.sessions()["bytes_out"].sum() == 4028 + 20 * len(later)


def test_sessions_are_counted_by_protocol_and_refusals_by_limit() -> None:
    over = gateway(policy=one_port(), max_sessions=2)
    registry = metrics.Collector(over).registry()
    over.translate_one(udp(), INSIDE, 0.0)
    over.translate_one(tcp("S"), INSIDE, 0.0)
    over.translate_one(udp("10.0.0.6"), INSIDE, 0.0)  # no port, and no session either
    over.end(protocol="udp")
    over.translate_one(udp(), INSIDE, 1.0)
    over.translate_one(udp(dport=54), INSIDE, 1.0)
    assert value(registry, "natcore_sessions_created_total", protocol="udp") == 2
    assert value(registry, "natcore_sessions_created_total", protocol="tcp") == 1
    assert value(registry, "natcore_sessions_ended_total", protocol="udp") == 1
    assert (value(registry, "natcore_sessions"), value(registry, "natcore_sessions_limit")) == (2, 2)
    refused = {limit: value(registry, "natcore_limit_refusals_total", limit=limit) for limit in LIMITS if limit}
    assert refused == {limit: 2 * (limit == "max_sessions") for limit in refused}


def test_ports_by_state_and_the_scarcest_address() -> None:
    over = gateway(policy=Policy(port_ranges=((4000, 4003),)))
    registry = metrics.Collector(over).registry()
    over.translate_one(udp(), INSIDE, 0.0)
    labels = {"outside_ip": EIP, "protocol": "udp"}
    assert value(registry, "natcore_ports", **labels, state="used") == 1
    assert value(registry, "natcore_ports", **labels, state="free") == 3
    assert value(registry, "natcore_ports_free_ratio", protocol="udp") == 0.75
    assert value(registry, "natcore_ports_free_ratio", protocol="tcp") == 1


def test_more_addresses_than_have_series_of_their_own_are_summed() -> None:
    over = gateway(pool="203.0.113.0-203.0.113.7")
    sums = metrics.Collector(over, addresses=7).registry()
    assert value(sums, "natcore_ports", outside_ip="all", protocol="tcp", state="free") == 8 * 64_512
    assert len({s.labels["outside_ip"] for f in families(sums) if f.name == "natcore_ports" for s in f.samples}) == 1


def test_overloaded_ports_tell_the_most_saturated_destination() -> None:
    policy = Policy(
        ports="overload", mapping="address-and-port-dependent", filtering="address-and-port-dependent",
        port_ranges=((4000, 4003),),
    )  # fmt: skip
    over = gateway(policy=policy)
    for host in range(3):
        over.translate_one(udp(f"10.0.0.{host + 1}"), INSIDE, 0.0)
    over.translate_one(udp(destination="198.51.100.8"), INSIDE, 0.0)
    registry = metrics.Collector(over).registry()
    assert value(registry, "natcore_destination_saturation_ratio", outside_ip=EIP, protocol="udp") == 0.75
    assert value(registry, "natcore_destination_saturation_ratio", outside_ip=EIP, protocol="tcp") == 0


def test_no_counter_falls_when_a_forwarded_packet_finds_no_next_hop() -> None:
    """A rate over a counter that fell would show all that it ever counted, in one moment."""
    over = gateway()
    registry = metrics.Collector(over).registry()
    verdict, sent = over.translate_one(udp(), INSIDE, 0.0)
    assert sent is not None and value(registry, "natcore_packets_total", side="inside", verdict="outbound") == 1
    undeliver(over._core.worker_capsule(0), sent, INSIDE, verdict, Verdict.DROP_NO_NEIGHBOUR)
    assert over.counters()["forwarded"] == 0
    assert value(registry, "natcore_packets_total", side="inside", verdict="outbound") == 1
    assert value(registry, "natcore_packets_total", side="inside", verdict="dropped") == 1


def test_a_session_log_tells_its_rows_and_how_long_they_wait(tmp_path: Path) -> None:
    over = gateway()
    registry = metrics.Collector(over).registry()
    with over.start_session_log(MemorySink(), name="audit", spool=tmp_path, delivery=DeliveryPolicy()) as log:
        over.translate_one(udp(), INSIDE, 0.0)
        over.end_all()
        log.wait(60)
        accepted = value(registry, "natcore_log_rows_total", log="audit", result="accepted", reason="")
        assert accepted == value(registry, "natcore_log_rows_total", log="audit", result="delivered", reason="") > 0
        assert value(registry, "natcore_log_waiting_rows", log="audit", where="queued") == 0
        assert value(registry, "natcore_log_oldest_waiting_seconds", log="audit") == 0
        assert value(registry, "natcore_log_spool_bytes", log="audit") == log.spool_bytes > 0
        assert value(registry, "natcore_log_up", log="audit") == 1
        assert value(registry, "natcore_gap_rows_total", reason="died") == 0


def test_the_oldest_waiting_row_is_known_by_the_order_in_which_rows_settle() -> None:
    clock = [1000.0]
    ledger = Ledger(lambda: clock[0])
    assert ledger.oldest_waiting() == 0
    for clock[0] in (1000.0, 1000.5, 1010.0, 1500.0):
        ledger.accept(10)
    clock[0] = 1600.0
    assert ledger.oldest_waiting() == 600
    ledger.move(10, "queued", "spooled")
    assert ledger.oldest_waiting() == 600
    ledger.move(15, "queued", "delivered")
    assert ledger.oldest_waiting() == 600  # five of the first two calls still wait
    ledger.move(5, "queued", "delivered")
    assert ledger.oldest_waiting() == 590
    ledger.lose(20, "queued", "queue_full")
    assert ledger.oldest_waiting() == 0
    for second in range(2000, 20_000):
        clock[0] = second
        ledger.accept(1)
    assert 0 <= 18_000 - 1 - ledger.oldest_waiting() <= 1  # a bounded memory of when they came


def test_a_service_tells_its_reloads() -> None:
    service = SimpleNamespace(last_reload_ok=False, last_reload_at=123.0)
    registry = metrics.Collector(gateway(), service=service).registry()
    assert value(registry, "natcore_config_last_reload_successful") == 0
    assert value(registry, "natcore_config_last_reload_timestamp_seconds") == 123
    assert value(registry, "natcore_build_info", version=natcore.__version__) == 1


def test_one_of_a_pair_tells_its_role_and_how_far_the_standby_is() -> None:
    counters = {"rows_sent": 5, "rows_applied": 6, "bytes_sent": 7, "snapshots_sent": 1, "snapshots_received": 2,
                "stream_failures": 3, "role_changes": 4, "lag_records": 8}  # fmt: skip
    pair = SimpleNamespace(
        role="active", connected=True, lag_seconds=0.5, lease_seconds=0.25, counters=lambda: counters
    )
    service = SimpleNamespace(last_reload_ok=True, last_reload_at=0.0, pair=pair)
    registry = metrics.Collector(gateway(), service=service).registry()
    assert [value(registry, "natcore_peer_role", role=role) for role in ("active", "standby", "stopping")] == [1, 0, 0]
    assert value(registry, "natcore_peer_lag_records") == 8
    assert value(registry, "natcore_peer_lag_seconds") == 0.5
    assert value(registry, "natcore_peer_lease_seconds") == 0.25
    assert value(registry, "natcore_peer_rows_total", direction="applied") == 6
    assert value(registry, "natcore_peer_snapshots_total", direction="received") == 2
    assert value(registry, "natcore_peer_role_changes_total") == 4
    assert value(registry, "natcore_peer_deferred_packets_total", outcome="late") == 0
    assert value(registry, "natcore_peer_deferred_seconds_total") == 0
    guide = (ROOT / "docs/guide/metrics.md").read_text()
    samples = [sample.name for family in families(registry) for sample in family.samples]
    assert [name for name in samples if name.startswith("natcore_peer") and f"`{name}`" not in guide] == []
    pair.connected, pair.lag_seconds, pair.lease_seconds = False, None, None
    assert not [family.name for family in families(registry) if family.name.endswith(("lag_seconds", "lease_seconds"))]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigurationError, match="gateway must be a Gateway, got 5"):
        metrics.Collector(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="addresses must be a whole number between 0 and 1024, got -1"):
        metrics.Collector(gateway(), addresses=-1)


@needs_root
def test_a_gateway_with_eight_addresses_has_at_most_200_series_and_none_of_a_subscriber(
    nat: Nat, tmp_path: Path
) -> None:
    network, made, _ = nat
    made.add(SnatEntry("10.1.0.0/16", pool="203.0.113.0-203.0.113.6"))
    with made.start_session_log(MemorySink(), name="audit", spool=tmp_path):
        assert ping(network, "in", "198.18.0.2")
        service = SimpleNamespace(last_reload_ok=True, last_reload_at=0.0)
        registry = metrics.Collector(made, service=service).registry()
        found = families(registry)
    samples = [sample for family in found for sample in family.samples]
    assert len(samples) <= 200 + made.workers * 9, len(samples)
    assert not [s for s in samples if any("10.0." in text for text in s.labels.values())]
    assert value(registry, "natcore_interface_up", interface="lan0", side="inside") == 1
    assert value(registry, "natcore_kernel_block_installed", interface="wan0") == 1
    assert abs(value(registry, "natcore_clock_offset_seconds")) < 1
    guide = (ROOT / "docs/guide/metrics.md").read_text()
    assert [s.name for s in samples if f"`{s.name}`" not in guide] == []


@needs_root
def test_an_interface_that_goes_away_is_down_and_comes_back(nat: Nat) -> None:
    network, made, plane = nat
    registry = metrics.Collector(made).registry()
    health = metrics.Health(made)
    assert health.ready().ok and health.alive().ok
    network.run("gw", ["ip", "link", "set", "wan0", "down"])
    until(lambda: value(registry, "natcore_interface_up", interface="wan0", side="outside") == 0)
    assert health.ready().problems == ("interface wan0 (outside) is down or away",) and health.alive().ok
    network.run("gw", ["ip", "link", "set", "wan0", "up"])
    until(lambda: health.ready().ok)
    assert set(plane.turn_ages()) == {"natcore-watch", *(f"natcore-w{worker}" for worker in range(made.workers))}
    plane.stop()
    assert health.alive().ok and health.ready().problems == ("it forwards between no interfaces",)


def test_a_gateway_of_no_plane_is_alive_and_not_ready() -> None:
    with Gateway() as made:
        assert metrics.Health(made).alive().ok and not metrics.Health(made).ready().ok


def test_the_control_socket_gives_the_metrics(tmp_path: Path) -> None:
    path = tmp_path / "ngw-1.sock"
    with gateway() as made, ControlServer(made, path), Client(path) as client:
        made.translate_one(udp(), INSIDE, 0.0)
        every = client.ask("metrics")
        (one,) = client.ask("metrics", name="natcore_sessions")
    assert one == {"metric": "natcore_sessions", "labels": {}, "value": 1.0}
    assert len(every) > 50 and one in every
