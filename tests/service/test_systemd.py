"""The unit of `natcore service install` under a real systemd: start, reload, stop; a bad file is not tried again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from threading import Thread

from natcore.service import units
from natcore.service.configuration_file import load
from support.netns import until
from support.systemd import Systemd, needs_systemd, systemd

FILE = """
[gateway]
max_sessions = 1000
[[snat]]
source = "10.0.0.0/24"
pool = "198.18.0.100"
[[log]]
sink = "jsonlines"
folder = "log"
spool = "spool"
name = "audit"
[plane]
inside = "lan0"
outside = "wan0"
"""
PROGRAM = f'#!/bin/sh\nexec {sys.executable} -m natcore.cli.main "$@"\n'


def unit_of(tmp_path: Path) -> str:
    """The unit as it is installed for /srv/gateway.toml, but for what this machine's interpreter needs: it may be in /root."""
    file = tmp_path / "gateway.toml"
    file.write_text(FILE)
    text = units.files(load(file), program="/srv/natcore", notify_reload=False)[0].text
    text = text.replace(f"run {file}", "run /srv/gateway.toml").replace("ProtectHome=yes", "ProtectHome=no")
    return text.replace("ExecStart=/srv/natcore", "ExecStart=/bin/sh /srv/natcore")


def state(made: Systemd) -> tuple[str, str]:
    return made.show("natcore", "ActiveState"), made.show("natcore", "SubState")


@needs_systemd
def test_the_unit_starts_reloads_and_stops_under_a_real_systemd(tmp_path: Path) -> None:
    given = {"natcore": PROGRAM, "gateway.toml": FILE}
    with systemd(tmp_path, {"natcore.service": unit_of(tmp_path)}, given, "natcore") as made:
        made.run("systemctl", "start", "natcore")  # returns when it is ready
        assert state(made) == ("active", "running")
        until(lambda: made.show("natcore", "StatusText") == "running, 1 entries")
        process = int(made.show("natcore", "MainPID"))
        status = made.run("cat", f"/proc/{process}/status").stdout
        assert "Uid:\t977\t" in status
        assert f"CapEff:\t{(1 << 13 | 1 << 12):016x}" in status  # CAP_NET_RAW, CAP_NET_ADMIN
        assert made.show("natcore", "WatchdogTimestamp") != ""
        made.run("systemctl", "reload", "natcore")
        until(lambda: state(made) == ("active", "running"))  # "reload" for a moment
        assert int(made.show("natcore", "MainPID")) == process
        assert made.run("ls", "/run/natcore").stdout and made.run("ls", "/var/lib/natcore/spool").stdout
        made.run("systemctl", "stop", "natcore")
        assert state(made) == ("inactive", "dead") and made.show("natcore", "Result") == "success"
        assert made.show("natcore", "ExecMainStatus") == "0"


SENDER = """
import socket, sys, time
from natcore.testing import craft
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind(("host0", 0))
router = bytes.fromhex(sys.argv[1].replace(":", ""))
for port in range(2000, 2060):
    out.send(router + craft.ether(craft.udp(("10.0.0.5", port), ("198.18.0.2", 9)))[6:])
    time.sleep(0.3)
"""


@needs_systemd
def test_packets_wait_while_the_manager_restarts_the_unit_where_it_has_a_state(tmp_path: Path) -> None:
    """Each packet is a session of its own: all are there, also of those that came between the two processes. They are so few
    that each has a block of the ring."""
    given = {"natcore": PROGRAM, "gateway.toml": FILE + '[state]\npath = "gateway.state"\n'}
    with systemd(tmp_path, {"natcore.service": unit_of(tmp_path)}, given, "natcore") as made:
        made.run("systemctl", "start", "natcore")
        before = int(made.show("natcore", "MainPID"))
        router = json.loads(made.run("ip", "-j", "link", "show", "lan0").stdout)[0]["address"]
        sender = Thread(target=made.run, args=(sys.executable, "-c", SENDER, router))
        sender.start()
        until(lambda: sessions(made) > 2)
        made.run("systemctl", "restart", "natcore")
        assert int(made.show("natcore", "MainPID")) != before
        assert sender.is_alive()
        sender.join()
        until(lambda: sessions(made) == 60)
        assert made.show("natcore", "NFileDescriptorStore") == "0"
        made.run("systemctl", "stop", "natcore")
        assert state(made) == ("inactive", "dead")
        until(lambda: made.show("natcore", "NFileDescriptorStore") == "0")  # it closes what the stopped one has left


def sessions(made: Systemd) -> int:
    return int(json.loads(made.run("/bin/sh", "/srv/natcore", "status", "--json").stdout)["sessions"])


@needs_systemd
def test_a_restart_by_natcore_makes_another_process_the_units_main_one(tmp_path: Path) -> None:
    given = {"natcore": PROGRAM, "gateway.toml": FILE}
    with systemd(tmp_path, {"natcore.service": unit_of(tmp_path)}, given, "natcore") as made:
        made.run("systemctl", "start", "natcore")
        before = int(made.show("natcore", "MainPID"))
        for _ in range(2):
            made.run("/bin/sh", "/srv/natcore", "restart")
            process = int(made.show("natcore", "MainPID"))
            assert process != before
            before = process
            assert state(made) == ("active", "running")
            status = made.run("cat", f"/proc/{process}/status").stdout
            assert "Uid:\t977\t" in status
            assert f"CapEff:\t{(1 << 13 | 1 << 12):016x}" in status  # of a user: they were passed on
            until(lambda: made.show("natcore", "StatusText") == "running, 1 entries")
        until(lambda: made.run("ps", "-o", "pid=", "-u", "977").stdout.split() == [str(process)])
        assert made.show("natcore", "NRestarts") == "0"
        made.run("systemctl", "stop", "natcore")
        assert state(made) == ("inactive", "dead") and made.show("natcore", "Result") == "success"


@needs_systemd
def test_a_bad_file_is_not_tried_again_and_a_missing_interface_is(tmp_path: Path) -> None:
    bad = FILE.replace("max_sessions = 1000", 'max_sessions = "many"')
    given = {"natcore": PROGRAM, "gateway.toml": bad, "late.toml": FILE.replace("lan0", "lan9")}
    unit = unit_of(tmp_path)
    late = unit.replace("/srv/gateway.toml", "/srv/late.toml").replace("RestartSec=1", "RestartSec=50ms")
    with systemd(tmp_path, {"natcore.service": unit, "late.service": late}, given, "natcore") as made:
        assert made.run("systemctl", "start", "natcore", check=False).returncode != 0
        assert made.show("natcore", "ExecMainStatus") == "78"
        assert (state(made)[0], made.show("natcore", "NRestarts")) == ("failed", "0")
        made.run("systemctl", "start", "--no-block", "late")
        until(lambda: int(made.show("late", "NRestarts")) > 0, 60)
        made.run("ip", "link", "set", "lan0", "name", "lan9")
        until(lambda: made.show("late", "ActiveState") == "active", 60)
        made.run("systemctl", "stop", "late")
