"""802.1Q and a plane: on VLAN interfaces, beside them, and tags that name no VLAN."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from natcore import SnatEntry
from natcore.demo.namespaces import Network
from natcore.plane import links
from natcore.testing import craft
from support.netns import (
    CLIENT,
    GATEWAY_INSIDE,
    GATEWAY_OUTSIDE,
    POOL,
    SERVER,
    Nat,
    adds_up,
    at,
    connect,
    gateway,
    listener,
    needs_root,
    ping,
    start,
    transfer,
    until,
)

pytestmark = needs_root

INSIDE_VLAN, OUTSIDE_VLAN = 10, 20
TAGGED_CLIENT, GATEWAY_TAGGED = "10.0.10.2", "10.0.10.1"
TAGGED_SERVER, GATEWAY_TAGGED_OUTSIDE, TAGGED_POOL = "198.18.20.2", "198.18.20.1", "198.18.20.100"


def vlan(network: Network, member: str, interface: str, number: int, address: str) -> None:
    """A VLAN interface with an address, such as lan0.10 on lan0."""
    with network.netlink(member) as link:
        index = link.link_lookup(ifname=interface)[0]
        try:
            link.link("add", ifname=f"{interface}.{number}", kind="vlan", link=index, vlan_id=number)
        except NetlinkError as error:
            if error.code != errno.EOPNOTSUPP:
                raise
            pytest.skip("this kernel has no 802.1Q (CONFIG_VLAN_8021Q)")
    network.up(member, f"{interface}.{number}", address)


@pytest.fixture
def tagged(network: Network) -> Network:
    """The same hosts, with a VLAN of each link beside it."""
    vlan(network, "in", "eth0", INSIDE_VLAN, f"{TAGGED_CLIENT}/24")
    vlan(network, "gw", "lan0", INSIDE_VLAN, f"{GATEWAY_TAGGED}/24")
    vlan(network, "gw", "wan0", OUTSIDE_VLAN, f"{GATEWAY_TAGGED_OUTSIDE}/24")
    vlan(network, "out", "eth0", OUTSIDE_VLAN, f"{TAGGED_SERVER}/24")
    network.route("in", "198.18.20.0/24", via=GATEWAY_TAGGED)
    return network


OFFLOADS = ["tx on", "tso off gso off", "tx off", "rxvlan off", "txvlan off rxvlan off tx off"]


@pytest.mark.parametrize("offloads", OFFLOADS)
@pytest.mark.parametrize("favour", ["throughput", "latency"])
def test_a_plane_on_vlan_interfaces(tagged: Network, offloads: str, favour: str) -> None:
    """The kernel puts tags on and takes them off; super-frames and unfinished checksums pass as on any interface."""
    for member, interface in (("in", "eth0"), ("gw", "lan0"), ("gw", "wan0"), ("out", "eth0")):
        tagged.run(member, ["ethtool", "-K", interface, *offloads.split()])
    with gateway() as made:
        made.add(SnatEntry("10.0.10.0/24", pool=TAGGED_POOL))
        # without that offload a link gives its VLAN interfaces longer headers, and no super-frame passes
        told = pytest.warns(UserWarning, match="txvlan on") if "txvlan off" in offloads else nullcontext()
        with told:
            plane = start(tagged, made, inside="lan0.10", outside="wan0.20", favour=favour)
        with plane:
            assert ping(tagged, "in", TAGGED_SERVER)
            assert ping(tagged, "in", TAGGED_SERVER, "-s", "4000")
            assert ping(tagged, "out", TAGGED_POOL)
            for upload in (True, False):
                sent, arrived = transfer(tagged, 8 << 20, upload=upload, server=TAGGED_SERVER)
                assert arrived == sent
            counters = plane.counters()
            assert counters["inside_send_errors"] == counters["outside_send_errors"] == 0
            assert set(made.sessions()["outside_ip"]) == {int.from_bytes(socket.inet_aton(TAGGED_POOL))}
            assert made.counters()["dropped"] == 0 and adds_up(made)
            with at(tagged, "gw"):
                assert links.installed() == ["lan0.10", "wan0.20"]
            assert ping(tagged, "in", "10.0.0.1")  # the links themselves are the kernel's


def test_a_link_and_a_vlan_on_it_are_two_inside_interfaces(tagged: Network) -> None:
    with gateway() as made, start(tagged, made, inside=("lan0", "lan0.10")) as plane:
        tagged.route("in", f"{SERVER}/32", via=GATEWAY_TAGGED)
        assert ping(tagged, "in", SERVER)
        sent, arrived = transfer(tagged, 8 << 20)
        assert arrived == sent
        of = plane.counters_by_interface()
        assert of["lan0.10"]["received"] > 10
        assert of["lan0"]["left_to_kernel"] >= of["lan0.10"]["received"] - 10  # seen with their tags
        assert set(made.sessions()["inside_ip"] & 0xFFFF) == {0x0A02}
        tagged.route("in", f"{SERVER}/32", via="10.0.0.1")
        assert ping(tagged, "in", SERVER)
        assert set(made.sessions()["inside_ip"] & 0xFFFF) == {0x0A02, 0x0002}
        assert made.counters()["dropped"] == 0 and adds_up(made)


def test_a_vlan_beside_the_plane_is_the_kernels(tagged: Network) -> None:
    with gateway() as made, start(tagged, made):
        assert ping(tagged, "in", GATEWAY_TAGGED)
        with listener(tagged, "gw") as server:
            connect(tagged, "in", (GATEWAY_TAGGED, server.getsockname()[1])).close()
        assert ping(tagged, "in", SERVER)
        assert list(made.sessions()["protocol"]) == [1]


# ---- a priority, and no VLAN -----------------------------------------------------------------------------------------


@pytest.fixture(params=["throughput", "latency"])
def nat(request: pytest.FixtureRequest, each_driver: str, network: Network) -> Iterator[Nat]:
    with gateway() as made, start(network, made, favour=request.param) as plane:
        yield network, made, plane


def with_priority(network: Network, packet: bytes, kind: int = 0x8100) -> bytes:
    """A frame of the inside host to the gateway: priority 5, VLAN identifier 0."""
    mac = bytes.fromhex(network.mac("gw", "lan0").replace(":", ""))
    return mac + b"\x02\0\0\0\0\1" + kind.to_bytes(2) + b"\xa0\x00" + b"\x08\x00" + packet


@pytest.mark.parametrize("kind", [0x8100, 0x88A8])
def test_a_frame_with_a_priority_is_the_links_own(nat: Nat, kind: int) -> None:
    """The kernel takes it so: left to it, the packet would go on untranslated (802.1Q, VLAN identifier 0)."""
    network, made, _ = nat
    network.setting("gw", "net/ipv4/ip_forward", 1)
    network.route("out", "10.0.0.0/24", via=GATEWAY_OUTSIDE)
    with at(network, "out"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, at(network, "in"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        server.bind((SERVER, 0x1389))
        server.settimeout(60)
        wire.bind(("eth0", 0))
        frame = with_priority(network, craft.udp((CLIENT, 0x1388), (SERVER, 0x1389), b"load"), kind)
        for _ in range(3):
            wire.send(frame)
        for _ in range(3):
            data, source = server.recvfrom(100)
            assert (data, source[0]) == (b"load", POOL)
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):  # and not from the kernel too
            server.recv(100)
    until(lambda: made.counters()["forwarded"] == 3)
    assert adds_up(made)


def test_the_hosts_own_address_is_reached_with_a_priority(nat: Nat) -> None:
    """An echo request with one, to the gateway's host: its kernel answers."""
    network, made, _ = nat
    with at(network, "in"):
        replies = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with replies, wire:
        replies.settimeout(60)
        wire.bind(("eth0", 0))
        wire.send(with_priority(network, craft.icmp(CLIENT, GATEWAY_INSIDE)))
        reply = replies.recv(100)
    assert (reply[12:16], reply[20]) == (socket.inet_aton(GATEWAY_INSIDE), 0)
    assert made.counters()["received"] == 0
