"""Destinations of session logs. Each is imported on first use, since its libraries are slow to import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from natcore.internal.late import late_names

if TYPE_CHECKING:
    from natcore.sinks.base import BaseSink, Batch, Receipt, Sink
    from natcore.sinks.clickhouse import ClickHouseSink
    from natcore.sinks.ipfix import IpfixSink
    from natcore.sinks.jsonlines import JsonLinesSink
    from natcore.sinks.kafka import KafkaSink
    from natcore.sinks.memory import MemorySink
    from natcore.sinks.parquet import ParquetSink
    from natcore.sinks.sls import SlsSink
    from natcore.sinks.syslog import SyslogSink

_HOMES = {
    "BaseSink": "natcore.sinks.base",
    "Batch": "natcore.sinks.base",
    "ClickHouseSink": "natcore.sinks.clickhouse",
    "IpfixSink": "natcore.sinks.ipfix",
    "JsonLinesSink": "natcore.sinks.jsonlines",
    "KafkaSink": "natcore.sinks.kafka",
    "MemorySink": "natcore.sinks.memory",
    "ParquetSink": "natcore.sinks.parquet",
    "Receipt": "natcore.sinks.base",
    "Sink": "natcore.sinks.base",
    "SlsSink": "natcore.sinks.sls",
    "SyslogSink": "natcore.sinks.syslog",
}

__all__ = [
    "BaseSink",
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

DELIVERY_TYPES = {  # the words for `sink = …` in a configuration file; a sink's library is imported with its class
    "clickhouse": "ClickHouseSink",
    "ipfix": "IpfixSink",
    "jsonlines": "JsonLinesSink",
    "kafka": "KafkaSink",
    "parquet": "ParquetSink",
    "sls": "SlsSink",
    "syslog": "SyslogSink",
}

__getattr__, __dir__ = late_names(__name__, _HOMES)
