"""Destinations of session logs. Each is imported when it is first named, for what it needs is slow to import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from natcore.sinks.base import Batch, Receipt, Sink
    from natcore.sinks.clickhouse import ClickHouseSink
    from natcore.sinks.ipfix import IpfixSink
    from natcore.sinks.jsonlines import JsonLinesSink
    from natcore.sinks.kafka import KafkaSink
    from natcore.sinks.memory import MemorySink
    from natcore.sinks.parquet import ParquetSink
    from natcore.sinks.sls import SlsSink
    from natcore.sinks.syslog import SyslogSink

_HOMES = {
    "Batch": "base",
    "ClickHouseSink": "clickhouse",
    "IpfixSink": "ipfix",
    "JsonLinesSink": "jsonlines",
    "KafkaSink": "kafka",
    "MemorySink": "memory",
    "ParquetSink": "parquet",
    "Receipt": "base",
    "Sink": "base",
    "SlsSink": "sls",
    "SyslogSink": "syslog",
}

__all__ = [
    "Batch",
    "ClickHouseSink",
    "IpfixSink",
    "JsonLinesSink",
    "KafkaSink",
    "MemorySink",
    "ParquetSink",
    "Receipt",
    "Sink",
    "SlsSink",
    "SyslogSink",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
