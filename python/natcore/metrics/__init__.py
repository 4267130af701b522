"""Metrics of a gateway for Prometheus, and whether it is well: a collector, and an HTTP endpoint with health checks."""

from natcore.metrics.collector import Collector
from natcore.metrics.endpoint import Endpoint
from natcore.metrics.health import Health, Report

__all__ = ["Collector", "Endpoint", "Health", "Report"]
