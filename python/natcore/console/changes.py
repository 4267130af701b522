"""What may be changed from a page, with --write: a session log is started, stopped, and tried again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natcore.control.client import Client
from natcore.control.protocol import Row
from natcore.errors import ControlError
from natcore.internal.exit_codes import ExitCode

CREATE, SELECT = "create", "select"
STOP_SECONDS = 600.0  # that a log may take to deliver what waits, and the page waits


def enable_form(client: Client, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the form that starts a session log: those that can be started, and where they may deliver to.

    given: what the form has so far: name, project, logstore, project_how and logstore_how ("select" or "create").
    """
    client.ask("status")
    status = client.summary
    logs = [log for log in client.ask("logs") if log["status"] == "Disabled"]
    missing, new = client.summary.get("missing", ""), client.summary.get("new")
    logs += [] if new is None else [{**new, "destination": {**new["destination"], "project": "", "logstore": ""}}]
    chosen = next((log for log in logs if log["name"] == given.get("name")), logs[0] if logs else None)
    found: dict[str, Any] = {
        "status": status, "logs": logs, "chosen": chosen, "given": dict(given), "projects": None, "logstores": None,
        "unlisted": "", "problem": "", "missing": missing, "is_new": new is not None,
    }  # fmt: skip
    if chosen is None or chosen["type"] != "sls":
        return found
    configured = chosen["destination"]
    project = given.get("project") or configured.get("project", "")
    found["given"] |= {"project": project, "logstore": given.get("logstore") or configured.get("logstore", "")}
    try:
        found["projects"] = [row["project"] for row in client.ask("log-destinations", name=chosen["name"])]
        if not project and found["projects"]:
            project = found["given"]["project"] = found["projects"][0]
        found["logstores"] = logstores(client, chosen["name"], project) if project in found["projects"] else []
    except ControlError as error:
        found["unlisted"] = str(error)  # they are typed then
    for what in ("project", "logstore"):
        known = found[f"{what}s"]
        found["given"].setdefault(f"{what}_how", SELECT if known and found["given"][what] in known else CREATE)
    return found


def logstores(client: Client, name: str, project: str) -> list[str]:
    """Return the Logstores of a project. Raises ControlError: they may not be listed, or it does not exist."""
    return [row["logstore"] for row in client.ask("log-destinations", name=name, project=project)]


def start(client: Client, given: Mapping[str, str]) -> Row:
    """Start a session log as the form says. Raises ControlError."""
    more: dict[str, Any] = {}
    for what in ("project", "logstore"):
        if f"{what}_how" in given:
            create = given[f"{what}_how"] == CREATE
            value = given.get(f"new_{what}" if create else what, "").strip()
            if not value:
                raise ControlError(f"give the {what}'s name", ExitCode.USAGE)
            more[what] = value
            if create:
                more["create"] = True
    client.ask("log-start", name=given.get("name", ""), **more)
    return client.summary


def stop(client: Client, given: Mapping[str, str]) -> Row:
    """Stop a session log. Raises ControlError."""
    client.ask("log-stop", name=given.get("name", ""))
    return client.summary


def retry(client: Client, given: Mapping[str, str]) -> Row:
    """Try a failed delivery now. Raises ControlError."""
    client.ask("log-retry", name=given.get("name", ""))
    return client.summary
