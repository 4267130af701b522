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
from typing import TypeVar

from natcore.errors import ConfigurationError
from natcore.internal.files import read_regular
from natcore.internal.redaction import show
from natcore.internal.validation import digits
from natcore.who.query import Answer, Listing, Match

ALWAYS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
_ASSIGNED, _RECLAIMED = "0", "2"  # Kea's states of a lease; 2: it has expired, at the time that is told already
Reply = TypeVar("Reply", Answer, Listing, Answer | Listing)


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
        self._labels: dict[ipaddress.IPv4Network, list[Label]] = {}
        self._prefixes: list[int] = []
        self._refresh()

    def find(self, address: IPv4Address, start: datetime, end: datetime) -> list[str]:
        """Return the labels of the longest prefix that has one then: a host's goes before its network's."""
        with self._lock:
            self._refresh()
            for prefix in self._prefixes:
                network = ipaddress.IPv4Network((address, prefix), strict=False)
                found = [each for each in self._labels.get(network, ()) if each.start <= end and each.end > start]
                if found:
                    return list(dict.fromkeys(each.text for each in sorted(found, key=lambda each: each.start)))
        return []

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
        labels: dict[ipaddress.IPv4Network, list[Label]] = {}
        try:
            for label in _READERS[self._form](text.splitlines()):
                labels.setdefault(label.network, []).append(label)
        except (
            ValueError,
            OverflowError,
            OSError,
            csv.Error,
        ) as error:  # OverflowError, OSError: a time without a date
            raise ConfigurationError(f"{self.path}: {error}") from error
        self._labels, self._stamp = labels, stamp
        self._prefixes = sorted({network.prefixlen for network in labels}, reverse=True)


def labels_at(text: str) -> Labels:
    """Return the labels of a file: its path, or `dnsmasq:PATH`, or `kea:PATH`. Raises ConfigurationError."""
    form, colon, path = text.partition(":")
    return LabelFile(path, form) if colon and form in _READERS else LabelFile(text)


def labelled(answer: Reply, labels: Labels) -> Reply:
    """Return the answer with the labels of each session's inside address, as of the time that was asked for.

    Parameters
    ----------
    answer
        Of `who`, `what` or `talked`.
    labels
        What knows them.

    Returns
    -------
    Answer or Listing
        With `labels` in its matches.
    """
    tolerance = timedelta(seconds=answer.tolerance)
    start, end = answer.at - tolerance, (answer.until or answer.at) + tolerance

    def of(match: Match) -> Match:
        first, last = max(start, match.start), min(end, match.end or end)
        return replace(match, labels=tuple(labels.find(match.pri_ip, min(first, last), last)))

    matches = tuple(map(of, answer.matches))
    if isinstance(answer, Listing):
        return replace(answer, matches=matches, perhaps=tuple(map(of, answer.perhaps)))
    return replace(answer, matches=matches, others=tuple(map(of, answer.others)))


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
        ) + " (the lease now; since when is not known)"
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
