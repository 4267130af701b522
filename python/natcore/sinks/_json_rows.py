"""Rows as JSON objects, for the sinks that write them."""

from __future__ import annotations

from typing import Any

from natcore.dtypes import FIELDS
from natcore.internal.json_fields import compact
from natcore.sinks.base import Batch, row_column


def json_rows(batch: Batch) -> list[str]:
    """Return each row of `batch.rows(local=True)` as one JSON object, without the line's end."""
    names = {"instance": compact(batch.instance), "vpc_id": compact(batch.vpc_id)}
    head = ",".join(f'"{name}":{text}' for name, text in names.items()).replace("%", "%%")
    row = ",".join(f'"{name}":%s' for name in FIELDS)
    tail = compact(batch.run).replace("%", "%%")
    columns = [_texts(row_column(batch.records, name, local=True)) for name in FIELDS]
    if batch.labels is not None:
        tail += ',"label":%s'
        quoted = {label: "null" if label is None else compact(label) for label in set(batch.labels)}
        columns.append([quoted[label] for label in batch.labels])
    template = f'{{{head},{row},"run":{tail}}}'
    return [template % values for values in zip(*columns, strict=True)]


def _texts(values: list[Any]) -> list[Any]:
    """Return a column's values as JSON: numbers as they are, texts encoded once each."""
    if isinstance(values[0], int):
        return values
    quoted = {value: compact(value) for value in set(values)}
    return [quoted[value] for value in values]
