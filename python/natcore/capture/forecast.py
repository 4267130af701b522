"""When a pool of ports runs out, if use goes on growing as it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEAST_SAMPLES = 8
LEAST_SECONDS = 60.0  # of half a capture: in less no session ends


class Forecast(NamedTuple):
    """When the ports of a protocol run out.

    Attributes
    ----------
    state
        "ran-out": packets were refused for it. "grows": it runs out at `time`. "steady": use does not grow. "unknown": the
        capture is too short: in half of it no session ends.
    protocol
        The first one to run out: "tcp", "udp" or "icmp"; "": none.
    time
        Unix seconds; None: it does not run out.
    growth_per_hour
        Ports, by the straight line through the second half of the samples.
    """

    state: str
    protocol: str
    time: float | None
    growth_per_hour: float


def forecast(samples: Sequence[tuple[float, Mapping[str, int]]], total: Mapping[str, int], refused: int) -> Forecast:
    """Return when the first protocol's ports run out.

    The straight line of least squares through the second half of the samples is followed: at the begin of a capture use grows
    because no session has ended yet.

    Parameters
    ----------
    samples
        Unix seconds, and ports in use by protocol.
    total
        Ports of the pool by protocol.
    refused
        Packets that were refused because no port was free.

    Returns
    -------
    Forecast
        Of the first protocol.
    """
    half = samples[len(samples) // 2 :]
    known = {name: size for name, size in total.items() if size}
    if refused:
        fullest = max(known, key=lambda name: max(ports[name] for _, ports in samples) / known[name], default="")
        when = next((time for time, ports in samples if fullest and ports[fullest] >= known[fullest]), None)
        return Forecast("ran-out", fullest, when, 0.0)
    if len(half) < LEAST_SAMPLES or half[-1][0] - half[0][0] < LEAST_SECONDS:
        return Forecast("unknown", "", None, 0.0)
    times = np.array([time for time, _ in half])
    first: Forecast | None = None
    fastest = 0.0
    for name, size in known.items():
        used = np.array([ports[name] for _, ports in half], float)
        away = times - times.mean()
        slope = float((away * (used - used.mean())).sum() / (away**2).sum())
        fastest = max(fastest, slope)
        now = float(used.mean() + slope * away[-1])
        if slope * (times[-1] - times[0]) < max(1.0, 0.01 * now):  # less than 1 % over the half is noise
            continue
        when = float(times[-1]) + max(size - now, 0.0) / slope
        if first is None or first.time is None or when < first.time:
            first = Forecast("grows", name, when, slope * 3600)
    return first or Forecast("steady", "", None, fastest * 3600)
