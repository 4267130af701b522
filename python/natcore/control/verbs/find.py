"""The verb who: the inside host behind an outside endpoint now."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from natcore.config import DnatEntry
from natcore.control.rows import address_text, protocol_text
from natcore.control.verb import Answer, Context, verb
from natcore.control.verbs.tables import given
from natcore.errors import ControlError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.redaction import show

if TYPE_CHECKING:
    from natcore.entries.table import Entry
    from natcore.gateway import Gateway


@verb("who")
def who(context: Context, *, address: str, port: int, protocol: str | None = None, remote: str | None = None) -> Answer:
    """Say which inside hosts have an outside endpoint now, by their mappings; with a remote, by their sessions."""
    if not 0 <= port <= 0xFFFF:
        raise ControlError(f"port must be between 0 and 65535, got {port}", ExitCode.USAGE)
    if not address.replace(".", "").isdigit():
        raise ControlError(f"address must be an IPv4 address, got {show(address)}", ExitCode.USAGE)
    gateway = context.gateway
    asked = given(context, outside=f"{address}:{port}", protocol=protocol)
    found: dict[tuple[int, int, int], int] = {}
    slices = gateway.find_mappings(**asked) if remote is None else gateway.find_sessions(**asked, remote=remote)
    for rows in slices:
        for row in rows:
            key = int(row["inside_ip"]), int(row["inside_port"]), int(row["protocol"])
            found[key] = found.get(key, 0) + (int(row["sessions"]) if remote is None else 1)
        yield []
    for (inside_ip, inside_port, number), sessions in sorted(found.items()):
        yield {
            "subscriber": address_text(inside_ip), "port": inside_port, "protocol": protocol_text(number),
            "sessions": sessions,
        }  # fmt: skip
    subscribers = {inside_ip for inside_ip, _, _ in found}
    status = "unused" if not found else "exact" if len(subscribers) == 1 else "ambiguous"
    holder, entry = None, None if found else _static(gateway, address, port, protocol)
    if entry is not None:
        status, held = "static", entry.entry
        for target, _ in held.internal_ip:
            yield {
                "subscriber": str(target), "port": None, "protocol": held.protocol, "sessions": 0, "entry": entry.id,
                "entry_name": held.name,
            }  # fmt: skip
    elif not found and gateway.policy.ports == "deterministic":
        holder = gateway.who(address, port, protocol)
    return {"status": status, "reserved_for": None if holder is None else str(holder)}


def _static(gateway: Gateway, address: str, port: int, protocol: str | None) -> Entry[DnatEntry] | None:
    """Return the DNAT entry that an outside endpoint leads to."""
    for row in gateway.entries():
        entry = row.entry
        if not isinstance(entry, DnatEntry) or str(entry.external_ip) != address:
            continue
        if protocol not in (None, entry.protocol) and entry.protocol != "any":
            continue
        first, last, _ = entry.ports
        if first <= port <= last:
            return cast("Entry[DnatEntry]", row)
    return None
