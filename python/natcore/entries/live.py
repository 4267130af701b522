"""What of a policy may change while a gateway runs.

What new sessions are judged by may change, and what is asked of each packet. What the present mappings and ports were made by
may not: an inside endpoint would have two outside endpoints (RFC 4787 REQ-1), and a port two schemes of allocation.
"""

from __future__ import annotations

from natcore.config import BLOCKED, Policy
from natcore.errors import RestartNeededError
from natcore.internal.redaction import show

SCHEME_FREE = {"random", "preserve"}  # both draw from all ports of an address: one may follow the other


def check_live(before: Policy, after: Policy) -> None:
    """Raise RestartNeededError, which names every field that a running gateway cannot change."""
    fixed = [name for name in ("mapping", "filtering") if _differs(before, after, name)]
    if before.ports != after.ports and not {before.ports, after.ports} <= SCHEME_FREE:
        fixed.append("ports")
    fixed += [name for name in ("port_ranges", "host_ports") if getattr(before, name) != getattr(after, name)]
    if before.block_size != after.block_size and before.ports in BLOCKED:
        fixed.append("block_size")
    if not fixed:
        return
    told = "; ".join(
        f"Policy.{name} must stay {show(getattr(before, name))} while the gateway runs, got {show(getattr(after, name))}"
        if getattr(before, name) != getattr(after, name)
        else f"Policy.{name} must stay what it is for each protocol (tcp, udp, icmp) while the gateway runs"
        for name in fixed
    )
    raise RestartNeededError(f"{told}: a restart is needed", tuple(f"Policy.{name}" for name in fixed))


def _differs(before: Policy, after: Policy, name: str) -> bool:
    """Whether mapping or filtering changes for a protocol in a way that needs a restart.

    Address-dependent filtering has an index of the addresses that each session was opened to, which others lack.
    """
    for protocol in ("tcp", "udp", "icmp"):
        one: str = getattr(before.behaviour(protocol), name)
        other: str = getattr(after.behaviour(protocol), name)
        indexed = protocol != "icmp" and "address-dependent" in (one, other)
        if one != other and (name == "mapping" or indexed):
            return True
    return False
