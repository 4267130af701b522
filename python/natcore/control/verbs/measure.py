"""The verb that gives the metrics to who is on this machine, without an HTTP endpoint."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from natcore.control.verb import Answer, Context, verb
from natcore.gateway import Gateway
from natcore.metrics.collector import Collector

_collectors: WeakKeyDictionary[Gateway, Collector] = WeakKeyDictionary()  # one each: what it gave never falls


@verb("metrics")
def metrics(context: Context, *, name: str | None = None) -> Answer:
    """Give the metrics as they are now, a row for each sample."""
    collector = _collectors.get(context.gateway)
    if collector is None:
        collector = _collectors.setdefault(context.gateway, Collector(context.gateway, service=context.service))
    samples = 0
    for family in collector.collect():
        for sample in family.samples:
            if name is None or sample.name == name:
                samples += 1
                yield {"metric": sample.name, "labels": dict(sample.labels), "value": sample.value}
    return {"samples": samples}
