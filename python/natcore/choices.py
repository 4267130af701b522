"""The words that arguments take, as types for checkers; a wrong one is a ConfigurationError that lists them."""

from __future__ import annotations

from typing import Literal

Kind = Literal["internet", "vpc"]
EipBindMode = Literal["NAT", "MULTI_BINDED"]
Billing = Literal["by-usage", "by-specification"]
Framing = Literal["ethernet", "ip"]
HugePages = Literal["auto", "never", "explicit"]

Mapping = Literal["endpoint-independent", "address-and-port-dependent"]
Filtering = Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"]
Ports = Literal["random", "preserve", "block", "deterministic", "overload"]
Pooling = Literal["paired", "paired-soft", "arbitrary"]
IpOptions = Literal["rfc7126", "pass", "drop"]
IcmpQueries = Literal["all", "echo"]
IpId = Literal["unique", "keep"]
UnsolicitedSyn = Literal["silent", "icmp"]

SessionOrder = Literal[  # Gateway.rank_sessions
    "session", "bytes", "packets", "bytes-out", "bytes-in", "age", "idle", "expires", "subscriber", "outside", "remote"
]

DnatProtocol = Literal["tcp", "udp", "any"]
Protocol = Literal["tcp", "udp", "icmp"]

Driver = Literal["af_packet", "af_xdp"]
Favour = Literal["throughput", "latency"]
Steering = Literal["none", "rss"]
Steered = Literal["none", "fan-out", "rss"]  # Plane.interfaces
OnFailure = Literal["forward", "refuse"]
LogRows = Literal["all", "blocks"]  # Gateway.start_session_log
Gap = Literal["count", "freeze"]  # Gateway.restore
Transport = Literal["tcp", "udp"]  # IpfixSink
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]  # KafkaSink
SlsSchema = Literal["2026", "preview2024"]  # SlsSink
SlsRows = Literal["contract", "all"]
PlaneState = Literal["running", "degraded", "stopped"]
PlaneSide = Literal["inside", "outside"]
