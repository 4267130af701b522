"""Verbs about the last hour, which the control socket's thread samples: history, ports-history, events."""

from __future__ import annotations

import numpy as np

from natcore.control.history import MOST_EVENTS, SAMPLE_SECONDS
from natcore.control.protocol import Row
from natcore.control.rows import address_text, event_row, protocol_text
from natcore.control.verb import Answer, Context, verb
from natcore.control.verbs.tables import given, matching_rows
from natcore.errors import ControlError
from natcore.internal.exit_codes import ExitCode

MOST_SERIES = 256  # of an answer


@verb("history")
def history(context: Context, *, after: float | None = None) -> Answer:
    """Give the counters of the last hour, a row each 10 seconds: cumulative, but for sessions and mappings.

    after: only of samples with a later time. The summary says how many are kept in all.
    """
    samples = context.history.samples()
    rows: list[Row] = [{"time": round(sample.time, 3), **sample.counters} for sample in samples]
    if after is not None:
        rows = [row for row in rows if row["time"] > after]
    yield rows
    return {"interval": SAMPLE_SECONDS, "rows": len(rows), "kept": len(samples)}


@verb("ports-history")
def ports_history(
    context: Context, *, outside: str | None = None, protocol: str | None = None, limit: int = 64
) -> Answer:
    """Give the port use of the last hour, a row for each outside address and protocol: used and held_down, each 10 seconds.

    Those with the fewest free ports come first. The summary has the samples' times; where one has no figure it is null.
    """
    if not 1 <= limit <= MOST_SERIES:
        raise ControlError(f"limit must be between 1 and {MOST_SERIES}, got {limit}", ExitCode.USAGE)
    samples = context.history.ports()
    summary = {"interval": SAMPLE_SECONDS, "times": [round(time, 3) for time, _ in samples], "rows": 0, "more": False}
    if not samples:
        return summary
    last = matching_rows(samples[-1][1], given(context, outside=outside, protocol=protocol))
    free = last["total"].astype(np.int64) - last["used"] - last["held_down"] - last["reserved"]
    chosen = last[np.argsort(free, kind="stable")[:limit]]
    series: dict[tuple[int, int], dict[str, list[int | None]]] = {
        (int(row["outside_ip"]), int(row["protocol"])): {"used": [], "held_down": []} for row in chosen
    }
    for number, (_, rows) in enumerate(samples):
        for address, number_of, used, held in zip(
            *(rows[name].tolist() for name in ("outside_ip", "protocol", "used", "held_down")), strict=True
        ):
            if (found := series.get((address, number_of))) is not None:
                _fill(found, number)
                found["used"].append(used)
                found["held_down"].append(held)
        yield []
    for row in chosen:
        found = series[int(row["outside_ip"]), int(row["protocol"])]
        _fill(found, len(samples))
        yield {
            "outside_ip": address_text(int(row["outside_ip"])), "protocol": protocol_text(int(row["protocol"])),
            "total": int(row["total"]), "reserved": int(row["reserved"]), **found,
        }  # fmt: skip
    return summary | {"rows": len(chosen), "more": len(last) > len(chosen)}


def _fill(found: dict[str, list[int | None]], count: int) -> None:
    for values in found.values():
        values.extend([None] * (count - len(values)))


@verb("events")
def events(context: Context, *, limit: int = 256) -> Answer:
    """List the last events, the newest first, 256 at most: exhaustion, thresholds, refusals. time: Unix seconds.

    The summary says how many more there are.
    """
    if not 1 <= limit <= MOST_EVENTS:
        raise ControlError(f"limit must be between 1 and {MOST_EVENTS}, got {limit}", ExitCode.USAGE)
    found = context.history.events(context.gateway)[::-1]
    yield [{**event_row(event), "time": round(time, 3)} for time, event in found[:limit]]
    return {"rows": min(limit, len(found)), "more": max(0, len(found) - limit)}
