"""The console's pages: what each asks its gateway, and what its template gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from natcore.cli.words import explanation_text
from natcore.console import words
from natcore.console.charts import Chart, chart
from natcore.console.who import Who
from natcore.control.client import Client
from natcore.control.protocol import Row
from natcore.errors import ControlError

if TYPE_CHECKING:
    from natcore.console.gateways import Gateways

Query = Mapping[str, str]
View = dict[str, Any]
PAGE_ROWS = 100
SHOWN_PORTS = 200  # outside addresses and protocols in the table
DRAWN_PORTS = 12  # of these with a chart
SHOWN_EVENTS = 12
CRITERIA = ("subscriber", "remote", "outside", "protocol", "entry")
SORTS = {  # of sessions: what a heading says, by the key
    "session": "Begun", "subscriber": "Inside", "outside": "Outside", "remote": "Remote", "packets": "Packets",
    "bytes": "Bytes", "age": "Age", "idle": "Idle", "expires": "Expires",
}  # fmt: skip
LARGEST_FIRST = ("session", "packets", "bytes", "idle")  # what a column shows: for "session" how long ago it began
TOP_SORTS = {"bits": "Traffic", "packets": "Packets", "sessions": "Sessions", "ports": "Ports"}
TOP_ROWS = 20
SESSIONS_A_SECOND = 50_000  # that a live page may have its gateway look through
LIVE_SECONDS = 2.0
MOST_REMEMBERED = 64  # gateways of which the last hour is remembered
_SAMPLES: dict[tuple[Path, int, str | None], list[Row]] = {}  # an hour of each gateway at most


def status_of(client: Client) -> Row:
    """Return the gateway's status."""
    client.ask("status")
    return client.summary


# ---- all gateways, and one ------------------------------------------------------------------------------------------


def card(client: Client) -> View:
    """Return a gateway's line in the list of all."""
    status = status_of(client)
    return {"status": status, "rates": rates_of(_samples(client), status)}


def overview(client: Client, query: Query) -> View:
    """Return state, interfaces, traffic, drops and events."""
    status, samples = status_of(client), _samples(client)
    events = client.ask("events", limit=SHOWN_EVENTS)
    counters = status["counters"]
    drops = {name.removeprefix("dropped_"): value for name, value in counters.items() if name.startswith("dropped_")}
    return {
        "status": status, "rates": rates_of(samples, status), "charts": _traffic_charts(samples),
        "drops": sorted(((value, name) for name, value in drops.items() if value), reverse=True),
        "events": events, "more_events": client.summary["more"],
    }  # fmt: skip


def _samples(client: Client) -> list[Row]:
    """Return the last hour's samples; the gateway is asked for those alone that came since it was asked last."""
    who = (client.path, client.greeting.pid, client.greeting.instance)
    known = _SAMPLES.get(who, [])
    fresh = client.ask("history", after=known[-1]["time"] if known else None)
    if len(_SAMPLES) >= MOST_REMEMBERED and who not in _SAMPLES:
        _SAMPLES.clear()
    rows = [*known, *fresh]
    _SAMPLES[who] = rows[
        max(0, len(rows) - client.summary["kept"]) :
    ]  # of a gateway that began anew there only its own
    return _SAMPLES[who]


def rates_of(samples: Sequence[Row], status: Row) -> dict[str, float]:
    """Return what the gateway does a second, since the last sample that is two seconds old or more."""
    now = status["time"]
    before = next((sample for sample in reversed(samples) if now - sample["time"] >= LIVE_SECONDS), None)
    counters = status["counters"]
    names = ("forwarded", "dropped", "bytes_from_inside", "bytes_from_outside", "created")
    if before is None:
        return dict.fromkeys(names, 0.0)
    return {name: max(0.0, (counters[name] - before[name]) / (now - before["time"])) for name in names}


def _traffic_charts(samples: Sequence[Row]) -> list[Chart]:
    """Return the last hour's traffic, packets and sessions."""
    if len(samples) < 3:
        return []
    times = [sample["time"] for sample in samples[1:]]

    def per_second(name: str, scale: int = 1) -> list[float]:
        return [
            max(0.0, scale * (after[name] - before[name]) / max(after["time"] - before["time"], 1e-3))
            for before, after in pairwise(samples)
        ]

    found = [
        chart("Traffic", times, [("out", per_second("bytes_from_inside", 8)), ("in", per_second("bytes_from_outside", 8))],
              lambda value: words.rate(value, "bit/s"), most=1000),
        chart("Packets", times, [("forwarded", per_second("forwarded")), ("dropped", per_second("dropped"))],
              lambda value: words.rate(value, "packets/s"), most=10),
        chart("Sessions", times, [("sessions", [sample["sessions"] for sample in samples[1:]])],
              lambda value: f"{words.count(value)} sessions", most=10),
    ]  # fmt: skip
    return [each for each in found if each is not None]


# ---- session logs ---------------------------------------------------------------------------------------------------


def session_log(client: Client, query: Query) -> View:
    """Return the session logs, as the cloud's tab shows them, and their accounts of rows."""
    status, logs = status_of(client), client.ask("logs")
    return {
        "status": status, "logs": [_with_account(log) for log in logs], "missing": client.summary.get("missing", ""),
        "can_begin": "new" in client.summary,
    }  # fmt: skip


def _with_account(log: Row) -> View:
    counters = log.get("counters", {})
    lost = {
        name.removeprefix("lost_").replace("_", " "): value
        for name, value in counters.items() if name.startswith("lost_") and value
    }  # fmt: skip
    waiting = counters.get("queued", 0) + counters.get("spooled", 0)
    return {**log, "waiting": waiting, "lost_by": lost}


# ---- sessions -------------------------------------------------------------------------------------------------------


def sessions(client: Client, query: Query) -> View:
    """Return a page of the sessions that match."""
    asked = {name: query[name].strip() for name in CRITERIA if query.get(name, "").strip()}
    sort = query.get("sort", "session")
    reverse = query.get("reverse", "1" if "sort" not in query else "") == "1"  # unless told the newest come first
    back = query.get("back") == "1"
    entries = client.ask("entries", count=False)
    found: View = {
        "asked": asked, "sort": sort, "reverse": "1" if reverse else "",
        "direction": "descending" if (sort in LARGEST_FIRST) is not reverse else "ascending", "sorts": SORTS,
        "entries": entries, "rows": [], "problem": "", "criteria": CRITERIA, "status": status_of(client),
    }  # fmt: skip

    def link(**more: str) -> str:
        return "?" + urlencode({**asked, "sort": sort, "reverse": found["reverse"], **more})

    found["link"] = link
    try:
        rows = client.ask(
            "sessions", **asked, sort=sort, limit=PAGE_ROWS, page=query.get("page", ""), reverse=reverse is not back
        )
    except ControlError as error:
        return found | {"problem": str(error)}
    told = client.summary
    if back:
        rows = rows[::-1]
    first, last = (told["last"], told["first"]) if back else (told["first"], told["last"])
    before = told["matched"] - told["before"] - len(rows) if back else told["before"]
    return found | {
        "rows": rows, "matched": told["matched"], "before": before, "after": told["matched"] - before - len(rows),
        "previous": link(page=first, back="1") if before else "",
        "next": link(page=last) if before + len(rows) < told["matched"] else "",
        "page_count": math.ceil(told["matched"] / PAGE_ROWS), "number": before // PAGE_ROWS + 1,
    }  # fmt: skip


# ---- ports ----------------------------------------------------------------------------------------------------------


def ports(client: Client, query: Query) -> View:
    """Return the use of ports, now and over the last hour."""
    asked = {name: query[name].strip() for name in ("outside", "protocol") if query.get(name, "").strip()}
    status = status_of(client)
    found: View = {"status": status, "asked": asked, "rows": [], "charts": [], "problem": "", "more": False}
    try:
        rows = client.ask("ports", **asked, sort="free", limit=SHOWN_PORTS)
        more = client.summary["more"]
        series = client.ask("ports-history", **asked, limit=DRAWN_PORTS)
    except ControlError as error:
        return found | {"problem": str(error)}
    charts = [_port_chart(each, client.summary["times"], status["warn_at"]) for each in series]
    return found | {"rows": rows, "more": more, "charts": [each for each in charts if each is not None]}


def _port_chart(row: Row, times: Sequence[float], warn_at: float | None) -> Chart | None:
    usable = row["total"] - row["reserved"]
    warned = {} if not warn_at else {
        "threshold": warn_at * usable, "threshold_text": f"warning from {words.count(warn_at * usable)} ports"
    }  # fmt: skip
    series = [("used", row["used"]), ("held down", row["held_down"])]
    title = f"{row['outside_ip']} {row['protocol']}"
    return chart(title, times, series, lambda value: f"{words.count(value)} ports", **warned)


# ---- top ------------------------------------------------------------------------------------------------------------


def top(client: Client, query: Query) -> View:
    """Return what open sessions had so far: the page before its first rates, and without a script."""
    sort = query.get("sort", "bits")
    sort = sort if sort in TOP_SORTS else "bits"
    status = status_of(client)
    return {
        "status": status, "sort": sort, "sorts": TOP_SORTS, "sample": None, "interval": top_interval(status),
        "so_far": client.ask("subscribers", sort=sort, limit=TOP_ROWS),
    }  # fmt: skip


def top_interval(status: Row) -> float:
    """Return seconds between two samples: with many sessions fewer, so that packets hardly wait for them."""
    return float(max(LIVE_SECONDS, status["sessions"] / SESSIONS_A_SECOND))


# ---- explain, entries -----------------------------------------------------------------------------------------------


def explain(client: Client, query: Query) -> View:
    """Return what would become of a packet."""
    frame = "".join(query.get("frame", "").split())
    found: View = {
        "query": query, "text": "", "steps": [], "problem": "", "verdict": "", "permitted": client.greeting.writer,
        "status": status_of(client),
    }  # fmt: skip
    if not frame or not client.greeting.writer:
        return found
    try:
        client.ask("explain", frame=frame, side=query.get("side", "inside"))
    except ControlError as error:
        return found | {"problem": str(error)}
    told = client.summary
    text = explanation_text(told, client.greeting)
    return found | {"text": text, "steps": told["steps"], "verdict": told["verdict"]}


def entries(client: Client, query: Query) -> View:
    """Return the entries in force, and what a reload of the file would change."""
    status = status_of(client)
    found: View = {"status": status, "entries": client.ask("entries"), "plan": None, "steps": [], "problem": ""}
    if "file" not in status or not client.greeting.writer:
        return found
    try:
        steps = client.ask("reload", dry_run=True)
    except ControlError as error:
        return found | {"problem": str(error)}
    return found | {"plan": dict(client.summary), "steps": [_step(step) for step in steps]}


def _step(step: Row) -> View:
    from natcore.service.reload import Step

    return {**step, "text": str(Step(**step))}


PAGES: dict[str, tuple[str, Callable[[Client, Query], View]]] = {  # by path: the title, and what it shows
    "": ("Overview", overview),
    "log": ("Session log", session_log),
    "sessions": ("Sessions", sessions),
    "ports": ("Ports", ports),
    "top": ("Top", top),
    "who": ("Who", Who().view),
    "explain": ("Explain", explain),
    "entries": ("Entries", entries),
}
LIVE = {"": LIVE_SECONDS, "log": LIVE_SECONDS, "ports": 10.0}  # seconds between two looks


def cards(gateways: Gateways) -> list[View]:
    """Return a line for each gateway; of one that does not answer, why."""
    found: list[View] = []
    for name in gateways.names():
        line: View = {"name": name, "problem": ""}
        try:
            with gateways.asking(name) as client:
                line |= card(client)
        except ControlError as error:
            line["problem"] = str(error)
        found.append(line)
    return found
