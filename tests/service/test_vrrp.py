"""keepalived and a pair of `natcore run`, with the files that docs/examples has: VRRP says which one is active."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.certificates import made
from support.netns import needs_root, until
from support.pairs import GATEWAYS, START_SECONDS, Echo, Lab, lab

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
pytestmark = [
    needs_root,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("keepalived") is None, reason="keepalived"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make certificates"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """keepalived runs no script in a folder that others may write to."""
    path = Path(f"/run/natcore-vrrp-{os.getpid()}")
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


@contextmanager
def keepalived(pair: Lab, folder: Path, name: str, priority: int) -> Iterator[None]:
    """Run it beside a gateway, with the example's configuration and script."""
    command, script, file = (folder / f"{each}-{name}" for each in ("natcore", "natcore-notify", "keepalived.conf"))
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m natcore.cli.main "$@" --instance {folder}/{name}.sock\n')
    text = (EXAMPLES / "natcore-notify").read_text()
    for is_, becomes in (("/usr/bin/natcore", str(command)), ("/run/natcore-vrrp-$2", f"{folder}/{name}")):
        assert is_ in text
        text = text.replace(is_, becomes)
    script.write_text(text)
    for each in (command, script):
        each.chmod(0o700)
    text = (EXAMPLES / "keepalived.conf").read_text()
    for is_, becomes in (
        ("/usr/local/sbin/natcore-notify", str(script)),
        ("priority 100", f"priority {priority}"),
        ("interval 5", "interval 1"), ("timeout 4", "timeout 60"),  # the machine of the tests is busy
    ):  # fmt: skip
        assert is_ in text
        text = text.replace(is_, becomes)
    file.write_text(text)
    with (folder / f"keepalived-{name}").open("w") as output:
        pids = [f"--{kind}={folder}/{name}-{kind}" for kind in ("pid", "vrrp_pid", "checkers_pid")]
        process = pair.network.popen(
            name, ["keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", str(file), *pids],
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def has_router_address(pair: Lab, name: str) -> bool:
    return " 10.0.0.1/24 " in pair.network.run(name, ["ip", "-4", "address", "show", "dev", "lan0"]).stdout


def test_the_master_is_active_and_the_other_one_takes_over(folder: Path) -> None:
    with lab(folder, made(folder), witness=False, inside="") as pair:
        for name in GATEWAYS:
            pair.start(name)
        until(lambda: (pair.role("a"), pair.role("b")) == ("standby", "standby"), START_SECONDS)
        with keepalived(pair, folder, "a", 150):
            until(lambda: pair.role("a") == "active" and has_router_address(pair, "a"), START_SECONDS)
            with keepalived(pair, folder, "b", 100):
                until(lambda: pair.follows("b"), START_SECONDS)
                assert [pair.ask(name, "status", "--active")["status"] for name in GATEWAYS] == [0, 70]
                flow = Echo(pair.network, tcp=True)
                assert flow.goes_on()
                pair.kill("a")
                pair.start("a")  # as its unit does, and before keepalived looks: a master that does not translate
                until(lambda: pair.role("b") == "active" and has_router_address(pair, "b"), START_SECONDS)
                until(lambda: pair.follows("a"), START_SECONDS)
                assert flow.goes_on()
                assert not has_router_address(pair, "a")
                assert flow.finish() == ""
