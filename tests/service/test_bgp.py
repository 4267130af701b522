"""Two nodes announce pools by the shipped configurations of BIRD and ExaBGP: a node dies, and its pool moves to the other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from natcore.demo.namespaces import Network
from support.netns import needs_root, until

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "bgp"
HOST, SERVER, POOL = "10.0.0.2", "198.51.100.7", "203.0.113.0/30"
ROUTER = """
log stderr {{ error, fatal }};
router id {id};
protocol device {{ scan time 1; }}
protocol bfd {{ interface "*" {{ interval 100 ms; multiplier 10; }}; }}
protocol kernel {{ scan time 1; ipv4 {{ import none; export all; }}; }}
template bgp node {{ local as {own}; hold time 9; {bfd} ipv4 {{ import all; export none; }}; }}
protocol bgp a from node {{ neighbor {a} as 64501; }}
protocol bgp b from node {{ neighbor {b} as 64501; }}
"""
GATEWAY = """
[gateway]
max_sessions = 1000
[[snat]]
source = "10.0.0.0/24"
pool = "203.0.113.0/30"
[control]
enabled = false
[metrics]
listen = "127.0.0.1:9468"
[plane]
inside = "lan0"
outside = "wan0"
"""
OF_B = (  # what is another in the file of node B
    ("192.0.2.2", "192.0.2.6"), ("192.0.2.1", "192.0.2.5"), ("10.1.0.2", "10.2.0.2"), ("10.1.0.1", "10.2.0.1"),
    ("bgp_med = 100", "bgp_med = 200"), ("--up-metric 100", "--up-metric 200"),
)  # fmt: skip


def of_b(text: str) -> str:
    for own, other in OF_B:
        text = text.replace(own, f"<{other}>")
    return text.replace("<", "").replace(">", "")


@pytest.fixture
def network() -> Iterator[Network]:
    """A host and its router; nodes a and b; the upstream router and a server: in a0 -- lan0 a wan0 -- a0 out, and so for b."""
    with Network(f"natcore-bgp-{os.getpid()}-", ["in", "a", "b", "out"]) as made:
        for node, inside, outside in (("a", "10.1.0.{}/30", "192.0.2.{}/30"), ("b", "10.2.0.{}/30", "192.0.2.{}/30")):
            made.pair("in", f"{node}0", node, "lan0")
            made.pair(node, "wan0", "out", f"{node}0")
            made.up(node, "lan0", inside.format(1))
            made.up("in", f"{node}0", inside.format(2))
            made.up("out", f"{node}0", outside.format(1 if node == "a" else 5))
            made.up(node, "wan0", outside.format(2 if node == "a" else 6))
            made.route(node, "10.0.0.0/24", via=inside.format(2).partition("/")[0])
            made.route(node, "default", via=outside.format(1 if node == "a" else 5).partition("/")[0])
        made.up("in", "lo", f"{HOST}/32")
        made.up("out", "lo", f"{SERVER}/32")
        yield made


def router(network: Network, folder: Path, member: str, *, bfd: bool, id: str, own: int, a: str, b: str) -> None:
    file = folder / f"{member}.conf"
    file.write_text(ROUTER.format(id=id, own=own, a=a, b=b, bfd="bfd on;" if bfd else ""))
    network.popen(member, ["bird", "-f", "-c", str(file), "-s", str(folder / f"{member}.ctl")], stderr=sys.stderr)


def gateway(network: Network, folder: Path, node: str) -> subprocess.Popen[str]:
    file = folder / "gateway.toml"
    file.write_text(GATEWAY)
    command = [sys.executable, "-m", "natcore.cli.main", "run", str(file)]
    return network.popen(node, command, stdout=subprocess.DEVNULL)


def announce_by_bird(network: Network, folder: Path, node: str) -> list[subprocess.Popen[str]]:
    text = (EXAMPLES / "bird.conf").read_text()
    file, control = folder / f"bird-{node}.conf", folder / f"{node}.ctl"
    file.write_text(of_b(text) if node == "b" else text)
    daemon = network.popen(node, ["bird", "-f", "-c", str(file), "-s", str(control)])
    birdc = f"birdc -s {control}"
    asking = network.popen(
        node,
        [str(EXAMPLES / "announce"), "http://127.0.0.1:9468/readyz", f"{birdc} enable nat_a", f"{birdc} disable nat_a"],
    )
    return [daemon, asking]


def announce_by_exabgp(network: Network, folder: Path, node: str) -> list[subprocess.Popen[str]]:
    text = (EXAMPLES / "exabgp.conf").read_text()
    file = folder / f"exabgp-{node}.conf"
    file.write_text(of_b(text) if node == "b" else text)
    environment = {**os.environ, "exabgp.daemon.user": "root", "exabgp.log.level": "CRIT", "exabgp.api.cli": "false"}
    return [network.popen(node, ["exabgp", str(file)], env=environment, stdout=subprocess.DEVNULL)]


def goes_by(network: Network, member: str, address: str) -> str:
    """The interface by which a router sends to an address: a0, b0, or none."""
    found = network.run(member, ["ip", "route", "get", address], check=False).stdout.split()
    return found[found.index("dev") + 1] if "dev" in found else ""


def answers(network: Network) -> bool:
    return network.run("in", ["ping", "-c1", "-W1", "-I", HOST, SERVER], check=False).returncode == 0


@needs_root
@pytest.mark.parametrize("daemon", ["bird", "exabgp"])
def test_a_pool_is_announced_while_its_gateway_forwards_and_moves_when_it_dies(
    daemon: str, network: Network, tmp_path: Path
) -> None:
    for program in ("bird", "birdc", "curl", daemon):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    bfd = daemon == "bird"
    router(network, tmp_path, "in", bfd=bfd, id="10.0.0.1", own=64510, a="10.1.0.1", b="10.2.0.1")
    router(network, tmp_path, "out", bfd=bfd, id="198.51.100.1", own=64500, a="192.0.2.2", b="192.0.2.6")
    announce = announce_by_bird if daemon == "bird" else announce_by_exabgp
    running = {node: [gateway(network, tmp_path, node), *announce(network, tmp_path, node)] for node in ("a", "b")}

    def by(node: str) -> bool:
        return goes_by(network, "out", "203.0.113.1") == goes_by(network, "in", SERVER) == f"{node}0"

    until(lambda: by("a"))  # both announce, and a's is better
    assert answers(network)
    running["a"][0].send_signal(signal.SIGKILL)  # the gateway alone
    until(lambda: by("b"))
    assert answers(network)
    gateway(network, tmp_path, "a")  # it is there again, and so is what it announces
    until(lambda: by("a"))
    assert answers(network)
    network.down("a", "wan0")  # the machine, as seen from its neighbours
    network.down("a", "lan0")
    until(lambda: by("b"))
    assert answers(network)
