"""Two hosts behind two gateways connect to each other by ICE (RFC 8445), with a STUN server between: aioice does it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from natcore import Gateway, SnatEntry
from natcore.demo.namespaces import Network
from support.netns import at, needs_root, ping, until

pytest.importorskip("aioice")
pytestmark = [
    needs_root,
    pytest.mark.skipif(shutil.which("turnserver") is None, reason="no STUN server here (Debian: coturn)"),
]
PEER = Path(__file__).parents[1] / "support" / "ice_peer.py"
STUN = "198.18.0.2"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Network]:
    """a -- gwa -- world -- gwb -- b; world routes, and has the STUN server."""
    with Network(f"natcore-ice-{os.getpid()}-", ["a", "gwa", "world", "gwb", "b"]) as network:
        for number, host in enumerate(("a", "b")):
            edge = f"gw{host}"
            network.pair(host, "eth0", edge, "lan0")
            network.pair(edge, "wan0", "world", f"w{number}")
            network.up(host, "eth0", "10.0.0.2/24")
            network.up(edge, "lan0", "10.0.0.1/24")
            network.up(edge, "wan0", f"198.18.{number}.1/24")
            network.up("world", f"w{number}", f"198.18.{number}.2/24")
            network.route(host, "default", via="10.0.0.1")
            network.route(edge, "default", via=f"198.18.{number}.2")
        network.setting("world", "net/ipv4/ip_forward", 1)
        files = ["--log-file", str(tmp_path / "log"), "--simple-log", "--pidfile", str(tmp_path / "pid")]
        command = ["turnserver", "-n", "-S", "-L", STUN, "--no-tls", "--no-dtls", "--no-cli", "-m", "1", *files]
        command += ["--userdb", str(tmp_path / "db")]
        server = network.popen("world", command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: network.run("world", ["ss", "-Hlun", "sport", "=", ":3478"]).stdout or server.poll() is not None)
        yield network
        server.terminate()
        server.wait(60)


def test_two_hosts_behind_two_gateways_connect(world: Network) -> None:
    with ExitStack() as stack:
        gateways = []
        for number, edge in enumerate(("gwa", "gwb")):
            made = stack.enter_context(Gateway())
            made.add(SnatEntry("10.0.0.0/24", pool=f"198.18.{number}.100"))
            with at(world, edge):
                stack.enter_context(made.forward(inside="lan0", outside="wan0"))
            gateways.append(made)
        assert all(ping(world, host, STUN) for host in ("a", "b"))
        peers = [
            world.popen(host, [sys.executable, str(PEER), role, STUN], stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE, text=True)
            for host, role in (("a", "controlling"), ("b", "controlled"))
        ]  # fmt: skip
        told = [peer.stdout.readline() for peer in peers]
        assert all("srflx" in line for line in told), "each learns its outside endpoint"
        for peer, other in zip(peers, reversed(told), strict=True):
            peer.stdin.write(other)
            peer.stdin.flush()
        assert [json.loads(peer.stdout.readline()) for peer in peers] == ["controlled", "controlling"]
        for peer in peers:
            peer.communicate("\n", timeout=60)
        pools = {str(made.mappings()["outside_ip"].max()) for made in gateways}
        assert len(pools) == 2 and [peer.returncode for peer in peers] == [0, 0]
