"""Gateways that break one requirement each, on purpose, so that its conformance test can show that it notices.

A mutant changes what a gateway is asked for, or stands between the gateway and its frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from natcore import Gateway, Link, NoNatEntry, Policy, Side, SnatEntry, Timeouts, Verdict
from natcore.testhooks.planted_faults import touch_sessions
from natcore.testing.oracle.entries import PORTED
from natcore.testing.oracle.packets import ACK, RST, SYN, Packet, checksum, parse, rewrite

Outcome = tuple[Verdict, bytes | None]
Hook = Callable[[Gateway, Packet, Side, Outcome], Outcome]
DEPENDENT, INDEPENDENT = "address-and-port-dependent", "endpoint-independent"
EXHAUSTED = (Verdict.DROP_PORTS_EXHAUSTED, Verdict.DROP_SESSION_LIMIT)


@dataclass(frozen=True)
class Mutant:
    """What is wrong with a gateway."""

    what: str
    policy: dict[str, Any] = field(default_factory=dict)  # instead of what it was asked for, or a function of that
    timeouts: dict[str, float] = field(default_factory=dict)
    mtu: int | None = None
    after: Hook | None = None  # what becomes of each frame
    methods: dict[str, Callable[..., Any]] = field(
        default_factory=dict
    )  # of a gateway; each is given the original first

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Every gateway that is made meanwhile has it."""
        with ExitStack() as stack, warnings.catch_warnings():
            stack.enter_context(mock.patch.object(Gateway, "__init__", self._init(Gateway.__init__)))
            if self.after is not None:
                stack.enter_context(mock.patch.object(Gateway, "translate_one", self._translate(Gateway.translate_one)))
            for name, method in self.methods.items():
                original = getattr(Gateway, name)
                stack.enter_context(mock.patch.object(Gateway, name, _bound(method, original)))
            yield

    def _init(self, original: Callable[..., None]) -> Callable[..., None]:
        def init(gateway: Gateway, **settings: Any) -> None:
            policy = settings.get("policy") or Policy()
            wrong = {name: value(policy) if callable(value) else value for name, value in self.policy.items()}
            settings["policy"] = replace(policy, **wrong)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # idle times below the RFCs' minima are the point
                settings["timeouts"] = replace(settings.get("timeouts") or Timeouts(), **self.timeouts)
            if self.mtu is not None:
                for side in ("inside", "outside"):
                    settings[side] = replace(settings.get(side) or Link(), mtu=self.mtu)
            original(gateway, **settings)

        return init

    def _translate(self, original: Callable[..., Outcome]) -> Callable[..., Outcome]:
        def translate_one(gateway: Gateway, frame: bytes, side: int, now: float) -> Outcome:
            outcome = original(gateway, frame, side, now)
            packet = parse(frame, "ethernet", Side(side))
            assert self.after is not None
            return outcome if isinstance(packet, Verdict) else self.after(gateway, packet, Side(side), outcome)

        return translate_one


def _bound(method: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda gateway, *arguments, **options: method(original, gateway, *arguments, **options)


# What may be done to a frame


def with_port(choose: Callable[[Gateway, int], int]) -> Hook:
    """Outbound packets leave by another outside port, their checksums right."""

    def after(gateway: Gateway, packet: Packet, side: Side, outcome: Outcome) -> Outcome:
        verdict, sent = outcome
        if verdict is not Verdict.OUTBOUND or sent is None or packet.protocol not in PORTED or packet.kind == "error":
            return outcome
        translated = parse(sent, "ethernet", side)
        assert not isinstance(translated, Verdict)
        address, port = translated.source
        return verdict, rewrite(translated, translated.ttl, (address, choose(gateway, port)), translated.destination)

    return after


def when(condition: Callable[[Packet, Verdict], bool], do: Callable[[Gateway], object]) -> Hook:
    """Something is done to the gateway at some packets."""

    def after(gateway: Gateway, packet: Packet, side: Side, outcome: Outcome) -> Outcome:
        if condition(packet, outcome[0]):
            do(gateway)
        return outcome

    return after


def instead(condition: Callable[[Packet, Verdict], bool], verdict: Verdict) -> Hook:
    """Some packets have another verdict; one that forwards sends them as they came."""

    def after(gateway: Gateway, packet: Packet, side: Side, outcome: Outcome) -> Outcome:
        if not condition(packet, outcome[0]):
            return outcome
        return verdict, None if verdict.is_drop else packet.frame

    return after


def keep_quote(gateway: Gateway, packet: Packet, side: Side, outcome: Outcome) -> Outcome:
    """The packet that an ICMP error quotes stays as it came."""
    verdict, sent = outcome
    if packet.kind != "error" or sent is None:
        return outcome
    at = packet.link + packet.header + 8
    return verdict, sent[:at] + packet.frame[at:]


def renumber(gateway: Gateway, packet: Packet, side: Side, outcome: Outcome) -> Outcome:
    """Another IP identification, the header's checksum right."""
    verdict, sent = outcome
    if sent is None:
        return outcome
    new, ip = bytearray(sent), packet.link
    new[ip + 4 : ip + 6] = b"\x55\xaa"
    new[ip + 10 : ip + 12] = b"\0\0"
    new[ip + 10 : ip + 12] = checksum(new[ip : ip + packet.header]).to_bytes(2, "big")
    return verdict, bytes(new)


def meddle(gateway: Gateway, packet: Packet, side: Side, outcome: Outcome) -> Outcome:
    """A payload that names the inside address names another one, as an application-level gateway would have it."""
    verdict, sent = outcome
    return verdict, sent and sent.replace(b"10.0.0.5", b"192.0.2.").replace(b"10,0,0,5", b"192,0,2,")


def in_a_row(gateway: Gateway, port: int) -> int:
    """One port after the other."""
    return 4000 + len(gateway.sessions())


def all_but_one(policy: Policy) -> tuple[tuple[int, int], ...]:
    """The port ranges without their last port."""
    *others, (first, last) = policy.port_ranges
    return (*others, (first, last - 1))


def refresh(gateway: Gateway) -> None:
    touch_sessions(gateway._core.worker_capsule())


def is_error(packet: Packet, verdict: Verdict) -> bool:
    return packet.kind == "error" and not verdict.is_drop


NO_MAPPING = instead(lambda packet, verdict: verdict is Verdict.DROP_NO_MAPPING, Verdict.INBOUND)


def end_all(gateway: Gateway) -> None:
    gateway.end_all()


def first_of_pool(original: Any, gateway: Gateway, entry: Any) -> Any:
    """An SNAT entry has the first address of its pool alone."""
    return original(gateway, SnatEntry(entry.source, entry.pool[:1]) if isinstance(entry, SnatEntry) else entry)


def one_pool(original: Any, gateway: Gateway, entry: Any) -> Any:
    """The SNAT entries of all gateways have the same address."""
    return original(gateway, SnatEntry(entry.source, "203.0.113.1") if isinstance(entry, SnatEntry) else entry)


def no_plain(original: Any, gateway: Gateway, entry: Any) -> Any:
    return None if isinstance(entry, NoNatEntry) else original(gateway, entry)


TOO_SIMPLE = {"tcp": None, "udp": None, "icmp": None}
MUTANTS: dict[str, list[Mutant]] = {
    "4787-1": [Mutant("a mapping for each remote", policy={"mapping": DEPENDENT})],
    "4787-2": [Mutant("any address of the pool", policy={"pooling": "arbitrary"})],
    "4787-3": [Mutant("one port for everybody", after=with_port(lambda gateway, port: 4000))],
    "4787-4": [Mutant("an odd port for an even one", after=with_port(lambda gateway, port: port ^ 1))],
    "4787-5": [Mutant("a mapping lives a minute", timeouts={"udp": 60})],
    "4787-6": [
        Mutant("inbound packets never refresh", policy={"inbound_refresh": False}),
        Mutant("inbound packets always refresh", policy={"inbound_refresh": True}),
    ],
    "4787-7": [
        Mutant(
            "no remote has a private address",
            after=instead(
                lambda p, v: v is Verdict.OUTBOUND and p.destination[0] >> 24 == 10, Verdict.DROP_UNSUPPORTED
            ),
        ),
        Mutant("one gateway for all", methods={"add": one_pool}),
    ],
    "4787-8": [
        Mutant("no filter", policy={"filtering": INDEPENDENT}),
        Mutant("what has no mapping is let in", after=NO_MAPPING),
    ],
    "4787-9": [Mutant("no hairpin", policy={"hairpin": False})],
    "4787-10": [Mutant("an application's gateway", after=meddle)],
    "4787-11": [
        Mutant("other ports under load", after=with_port(lambda gateway, port: port ^ (len(gateway.sessions()) > 100)))
    ],
    "4787-12": [Mutant("an error ends mappings", after=when(is_error, end_all))],
    "4787-13": [Mutant("nothing is too big", mtu=65535)],
    "4787-13a": [Mutant("the first fragment alone is sent", methods={"take_generated": lambda original, gateway: []})],
    "4787-14": [Mutant("what waited is never sent", methods={"take_generated": lambda original, gateway: []})],
    "4787-14a": [
        Mutant("fragments wait for ten minutes", timeouts={"fragment": 600}),
        Mutant("any fragment passes", after=instead(lambda p, v: v is Verdict.DROP_FRAGMENT, Verdict.OUTBOUND)),
    ],
    "5382-1": [Mutant("a mapping for each remote", policy={"mapping": DEPENDENT})],
    "5382-2": [
        Mutant(
            "a SYN from outside is never let in",
            after=instead(lambda p, v: v is Verdict.INBOUND and p.flags & (SYN | ACK) == SYN, Verdict.DROP_FILTERED),
        )
    ],
    "5382-3": [Mutant("TCP filters as UDP does", policy=TOO_SIMPLE)],
    "5382-4": [
        Mutant(
            "a SYN is answered after three seconds",
            policy={"unsolicited_syn": "icmp"},
            methods={"advance": lambda original, gateway, now: original(gateway, now * 2)},
        )
    ],
    "5382-4a": [
        Mutant("always silent", policy={"unsolicited_syn": "silent"}),
        Mutant("never silent", policy={"unsolicited_syn": "icmp"}),
    ],
    "5382-5": [
        Mutant("established lives an hour", timeouts={"tcp_established": 3600}),
        Mutant("transitory lives two minutes", timeouts={"tcp_transitory": 120}),
    ],
    "5382-6": [Mutant("an application's gateway", after=meddle)],
    "5382-7": [Mutant("one port for everybody", after=with_port(lambda gateway, port: 4000))],
    "5382-8": [Mutant("no hairpin", policy={"hairpin": False})],
    "5382-9": [Mutant("quoted packets stay as they are", after=keep_quote)],
    "5382-10": [Mutant("an error ends connections", after=when(is_error, end_all))],
    "5508-1": [
        Mutant("an id for each remote", policy={"mapping": DEPENDENT}),
        Mutant("echoes alone pass", policy={"icmp_queries": "echo"}),
    ],
    "5508-2": [
        Mutant("a query lives half a minute", timeouts={"icmp": 30}),
        Mutant("a query lives ten minutes", timeouts={"icmp": 600}),
    ],
    "5508-3": [
        Mutant("no checksum is verified", after=instead(lambda p, v: v is Verdict.DROP_CHECKSUM, Verdict.INBOUND))
    ],
    "5508-4": [
        Mutant("quoted packets stay as they are", after=keep_quote),
        Mutant("what has no mapping is let in", after=NO_MAPPING),
    ],
    "5508-5": [Mutant("quoted packets stay as they are", after=keep_quote)],
    "5508-6": [
        Mutant("an error refreshes", after=when(is_error, refresh)),
        Mutant("an error ends mappings", after=when(is_error, end_all)),
    ],
    "5508-7": [Mutant("quoted packets stay as they are", after=keep_quote)],
    "5508-7a": [Mutant("no hairpin", policy={"hairpin": False})],
    "5508-8": [Mutant("no error is sent", policy={"icmp_unreachable": False})],
    "5508-9": [Mutant("everybody is told", policy={"icmp_unreachable": True, "icmp_rate": 100})],
    "5508-10": [
        Mutant("errors are dropped", after=instead(lambda p, v: p.kind == "error", Verdict.DROP_UNSUPPORTED)),
        Mutant("every query passes", policy={"icmp_queries": "all"}),
    ],
    "5508-11": [
        Mutant("everything passes", after=instead(lambda p, v: v is Verdict.DROP_UNSUPPORTED, Verdict.INBOUND))
    ],
    "6888-2": [Mutant("any address of the pool", policy={"pooling": "arbitrary"})],
    "6888-3": [Mutant("one address of the pool", methods={"add": first_of_pool})],
    "6888-4": [
        Mutant("no limit of ports", policy={"ports_per_subscriber": None}),
        Mutant("no limit of new sessions", policy={"new_sessions_per_second": None}),
    ],
    "6888-5": [Mutant("no limit of sessions", policy={"sessions_per_subscriber": None})],
    "6888-6": [Mutant("no destination is chosen", methods={"add": no_plain})],
    "6888-7": [Mutant("filters by address", policy={"filtering": "address-dependent"})],
    "6888-8": [Mutant("a freed port is drawn at once", policy={"hold_down": 0})],
    "6888-10": [Mutant("no events", methods={"take_events": lambda original, gateway: []})],
    "6888-11a": [
        Mutant(
            "what cannot be translated leaves as it is", after=instead(lambda p, v: v in EXHAUSTED, Verdict.OUTBOUND)
        )
    ],
    "6888-11b": [Mutant("no error is sent", policy={"icmp_unreachable": False})],
    "6888-11c": [Mutant("no events", methods={"take_events": lambda original, gateway: []})],
    "6888-11d": [Mutant("sessions are ended", after=when(lambda packet, verdict: verdict in EXHAUSTED, end_all))],
    "6888-12": [
        Mutant(
            "no log leaves anything out",
            methods={
                "start_session_log": lambda original, gateway, sink, **options: original(
                    gateway, sink, **{**options, "redact_destination": False}
                )
            },
        )
    ],
    "6888-13": [Mutant("a port is never used", policy={"port_ranges": all_but_one})],
    "6888-14": [Mutant("ports from anywhere", policy={"ports": "random"})],
    "6888-15": [Mutant("one port after the other", after=with_port(in_a_row))],
    "7857-2": [Mutant("every state is transitory", timeouts={"tcp_established": 240})],
    "7857-2.1": [Mutant("one timer for all states", timeouts={"tcp_established": 240, "tcp_transitory": 240})],
    "7857-2.2": [Mutant("a RST ends", after=when(lambda packet, verdict: bool(packet.flags & RST), end_all))],
    "7857-3": [Mutant("a port for each destination", policy={"ports": "random"})],
    "7857-4": [
        Mutant("always hard", policy={"pooling": "paired"}),
        Mutant("always soft", policy={"pooling": "paired-soft"}),
    ],
    "7857-5": [Mutant("one mapping for all protocols", policy=TOO_SIMPLE)],
    "7857-6": [Mutant("one filter for all protocols", policy=TOO_SIMPLE)],
    "7857-7": [
        Mutant(
            "a refused packet refreshes", after=when(lambda packet, verdict: verdict is Verdict.DROP_FILTERED, refresh)
        )
    ],
    "7857-7.1": [
        Mutant("a RST refreshes", after=when(lambda packet, verdict: bool(packet.flags & RST), refresh)),
        Mutant("an error refreshes", after=when(is_error, refresh)),
    ],
    "7857-8": [Mutant("parity is always kept", policy={"parity": True})],
    "7857-9": [Mutant("one port after the other", after=with_port(in_a_row))],
    "7857-10": [
        Mutant("identifications are the senders'", policy={"ip_id": "keep"}),
        Mutant("atomic packets are renumbered", after=renumber),
    ],
    "7857-11": [Mutant("an ICMP mapping outlives its sessions", timeouts={"icmp": 600})],
    "7857-12": [Mutant("no hairpin", policy={"hairpin": False})],
}
