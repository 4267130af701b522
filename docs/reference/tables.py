#!/usr/bin/env python3
"""Writes the reference's tables from the code: keys, verdicts, counters, events, dtypes. --check: exit status 1 if one is old.

What a name means stands here or beside it in the code. A name without a meaning is an error, and so is the reverse.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

import natcore
from natcore import events, verdict
from natcore.flowlog import FLOW
from natcore.internal.exit_codes import ANSWERS, MEANINGS
from natcore.service.keys import Key, keys
from natcore.sessionlog import ledger

HERE = Path(__file__).parent

COUNTERS = {
    "received": "frames that were given to the gateway: forwarded + local + dropped + held",
    "forwarded": "frames that left, fragments of them apart",
    "local": "frames for the gateway itself",
    "dropped": "the sum of all `dropped_…`",
    "held": "gauge: fragments that wait for their first one",
    "created": "sessions that began",
    "ended": "sessions that ended",
    "handed_over": "frames that one worker got and another one's tables were used for",
    "undelivered_in_rows": "packets without a next hop that stay in a row: fragments, and those of a window that has closed",
    "clock_backward": "calls with a smaller `now` than the last one; it was taken for the last one",
    "generated": "frames of the gateway's own: ICMP, and fragments that it made",
    "generated_lost": "the same that found no memory, or no next hop",
    "generated_withheld": "ICMP errors beyond the budget `icmp_rate`",
    "fragments_evicted": "datagrams under way that a newer one took the place of",
    "events_lost": "events that found no place until `take_events()` was read",
    "unsolicited_lost": "SYNs on hold that found no place, and will have no answer",
    "journal_lost": "rows of the session log that found the journal full",
    "bytes_from_inside": "IPv4 bytes of forwarded frames from inside; of a super-frame, of its packets",
    "bytes_from_outside": "the same from outside",
    "ports_used": "gauge: outside ports of mappings",
    "sessions": "gauge: live sessions",
    "mappings": "gauge: live mappings",
}
LOG_COUNTERS = {
    "accepted": "rows that the log took: delivered + queued + spooled + dead_letter + lost",
    "delivered": "rows that the destination acknowledged",
    "queued": "gauge: rows that wait in memory",
    "spooled": "gauge: rows that wait on disk",
    "dead_letter": "rows that the destination refused for good, set aside in a file",
    "lost": "the sum of all `lost_…`",
    "lost_queue_full": "rows that memory had no place for",
    "lost_spool_full": "rows beyond `spool_bytes`, the oldest first",
    "lost_damaged": "rows in a damaged part of a spool",
    "lost_rejected": "rows that were refused for good and could not be set aside",
    "lost_shutdown": "rows in memory that a stop had no time for",
    "withheld": "rows that the sink does not take: no loss",
    "recovered": "rows that an earlier process left in the spool",
    "gaps": "gap rows",
    "gaps_died": "gap rows for a process that died",
    "gaps_journal_full": "gap rows for rows that found the journal full",
    "gaps_log_full": "gap rows for rows that this log had no place for",
    "facts": "rows about the log itself",
    "unlabelled": "delivered rows of which the log's labels could not be asked",
    "raw_bytes_delivered": "bytes before compression",
    "wire_bytes_delivered": "bytes as they were sent",
}
EVENTS = {
    "ports-threshold": "ports of an outside address and protocol in use reached `warn_at`; protocol 0: port blocks",
    "sessions-threshold": "sessions reached `warn_at` of `max_sessions`",
    "records-lost": "rows of the session log found the journal full",
    "address-added": "the outside interface has another address, and a pool follows it; `outside` names it",
    "address-removed": "the outside interface has lost an address that a pool had; the sessions over it have ended",
    "ports-exhausted": "no port, or no block, of the pool is free",
    "session-limit": "a table is full; `limit` names it",
    "subscriber-limit": "a subscriber reached a quota; `limit` names it",
    "rate-limit": "new sessions in a second; `limit` names the argument",
    "conflict": "another session has the endpoint towards this remote",
    "outside-limit": "sessions opened from outside reached the mapping's or the gateway's cap",
    "clock-set": "the machine's clock was set; rows are labelled by it from now on",
    "machine-slept": "the machine slept; the gateway's clock stood still",
}
REFUSALS = ("PORTS_EXHAUSTED", "SESSION_LIMIT", "SUBSCRIBER_LIMIT", "RATE_LIMIT", "CONFLICT", "OUTSIDE_LIMIT")
BY_CLOCK = ("clock-set", "machine-slept")
FIELDS: Mapping[str, Mapping[str, str]] = {
    "RECORD": {
        "bytes_from_pub": "bytes from outside, IPv4 total lengths",
        "pkts_from_pub": "packets from outside",
        "bytes_from_vpc": "bytes from inside",
        "pkts_from_vpc": "packets from inside",
        "start_time": "the window's first packet; microseconds since 1970",
        "end_time": "the window's or the session's end; microseconds since 1970",
        "session": "the session's number; of a gap row: rows known to be missing, 0: unknown; of a refusal or an "
        "event: how often",
        "number": "the row's number in its run",
        "pri_ip": "the inside host's address, host order",
        "pub_ip": "the remote's address, host order",
        "nat_ip": "the outside address as frames carry it, host order",
        "eip": "the external address, host order; 0: the address has none",
        "pri_port": "the inside port, or an ICMP query's identifier",
        "pub_port": "the remote's port; 0 for ICMP",
        "nat_port": "the outside port, or the translated identifier",
        "protocol": "IANA number",
        "kind": "`RecordKind`: 0 window, 1 create, 2 end, 3 gap; 4 cover, 5 entry, 6 setting, 7 clock: about the log itself; "
        "8 block allocated, 9 block released; 10 refusal, 11 event, 12 event cover",
        "flags": "`RecordFlag`: 1 opened from outside, 2 a port block that was assigned when the log started; of a gap row "
        "`GapReason`: 1 the process died, 2 the journal was full, 3 the log had no place; of a refusal or an "
        "event the reason, and 256 times the limit",
    },
    "SESSION": {
        "session": "its number, in order of creation from 1",
        "bytes_out": "bytes from inside since its creation",
        "packets_out": "packets from inside",
        "bytes_in": "bytes from outside",
        "packets_in": "packets from outside",
        "birth_ns": "its first packet, ns of the gateway's clock",
        "last_seen_ns": "the last packet that kept it alive, likewise",
        "deadline_ns": "when it ends if no packet comes, likewise",
        "start_time": "its creation, microseconds since 1970",
        "window_time": "the start of its open window, microseconds since 1970; 0: none is open",
        "inside_ip": "host order",
        "remote_ip": "host order",
        "outside_ip": "host order",
        "entry": "the entry's id",
        "inside_port": "port, or an ICMP query's identifier",
        "remote_port": "port; 0 for ICMP",
        "outside_port": "port, or the translated identifier",
        "protocol": "IANA number",
        "state": "a TCP session's `SessionState`; 0 with other protocols",
        "opened_outside": "1: a packet from outside opened it",
    },
    "MAPPING": {
        "inside_ip": "host order",
        "outside_ip": "host order",
        "entry": "the entry's id",
        "sessions": "live sessions of it",
        "inside_port": "port, or an ICMP query's identifier",
        "outside_port": "port, or the translated identifier",
        "protocol": "IANA number",
    },
    "SUBSCRIBER_RATE": {
        "bytes_out": "IPv4 total lengths from inside",
        "packets_out": "packets from inside",
        "bytes_in": "IPv4 total lengths from outside",
        "packets_in": "packets from outside",
        "inside_ip": "the subscriber, host order",
        "sessions": "sessions that are open",
        "mappings": "mappings that are open: outside ports",
    },
    "PORTS": {
        "outside_ip": "host order",
        "eip": "the external address, host order; 0: the address has none",
        "total": "ports of the ranges: used + held_down + reserved + free",
        "used": "ports of mappings",
        "held_down": "ports that rest for `hold_down` seconds",
        "reserved": "ports of DNAT entries",
        "free": "ports that may be allocated",
        "protocol": "IANA number",
    },
    "BLOCKS": {
        "outside_ip": "host order",
        "eip": "the external address, host order; 0: the address has none",
        "inside_ip": "the subscriber, host order",
        "ports": "ports in use or held down, of all protocols",
        "first_port": "the block's first port",
        "last_port": "the block's last port",
    },
    "FLOW": {
        "srcaddr": "the frame's source, host order",
        "srcport": "source port, or an ICMP query's identifier",
        "dstaddr": "the frame's destination, host order",
        "dstport": "destination port",
        "protocol": "IANA number",
        "direction": "as the interface sees it: 0 in, 1 out",
        "bytes": "IPv4 total lengths",
        "packets": "packets of the network layer",
        "start": "the first packet, microseconds since 1970",
        "end": "the last packet, microseconds since 1970",
        "interface": "a Side: 0 inside, 1 outside",
        "action": "0 accept, 1 reject: the gateway dropped it",
    },
}
WHERE = {
    "RECORD": "rows of the session log: `take_records()`, `Batch.records`",
    "SESSION": "`Gateway.sessions()`",
    "MAPPING": "`Gateway.mappings()`",
    "SUBSCRIBER_RATE": "`Gateway.subscriber_rates()`",
    "PORTS": "`Gateway.ports()`",
    "BLOCKS": "`Gateway.blocks()`",
    "FLOW": "`FlowLog.take()`",
}
HEAD = "<!-- Written by docs/reference/tables.py from the code: change that, and run it. -->\n\n"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    lines = [tuple(map(str, row)) for row in rows]
    names = tuple(head)
    return "\n".join("| " + " | ".join(row) + " |" for row in (names, ("---",) * len(names), *lines)) + "\n"


def meanings(names: Iterable[str], known: Mapping[str, str], what: str) -> list[tuple[str, str]]:
    """Each name with what it means; SystemExit where one has none, or one is no more."""
    names = list(names)
    if set(names) != set(known):
        raise SystemExit(f"{what}: without a meaning or without a name: {sorted(set(names) ^ set(known))}")
    return [(f"`{name}`", known[name]) for name in names]


def members(kind: type[verdict.Verdict]) -> dict[str, str]:
    """What an enum says of each member, in the section Attributes of its docstring."""
    section = (inspect.getdoc(kind) or "").partition("Attributes\n----------\n")[2]
    found = re.findall(r"^(\w+)\n((?:    .*\n?)+)", section, re.M)
    return {name: " ".join(text.split()).rstrip(".") for name, text in found}


def verdicts() -> str:
    """The page of verdicts."""
    said = members(verdict.Verdict)
    rows = [
        (one.value, f"`{one.name}`", f"`{one.counter}`" if one.is_drop else "", said[one.name])
        for one in verdict.Verdict
    ]
    return (
        "# Verdicts\n\nEach packet has one verdict. Numbers are stable; drops are 128 and above.\n\n"
        + table(("number", "`Verdict`", "counter", "meaning"), rows)
        + "\n`Verdict.reason` is a drop's name in events: `ports-exhausted`. [`explain`](../explain.md) says what led to it.\n"
    )


def counters() -> str:
    """The page of counters."""
    with natcore.Gateway() as gateway:
        names = [name for name in gateway.counters() if not name.startswith("dropped_")]
    log = ledger.Ledger().counters()
    return (
        "# Counters\n\nCounters are cumulative but for gauges.\n\n## A gateway's\n\n`Gateway.counters()`. Each drop has "
        "its own, `dropped_…`: see [verdicts](verdicts.md).\n\n"
        + table(("counter", "meaning"), meanings(names, COUNTERS, "counters"))
        + "\n## A session log's\n\n`SessionLog.counters()`\n\n"
        + table(("counter", "meaning"), meanings(log, LOG_COUNTERS, "a log's counters"))
    )


def event_page() -> str:
    """The page of events."""
    refusals = [verdict.Verdict[f"DROP_{name}"].reason for name in REFUSALS]
    names = [*events.THRESHOLDS.values(), *refusals, *BY_CLOCK]
    limits = ", ".join(f"`{name}`" for name in events.LIMITS if name)
    return (
        "# Events\n\nAn event has a reason and, where it concerns one, a subscriber. Each is given once, with a count.\n\n"
        + table(("`reason`", "meaning"), meanings(names, EVENTS, "events"))
        + f"\n`limit` is empty or one of {limits}.\n"
    )


def dtypes() -> str:
    """The page of dtypes."""
    parts = [
        "# Arrays\n\nTables and rows are numpy structured arrays. A field's type is numpy's: `u4` has four bytes, unsigned.\n"
    ]
    for name, said in FIELDS.items():
        dtype: np.dtype[np.void] = FLOW if name == "FLOW" else getattr(natcore.dtypes, name)
        rows = [
            (field, f"`{dtype[field.strip('`')].str[1:]}`", meaning)
            for field, meaning in meanings(dtype.names or (), said, name)
        ]
        parts.append(
            f"## {name}\n\n{WHERE[name]}; {dtype.itemsize} bytes a row.\n\n" + table(("field", "type", "meaning"), rows)
        )
    return "\n".join(parts)


def configuration_file() -> str:
    """The page of the configuration file's keys."""
    parts = [
        "# The configuration file\n\nTOML. Keys are the arguments' names of what they make. `natcore config` prints these "
        "tables, `natcore init` writes a file with all keys as comments, `natcore check` says what is wrong with one, each "
        "error with its line. Of a table in double brackets there may be any number. Where a key has no default, its meaning "
        "says what holds without it.\n"
    ]
    tables: dict[str, list[Key]] = {}
    for key in keys():
        tables.setdefault(key.heading, []).append(key)
    for heading, found in tables.items():
        rows = [(f"`{key.name}`", typed(key), key.unit, default(key), escaped(key.meaning)) for key in found]
        parts.append(f"## `{heading}`\n\n" + table(("key", "type", "unit", "default", "meaning"), rows))
    return "\n".join(parts)


def typed(key: Key) -> str:
    """The type, or the words that a key takes."""
    return ", ".join(f"`{word}`" for word in key.allowed) if key.allowed else key.type


def default(key: Key) -> str:
    """The default in code; a key that must be given has none."""
    return "must be given" if key.default is None else f"`{key.default}`" if key.default else ""


def escaped(text: str) -> str:
    """A meaning in a table's cell."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace("[", "\\[")


def exit_statuses() -> str:
    """The page of exit statuses."""
    shared = [(f"{int(status)}", meaning) for status, meaning in MEANINGS.items()]
    own = [
        (f"`natcore {command}`", f"{int(status)}", meaning)
        for command, answers in sorted(ANSWERS.items())
        for status, meaning in answers.items()
    ]
    return (
        "# Exit statuses\n\nEvery command ends with one of these, numbered as in `sysexits.h`; each man page has them. "
        "With `--json` a failure is an object with `ok`, `error` and this `code`.\n\n"
        + table(("status", "meaning"), shared)
        + "\nSome commands answer by them:\n\n"
        + table(("command", "status", "meaning"), own)
    )


PAGES = {
    "exit-status.md": exit_statuses,
    "file.md": configuration_file,
    "verdicts.md": verdicts,
    "counters.md": counters,
    "events.md": event_page,
    "arrays.md": dtypes,
}


def main() -> None:
    """Writes the pages, or says which one is old."""
    old = []
    for name, page in PAGES.items():
        written, target = page().replace("\n", "\n" + HEAD, 1).replace("\n\n\n", "\n\n"), HERE / name
        if not target.exists() or target.read_text() != written:
            old.append(name)
            if "--check" not in sys.argv[1:]:
                target.write_text(written)
    print(*(old or ["nothing to write"]))
    raise SystemExit(bool(old) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    main()
