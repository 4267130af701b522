"""What a query asks of a log's rows, wherever they lie: `Source`, and the parts that it consists of.

A source finds rows and tells which numbers and facts it has; what follows from them is concluded above it
(natcore.who.conclude), so that the answers are the same for all sources.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from natcore.errors import Error
from natcore.sessionlog.file_metadata import Footer
from natcore.who.conclude import Gap, Row

Value = TypeVar("Value")
REDACTED = "0.0.0.0"
_TRIES = 10  # at a query while parts move


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a log: a file, or the rows of one run in a table.

    Attributes
    ----------
    name
        The file's path, or the table's and the run's name; "": rows that are nowhere yet.
    footer
        The numbers, covers, facts and gaps that it has.
    sha256
        Of the file; "": it is none, or the hash is not known.
    """

    name: str
    footer: Footer
    sha256: str = ""

    @property
    def run(self) -> tuple[str, str]:
        """The key of its rows: the gateway's instance and its run."""
        return self.footer.instance, self.footer.run

    @property
    def order(self) -> tuple[str, str, int]:
        """The sort key: neighbours in their run are neighbours in this order."""
        return *self.run, self.footer.first_number


@dataclass(frozen=True, slots=True)
class Sought:
    """What rows must have; None: anything.

    Attributes
    ----------
    address, port
        The outside address (on the wire, or the EIP) and port.
    protocol
        IANA number.
    inside
        The inside address.
    remote
        The remote address; redacted rows, which may have it, are sought too.
    """

    address: str | None = None
    port: int | None = None
    protocol: int | None = None
    inside: str | None = None
    remote: str | None = None

    def fits(self, row: Row) -> bool:
        """Return whether the row has all of it."""
        return (
            (self.address is None or self.address in (row.nat_ip, row.eip))
            and self.port in (None, row.nat_port)
            and self.protocol in (None, row.protocol)
            and self.inside in (None, row.pri_ip)
            and (self.remote is None or row.pub_ip in (None, self.remote))
        )

    def is_in_block(self, row: Row) -> bool:
        """Return whether the port block of the row, which is one of a block, has the address, the port and the inside."""
        return (
            (self.address is None or self.address in (row.nat_ip, row.eip))
            and (self.port is None or row.nat_port <= self.port <= row.pub_port)
            and self.inside in (None, row.pri_ip)
        )


class FoundRow(NamedTuple):
    """A row, and the name of the part that it is in."""

    part: str
    row: Row


class EventRow(NamedTuple):
    """A row of a refusal, an event, or of until when these are complete (natcore.sessionlog.refusals). Times in microseconds
    since 1970."""

    instance: str
    vpc_id: str
    run: str
    sequence: int
    kind: str
    flags: int
    protocol: int
    pri_ip: str
    pub_ip: str
    pub_port: int
    nat_ip: str
    counted: int
    start: int
    end: int


class FoundEvents(NamedTuple):
    """Rows of refusals and events, and the sequences of all that there are in that time, by instance and run."""

    rows: Sequence[EventRow]
    sequences: Mapping[tuple[str, str], Sequence[tuple[int, int]]]


class LostRun(NamedTuple):
    """A run of which every part is lost. gap: when it may have been, from the part before it to the one after."""

    run: str
    gap: Gap


class PartsMoved(Error):
    """Parts have moved: they were put together, or retention removed them. Look again."""


class DamagedPart(Error):
    """A part cannot be read after all: its numbers are missing.

    parts: the names of parts that may yet serve other questions, which the caller leaves out of this one; empty: the source
    leaves what is damaged out from now on.
    """

    def __init__(self, message: str, parts: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.parts = frozenset(parts)


class Source(ABC):
    """Where the rows of session logs lie. Thread-safe; give the same one to many questions: it remembers what it read.

    Times are microseconds since 1970. `natcore.who.store.Store` (Parquet files) is one.
    """

    at_once = 1  # questions of many that are answered at the same time
    remembered: tuple[object, ...] = ()  # what the last question's answer followed from; its asker's business

    @abstractmethod
    def parts(self, start: int | None = None, end: int | None = None) -> Sequence[Part]:
        """Return the parts that may have rows which ended from start to end, and their neighbours in each run.

        What they do not tell is not known: a number that no part has is missing.
        """

    @abstractmethod
    def find(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> Sequence[FoundRow]:
        """Return the sessions' rows (window, create and end) in the parts that ended from start to end.

        Raises PartsMoved, DamagedPart.
        """

    @abstractmethod
    def find_blocks(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> Sequence[FoundRow]:
        """Return the rows of port blocks with the sought address, port and inside address in the parts that ended from start to
        end; `number` is their sequence.

        Raises PartsMoved, DamagedPart.
        """

    @abstractmethod
    def find_events(self, start: int, end: int, inside: str | None) -> FoundEvents:
        """Return the rows of refusals and events that ended from start to end; of refusals only those of an inside address,
        with those of several, if one is given.

        Raises PartsMoved, DamagedPart.
        """

    def removed(self) -> dict[str, list[Gap]]:
        """Return what retention removed, by the gateway's instance."""
        return {}

    def lost(self, start: int | None = None, end: int | None = None) -> Sequence[LostRun]:
        """Return the runs that were here, of which no part tells any more, for a time from start to end."""
        return ()

    def retried(self, read: Callable[[], Value]) -> Value:
        """Return what `read` returns; it is called again if parts have moved meanwhile."""
        for _ in range(_TRIES - 1):
            try:
                return read()
            except PartsMoved:
                continue
        return read()


def without_redacted_copies(sought: Sought, parts: Sequence[Part], found: list[FoundRow]) -> list[FoundRow]:
    """Return the rows without redacted ones of which a part that is not redacted has a copy, with another remote.

    found: of a search by the remote, each part's own rows. Where a part has the number and did not return it as redacted, it
    has the row with its remote: either that is among the found ones, or it is another one.
    """
    if sought.remote is None or not any(each.row.pub_ip is None for each in found):
        return found
    copies: dict[tuple[str, str, int], int] = {}
    for each in found:
        if each.row.pub_ip is None:
            key = (each.row.instance, each.row.run, each.row.number)
            copies[key] = copies.get(key, 0) + 1
    by_run: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        by_run.setdefault(part.run, []).append(part)

    def is_told(key: tuple[str, str, int]) -> bool:
        holding = sum(
            any(first <= key[2] <= last for first, last in part.footer.ranges) for part in by_run.get(key[:2], ())
        )
        return holding > copies[key]

    told = {key for key in copies if is_told(key)}
    return [
        each for each in found
        if each.row.pub_ip is not None or (each.row.instance, each.row.run, each.row.number) not in told
    ]  # fmt: skip
