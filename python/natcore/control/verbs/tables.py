"""Verbs that list the gateway's tables: sessions, mappings, ports, blocks, entries."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from natcore.control import rows
from natcore.control.protocol import Row
from natcore.control.verb import Answer, Context, verb
from natcore.entries.words import in_words, kind_of
from natcore.errors import ConfigurationError, ControlError
from natcore.internal.endpoints import criteria
from natcore.internal.exit_codes import ExitCode
from natcore.internal.protocols import protocol_of
from natcore.internal.read_only import UNSET
from natcore.internal.redaction import show
from natcore.internal.validation import digits, either
from natcore.ranking import MOST_RANKED, ORDERS

if TYPE_CHECKING:
    from natcore.ranking import SessionRanking

_CURSOR = re.compile(r"-?[0-9]{1,18}:-?[0-9]{1,18}")
DEFAULT_LIMIT = 1000
PIECE_ROWS = 256

Key = Callable[[rows.Array], Any]


def _largest(*names: str) -> Key:
    """Return a key by which the largest sum comes first."""
    return lambda found: -sum(found[name].astype(np.int64) for name in names)


def _smallest(name: str) -> Key:
    return lambda found: found[name]


_SUBSCRIBER = _smallest("inside_ip")
MAPPING_KEYS: dict[str, Key] = {
    "sessions": _largest("sessions"),
    "subscriber": _SUBSCRIBER,
    "outside": lambda found: found["outside_ip"].astype(np.uint64) << 16 | found["outside_port"],
}
PORT_KEYS: dict[str, Key] = {
    "free": _smallest("free"),
    "used": _largest("used"),
    "held-down": _largest("held_down"),
    "outside": _smallest("outside_ip"),
}
BLOCK_KEYS: dict[str, Key] = {
    "ports": _largest("ports"),
    "subscriber": _SUBSCRIBER,
    "outside": lambda found: found["outside_ip"].astype(np.uint64) << 16 | found["first_port"],
}


def given(context: Context, **asked: str | int | None) -> dict[str, Any]:
    """Return the criteria that a request has; an entry by its name or number. Raises ControlError."""
    found: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if "protocol" in found:
        found["protocol"] = protocol_of(str(found["protocol"]))
    if "entry" in found:
        found["entry"] = _entry(context, str(found["entry"]))
    return found


def _entry(context: Context, asked: str) -> Any:
    entries = context.gateway.entries()
    for entry in entries:
        if asked in (entry.entry.name, str(entry.id)):
            return entry
    if number := digits(asked):
        return number  # of sessions that drain
    names = either(
        [f"{entry.id} ({show(entry.entry.name)})" if entry.entry.name else str(entry.id) for entry in entries]
    )
    raise ControlError(f"entry must be {names}, got {show(asked)}", ExitCode.USAGE)


def list_rows(
    slices: Iterator[rows.Array], convert: Callable[[rows.Array], list[Row]], keys: dict[str, Key], sort: str | None, limit: int
) -> Answer:  # fmt: skip
    """Answer with the rows of slices, sorted or not; limit: 0, all. The summary says how many, and whether there are more."""
    if limit < 0:
        raise ControlError(f"limit must be 0 (all) or more, got {limit}", ExitCode.USAGE)
    if sort is not None:
        slices = _sorted(slices, _key_of(keys, sort, limit), limit)
    count, more = 0, False
    for found in slices:
        if limit and count + len(found) > limit:
            found, more = found[: limit - count], True
        count += len(found)
        yield convert(found)
        if more:
            break
    return {"rows": count, "more": more}


def _key_of(keys: dict[str, Key], sort: str, limit: int) -> Key:
    _check_order(keys, sort, limit)
    return keys[sort]


def _check_order(orders: Collection[str], sort: str, limit: int) -> None:
    if sort not in orders:
        raise ControlError(f"sort must be {either(orders)}, got {show(sort)}", ExitCode.USAGE)
    if not 0 < limit <= MOST_RANKED:
        raise ControlError(
            f"limit must be between 1 and {MOST_RANKED:,} where rows are sorted, got {limit}", ExitCode.USAGE
        )


def _sorted(slices: Iterator[rows.Array], key: Key, limit: int) -> Iterator[rows.Array]:
    for found in rows.best(slices, key, limit + 1):  # one more says that there are more
        yield from _slices(found)


def _slices(found: rows.Array) -> Iterator[rows.Array]:
    """Yield pieces, each of them short enough for a line; of no rows an empty one."""
    for first in range(0, len(found) or 1, PIECE_ROWS):
        yield found[first : first + PIECE_ROWS]


@verb("sessions")
def sessions(
    context: Context,
    *,
    subscriber: str | None = None,
    remote: str | None = None,
    outside: str | None = None,
    protocol: str | None = None,
    entry: str | None = None,
    sort: str | None = None,
    limit: int = DEFAULT_LIMIT,
    page: str | None = None,
    reverse: bool = False,
) -> Answer:
    """List live sessions that match every criterion given.

    In an order the summary also has how many match, how many of them come before the page, and the cursors of its first and
    its last row. page: such a cursor, "" for the first page. reverse: the other way round.
    """
    gateway = context.gateway
    asked = given(context, subscriber=subscriber, remote=remote, outside=outside, protocol=protocol, entry=entry)
    names, now_ns = rows.entry_names(gateway), round(gateway.now * 1e9)

    def convert(found: rows.Array) -> list[Row]:
        return rows.session_rows(found, now_ns, names)

    if sort is None and page is None and not reverse:
        return list_rows(gateway.find_sessions(**asked), convert, {}, None, limit)
    order: Any = sort or "session"
    _check_order(ORDERS, order, limit)
    if page and not _CURSOR.fullmatch(page):
        raise ControlError(f"page must be a cursor of an earlier answer, got {show(page)}", ExitCode.USAGE)
    return _ranked(gateway.rank_sessions(order, limit, after=page or "", reverse=reverse, **asked), convert)


def _ranked(ranking: SessionRanking, convert: Callable[[rows.Array], list[Row]]) -> Answer:
    """Answer with the first sessions in an order."""
    while ranking.look():
        yield []
    found = ranking.rows()
    for piece in _slices(found):
        yield convert(piece)
    return {
        "rows": len(found), "more": ranking.more, "matched": ranking.matched, "before": ranking.before,
        "first": ranking.first, "last": ranking.last,
    }  # fmt: skip


@verb("entries")
def entries(context: Context, *, count: bool = True) -> Answer:
    """List the entries in force, with what each translates and, where they are to be counted, its live sessions."""
    counts = context.gateway.sessions_by_entry() if count else {}
    for row in context.gateway.entries():
        yield {
            "entry": row.id, "name": row.entry.name, "kind": kind_of(row.entry), "text": in_words(row.entry),
            "sessions": counts.get(row.id, 0) if count else None,
        }  # fmt: skip
    return {}


@verb("mappings")
def mappings(
    context: Context,
    *,
    subscriber: str | None = None,
    outside: str | None = None,
    protocol: str | None = None,
    entry: str | None = None,
    sort: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Answer:
    """List live mappings: which outside endpoint stands for an inside endpoint."""
    asked = given(context, subscriber=subscriber, outside=outside, protocol=protocol, entry=entry)
    slices = context.gateway.find_mappings(**asked)
    names = rows.entry_names(context.gateway)
    return list_rows(slices, lambda found: rows.mapping_rows(found, names), MAPPING_KEYS, sort, limit)


@verb("ports")
def ports(
    context: Context,
    *,
    outside: str | None = None,
    protocol: str | None = None,
    sort: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Answer:
    """List how many ports of each outside address and protocol are used, held down, reserved and free."""
    found = matching_rows(context.gateway.ports(), given(context, outside=outside, protocol=protocol))
    return list_rows(_slices(found), rows.port_rows, PORT_KEYS, sort, limit)


@verb("blocks")
def blocks(
    context: Context,
    *,
    subscriber: str | None = None,
    outside: str | None = None,
    sort: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Answer:
    """List port blocks and the subscribers that have them (ports = "block")."""
    if context.gateway.policy.ports != "block":
        raise ControlError(f'the gateway has no port blocks: its policy is ports = "{context.gateway.policy.ports}"')
    found = matching_rows(context.gateway.blocks(), given(context, subscriber=subscriber, outside=outside))
    return list_rows(_slices(found), rows.block_rows, BLOCK_KEYS, sort, limit)


def matching_rows(found: rows.Array, asked: dict[str, Any]) -> rows.Array:
    """Return the rows of a small table that match. Raises ControlError."""
    values = {name: asked.get(name, UNSET) for name in ("subscriber", "remote", "outside", "protocol", "entry")}
    try:
        wanted = criteria(**values)
    except ConfigurationError as error:
        raise ControlError(str(error), ExitCode.USAGE) from None
    return rows.matching(found, wanted, ("inside", "remote", "outside"))
