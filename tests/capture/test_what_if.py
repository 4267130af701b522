"""natcore.capture.what_if: in batches the same as packet by packet, for every kind of frame and configuration."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, IPOption, TCPerror, UDPerror
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from natcore import DnatEntry, Gateway, Link, NoNatEntry, Policy, SnatEntry, Timeouts, Verdict
from natcore.capture import pcap
from natcore.capture.forecast import forecast
from natcore.capture.pcap import Packet
from natcore.capture.pcapng import PcapngWriter
from natcore.capture.prepared import LENGTH_0, SUPER_FRAMES, Preparer, joined
from natcore.capture.reader import batches
from natcore.capture.replay import Replay
from natcore.capture.sides import make_sides
from natcore.capture.what_if import NO_MAPPING, gateways_of, what_if
from natcore.errors import ConfigurationError
from support.capture_files import header, record

START_NS = 1_700_000_000_000_000_000
HOSTS, SERVERS = ("10.0.0.5", "10.0.0.6", "10.0.0.7"), ("198.51.100.7", "198.51.100.8")
PORTS = (1000, 1001, 1002)


def gateway(
    policy: Policy | None = None, timeouts: Timeouts | None = None, dnat: bool = False, plain: bool = False
) -> Gateway:
    made = Gateway(seed=1, policy=policy, timeouts=timeouts, max_sessions=2000)
    made.add(SnatEntry("10.0.0.0/24", pool="203.0.113.1"))
    if dnat:
        made.add(DnatEntry("203.0.113.2", 8443, "10.0.0.7", 1002, protocol="tcp"))
    if plain:
        made.add(NoNatEntry("10.0.0.0/24", "198.51.100.8/32"))
    return made


POLICIES: dict[str, Any] = {
    "plain": {},
    "few ports": {"policy": Policy(port_ranges=((2000, 2001),), hold_down=0)},
    "dependent": {
        "policy": Policy(
            mapping="address-and-port-dependent", filtering="address-and-port-dependent", port_ranges=((2000, 2009),)
        )
    },
    "short": {"timeouts": Timeouts(udp=120, tcp_transitory=240, icmp=60)},
    "a port is forwarded": {"dnat": True},
    "a server as it is": {"plain": True},
}


@st.composite
def captured(draw: st.DrawFn) -> list[Packet]:
    """Packets of an inside link: both ways, with what offloads and snap lengths make of them."""
    packets, now = list[Packet](), START_NS
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.sampled_from((0, 1, 1_000_000, 20_000_000_000, 61_000_000_000, 300_000_000_000)))
        host, server = draw(st.sampled_from(HOSTS)), draw(st.sampled_from(SERVERS))
        ports = draw(st.sampled_from(PORTS)), draw(st.sampled_from((80, 81)))
        out = draw(st.booleans())
        source, destination = (host, server) if out else (server, host)
        sport, dport = ports if out else ports[::-1]
        size = draw(st.sampled_from((0, 1, 40, 100, 1400, 4000)))
        fragments = draw(st.sampled_from(("", "", "", "", "DF", "MF", "later")))
        ip = IP(src=source, dst=destination, id=draw(st.integers(0, 9)), ttl=draw(st.sampled_from((64, 64, 64, 1))))
        if fragments == "later":
            ip.frag = 5
        elif fragments:
            ip.flags = fragments
        match draw(st.sampled_from(("tcp", "tcp", "udp", "udp", "echo", "error", "gre"))):
            case "tcp":
                flags = draw(st.sampled_from(("S", "SA", "A", "PA", "FA", "R")))
                layer: Any = TCP(sport=sport, dport=dport, flags=flags, seq=1000, ack=1000) / Raw(bytes(size))
            case "udp":
                layer = UDP(sport=sport, dport=dport) / Raw(bytes(size))
            case "echo":
                layer = ICMP(type=8 if out else 0, id=ports[0]) / Raw(bytes(size))
            case "error":
                quoted = (UDPerror if size % 2 else TCPerror)(sport=dport, dport=sport)
                layer = ICMP(type=3, code=3) / IPerror(src=destination, dst=source, ttl=9) / quoted / Raw(bytes(8))
            case _:
                ip.proto, layer = 47, Raw(bytes(size + 8))
        link = Ether()
        for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2, 3)))):
            link = link / Dot1Q(vlan=5)
        frame = bytearray(bytes(link / ip / layer))
        l3 = frame.index(b"\x45", 12)
        match draw(st.sampled_from(("",) * 6 + ("sum", "length", "partial", "version"))):
            case "sum":
                frame[l3 + 10 : l3 + 12] = bytes(2)
            case "length":
                frame[l3 + 2 : l3 + 4] = bytes(2)
            case "partial" if layer.name in ("TCP", "UDP") and fragments in ("", "DF"):
                at = l3 + 20 + (16 if layer.name == "TCP" else 6)
                words = struct.unpack("!4H", frame[l3 + 12 : l3 + 20])
                total = sum(words) + frame[l3 + 9] + len(frame) - l3 - 20
                frame[at : at + 2] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
            case "version":
                frame[l3] = 0x85
        for _ in range(draw(st.sampled_from((0,) * 8 + (1, 2, 5)))):  # noise in the headers
            frame[draw(st.integers(0, min(len(frame), l3 + 44) - 1))] = draw(st.integers(0, 255))
        kept = draw(st.sampled_from((len(frame),) * 5 + (l3 + 10, l3 + 24, l3 + 40, l3 + 60)))
        moved = draw(st.sampled_from((0, 0, 0, 50_000_000)))  # written late
        missing = max(len(frame) - kept, 0)
        packets.append(Packet(now - moved, bytes(frame[:kept]).ljust(len(frame), b"\0"), missing))
    return packets


def write_snapped(path: Path, packets: list[Packet]) -> None:
    with path.open("wb") as file:
        writer = PcapngWriter(file, "test")
        for packet in packets:
            kept = packet.frame[: len(packet.frame) - packet.missing]
            writer.write("lan0", packet.time_ns, kept, len(packet.frame))


def by_packets(path: Path, arguments: dict[str, Any]) -> tuple[Replay, int]:
    with gateway(**arguments) as made:
        replay = Replay(made, [IPv4Network("10.0.0.0/24")])
        replay.run(pcap.read(path))
        made.end_all()
        return replay, len(made.take_records())


@settings(max_examples=40, deadline=None)
@given(captured(), st.sampled_from(sorted(POLICIES)), st.integers(1, 40))
def test_batches_give_what_packets_give(
    tmp_path_factory: pytest.TempPathFactory, packets: list[Packet], policy: str, call: int
) -> None:
    path = tmp_path_factory.mktemp("capture") / "x.pcapng"
    write_snapped(path, packets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("natcore.capture.what_if._CALL", call)
        found = what_if(path, {policy: gateway(**POLICIES[policy])}, make_sides(["10.0.0.0/24"]))
    assert found.frames == len(packets)
    for outcome in found.outcomes:
        replay, rows = by_packets(path, POLICIES[outcome.name])
        assert outcome.verdicts == replay.verdicts
        assert found.mended == replay.mended
        assert found.skipped + outcome.skipped == replay.skipped
        assert outcome.log_rows == rows
        traffic = outcome.packets["out"], outcome.bytes["out"], outcome.packets["in"], outcome.bytes["in"]
        held = outcome.verdicts[Verdict.HELD]
        if not held:
            assert traffic == (
                replay.from_vpc.packets, replay.from_vpc.bytes, replay.from_pub.packets, replay.from_pub.bytes
            )  # fmt: skip


def test_answers_to_what_is_not_translated_go_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    out, back = udp("10.0.0.5", "198.51.100.8", 1000, 53), udp("198.51.100.8", "10.0.0.5", 53, 1000)
    pcap.write(path, [Packet(START_NS, out), Packet(START_NS + 1, back)])
    (outcome,) = what_if(path, {"x": gateway(plain=True)}, make_sides(["10.0.0.0/24"])).outcomes
    assert outcome.verdicts == {Verdict.UNTRANSLATED: 2} and not outcome.skipped
    assert outcome.packets == {"out": 1, "in": 1}
    assert by_packets(path, {"plain": True})[0].verdicts == outcome.verdicts


def test_few_bytes_that_claim_to_be_many_frames_are_prepared_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = bytearray(bytes(Ether() / IP(src="10.0.0.5", dst="198.51.100.7") / TCP(sport=1000, dport=53, flags="A")))
    frame[16:18] = bytes(2)  # a super-frame's total length
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + b"".join(record(bytes(frame), original=60_000) for _ in range(10)))
    monkeypatch.setattr("natcore.capture.prepared.WINDOW_PACKETS", 100)
    preparer = Preparer(make_sides(["10.0.0.0/24"]), 1500)
    (batch,) = batches(path)
    parts = [len(each) for each in preparer.prepare(batch)]
    assert sum(parts) == 10 * 42 and max(parts) <= 100 and preparer.frames == 10
    assert preparer.mended[SUPER_FRAMES] == preparer.mended[LENGTH_0] == 10


def udp(source: str, destination: str, sport: int, dport: int, **link: str) -> bytes:
    return bytes(Ether(**link) / IP(src=source, dst=destination) / UDP(sport=sport, dport=dport) / Raw(b"x" * 20))


def test_what_changed_between_configurations_and_who_had_most(tmp_path: Path) -> None:
    """Two ports instead of all: the third endpoint is refused, and its answer goes nowhere."""
    packets = []
    for number in range(3):
        packets.append(Packet(START_NS + 2 * number, udp("10.0.0.5", "198.51.100.7", 1000 + number, 53)))
        packets.append(Packet(START_NS + 2 * number + 1, udp("198.51.100.7", "10.0.0.5", 53, 1000 + number)))
    path = tmp_path / "x.pcap"
    pcap.write(path, packets)
    made = {"wide": gateway(), "narrow": gateway(**POLICIES["few ports"])}
    wide, narrow = what_if(path, made, make_sides(["10.0.0.0/24"])).outcomes
    assert wide.verdicts == {Verdict.OUTBOUND: 3, Verdict.INBOUND: 3} and not wide.refusals and not wide.changed
    assert narrow.refusals == {"ports-exhausted": 1} and narrow.skipped == {NO_MAPPING: 1}
    assert narrow.changed == {(Verdict.OUTBOUND, Verdict.DROP_PORTS_EXHAUSTED): 1, (Verdict.INBOUND, None): 1}
    assert (wide.sessions, narrow.sessions, wide.log_rows, narrow.log_rows) == (3, 2, 3, 2)
    assert wide.peaks == [("10.0.0.5", 3, 3)] and narrow.peaks == [("10.0.0.5", 2, 2)]
    assert wide.peak_ports == {"tcp": 0, "udp": 3, "icmp": 0} and narrow.total_ports["udp"] == 2
    assert narrow.forecast is not None and narrow.forecast.state == "ran-out"
    assert wide.log_bytes > narrow.log_bytes > 0 == wide.log_lost


def sided(
    path: Path, *, make: Callable[[], Gateway] = gateway, **named: Any
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Both ways of reading must agree: what was forwarded, what was skipped, and what was mended."""
    sides = make_sides(named.pop("inside", ["10.0.0.0/24"]), **named)
    found = what_if(path, {"x": make()}, sides)
    with make() as made:
        replay = Replay(made, [IPv4Network("10.0.0.0/24")], sides=sides)
        replay.run(pcap.read(path))
    (outcome,) = found.outcomes
    assert outcome.verdicts == replay.verdicts and found.skipped + outcome.skipped == replay.skipped
    assert found.mended == replay.mended
    return {each.name: count for each, count in outcome.verdicts.items()}, found.skipped, found.mended


def test_the_side_is_told_by_mac_by_interface_or_by_prefix(tmp_path: Path) -> None:
    host, router, other = "02:00:00:00:00:05", "02:00:00:00:00:01", "02:00:00:00:00:09"
    out = udp("10.0.0.5", "198.51.100.7", 1000, 53, src=host, dst=router)
    back = udp("198.51.100.7", "10.0.0.5", 53, 1000, src=router, dst=host)
    aside = udp("10.0.0.5", "10.0.0.6", 1000, 53, src=host, dst=other)
    path = tmp_path / "x.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file, "test")
        for number, (name, frame) in enumerate((("lan0", out), ("wan0", back), ("lan1", aside))):
            writer.write(name, START_NS + number, frame, len(frame))
    both = {"OUTBOUND": 1, "INBOUND": 1}
    assert sided(path)[:2] == (both, {"between inside hosts": 1})
    assert sided(path, gateway_macs=[router])[:2] == (both, {"neither from nor to the gateway's MAC address": 1})
    told = sided(path, from_inside=["lan0", "9" * 40], from_outside=["wan0"])
    assert told[:2] == (both, {"of an interface that was not named": 1})


@pytest.mark.parametrize("total", [1, 19, 21, 27, 1501, 26_000, 65_535])
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_a_total_length_that_cannot_be_is_the_gateways_to_drop(tmp_path: Path, layer: Any, total: int) -> None:
    ip = IP(src="10.0.0.5", dst="198.51.100.7", len=total, flags="DF")
    path = tmp_path / "x.pcap"
    pcap.write(path, [Packet(START_NS, bytes(Ether() / ip / layer(sport=1000, dport=53)))])
    assert sided(path) == ({"DROP_MALFORMED": 1}, {}, {})


def test_any_number_of_tags_and_a_cut_between_them(tmp_path: Path) -> None:
    frame, path = udp("10.0.0.5", "198.51.100.7", 1000, 53), tmp_path / "x.pcap"
    for tags in (1, 4, 5, 40):
        tagged = frame[:12] + b"\x81\x00\x00\x05" * tags + frame[12:]
        path.write_bytes(header() + record(tagged) + record(tagged[: 12 + 4 * tags - 1], len(tagged)))
        assert sided(path) == ({"OUTBOUND": 1}, {"cut inside its headers by the snap length": 1}, {})


@pytest.mark.parametrize(("kept", "original"), [(0, 1), (0, 19), (0, 20), (1, 19), (1, 20), (20, 19)])
def test_a_bare_packet_that_is_cut_or_short(tmp_path: Path, kept: int, original: int) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(
        header(link=101) + record(udp("10.0.0.5", "198.51.100.7", 1000, 53)[14 : 14 + kept], original) + b"f"
    )
    _, skipped, mended = sided(path)
    if kept < 20:
        assert skipped == {"cut inside its headers by the snap length" if original == 20 else "not IPv4": 1}
    assert ("captured length above the original one: all bytes taken" in mended) is (kept > original)


def test_an_answer_of_icmp_without_its_header_is_the_gateways_to_drop(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    short = bytes(Ether() / IP(src="198.51.100.7", dst="10.0.0.5", proto=1) / Raw(b"\3\3\0\0"))
    path.write_bytes(header() + record(udp("10.0.0.5", "198.51.100.7", 1000, 53)) + record(short))
    assert sided(path) == ({"OUTBOUND": 1, "DROP_MALFORMED": 1}, {}, {})


@pytest.mark.parametrize(("options", "size"), [(40, 0), (40, 30), (0, 300)])
def test_a_super_frame_of_headers_larger_than_the_mtu(tmp_path: Path, options: int, size: int) -> None:
    """RFC 791 lets a link have 68 bytes: of IPv4 and TCP with all options 120."""

    def small() -> Gateway:
        made = Gateway(seed=1, max_sessions=2000, outside=Link(mtu=68))
        made.add(SnatEntry("10.0.0.0/24", pool="203.0.113.1"))
        return made

    ip = IP(src="10.0.0.5", dst="198.51.100.7", options=[IPOption(b"\1")] * options)
    path = tmp_path / "x.pcap"
    tcp = TCP(sport=1000, dport=53, options=[("NOP", None)] * options)
    path.write_bytes(header() + record(bytes(Ether() / ip / tcp / Raw(bytes(size)))))
    verdicts, skipped, mended = sided(path, make=small)
    assert verdicts and not skipped and mended == {"super-frames: cut into segments": 1}


@pytest.mark.parametrize("total", [30, 40, 55, 56, 59])
@pytest.mark.parametrize("kept", [42, 56, 60, 74, 200])
@pytest.mark.parametrize("checksum", [True, False])
def test_an_error_quotes_what_is_in_its_packet_alone(tmp_path: Path, total: int, kept: int, checksum: bool) -> None:
    """Not what follows it in the frame, of which the snap length may have cut some."""
    quoted = IPerror(src="10.0.0.5", dst="198.51.100.7") / UDPerror(sport=1000, dport=53)
    ip = IP(src="198.51.100.9", dst="10.0.0.5", len=total, options=[IPOption(b"\1")] * 8)
    if not checksum:
        ip.chksum = 0
    error = bytes(Ether() / ip / ICMP(type=3, code=3) / quoted / Raw(bytes(100)))
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + record(udp("10.0.0.5", "198.51.100.7", 1000, 53)) + record(error[:kept], len(error)))
    sided(path)


def test_frames_that_wait_keep_no_other_frames_errors(tmp_path: Path) -> None:
    quoted = IPerror(src="10.0.0.5", dst="198.51.100.7") / UDPerror(sport=1000, dport=53)
    error = bytes(Ether() / IP(src="198.51.100.9", dst="10.0.0.5") / ICMP(type=3, code=3) / quoted)
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + record(error) * 3)
    (batch,) = batches(path)
    (frames,) = Preparer(make_sides(["10.0.0.0/24"]), 1500).prepare(batch)
    assert list(joined([frames.take(slice(1)), frames.take(slice(2, 3))]).messages) == [0, 2]


@pytest.mark.parametrize("link", [113, 276])
def test_cooked_frames_have_sides_by_direction_and_by_mac(tmp_path: Path, link: int) -> None:
    def cooked(direction: int, index: int, source: str, frame: bytes) -> bytes:
        mac = bytes.fromhex(source.replace(":", "")) + bytes(2)
        if link == 113:
            return struct.pack("!HHH8sH", direction, 1, 6, mac, 0x0800) + frame[14:]
        return struct.pack("!HHIHBB8s", 0x0800, 0, index, 1, direction, 6, mac) + frame[14:]

    host, router = "02:00:00:00:00:05", "02:00:00:00:00:01"
    out, back = udp("10.0.0.5", "198.51.100.7", 1000, 53), udp("198.51.100.7", "10.0.0.5", 53, 1000)
    rows = [cooked(0, 2, host, out), cooked(4, 3, router, out), cooked(4, 2, router, back)]
    path = tmp_path / "x.pcap"
    path.write_bytes(header(link=link) + b"".join(map(record, rows)))
    if link == 276:  # the interface is known: what leaves by the inside one is an answer
        verdicts, skipped, _ = sided(path, from_inside=["2"])
        assert (verdicts, skipped) == ({"OUTBOUND": 1, "INBOUND": 1}, {"of an interface that was not named": 1})
    verdicts, skipped, _ = sided(path, gateway_macs=[router])
    assert skipped == {"neither from nor to the gateway's MAC address": 1}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"gateway_macs": ["02:00"]}, "gateway_macs must be like"),
        ({"gateway_macs": ["02:00:00:00:00:01"], "from_inside": ["lan0"]}, "not both"),
        ({"from_inside": ["lan0"], "from_outside": ["lan0"]}, "other interfaces than from_inside"),
        ({"inside": ["10.0.0.1/24"]}, "inside must be an IPv4 prefix"),
    ],
)
def test_sides_that_cannot_be_are_refused(named: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_sides(named.pop("inside", []), **named)


def test_a_capture_that_was_cut_off_is_taken_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    pcap.write(path, [Packet(START_NS + n, udp("10.0.0.5", "198.51.100.7", 1000, 53)) for n in range(3)])
    path.write_bytes(path.read_bytes()[:-5])
    verdicts, _, mended = sided(path)
    assert verdicts == {"OUTBOUND": 2} and mended == {"the capture was cut off: its last frame is left out": 1}


def test_an_empty_capture_and_no_gateway(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header())
    (outcome,) = what_if(path, {"x": gateway()}, make_sides([])).outcomes
    assert outcome.sessions == 0 and outcome.forecast is not None and outcome.forecast.state == "unknown"
    with pytest.raises(ConfigurationError, match="one or more"):
        what_if(path, {}, make_sides([]))


def test_configuration_files_become_gateways(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[[snat]]\nsource = "10.0.0.0/24"\npool = "203.0.113.1"\n')
    stack, made, prefixes = gateways_of([file], seed=1)
    with stack:
        assert list(made) == [str(file)] and prefixes == ["10.0.0.0/24"]
    with pytest.raises(ConfigurationError, match="different files"):
        gateways_of([file, file])


def test_the_forecast_follows_the_second_half() -> None:
    def line(start: float, slope: float) -> list[tuple[float, dict[str, int]]]:
        return [(60.0 * n, {"tcp": round(start + slope * 60 * n), "udp": 0}) for n in range(40)]

    total = {"tcp": 10_000, "udp": 10_000, "icmp": 0}
    grows = forecast(line(100, 1.0), total, 0)
    assert (grows.state, grows.protocol) == ("grows", "tcp") and grows.growth_per_hour == pytest.approx(3600)
    assert grows.time == pytest.approx(9900)
    assert forecast(line(5000, 0.0), total, 0).state == "steady"
    assert forecast(line(5000, -1.0), total, 0).time is None
    assert forecast(line(100, 1.0)[:9], total, 0).state == "unknown"
    full = forecast(line(9_900, 1.0), total, 7)
    assert (full.state, full.protocol, full.time) == ("ran-out", "tcp", 120.0)
