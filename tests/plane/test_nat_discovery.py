"""What a real STUN client finds out about a gateway (RFC 5780): coturn's, with its server at two addresses behind the NAT."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from natcore import Policy
from natcore.demo.namespaces import Network
from support.netns import SERVER, adds_up, gateway, needs_root, ping, start, until

OTHER = "198.18.0.3"  # the server's second address
TOOLS = ("turnserver", "turnutils_natdiscovery")

pytestmark = [
    needs_root,
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="no STUN server and client here (Debian: coturn)"),
]


@pytest.fixture
def stun(network: Network, tmp_path: Path) -> Iterator[Network]:
    """A STUN server at two addresses and two ports outside."""
    network.up("out", "eth0", f"{OTHER}/24")
    files = ["--log-file", str(tmp_path / "log"), "--simple-log", "--pidfile", str(tmp_path / "pid")]
    command = ["turnserver", "-n", "-S", "-L", SERVER, "-L", OTHER, "--no-tls", "--no-dtls", "--no-cli", *files]
    command += ["--userdb", str(tmp_path / "db"), "-m", "1"]
    server = network.popen("out", command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    listening = ["ss", "-Hlun", "sport", "=", ":3479"]
    until(lambda: len(network.run("out", listening).stdout.splitlines()) >= 2 or server.poll() is not None)
    assert server.poll() is None
    yield network
    server.terminate()
    server.wait(60)


@pytest.mark.parametrize("kind", ["endpoint-independent", "address-dependent", "address-and-port-dependent"])
def test_a_stun_client_finds_the_policy(stun: Network, kind: str) -> None:
    """Mapping and filtering of each kind; mapping is endpoint-independent or address-and-port-dependent."""
    mapping = "address-and-port-dependent" if kind == "address-and-port-dependent" else "endpoint-independent"
    with gateway(policy=Policy(mapping=mapping, filtering=kind)) as made, start(stun, made):
        assert ping(stun, "in", SERVER) and ping(stun, "in", OTHER)
        done = stun.run("in", ["turnutils_natdiscovery", "-m", "-f", SERVER], check=False)
        said = [line.lower() for line in re.findall(r"NAT with (.*?)!", done.stdout)]
        assert adds_up(made)
    names = {
        "endpoint-independent": "endpoint independent",
        "address-dependent": "address dependent",
        "address-and-port-dependent": "address and port dependent",
    }
    assert f"{names[mapping]} mapping" in said and f"{names[kind]} filtering" in said, done.stdout
