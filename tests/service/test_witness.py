"""The witness, its unit, and what keepalived calls."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from natcore.demo.namespaces import Network
from natcore.peer.channel import Address
from natcore.peer.lease import Voter, clock
from natcore.peer.server import Server
from natcore.peer.voting import WITNESS, Voting
from natcore.service import witness
from support.certificates import made
from support.netns import needs_root, until

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, to make certificates")


@needs_openssl
def test_a_witness_lends_its_vote_and_ends_in_order(tmp_path: Path) -> None:
    credentials = made(tmp_path)
    told: list[tuple[str, dict[str, Any]]] = []
    failed: list[BaseException] = []
    before = {number: signal.getsignal(number) for number in (*witness.STOP, signal.SIGHUP)}

    def look() -> None:
        try:
            until(lambda: told)
            host, _, port = told[0][1]["listen"].rpartition(":")
            own = Address("127.0.0.1", 0)
            others = {"gw-b": Address("127.0.0.1", 1), WITNESS: Address(host, int(port))}
            voter = Voter("gw-a", 0.5, clock() - 1)
            with (
                Server(own, credentials, voter=voter, about=dict) as server,
                Voting("gw-a", server, others, credentials, 0.5, lambda until: None) as voting,
            ):
                voting.begin()
                until(lambda: voting.until > clock())
                until(lambda: ("vote", {"lent_to": "gw-a"}) in told)
            until(lambda: ("vote", {"lent_to": "no one"}) in told)
        except BaseException as error:
            failed.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        witness.run(Address("127.0.0.1", 0), credentials, 0.5, lambda what, fields: told.append((what, fields)))
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not failed, failed
    assert told[-1] == ("stopped", {})


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--listen", "nowhere", "ADDRESS:PORT"),
        ("--lease", "99", "between 0.1 and 60"),
        ("--key", "/nowhere", "files in PEM"),
    ],
)
def test_a_wrong_option_is_named(option: str, value: str, said: str) -> None:
    given = {"--listen": "127.0.0.1:0", "--certificate": "/nowhere", "--key": "/nowhere", "--authority": "/nowhere"}
    given["--listen"] = "127.0.0.1:7411"
    given[option] = value
    words = [word for pair in given.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-m", "natcore.cli.main", "witness", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 64
    assert said in done.stderr


def test_the_unit_starts_a_witness_without_rights(tmp_path: Path) -> None:
    text = (EXAMPLES / "natcore-witness.service").read_text().replace("\\\n", "")
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    assert unit["Service"]["DynamicUser"] == "yes"
    assert unit["Service"]["CapabilityBoundingSet"] == ""
    words = unit["Service"]["ExecStart"].split()
    assert words[1] == "witness"
    loaded = [
        line.partition("=")[2].partition(":")[0] for line in text.splitlines() if line.startswith("LoadCredential")
    ]
    assert sorted(word.removeprefix("%d/") for word in words if word.startswith("%d/")) == sorted(loaded)
    if shutil.which("systemd-analyze"):
        file = tmp_path / "natcore-witness.service"
        file.write_text(text.replace("/usr/bin/natcore", "/bin/true"))
        done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=300)
        assert str(file) not in done.stderr, done.stderr


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A `natcore` that notes what it is asked, and succeeds the third time."""
    path = tmp_path / "natcore"
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ $(wc -l < {tmp_path}/asked) -ge 3 ]\n')
    path.chmod(0o755)
    return path


def notified(command: Path, state: str, **more: str) -> tuple[int, list[str]]:
    """Run the script; return its exit status and what it asked of natcore."""
    environment = {
        "PATH": os.environ["PATH"], "NATCORE": str(command), "MASTER": str(command.with_name("master")), **more
    }  # fmt: skip
    done = subprocess.run(
        [EXAMPLES / "natcore-notify", "INSTANCE", "natcore", state, "100"], env=environment, timeout=300, check=False,
        capture_output=True,
    )  # fmt: skip
    told = command.with_name("asked")
    lines = told.read_text().splitlines() if told.exists() else []
    told.unlink(missing_ok=True)
    return done.returncode, lines


@pytest.mark.parametrize(
    ("state", "asked", "status"),
    [
        ("MASTER", ["activate"] * 3, 0), ("BACKUP", ["standby"], 0), ("FAULT", ["standby"], 0), ("STOP", ["standby"], 0),
        ("ELSE", [], 64),
    ],
)  # fmt: skip
def test_the_notify_script_takes_over_as_master_and_makes_way_otherwise(
    command: Path, state: str, asked: list[str], status: int
) -> None:
    for more in ({}, {"INSTANCE": "gw a"}):
        assert notified(command, state, **more) == (
            status, [f"{word} --instance gw a" if more else word for word in asked]
        )  # fmt: skip


def test_the_tracked_script_fails_where_the_master_does_not_translate(command: Path) -> None:
    command.write_text(command.read_text().replace("-ge 3", "-ge 1"))
    assert notified(command, "CHECK") == (0, ["status"])
    notified(command, "MASTER")
    assert notified(command, "CHECK", INSTANCE="gw a") == (0, ["status --active --instance gw a"])
    notified(command, "BACKUP")
    assert notified(command, "CHECK") == (0, ["status"])


def test_a_master_that_could_not_take_over_is_found_by_the_tracked_script(command: Path) -> None:
    command.write_text(command.read_text().replace("-ge 3", "-ge 100"))
    sleep = command.with_name("sleep")
    sleep.write_text("#!/bin/sh\n")
    sleep.chmod(0o755)
    assert notified(command, "MASTER", PATH=f"{command.parent}:{os.environ['PATH']}") == (1, ["activate"] * 10)
    assert notified(command, "CHECK") == (1, ["status --active"])


@needs_root
@pytest.mark.skipif(shutil.which("keepalived") is None, reason="keepalived")
def test_keepalived_takes_the_configuration(network: Network, tmp_path: Path) -> None:
    script = tmp_path / "natcore-notify"
    shutil.copy(EXAMPLES / "natcore-notify", script)
    file = tmp_path / "keepalived.conf"
    text = (EXAMPLES / "keepalived.conf").read_text()
    file.write_text(text.replace("/usr/local/sbin/natcore-notify", str(script)))
    done = network.run("gw", ["keepalived", "-t", "-f", str(file)], check=False)
    assert done.returncode == 0, done.stderr
    assert "nknown" not in done.stdout + done.stderr
