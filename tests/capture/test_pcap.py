"""Reading and writing captures, and readdressing what they hold."""

from __future__ import annotations

import ipaddress
import struct
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet as Layer
from scapy.packet import Raw
from scapy.utils import rdpcap, wrpcap

from natcore.capture import pcap
from natcore.capture.pcap import CaptureError, Packet
from natcore.capture.replay import parse, readdress
from support import make_capture
from support.capture_files import block, header, interface, packet_block, record, section

frames = st.binary(min_size=0, max_size=200)


@given(st.lists(st.tuples(st.integers(0, 2**62 // 10**9), frames).map(lambda pair: Packet(*pair)), max_size=5))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, packets: list[Packet]) -> None:
    path = tmp_path_factory.mktemp("capture") / "x.pcap"
    assert pcap.write(path, packets) == len(packets)
    assert list(pcap.read(path)) == packets


def test_scapy_reads_what_is_written_and_the_other_way(tmp_path: Path) -> None:
    frame = bytes(Ether() / IP() / UDP() / Raw(b"x" * 20))
    ours, theirs = tmp_path / "ours.pcap", tmp_path / "theirs.pcap"
    pcap.write(ours, [Packet(1_700_000_000_123_456_789, frame)])
    (read,) = rdpcap(str(ours))
    assert bytes(read) == frame and read.time == pytest.approx(1_700_000_000.123456789, abs=1e-6)
    read.time = 1_700_000_000.5
    wrpcap(str(theirs), [read])
    assert list(pcap.read(theirs)) == [Packet(1_700_000_000_500_000_000, frame)]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "nanoseconds"), [(0xA1B2C3D4, 9_000), (0xA1B23C4D, 9)])
def test_both_byte_orders_and_both_resolutions(tmp_path: Path, order: str, magic: int, nanoseconds: int) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header(order, magic) + record(b"abc", order=order))
    assert list(pcap.read(path)) == [Packet(7_000_000_000 + nanoseconds, b"abc")]


def test_what_the_snap_length_cut_off_is_zeros(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + record(b"abc", original=6))
    assert [packet.frame for packet in pcap.read(path)] == [b"abc\0\0\0"]


def test_a_capture_of_bare_packets_gets_an_ethernet_header(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    packet = bytes(IP(src="10.0.0.1") / UDP())
    path.write_bytes(header(link=101) + record(packet))
    (read,) = pcap.read(path)
    assert read.frame[14:] == packet and parse(read.frame) is not None


@pytest.mark.parametrize("order", "<>")
def test_pcapng_of_several_interfaces_and_sections(tmp_path: Path, order: str) -> None:
    """Each interface has its link type, its resolution and its offset; a section has interfaces of its own."""
    ip = bytes(IP(src="10.0.0.1") / UDP())
    ethernet = bytes(12) + b"\x08\x00" + ip
    nanoseconds = struct.pack(order + "HHB3x", 9, 1, 9)
    halves = struct.pack(order + "HHB3x", 9, 1, 0x81) + struct.pack(order + "HHq", 14, 8, 100)
    content = section(order)
    for made in (interface(1, order=order), interface(113, nanoseconds, order), interface(276, halves, order)):
        content += block(1, made, order)
    content += block(1, interface(105, order=order), order)
    content += packet_block(0, 1_700_000_000_000_001, ethernet, order=order)
    content += packet_block(1, 1_700_000_000_000_000_002, bytes(14) + b"\x08\x00" + ip, order=order)
    content += packet_block(2, 3, b"\x08\x00" + bytes(18) + ip, order=order)
    content += block(5, bytes(8), order) + packet_block(3, 0, b"wireless", order=order)
    content += section() + block(1, interface(228, snap_length=20)) + block(3, struct.pack("<I", len(ip)) + ip[:20])
    path = tmp_path / "x.pcapng"
    path.write_bytes(content)
    read = list(pcap.read(path))
    assert [packet.time_ns for packet in read] == [
        1_700_000_000_000_001_000, 1_700_000_000_000_000_002, 101_500_000_000, 0, 0,
    ]  # fmt: skip
    assert [packet.frame for packet in read] == [ethernet] * 3 + [b"", ethernet[:34].ljust(len(ethernet), b"\0")]
    assert [(packet.missing, packet.unknown) for packet in read] == [(0, 0)] * 3 + [(0, 105), (len(ip) - 20, 0)]


def test_a_bare_packet_of_version_6_is_not_ipv4(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header(link=101) + record(b"\x60" + bytes(59)))
    (read,) = pcap.read(path)
    assert read.frame[12:14] == b"\x86\xdd" and parse(read.frame) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a pcap or pcapng"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "block 1: a section without a byte order"),
        (header(link=105), "link type must .*, got 105"),
        (section() + block(6, bytes(20)), "block 2: too short, or of an interface that was not described"),
        (section() + block(1, interface(1))[:-4] + bytes(4), "block 2: it does not end as it began"),
        (section() + struct.pack("<III", 1, 13, 0), "block 2: length must .*, got 13"),
        (header() + b"xyz", "packet 1: the file ends inside its header"),
        (header() + record(b"abc") + record(b"abc")[:-1], "packet 2: the file ends after 2 of 3 bytes"),
        (header() + struct.pack("<IIII", 0, 0, 1 << 30, 1 << 30), "packet 1: length"),
        (header() + struct.pack("<IIII", 0, 0, 9, 3), "packet 1: the file ends after 0 of 9 bytes"),
        (header() + struct.pack("<IIII", 0, 0, 0, 1 << 21), "packet 1: length must .*, got 0 of 2097152"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), "compressed by zstd: decompress it first"),
    ],
)
def test_a_damaged_capture_is_refused_where_it_is_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=message):
        list(pcap.read(path))


def test_the_shipped_capture_is_what_its_script_makes() -> None:
    shipped = Path(str(files("natcore.demo") / "data" / "demo.pcap"))
    assert list(pcap.read(shipped)) == make_capture.packets()


layers = st.sampled_from(
    [
        TCP(sport=80, dport=4000, flags="A"),
        UDP(sport=53, dport=4000),
        UDP(sport=53, dport=4000, chksum=0),
        ICMP(type=0, id=4000, seq=1),
    ]
)


@given(layers, st.integers(0, 2**32 - 1), st.integers(0, 65535), st.binary(max_size=9), st.booleans())
def test_a_readdressed_frame_has_the_checksums_made_from_scratch(
    layer: Layer, address: int, port: int, data: bytes, tagged: bool
) -> None:
    link = Ether() / Dot1Q(vlan=5) if tagged else Ether()
    frame = bytes(link / IP(src="198.51.100.2", dst="10.0.0.2") / layer.copy() / Raw(data))
    headers = parse(frame)
    assert headers is not None and headers.destination_port == 4000
    rewritten = readdress(frame, headers, address, port)

    expected = Ether(frame)
    expected[IP].dst = str(ipaddress.IPv4Address(address))
    del expected[IP].chksum
    transport = expected[IP].payload
    setattr(transport, "id" if ICMP in expected else "dport", port)
    if transport.chksum:
        del transport.chksum
    assert Ether(rewritten)[IP].build() == expected[IP].build()


@pytest.mark.parametrize(
    "frame",
    [b"", bytes(13), bytes(14), bytes(33), Ether(type=0x86DD).build() + bytes(60), Ether(type=0x8100).build() + b"\0"],
)
def test_what_is_not_ipv4_is_not_parsed(frame: bytes) -> None:
    assert parse(frame) is None


@given(frames)
def test_no_frame_breaks_the_parser(data: bytes) -> None:
    parse(Ether(type=0x0800).build() + data)
