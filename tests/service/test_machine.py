"""A machine's first file is a good one, which shares the outside interface's address where there is one outside."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from natcore import ConfigurationError, OutsideInterface
from natcore.demo.namespaces import Network
from natcore.service.configuration_file import load
from natcore.service.first_file import text_for
from natcore.service.machine import Interface, interfaces, sides
from support.netns import SERVER, at, needs_root, ping


def interface(name: str, *addresses: str, default: bool = False) -> Interface:
    return Interface(name, tuple(map(IPv4Interface, addresses)), default)


WAN = interface("wan0", "203.0.113.7/24", default=True)


def test_what_is_proposed_is_a_good_file(tmp_path: Path) -> None:
    there = [
        interface("lan0", "10.1.0.1/24"),
        WAN,
        interface("lan1", "10.1.0.1/16", "198.51.100.1/24"),
        interface("x0"),
    ]
    file = tmp_path / "gateway.toml"
    file.write_text(text_for(there, 'a "host"'))
    settings = load(file, to_run=True)
    assert settings.gateway == {"instance": "a--host-"}
    assert settings.plane == {"inside": ["lan0", "lan1"], "outside": "wan0"}
    assert [(str(entry.source), entry.pool) for entry in settings.snat] == [("10.1.0.0/16", (OutsideInterface(),))]


def test_a_private_address_outside_makes_no_inside_interface() -> None:
    outside = interface("wan0", "192.168.1.2/24", default=True)
    assert sides([outside, interface("lan0", "10.0.0.1/24")]).inside == ("lan0",)


@pytest.mark.parametrize("there, match", [
    ([], "one interface of the default route, got 0"),
    ([interface("lan0", "10.0.0.1/24")], r"got 0 of: lan0 10\.0\.0\.1/24"),
    ([WAN, interface("wan1", "203.0.113.8/24", default=True)], "got 2 of: wan0"),
    ([WAN, interface("lan0", "198.51.100.1/24")], "inside must be an interface with a private address"),
    ([WAN, interface("lan0")], r"got none of: wan0 203\.0\.113\.7/24; lan0 without an address"),
])  # fmt: skip
def test_a_machine_with_unknown_sides_gets_a_file_that_says_so(
    there: list[Interface], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        sides(there)
    file = tmp_path / "gateway.toml"
    file.write_text(text_for(there, ""))
    text = " ".join(file.read_text().replace("\n#", "").split())
    assert "Change the interfaces below" in text and re.search(match, text)
    assert load(file, to_run=True).plane == {"inside": "lan0", "outside": "wan0"}


@needs_root
def test_it_works_on_a_machine_with_two_interfaces(network: Network, tmp_path: Path) -> None:
    network.route("gw", "default", via=SERVER)
    with at(network, "gw"):
        assert {each.name: each.default for each in interfaces()} == {"lan0": False, "wan0": True}
        file = tmp_path / "gateway.toml"
        file.write_text(text_for(interfaces(), "gw"))
        settings = load(file)
        assert settings.plane is not None
        with settings.make_gateway() as gateway, gateway.forward(**settings.plane):
            assert ping(network, "in", SERVER) and ping(network, "gw", SERVER)


@needs_root
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_natcore_run_reserves_its_ports_and_they_are_given_back(network: Network, tmp_path: Path, end: int) -> None:
    """With the few capabilities that are left to it; after SIGKILL by natcore clean."""
    network.route("gw", "default", via=SERVER)
    file = tmp_path / "gateway.toml"
    with at(network, "gw"):
        file.write_text(text_for(interfaces(), "gw") + "\n[policy]\nhost_ports = [[40000, 40999]]\n")
    command = [sys.executable, "-m", "natcore.cli.main"]
    program = network.popen("gw", [*command, "run", "--json", str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None and json.loads(program.stdout.readline())["happened"] == "started"
        assert reserved(network) == "1024-39999,41000-65535"
        assert ping(network, "in", SERVER) and ping(network, "gw", SERVER)
    finally:
        program.send_signal(end)
        program.communicate()
    if end == signal.SIGKILL:
        assert reserved(network) == "1024-39999,41000-65535"
        assert "put back: interfaces ['lan0', 'wan0']" in network.run("gw", [*command, "clean"]).stdout
    assert reserved(network) == ""


def reserved(network: Network) -> str:
    with at(network, "gw"):
        return Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text().strip()
