"""Labels of inside addresses: which account, line or device had an address at a time, from tables that others keep.

An answer names an inside address; who that was then is told by a table of prefixes with times, by the leases of a DHCP
server, or by a function. A label is what such a table says, and no conclusion from the log.
"""

from __future__ import annotations

import csv
import ipaddress
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from natcore.errors import ConfigurationError
from natcore.internal.files import read_regular
from natcore.internal.redaction import show
from natcore.internal.validation import digits

ALWAYS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ASSIGNED, _RECLAIMED = "0", "2"  # Kea's states of a lease; 2: it has expired, at the time that is told already
_MOST_REMEMBERED = 1 << 20  # addresses


@dataclass(frozen=True, slots=True)
class Label:
    """What a table says of addresses.

    Attributes
    ----------
    network
        The addresses.
    text
        The label.
    start, end
        Since when, and until when (not included), with a time zone.
    """

    network: ipaddress.IPv4Network
    text: str
    start: datetime = ALWAYS[0]
    end: datetime = ALWAYS[1]


class Labels(ABC):
    """Something that knows labels of inside addresses. Thread-safe."""

    @abstractmethod
    def find(self, address: IPv4Address, start: datetime, end: datetime) -> Sequence[str]:
        """Return the labels of the address from start to end, each once, in the order of their begin."""

    def find_each(self, addresses: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> list[str | None]:
        """Return the label of each address from its start to its end, for rows of a log.

        Parameters
        ----------
        addresses
            As integers.
        starts, ends
            Microseconds since 1970, one of each an address.

        Returns
        -------
        list of str or None
            One an address; several labels with "; " between them; None: it has none then.
        """
        return [
            joined(self.find(IPv4Address(address), _moment_at(start), _moment_at(end)))
            for address, start, end in zip(addresses, starts, ends, strict=True)
        ]


class CalledLabels(Labels):
    """Labels by a function.

    Parameters
    ----------
    call
        It is given an address, a start and an end, and returns the labels.
    """

    def __init__(self, call: Callable[[IPv4Address, datetime, datetime], Iterable[str]]) -> None:
        self._call = call

    def find(self, address: IPv4Address, start: datetime, end: datetime) -> list[str]:
        """Return what the function returns."""
        return [str(text) for text in self._call(address, start, end)]


class LabelFile(Labels):
    """Labels of a file, which is read again when it has changed.

    Parameters
    ----------
    path
        The file.
    form
        "csv": a heading with `prefix` (or `address`) and `label`, and `from` and `until` as ISO 8601 times with a zone, either
        of which may be empty. "dnsmasq": its leases now; the file does not say since when, and the label says so. "kea": the
        lease file of its memfile backend, from `expire - valid_lifetime` to `expire`. The label of a lease is its hardware
        address, with the host's name behind it.

    Raises
    ------
    ConfigurationError
        The file cannot be read, or a line is wrong: it is named.
    """

    def __init__(self, path: str | os.PathLike[str], form: str = "csv") -> None:
        if form not in _READERS:
            raise ConfigurationError(f"form must be {', '.join(map(repr, _READERS))}, got {show(form)}")
        self.path, self._form = Path(path), form
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._labels: dict[tuple[int, int], list[_Span]] = {}  # by prefix length and the prefix's bits
        self._prefixes: list[int] = []  # lengths, the longest first
        self._remembered: dict[int, tuple[list[_Span], ...]] = {}  # of addresses
        self._refresh()

    def find(self, address: IPv4Address, start: datetime, end: datetime) -> list[str]:
        """Return the labels of the longest prefix that has one then: a host's goes before its network's."""
        with self._lock:
            self._refresh()
            return _texts(self._spans(int(address)), _micros(start), _micros(end))

    def find_each(self, addresses: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> list[str | None]:
        """Return the label of each address from its start to its end, for rows of a log: the file is looked at once."""
        with self._lock:
            self._refresh()
            return [
                joined(_texts(self._spans(address), start, end))
                for address, start, end in zip(addresses, starts, ends, strict=True)
            ]

    def _spans(self, address: int) -> tuple[list[_Span], ...]:
        """Return the labels of each prefix that has the address, the longest first."""
        found = self._remembered.get(address)
        if found is None:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            keys = ((length, address >> 32 - length) for length in self._prefixes)
            found = self._remembered[address] = tuple(self._labels[key] for key in keys if key in self._labels)
        return found

    def _refresh(self) -> None:
        try:
            stat = self.path.stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if stamp == self._stamp:
                return
            text = read_regular(self.path).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigurationError(f"labels must be a readable file, got {show(str(self.path))}: {why}") from error
        labels: dict[tuple[int, int], list[_Span]] = {}
        try:
            for label in _READERS[self._form](text.splitlines()):
                length = label.network.prefixlen
                key = length, int(label.network.network_address) >> 32 - length
                labels.setdefault(key, []).append(_Span(_micros(label.start), _micros(label.end), label.text))
        except (
            ValueError,
            OverflowError,
            OSError,
            csv.Error,
        ) as error:  # OverflowError, OSError: a time without a date
            raise ConfigurationError(f"{self.path}: {error}") from error
        for spans in labels.values():
            spans.sort(key=lambda span: span.start)
        self._labels, self._stamp = labels, stamp
        self._prefixes = sorted({length for length, _ in labels}, reverse=True)
        self._remembered.clear()


class _Span(NamedTuple):
    """A label from start until end, microseconds since 1970."""

    start: int
    end: int
    text: str


def _texts(prefixes: Iterable[Sequence[_Span]], start: int, end: int) -> list[str]:
    for spans in prefixes:
        found = [text for begin, until, text in spans if begin <= end and until > start]
        if found:
            return found if len(found) == 1 else list(dict.fromkeys(found))
    return []


def joined(texts: Sequence[str]) -> str | None:
    """Return labels as one text; None: there are none."""
    return "; ".join(texts) or None


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _moment_at(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


LabelSource = Labels | Callable[[IPv4Address, datetime, datetime], Iterable[str]] | str | os.PathLike[str]


def labels_at(text: str) -> Labels:
    """Return the labels of a file: its path, or `dnsmasq:PATH`, or `kea:PATH`. Raises ConfigurationError."""
    form, colon, path = text.partition(":")
    return LabelFile(path, form) if colon and form in _READERS else LabelFile(text)


def _csv(lines: Sequence[str]) -> Iterator[Label]:
    reader = csv.DictReader(lines, restkey="", skipinitialspace=True)
    for row in reader:
        where = f"line {reader.line_num}"
        prefix = row.get("prefix") or row.get("address")
        if not prefix or not row.get("label"):
            raise ValueError(f"{where} must have a prefix (or address) and a label")
        start = _moment(where, row.get("from")) or ALWAYS[0]
        end = _moment(where, row.get("until")) or ALWAYS[1]
        if end <= start:
            raise ValueError(f"{where}: until must be after from")
        try:
            yield Label(ipaddress.IPv4Network(prefix), row["label"], start, end)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _dnsmasq(lines: Sequence[str]) -> Iterator[Label]:
    """EXPIRY MAC ADDRESS NAME CLIENT-ID; 0: it never expires; lines of IPv6 follow `duid`."""
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if fields[:1] == ["duid"]:
            return
        if len(fields) < 4 or (expiry := digits(fields[0])) is None:
            raise ValueError(f"line {number} is no lease of dnsmasq")
        text = (
            fields[1] if fields[3] == "*" else f"{fields[1]} {fields[3]}"
        ) + " (the lease when asked; since when is not known)"
        end = datetime.fromtimestamp(expiry, UTC) if expiry else ALWAYS[1]
        yield Label(ipaddress.IPv4Network(fields[2]), text, ALWAYS[0], end)


def _kea(lines: Sequence[str]) -> Iterator[Label]:
    """The columns address, hwaddr, valid_lifetime, expire, hostname and state; a lease is told again at each change, and one
    that ended early with a lifetime of 0 or another state."""
    told: dict[str, list[Label]] = {}
    for row in csv.DictReader(lines):
        address = row.get("address")
        seconds, expire = digits(row.get("valid_lifetime") or ""), digits(row.get("expire") or "")
        if not address or seconds is None or expire is None:
            raise ValueError(f"{address or 'a line'} is no lease of Kea")
        state = row.get("state") or "0"
        if state == _RECLAIMED:
            continue
        end = datetime.fromtimestamp(expire, UTC)
        begun = end - timedelta(seconds=seconds)
        of_address = told.setdefault(address, [])
        if of_address and of_address[-1].end > begun:  # renewed, released, or of another host from now on
            of_address[-1] = replace(of_address[-1], end=max(begun, of_address[-1].start))
        if seconds and state == _ASSIGNED:
            text = " ".join(filter(None, (row.get("hwaddr"), (row.get("hostname") or "").rstrip("."))))
            of_address.append(Label(ipaddress.IPv4Network(address), text, begun, end))
    for labels in told.values():
        yield from (label for label in labels if label.end > label.start)


_READERS: dict[str, Callable[[Sequence[str]], Iterator[Label]]] = {"csv": _csv, "dnsmasq": _dnsmasq, "kea": _kea}


def _moment(where: str, text: str | None) -> datetime | None:
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{where}: a time must have its zone, such as 2026-11-20T12:03:17Z, got {show(text)}")
    return moment
