"""natcore against the oracle over random lives, and properties that need no oracle."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from natcore import RECORD, Eip, Gateway, Policy, Side, SnatEntry, Verdict
from natcore.testing import configurations, craft, strategies
from natcore.testing.oracle.packets import ICMP, TCP, UDP, ones_sum, parse, word
from oracle.comparison import STRIDE, live, run, twins
from runs.soak import EXPECTED, report
from support.multi_worker import COUNTS, counted
from support.search import TIMES

POOL = craft.address("203.0.113.1")


def examples(count: int) -> settings:
    """So many, the same in every run, however long each takes."""
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(examples(6 * TIMES), phases=[Phase.generate])  # to shrink a life takes minutes, and its trace is short anyway
@given(strategies.randoms())
def test_random_lives_equal_the_oracles(random: Random) -> None:
    live(random, operations=40)


def test_seeds_equal_the_oracles() -> None:
    """Those with which the soak begins."""
    histogram: Counter[str] = Counter()
    for seed in range(50):
        histogram += run(seed, operations=500).histogram
    rare = {
        "verdict DROP_PORTS_EXHAUSTED",
        "verdict DROP_CONFLICT",
        "shared address: no host any more",
    }  # the soak of 200 seeds has each
    assert {name for name in EXPECTED if not histogram[name]} <= rare  # nothing else is untried


def test_a_restored_gateway_goes_on_as_the_one_that_was_saved() -> None:
    """The lives with which `make restored` begins; and one in which outside addresses had gone, so that the search for
    hold-downs that are over went round another number of them."""
    restored = sum(twins(seed, operations=300).histogram["twin restored"] for seed in (*range(10), 116))
    assert restored > 100


@pytest.mark.parametrize("lost", ["events", "random numbers"])
def test_a_restored_gateway_that_lacks_something_is_noticed(monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    restore = Gateway.restore

    def forgetful(saved: BytesIO, **arguments: object) -> Gateway:
        gateway = restore(saved, **arguments)  # type: ignore[arg-type]
        if lost == "events":
            gateway.take_events()
        else:
            gateway.translate_one(craft.ether(craft.udp((0x0A000001, 7), ("9.9.9.9", 9))), Side.INSIDE, now=0)
        return gateway

    monkeypatch.setattr(Gateway, "restore", forgetful)
    with pytest.raises(AssertionError):
        for seed in range(10):
            twins(seed, operations=300)


def test_a_soak_in_which_something_is_absent_fails(capsys: pytest.CaptureFixture[str]) -> None:
    histogram = Counter(dict.fromkeys(EXPECTED, 1000), another=1)
    assert report(histogram, least=1000) == []
    for name in ("verdict DROP_PROBE_LIMIT", "policy ports=overload", "entry of a session: dnat-range"):
        assert name in EXPECTED
        assert report(histogram - Counter({name: 1000}), least=1000) == [name]
        assert report(histogram - Counter({name: 1}), least=1000) == [name]
    assert f"{'another':58}{1:14,}" in capsys.readouterr().out


def whole(frame: bytes) -> None:
    """Every checksum of a frame is right, summed up from scratch, where its layer 4 is known to have one."""
    ip = frame[14:]
    header = (ip[0] & 15) * 4
    data = ip[header : word(ip, 2)]
    assert ones_sum(ip[:header]) == 0xFFFF
    if ip[9] not in (TCP, UDP, ICMP) or (ip[9] == UDP and word(data, 6) == 0):
        return
    pseudo = b"" if ip[9] == ICMP else ip[12:20] + bytes((0, ip[9])) + len(data).to_bytes(2, "big")
    assert ones_sum(pseudo, data) == 0xFFFF


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP, None])
@examples(60)
@given(data=st.data())
def test_forwarded_packets_have_right_checksums(protocol: int | None, data: st.DataObject) -> None:
    protocol = protocol or data.draw(strategies.other_protocols)
    gateway = Gateway(seed=1, max_sessions=16)
    gateway.add(SnatEntry("10.0.0.0/16", Eip("198.18.0.1", private_ip=POOL)))
    packet = data.draw(strategies.outbound_packets(protocol))
    verdict, sent = gateway.translate_one(craft.ether(packet), Side.INSIDE, now=0)
    assert verdict is Verdict.OUTBOUND and sent is not None
    whole(sent)
    reply = answer(sent, data.draw(strategies.payloads))
    verdict, received = gateway.translate_one(reply, Side.OUTSIDE, now=1)
    assert verdict is Verdict.INBOUND and received is not None
    whole(received)
    original, arrived = parse(craft.ether(packet), "ethernet", Side.INSIDE), parse(received, "ethernet", Side.OUTSIDE)
    assert not isinstance(original, Verdict) and not isinstance(arrived, Verdict)
    assert (arrived.source, arrived.destination) == (original.destination, original.source)


def answer(sent: bytes, payload: bytes) -> bytes:
    """What the remote sends back to a packet that reached it."""
    packet = parse(sent, "ethernet", Side.INSIDE)
    assert not isinstance(packet, Verdict)
    if packet.protocol == ICMP:
        identifier = packet.source[1]
        ip = craft.icmp(packet.destination[0], packet.source[0], 0, identifier=identifier, payload=payload)
    elif packet.protocol == UDP:
        ip = craft.udp(packet.destination, packet.source, payload)
    elif packet.protocol == TCP:
        ip = craft.tcp(packet.destination, packet.source, 0x10, payload)
    else:
        ip = craft.ipv4(packet.protocol, packet.destination[0], packet.source[0], payload)
    return craft.ether(ip)


def arrays(frames: strategies.Frames) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, lengths and sides as translate() takes them."""
    rows, lengths = np.zeros((len(frames), STRIDE), np.uint8), np.zeros(len(frames), np.uint32)
    for row, (frame, _) in enumerate(frames):
        rows[row, : len(frame)], lengths[row] = np.frombuffer(frame, np.uint8), len(frame)
    return rows, lengths, np.array([side for _, side in frames], np.uint8)


def new(configuration: configurations.Configuration, seed: int = 7) -> Gateway:
    gateway = Gateway(**configuration.options, seed=seed)
    for entry in configuration.entries:
        gateway.add(entry)
    return gateway


@examples(40)
@given(data=st.data(), configuration=strategies.configurations(COUNTS))
def test_a_batch_equals_its_frames_one_by_one(data: st.DataObject, configuration: configurations.Configuration) -> None:
    frames = data.draw(strategies.frames(configuration, max_size=80))
    batch, single = new(configuration), new(configuration)
    rows, lengths, sides = arrays(frames)
    verdicts = batch.translate(rows, lengths, sides, now=1.0)
    for row, (frame, side) in enumerate(frames):
        verdict, sent = single.translate_one(frame, side, now=1.0)
        assert verdicts[row] == verdict
        assert (sent is not None) == (verdict.is_forwarded)
        assert sent is None or rows[row, : lengths[row]].tobytes() == sent
    assert batch.take_generated() == single.take_generated()
    assert counted(batch) == counted(single)
    assert batch.take_events() == single.take_events()
    assert (batch.take_records(events=True) == single.take_records(events=True)).all()


@examples(25)
@given(data=st.data(), configuration=strategies.configurations(COUNTS))
def test_one_seed_is_one_outcome(data: st.DataObject, configuration: configurations.Configuration) -> None:
    frames = data.draw(strategies.frames(configuration))
    outcomes = []
    for _ in range(2):
        gateway = new(configuration)
        rows, lengths, sides = arrays(frames)
        verdicts = gateway.translate(rows, lengths, sides, now=np.arange(len(frames), dtype=np.float64) * 0.7)
        gateway.advance(1_000_000)
        outcomes.append((verdicts.tobytes(), rows.tobytes(), gateway.take_records(events=True).tobytes()))
    assert outcomes[0] == outcomes[1]


@examples(30)
@given(steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200), st.booleans()), max_size=40))
def test_expiry_never_shows_the_sweeps_progress(steps: list[tuple[int, int, bool]]) -> None:
    """Without a limit in the way, expiry between packets changes no verdict and no session's rows."""
    lazy, eager = (Gateway(seed=3, max_sessions=1000) for _ in range(2))
    rows = []
    for gateway in (lazy, eager):
        gateway.add(SnatEntry("10.0.0.0/16", POOL))
        now, verdicts, last = 0, [], None
        for host, pause, back in steps:
            now += pause
            if gateway is eager:
                gateway.advance(now)
            frame = craft.ether(craft.udp((configurations.HOSTS[host], 5000), (configurations.REMOTES[0], 53)))
            if back and last is not None:
                verdicts.append(gateway.translate_one(answer(last, b"back"), Side.OUTSIDE, now=now)[0])
            else:
                verdict, last = gateway.translate_one(frame, Side.INSIDE, now=now)
                verdicts.append(verdict)
        gateway.advance(1_000_000)
        log = gateway.take_records(events=True)
        log["nat_port"] = log["number"] = 0
        rows.append((verdicts, sorted(map(str, log))))
    assert rows[0] == rows[1]


def test_every_port_is_used_before_one_is_refused() -> None:
    gateway = Gateway(seed=5, max_sessions=70_000, policy=Policy(hold_down=0))
    gateway.add(SnatEntry("10.0.0.0/8", POOL))
    count = 64_512 + 100
    packet = craft.ether(craft.udp((0, 7), ("9.9.9.9", 9), no_checksum=True))
    rows = np.tile(np.frombuffer(packet, np.uint8), (count, 1))
    rows[:, 26:30] = (np.arange(count) + 0x0A000001).astype(">u4").view(np.uint8).reshape(-1, 4)
    rows[:, 24:26] = 0
    words = rows[:, 14:34].copy().view(">u2").sum(axis=1)
    rows[:, 24:26] = (0xFFFF - (words - 1) % 0xFFFF - 1).astype(">u2").view(np.uint8).reshape(-1, 2)
    verdicts = gateway.translate(rows, np.full(count, rows.shape[1], np.uint32), Side.INSIDE, now=0.0)
    taken = rows[verdicts == Verdict.OUTBOUND, 34:36].copy().view(">u2")
    assert len(taken) == len(np.unique(taken)) == 64_512 and taken.min() == 1024
    assert Counter(verdicts.tolist()) == {Verdict.OUTBOUND: 64_512, Verdict.DROP_PORTS_EXHAUSTED: 100}
    assert gateway.counters()["dropped_ports_exhausted"] == 100
    told = [(event.reason, event.count) for event in gateway.take_events()]
    assert sum(count for reason, count in told if reason == "ports-exhausted") == 100
    assert {reason for reason, _ in told} == {"ports-exhausted", "ports-threshold", "sessions-threshold"}


def test_a_record_has_no_hidden_bytes() -> None:
    """Two rows that are equal field by field are equal as bytes: the fields cover what the journal writes."""
    gateway = Gateway(seed=5, max_sessions=4)
    gateway.add(SnatEntry("10.0.0.0/8", POOL))
    gateway.translate_one(craft.ether(craft.udp((0x0A000001, 7), ("9.9.9.9", 9))), Side.INSIDE, now=0)
    gateway.advance(1000)
    rows = gateway.take_records(events=True)
    copy = np.zeros(len(rows), RECORD)
    for name in RECORD.names or ():
        copy[name] = rows[name]
    assert copy.tobytes() == rows.tobytes()
