"""A reload: what it does is found first, and done whole or not at all; entries that did not change keep their sessions."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from natcore import DnatEntry, NoNatEntry, Side, SnatEntry
from natcore.control.client import Client
from natcore.entries.matching import match
from natcore.entries.table import Entry
from natcore.errors import ConfigurationError, ControlError, Error
from natcore.service import reload
from natcore.service.reload import RestartError
from natcore.service.run import Service
from natcore.sessionlog.session_log import SessionLog
from support.command_line import call, call_json
from support.netns import until
from support.service import FakePlane, Told, service_of

# ---- which entry is which --------------------------------------------------------------------------------------------

A = SnatEntry("10.1.0.0/16", "203.0.113.1", "a")
B = SnatEntry("10.2.0.0/16", "203.0.113.2")
WEB = DnatEntry("203.0.113.1", 80, "10.1.0.5", 8080)
OPEN = NoNatEntry("10.0.0.0/8", "10.9.0.0/16")


def matched(before: list[Any], after: list[Any]) -> tuple[list[Any], list[Any]]:
    rows = [Entry(number, entry) for number, entry in enumerate(before, 1)]
    pairs, fresh = match(rows, after)
    assert [row for row, _ in pairs] == rows
    return [entry for _, entry in pairs], fresh


@pytest.mark.parametrize(
    ("before", "after", "becoming", "fresh"),
    [
        ([A, B, WEB, OPEN], [OPEN, WEB, B, A], [A, B, WEB, OPEN], []),
        ([A, B], [B], [None, B], []),
        ([B], [A, B], [B], [A]),
        # by name, whatever else changed
        ([A], [other := SnatEntry("10.7.0.0/16", "203.0.113.7", "a")], [other], []),
        # a name is of one kind of entry
        ([A], [other := NoNatEntry("10.7.0.0/16", "10.8.0.0/16", "a")], [None], [other]),
        # by value: it got a name, or another one
        ([B], [named := SnatEntry("10.2.0.0/16", "203.0.113.2", "b")], [named], []),
        # by what only one can have
        ([B], [other := SnatEntry("10.2.0.0/16", "203.0.113.9")], [other], []),
        ([WEB], [other := DnatEntry("203.0.113.1", 80, "10.1.0.6", 80)], [other], []),
        ([WEB], [other := DnatEntry("203.0.113.1", 81, "10.1.0.5", 8080)], [None], [other]),
        # the name wins over the value, an equal entry over the name
        (
            [A, B],
            [one := SnatEntry("10.2.0.0/16", "203.0.113.2", "a"), two := SnatEntry("10.1.0.0/16", "203.0.113.1", "b")],
            [one, None],
            [two],
        ),
        ([A, SnatEntry("10.3.0.0/16", "203.0.113.3", "a")], [A], [A, None], []),
        ([B, WEB, OPEN], [], [None, None, None], []),
    ],
)
def test_entries_are_matched_by_equality_name_value_and_key(
    before: list[Any], after: list[Any], becoming: list[Any], fresh: list[Any]
) -> None:
    assert matched(before, after) == (becoming, fresh)


def test_every_wanted_entry_is_used_once() -> None:
    twice = [NoNatEntry("10.0.0.0/8", "10.9.0.0/16", "x"), NoNatEntry("10.0.0.0/8", "10.8.0.0/16", "x")]
    assert matched(twice, [twice[1], twice[0]]) == (twice, [])
    assert matched(twice[:1], twice) == (twice[:1], twice[1:])


# ---- a service -------------------------------------------------------------------------------------------------------

BASE = """
[gateway]
instance = "ngw-1"
max_sessions = 1000
[[snat]]
source = "10.1.0.0/16"
pool = "203.0.113.1"
name = "office"
[[snat]]
source = "10.2.0.0/16"
pool = ["203.0.113.2", "203.0.113.3"]
[[dnat]]
name = "web"
external_ip = "203.0.113.1"
external_port = 80
internal_ip = "10.1.0.5"
internal_port = 8080
[[log]]
sink = "jsonlines"
folder = "LOG/a"
name = "audit"
[plane]
inside = "lan0"
outside = "wan0"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(BASE.replace("LOG", str(tmp_path)))
    return path


class Running:
    """A service that runs in this thread; what happens in it is a function, called with this."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch, *happenings: Callable[[Running], object]) -> None:
        self.file = file
        self.plane = FakePlane(*((lambda each=each: each(self)) for each in happenings), lambda: self.plane.stop())
        self.service: Service
        self.told: Told
        self.service, self.told = service_of(file, monkeypatch, self.plane)
        self.service.run()

    def write(self, *changes: tuple[str, str]) -> None:
        text = self.file.read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        self.file.write_text(text)

    def send(
        self, source: str, destination: str, *, tcp: bool = False, port: int = 53, side: Side = Side.INSIDE
    ) -> str:
        transport = TCP(sport=4000, dport=port, flags="S") if tcp else UDP(sport=4000, dport=port)
        frame = bytes(Ether(dst="02:00:00:00:00:01") / IP(src=source, dst=destination) / transport)
        return self.service.gateway.translate_one(frame, side, 1.0)[0].name

    def sessions(self) -> int:
        return len(self.service.gateway.sessions())


def test_what_did_not_change_keeps_its_sessions_and_the_rest_follows_the_plan(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(running: Running) -> None:
        service = running.service
        for source in ("10.1.0.1", "10.1.0.2", "10.2.0.1", "10.2.0.2", "10.2.0.3"):
            assert running.send(source, "198.51.100.7") == "OUTBOUND"
        assert running.send("198.51.100.9", "203.0.113.1", tcp=True, port=80, side=Side.OUTSIDE) == "INBOUND"
        office = service.gateway.entries()[0]
        running.write(
            (
                'source = "10.2.0.0/16"\npool = ["203.0.113.2", "203.0.113.3"]',
                'source = "10.3.0.0/16"\npool = "203.0.113.3"',
            ),
            ('internal_ip = "10.1.0.5"', 'internal_ip = "10.1.0.6"'),
        )
        told = service.reload(dry_run=True)
        assert (told.kept, told.drained, told.ended, told.dry_run, told.unchanged) == (2, 3, 1, True, 2)
        assert [str(step) for step in told.steps] == [
            "remove snat: 10.2.0.0/16 by 203.0.113.2, 203.0.113.3 (drained), 3 sessions",
            "replace dnat 'web': tcp 203.0.113.1:80 to 10.1.0.5:8080 -> tcp 203.0.113.1:80 to 10.1.0.6:8080, 1 sessions",
            "add snat: 10.3.0.0/16 by 203.0.113.3",
        ]
        assert running.sessions() == 6 and len(service.gateway.entries()) == 3 and service.reloads == 0
        done = service.reload()
        assert (done.kept, done.drained, done.ended, done.dry_run) == (2, 3, 1, False)
        assert running.sessions() == 5 and service.gateway.entries()[0] is office
        assert running.send("10.2.0.1", "198.51.100.7") == "OUTBOUND"  # it drains
        assert running.send("10.2.0.1", "198.51.100.8") == "DROP_NO_SNAT_ENTRY"
        assert running.send("10.3.0.1", "198.51.100.8") == "OUTBOUND"
        again = service.reload()
        assert again.steps == () and (again.kept, again.ended) == (3, 0) and again.unchanged == 4

    running = Running(file, monkeypatch, change)
    assert running.service.reloads == 2 and running.service.last_reload_ok
    assert [fields["ok"] for what, fields in running.told if what == "reload"] == [True, True]


def test_an_entry_that_gets_another_name_keeps_its_sessions(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(running: Running) -> None:
        running.send("10.1.0.1", "198.51.100.7")
        running.send("198.51.100.9", "203.0.113.1", tcp=True, port=80, side=Side.OUTSIDE)
        running.write(('"office"', '"house"'), ('"web"', '"www"'))
        done = running.service.reload()
        assert [step.action for step in done.steps] == ["replace", "replace"]
        assert (done.kept, done.ended, running.sessions()) == (2, 0, 2)
        assert running.send("198.51.100.9", "203.0.113.1", tcp=True, port=80, side=Side.OUTSIDE) == "INBOUND"
        assert running.sessions() == 2
        assert [row.entry.name for row in running.service.gateway.entries()] == ["house", None, "www"]

    Running(file, monkeypatch, rename)


def test_a_port_that_moves_to_another_entry_is_not_drained(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def move(running: Running) -> None:
        running.send("198.51.100.9", "203.0.113.1", tcp=True, port=80, side=Side.OUTSIDE)
        running.write(('name = "web"\n', 'name = "both"\n'), ("external_port = 80", "external_port = [80, 81]"),
                      ("internal_port = 8080", "internal_port = [8080, 8081]"))  # fmt: skip
        told = running.service.reload(dry_run=True)
        assert [(step.action, step.drain) for step in told.steps] == [("remove", False), ("add", False)]
        assert running.service.reload().ended == told.ended == 1

    Running(file, monkeypatch, move)


BAD = [
    ('pool = "203.0.113.1"', 'pool = "203.0.113.300"', "snat[0].pool must be an IPv4 address"),
    ('source = "10.2.0.0/16"', 'source = "10.1.0.0/16"', "snat[1].source must be in one entry"),
    ("[[log]]", "[[log]", "not TOML"),
    ('sink = "jsonlines"', 'sink = "paper"', "log[0].sink must be"),
    ("max_sessions = 1000", "max_sessions = 2000", "a restart is needed, and nothing was changed: gateway.max_sessions: 1000"),
    ('outside = "wan0"', 'outside = "wan1"', "plane.outside: 'wan0' -> 'wan1'"),
    ('inside = "lan0"', 'inside = ["lan0", "lan1"]', "plane.inside: ['lan0'] -> ['lan0', 'lan1']"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "message"), BAD)
def test_a_file_that_is_refused_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, message: str
) -> None:
    def refuse(running: Running) -> None:
        service = running.service
        running.send("10.2.0.1", "198.51.100.7")
        logs, settings, entries = service.logs, service.settings, [row.entry for row in service.gateway.entries()]
        running.write((before, after), ('name = "office"', 'name = "house"'), ('name = "web"', 'name = "www"'))
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            service.reload()
        assert service.settings is settings and service.logs == logs and running.sessions() == 1
        assert [row.entry for row in service.gateway.entries()] == entries
        assert (service.reloads, service.failed_reloads, service.last_reload_ok) == (0, 1, False)
        running.file.write_text(BASE.replace("LOG", str(file.parent)))
        service.reload()
        assert (service.reloads, service.failed_reloads, service.last_reload_ok) == (1, 1, True)

    running = Running(file, monkeypatch, refuse)
    (told,) = [fields for what, fields in running.told if what == "reload" and not fields["ok"]]
    assert message in told["error"]


def test_another_way_to_write_the_same_needs_no_restart(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rewrite(running: Running) -> None:
        running.write(
            ('inside = "lan0"', 'inside = ["lan0"]\ndriver = "af_packet"'), ("[[log]]", "[timeouts]\nudp = 300\n[[log]]"),
            ("max_sessions = 1000", "max_sessions = 1_000\nworkers = 1"),
        )  # fmt: skip
        assert running.service.reload().steps == ()

    Running(file, monkeypatch, rewrite)


def test_a_port_that_a_live_mapping_has_refuses_the_reload(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(running: Running) -> None:
        running.send("10.2.0.1", "198.51.100.7", tcp=True)
        (session,) = running.service.gateway.sessions()
        wire = "203.0.113.2" if session["outside_ip"] & 0xFF == 2 else "203.0.113.3"
        entry = (
            f'[[dnat]]\nexternal_ip = "{wire}"\nexternal_port = {session["outside_port"]}\ninternal_ip = "10.2.0.9"\n'
        )
        running.write(("[[log]]", entry + "internal_port = 80\n[[log]]"), ('name = "web"', 'name = "www"'))
        with pytest.raises(
            ConfigurationError, match=r"dnat\[1\]\.external_port must be free.* held by the mapping of 10"
        ):
            running.service.reload()
        assert [row.entry.name for row in running.service.gateway.entries()] == ["office", None, "web"]
        held = "port must be free, got "
        for arguments in (["plan", running.file], ["reload", "--dry-run"], ["reload"]):
            said = command(running, *arguments, exit_code=78)
            assert held in said and "held by the mapping of 10.2.0.1:4000" in said, said
        assert running.service.logs["audit"] is running.service.gateway.logs[0]
        running.service.gateway.end_all()
        assert "add dnat" in command(running, "plan", running.file)

    Running(file, monkeypatch, refuse)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_policy_and_time_outs_change_while_sessions_stay(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(running: Running) -> None:
        running.send("10.1.0.1", "198.51.100.7")
        settings = "[timeouts]\nudp = 150\n[policy]\nsessions_per_subscriber = 1\ntcp_pickup = false\n"
        running.write(("[[log]]", settings + "[[log]]"), ('"office"', '"house"'))
        told = running.service.reload(dry_run=True)
        assert [str(step) for step in told.steps if step.what == "setting"] == [
            "set timeouts.udp: 300.0 -> 150.0", "set policy.tcp_pickup: True -> False",
            "set policy.sessions_per_subscriber: None -> 1",
        ]  # fmt: skip
        assert running.service.gateway.timeouts.udp == 300.0 and told.needs_restart == ()
        done = running.service.reload()
        assert (done.kept, done.ended, running.sessions()) == (1, 0, 1)
        gateway = running.service.gateway
        assert (gateway.timeouts.udp, gateway.policy.sessions_per_subscriber) == (150.0, 1)
        assert running.send("10.1.0.1", "198.51.100.8") == "DROP_SUBSCRIBER_LIMIT"
        running.write((settings, ""))
        assert len(running.service.reload().steps) == 3 and gateway.timeouts.udp == 300.0

    Running(file, monkeypatch, change)


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ('[policy]\nmapping = "address-and-port-dependent"\nmss = 1360', ["policy.mapping"]),
        ('[policy]\ntcp = { mapping = "address-and-port-dependent" }', ["policy.tcp"]),
        ("[policy]\nport_ranges = [[2000, 3000]]\n[timeouts]\nudp = 150", ["policy.port_ranges"]),
    ],
)
def test_what_present_mappings_depend_on_needs_a_restart_and_nothing_is_half_applied(
    file: Path, monkeypatch: pytest.MonkeyPatch, settings: str, needs: list[str]
) -> None:
    def refuse(running: Running) -> None:
        before = running.service.gateway.policy, running.service.gateway.timeouts
        running.write(("[[log]]", settings + "\n[[log]]"), ('"office"', '"house"'))
        assert [step.name for step in running.service.reload(dry_run=True).needs_restart] == needs
        with pytest.raises(RestartError, match=re.escape(needs[0])):
            running.service.reload()
        assert (running.service.gateway.policy, running.service.gateway.timeouts) == before
        assert running.service.gateway.entries()[0].entry.name == "office"

    Running(file, monkeypatch, refuse)


# ---- session logs ----------------------------------------------------------------------------------------------------

OTHER = '[[log]]\nsink = "jsonlines"\nfolder = "{}"\nname = "other"\n'


def rows_in(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*.jsonl"))


def test_logs_are_started_changed_restarted_and_stopped_by_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = file.parent

    def start(running: Running) -> None:
        audit = running.service.logs["audit"]
        running.write(("[plane]", OTHER.format(folder / "b") + "[plane]"))
        done = running.service.reload()
        assert [str(step) for step in done.steps] == ["start log other"]
        assert list(running.service.logs) == ["audit", "other"] and running.service.logs["audit"] is audit

    def change(running: Running) -> None:
        audit = running.service.logs["audit"]
        running.write(('/a"', '/c"'))
        assert [str(step) for step in running.service.reload().steps] == ["change log audit"]
        assert running.service.logs["audit"] is audit and audit.destination["folder"] == str(folder / "c")

    def restart(running: Running) -> None:
        other = running.service.logs["other"]
        running.write(('name = "other"', f'name = "other"\nspool = "{folder / "spool"}"'))
        assert [str(step) for step in running.service.reload().steps] == ["restart log other"]
        assert running.service.logs["other"] is not other and other.status == "Disabled"
        running.send("10.1.0.1", "198.51.100.7")
        running.service.gateway.end_all()
        until(lambda: rows_in(folder / "c") > 0 and rows_in(folder / "b") > 0)

    def stop(running: Running) -> None:
        audit = running.service.logs["audit"]
        running.file.write_text(BASE.partition("[[log]]")[0] + "[plane]" + BASE.partition("[plane]")[2])
        assert [str(step) for step in running.service.reload().steps] == ["stop log audit", "stop log other"]
        assert running.service.logs == {} and audit.status == "Disabled" and audit.counters()["lost"] == 0

    Running(file, monkeypatch, start, change, restart, stop)


def test_a_log_that_does_not_start_leaves_all_logs_and_entries_as_they_were(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = file.parent
    (folder / "blocked").write_text("not a folder")

    def refuse(running: Running) -> None:
        service = running.service
        running.write(
            ('name = "audit"', f'name = "audit"\nspool = "{folder / "spool"}"'),  # restarted
            ("[plane]", OTHER.format(folder / "blocked" / "x") + 'on_failure = "refuse"\n[plane]'),
            ('name = "office"', 'name = "house"'),
        )
        with pytest.raises(ConfigurationError, match=r"log\[1\]"):
            service.reload()
        assert list(service.logs) == ["audit"] and service.logs["audit"].status == "Enabled"
        assert service.gateway.entries()[0].entry.name == "office"

    Running(file, monkeypatch, refuse)


def test_what_fails_after_the_logs_changed_changes_them_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = file.parent
    real = reload.plan_of

    def fail(planned: Any, gateway: Any) -> Any:
        raise Error("planted")

    def refuse(running: Running) -> None:
        service = running.service
        running.write(("[plane]", OTHER.format(folder / "b") + "[plane]"))
        service.reload()
        running.write(('/a"', '/c"'), ('name = "other"', f'name = "other"\nspool = "{folder / "spool"}"'),
                      ("[plane]", OTHER.format(folder / "d").replace("other", "third") + "[plane]"))  # fmt: skip
        monkeypatch.setattr(reload, "plan_of", fail)
        with pytest.raises(Error, match="planted"):
            service.reload()
        assert sorted(service.logs) == ["audit", "other"]
        assert service.logs["audit"].destination["folder"] == str(folder / "a")
        assert [log.status for log in service.logs.values()] == ["Enabled", "Enabled"]
        monkeypatch.setattr(reload, "plan_of", real)
        assert [step.action for step in service.reload().steps] == ["start", "change", "restart"]
        assert sorted(service.logs) == ["audit", "other", "third"]

    Running(file, monkeypatch, refuse)


def test_a_secret_that_changed_in_its_file_changes_the_log(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one")
    clickhouse = f'sink = "clickhouse"\nurl = "http://127.0.0.1:9"\npassword_file = "{secret}"'
    file.write_text(
        file.read_text().replace('sink = "jsonlines"', clickhouse).replace(f'folder = "{tmp_path}/a"\n', "")
    )

    def rotate(running: Running) -> None:
        assert running.service.reload().steps == ()
        secret.write_text("two")
        assert [str(step) for step in running.service.reload().steps] == ["change log audit"]
        assert "two" not in str(running.told)

    Running(file, monkeypatch, rotate)


# ---- signals and files -----------------------------------------------------------------------------------------------


def test_sighup_reloads_the_file_that_the_service_began_with(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def of_another_file(running: Running) -> None:
        other = tmp_path / "other.toml"
        other.write_text(running.file.read_text().replace('"office"', '"elsewhere"'))
        assert running.service.reload(other).file == str(other)
        assert running.service.gateway.entries()[0].entry.name == "elsewhere"

    def hang_up(running: Running) -> None:
        running.write(('"office"', '"house"'))
        os.kill(os.getpid(), signal.SIGHUP)

    def wait(running: Running) -> None:
        until(lambda: running.service.reloads == 2)
        assert running.service.gateway.entries()[0].entry.name == "house"

    running = Running(file, monkeypatch, of_another_file, hang_up, lambda running: None, wait)
    assert [fields["file"] for what, fields in running.told if what == "reload"] == [
        str(tmp_path / "other.toml"),
        str(file),
    ]


def test_a_bad_file_at_sighup_is_reported_and_forwarding_goes_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang_up(running: Running) -> None:
        running.file.write_text("[[snat]]\n[plane]\ninside = 'lan0'\noutside = 'wan0'")
        os.kill(os.getpid(), signal.SIGHUP)

    running = Running(
        file,
        monkeypatch,
        hang_up,
        lambda running: None,
        lambda running: until(lambda: running.service.failed_reloads == 1),
    )
    (told,) = [fields for what, fields in running.told if what == "reload"]
    assert told["error"].splitlines() == [f"{file}:1: snat[0].source: missing", f"{file}:1: snat[0].pool: missing"]
    assert [what for what, _ in running.told][-1] == "stopped"


def test_reloads_are_one_after_another_by_any_thread(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def several(running: Running) -> None:
        callers = [threading.Thread(target=running.service.reload) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert running.service.reloads == 8

    Running(file, monkeypatch, several)


def test_a_reload_waits_for_what_the_control_socket_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session log that is being stopped is no log of a reload: planted, a stop that takes its time."""
    stop, stopping, may_stop = SessionLog.stop, threading.Event(), threading.Event()

    def slow_stop(self: SessionLog, *arguments: Any, **options: Any) -> int:
        stopping.set()
        assert may_stop.wait(60)
        return stop(self, *arguments, **options)

    def ask(running: Running, verb: str) -> None:
        with Client(running.file.parent / "control.sock", timeout=60) as client, suppress(ControlError):
            client.ask(verb, name="audit")  # the reload may have started it before

    def both(running: Running) -> None:
        monkeypatch.setattr(SessionLog, "stop", slow_stop)
        running.write(('/a"', '/b"'))
        command(running, "status")  # the socket is there
        threads = [threading.Thread(target=ask, args=[running, verb]) for verb in ("log-stop", "log-start")]
        threads.append(threading.Thread(target=running.service.reload))
        threads[0].start()
        assert stopping.wait(60)
        for thread in threads[1:]:
            thread.start()
        threads[2].join(0.5)
        assert all(thread.is_alive() for thread in threads) and running.service.reloads == 0
        may_stop.set()
        for thread in threads:
            thread.join(60)
        assert running.service.reloads == 1 and [log.name for log in running.service.gateway.logs] == ["audit"]
        assert list(running.service.logs.values()) == list(running.service.gateway.logs)

    Running(file, monkeypatch, both)


# ---- as commands -----------------------------------------------------------------------------------------------------


def command(running: Running, *arguments: object, exit_code: int = 0) -> str:
    """What a command prints that asks the running service."""
    socket = running.file.parent / "control.sock"
    if not socket.exists():
        running.service.gateway.serve_control(socket).service = running.service
    return call(*arguments, "--instance", socket, exit_code=exit_code)


def test_the_commands_reload_and_say_before_what_they_would_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(running: Running) -> None:
        running.send("10.2.0.1", "198.51.100.7")
        new = running.file.with_name("new.toml")
        new.write_text(running.file.read_text().replace('"203.0.113.3"]', '"203.0.113.9"]').replace("office", "house"))
        said = command(running, "plan", new)
        assert said == command(running, "reload", "--dry-run", new)
        assert said.splitlines()[1:] == [
            "  replace snat 'office': 'office' 10.1.0.0/16 by 203.0.113.1 -> 'house' 10.1.0.0/16 by 203.0.113.1, 0 sessions",
            "  replace snat: 10.2.0.0/16 by 203.0.113.2, 203.0.113.3 -> 10.2.0.0/16 by 203.0.113.2, 203.0.113.9, 1 sessions",
        ]
        assert running.service.reloads == 0
        told = json.loads(command(running, "reload", new, "--json"))
        assert told["ok"] and told["kept"] + told["ended"] == 1 and running.service.reloads == 1
        assert command(running, "reload", new) == (
            f"kept {told['kept']} sessions, drained 0, ended 0; unchanged entries and logs: 4\n"
        )
        assert running.service.settings.source == new

    Running(file, monkeypatch, ask)


def test_the_commands_say_why_a_reload_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(running: Running) -> None:
        running.write(("max_sessions = 1000", "max_sessions = 2000"))
        lines = command(running, "plan", running.file, exit_code=78).splitlines()
        assert "would be refused, and change nothing: a restart is needed" in lines[0]
        assert lines[1] == "  set gateway.max_sessions: 1000 -> 2000"
        running.write(('"203.0.113.1"\nname', '"203.0.113.300"\nname'), ('"wan0"', '"lan0"'))
        refused = json.loads(command(running, "reload", "--json", exit_code=78))
        assert [(each["line"], each["key"]) for each in refused["errors"]] == [
            (7, "snat[0].pool"),
            (24, "plane.outside"),
        ]
        assert running.service.last_reload_ok is False
        said = command(running, "reload", exit_code=78).splitlines()
        assert [line.partition(": ")[2].split(" ")[0] for line in said] == [f"{running.file}:7:", f"{running.file}:24:"]

    Running(file, monkeypatch, ask)


def test_two_files_are_compared_where_no_gateway_runs(file: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.toml"
    new.write_text(file.read_text().replace("internal_port = 8080", "internal_port = 8081"))
    told = call_json("plan", new, file)
    assert [step["action"] for step in told["steps"]] == ["replace"] and told["ok"] and told["unchanged"] == 3
    assert "would keep 0 sessions, drain 0, end 0; unchanged entries and logs: 3" in call("plan", new, file)
    assert "give either OLD.TOML or --instance" in call("plan", new, file, "--instance", "x", exit_code=64)


def test_what_is_said_is_plain_for_json(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(running: Running) -> None:
        running.write(("max_sessions = 1000", "max_sessions = 2000"), ('"office"', '"house"'))
        told = running.service.reload(dry_run=True).as_dict()
        (needs,) = told["needs_restart"]
        assert (needs["name"], needs["before"], needs["after"]) == ("gateway.max_sessions", "1000", "2000")
        assert told["steps"][0]["action"] == "replace" and told["dry_run"] is True
        with pytest.raises(RestartError) as caught:
            running.service.reload()
        assert [step.name for step in caught.value.steps] == ["gateway.max_sessions"]

    Running(file, monkeypatch, ask)
