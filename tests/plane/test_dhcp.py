"""The DHCP client of a host that shares its address with the gateway: lease, renewal, another address."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from natcore import DnatEntry, Gateway, OutsideInterface, SnatEntry
from natcore.demo.namespaces import Network
from support.netns import CLIENT, GATEWAY_OUTSIDE, SERVER, connect, listener, needs_root, ping, ping_once, start, until

MISSING = [name for name in ("dnsmasq", "udhcpc", "dig") if shutil.which(name) is None]
pytestmark = [
    needs_root,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.usefixtures("each_driver"),
]

SCRIPT = """#!/bin/sh
case "$1" in
deconfig) ip addr flush dev "$interface" ;;
bound | renew)
    ip addr show dev "$interface" | grep -q "inet $ip/" || ip addr add "$ip/24" dev "$interface"
    echo "$1 $ip" >> {told} ;;
esac
"""


@contextmanager
def server(network: Network, folder: Path, first: str) -> Iterator[None]:
    """A DHCP and DNS server in the outside network that leases addresses from the first on."""
    last = first.rpartition(".")[0] + "." + str(int(first.rpartition(".")[2]) + 5)
    command = [
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
        "--interface=eth0", "--bind-interfaces", f"--dhcp-range={first},{last},255.255.255.0,120", "--dhcp-authoritative",
        "--no-ping",
        "--dhcp-option=3", "--address=/printer.example/192.0.2.9", f"--dhcp-leasefile={folder}/leases", "--pid-file=",
    ]  # fmt: skip
    program = network.popen("out", command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        program.terminate()
        program.wait()


@contextmanager
def client(network: Network, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """udhcpc on the gateway's outside interface; what it was told is in the file told."""
    script = folder / "script"
    script.write_text(SCRIPT.format(told=folder / "told"))
    script.chmod(0o755)
    command = ["udhcpc", "-f", "-i", "wan0", "-s", str(script), "-t", "10", "-T", "1", "-A", "1"]
    program = network.popen("gw", command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield program
    finally:
        program.terminate()
        program.wait()


def told(folder: Path) -> list[list[str]]:
    file = folder / "told"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def test_lease_renewal_and_another_address_under_traffic(network: Network, tmp_path: Path) -> None:
    network.run("gw", ["ip", "addr", "del", f"{GATEWAY_OUTSIDE}/24", "dev", "wan0"])
    made = Gateway()
    made.add(SnatEntry("10.0.0.0/16", pool=OutsideInterface()))
    made.add(DnatEntry(OutsideInterface(), 8080, CLIENT, 8080))
    with made, start(network, made) as plane, ExitStack() as stack:
        assert not ping_once(network, "in", SERVER)  # there is no address yet
        serving = stack.enter_context(ExitStack())
        serving.enter_context(server(network, tmp_path, "198.18.0.50"))
        leasing = stack.enter_context(client(network, tmp_path))
        until(lambda: told(tmp_path))
        [(what, leased)] = told(tmp_path)
        assert what == "bound"
        assert ping(network, "in", SERVER)
        pinging = network.popen("in", ["ping", "-i0.05", "-W1", SERVER], stdout=subprocess.DEVNULL)
        try:
            leasing.send_signal(signal.SIGUSR1)  # renew: unicast from the address, and back to it
            until(lambda: len(told(tmp_path)) == 2)
            assert told(tmp_path)[1] == ["renew", leased]
            assert made.counters()["ended"] == 0
            serving.close()
            serving.enter_context(server(network, tmp_path, "198.18.0.70"))
            leasing.send_signal(signal.SIGUSR1)
            until(lambda: told(tmp_path)[-1][1] not in (leased,), 40)
            other = told(tmp_path)[-1][1]
            assert other.startswith("198.18.0.7")
            until(lambda: {str_of(row["outside_ip"]) for row in made.sessions()} == {other})
        finally:
            pinging.terminate()
            pinging.wait()
        assert ping(network, "in", SERVER) and ping(network, "gw", SERVER)
        with listener(network, "in", port=8080) as inside, connect(network, "out", (other, 8080)):
            inside.settimeout(60)
            inside.accept()[0].close()
        shown = network.run("gw", ["dig", "+short", "+tries=1", f"@{SERVER}", "printer.example"]).stdout
        assert shown.strip() == "192.0.2.9"
        events = [(event.reason, str(event.outside)) for event in made.take_events()]
        assert {("address-added", leased), ("address-removed", leased), ("address-added", other)} <= set(events)
        rows = made.take_records()
        assert leased in {str_of(row["nat_ip"]) for row in rows}  # what was over the address that went is in the log
        assert plane.state == "running"


def str_of(address: int) -> str:
    return ".".join(str(byte) for byte in int(address).to_bytes(4))
