"""What every sink shares: the batch that it is given, and the few names that it may set."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from natcore.dtypes import (
    BLOCK_ALLOCATED,
    BLOCK_RELEASED,
    CLOCK,
    COVER,
    CREATE,
    END,
    ENTRY,
    EVENT,
    EVENT_COVER,
    FIELDS,
    GAP,
    RECORD,
    REFUSAL,
    SETTING,
    WINDOW,
    chosen,
    copy_into,
    format_ipv4,
)
from natcore.internal.read_only import ReadOnly
from natcore.internal.validation import check_batch

Records = npt.NDArray[np.void]  # of dtype RECORD
LabelTexts = tuple[str | None, ...]
ADDRESSES = ("pri_ip", "pub_ip", "nat_ip", "eip")
TIMES = ("start_time", "end_time")
KINDS: Mapping[int, str] = {
    WINDOW: "window", CREATE: "create", END: "end", GAP: "gap",
    COVER: "cover", ENTRY: "entry", SETTING: "setting", CLOCK: "clock",
    BLOCK_ALLOCATED: "block-allocated", BLOCK_RELEASED: "block-released",
    REFUSAL: "refusal", EVENT: "event", EVENT_COVER: "event-cover",
}  # fmt: skip
CONTRACT = ("instance", "vpc_id", *FIELDS[:13])  # the 15 fields of docs/session-log-contract.md, in its order
_NOTHING: Mapping[str, str] = MappingProxyType({})


def join(parts: Sequence[Records]) -> Records:
    """Join RECORD arrays by copying whole rows: numpy would copy field by field."""
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

    Parameters
    ----------
    instance, vpc_id
        The gateway's.
    run
        Names the process's run; (run, number) names a row for ever, so that a receiver can drop what it has.
    records
        RECORD (n,), n >= 1; read only.
    labels
        A text, or None, for each row: the label of its inside address then; None: the log has no labels.
    """

    instance: str
    vpc_id: str
    run: str
    records: Records
    labels: LabelTexts | None = None

    def __post_init__(self) -> None:
        if self.records.flags.writeable:  # a log's rows are those of its other destinations and of the next try
            looked_at = self.records.view()
            looked_at.flags.writeable = False
            object.__setattr__(self, "records", looked_at)

    @property
    def first_number(self) -> int:
        """The number of the first row."""
        return int(self.records["number"][0])

    @property
    def last_number(self) -> int:
        """The number of the last row."""
        return int(self.records["number"][-1])

    def __len__(self) -> int:
        return len(self.records)

    def select(self, wanted: npt.NDArray[np.bool_]) -> Batch | None:
        """Return the rows for which wanted, bool (n,), is true; None: there are none."""
        if not wanted.any():
            return None
        labels = None if self.labels is None else tuple(itertools.compress(self.labels, wanted.tolist()))
        return replace(self, records=chosen(self.records, wanted), labels=labels)

    def rows(self, *, local: bool = False) -> Iterator[dict[str, Any]]:
        """Give the rows as dicts: the 15 fields of the contract in their order, addresses dotted, times in Unix seconds.

        Parameters
        ----------
        local
            True: times are microseconds since 1970, and `eip` (None: the address has none), `session`, `number`,
            `kind`, `flags` and `run` follow the 15 fields, and `label`, where the log has labels.

        Returns
        -------
        iterator of dict
            One a row.
        """
        names = FIELDS if local else CONTRACT[2:]
        columns = [row_column(self.records, name, local) for name in names]
        tail = {"run": self.run} if local else {}
        labels = self.labels if local and self.labels is not None else ()
        for values, label in itertools.zip_longest(zip(*columns, strict=True), labels):
            row = {"instance": self.instance, "vpc_id": self.vpc_id, **dict(zip(names, values, strict=True)), **tail}
            yield row | {"label": label} if labels else row


def row_column(records: Records, name: str, local: bool) -> list[Any]:
    """Return a field of RECORD (n,) in the form of `Batch.rows`."""
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


def row_tails(labels: LabelTexts, encode: Callable[[str | None], bytes]) -> dict[str, npt.NDArray[Any]]:
    """Return each row's label, encoded once for all that have the same, as the encoders of natcore.log take them: `texts`,
    uint8; `offsets`, uint32, where each text begins and the last one ends; `numbers`, uint32 (n,), of each row's text."""
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    encoded = [encode(label) for label in places]
    return {
        "texts": np.frombuffer(b"".join(encoded) or b"\0", np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)], dtype=np.uint32),
        "numbers": np.fromiter(map(places.__getitem__, labels), np.uint32, len(labels)),
    }


def file_stem(batch: Batch) -> str:
    """Return the name of a file that begins with this batch: the end of its first row, and that row's run and number."""
    ended = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(int(batch.records["end_time"][0]) / 1e6))
    return f"{ended}-{batch.run}-{batch.first_number:012d}"


class Receipt(NamedTuple):
    """What a delivery cost.

    Parameters
    ----------
    raw_bytes
        Bytes before compression.
    wire_bytes
        Bytes as they were sent.
    """

    raw_bytes: int
    wire_bytes: int


class Sink(Protocol):
    """What a session log delivers to: any object with this method. `BaseSink` has what else a sink may set."""

    def deliver(self, batch: Batch, /) -> Receipt | None:
        """Return when the batch is durable, else raise.

        Parameters
        ----------
        batch
            The rows.

        Returns
        -------
        Receipt or None
            What the delivery cost.

        Raises
        ------
        DeliveryError
            What the log does next is its action; any other exception means "backoff".
        """
        ...


class BaseSink:
    """A destination of session logs; any object with `deliver(batch)` is one, and what it does not set is as here.

    Attributes
    ----------
    delivery_type
        How the log's status names it.
    batch_rows
        Rows of a batch at most; None: `DeliveryPolicy.batch`.
    batch_seconds
        Seconds that a batch may wait to fill; None: `DeliveryPolicy.linger`.
    events
        It takes create and end rows beside the window rows.
    gaps
        It takes gap rows.
    blocks
        It takes rows of port blocks.
    refusals
        It takes rows of refusals and events, where a log is asked for them.
    facts
        It takes rows about the log itself, from which `who` knows what it may conclude.
    labels
        It takes the labels of a batch.
    region
        Where it is (docs/session-log-contract.md R6); None: nowhere in particular.
    """

    delivery_type: str = "custom"
    batch_rows: int | None = None
    batch_seconds: float | None = None
    events: bool = False
    gaps: bool = False
    blocks: bool = False
    refusals: bool = False
    facts: bool = False
    labels: bool = False
    region: str | None = None

    @property
    def destination(self) -> Mapping[str, str]:
        """What identifies the destination, without secrets.

        Logs with sinks that agree in it, and in delivery_type, share its state 'unavailable' (contract D6); an empty
        one is shared with no other log.
        """
        return _NOTHING

    def open(self) -> bool | None:
        """Called in the delivering thread before the first delivery; it may raise as `deliver` does.

        Returns
        -------
        bool or None
            False: the destination was asked nothing, so that the log's status is "Modifying" until a delivery
            succeeds.
        """
        return False

    def deliver(self, batch: Batch) -> Receipt | None:
        """Return when the batch is durable, else raise.

        Parameters
        ----------
        batch
            Rows of one run, in the order of their numbers. A batch may come again after a failure or a crash.

        Returns
        -------
        Receipt or None
            Bytes before and after compression, for the log's counters.

        Raises
        ------
        DeliveryError
            With a code, a message, an action ("backoff", "unavailable", "split", "reject") and a retry_after. Any
            other exception means "backoff".
        """
        raise NotImplementedError

    def close(self) -> None:
        """Called once in the delivering thread, after the last delivery."""


class BatchedSink(BaseSink):
    """A sink that is told how large its batches are; a log reads that when it starts, so that it cannot be set later."""

    batch_rows: ReadOnly[int | None] = ReadOnly("Rows of a batch at most; None: `DeliveryPolicy.batch`.")
    batch_seconds: ReadOnly[float | None] = ReadOnly(
        "Seconds that a batch may wait to fill; None: `DeliveryPolicy.linger`."
    )

    def __init__(self, batch_rows: int | None, batch_seconds: float | None) -> None:
        self._batch_rows, self._batch_seconds = check_batch(batch_rows, batch_seconds)
