"""The alert rules and the dashboard that are shipped: Prometheus takes them, each alert fires when it should and only then."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from natcore import DeliveryError, Gateway, Policy, Side, metrics
from natcore.sinks import MemorySink
from natcore.sinks.base import Batch
from support.frames import gateway, udp
from support.netns import Nat, at, nat, needs_root, network, until

__all__ = ["nat", "network"]  # fixtures
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus)")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus (Debian: prometheus)")
ROOT = Path(__file__).resolve().parents[2]
ALERTS = Path(str(resources.files("natcore.metrics") / "alerts.yml"))
DASHBOARD = Path(str(resources.files("natcore.metrics") / "dashboard.json"))

# Of each alert: a series (promtool's notation, a value a minute) with which it fires, and one with which it does not.
CASES = {
    "NatcoreDown": ('up{job="natcore"}', "0x20", "1x20"),
    "NatcoreInterfaceDown": ('natcore_interface_up{interface="wan0",side="outside"}', "0x20", "1x20"),
    "NatcoreKernelBlockMissing": ('natcore_kernel_block_installed{interface="wan0"}', "0x20", "1x20"),
    "NatcorePortsScarce": ('natcore_ports_free_ratio{protocol="tcp"}', "0.19x20", "0.2x20"),
    "NatcoreDestinationSaturated": ('natcore_destination_saturation_ratio{outside_ip="a",protocol="tcp"}', "0.5x20", "0.49x20"),
    "NatcoreSessionsNearLimit": ("natcore_sessions", "81x20", "80x20"),
    "NatcoreRefusals": ('natcore_limit_refusals_total{limit="pool"}', "0+1x20", "7x20"),
    "NatcoreRingDrops": (
        'natcore_interface_packets_total{interface="wan0",worker="0",event="ring_dropped"}', "0+1x20", "7x20",
    ),
    "NatcoreLogRowsLost": ('natcore_log_rows_total{log="audit",result="lost",reason="damaged"}', "0+1x20", "7x20"),
    "NatcoreLogDelayed": ('natcore_log_oldest_waiting_seconds{log="audit"}', "601x20", "600x20"),
    "NatcoreClockOffset": ("natcore_clock_offset_seconds", "-1.1x20", "0.9x20"),
    "NatcoreReloadFailed": ("natcore_config_last_reload_successful", "0x20", "1x20"),
    "NatcorePeerLost": ("natcore_peer_connected", "0x20", "1x20"),
    "NatcorePeerLate": ("natcore_peer_lag_seconds", "6x20", "4x20"),
    "NatcorePeerAnswersLate": ('natcore_peer_deferred_packets_total{outcome="late"}', "0+120x20", "0+30x20"),
    "NatcoreRoleChanged": ("natcore_peer_role_changes_total", "0+1x20", "7x20"),
}  # fmt: skip


def names() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS.read_text())


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_alert_has_a_case_and_a_paragraph_in_the_guide() -> None:
    guide = (ROOT / "docs/guide/alerts.md").read_text()
    assert names() == list(CASES)
    assert [name for name in names() if f"`{name}`" not in guide] == []


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    known = set(re.findall(r"`(natcore_\w+)`", (ROOT / "docs/guide/metrics.md").read_text()))
    assert set(re.findall(r"\bnatcore_\w+", ALERTS.read_text())) <= known
    shown = json.loads(DASHBOARD.read_text())
    asked = " ".join(target["expr"] for panel in shown["panels"] for target in panel["targets"])
    assert set(re.findall(r"\bnatcore_\w+", asked)) == known  # each is shown
    assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(CASES)} rules found" in run("promtool", "check", "rules", ALERTS)


@needs_promtool
def test_prometheus_takes_the_metrics() -> None:
    over = gateway()
    over.translate_one(udp(), Side.INSIDE, 0.0)
    with metrics.Endpoint(over, "127.0.0.1:0") as served:
        text = urllib.request.urlopen(f"http://{served.address}/metrics", timeout=60).read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path / "alerts.yml")
    tests = []
    for name, (series, fires, is_well) in CASES.items():
        for values, count in ((fires, 1), (is_well, 0)):
            given = [{"series": series, "values": values}, {"series": "natcore_sessions_limit", "values": "100x20"}]
            asked = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
            expected = [{"labels": "{}", "value": count}]
            tests.append(
                {
                    "interval": "1m", "input_series": given,
                    "promql_expr_test": [{"expr": asked, "eval_time": "18m", "exp_samples": expected}],
                }
            )  # fmt: skip
    (tmp_path / "tests.yml").write_text(
        json.dumps({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests})
    )
    run("promtool", "test", "rules", tmp_path / "tests.yml")


# ---- a real Prometheus -----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[str]:
    """A Prometheus that scrapes each second, with the shipped rules at a second's scale. Yields its address."""
    rules = re.sub(r"for: \d+m", "for: 1s", ALERTS.read_text())
    (folder / "rules.yml").write_text(re.sub(r"\[\d+m\]", "[10s]", rules))
    scraped = [{"targets": [address], "labels": {"instance": name}} for name, address in targets.items()]
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "natcore", "static_configs": scraped}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w") as log:
        running = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield address
        finally:
            running.terminate()
            running.wait(60)


def firing(address: str) -> set[tuple[str, str]]:
    """Alerts that fire now: instance and name."""
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/alerts", timeout=60) as answer:
            alerts: list[dict[str, Any]] = json.load(answer)["data"]["alerts"]
    except OSError:
        return set()
    return {(a["labels"]["instance"], a["labels"]["alertname"]) for a in alerts if a["state"] == "firing"}


class Refusing:
    """A destination that takes no row for good."""

    delivery_type, batch_seconds = "refusing", 0.0

    def deliver(self, batch: Batch) -> None:
        raise DeliveryError("Invalid", "not a row", action="reject")


def crowded() -> Gateway:
    """Four of five ports towards one server are in use, and four of four sessions; a fifth host is refused again and again."""
    policy = Policy(
        ports="overload", mapping="address-and-port-dependent", filtering="address-and-port-dependent",
        port_ranges=((4000, 4004),),
    )  # fmt: skip
    over = gateway(policy=policy, max_sessions=4)
    for host in range(4):
        over.translate_one(udp(f"10.0.0.{host + 1}"), Side.INSIDE, 0.0)
    return over


@needs_prometheus
def test_a_real_prometheus_fires_what_a_gateway_in_trouble_shows(tmp_path: Path) -> None:
    """And nothing of one that is well."""
    troubled, scarce, good = crowded(), gateway(policy=Policy(port_ranges=((4000, 4000),))), gateway()
    scarce.translate_one(udp(), Side.INSIDE, 0.0)
    failed = SimpleNamespace(last_reload_ok=False, last_reload_at=0.0)
    with ExitStack() as stack:
        log = stack.enter_context(scarce.start_session_log(Refusing(), name="audit"))
        late = stack.enter_context(good.start_session_log(Refusing(), name="late"))
        serve = [metrics.Endpoint(troubled, "127.0.0.1:0", service=failed), metrics.Endpoint(scarce, "127.0.0.1:0")]
        targets = {"troubled": serve[0].address, "scarce": serve[1].address}
        well = gateway()
        serve.append(metrics.Endpoint(well, "127.0.0.1:0"))
        targets |= {"well": serve[2].address, "down": f"127.0.0.1:{free_port()}"}
        serve.append(metrics.Endpoint(good, "127.0.0.1:0"))
        targets["late"] = serve[3].address
        for each in serve:
            stack.enter_context(each)
        late._ledger._marks = [(1 << 40, time.time() - 700)]  # a row that has waited so long
        late._ledger._rows["queued"] += 1
        expected = {
            ("troubled", "NatcoreDestinationSaturated"), ("troubled", "NatcoreSessionsNearLimit"),
            ("troubled", "NatcoreRefusals"), ("troubled", "NatcoreReloadFailed"), ("scarce", "NatcorePortsScarce"),
            ("scarce", "NatcoreLogRowsLost"), ("down", "NatcoreDown"), ("late", "NatcoreLogDelayed"),
        }  # fmt: skip
        address = stack.enter_context(prometheus(tmp_path, targets))
        port = 1000

        def all_fire() -> bool:
            nonlocal port
            port += 1
            troubled.translate_one(udp("10.0.0.9", sport=port), Side.INSIDE, 1.0)
            scarce.translate_one(udp(), Side.INSIDE, 1.0 + port)
            scarce.end(protocol="udp")
            log.wait(1)
            time.sleep(0.2)
            shown = firing(address)
            return shown >= expected and "well" not in {name for name, _ in shown}  # but where a scrape took too long

        until(all_fire, 120)
        late._ledger._rows["queued"] -= 1
        late._ledger._marks = []


@needs_root
@needs_prometheus
def test_a_real_prometheus_fires_what_a_plane_in_trouble_shows(nat: Nat, tmp_path: Path) -> None:
    """An interface goes away, and the labels of a log are off the machine's clock; the alerts end when they are right again."""
    network, made, _ = nat
    with metrics.Endpoint(made, "127.0.0.1:0") as served, prometheus(tmp_path, {"gw": served.address}) as address:
        until(lambda: urllib.request.urlopen(f"http://{served.address}/readyz", timeout=60).status == 200)
        network.run("gw", ["ip", "link", "del", "wan0"])
        made._set_epoch_ns(made._core.log_rows.epoch_ns + 5_000_000_000)
        expected = {"NatcoreInterfaceDown", "NatcoreKernelBlockMissing", "NatcoreClockOffset"}
        until(lambda: firing(address) == {("gw", name) for name in expected}, 120)
        made._set_epoch_ns(made._core.log_rows.epoch_ns - 5_000_000_000)
        network.pair("gw", "wan0", "out", "eth0")
        network.up("gw", "wan0", "198.18.0.1/24")
        network.up("out", "eth0", "198.18.0.2/24")
        until(lambda: firing(address) == set(), 120)


@needs_root
@needs_prometheus
def test_a_real_prometheus_fires_on_ring_drops_and_answers_every_panel_of_the_dashboard(
    nat: Nat, tmp_path: Path
) -> None:
    """A plane that is not stepped takes nothing from its rings. Of a crowded gateway are the panels that need refusals."""
    network, made, plane = nat
    crowd = crowded()
    made.start_session_log(MemorySink(), name="audit")
    with at(network, "in"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client, ExitStack() as stack:
        reloads = SimpleNamespace(last_reload_ok=True, last_reload_at=time.time(), pair=pair())
        serve = [stack.enter_context(metrics.Endpoint(each, "127.0.0.1:0", service=reloads)) for each in (made, crowd)]
        targets = {name: each.address for name, each in zip(("gw", "crowd"), serve, strict=True)}
        address = stack.enter_context(prometheus(tmp_path, targets))
        unanswered = panels()
        port = 1000

        def answered() -> bool:
            nonlocal port
            port += 1
            client.sendto(b"x", ("192.0.2.1", port))
            crowd.translate_one(udp("10.0.0.9", sport=port), Side.INSIDE, 1.0)
            unanswered.difference_update([each for each in unanswered if query(address, each)])
            return not unanswered

        until(answered, 120)
        plane.stop()
        with at(network, "gw"):
            stack.enter_context(made.forward("lan0", "wan0", threads=False))

        def fires() -> bool:
            for _ in range(5000):
                client.sendto(b"x" * 1000, ("192.0.2.1", 53))
            return ("gw", "NatcoreRingDrops") in firing(address)

        until(fires, 120)


def pair() -> SimpleNamespace:
    """An active gateway that is followed, as metrics see it."""
    names = ("rows_sent", "rows_applied", "bytes_sent", "snapshots_sent", "snapshots_received", "stream_failures",
             "role_changes", "lag_records")  # fmt: skip
    return SimpleNamespace(
        role="active", connected=True, lag_seconds=0.02, lease_seconds=0.25, counters=lambda: dict.fromkeys(names, 1)
    )


def panels() -> set[str]:
    """The expressions of the dashboard, for all gateways and at a second's scale, as Grafana fills them in."""
    shown = json.loads(DASHBOARD.read_text())
    found = {target["expr"] for panel in shown["panels"] for target in panel["targets"]}
    return {each.replace("$instance", ".*").replace("$__rate_interval", "10s") for each in found}


def query(address: str, expression: str) -> list[Any]:
    """The series that a real Prometheus answers with; none before it has any."""
    asked = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
            return found
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it is starting
            return []
        raise AssertionError(f"{expression}: {error.read().decode()}") from None
    except OSError:
        return []
