"""Verbs against a gateway in memory: what each tells, its filters, order and limits, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from natcore import ControlError, DnatEntry, Gateway, Policy, Side, SnatEntry
from natcore.control import verb as registry
from natcore.control.client import Client
from natcore.control.history import History
from natcore.internal.exit_codes import ExitCode
from natcore.metrics.health import Health, Report
from natcore.sinks import MemorySink
from support.control import folder, verbs  # noqa: F401
from support.frames import EIP, HOST, REMOTE, tcp, udp
from support.netns import until


@contextmanager
def asked(folder: Path, **options: Any) -> Iterator[tuple[Gateway, Client]]:  # noqa: F811
    with Gateway(instance="ngw-1", seed=7, max_sessions=1000, **options) as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", pool=EIP, name="office"))
        gateway.add(SnatEntry("10.1.0.0/16", pool="203.0.113.2"))
        gateway.serve_control(folder / "s")
        with Client(folder / "s") as client:
            yield gateway, client


def open_some(gateway: Gateway) -> None:
    """UDP of one host to two remotes, TCP of another, UDP of a host of the other entry."""
    for frame in (
        udp(HOST, 5000, REMOTE, 53),
        udp(HOST, 5000, "198.51.100.8", 53),
        tcp("S", "10.0.0.6", 6000, REMOTE, 443),
        udp("10.1.0.9", 7000, REMOTE, 123, load=b"x" * 500),
    ):
        gateway.translate_one(frame, Side.INSIDE, now=10.0)


def test_status_tells_tables_counters_logs_and_the_socket_itself(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        gateway.start_session_log(MemorySink(), name="audit")
        client.ask("status")
        found = client.summary
    assert (found["instance"], found["state"], found["ready"]) == ("ngw-1", "stopped", False)
    assert (found["sessions"], found["sessions_limit"], found["mappings"], found["entries"]) == (4, 1000, 3, 2)
    assert found["counters"]["forwarded"] == 4
    assert [log["name"] for log in found["logs"]] == ["audit"]
    assert found["control"]["clients"] == 1


def test_a_session_has_every_column(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        gateway.translate_one(tcp("S", HOST, 5000, REMOTE, 443), Side.INSIDE, now=10.0)
        gateway.advance(now=12.5)
        (row,) = client.ask("sessions")
        (session,) = gateway.sessions()
    assert row == {
        "session": 1, "protocol": "tcp", "inside_ip": HOST, "inside_port": 5000, "outside_ip": EIP,
        "outside_port": int(session["outside_port"]), "remote_ip": REMOTE, "remote_port": 443, "state": "syn_from_inside",
        "entry": 1, "entry_name": "office", "packets_out": 1, "bytes_out": 40, "packets_in": 0, "bytes_in": 0, "age": 2.5,
        "idle": 2.5, "expires": 237.5, "opened_outside": False, "start_time": 10_000_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("criteria", "hosts"),
    [
        ({}, [HOST, HOST, "10.0.0.6", "10.1.0.9"]),
        ({"subscriber": HOST}, [HOST, HOST]),
        ({"subscriber": f"{HOST}:5000", "remote": REMOTE}, [HOST]),
        ({"subscriber": "10.0.0.0/16"}, [HOST, HOST, "10.0.0.6"]),
        ({"subscriber": f"{HOST}:1"}, []),
        ({"remote": f"{REMOTE}:443"}, ["10.0.0.6"]),
        ({"remote": "0.0.0.0/0:53"}, [HOST, HOST]),
        ({"outside": "203.0.113.2"}, ["10.1.0.9"]),
        ({"protocol": "tcp"}, ["10.0.0.6"]),
        ({"protocol": "17", "subscriber": "10.1.0.0/24"}, ["10.1.0.9"]),
        ({"entry": "office"}, [HOST, HOST, "10.0.0.6"]),
        ({"entry": "2"}, ["10.1.0.9"]),
    ],
)
def test_criteria_of_sessions(folder: Path, criteria: dict[str, str], hosts: list[str]) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        assert sorted(row["inside_ip"] for row in client.ask("sessions", **criteria)) == hosts
        assert client.summary == {"rows": len(hosts), "more": False}
        would = client.ask("end", **criteria, all=not criteria, dry_run=True)
        assert would == [] and client.summary == {"sessions": len(hosts), "ended": False}
        assert len(gateway.sessions()) == 4
        client.ask("end", **criteria, all=not criteria)
        assert client.summary == {"sessions": len(hosts), "ended": True}
        assert len(gateway.sessions()) == 4 - len(hosts)


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        ("sessions", {"subscriber": "ten"}, "subscriber must be an address or a prefix, with a port or without"),
        ("sessions", {"subscriber": "10.0.0.1/8"}, "subscriber must be an address or a prefix"),
        ("sessions", {"remote": "10.0.0.1:70000"}, "remote must be an address or a prefix"),
        ("sessions", {"protocol": "tdp"}, "protocol must be 'icmp', 'tcp' or 'udp', or a number"),
        ("sessions", {"entry": "nowhere"}, r"entry must be 1 \('office'\) or 2, got 'nowhere'"),
        ("sessions", {"sort": "colour"}, "sort must be session, bytes, .*, got 'colour'"),
        ("sessions", {"limit": -1}, r"limit must be 0 \(all\) or more, got -1"),
        ("sessions", {"limit": "3"}, "Expected `int`, got `str`"),
        ("sessions", {"sort": "bytes", "limit": 0}, "limit must be between 1 and 100,000 where rows are sorted"),
        ("mappings", {"remote": REMOTE}, "unknown argument 'remote'"),
        ("end", {}, "end: give a criterion, or all"),
        ("end", {"all": True, "protocol": "tcp"}, "all goes with no other criterion"),
        ("explain", {"frame": "zz"}, "frame must be pairs of hexadecimal digits"),
        ("explain", {"frame": "00", "side": "up"}, "side must be inside or outside, got 'up'"),
        ("explain", {}, "missing required field `frame`"),
        ("who", {"address": EIP, "port": 70_000}, "port must be between 0 and 65535"),
        ("top", {"sort": "colour"}, "sort must be bits, packets, sessions or ports"),
        ("top", {"interval": 0}, "interval must be between"),
        ("subscribers", {"sort": "colour"}, "sort must be bits, packets, sessions or ports"),
        ("subscribers", {"limit": 0}, "limit must be between"),
        ("events", {"limit": 0}, "limit must be between 1 and 256"),
        ("log-stop", {"name": "audit"}, r"name must be one that runs \(none does\), got 'audit'"),
    ],
)
def test_wrong_arguments_are_named(folder: Path, verb: str, arguments: dict[str, Any], said: str) -> None:  # noqa: F811
    with asked(folder) as (_, client):
        with pytest.raises(ControlError, match=said) as refused:
            client.ask(verb, **arguments)
        assert refused.value.code == ExitCode.USAGE


def test_what_this_gateway_has_not_is_a_failure(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (_, client):
        for verb, said in (
            ("blocks", 'the gateway has no port blocks: its policy is ports = "random"'),
            ("watch-drops", "the gateway has no plane"),
            ("capture", "the gateway has no plane"),
        ):
            with pytest.raises(ControlError, match=said) as failed:
                client.ask(verb)
            assert failed.value.code == ExitCode.FAILED
        with pytest.raises(ControlError, match="belongs to another program than `natcore run`"):
            client.ask("log-start", name="audit")


def test_order_and_limit(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        assert [row["inside_ip"] for row in client.ask("sessions", sort="bytes", limit=1)] == ["10.1.0.9"]
        assert (client.summary["rows"], client.summary["more"], client.summary["matched"]) == (1, True, 4)
        assert len(client.ask("sessions", limit=3)) == 3
        assert client.summary == {"rows": 3, "more": True}
        assert len(client.ask("sessions", limit=4)) == 4
        assert client.summary == {"rows": 4, "more": False}
        remotes = [row["remote_ip"] for row in client.ask("sessions", sort="remote")]
        assert remotes == sorted(remotes)


def test_thousands_of_sessions_come_whole_and_in_order(folder: Path) -> None:  # noqa: F811
    with asked(folder, policy=Policy(ports="random")) as (gateway, client):
        for port in range(2000, 2900):
            gateway.translate_one(udp(HOST, port), Side.INSIDE, now=1.0)
        rows = client.ask("sessions", limit=0)
        assert len({row["session"] for row in rows}) == len(rows) == 900
        numbers = [row["session"] for row in client.ask("sessions", sort="session", limit=700)]
        assert numbers == list(range(1, 701))


def test_mappings_and_ports(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        (mapping,) = client.ask("mappings", subscriber=HOST)
        assert (mapping["inside_port"], mapping["sessions"], mapping["entry_name"]) == (5000, 2, "office")
        assert [row["inside_ip"] for row in client.ask("mappings", sort="sessions", limit=1)] == [HOST]
        (row,) = client.ask("ports", outside=EIP, protocol="udp")
        assert (row["used"], row["total"] - row["free"]) == (1, 1)
        assert len(client.ask("ports")) == 6


def test_blocks(folder: Path) -> None:  # noqa: F811
    with asked(folder, policy=Policy(ports="block", block_size=64)) as (gateway, client):
        open_some(gateway)
        (row,) = client.ask("blocks", subscriber=HOST)
        assert (row["outside_ip"], row["last_port"] - row["first_port"], row["ports"]) == (EIP, 63, 1)
        assert len(client.ask("blocks")) == 3


def test_who_has_an_outside_endpoint_now(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        (mapping,) = client.ask("mappings", subscriber=HOST)
        endpoint = {"address": EIP, "port": mapping["outside_port"]}
        assert client.ask("who", **endpoint, protocol="udp") == [
            {"subscriber": HOST, "port": 5000, "protocol": "udp", "sessions": 2}
        ]
        assert client.summary["status"] == "exact"
        (row,) = client.ask("who", **endpoint, remote="198.51.100.8:53")
        assert row["sessions"] == 1
        assert client.ask("who", address=EIP, port=1) == []
        assert client.summary == {"status": "unused", "reserved_for": None}


def test_who_names_the_entry_that_leads_to_a_host(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        gateway.add(DnatEntry(EIP, (8000, 8010), [("10.0.0.80", 1), ("10.0.0.81", 2)], (80, 90), name="web"))
        rows = client.ask("who", address=EIP, port=8005, protocol="tcp")
        assert [(row["subscriber"], row["entry_name"]) for row in rows] == [("10.0.0.80", "web"), ("10.0.0.81", "web")]
        assert client.summary["status"] == "static"
        assert client.ask("who", address=EIP, port=8005, protocol="udp") == []


def test_who_names_the_host_that_a_port_is_reserved_for(folder: Path) -> None:  # noqa: F811
    with Gateway(policy=Policy(ports="deterministic", block_size=1024), max_sessions=100) as gateway:
        gateway.add(SnatEntry("10.0.0.0/27", pool=EIP))
        gateway.serve_control(folder / "d")
        share = gateway.ports_of("10.0.0.9")
        assert share is not None
        with Client(folder / "d") as client:
            client.ask("who", address=EIP, port=share.first_port)
    assert client.summary == {"status": "unused", "reserved_for": "10.0.0.9"}


def test_explain_asks_the_running_gateway_and_changes_nothing(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        before = gateway.counters()
        client.ask("explain", frame=udp(HOST, 5000, REMOTE, 53).hex())
        assert (client.summary["verdict"], client.summary["asked"]) == ("OUTBOUND", "the running gateway")
        assert "session" in client.summary["text"]
        assert gateway.counters() == before


def test_events_reach_a_watcher_and_the_gateway_s_own_taker(folder: Path) -> None:  # noqa: F811
    with asked(folder, policy=Policy(sessions_per_subscriber=1)) as (gateway, client), Client(folder / "s") as other:
        first, second = client.rows("watch-events"), other.rows("watch-events")
        gateway.translate_one(udp(HOST, 5000), Side.INSIDE, now=1.0)

        def refuse() -> None:
            gateway.translate_one(udp(HOST, 5001), Side.INSIDE, now=1.0)

        told = [_next_of(rows, refuse) for rows in (first, second)]
        for row in told:
            assert (row["reason"], row["subscriber"], row["limit"]) == (
                "subscriber-limit",
                HOST,
                "sessions_per_subscriber",
            )
        events = gateway.take_events()
        assert sum(event.count for event in events) == gateway.counters()["dropped_subscriber_limit"]
        assert gateway.take_events() == []


def _next_of(rows: Iterator[Any], cause: Any) -> Any:
    """The next row of a verb without an end; what causes it happens until it has come."""
    import threading

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(next(rows)))
    thread.start()

    def came() -> bool:
        cause()
        return bool(found)

    until(came)
    thread.join()
    return found[0]


def test_sessions_are_told_as_they_begin_and_end(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        rows = client.rows("watch-sessions", subscriber=HOST)
        number = iter(range(5000, 6000))

        def open_one() -> None:
            gateway.translate_one(udp(HOST, next(number)), Side.INSIDE, now=1.0)
            gateway.translate_one(udp("10.0.0.77", next(number)), Side.INSIDE, now=1.0)

        begun = _next_of(rows, open_one)
        assert (begun["event"], begun["inside_ip"], begun["remote_port"]) == ("begin", HOST, 53)
        gateway.end(subscriber=f"{HOST}:{begun['inside_port']}")
        ended = next(row for row in rows if row["event"] == "end")
        assert (ended["session"], ended["packets_out"], ended["bytes_out"]) == (begun["session"], 1, 33)


def test_a_watcher_costs_the_session_log_no_row(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, _):
        with gateway.watch_sessions(capacity=2) as feed:
            for port in range(5000, 5005):
                gateway.translate_one(udp(HOST, port), Side.INSIDE, now=1.0)
            assert [int(row["kind"]) for row in feed.take()] == [1, 1]
            assert feed.lost == 3
        gateway.translate_one(udp(HOST, 6000), Side.INSIDE, now=1.0)
        assert len(feed.take()) == 0
        assert len(gateway.take_records(events=True)) == 6


def test_top_tells_each_subscriber_s_rates_between_two_looks(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        rows = client.rows("top", interval=0.2, samples=2)
        first = _next_of(rows, lambda: gateway.translate_one(udp(HOST, 5000), Side.INSIDE, now=10.0))
        by_host = {row["subscriber"]: row for row in first["subscribers"]}
        assert set(by_host) == {HOST, "10.0.0.6", "10.1.0.9"}
        assert by_host[HOST]["bits_out"] > 0 and by_host[HOST]["packets_out"] > 0
        assert by_host["10.1.0.9"]["bits_out"] == 0
        assert (by_host[HOST]["sessions"], by_host[HOST]["ports"]) == (2, 1)
        assert first["subscribers"][0]["subscriber"] == HOST
        assert [row["sample"] for row in rows] == [2]


def test_subscribers_are_listed_by_what_their_open_sessions_had(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        rows = client.ask("subscribers", sort="sessions", limit=2)
        assert [row["subscriber"] for row in rows] == [HOST, "10.0.0.6"]
        assert client.summary == {"rows": 2, "subscribers": 3}
        mine = client.ask("sessions", subscriber=HOST)
        for name in ("bytes_out", "bytes_in", "packets_out", "packets_in"):
            assert rows[0][name] == sum(row[name] for row in mine)
        assert (rows[0]["sessions"], rows[0]["ports"]) == (2, 1)
        (one,) = client.ask("subscribers", subscriber="10.0.0.6")
        assert one == rows[1]


def test_session_logs_are_listed_stopped_and_retried(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        gateway.start_session_log(MemorySink(), name="audit")
        assert [(row["name"], row["status"]) for row in client.ask("logs")] == [("audit", "Enabled")]
        client.ask("log-retry", name="audit")
        assert client.summary["name"] == "audit"
        client.ask("log-stop", name="audit")
        assert (client.summary["status"], client.summary["rows_left"]) == ("Disabled", 0)
        assert client.ask("logs") == []


def test_every_verb_has_a_sentence_about_it(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (_, client):
        rows = client.ask("verbs")
    assert all(row["about"].endswith(".") for row in rows)
    writing = {row["verb"] for row in rows if row["writes"]}
    assert {"end", "capture", "explain", "log-start", "log-stop", "log-retry"} <= writing
    assert not {"status", "sessions", "mappings", "ports", "blocks", "top", "who", "logs"} & writing


def test_verbs_that_change_the_gateway_run_one_at_a_time(folder: Path, verbs: None) -> None:  # noqa: F811
    inside, most, ended = [], [], threading.Event()

    @registry.verb("test-change", changes=True)
    def change(context: registry.Context) -> registry.Answer:
        inside.append(1)
        most.append(len(inside))
        yield []
        while not ended.is_set():
            yield None
        inside.pop()
        return {}

    with Gateway(instance="ngw-1", max_sessions=100) as gateway:
        gateway.serve_control(folder / "s")

        def ask() -> None:
            with Client(folder / "s") as client:
                client.ask("test-change")

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for thread in clients:
            thread.start()
        until(lambda: bool(most))
        with Client(folder / "s") as client:
            assert client.ask("sessions") == []  # what only looks does not wait
        ended.set()
        for thread in clients:
            thread.join(60)
    assert most == [1, 1, 1]
    assert all(
        each.changes for name, each in registry.verbs().items() if name in ("reload", "end", "log-start", "log-stop")
    )


def test_a_gateway_is_ready_by_one_judgement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with asked(folder) as (_, client):
        client.ask("status")
        assert (client.summary["ready"], client.summary["waiting_for"]) == (
            False,
            ["it forwards between no interfaces"],
        )
        monkeypatch.setattr(Health, "ready", lambda self: Report(True, ()))
        client.ask("status")
        assert client.summary["ready"] and client.summary["waiting_for"] == []
        monkeypatch.setattr(Health, "ready", lambda self: Report(False, ("natcore-w0 has not turned for 9.0 s",)))
        client.ask("status")
        assert client.summary["waiting_for"] == ["natcore-w0 has not turned for 9.0 s"]


def test_sessions_come_in_pages_that_stay_in_place(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        for port in range(2000, 2100):
            gateway.translate_one(udp(HOST, port), Side.INSIDE, now=1.0)
        first = client.ask("sessions", limit=40, page="")
        told = client.summary
        assert [row["session"] for row in first] == list(range(1, 41))
        assert (told["rows"], told["more"], told["matched"], told["before"]) == (40, True, 100, 0)
        gateway.translate_one(udp(HOST, 3000), Side.INSIDE, now=1.0)
        second = client.ask("sessions", limit=40, page=told["last"])
        assert [row["session"] for row in second] == list(range(41, 81))
        assert (client.summary["matched"], client.summary["before"]) == (101, 40)
        back = client.ask("sessions", limit=40, page=client.summary["first"], reverse=True)
        assert back == first[::-1]
        newest = client.ask("sessions", limit=1, reverse=True)
        assert newest[0]["inside_port"] == 3000
        with pytest.raises(ControlError, match="page must be a cursor of an earlier answer, got 'x'"):
            client.ask("sessions", page="x")


def test_entries_are_told_with_their_sessions(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        assert client.ask("entries")[0] == {
            "entry": 1, "name": "office", "kind": "snat", "text": f"10.0.0.0/16 by {EIP}", "sessions": 3,
        }  # fmt: skip
        assert [row["sessions"] for row in client.ask("entries", count=False)] == [None, None]


def test_the_last_hour_is_sampled_and_bounded() -> None:
    with Gateway(max_sessions=100) as gateway:
        gateway.add(SnatEntry("10.0.0.0/16", pool=f"{EIP}, 203.0.113.2".split(", ")))
        wall = iter(range(1000, 2000))
        history = History(gateway, lambda: float(next(wall)))
        for second in range(0, 4001):
            if second == 3995:
                gateway.translate_one(udp(HOST, 5000), Side.INSIDE, now=1.0)
            history.look(gateway, float(second))
        samples = history.samples()
        assert (len(samples), samples[0].time, samples[-1].time) == (360, 1041.0, 1400.0)  # 401 were taken
        assert (samples[-2].counters["received"], samples[-1].counters["received"]) == (0, 1)
        time, rows = history.ports()[-1]
        assert time == samples[-1].time and int(rows["used"].sum()) == 1


def test_the_last_hour_comes_by_address_and_protocol(folder: Path) -> None:  # noqa: F811
    with asked(folder) as (gateway, client):
        open_some(gateway)
        until(lambda: client.ask("history"))
        (sample, *_) = client.ask("history")
        assert {"time", "received", "dropped", "bytes_from_inside", "sessions"} <= sample.keys()
        kept = client.summary["kept"]
        assert [row["time"] for row in client.ask("history", after=sample["time"])] == [
            row["time"] for row in client.ask("history")[1:]
        ]
        assert client.summary["kept"] >= kept
        rows = client.ask("ports-history", outside=EIP)
        assert sorted(row["protocol"] for row in rows) == ["icmp", "tcp", "udp"]
        assert all(len(row["used"]) == len(client.summary["times"]) for row in rows)
        assert len(client.ask("ports-history", limit=1)) == 1 and client.summary["more"]


def test_past_events_are_kept_for_who_asks_later(folder: Path) -> None:  # noqa: F811
    with asked(folder, policy=Policy(sessions_per_subscriber=1), epoch=1e9) as (gateway, client):
        for port in (5000, 5001, 5002):
            gateway.translate_one(udp(HOST, port), Side.INSIDE, now=2.0)
        (event,) = client.ask("events")
        assert client.summary == {"rows": 1, "more": 0}
        assert (event["time"], event["reason"], event["subscriber"], event["count"]) == (
            1e9 + 2,
            "subscriber-limit",
            HOST,
            2,
        )
        assert client.ask("events") == [event]
        assert [each.count for each in gateway.take_events()] == [2]  # it is no taker
