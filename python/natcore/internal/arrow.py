"""Columns of Arrow tables: addresses as text, times in UTC."""

from __future__ import annotations

from functools import cache
from typing import Any

from natcore.internal.extras import extra

with extra("parquet"):
    import pyarrow as pa
    import pyarrow.compute as pc

TEXT = pa.dictionary(pa.int32(), pa.string())
TIME = pa.timestamp("us", tz="UTC")
_MAYBE_NONE = ("eip", "window_time")  # 0 says that there is none


def column(values: Any, name: str, *, is_address: bool, is_time: bool) -> Any:
    """Return a field of rows as an Arrow array: addresses as TEXT, microseconds since 1970 as TIME, else its numbers."""
    found = pa.array(values)
    if name in _MAYBE_NONE:
        found = pc.if_else(pc.equal(found, 0), None, found)
    if is_time:
        return found.cast(TIME)
    if is_address:
        encoded = found.dictionary_encode()
        return pa.DictionaryArray.from_arrays(encoded.indices, _dotted(encoded.dictionary))
    return found


@cache
def octet_texts() -> Any:
    """Return the texts of 0 to 255. The first `pyarrow.array` imports pandas where it is there, which takes seconds on a busy
    machine: who writes calls this before there is a row."""
    return pa.array([str(octet) for octet in range(256)])


def _dotted(addresses: Any) -> Any:
    """Return uint32 addresses in host order as dotted quads."""
    octets = [octet_texts().take(pc.bit_wise_and(pc.shift_right(addresses, shift), 255)) for shift in (24, 16, 8, 0)]
    return pc.binary_join_element_wise(*octets, ".")


def table(rows: Any) -> Any:
    """Return a pyarrow.Table of a structured array."""
    names = rows.dtype.names
    columns = [
        column(
            rows[name], name, is_address=name == "eip" or name.endswith(("_ip", "addr")), is_time=name.endswith("_time")
        )
        for name in names
    ]
    return pa.table(dict(zip(names, columns, strict=True)))
