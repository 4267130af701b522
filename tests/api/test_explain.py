"""Explanations: what would become of a packet is what becomes of it, and nothing changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from natcore import ConfigurationError, DnatEntry, Error, Gateway, Link, NoNatEntry, Policy, Side, Verdict
from natcore.capture.pcap import Packet, write
from natcore.cli.main import app
from natcore.explain import Explanation, describe_packet
from natcore.testing import configurations
from oracle.comparison import Pair
from support.frames import (
    EIP,
    HOST,
    ICMP,
    IP,
    REMOTE,
    Ether,
    Raw,
    Talk,
    echo,
    ether,
    gateway,
    one_port,
    parsed,
    tcp,
    udp,
)
from support.multi_worker import COUNTS

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE


class Rehearsed(Pair):
    """A pair of which natcore explains each frame before it translates it."""

    def frame(self, data: bytes, side: Side, seconds: float) -> Verdict:
        core = self.gateway._core
        before = core.inspection.counters(), core.log_rows.journal_waiting, core.now_ns
        told = self.gateway.explain(data, side, now=seconds)
        assert (core.inspection.counters(), core.log_rows.journal_waiting, core.now_ns) == before
        verdict = super().frame(data, side, seconds)
        assert told.verdict is verdict, f"{told}\nbecame {verdict.name}"
        assert str(told) and told.steps
        grown = {name: value - counts_of(before[0])[name] for name, value in counts(core).items()}
        if verdict is Verdict.HELD:  # a gauge: others may have waited too long by now
            assert grown["held"] + grown["dropped_fragment"] == 1
        else:
            assert grown[told.counter]
        return verdict


def counts_of(raw: tuple[list[int], dict[str, int]]) -> dict[str, int]:
    """Drops by their counter, and the sums; expiry is left where it is."""
    verdicts = raw[0]
    sums = {"forwarded": sum(verdicts[:4]), "local": verdicts[Verdict.LOCAL], "held": verdicts[Verdict.HELD]}
    return {v.counter: verdicts[v] for v in Verdict if v.is_drop} | sums


def counts(core: Any) -> dict[str, int]:
    return counts_of(core.inspection.counters())


def lived(kind: type[Pair], seed: int) -> Pair:
    """A hundred random operations, checked against the oracle, and the end."""
    random = Random(f"explain {seed}")
    pair = kind(configurations.configuration(random, COUNTS), seed)
    for _ in range(100):
        pair.step(random)
    pair.finish()
    return pair


@pytest.mark.parametrize("seed", range(5))
def test_what_is_explained_is_what_happens_and_leaves_no_trace(seed: int) -> None:
    """Every table, row, event, counter and draw is as in a life without explanations."""
    explained, plain = lived(Rehearsed, seed), lived(Pair, seed)
    assert explained.trace == plain.trace and explained.histogram == plain.histogram
    assert [rows.tobytes() for rows in explained.rows] == [rows.tobytes() for rows in plain.rows]


def check(over: Gateway, frame: bytes, side: Side, now: float = 0.0) -> Explanation:
    """The explanation, which translate then bears out: verdict, frame, and what the gateway says itself."""
    over.take_generated()
    told = over.explain(frame, side, now)
    assert (told.verdict, told.frame) == over.translate_one(frame, side, now)
    assert list(told.generated) == over.take_generated()
    return told


def steps(told: Explanation) -> list[str]:
    return [step.name for step in told.steps]


def test_a_new_session_and_then_a_known_one() -> None:
    over = gateway()
    entry = over.entries()[0]
    told = check(over, udp(), INSIDE)
    assert (told.verdict, told.counter, told.entry, told.created) == (Verdict.OUTBOUND, "forwarded", entry, 1)
    assert steps(told) == ["parse", "session", "entry", "mapping", "send"]
    assert "new: mapping=endpoint-independent, ports=random" in str(told)
    assert told.session == over.sessions()[0] and told.mapping == over.mappings()[0]
    again = check(over, udp(), INSIDE, 1.0)
    assert again.session["session"] == 1 and again.session["packets_out"] == 1 and again.created == 0
    assert "it is there already" in str(again)
    back = check(over, udp(REMOTE, 53, EIP, int(told.session["outside_port"])), OUTSIDE, 2.0)
    assert back.verdict is Verdict.INBOUND and back.session["session"] == 1 and back.entry is entry


def test_without_a_moment_it_is_the_gateway_s_last() -> None:
    over = gateway()
    over.translate_one(udp(), INSIDE, 7.0)
    assert over.explain(udp(), INSIDE).now == 7.0
    assert over.explain(udp(), INSIDE, 3.0).now == 7.0  # it never goes back


def test_the_dead_are_seen_as_dead_and_stay_where_they_are() -> None:
    over = gateway()
    over.translate_one(udp(), INSIDE, 0.0)
    told = over.explain(udp(), INSIDE, 300.0)
    assert told.ended == 1 and told.created == 1 and "1 session: expired" in str(told)
    assert len(over.take_records(events=True)) == 1 and len(over.sessions()) == 1


def test_an_admission_that_would_fail_first_completes_the_expiry() -> None:
    over = gateway(max_sessions=2)
    for sport in (1, 2):
        over.translate_one(udp(sport=sport), INSIDE, 0.0)
    assert over.explain(udp(sport=3), INSIDE, 299.0).verdict is Verdict.DROP_SESSION_LIMIT
    told = check(over, udp(sport=3), INSIDE, 300.0)
    assert (told.verdict, told.ended) == (Verdict.OUTBOUND, 2)


def refused(verdict: Verdict) -> tuple[Gateway, bytes, Side]:
    """A gateway, and a frame that it refuses so."""
    over = gateway(policy=one_port(filtering="address-dependent", unsolicited_syn="icmp"), outside=Link(mtu=500))
    Talk(over).out()
    cases: dict[Verdict, tuple[bytes, Side]] = {
        Verdict.DROP_MALFORMED: (b"short", INSIDE),
        Verdict.DROP_CHECKSUM: (udp(chksum=1), INSIDE),
        Verdict.DROP_UNSUPPORTED: (echo(kind=4), INSIDE),
        Verdict.DROP_SPOOFED: (udp(EIP), INSIDE),
        Verdict.DROP_NO_SNAT_ENTRY: (udp("192.168.0.1"), INSIDE),
        Verdict.DROP_TTL: (udp(dport=443, ttl=1), INSIDE),
        Verdict.DROP_MTU: (udp(dport=443, load=bytes(600), flags="DF"), INSIDE),
        Verdict.DROP_PORTS_EXHAUSTED: (udp(sport=9), INSIDE),
        Verdict.DROP_NO_MAPPING: (tcp("S", REMOTE, 9, EIP, 4000), OUTSIDE),
        Verdict.DROP_FILTERED: (udp("198.51.100.9", 53, EIP, 4000), OUTSIDE),
    }
    return over, *cases[verdict]


@pytest.mark.parametrize("verdict, step, because", [
    (Verdict.DROP_MALFORMED, "parse", "RFC 1812"),
    (Verdict.DROP_CHECKSUM, "parse", "RFC 1812"),
    (Verdict.DROP_UNSUPPORTED, "parse", "RFC 5508 REQ-11"),
    (Verdict.DROP_SPOOFED, "source", "pool"),
    (Verdict.DROP_NO_SNAT_ENTRY, "entry", "RFC 5508 REQ-8"),
    (Verdict.DROP_TTL, "hop", "RFC 1812 section 5.3.1"),
    (Verdict.DROP_MTU, "hop", "RFC 4787 REQ-13"),
    (Verdict.DROP_PORTS_EXHAUSTED, "limits", "RFC 6888 REQ-11"),
    (Verdict.DROP_NO_MAPPING, "mapping", "RFC 4787 section 5"),
    (Verdict.DROP_FILTERED, "filter", "filtering is address-dependent"),
])  # fmt: skip
def test_a_refusal_names_its_step_and_what_is_behind_it(verdict: Verdict, step: str, because: str) -> None:
    over, frame, side = refused(verdict)
    told = check(over, frame, side)
    assert told.verdict is verdict and told.counter == verdict.counter and told.frame is None
    (last,) = [made for made in told.steps if made.decision == "refused"]
    assert last.name == step and because in last.because
    assert verdict.name in str(told) and verdict.counter in str(told)


def test_quotas_are_named() -> None:
    over = gateway(policy=Policy(ports_per_subscriber=1, sessions_per_subscriber=2, new_sessions_per_second=1))
    check(over, udp(sport=1), INSIDE)
    assert "RFC 6888 REQ-4" in str(check(over, udp(sport=2), INSIDE))
    assert check(over, udp(sport=2), INSIDE, 1.0).verdict is Verdict.DROP_SUBSCRIBER_LIMIT


def test_a_syn_that_is_answered_later_says_so() -> None:
    over, frame, side = refused(Verdict.DROP_NO_MAPPING)
    assert "RFC 5382 REQ-4" in str(check(over, frame, side))


@pytest.mark.parametrize("flags, side, because", [
    ("R", INSIDE, "a RST opens nothing"), ("A", INSIDE, "tcp_pickup=False"), ("A", OUTSIDE, "only a SYN opens"),
])  # fmt: skip
def test_segments_that_open_nothing(flags: str, side: Side, because: str) -> None:
    over = gateway(policy=one_port(tcp_pickup=False))
    Talk(over).out("S")
    frame = tcp(flags, sport=9) if side is INSIDE else tcp(flags, "198.51.100.9", 9, EIP, 4000)
    assert because in str(check(over, frame, side))


def test_entries_of_every_kind() -> None:
    over = gateway()
    dnat = over.add(DnatEntry(EIP, 8443, "10.0.0.80", 443, name="web"))
    whole = over.add(DnatEntry("203.0.113.9", "any", "10.0.0.90", "any", protocol="any"))
    plain = over.add(NoNatEntry("10.0.0.0/8", "192.168.0.0/16"))
    for frame, side, entry, verdict in (
        (tcp("S", REMOTE, 9, EIP, 8443), OUTSIDE, dnat, Verdict.INBOUND),
        (udp(REMOTE, 9, "203.0.113.9", 7), OUTSIDE, whole, Verdict.INBOUND),
        (echo(REMOTE, "203.0.113.9"), OUTSIDE, whole, Verdict.INBOUND),
        (udp("10.0.0.90", 7), INSIDE, whole, Verdict.OUTBOUND),
        (udp(HOST, 7, "192.168.0.1", 7), INSIDE, plain, Verdict.UNTRANSLATED),
    ):
        told = check(over, frame, side)
        assert (told.verdict, told.entry) == (verdict, entry)
        assert entry.describe() in str(told)


def test_a_hairpin_shows_both_sessions() -> None:
    over = gateway()
    over.add(DnatEntry(EIP, 8443, "10.0.0.80", 443))
    told = check(over, tcp("S", HOST, 5000, EIP, 8443), INSIDE)
    assert told.verdict is Verdict.HAIRPIN and told.created == 2
    assert (told.session["inside_ip"], told.other["inside_ip"]) == (0x0A000005, 0x0A000050)
    back = check(over, tcp("SA", "10.0.0.80", 443, *_outside(told)), INSIDE)
    assert back.created == 0 and back.other["session"] == told.session["session"]


def _outside(told: Explanation) -> tuple[str, int]:
    packet = parsed(told.frame)
    return packet.src, packet.sport


def test_an_error_is_explained_by_the_session_that_it_quotes() -> None:
    over = gateway()
    _, sent = over.translate_one(udp(), INSIDE, 0.0)
    for quoted, verdict in ((parsed(sent), Verdict.INBOUND), (IP(src=EIP, dst=REMOTE) / Raw(bytes(8)), None)):
        frame = ether(IP(src="192.0.2.1", dst=EIP) / ICMP(type=3, code=1) / Raw(bytes(quoted)))
        told = check(over, frame, OUTSIDE)
        if verdict is not None:
            assert told.verdict is verdict and told.session["session"] == 1
        else:
            assert told.verdict is Verdict.DROP_NO_MAPPING and "RFC 5508 REQ-4" in str(told)


def test_a_connection_that_a_syn_opens_again_is_a_new_session() -> None:
    talk = Talk(gateway())
    talk.out("S", seq=1)
    talk.back("SA", seq=1, ack=2)
    talk.out("FA", seq=2, ack=2)
    talk.back("FA", seq=2, ack=3)
    told = check(talk.gateway, tcp("S", seq=99), INSIDE)
    assert told.session["session"] == 2 and "opens an ended connection again" in str(told)


def test_what_the_gateway_answers_itself() -> None:
    told = check(gateway(), echo(destination=EIP), INSIDE)
    assert (told.verdict, told.counter, told.frame) == (Verdict.LOCAL, "local", None)
    assert Ether(told.generated[0].frame)[ICMP].type == 0
    assert "ICMP 0/0 203.0.113.1 to 10.0.0.5" in str(told)


def test_bare_packets_and_tagged_frames() -> None:
    bare = gateway(framing="ip")
    assert check(bare, udp()[14:], INSIDE).verdict is Verdict.OUTBOUND
    assert "UDP 10.0.0.5:5000 to 198.51.100.7:53" in describe_packet(udp()[14:])
    tagged = ether(parsed(udp()), 7, 8)
    assert "UDP 10.0.0.5:5000" in str(check(gateway(), tagged, INSIDE))
    assert describe_packet(b"") == "0 bytes that are no IPv4 packet"
    assert describe_packet(udp(frag=2)).startswith("UDP 10.0.0.5 to 198.51.100.7, a fragment at 16")


@pytest.mark.parametrize("arguments", [("text", INSIDE), (b"", 2), (None, INSIDE)])
def test_arguments_are_checked(arguments: tuple[Any, int]) -> None:
    with pytest.raises(ConfigurationError):
        gateway().explain(*arguments)
    over = gateway()
    over.close()
    with pytest.raises(Error):
        over.explain(udp(), INSIDE)


def test_frames_of_any_length() -> None:
    over = gateway()
    for length in (0, 1, 65535, 131072):
        assert over.explain(bytes(length), INSIDE).verdict.is_drop
    with pytest.raises(Error, match="at most 131072 bytes"):
        over.explain(bytes(131073), INSIDE)


def test_the_exhaustion_of_a_host_is_no_event_when_it_is_explained() -> None:
    over, frame, side = refused(Verdict.DROP_PORTS_EXHAUSTED)
    over.explain(frame, side)
    assert over.take_events() == [] and over.take_generated() == []
    assert np.array_equal(over.sessions()["session"], [1])


# ---- the page, and the command


PAGE = Path(__file__).resolve().parents[2] / "docs" / "explain.md"


def test_the_page_shows_what_its_example_prints(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
    assert [kind for kind, _ in blocks] == ["python", "text"]
    exec(compile(blocks[0][1], str(PAGE), "exec"), {})
    assert capsys.readouterr().out == blocks[1][1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "gateway.toml"
    made.write_text('[[snat]]\nsource = "10.0.0.0/8"\npool = ["203.0.113.1"]\n')
    return made


def call(*arguments: object, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["explain", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result.output


def test_the_command_explains_a_frame(file: Path) -> None:
    shown = call(file, udp().hex())
    assert "UDP 10.0.0.5:5000 to 198.51.100.7:53" in shown and "OUTBOUND" in shown
    shown = call(file, udp(REMOTE, 53, EIP, 9).hex(), "--side", "outside", "--now", 7)
    assert "DROP_NO_MAPPING" in shown
    assert "asked: a new gateway made of" in shown and "with no sessions; --live asks the running one" in shown
    told = json.loads(call(file, udp("192.168.0.1").hex(), "--json"))
    assert (told["asked"], told["packets_before"]) == ("a new gateway of the file", 0)
    assert (told["verdict"], told["counter"]) == ("DROP_NO_SNAT_ENTRY", "dropped_no_snat_entry")
    assert [step["name"] for step in told["steps"]] == ["parse", "session", "entry"]


def test_the_command_explains_the_last_packet_of_a_capture(file: Path, tmp_path: Path) -> None:
    pcap = tmp_path / "inside.pcap"
    write(pcap, [Packet(at * 10**9, udp()) for at in (100, 101, 102)])
    shown = call(file, "--pcap", pcap)
    assert "at 2 s: OUTBOUND" in shown and "it lives until 301 s" in shown
    assert "no sessions but those of the capture's 2 packets before this one" in shown


@pytest.mark.parametrize("arguments, message", [
    ([], "either a frame in HEX or --pcap"),
    (["zz"], "HEX must be pairs of hexadecimal digits, got 'zz'"),
    (["00", "--side", "left"], "--side must"),
    (["00", "--pcap", "x"], "either"),
])  # fmt: skip
def test_the_command_says_what_is_wrong(file: Path, arguments: list[str], message: str) -> None:
    assert message in call(file, *arguments, exit_code=64)


def test_an_empty_capture_is_refused(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "empty.pcap", [])
    assert "a capture with packets" in call(file, "--pcap", tmp_path / "empty.pcap", exit_code=64)
