"""What every sink shares: the batch that it is given, and the few names that it may set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from natcore.dtypes import (
    CLOCK,
    COVER,
    CREATE,
    END,
    ENTRY,
    FIELDS,
    GAP,
    RECORD,
    SETTING,
    WINDOW,
    copy_into,
    format_ipv4,
)

Records = npt.NDArray[np.void]  # of dtype RECORD
ADDRESSES = ("pri_ip", "pub_ip", "nat_ip", "eip")
TIMES = ("start_time", "end_time")
KINDS = {
    WINDOW: "window", CREATE: "create", END: "end", GAP: "gap",
    COVER: "cover", ENTRY: "entry", SETTING: "setting", CLOCK: "clock",
}  # fmt: skip
CONTRACT = ("instance", "vpc_id", *FIELDS[:13])  # the page's 15 fields, in its order
_NOTHING: Mapping[str, str] = MappingProxyType({})


def join(parts: Sequence[Records]) -> Records:
    """One RECORD array of several, copied as rows lie: numpy would copy field by field."""
    if len(parts) == 1:
        return parts[0]
    joined = np.empty(sum(map(len, parts)), RECORD)
    at = 0
    for part in parts:
        copy_into(joined[at : at + len(part)], part)
        at += len(part)
    return joined


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of one run of one gateway, in the order of their numbers.

    records: RECORD (n,), n >= 1; read only. run: names the process's run; (run, number) names a row for ever.
    A batch may come again after a failure or a crash: a receiver drops what it has by (run, number).
    """

    instance: str
    vpc_id: str
    run: str
    records: Records

    def __post_init__(self) -> None:
        if self.records.flags.writeable:  # a log's rows are those of its other destinations and of the next try
            looked_at = self.records.view()
            looked_at.flags.writeable = False
            object.__setattr__(self, "records", looked_at)

    @property
    def first_number(self) -> int:
        return int(self.records["number"][0])

    @property
    def last_number(self) -> int:
        return int(self.records["number"][-1])

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, *, local: bool = False) -> Iterator[dict[str, Any]]:
        """The rows as dicts: the 15 fields of the contract in their order, addresses dotted, times in Unix seconds.

        local: times in microseconds since 1970, and behind the 15 fields `eip` (None: the address has none),
        `session`, `number`, `kind` ("window", "create", "end", "gap"), `flags` and `run`.
        """
        names = FIELDS if local else CONTRACT[2:]
        columns = [row_column(self.records, name, local) for name in names]
        tail = {"run": self.run} if local else {}
        for values in zip(*columns, strict=True):
            yield {"instance": self.instance, "vpc_id": self.vpc_id, **dict(zip(names, values, strict=True)), **tail}


def row_column(records: Records, name: str, local: bool) -> list[Any]:
    """A field of RECORD (n,) as `Batch.rows` gives it."""
    values: list[int] = records[name].tolist()
    if name in ADDRESSES:
        text: dict[int, str | None] = {value: format_ipv4(value) for value in set(values)}
        if name == "eip":
            text[0] = None
        return [text[value] for value in values]
    if name in TIMES and not local:
        return [value // 1_000_000 for value in values]
    if name == "kind":
        return [KINDS.get(value, str(value)) for value in values]
    return values


def file_stem(batch: Batch) -> str:
    """The name of the file that begins with this batch: when its first row ended, and the row's (run, number)."""
    ended = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(int(batch.records["end_time"][0]) / 1e6))
    return f"{ended}-{batch.run}-{batch.first_number:012d}"


class Receipt(NamedTuple):
    """What a delivery cost: bytes before and after compression."""

    raw_bytes: int
    wire_bytes: int


class Sink:
    """A destination of session logs. Any object with `deliver(batch)` is one; what it does not set is as here.

    delivery_type: how the log's status names it.
    batch_rows, batch_seconds: the rows and the wait of a batch at most; None: `DeliveryPolicy.batch` and `.linger`.
    events: it takes `create` and `end` rows beside the window rows. gaps: it takes `gap` rows. facts: it takes rows
    about the log itself (natcore.sessionlog.facts), from which `who` knows what it may conclude.
    region: where it is (contract R6); None: nowhere in particular.
    destination: what identifies it, without secrets. Logs whose sinks agree in it (and in delivery_type) share
    its state 'unavailable' (contract D6); an empty one is shared with nobody.
    """

    delivery_type: str = "custom"
    batch_rows: int | None = None
    batch_seconds: float | None = None
    events: bool = False
    gaps: bool = False
    facts: bool = False
    region: str | None = None

    @property
    def destination(self) -> Mapping[str, str]:
        return _NOTHING

    def open(self) -> bool | None:
        """Called in the delivering thread before the first delivery; may raise as `deliver` does.

        False: nothing was asked of the destination, so that the log's status says "Modifying" until a delivery succeeds.
        """
        return False

    def deliver(self, batch: Batch) -> Receipt | None:
        """Return when the batch is durable, else raise.

        Raises DeliveryError(code, message, action, retry_after); any other exception means "backoff".
        """
        raise NotImplementedError

    def close(self) -> None:
        """Called once in the delivering thread, after the last delivery."""
