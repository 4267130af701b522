"""RECORD is pinned: files and sinks outlive a version."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from natcore import BLOCKS, FLOW, MAPPING, PORTS, RECORD, SESSION, Gateway, Side, SnatEntry, format_ipv4
from natcore.dtypes import FIELDS, GAP_DIED, GAP_RING, gap_row, to_arrow
from natcore.sinks import Batch
from natcore.testhooks import wrappers
from natcore.testing import craft

PINNED = {
    "protocol": ("u1", 86),
    "pri_ip": ("u4", 64),
    "pri_port": ("u2", 80),
    "pub_ip": ("u4", 68),
    "pub_port": ("u2", 82),
    "nat_ip": ("u4", 72),
    "nat_port": ("u2", 84),
    "bytes_from_pub": ("u8", 0),
    "pkts_from_pub": ("u8", 8),
    "bytes_from_vpc": ("u8", 16),
    "pkts_from_vpc": ("u8", 24),
    "start_time": ("i8", 32),
    "end_time": ("i8", 40),
    "eip": ("u4", 76),
    "session": ("u8", 48),
    "number": ("u8", 56),
    "kind": ("u1", 87),
    "flags": ("u2", 88),
}


def fields(dtype: np.dtype[np.void]) -> dict[str, tuple[np.dtype[np.void], int]]:
    assert dtype.fields is not None
    return {name: (kind, offset) for name, (kind, offset, *_) in dtype.fields.items()}


def test_record_is_pinned() -> None:
    assert RECORD.itemsize == 96
    assert {name: (kind.str.lstrip("<|"), offset) for name, (kind, offset) in fields(RECORD).items()} == PINNED


def test_the_page_s_fields_come_first_in_its_order() -> None:
    """The contract's 15 fields come first, without instance and vpc_id, which belong to the batch."""
    assert sorted(FIELDS) == sorted(RECORD.names or ())
    assert FIELDS[:13] == (
        "protocol", "pri_ip", "pri_port", "pub_ip", "pub_port", "nat_ip", "nat_port",
        "bytes_from_pub", "pkts_from_pub", "bytes_from_vpc", "pkts_from_vpc", "start_time", "end_time",
    )  # fmt: skip


def test_the_core_s_struct_agrees() -> None:
    layout, size = wrappers.record_layout()
    assert size == RECORD.itemsize
    assert layout == {name: (offset, kind.itemsize) for name, (kind, offset) in fields(RECORD).items()}


def test_rows_for_looking_are_pinned() -> None:
    assert (SESSION.itemsize, MAPPING.itemsize, PORTS.itemsize, BLOCKS.itemsize) == (112, 24, 32, 20)


@pytest.mark.parametrize("dtype", [RECORD, SESSION, MAPPING, PORTS, BLOCKS])
def test_joined_rows_keep_their_layout(dtype: np.dtype[np.void]) -> None:
    joined = np.concatenate([np.zeros(2, dtype), np.ones(3, dtype)])
    assert joined.dtype.itemsize == dtype.itemsize and fields(joined.dtype) == fields(dtype)
    assert all(kind.shape == () for kind, _ in fields(dtype).values())  # a column is a number


def test_a_session_s_hot_and_cold_part_are_a_cache_line_each() -> None:
    assert wrappers.line_sizes() == (64, 64)


@pytest.mark.parametrize(
    "address, text", [(0, "0.0.0.0"), (0xCB007101, "203.0.113.1"), (0xFFFFFFFF, "255.255.255.255")]
)
def test_addresses_are_written_as_quads(address: int, text: str) -> None:
    assert format_ipv4(address) == text
    assert format_ipv4(np.uint32(address)) == text  # type: ignore[arg-type]


def test_a_gap_row_says_when_how_many_and_why():
    (row,) = Batch("i", "v", "run1", gap_row(5, 9, 41, 12, GAP_RING)).rows(local=True)
    assert (row["kind"], row["start_time"], row["end_time"], row["number"]) == ("gap", 5, 9, 41)
    assert (row["session"], row["flags"], row["run"]) == (12, 2, "run1")
    assert {row[name] for name in ("pri_port", "pub_port", "nat_port", "protocol", "pkts_from_vpc")} == {0}
    assert gap_row(9, 5, 0, 0, GAP_DIED)["end_time"] == 9  # never negative


def test_tables_in_arrow_have_dotted_addresses_and_times() -> None:
    pytest.importorskip("pyarrow", reason="the extra natcore[parquet] is not installed")
    with Gateway(seed=1, epoch=1_700_000_000.0) as gateway:
        gateway.add(SnatEntry("10.0.0.0/8", pool="203.0.113.1"))
        frame = craft.ether(craft.udp(("10.0.0.5", 5000), ("198.51.100.7", 53)))
        gateway.translate_one(frame, Side.INSIDE, now=1.5)
        (session,) = to_arrow(gateway.sessions()).to_pylist()
        (mapping,) = to_arrow(gateway.mappings()).to_pylist()
        assert {row["eip"] for row in to_arrow(gateway.ports()).to_pylist()} == {"203.0.113.1"}
        rows = gateway.take_records(events=True)
    ends = (
        session["inside_ip"],
        session["remote_ip"],
        session["outside_ip"],
        session["inside_port"],
        session["remote_port"],
    )
    assert ends == ("10.0.0.5", "198.51.100.7", "203.0.113.1", 5000, 53)
    assert session["start_time"] == datetime.fromtimestamp(1_700_000_001.5, UTC) and session["packets_out"] == 1
    assert (mapping["inside_ip"], mapping["outside_port"]) == ("10.0.0.5", session["outside_port"])
    rows["eip"] = 0
    assert [(row["pri_ip"], row["pub_ip"], row["eip"]) for row in to_arrow(rows).to_pylist()] == [
        ("10.0.0.5", "198.51.100.7", None)
    ]


@pytest.mark.parametrize("dtype", [RECORD, SESSION, MAPPING, PORTS, BLOCKS, FLOW])
def test_every_table_has_an_arrow_form_with_all_its_fields(dtype: np.dtype) -> None:
    pytest.importorskip("pyarrow", reason="the extra natcore[parquet] is not installed")
    table = to_arrow(np.zeros(2, dtype))
    assert table.column_names == list(dtype.names or ()) and table.num_rows == 2
