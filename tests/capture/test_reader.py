"""natcore.capture.reader: every kind of file that programs write, in pieces of any size, and damaged ones.

The odd kinds are those of which the trackers of libpcap, tcpdump, Wireshark and Zeek tell; each is made here.
"""

from __future__ import annotations

import gzip
import random
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from natcore.capture import pcap
from natcore.capture.pcap import Packet
from natcore.capture.pcapng import PcapngWriter
from natcore.capture.reader import INCOMING, OUTGOING, UNKNOWN, CaptureError, CutShortError, batches
from support.capture_files import block, header, interface, packet_block, record, section
from support.search import examples


def read(folder: Path, content: bytes) -> list[Packet]:
    path = folder / "x"
    path.write_bytes(content)
    return list(pcap.read(path))


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def packet_with(options: bytes, data: bytes = b"abc", order: str = "<") -> bytes:
    head = struct.pack(order + "IIIII", 0, 0, 7, len(data), len(data))
    return block(6, head + data + bytes(-len(data) % 4) + options, order)


IPV4 = bytes(IP(src="10.0.0.1") / UDP())


def whole_file(kind: str, packets: Sequence[tuple[int, bytes]]) -> bytes:
    """A file of Ethernet frames with times in microseconds."""
    if kind.startswith("pcap "):
        order = kind[-1]
        return header(order) + b"".join(
            struct.pack(order + "IIII", time // 10**6, time % 10**6, len(data), len(data)) + data
            for time, data in packets
        )
    order = kind[-1]
    blocks = [section(order), block(1, interface(1, order=order), order)]
    for number, (time, data) in enumerate(packets):
        blocks.append(packet_block(0, time, data, order=order))
        if number % 3 == 2:
            blocks.append(block(0xBAD, b"others skip this", order))
    return b"".join(blocks)


KINDS = ("pcap <", "pcap >", "pcapng <", "pcapng >")
file_packets = st.lists(st.tuples(st.integers(0, 2**32 * 10**6 - 1), st.binary(max_size=70)), max_size=12)


@given(st.sampled_from(KINDS), file_packets, st.integers(1, 300))
def test_the_size_of_the_pieces_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, kind: str, packets: list[tuple[int, bytes]], piece_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("capture") / "x"
    path.write_bytes(whole_file(kind, packets))
    found = [each for batch in batches(path, piece_bytes=piece_bytes) for each in pcap.frames_of(batch)]
    assert [(packet.time_ns, packet.frame) for packet in found] == [(time * 1000, data) for time, data in packets]


def mutated(content: bytes, seed: int) -> bytes:
    """The file with bytes changed, left out, doubled or cut off at its end."""
    chance = random.Random(seed)
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made)) if made else 0
        match chance.randrange(4):
            case 0 if made:
                made[at] = chance.choice((0, 255, 128, chance.randrange(256)))
            case 1:
                del made[at : at + chance.choice((1, 4, 16))]
            case 2:
                made[at:at] = made[at : at + chance.choice((1, 4, 16))]
            case _:
                del made[at:]
    return bytes(made)


@examples(100)
@given(st.sampled_from(KINDS), file_packets, st.integers(0, 2**32), st.booleans())
def test_a_mutated_file_gives_frames_and_at_most_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    packets: list[tuple[int, bytes]],
    seed: int,
    compressed: bool,
) -> None:
    content = whole_file(kind, packets)
    path = tmp_path_factory.mktemp("capture") / "x"
    path.write_bytes(mutated(gzip.compress(content) if compressed else content, seed))
    outcomes = []
    for piece_bytes in (1, 1 << 20):
        found, told = [], ""
        try:
            for batch in batches(path, piece_bytes=piece_bytes):
                found += list(pcap.frames_of(batch))
        except CaptureError as error:
            told = str(error)
            assert told.startswith(f"{path}: ")
        outcomes.append((found, told))
    if not compressed:  # how far damaged data can be decompressed depends on how much is asked for
        assert outcomes[0] == outcomes[1]


@examples(50)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_capture_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    with pytest.raises(CaptureError, match="x: "):
        read(tmp_path_factory.mktemp("capture"), b"\1" + content)


def test_what_is_before_the_end_of_a_cut_file_is_read(tmp_path: Path) -> None:
    """A program that is killed leaves such a file."""
    for kind in KINDS:
        content = whole_file(kind, [(1, b"first"), (2, b"second")])
        path = tmp_path / "x"
        path.write_bytes(content[:-3])
        reader = pcap.read(path)
        assert next(reader).frame == b"first"
        with pytest.raises(CutShortError, match=r"2: the file ends after|block 4: it does not end as it began"):
            list(reader)


def test_a_compressed_file_is_decompressed(tmp_path: Path) -> None:
    content = whole_file("pcap <", [(1, b"first")])
    assert read(tmp_path, gzip.compress(content)) == read(tmp_path, content)
    with pytest.raises(CutShortError, match="not all of it can be decompressed"):
        read(tmp_path, gzip.compress(content)[:-9])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_before_the_damage_of_a_compressed_file_is_read(tmp_path: Path, kind: str) -> None:
    chance = random.Random(1)
    packets = [(number, chance.randbytes(60)) for number in range(200)]
    compressed, path = gzip.compress(whole_file(kind, packets)), tmp_path / "x"
    for damaged, error, message in (
        (compressed[: len(compressed) // 2], CutShortError, "not all of it can be decompressed"),
        (compressed + b"others", CaptureError, "it cannot be decompressed any further: Not a gzipped file"),
    ):
        path.write_bytes(damaged)
        found = []
        with pytest.raises(error, match=message):
            found.extend(each.frame for each in pcap.read(path))
        whole = 90 if error is CutShortError else len(packets)
        assert len(found) >= whole and found == [data for _, data in packets[: len(found)]]


def test_lengths_that_programs_write_wrongly(tmp_path: Path) -> None:
    """A snap length of 2^32 - 1 or 524,288, a frame longer than its interface's, a captured length above the original."""
    for snap_length in (0xFFFFFFFF, 524_288, 2):
        assert read(tmp_path, section() + block(1, interface(1, snap_length=snap_length)) + packet_block(0, 1, b"abc"))
    cooked = struct.pack("!HHH8sH", 4, 1, 6, b"\2\0\0\0\0\1\0\0", 0x0800) + IPV4
    content = header(link=113) + record(cooked, len(IPV4))
    (found,) = read(tmp_path, content)
    assert found.frame[14:] == IPV4 and found.missing == 0
    (batch,) = batches(tmp_path / "x")
    assert batch.longer == {0} and found.longer


@pytest.mark.parametrize("time_ns", [-1, 1 << 62])
def test_times_that_a_file_cannot_have_are_refused(tmp_path: Path, time_ns: int) -> None:
    with pytest.raises(CaptureError, match=f"1970 to 2106, got {time_ns} ns"):
        pcap.write(tmp_path / "x", [Packet(time_ns, b"abc")])
    with (tmp_path / "y").open("wb") as file:
        writer = PcapngWriter(file, "test")
        if time_ns < 0:
            with pytest.raises(CaptureError, match="from 1970 on, got -1 ns"):
                writer.write("lan0", time_ns, b"abc", 3)
        else:
            writer.write("lan0" + "\ufffd" * 60_000, time_ns, b"abc", 3)  # a name of 65,535 bytes is the longest


def test_the_pcap_of_old_kernels_with_longer_headers(tmp_path: Path) -> None:
    content = struct.pack("<IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 65535, 1)
    content += struct.pack("<IIIIIHBB", 7, 9, 3, 3, 2, 8, 0, 0) + b"abc"
    assert read(tmp_path, content) == [Packet(7_000_009_000, b"abc")]


@pytest.mark.parametrize(
    ("resolution", "ticks", "nanoseconds"),
    [
        (0, 7, 7_000_000_000),
        (3, 7_001, 7_001_000_000),
        (9, 2**60 + 1, 2**60 + 1),
        (12, 7_000_000_000_999, 7_000_000_000),
        (19, 2**63, 922_337_203),
        (30, 2**63, 0),
        (127, 2**64 - 1, 0),
        (0x80, 3, 3_000_000_000),
        (0x80 | 10, 1536, 1_500_000_000),
        (0x80 | 32, 3 << 31, 1_500_000_000),  # of a capture card
        (0x80 | 63, 3 << 62, 1_500_000_000),
        (0x80 | 127, 2**63, 0),
    ],
)
def test_every_resolution_of_time(tmp_path: Path, resolution: int, ticks: int, nanoseconds: int) -> None:
    described = block(1, interface(1, option(9, bytes([resolution]))))
    (found,) = read(tmp_path, section() + described + packet_block(0, ticks, b"abc"))
    assert found.time_ns == nanoseconds


@pytest.mark.parametrize("offset", [-1, -(2**62), 2**62])
def test_an_offset_of_time_may_be_negative_and_a_time_out_of_reach_is_named(tmp_path: Path, offset: int) -> None:
    described = block(1, interface(1, option(14, struct.pack("<q", offset))))
    content = section() + described + packet_block(0, 500_000, b"abc")
    if offset == -1:
        assert [packet.time_ns for packet in read(tmp_path, content)] == [-500_000_000]
    else:
        with pytest.raises(CaptureError, match="block 3: its time is out of reach"):
            read(tmp_path, content)


@pytest.mark.parametrize("order", "<>")
def test_comments_and_directions(tmp_path: Path, order: str) -> None:
    def flags(value: int) -> bytes:
        return option(2, struct.pack(order + "I", value), order)

    end = option(0, b"", order)
    blocks = [
        packet_with(flags(1) + end, order=order),
        packet_with(option(1, "größer".encode(), order) + flags(2) + option(1, b"more", order) + end, order=order),
        packet_with(flags(3), order=order),
        packet_with(option(1, b"\xff", order)[:6], order=order),
        packet_with(option(1, b"to its end", order), order=order),
        packet_with(struct.pack(order + "HH", 1, 60_000) + bytes(8), order=order),
    ]
    found = read(tmp_path, section(order) + block(1, interface(1, order=order), order) + b"".join(blocks))
    assert [packet.direction for packet in found] == [INCOMING, OUTGOING, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    assert [packet.comment for packet in found] == ["", "größer\nmore", "", "�", "to its end", ""]


def test_old_packet_blocks_have_an_interface_of_16_bits(tmp_path: Path) -> None:
    for order in "<>":
        content = (
            section(order) + block(1, interface(1, order=order), order) + block(1, interface(101, order=order), order)
        )
        head = struct.pack(order + "HHIIII", 1, 0xFFFF, 0, 5, len(IPV4), len(IPV4))
        (found,) = read(tmp_path, content + block(2, head + IPV4, order))
        assert found.frame[14:] == IPV4 and found.interface == "1" and found.time_ns == 5_000


def test_cooked_frames_tell_their_direction_and_interface(tmp_path: Path) -> None:
    mac = bytes.fromhex("020000000007")
    v1 = [struct.pack("!HHH8sH", kind, 1, 6, mac + bytes(2), 0x0800) + IPV4 for kind in (0, 3, 4)]
    found = read(tmp_path, header(link=113) + b"".join(map(record, v1)))
    assert [packet.direction for packet in found] == [INCOMING, UNKNOWN, OUTGOING]
    assert {packet.frame for packet in found} == {bytes(6) + mac + b"\x08\x00" + IPV4}
    v2 = struct.pack("!HHIHBB8s", 0x0800, 0, 14, 1, 4, 6, mac + bytes(2)) + IPV4
    (packet,) = read(tmp_path, header(link=276) + record(v2))
    assert packet.frame == found[0].frame and (packet.interface, packet.direction) == ("14", OUTGOING)
    for link, size in ((113, 15), (276, 19)):  # cut inside the cooked header
        (packet,) = read(tmp_path, header(link=link) + record(bytes(size), 60))
        assert packet.frame == b"" and packet.missing == 60 - size


def test_interfaces_have_names(tmp_path: Path) -> None:
    with (tmp_path / "made").open("wb") as file:
        writer = PcapngWriter(file, "test")
        for number, name in enumerate(("lan0", "wan0", "lan0")):
            writer.write(name, number, b"abc", 5, f"comment {number}")
    found = list(pcap.read(tmp_path / "made"))
    assert [packet.interface for packet in found] == ["lan0", "wan0", "lan0"]
    assert [packet.comment for packet in found] == ["comment 0", "comment 1", "comment 2"]
    assert found[2] == Packet(2, b"abc\0\0", 2, 0, "lan0", UNKNOWN, "comment 2")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    frame = record(bytes(1000))
    peaks = []
    for count in (300, 3000):
        path = tmp_path / "x"
        path.write_bytes(header() + frame * count)
        tracemalloc.start()
        assert sum(len(batch) for batch in batches(path, piece_bytes=100_000)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 1_000_000


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_tshark_reads_the_same(tmp_path: Path, kind: str) -> None:
    frames = [bytes(Ether() / Dot1Q(vlan=3) / Dot1Q(vlan=4) / IP() / UDP(sport=number)) for number in range(9)]
    path = tmp_path / "x"
    path.write_bytes(whole_file(kind, [(1_700_000_000_000_000 + number, each) for number, each in enumerate(frames)]))
    fields = ("frame.time_epoch", "frame.len", "udp.srcport")
    command = [
        "tshark",
        "-r",
        str(path),
        "-Y",
        "udp",
        "-T",
        "fields",
        *(part for name in fields for part in ("-e", name)),
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = list(pcap.read(path))
    theirs = [line.split("\t") for line in told]
    assert [Decimal(time) for time, _, _ in theirs] == [Decimal(packet.time_ns) / 10**9 for packet in found]
    assert [int(length) for _, length, _ in theirs] == [len(packet.frame) for packet in found]
    assert [int(port) for _, _, port in theirs] == list(range(9))
