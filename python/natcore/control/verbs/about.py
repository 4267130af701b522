"""Verbs about the gateway as a whole: verbs, status, explain."""

from __future__ import annotations

import os
import time
from typing import Any

from natcore.control.verb import Answer, Context, verb, verbs
from natcore.errors import ControlError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.redaction import show
from natcore.metrics.health import Health
from natcore.verdict import Side


@verb("verbs", standby=True)
def list_verbs(context: Context) -> Answer:
    """List what may be asked here, by this peer."""
    for name, each in sorted(verbs().items()):
        text = (each.function.__doc__ or "").strip().split("\n")[0]
        yield {
            "verb": name, "writes": each.writes, "permitted": context.peer.writer or not each.writes,
            "arguments": list(each.arguments.__struct_fields__), "about": text,
        }  # fmt: skip
    return {}


@verb("status", standby=True)
def status(context: Context) -> dict[str, Any]:
    """Say how the gateway is: planes, tables, counters, session logs, this socket."""
    from natcore import __version__

    gateway, service = context.gateway, context.service
    planes = [
        {
            "inside": list(plane.inside), "outside": plane.outside, "state": plane.state,
            "counters": plane.counters(), "interfaces": plane.counters_by_interface(),
            "steering": {
                name: f"none: {each.unsteered}" if each.unsteered else each.steering
                for name, each in plane.interfaces().items()
            },
        }
        for plane in gateway.planes
    ]  # fmt: skip
    counters = gateway.counters()
    logs = [log_fields(log) for log in gateway.logs]
    states = {str(plane["state"]) for plane in planes}
    state = "stopped" if not planes else "running" if states == {"running"} else "degraded"
    waiting = list(Health(gateway).ready().problems)
    waiting += [f"session log {log['name']} has had no answer yet" for log in logs if log["state"] == "Modifying"]
    found: dict[str, Any] = {
        "instance": gateway.instance, "natcore": __version__, "pid": os.getpid(),
        "vpc_id": gateway.vpc_id, "region": gateway.region, "kind": gateway.kind, "time": round(time.time(), 3),
        "epoch": gateway.epoch, "warn_at": gateway.policy.warn_at, "ready": not waiting, "waiting_for": waiting, "state": state,
        "now": round(gateway.now, 3), "workers": gateway.workers, "entries": len(gateway.entries()),
        "sessions": counters["sessions"], "sessions_limit": gateway.max_sessions,
        "mappings": counters["mappings"], "mappings_limit": gateway.max_mappings,
        "counters": counters, "planes": planes, "logs": logs, "control": dict(context.control),
    }  # fmt: skip
    pair = getattr(service, "pair", None)
    if pair is not None:
        found["peer"] = peer_fields(pair)
        if service.is_standby:
            waiting = [] if pair.has_image else [f"it has nothing of {pair.peer_name} yet"]
            found |= {"state": "standby", "ready": not waiting, "waiting_for": waiting}
    if service is not None:
        found |= {
            "file": str(service.settings.source), "started": service.started, "reloads": service.reloads,
            "failed_reloads": service.failed_reloads, "last_reload_ok": service.last_reload_ok,
            "last_reload_at": service.last_reload_at,
        }  # fmt: skip
    return found


def peer_fields(pair: Any) -> dict[str, Any]:
    """Return one gateway of a pair as an object."""
    lag, lease = pair.lag_seconds, pair.lease_seconds
    return {
        "name": pair.name, "peer_name": pair.peer_name, "role": pair.role, "may_translate": pair.may_translate,
        "connected": pair.connected, "has_image": pair.has_image,
        "lag_seconds": None if lag is None else round(lag, 3), "lease_seconds": None if lease is None else round(lease, 3),
        "votes": pair.holders, "counters": pair.counters(),
    }  # fmt: skip


def log_fields(log: Any) -> dict[str, Any]:
    """Return a session log as an object."""
    told = log.delivery_status
    return {
        "name": log.name, "type": log.delivery_type, "destination": dict(log.destination), "status": log.status,
        "state": told.state, "code": told.code, "cause": told.cause, "message": told.message, "since": told.since,
        "counters": log.counters(), "oldest_waiting": round(log.oldest_waiting, 3), "spool_bytes": log.spool_bytes,
    }  # fmt: skip


@verb("explain", writes=True, slow=True)  # packets wait while the process is copied
def explain(context: Context, *, frame: str, side: str = "inside") -> dict[str, Any]:
    """Say what the running gateway would do with a frame (hexadecimal) now, step by step. For writers: packets wait for it."""
    if side not in ("inside", "outside"):
        raise ControlError(f"side must be inside or outside, got {show(side)}", ExitCode.USAGE)
    try:
        data = bytes.fromhex(frame)
    except ValueError as error:
        raise ControlError(
            f"frame must be pairs of hexadecimal digits, got {show(frame)} ({error})", ExitCode.USAGE
        ) from None
    told = context.gateway.explain(data, Side[side.upper()])
    return {
        "packet": told.packet, "verdict": told.verdict.name, "counter": told.counter,
        "steps": [step._asdict() for step in told.steps], "text": str(told), "asked": "the running gateway",
    }  # fmt: skip
