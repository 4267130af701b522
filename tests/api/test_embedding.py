"""The library as an embedder meets it: what it gave is taken back, nothing lies, bad input gets a natcore.Error."""

from __future__ import annotations

import subprocess
import sys
import warnings
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import natcore
from natcore import (
    Behaviour,
    ConfigurationError,
    DeliveryPolicy,
    DnatEntry,
    Eip,
    Error,
    Gateway,
    Link,
    NoNatEntry,
    Policy,
    Side,
    SnatEntry,
    Timeouts,
    Verdict,
)  # fmt: skip
from natcore.entries.changes import Add, Remove, Replace
from natcore.internal.read_only import ReadOnly
from natcore.plane.plane import Plane
from natcore.sinks import Batch, JsonLinesSink, MemorySink, ParquetSink
from support.arrays import arrays
from support.frames import HOST, REMOTE, gateway, udp
from support.search import examples

# ---- what natcore gave ---------------------------------------------------------------------------------------------------


def test_addresses_times_and_counts_of_its_own_arrays_are_taken_back() -> None:
    over = gateway()
    frames, lengths = arrays(udp(), udp(sport=7))
    over.translate(frames, lengths, np.uint8(0), np.float32(1.5))
    (row, _) = over.sessions()
    assert over.owner(frames, lengths, np.int64(0)).tolist() == [0, 0]
    assert over.translate_one(udp(), np.uint8(0), row["last_seen_ns"] / 1e9, worker=np.int64(0))[0] == 0
    assert over.end(subscriber=row["inside_ip"], remote=row["remote_ip"], outside=row["outside_ip"],
                    protocol=row["protocol"], now=row["last_seen_ns"] / 1e9) == 2  # fmt: skip
    over.advance(np.int64(700))
    assert over.counters(np.uint8(0))["ended"] == 2
    over.set_epoch(np.int64(1_700_000_000))


def test_numbers_of_numpy_configure_a_gateway() -> None:
    made = Gateway(
        max_sessions=np.int64(100), workers=np.uint8(2), window=np.float32(60), records=np.int32(64), seed=np.int64(5),
        epoch=Fraction(3, 2), inside=Link(address=np.uint32(0x0A000001), mtu=np.uint16(1400)), decrement_ttl=np.bool_(True),
        timeouts=Timeouts(udp=np.int64(300)),
        policy=Policy(port_ranges=np.array([[1024, 2047]]), icmp_rate=np.int64(5), hold_down=np.float32(1)),  # type: ignore[arg-type]
    )  # fmt: skip
    assert made.policy.port_ranges == ((1024, 2047),) and type(made.policy.port_ranges[0][0]) is int
    assert (type(made.workers), type(made.policy.icmp_rate), type(made.window)) == (int, int, float)
    made.add(SnatEntry("10.0.0.0/8", pool=[np.uint32(0xCB007101)]))
    made.add(DnatEntry(np.uint32(0xCB007101), np.uint16(443), np.uint32(0x0A000005), np.int64(8443)))
    assert made.entries()[1].describe() == "entry 2 (tcp 203.0.113.1:443)"


def test_rows_become_data_frames_and_tables() -> None:
    import pyarrow

    over = gateway()
    over.translate_one(udp(), Side.INSIDE, 1.0)
    for rows in (over.sessions(), over.mappings(), over.ports()):
        table = pyarrow.table({name: rows[name] for name in rows.dtype.names})
        assert table.num_rows == len(rows) and table.num_columns == len(rows.dtype.names)
        assert all(rows[name].ndim == 1 for name in rows.dtype.names)  # what pandas.DataFrame(rows) wants
    assert over.sessions().dtype.names[-1] == "opened_outside" and "reserved" not in over.mappings().dtype.names


# ---- what may be looked at, and not set -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "instance", "vpc_id", "region", "kind", "billing", "eip_bind_mode", "seed", "policy", "timeouts", "window", "framing",
    "inside", "outside", "records", "workers",
])  # fmt: skip
def test_a_gateway_s_attributes_are_read_only(name: str) -> None:
    over = gateway()
    before = getattr(over, name)
    with pytest.raises(AttributeError, match=f"Gateway.{name} is read-only"):
        setattr(over, name, before)
    with pytest.raises(AttributeError, match="read-only"):
        delattr(over, name)
    assert getattr(over, name) is before


def test_a_misspelt_attribute_is_refused() -> None:
    over = gateway()
    with pytest.raises(AttributeError, match="polcy"):
        over.polcy = Policy()  # type: ignore[attr-defined]


def test_an_entry_s_handle_is_read_only() -> None:
    entry = gateway().entries()[0]
    for name in ("id", "entry"):
        with pytest.raises(AttributeError):
            setattr(entry, name, getattr(entry, name))


@pytest.mark.parametrize("name", ["name", "redact_destination", "on_failure"])
def test_a_session_log_s_attributes_are_read_only(name: str) -> None:
    with gateway() as over:
        log = over.start_session_log(MemorySink(), name="audit")
        before = getattr(log, name)
        with pytest.raises(AttributeError, match=f"SessionLog.{name} is read-only"):
            setattr(log, name, "other")
        assert getattr(log, name) is before


def test_a_sink_s_attributes_are_read_only(tmp_path: Path) -> None:
    for sink in (JsonLinesSink(tmp_path), ParquetSink(tmp_path)):
        assert sink.folder == tmp_path
        with pytest.raises(AttributeError, match="folder is read-only"):
            sink.folder = tmp_path / "other"  # type: ignore[misc]


def test_a_plane_s_attributes_are_read_only() -> None:
    assert {name for name, value in vars(Plane).items() if isinstance(value, ReadOnly)} == {
        "inside",
        "outside",
        "offset_ns",
    }


def test_the_records_of_a_batch_are_read_only() -> None:
    rows = np.zeros(2, natcore.RECORD)
    assert not Batch("i", "v", "run", rows).records.flags.writeable and rows.flags.writeable
    sink = MemorySink()
    seen: list[Batch] = []

    class Mine(MemorySink):
        def deliver(self, batch: Batch) -> Any:
            seen.append(batch)
            with pytest.raises(ValueError, match="read-only"):
                batch.records["pri_ip"] = 0
            return super().deliver(batch)

    over = gateway()
    log, _ = over.start_session_log(sink), over.start_session_log(Mine())
    over.translate_one(udp(), Side.INSIDE, 1.0)
    over.close()
    assert seen and (np.concatenate([batch.records for batch in seen])["pri_ip"] == int(IPv4Address(HOST))).all()
    assert log.counters()["lost"] == 0


# ---- what is not of this gateway, or comes too late ------------------------------------------------------------------------


def test_a_plan_of_one_gateway_does_not_apply_to_another() -> None:
    one, other = gateway(), gateway()
    plan = one.plan([Remove(one.entries()[0])])
    with pytest.raises(Error, match="another gateway"):
        other.apply(plan)
    assert one.apply(plan).ended == 0


@pytest.mark.parametrize("call", [
    lambda made: made.add(SnatEntry("10.9.0.0/16", pool="203.0.113.9")),
    lambda made: made.translate_one(udp(), 0, 1.0),
    lambda made: made.translate(*arrays(udp()), 0, 1.0),
    lambda made: made.end_all(),
    lambda made: made.advance(5.0),
    lambda made: made.explain(udp(), 0),
    lambda made: made.start_session_log(MemorySink()),
    lambda made: made.set_epoch(5.0),
    lambda made: made.modify(eip_bind_mode="NAT"),
    lambda made: made.forward(inside="x", outside="y"),
])  # fmt: skip
def test_use_after_close_is_refused(call: Any) -> None:
    over = gateway()
    over.close()
    with pytest.raises(Error, match="closed"):
        call(over)


def test_what_a_closed_gateway_had_can_still_be_looked_at() -> None:
    over = gateway()
    over.translate_one(udp(), Side.INSIDE, 1.0)
    over.close()
    assert over.counters()["forwarded"] == 1 and len(over.sessions()) == 1
    assert over.take_generated() == [] and over.entries()


def test_a_class_instead_of_a_sink_is_refused() -> None:
    for sink in (MemorySink, object(), None, "memory", {"deliver": 5}):
        with pytest.raises(ConfigurationError, match=r"sink must .*deliver.*, got "):
            gateway().start_session_log(sink)


def test_a_log_that_its_own_sink_stops_is_refused() -> None:
    over = gateway()
    refused: list[str] = []

    class Mine(MemorySink):
        def deliver(self, batch: Batch) -> Any:
            try:
                over.stop_session_log(log)
            except Error as error:
                refused.append(str(error))
            return super().deliver(batch)

    log = over.start_session_log(Mine())
    over.translate_one(udp(), Side.INSIDE, 1.0)
    over.close()
    assert refused and "deliver" in refused[0]


def test_ipv6_is_unsupported_with_either_framing() -> None:
    packet = bytes([0x60]) + bytes(39)
    for framing, frame in (("ip", packet), ("ethernet", bytes(12) + b"\x86\xdd" + packet)):
        with Gateway(max_sessions=10, framing=framing) as over:
            assert over.translate_one(frame, Side.INSIDE, 1.0) == (Verdict.DROP_UNSUPPORTED, None)
            assert over.explain(frame, Side.INSIDE).verdict is Verdict.DROP_UNSUPPORTED


# ---- memory ----------------------------------------------------------------------------------------------------------------


def test_lengths_that_another_thread_changes_are_never_read_beyond_their_row() -> None:
    """In a process of its own: behind the last row lies a page that may not be read. The last rows claim to be
    fragments of 1,480 bytes that have to wait for their first one, and are copied for that as far as the length says."""
    script = """
import ctypes, mmap, os, struct, sys, threading
import numpy as np
from natcore import ConfigurationError, Gateway, SnatEntry
page, rows, stride = mmap.PAGESIZE, 4096, 64
area = mmap.mmap(-1, rows * stride + page)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + rows * stride), page, 0) == 0
frames = np.frombuffer(area, np.uint8, rows * stride).reshape(rows, stride)
def row(identifier):
    head = bytearray(34)
    head[12:14] = b"\\x08\\x00"
    addresses = bytes([10, 0, 0, 5, 198, 51, 100, 7])
    head[14:34] = struct.pack("!BBHHHBBH8s", 0x45, 0, 1480, identifier, 1, 64, 17, 0, addresses)
    words = sum(struct.unpack("!10H", head[14:34]))
    words = (words & 0xFFFF) + (words >> 16)
    head[24:26] = struct.pack("!H", ~((words & 0xFFFF) + (words >> 16)) & 0xFFFF)
    return np.frombuffer(bytes(head), np.uint8)
for i in range(rows - 16, rows):
    frames[i, :34] = row(i)
lengths = np.full(rows, stride, np.uint32)
made = Gateway(max_sessions=10)
made.add(SnatEntry("10.0.0.0/8", pool="203.0.113.1"))
sys.setswitchinterval(1e-4)
last, going = lengths[-16:], True
def change():  # few enough to be written without a release of the lock: while translate has released it
    while going:
        last[:] = 0x7FFFFFFF
thread = threading.Thread(target=change)
thread.start()
taken = turn = 0
while taken < 300:
    turn += 1
    last[:] = stride
    try:
        made.translate(frames, lengths, 0, 10.0 * turn)
        taken += 1
    except ConfigurationError:  # they were changed before it began
        pass
going = False
thread.join()
os._exit(0)  # the protected page is never given back
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run


# ---- any argument ----------------------------------------------------------------------------------------------------------


class Hostile:
    """What a caller would pass by mistake: nothing about it works."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __index__(self) -> int:
        raise OverflowError("no index")

    def __float__(self) -> float:
        raise OverflowError("no float")


ODD: list[Any] = [
    None,
    True,
    False,
    np.bool_(True),
    0,
    1,
    2,
    -1,
    255,
    256,
    10**400,
    -(10**400),
    10**5000,
    2**31,
    2**32,
    2**63,
    2**64,
    0.0,
    -0.0,
    0.5,
    1e308,
    1e-320,
    float("inf"),
    float("-inf"),
    float("nan"),
    complex(1, 1),
    Fraction(1, 3),
    Fraction(10**400),
    "",
    "x",
    "\ud800",
    "a\0b",
    "tcp",
    "any",
    "block",
    "10.0.0.5",
    "10.0.0.0/8",
    "203.0.113.1-203.0.113.5",
    "0.0.0.0/0",
    "x" * 5000,
    b"",
    b"\xff" * 60,
    bytearray(60),
    memoryview(bytes(64))[::2],
    memoryview(bytes(64)).cast("I"),
    memoryview(np.zeros((4, 4))),
    (),
    (1, 2),
    (1, "x"),
    [],
    [1],
    [[1, 2], [3]],
    [None],
    {},
    {"udp": 300},
    set(),
    object(),
    Hostile(),
    [Hostile()],
    int,
    Gateway,
    MemorySink,
    np.uint32(5),
    np.int64(-5),
    np.float32("nan"),
    np.float64(1e300),
    np.array(5),
    np.zeros(3),
    np.zeros((2, 2), np.uint8),
    np.zeros(2, np.uint32),
    np.zeros((0, 0), np.uint8),
    np.array("x"),
    np.array([None]),
    np.datetime64("NaT"),
    Side.OUTSIDE,
    IPv4Address(5),
    Link(),
    Policy(),
    Timeouts(),
    Behaviour(),
    Eip("203.0.113.9"),
    udp(),
    SnatEntry("10.0.0.0/8", pool="203.0.113.1"),
    NoNatEntry("10.0.0.0/8", "10.0.0.0/8"),
    Path("/nonexistent/\0"),
    range(5),
    iter([1]),
    lambda: 5,
]
ANY = (
    st.integers(0, len(ODD) - 1).map(ODD.__getitem__)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=70)
)
FRAMES, LENGTHS = arrays(udp(), udp(sport=7))

# Each public function with arguments that it takes; each is replaced by anything in turn.
GATEWAY: dict[str, Any] = {
    "instance": "",
    "vpc_id": "",
    "region": "",
    "kind": "vpc",
    "eip_bind_mode": "NAT",
    "billing": "by-usage",
    "max_sessions": 10,
    "max_mappings": 10,
    "max_subscribers": 10,
    "workers": 1,
    "window": 60.0,
    "records": 64,
    "epoch": 0.0,
    "inside": None,
    "outside": None,
    "decrement_ttl": True,
    "framing": "ethernet",
    "timeouts": None,
    "policy": None,
    "seed": 5,
    "huge_pages": "auto",
    "numa_node": None,
}
POLICY = {name: getattr(Policy(), name) for name in Policy.__dataclass_fields__}
FUNCTIONS: list[tuple[str, Any, dict[str, Any]]] = [
    ("Gateway", lambda over, **given: Gateway(**given).close(), GATEWAY),
    ("Policy", lambda over, **given: Policy(**given), POLICY),
    ("Timeouts", lambda over, **given: Timeouts(**given), dict.fromkeys(Timeouts.__dataclass_fields__, 300.0)),
    ("Behaviour", lambda over, **given: Behaviour(**given), {"mapping": None, "filtering": None}),
    (
        "DeliveryPolicy",
        lambda over, **given: DeliveryPolicy(**given),
        {name: getattr(DeliveryPolicy(), name) for name in DeliveryPolicy.__dataclass_fields__},
    ),
    ("Link", lambda over, **given: Link(**given), {"address": None, "mtu": 1500}),
    ("Eip", lambda over, **given: Eip(**given), {"address": "203.0.113.1", "private_ip": None}),
    (
        "SnatEntry",
        lambda over, **given: over.add(SnatEntry(**given)),
        {"source": "10.7.0.0/16", "pool": "203.0.113.7", "name": None},
    ),
    (
        "DnatEntry",
        lambda over, **given: over.add(DnatEntry(**given)),
        {
            "external_ip": "203.0.113.8",
            "external_port": 443,
            "internal_ip": "10.0.0.5",
            "internal_port": 443,
            "protocol": "tcp",
            "name": None,
        },
    ),
    (
        "NoNatEntry",
        lambda over, **given: over.add(NoNatEntry(**given)),
        {"source": "10.0.0.0/8", "destination": "10.0.0.0/8", "name": None},
    ),
    ("add", lambda over, **given: over.add(**given), {"entry": NoNatEntry("10.0.0.0/8", "10.3.0.0/16")}),
    ("plan", lambda over, **given: over.plan(**given), {"changes": []}),
    ("plan of an Add", lambda over, entry: over.plan([Add(entry)]), {"entry": NoNatEntry("10.0.0.0/8", "10.3.0.0/16")}),
    ("plan of a Remove", lambda over, entry, drain: over.plan([Remove(entry, drain)]), {"entry": 0, "drain": True}),
    ("plan of a Replace", lambda over, entry, by: over.plan([Replace(entry, by)]), {"entry": 0, "by": 0}),
    ("apply", lambda over, **given: over.apply(**given), {"plan": 0, "now": None}),
    ("remove", lambda over, **given: over.remove(**given), {"entry": 0, "drain": True, "now": None}),
    ("replace", lambda over, **given: over.replace(**given), {"entry": 0, "by": 0, "now": None}),
    (
        "end",
        lambda over, **given: over.end(**given),
        {"subscriber": HOST, "remote": REMOTE, "outside": "203.0.113.1", "protocol": 6, "now": None},
    ),
    ("end_all", lambda over, **given: over.end_all(**given), {"now": None}),
    ("modify", lambda over, **given: over.modify(**given), {"eip_bind_mode": "NAT", "now": None}),
    (
        "translate",
        lambda over, **given: over.translate(**given),
        {"frames": FRAMES, "lengths": LENGTHS, "side": 0, "now": 1.0, "out": None, "worker": None},
    ),
    (
        "translate_one",
        lambda over, **given: over.translate_one(**given),
        {"frame": udp(), "side": 0, "now": 1.0, "worker": None},
    ),
    ("explain", lambda over, **given: str(over.explain(**given)), {"frame": udp(), "side": 0, "now": None}),
    ("advance", lambda over, **given: over.advance(**given), {"now": 1.0}),
    ("owner", lambda over, **given: over.owner(**given), {"frames": FRAMES, "lengths": LENGTHS, "side": 0}),
    (
        "forward",
        lambda over, **given: over.forward(**given).stop(),
        {
            "inside": "natcore-none0",
            "outside": "natcore-none1",
            "driver": "af_packet",
            "favour": "latency",
            "threads": False,
            "cpus": None,
        },
    ),
    ("counters", lambda over, **given: over.counters(**given), {"worker": None}),
    ("sessions", lambda over, **given: over.sessions(**given), {"out": None}),
    ("who", lambda over, **given: over.who(**given), {"address": "203.0.113.1", "port": 1024, "protocol": None}),
    ("ports_of", lambda over, **given: over.ports_of(**given), {"inside": HOST}),
    (
        "start_session_log",
        lambda over, **given: over.start_session_log(**given),
        {"sink": MemorySink(), "name": None, "spool": None, "delivery": None, "redact_destination": False},
    ),
    ("stop_session_log", lambda over, **given: over.stop_session_log(**given), {"log": 0, "timeout": 1.0}),
    ("take_records", lambda over, **given: over.take_records(**given), {"events": False}),
    ("set_epoch", lambda over, **given: over.set_epoch(**given), {"epoch": 0.0}),
    ("format_ipv4", lambda over, **given: natcore.format_ipv4(**given), {"address": 5}),
]


LARGE = ("max_sessions", "max_mappings", "max_subscribers", "records")  # a number may be allowed there and take long


@pytest.mark.parametrize("name, function, good", FUNCTIONS, ids=[name for name, _, _ in FUNCTIONS])
def test_any_argument_is_taken_or_refused_with_an_error_of_natcore(
    name: str, function: Any, good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a spool is a folder of any name

    def attempt(over: Gateway, key: str, value: Any) -> None:
        if key in LARGE and isinstance(value, int) and not isinstance(value, bool) and 100_000 < value <= 1 << 30:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(over, **{**good, key: value})
            except Error as error:
                assert len(str(error)) < 2000 and str(error).isprintable(), error

    with gateway() as over:

        @given(key=st.sampled_from(sorted(good)), value=ANY)
        @settings(examples(25), database=None)
        def any_of_them(key: str, value: Any) -> None:
            attempt(over, key, value)

        any_of_them()
        for key in good:
            for value in ODD:
                attempt(over, key, value)
