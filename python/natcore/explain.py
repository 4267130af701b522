"""Explanation: what a gateway would do with a packet, step by step, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from natcore.api.explain import explain as rehearse
from natcore.choices import Protocol
from natcore.config import Policy, SnatEntry
from natcore.dtypes import MAPPING, SESSION, format_ipv4
from natcore.entries.table import Entry
from natcore.events import Generated
from natcore.internal.protocols import ICMP, NAMES, TCP, UDP
from natcore.verdict import Side, Verdict

if TYPE_CHECKING:
    from natcore.api.gateway import Core
    from natcore.entries.changes import EntryTable

NONE, ALIVE, DEAD = range(3)  # by Found of natcore/api/explain.pyx
STATES = ("SYN from inside", "SYN from outside", "picked up", "established", "inside finished", "outside finished",
          "closing", "after a RST", "picked up from outside")  # fmt: skip
WORDS: Mapping[int, Protocol] = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}  # as Policy has them
RULES = ("", "SNAT", "DNAT", "1:1", "no-NAT")


class Step(NamedTuple):
    """One decision on a packet's way. because: what it rests on, with the RFC or the policy behind it."""

    name: str
    decision: str
    because: str


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What would become of a packet at a moment; str() is for a reader.

    verdict, counter: what translate would give, and the counter it would raise. frame: what would be sent, or None.
    entry: the entry that decides, or None. session: the SESSION row of the packet as it is, or, with created, as it would
    be. mapping: its MAPPING row likewise. other: a hairpin's second session. ended: expired sessions that this
    packet would find and end first. generated: what the gateway would say itself. steps: the decisions, in order.
    """

    verdict: Verdict
    side: Side
    now: float
    packet: str
    steps: tuple[Step, ...]
    entry: Entry | None
    session: Any
    mapping: Any
    other: Any
    created: int
    ended: int
    frame: bytes | None
    generated: tuple[Generated, ...]

    @property
    def counter(self) -> str:
        """The counter that it would raise, besides received (and dropped)."""
        return counter_of(self.verdict)

    def __str__(self) -> str:
        lines = [f"{self.packet} from {self.side.name.lower()} at {self.now:g} s: {self.verdict.name}"]
        width = max(len(step.name) for step in self.steps)
        lines += [f"  {step.name:<{width}}  {step.decision}: {step.because}" for step in self.steps]
        lines += [f"  {'counter':<{width}}  {self.counter}"]
        for own in self.generated:
            lines.append(f"  {'answer':<{width}}  {describe_packet(own.frame)}, to {own.send_to.name.lower()}")
        return "\n".join(lines)


def counter_of(verdict: Verdict) -> str:
    """The counter of a verdict, besides received (and dropped)."""
    if verdict.is_drop:
        return verdict.counter
    return "forwarded" if verdict.is_forwarded else verdict.name.lower()


# ---- packets in words ------------------------------------------------------------------------------------------------


def ip_of(frame: bytes) -> bytes:
    """The IPv4 packet in an Ethernet frame, tagged or not, or the bare packet; empty: there is none."""
    if len(frame) >= 20 and frame[0] >> 4 == 4 and frame[12:14] != b"\x08\x00":
        return frame
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return frame[at + 2 :] if frame[at : at + 2] == b"\x08\x00" else b""


def describe_packet(frame: bytes) -> str:
    """Return a packet in words: UDP 10.0.0.5:5353 to 198.51.100.7:53, 28 bytes, TTL 64."""
    ip = ip_of(frame)
    if len(ip) < 20:
        return f"{len(frame)} bytes that are no IPv4 packet"
    header, protocol = (ip[0] & 15) * 4, ip[9]
    name, rest = NAMES.get(protocol, f"protocol {protocol}"), ip[header:]
    ends = [format_ipv4(int.from_bytes(ip[at : at + 4], "big")) for at in (12, 16)]
    detail = ""
    offset = int.from_bytes(ip[6:8], "big")
    if offset & 0x1FFF:
        detail = f", a fragment at {(offset & 0x1FFF) * 8}"
    elif protocol in (TCP, UDP) and len(rest) >= 4:
        ends = [f"{end}:{int.from_bytes(rest[at : at + 2], 'big')}" for end, at in zip(ends, (0, 2), strict=True)]
        if protocol == TCP and len(rest) >= 14:
            detail = f" [{flags_of(rest[13])}]"
    elif protocol == ICMP and len(rest) >= 8:
        name = f"ICMP {rest[0]}/{rest[1]}"
        detail = f", id {int.from_bytes(rest[4:6], 'big')}" if rest[0] in (0, 8, *range(13, 19)) else ""
    return f"{name} {ends[0]} to {ends[1]}{detail}, {int.from_bytes(ip[2:4], 'big')} bytes, TTL {ip[8]}"


def flags_of(flags: int) -> str:
    """Return TCP flags in words."""
    names = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
    return " ".join(name for bit, name in enumerate(names) if flags >> bit & 1) or "no flags"


# ---- why -------------------------------------------------------------------------------------------------------------

# The step at which a packet is refused, and why; {filtering}, … are the policy's.
REFUSALS: dict[Verdict, tuple[str, str]] = {
    Verdict.DROP_MALFORMED: ("parse", "a length or a header that cannot be (RFC 1812 section 5.2.2)"),
    Verdict.DROP_CHECKSUM: (
        "parse",
        "the checksum of the IPv4 header, or of an ICMP error, is wrong (RFC 1812 section 5.2.2, RFC 5508 REQ-3)",
    ),
    Verdict.DROP_FRAGMENT: ("parse", "a fragment that cannot be matched with its first one (RFC 4787 REQ-14)"),
    Verdict.DROP_UNSUPPORTED: (
        "parse",
        "no protocol, ICMP message or destination that is translated (RFC 5508 REQ-11)",
    ),
    Verdict.DROP_SPOOFED: (
        "source",
        "it cannot come from there: no host's address, the gateway's own, one of the pool's, or an inside one from outside",
    ),
    Verdict.DROP_NO_SNAT_ENTRY: ("entry", "no SNAT, 1:1 or no-NAT entry covers its source (RFC 5508 REQ-8)"),
    Verdict.DROP_NO_MAPPING: ("mapping", "nothing is open there (RFC 4787 section 5)"),
    Verdict.DROP_FILTERED: ("filter", "filtering is {filtering}, and the inside has not sent there (RFC 4787 REQ-8)"),
    Verdict.DROP_TTL: ("hop", "its time to live ends here (RFC 1812 section 5.3.1)"),
    Verdict.DROP_MTU: ("hop", "it is longer than the next link carries (RFC 4787 REQ-13)"),
    Verdict.DROP_PORTS_EXHAUSTED: ("limits", "no port of the pool is free, ports={ports} (RFC 6888 REQ-11)"),
    Verdict.DROP_SESSION_LIMIT: (
        "limits",
        "max_sessions, max_mappings or max_subscribers is reached (RFC 6888 REQ-11)",
    ),
    Verdict.DROP_SUBSCRIBER_LIMIT: ("limits", "the subscriber has as much as its quota allows (RFC 6888 REQ-4)"),
    Verdict.DROP_RATE_LIMIT: ("limits", "too many new sessions in this second (RFC 6888 REQ-4)"),
    Verdict.DROP_OUTSIDE_LIMIT: ("limits", "as many sessions are opened from outside as may be, here or in all"),
    Verdict.DROP_CONFLICT: ("session", "another live session has the key of its answers"),
    Verdict.DROP_IP_OPTION: ("parse", "an IPv4 option that is not forwarded, ip_options={ip_options} (RFC 7126)"),
    Verdict.DROP_PROBE_LIMIT: ("session", "the index has no place near where it looks"),
}


def refusal(verdict: Verdict, facts: dict[str, Any], side: Side, ip: bytes, policy: Policy) -> Step:
    """Return the step that refuses the packet."""
    name, because = REFUSALS.get(verdict, ("decision", "as its name says"))
    protocol = WORDS.get(facts["protocol"])
    flags = ip[(ip[0] & 15) * 4 + 13] if facts["parsed"] == 255 and facts["protocol"] == TCP else 0
    if facts["is_error"] and verdict in (Verdict.DROP_NO_MAPPING, Verdict.DROP_UNSUPPORTED):
        name, because = (
            "session",
            "no live session is like what it quotes, sequence number included (RFC 5508 REQ-4, REQ-5)",
        )
    elif protocol == "tcp" and verdict is Verdict.DROP_NO_MAPPING and side is Side.INSIDE and not facts["ours"]:
        why = "a RST opens nothing" if flags & 4 else "tcp_pickup=False: only a SYN opens"
        name, because = "session", f"{why} (RFC 5382 REQ-2)"
    elif protocol == "tcp" and verdict is Verdict.DROP_FILTERED and flags & 6 != 2:
        because = (
            "it belongs to no session, and from outside only a SYN opens one, or, with tcp_pickup and at an entry's "
        )
        because += "port, any segment but a RST (RFC 7857 section 2)"
    elif verdict is Verdict.DROP_UNSUPPORTED and facts["ours"] and side is Side.INSIDE and not policy.hairpin:
        name, because = "entry", "hairpin=False: inside hosts do not reach each other by outside endpoints"
    filtering = policy.behaviour(protocol).filtering if protocol else policy.filtering
    return Step(name, "refused", because.format(filtering=filtering, ports=policy.ports, ip_options=policy.ip_options))


# ---- the steps -------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """The entry, session and mapping that the packet meets, as rows."""

    entry: Entry | None
    session: Any
    new: bool  # the session begins with the packet
    mapping: Any
    other: Any
    frame: bytes


def _session_step(own: dict[str, Any], found: Found) -> Step:
    if own["before"] == ALIVE and not found.new:
        return Step("session", f"{int(found.session['session'])}", _state(found.session))
    if own["before"] == ALIVE:
        return Step("session", "new", "a SYN opens an ended connection again (RFC 7857 section 2)")
    dead = "its time is over" if own["before"] == DEAD else "none has these ends"
    return Step("session", "new" if found.new else "none", dead)


def _state(session: Any) -> str:
    state = f"{STATES[int(session['state'])]}, " if session["protocol"] == TCP else ""
    opened = "opened from outside, " if session["opened_outside"] else ""
    return f"{state}{opened}it lives until {session['deadline_ns'] / 1e9:g} s"


def _entry_step(facts: dict[str, Any], entry: Entry | None, side: Side) -> Iterator[Step]:
    if entry is not None:
        kind = RULES[facts["rule_kind"]] or "of its session"
        yield Step("entry", entry.describe(), f"{kind}, by {'source' if side is Side.INSIDE else 'outside endpoint'}")
    elif side is Side.OUTSIDE:
        there = "is" if facts["ours"] else "is not"
        yield Step("entry", "none", f"the destination {there} an outside address, no DNAT entry has it")


def _mapping_step(own: dict[str, Any], found: Found, policy: Policy) -> Iterator[Step]:
    if own["mapping_before"] == NONE and own["mapping_after"] == NONE:
        return
    if found.mapping is None:
        yield Step("mapping", "none", "all its sessions' time is over")
        return
    ends = f"{_end(found.mapping, 'inside')} is {_end(found.mapping, 'outside')}"
    if not found.new or found.mapping["sessions"] > 1:
        yield Step("mapping", ends, "it is there already")
    elif found.entry is not None and isinstance(found.entry.entry, SnatEntry):
        yield Step("mapping", ends, f"new: mapping={policy.mapping}, ports={policy.ports}, pooling={policy.pooling}")
    else:
        yield Step("mapping", ends, "new: the entry says so")


def _end(row: Any, which: str) -> str:
    port = f":{int(row[f'{which}_port'])}" if row["protocol"] in NAMES else ""
    return f"{format_ipv4(int(row[f'{which}_ip']))}{port}"


PASSED = {
    Verdict.OUTBOUND: "the source becomes the outside endpoint",
    Verdict.INBOUND: "the destination becomes the inside endpoint",
    Verdict.HAIRPIN: "both become what the other end sees (RFC 4787 REQ-9)",
    Verdict.UNTRANSLATED: "a no-NAT entry: nothing but the time to live changes (RFC 6888 REQ-6)",
    Verdict.LOCAL: "it is for the gateway itself, or for its host, which has the address too",
    Verdict.HELD: "a fragment that waits for its first one (RFC 4787 REQ-14)",
}


def _steps(
    facts: dict[str, Any], verdict: Verdict, side: Side, frame: bytes, found: Found, policy: Policy
) -> list[Step]:
    end = refusal(verdict, facts, side, ip_of(frame), policy) if verdict.is_drop else None
    if facts["parsed"] != 255 and end is not None:
        return [end]
    steps = [Step("parse", "sound", describe_packet(frame))]
    if facts["ended"]:
        count = f"{facts['ended']} session{'s' if facts['ended'] > 1 else ''}"
        steps.append(Step("expiry", count, "expired; this packet meets them, or needs the space that they take"))
    if verdict not in (Verdict.LOCAL, Verdict.HELD, Verdict.DROP_SPOOFED) and (end is None or end.name != "parse"):
        if end is None or end.name != "session":
            steps.append(_session_step(facts["own"], found))
        if not facts["is_error"] and (end is None or end.name not in ("entry", "session")):
            steps += _entry_step(facts, found.entry, side)
        if end is None or end.name in ("filter", "limits", "hop"):
            steps += _mapping_step(facts["own"], found, policy)
        if found.other is not None:
            steps.append(Step("hairpin", f"session {int(found.other['session'])}", _state(found.other)))
    if end is None:
        sent = describe_packet(found.frame) if verdict.is_forwarded else verdict.name.lower()
        end = Step("send" if verdict.is_forwarded else "keep", sent, PASSED[verdict])
    steps.append(end)
    if facts["kept"]:
        steps.append(Step("answer", "in 6 s", "port unreachable, unless the inside opens meanwhile (RFC 5382 REQ-4)"))
    return steps


def _row(raw: bytes, dtype: np.dtype[np.void]) -> Any:
    return np.frombuffer(raw, dtype)[0]


def _session_of(party: dict[str, Any]) -> tuple[Any, bool]:
    """As it is; or as it would be, if it begins with the packet."""
    was, becomes = _row(party["was"], SESSION), _row(party["becomes"], SESSION)
    if party["after"] == ALIVE and (party["before"] != ALIVE or was["session"] != becomes["session"]):
        return becomes, True
    return (was if party["before"] == ALIVE else None), False


def explain(core: Core, table: EntryTable, policy: Policy, frame: bytes, side: Side, now_ns: int) -> Explanation:
    """Explain a frame at now_ns."""
    now_ns = max(now_ns, core.now_ns)
    facts = rehearse(core.workers, frame, side, now_ns)
    verdict, own, other = Verdict(facts["verdict"]), facts["own"], facts["other"]
    session, new = _session_of(own)
    mapped = ALIVE in (own["mapping_before"], own["mapping_after"])
    number = int(session["entry"]) if session is not None else facts["rule"]
    found = Found(
        table.find(number),
        session,
        new,
        _row(own["mapping"], MAPPING) if mapped else None,
        _row(other["becomes"], SESSION) if other["after"] == ALIVE else None,
        facts["frame"],
    )
    return Explanation(
        verdict=verdict,
        side=side,
        now=now_ns / 1e9,
        packet=describe_packet(frame),
        steps=tuple(_steps(facts, verdict, side, frame, found, policy)),
        entry=found.entry,
        session=session,
        mapping=found.mapping,
        other=found.other,
        created=facts["created"],
        ended=facts["ended"],
        frame=facts["frame"] if verdict.is_forwarded else None,
        generated=tuple(Generated(data, Side(to), Verdict(cause)) for data, to, cause in facts["generated"]),
    )
