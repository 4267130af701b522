"""The kernel block: nothing leaves untranslated, whatever becomes of the firewall, the interfaces or the process."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from natcore import ConfigurationError, DnatEntry, Gateway, SecurityWarning, SnatEntry
from natcore.demo.namespaces import Network
from natcore.plane import kernel_bypass, links
from natcore.plane.plane import Plane
from support.netns import (
    CLIENT,
    GATEWAY_INSIDE,
    GATEWAY_OUTSIDE,
    POOL,
    SERVER,
    at,
    connect,
    gateway,
    listener,
    needs_root,
    ping,
    ping_once,
    start,
    until,
)

pytestmark = [needs_root, pytest.mark.usefixtures("each_driver")]

ALL_PROTOCOLS = 3  # ETH_P_ALL


@pytest.fixture
def router(network: Network) -> Network:
    """The gateway's kernel would forward what it gets, both ways."""
    network.setting("gw", "net/ipv4/ip_forward", 1)
    network.route("out", "10.0.0.0/24", via=GATEWAY_OUTSIDE)
    assert ping(network, "in", SERVER)  # untranslated
    return network


def forward(network: Network, made: Gateway, **options: object) -> Plane:
    with pytest.warns(SecurityWarning, match=r"lan0, wan0: the kernel's forwarding is on"):
        return start(network, made, **options)


@contextmanager
def untranslated(network: Network) -> Iterator[list[bytes]]:
    """The IPv4 packets that reach the outside host from an inside address; complete when the block is left."""
    found: list[bytes] = []
    with at(network, "out"), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL_PROTOCOLS)) as tap:
        tap.bind(("eth0", ALL_PROTOCOLS))
        yield found
        tap.setblocking(False)
        while True:
            try:
                packet, (_, protocol, *_) = tap.recvfrom(1 << 16)
            except BlockingIOError:
                return
            if protocol == 0x0800 and packet[12:15] == socket.inet_aton(CLIENT)[:3]:
                found.append(packet)


def nft(network: Network, *command: str) -> bool:
    return network.run("gw", ["nft", *command], check=False).returncode == 0


RELOAD = """
flush ruleset
table inet filter {
    chain input { type filter hook input priority filter; policy accept; }
    chain forward { type filter hook forward priority filter; policy accept; }
}
"""


@pytest.mark.parametrize("owned", [True, False])
def test_nothing_leaves_untranslated_when_the_firewall_is_reloaded(
    router: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owned: bool
) -> None:
    """owned=False: as on a kernel before 6.9, where every process may change the tables."""
    if not owned:
        monkeypatch.setattr(kernel_bypass, "OWNED", 0)
    file = tmp_path / "nftables.conf"
    file.write_text(RELOAD)
    with gateway() as made, forward(router, made) as plane, listener(router, "out") as server:
        with untranslated(router) as leaked, connect(router, "in", (SERVER, server.getsockname()[1])) as client:
            accepted, (seen, _) = server.accept()
            assert seen == POOL
            with accepted:
                accepted.settimeout(60)
                for number, command in enumerate((["flush", "ruleset"], ["-f", str(file)])):
                    assert nft(router, *command)
                    if not owned:
                        until(lambda number=number: plane.counters()["blocks_restored"] >= 2 * (number + 1))
                    client.sendall(b"after it")
                    assert accepted.recv(100) == b"after it"
                    assert ping(router, "in", SERVER)
        assert leaked == []
        with at(router, "gw"):
            assert kernel_bypass.installed() == kernel_bypass.forwarding_nothing() == ["lan0", "wan0"]
        assert plane.counters()["blocks_restored"] == (0 if owned else 4)


def test_a_table_of_a_plane_is_refused_to_others(router: Network) -> None:
    with gateway() as made, forward(router, made) as plane:
        for command in (
            "delete table netdev natcore-lan0",
            "flush table netdev natcore-lan0",
            "insert rule netdev natcore-lan0 ingress accept",
            "delete table ip natcore-wan0",
        ):
            assert not nft(router, command), command
        assert plane.counters()["blocks_restored"] == 0


def test_a_block_that_others_change_is_put_back_counted_and_told(
    router: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernel_bypass, "OWNED", 0)
    with gateway() as made, forward(router, made) as plane:
        for number, command in enumerate(
            (
                "delete table netdev natcore-lan0",
                "flush chain netdev natcore-lan0 ingress",
                "insert rule netdev natcore-lan0 ingress accept",
                "add table netdev natcore-lan0 { flags dormant; }",
                "delete table ip natcore-lan0",
            ),
            1,
        ):
            assert nft(router, command), command
            until(lambda number=number: plane.counters()["blocks_restored"] == number)
        assert caplog.text.count("lan0: the kernel block was changed or removed by another program") == 5
        nft(router, "add table ip another")  # not ours: nothing happens
        assert ping(router, "in", SERVER)
        assert plane.counters()["blocks_restored"] == 5


def test_after_a_stop_nothing_leaves_untranslated_where_the_kernel_forwards(router: Network) -> None:
    made = gateway()
    forward(router, made).stop()
    with untranslated(router) as leaked:
        assert not ping_once(router, "in", SERVER)
        assert not ping_once(router, "out", CLIENT)
        with at(router, "gw"):
            assert (kernel_bypass.installed(), kernel_bypass.forwarding_nothing()) == ([], ["lan0", "wan0"])
        for member, target in (("in", GATEWAY_INSIDE), ("out", GATEWAY_OUTSIDE), ("gw", SERVER)):  # the host's own
            assert ping(router, member, target), (member, target)
        router.up("gw", "wan0", "198.18.0.7/24")  # an address that it gets later
        assert ping(router, "out", "198.18.0.7")
    assert leaked == []
    forward(router, made, block_when_stopped=False).stop()  # it takes over what is there
    assert ping(router, "in", SERVER)


def test_a_stop_gives_all_back_where_the_kernel_does_not_forward_or_is_told_to(network: Network) -> None:
    made = gateway()
    start(network, made).stop()
    with at(network, "gw"):
        assert kernel_bypass.installed() == kernel_bypass.forwarding_nothing() == []
    start(network, made, block_when_stopped=True).stop()
    with at(network, "gw"):
        assert kernel_bypass.forwarding_nothing() == ["lan0", "wan0"]
        assert links.clean() == ["lan0", "wan0"]
        assert kernel_bypass.forwarding_nothing() == []


def test_nothing_is_forwarded_by_an_interface_that_is_made_anew(router: Network) -> None:
    """Between its making and its opening by the plane."""
    with gateway() as made, forward(router, made):
        with untranslated(router) as leaked:
            router.remove("gw", "lan0")
            router.pair("in", "eth0", "gw", "lan0")
            with at(router, "gw"):
                assert kernel_bypass.forwarding_nothing() == ["lan0", "wan0"]
            router.up("in", "eth0", f"{CLIENT}/24")
            router.route("in", "default", via=GATEWAY_INSIDE)
            router.up("gw", "lan0", f"{GATEWAY_INSIDE}/24")
            assert ping(router, "in", SERVER)
        assert leaked == []


FAILING = """
import sys
from natcore import Gateway, SnatEntry
gateway = Gateway()
gateway.add(SnatEntry("10.0.0.0/16", pool="198.18.0.100"))
plane = gateway.forward("lan0", "wan0", driver=sys.argv[1])
raise RuntimeError("the program failed")
"""


def test_a_program_that_ends_with_an_exception_leaves_the_gate_shut(router: Network, each_driver: str) -> None:
    done = router.run("gw", [sys.executable, "-c", FAILING, each_driver], check=False)
    assert "the program failed" in done.stderr
    with untranslated(router) as leaked:
        assert not ping_once(router, "in", SERVER)
    assert leaked == []


def test_natcore_block_shuts_the_gate_before_the_first_start(router: Network, tmp_path: Path, each_driver: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[plane]\ninside = "lan0"\noutside = "wan0"\n')
    done = router.run("gw", [sys.executable, "-m", "natcore.cli.main", "block", str(file)])
    assert "nothing that comes by lan0, wan0 is forwarded by the kernel" in done.stdout
    with untranslated(router) as leaked:
        assert not ping_once(router, "in", SERVER)
        assert ping(router, "in", GATEWAY_INSIDE)
    assert leaked == []
    with gateway() as made, forward(router, made):
        assert ping(router, "in", SERVER)


# ---- the host's own --------------------------------------------------------------------------------------------------


def test_an_address_of_the_hosts_own_on_an_inside_interface_is_refused(network: Network) -> None:
    words = r"pool must be addresses that this host does not have, got '10\.0\.0\.1' of lan0: the host would be cut off"
    with Gateway() as made:
        entry = made.add(SnatEntry("10.0.0.0/16", pool=[POOL, GATEWAY_INSIDE]))
        with pytest.raises(ConfigurationError, match=words):
            start(network, made)
        made.replace(entry, SnatEntry("10.0.0.0/16", pool=POOL))
        with start(network, made):  # and on a plane that runs
            for one in (
                SnatEntry("10.9.0.0/16", pool=GATEWAY_INSIDE),
                DnatEntry(GATEWAY_INSIDE, 22, CLIENT, 22),
                DnatEntry(GATEWAY_INSIDE, "any", CLIENT, "any", protocol="any"),
            ):
                with pytest.raises(ConfigurationError, match=words):
                    made.add(one)
            assert [row.id for row in made.entries()] == [entry.id]
            assert ping(network, "in", GATEWAY_INSIDE)
            assert ping(network, "in", SERVER)


def test_an_address_that_the_host_has_elsewhere_may_be_the_pools(network: Network) -> None:
    """On lo, for a routing daemon that announces it."""
    network.up("gw", "lo", f"{POOL}/32")
    with gateway() as made, start(network, made):
        assert ping(network, "in", SERVER)


def test_a_pool_address_that_the_host_gets_later_inside_is_told(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    with gateway() as made, start(network, made):
        network.up("gw", "lan0", f"{POOL}/32")
        until(lambda: f"addresses that this host does not have, got '{POOL}' of lan0" in caplog.text)
        assert ping(network, "in", SERVER)


def test_a_pool_address_that_the_host_gets_later_outside_is_shared(network: Network) -> None:
    with gateway() as made, start(network, made):
        network.up("gw", "wan0", f"{POOL}/24")
        until(lambda: made.ports()[0]["reserved"])
        with listener(network, "gw", port=22) as server, connect(network, "out", (POOL, 22)):
            server.accept()[0].close()
        assert ping(network, "in", SERVER)
        network.run("gw", ["ip", "addr", "del", f"{POOL}/24", "dev", "wan0"])
        until(lambda: not made.ports()[0]["reserved"])
        assert ping(network, "in", SERVER)


LEASE = """#!/bin/sh
case "$1" in
bound) ip address add "$ip/24" dev "$interface" ;;
esac
echo "$1 $ip"
"""


@pytest.mark.parametrize("side", ["outside", "inside"])
def test_a_dhcp_client_on_a_planes_interface_gets_its_lease_and_renews_it(
    network: Network, tmp_path: Path, side: str
) -> None:
    """udhcpc has no broadcast flag: the offer comes by unicast, to an address that is not the host's yet."""
    for tool in ("dnsmasq", "udhcpc"):
        if network.run("gw", ["which", tool], check=False).returncode:
            pytest.skip(f"{tool} is missing")
    script = tmp_path / "lease"
    script.write_text(LEASE)
    script.chmod(0o755)
    server, interface, own, first = (
        ("out", "wan0", GATEWAY_OUTSIDE, "198.18.0.201")
        if side == "outside"
        else ("in", "lan0", GATEWAY_INSIDE, "10.0.0.201")
    )
    with network.netlink("gw") as link:
        link.addr("del", index=link.link_lookup(ifname=interface)[0], address=own, prefixlen=24)
    with gateway() as made, start(network, made) as plane:
        network.popen(
            server,
            ["dnsmasq", "--keep-in-foreground", "--port=0", "--interface=eth0", f"--dhcp-range={first},{first},120",
             "--dhcp-option=3", f"--dhcp-leasefile={tmp_path}/leases", "--conf-file=/dev/null", "--no-ping", "--user=root",
             f"--pid-file={tmp_path}/pid"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        client = network.popen(
            "gw", ["udhcpc", "-f", "-i", interface, "-s", str(script), "-t", "20", "-T", "1"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert client.stdout is not None
        lines = iter(client.stdout.readline, "")
        assert next(line for line in lines if line.startswith("bound")) == f"bound {first}\n"
        client.send_signal(10)  # SIGUSR1: renew now
        assert next(line for line in lines if line.startswith("renew")) == f"renew {first}\n"
        client.kill()
        assert plane.counters()["left_to_kernel"] > 0
        assert made.counters()["received"] == 0


def test_only_a_dhcp_answer_is_spared_for_the_host(network: Network) -> None:
    """From port 67 to 68 of an address without a host: a packet socket sees it anyway, the kernel gets that alone."""
    network.route("in", "198.51.100.0/24", via=GATEWAY_INSIDE)
    network.setting("gw", "net/ipv4/conf/all/forwarding", 0)
    with gateway() as made, start(network, made) as plane, at(network, "in"):
        for source, destination, local in ((67, 68, 1), (67, 69, 0), (66, 68, 0), (68, 67, 0)):
            before = plane.counters()["inside_left_to_kernel"]
            received = made.counters()["received"]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind(("", source))
                sender.sendto(b"x", ("198.51.100.9", destination))
            until(lambda before=before, received=received, local=local: (
                plane.counters()["inside_left_to_kernel"] - before >= local
                and made.counters()["received"] - received == 1 - local
            ))  # fmt: skip
