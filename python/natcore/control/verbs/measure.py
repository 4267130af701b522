"""The verb that gives the metrics to who is on this machine, without an HTTP endpoint."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from natcore.control.verb import Answer, Context, verb
from natcore.errors import ControlError
from natcore.gateway import Gateway
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra
from natcore.metrics.collector import Collector

with extra("metrics"):
    from prometheus_client.openmetrics.exposition import generate_latest

_collectors: WeakKeyDictionary[Gateway, Collector] = WeakKeyDictionary()  # one each: what it gave never falls


@verb("metrics", standby=True)
def metrics(context: Context, *, name: str | None = None, text: bool = False) -> Answer:
    """Give the metrics as they are now: a row for each sample, or, with text, one row in OpenMetrics."""
    collector = _collectors.get(context.gateway)
    if collector is None:
        collector = _collectors.setdefault(context.gateway, Collector(context.gateway, service=context.service))
    if text:
        if name is not None:
            raise ControlError("metrics: give either name or text", ExitCode.USAGE)
        yield {"text": generate_latest(collector.registry()).decode()}  # type: ignore[no-untyped-call]
        return {}
    samples = 0
    for family in collector.collect():
        for sample in family.samples:
            if name is None or sample.name == name:
                samples += 1
                yield {"metric": sample.name, "labels": dict(sample.labels), "value": sample.value}
    return {"samples": samples}
