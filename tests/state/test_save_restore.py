"""A restored gateway is the saved one; the file is refused as soon as one bit of it is another."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

import numpy as np
import pytest

from natcore import (
    CapacityError,
    ConfigurationError,
    DnatEntry,
    Error,
    Gateway,
    NoNatEntry,
    Policy,
    Side,
    SnatEntry,
    StateError,
    Timeouts,
    UntrustedFileError,
    Verdict,
)  # fmt: skip
from natcore.api.state import State
from natcore.dtypes import CREATE, END, WINDOW
from natcore.state.file_format import HEADER, SECTION, SETTINGS, VERSION, read, written
from natcore.state.rows import SECTIONS
from natcore.testhooks.planted_faults import broken
from natcore.testing import craft
from natcore.testing.bulk import SYN
from natcore.testing.configurations import configuration
from oracle.comparison import Pair
from support.multi_worker import COUNTS

POOL, OTHER = "203.0.113.1", "203.0.113.2"


def saved(gateway: Gateway) -> bytes:
    file = io.BytesIO()
    gateway.save(file)
    return file.getvalue()


def restored(data: bytes, **more: object) -> Gateway:
    return Gateway.restore(io.BytesIO(data), **more)  # type: ignore[arg-type]


def holds(gateway: Gateway) -> None:
    assert broken(gateway._core.worker_capsule()) is None


def talkative(sessions: int = 40, **options: object) -> Gateway:
    """A gateway with sessions of three hosts over an address of two, and one behind a DNAT entry."""
    gateway = Gateway(**{"seed": 7, "max_sessions": 1000, **options})  # type: ignore[arg-type]
    gateway.add(SnatEntry("10.0.0.0/24", [POOL, OTHER]))
    gateway.add(DnatEntry(POOL, 443, "10.0.0.200", 8443))
    gateway.add(NoNatEntry("10.0.0.0/24", "192.0.2.0/24"))
    for at in range(sessions):
        out(gateway, 1 + at % 3, 5000 + at // 3, at / 10)
    assert (
        gateway.translate_one(craft.ether(craft.tcp(("198.51.100.9", 1234), (POOL, 443), SYN)), Side.OUTSIDE, 5.0)[0]
        is Verdict.INBOUND
    )
    out(gateway, 9, 53, 5.0, to="192.0.2.53")
    return gateway


def out(gateway: Gateway, host: int, port: int, now: float, to: str = "198.51.100.7") -> Verdict:
    return gateway.translate_one(craft.ether(craft.udp((f"10.0.0.{host}", port), (to, 53))), Side.INSIDE, now)[0]


def test_rows_are_laid_out_as_the_core_has_them() -> None:
    assert State.row_bytes() == [dtype.itemsize for _, dtype in SECTIONS]


@pytest.mark.parametrize("seed", range(12))
def test_a_restored_gateway_saves_the_same_bytes(seed: int) -> None:
    """Nothing of the state is lost on the way, and no order is another one."""
    pair, random = Pair(configuration(Random(seed), COUNTS)), Random(seed)
    for _ in range(150):
        pair.step(random)
    once = saved(pair.gateway)
    again = restored(once)
    holds(again)
    assert saved(again) == once


def test_the_clock_stands_still_unless_a_time_is_given() -> None:
    gateway = talkative(epoch=1_000_000)
    again = restored(saved(gateway))
    assert (again.now, again.epoch, len(again.sessions())) == (gateway.now, 1_000_000, len(gateway.sessions()))


def test_idle_times_go_on_over_the_gap_or_stand_still() -> None:
    data = saved(talkative(epoch=1_000_000, timeouts=Timeouts(udp=300)))
    late = 1_000_000 + 5 + 299.0
    counted, frozen = restored(data, wall=late), restored(data, wall=late, gap="freeze")
    assert counted.now == frozen.now == pytest.approx(304.0)
    assert counted.counters()["sessions"] < frozen.counters()["sessions"] == 42
    rows = counted.take_records(events=True)
    ended = rows[rows["kind"] == END]
    assert (ended["end_time"] - ended["start_time"] == 300_000_000).all()  # at their deadlines
    assert restored(data, wall=3.0).now == 5.0  # the wall clock was set back: no time has passed


@pytest.mark.parametrize("gap", [30 * 86_400.0, 50 * 86_400.0, 4e9])
def test_a_gap_of_weeks_is_counted_or_stands_still_as_a_short_one(gap: float) -> None:
    """Times are kept modulo 2^32 ms, 49 days; a machine without a clock begins in 1970."""
    gateway = talkative(sessions=3)
    data, wall = saved(gateway), gateway.now + gap
    assert not len(Gateway.restore(io.BytesIO(data), wall=wall).sessions())
    frozen = Gateway.restore(io.BytesIO(data), wall=wall, gap="freeze")
    assert frozen.now == pytest.approx(wall)
    before, after = (int(each.sessions()["deadline_ns"].max()) for each in (gateway, frozen))
    assert after - before == pytest.approx(gap * 1e9)
    frozen.advance(after / 1e9)
    assert not len(frozen.sessions())


def test_a_clock_that_is_far_ahead_moves_a_gateway_no_further_than_it_can_go() -> None:
    gateway = Gateway(max_sessions=10, epoch=-4e9)
    gateway.advance(4e9)
    again = Gateway.restore(io.BytesIO(saved(gateway)), wall=4.6e9)
    again.advance(again.now)
    assert restored(saved(again)).now == again.now


def test_a_file_holds_the_state_and_is_private(tmp_path: Path) -> None:
    gateway = talkative()
    path = tmp_path / "nat.state"
    assert gateway.save(path) == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["nat.state"]
    assert saved(Gateway.restore(path)) == path.read_bytes()
    path.chmod(0o666)
    with pytest.raises(UntrustedFileError, match="others may write"):
        Gateway.restore(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(UntrustedFileError, match="is a link"):
        Gateway.restore(tmp_path / "link")


def test_rows_that_wait_are_saved_in_their_order() -> None:
    gateway = talkative(window=10)
    gateway.advance(30.0)
    again = restored(saved(gateway))
    got, expected = again.take_records(events=True), gateway.take_records(events=True)
    assert {WINDOW, CREATE} <= set(got["kind"].tolist())
    assert got.tobytes() == expected.tobytes()
    assert again.counters()["created"] == gateway.counters()["created"]


def test_without_a_seed_choices_are_new_and_hosts_stay_where_they_are() -> None:
    gateway = Gateway(max_sessions=100)
    gateway.add(SnatEntry("10.0.0.0/24", POOL))
    out(gateway, 1, 5000, 0.0)
    data = saved(gateway)
    ports = set()
    for _ in range(3):
        again = restored(data)
        out(again, 1, 5001, 1.0)
        rows = {int(row["inside_port"]): int(row["outside_port"]) for row in again.mappings()}
        assert rows[5000] == int(gateway.mappings()[0]["outside_port"])
        ports.add(rows[5001])
    assert len(ports) == 3


def test_a_closed_gateway_is_not_saved() -> None:
    gateway = talkative()
    gateway.close()
    with pytest.raises(Error, match="closed"):
        saved(gateway)


# ---- what was changed meanwhile --------------------------------------------------------------------------------------


def test_what_no_longer_fits_ends_with_its_rows_and_the_rest_stays() -> None:
    gateway = talkative(seed=3)
    gateway.take_records(events=True)
    before = {int(row["session"]): int(row["outside_ip"]) for row in gateway.sessions() if row["outside_ip"]}
    wanted = [SnatEntry("10.0.0.0/24", OTHER), NoNatEntry("10.0.0.0/24", "192.0.2.0/24")]
    again = restored(saved(gateway), entries=wanted)
    holds(again)
    assert [row.entry for row in again.entries()] == wanted
    kept = set(again.sessions()["session"].tolist())
    rows = again.take_records(events=True)
    ended = set(rows["session"][rows["kind"] == END].tolist())
    assert ended
    assert kept
    [forwarded] = [int(row["session"]) for row in gateway.sessions() if row["outside_port"] == 443]  # it has no rows
    assert kept | ended | {forwarded} == set(gateway.sessions()["session"].tolist())
    assert forwarded not in kept
    assert not kept & ended
    assert all(int(row["outside_ip"]) != craft.address(POOL) for row in again.sessions())
    assert set(rows["session"][rows["kind"] == WINDOW].tolist()) == ended
    assert ended | {forwarded} == {session for session, outside in before.items() if outside == craft.address(POOL)}


@pytest.mark.parametrize(("workers", "then"), [(1, 3), (4, 1), (2, 5), (3, 3)])
def test_sessions_are_placed_among_another_number_of_workers(workers: int, then: int) -> None:
    gateway = talkative(workers=workers)
    again = restored(saved(gateway), workers=then, max_sessions=500)
    holds(again)
    assert again.workers == then
    assert (again.max_sessions, again.max_mappings) == (500, 500)
    for name in ("created", "received", "forwarded", "ports_used", "mappings"):
        assert again.counters()[name] == gateway.counters()[name]
    got, expected = (sorted(each.sessions().tolist()) for each in (again, gateway))
    assert got == expected
    for at in range(40):
        assert out(again, 1 + at % 3, 5000 + at // 3, 6.0) is Verdict.OUTBOUND
    assert again.counters()["created"] == gateway.counters()["created"]
    out(again, 1, 9999, 6.0)
    assert int(max(again.sessions()["session"])) == gateway.counters()["created"] + 1
    again.advance(100_000)
    holds(again)
    assert again.counters()["sessions"] == again.counters()["ports_used"] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_too_small_a_gateway_is_refused(workers: int) -> None:
    """The limit is of all workers together."""
    with pytest.raises(CapacityError, match="max_sessions must be at least 42"):
        restored(saved(talkative(workers=workers)), max_sessions=41)


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        (Policy(ports="block", block_size=64), {"192.0.2.53", "198.51.100.9"}),
        (Policy(mapping="address-and-port-dependent"), {"192.0.2.53", "198.51.100.9"}),
        (Policy(port_ranges=((1024, 2047),)), None),
        (Policy(filtering="address-dependent"), None),
        (Policy(sessions_per_subscriber=100, ports_per_subscriber=100), None),
        (Policy(ports="preserve"), None),
    ],
)
def test_a_policy_that_a_running_gateway_cannot_have_ends_what_it_cannot_have(
    policy: Policy, left: set[str] | None
) -> None:
    gateway = talkative(sessions=120)
    gateway.take_records()
    again = restored(saved(gateway), policy=policy)
    holds(again)
    assert again.policy == policy
    kept = {int(row["session"]): row for row in again.sessions()}
    if left is not None:
        assert {str(IPv4Address(int(row["remote_ip"]))) for row in kept.values()} == left
    else:
        assert len(kept) == 122 or policy.port_ranges != ((1024, 65535),)
        assert all(
            1024 <= row["outside_port"] <= policy.port_ranges[0][1] or row["outside_port"] in (443, 53)
            for row in kept.values()
        )
    rows = again.take_records(events=True)
    ended = rows[rows["kind"] == END]["session"].tolist()
    assert sorted([*ended, *kept]) == sorted(gateway.sessions()["session"].tolist())
    counters = again.counters()
    assert counters["created"] - counters["ended"] == counters["sessions"] == len(kept)
    for at in range(30):
        assert out(again, 1 + at % 3, 6000 + at, 6.0) is Verdict.OUTBOUND
    holds(again)
    again.advance(100_000)
    assert again.counters()["ports_used"] == 0


def test_ports_of_what_ended_are_held_down_for_their_hosts() -> None:
    gateway = talkative(sessions=3)
    again = restored(saved(gateway), policy=Policy(mapping="address-and-port-dependent"))
    assert int(again.ports()["held_down"].sum()) == 3


@pytest.mark.parametrize(
    ("changes", "told"), [({"kind": "vpc"}, "kind must stay"), ({"color": 1}, "arguments of Gateway")]
)
def test_what_cannot_change_is_named(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        restored(saved(talkative(sessions=1)), **changes)


def test_another_window_closes_open_ones_when_it_is_over() -> None:
    gateway = talkative(window=600)
    again = restored(saved(gateway), window=20)
    again.take_records()
    again.advance(26.0)
    rows = again.take_records()
    assert len(rows) > 30
    assert (rows["end_time"] - rows["start_time"] <= 20_000_000).all()


# ---- files that are no state, or no longer ---------------------------------------------------------------------------


def test_every_cut_and_every_flipped_bit_is_refused() -> None:
    data, random = saved(talkative(sessions=5)), Random(1)
    for length in [*range(200), *(random.randrange(len(data)) for _ in range(100))]:
        with pytest.raises(StateError):
            restored(data[:length])
    with pytest.raises(StateError, match="longer"):
        restored(data + b"\0")
    for at in [*range(HEADER.size + SECTION.size), *(random.randrange(len(data)) for _ in range(200))]:
        other = bytearray(data)
        other[at] ^= 1 << random.randrange(8)
        with pytest.raises(StateError):
            restored(bytes(other))


def test_a_newer_version_is_refused_by_name() -> None:
    data = bytearray(saved(talkative(sessions=1)))
    data[16:20] = struct.pack("<I", VERSION + 1)
    data[32:60] = b"9.8.7".ljust(28, b"\0")
    data[60:64] = zlib.crc32(data[:60]).to_bytes(4, "little")
    with pytest.raises(StateError, match=rf"version {VERSION + 1} of the format, written by natcore 9\.8\.7"):
        restored(bytes(data))


def forged(data: bytes, random: Random, flips: int) -> bytes:
    """A state with other values in some of its rows, and the checksums of these."""
    other, at, sections = bytearray(data), HEADER.size, []
    while at < len(data):
        name, _, row_bytes, rows, _, _ = SECTION.unpack(data[at : at + SECTION.size])
        begin = at + SECTION.size
        size = row_bytes * rows
        end = begin + size + -size % 64
        sections.append((name.rstrip(b"\0").decode(), at, begin, size, end))
        at = end
    chosen = [each for each in sections if each[3] and each[0] not in ("identifications", "budgets")]
    for _ in range(flips):
        name, head, begin, size, end = random.choice(chosen)
        where = begin + random.randrange(size)
        other[where] = random.choice([0, 1, 0xFF, 0x7F, other[where] ^ 1 << random.randrange(8), random.randrange(256)])
        if random.random() < 0.3 and size >= 4:
            where = begin + random.randrange(size - 3)
            other[where : where + 4] = struct.pack("<I", random.choice([0xFFFFFFFF, 0xFFFFFFFE, 0, 1, 1 << 31, 65536]))
        other[head + 48 : head + 52] = zlib.crc32(other[begin:end]).to_bytes(4, "little")
        other[head + 60 : head + 64] = zlib.crc32(other[head : head + 60]).to_bytes(4, "little")
    return bytes(other)


@pytest.mark.parametrize("seed", range(8))
def test_a_forged_state_is_refused_or_whole(seed: int) -> None:
    """Whatever is in the rows: what is restored keeps the invariants, and packets can be translated by it."""
    pair, random = Pair(configuration(Random(seed), COUNTS)), Random(seed)
    for _ in range(120):
        pair.step(random)
    data, taken = saved(pair.gateway), 0
    for _ in range(60):
        workers = random.choice([None, None, None, 1, 2])
        changes = {} if workers is None else {"workers": workers}
        try:
            gateway = restored(forged(data, random, random.choice([1, 1, 2, 5])), **changes)
        except (StateError, ConfigurationError, CapacityError):
            continue
        taken += 1
        holds(gateway)
        now = gateway.now
        for host in range(1, 5):
            for side in Side:
                gateway.translate_one(craft.ether(craft.udp((f"10.0.0.{host}", 700), ("198.51.100.7", 53))), side, now)
        gateway.take_events()
        gateway.take_records(events=True)
        gateway.counters()
        gateway.sessions()
        gateway.take_generated()
    assert taken


def test_bytes_of_other_kinds_are_refused() -> None:
    for data in (b"", b"\0" * 64, b"PAR1" * 100, np.random.default_rng(1).bytes(5000)):
        with pytest.raises(StateError, match="no saved state"):
            restored(data)
    with pytest.raises(ConfigurationError, match="opened for bytes"):
        Gateway.restore(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="opened for bytes"):
        talkative(sessions=1).save(io.StringIO())  # type: ignore[arg-type]


def test_a_file_that_takes_little_at_a_time_gets_the_whole_state() -> None:
    class Slow(io.RawIOBase):
        def __init__(self, most: int | None) -> None:
            self.most, self.data = most, bytearray()

        def write(self, data: memoryview) -> int | None:  # type: ignore[override]
            if self.most is None:
                return None
            taken = memoryview(data).cast("B")[: self.most]
            self.data += taken
            return len(taken)

    gateway, file = talkative(), Slow(1000)
    assert gateway.save(file) == len(file.data)  # type: ignore[arg-type]
    assert len(restored(bytes(file.data)).sessions()) == len(gateway.sessions())
    with pytest.raises(BlockingIOError):
        gateway.save(Slow(None))  # type: ignore[arg-type]


def test_a_file_s_size_takes_no_memory_before_its_header_says_so(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(saved(talkative(sessions=1)))
    os.truncate(file, 1 << 42)  # without its blocks
    with pytest.raises(StateError, match="longer than it was"):
        Gateway.restore(file)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"workers": 0}, "workers must be"), ({"max_sessions": "x"}, "max_sessions must be"), ({"policy": "x"}, "policy must be"),
     ({"window": None}, "window must be"), ({"entries": ["x"]}, "entry must be SnatEntry")],
)  # fmt: skip
def test_a_wrong_argument_is_named(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        restored(saved(talkative(sessions=1)), **changes)


@pytest.mark.parametrize(("name", "value"), [("max_sessions", "x"), ("window", None), ("workers", 1.5), ("kind", 7)])
def test_forged_arguments_are_a_damaged_state(name: str, value: object) -> None:
    found = read(np.frombuffer(saved(talkative(sessions=1)), np.uint8), "x")
    settings = json.loads(found.sections[SETTINGS, 0].tobytes())
    settings["gateway"][name] = value
    sections = {**found.sections, (SETTINGS, 0): np.frombuffer(json.dumps(settings).encode(), np.uint8)}
    with pytest.raises(StateError, match=name):
        restored(b"".join(written(sections, "1")))


@pytest.mark.parametrize(
    ("section", "name", "value", "told"),
    [("gateway", "blocks_released", 1 << 32, "blocks"), ("gateway", "journal_lost", (1 << 64) - 1, "lost rows"),
     ("gateway", "reported_lifecycle_lost", 1, "lost rows"), ("worker", "now_ns", (1 << 64) - 1, "clock"),
     ("gateway", "created", (1 << 64) - 1, "more sessions"), ("worker", "created", 1 << 48, "more sessions"),
     ("gateway", "created", 0, "no number that was given"), ("sessions", "id_low", 0, "no number that was given"),
     ("sessions", "birth_ns", 1 << 63, "at no time"), ("mappings", "flags", 1, "another kind")],
)  # fmt: skip
def test_forged_counts_and_clocks_are_a_damaged_state(section: str, name: str, value: int, told: str) -> None:
    found = read(np.frombuffer(saved(talkative(sessions=9)), np.uint8), "x")
    rows = found.sections[section, 0].copy().view(dict(SECTIONS)[section])
    rows[name] = value
    with pytest.raises(StateError, match=told):
        restored(b"".join(written({**found.sections, (section, 0): rows.view(np.uint8)}, "1")))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("number", 0, "number"), ("number", 9, "number"), ("born_ns", (1 << 64) - 1, "at no time")],
)
def test_a_forged_block_is_a_damaged_state(name: str, value: int, told: str) -> None:
    found = read(np.frombuffer(saved(talkative(policy=Policy(ports="block", block_size=64))), np.uint8), "x")
    rows = found.sections["blocks", 0].copy().view(dict(SECTIONS)["blocks"])
    rows[name][0] = value
    with pytest.raises(StateError, match=told):
        restored(b"".join(written({**found.sections, ("blocks", 0): rows.view(np.uint8)}, "1")))


def test_blocks_that_a_new_policy_takes_are_counted_as_released() -> None:
    gateway = talkative(policy=Policy(ports="block", block_size=64))
    assert len(gateway.blocks()) == 3
    for policy in (
        Policy(ports="block", block_size=128),
        Policy(ports="block", block_size=64, mapping="address-and-port-dependent"),
        Policy(),
    ):
        again = restored(saved(gateway), policy=policy)
        assert len(again.blocks()) == 0
        assert saved(restored(saved(again)))  # its own state is whole
