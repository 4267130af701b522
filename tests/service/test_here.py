"""`natcore check --here`: what does not fit a machine is found before the gateway runs there, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from natcore.demo.namespaces import Network
from natcore.plane import kernel_bypass
from natcore.service.configuration_file import load
from natcore.service.here import Finding, look
from support.command_line import call, call_json
from support.netns import at, gateway, needs_root, start

pytestmark = needs_root

FILE = """
[[snat]]
source = "10.0.0.0/24"
pool = "198.18.0.100"
[plane]
inside = "lan0"
outside = "wan0"
"""


@pytest.fixture
def found(network: Network, tmp_path: Path) -> Callable[..., dict[str, list[Finding]]]:
    """What is found of a file, by level. The network is good: the gateway has routes to all."""
    network.route("gw", "default", via="198.18.0.2")

    def look_at(text: str = FILE) -> dict[str, list[Finding]]:
        file = tmp_path / "gateway.toml"
        file.write_text(text)
        by_level: dict[str, list[Finding]] = {"error": [], "warning": [], "note": [], "good": []}
        with at(network, "gw"):
            for each in look(load(file, to_run=True)):
                by_level[each.level].append(each)
        return by_level

    return look_at


def test_a_machine_that_fits_has_no_error_and_no_warning(found: Callable[..., dict[str, list[Finding]]]) -> None:
    told = found()
    assert told["error"] == told["warning"] == []
    assert [each.text for each in told["good"]][:2] == [
        "lan0: up, 10.0.0.1/24, MTU 1500", "wan0: up, 198.18.0.1/24, MTU 1500",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "level", "key", "text"),
    [
        ('"lan0"', '"lan9"', "error", "plane.inside", "lan9: no such interface; there are: lan0, lo, wan0"),
        ('"lan0"', '"lo"', "error", "plane.inside", "lo: it is no Ethernet interface"),
        ('"198.18.0.100"', '"10.0.0.1"', "error", "snat[0]", "10.0.0.1 is this host's own on lan0"),
        ('"198.18.0.100"', '"203.0.113.0/29"', "note", "snat[0]",
         "not in a network of wan0: 203.0.113.0, 203.0.113.1, 203.0.113.2, 203.0.113.3 and 4 more"),
        ('"10.0.0.0/24"', '"10.9.0.0/24"', "warning", "snat[0]", "the route to 10.9.0.1 leads by wan0"),
        ("[plane]", '[[dnat]]\nexternal_ip = "198.18.0.100"\nexternal_port = 80\ninternal_ip = "192.0.2.9"\n'
         "internal_port = 80\n[plane]", "warning", "dnat[0]", "the route to 192.0.2.9 leads by wan0"),
        ("[plane]", '[[log]]\nsink = "jsonlines"\nfolder = "/etc/passwd/x"\n[plane]', "error", "log[0].folder",
         "/etc/passwd is not a folder"),
        ("[plane]", '[gateway]\nworkers = 64\n[plane]\ndriver = "af_xdp"', "error", "gateway.workers", "fewer than the 64"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_found(
    found: Callable[..., dict[str, list[Finding]]], before: str, after: str, level: str, key: str, text: str
) -> None:
    assert any(each.key == key and text in each.text for each in found(FILE.replace(before, after))[level])


def test_links_routes_and_forwarding_are_the_kernels(
    network: Network, found: Callable[..., dict[str, list[Finding]]]
) -> None:
    network.run("gw", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    network.run("gw", ["ip", "route", "del", "default"])
    network.run("gw", ["ip", "link", "set", "lan0", "down"])
    told = found()
    assert any("lan0: it is down" in each.text for each in told["error"])
    assert any("the default route is missing, and should lead by wan0" in each.text for each in told["warning"])
    assert any("forwarding is on for" in each.text and "wan0" in each.text for each in told["note"])


def test_a_firewall_and_a_running_gateway_are_noted_and_left_alone(
    network: Network, found: Callable[..., dict[str, list[Finding]]]
) -> None:
    with gateway() as made, start(network, made):
        told = found()
        with at(network, "gw"):
            assert kernel_bypass.installed() == ["lan0", "wan0"]
    assert [each.key for each in told["note"] if "a gateway has it now" in each.text] == [
        "plane.inside",
        "plane.outside",
    ]
    assert not any("nf_tables has" in each.text for each in told["note"])


def test_a_folder_that_others_may_write_to_is_refused(
    tmp_path: Path, found: Callable[..., dict[str, list[Finding]]]
) -> None:
    for name in ("open", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "open").chmod(0o777)
    log = '[[log]]\nsink = "jsonlines"\nname = "{}"\nfolder = "{}"\nspool = "{}"\n'
    text = (
        FILE
        + log.format("a", tmp_path / "open", tmp_path / "new")
        + log.format("b", tmp_path / "good", tmp_path / "good")
    )
    told = found(text)
    assert [each.key for each in told["error"]] == ["log[0].folder"]
    assert [each.key for each in told["good"] if "this user" in each.text] == [
        "log[0].spool",
        "log[1].spool",
        "log[1].folder",
    ]
    assert not (tmp_path / "new").exists()


def test_the_command_says_it_and_fails_where_the_gateway_would_not_run(network: Network, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(FILE)
    with at(network, "gw"):
        assert "good: plane.inside: lan0: up" in call("check", "--here", file)
        assert call_json("check", "--here", file)["ok"] and "here" not in call_json("check", file)
        file.write_text(FILE.replace("lan0", "lan9"))
        call("check", file)
        told = call_json("check", "--here", file, exit_code=78)
        assert not told["ok"] and told["here"][0]["key"] == "plane.inside"
        assert (
            call("check", "--here", file, exit_code=78)
            .splitlines()[0]
            .endswith("is good, and does not fit this machine")
        )
