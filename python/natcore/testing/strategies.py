"""Hypothesis strategies for packets, frames and gateways; `traffic.py` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import strategies as st

from natcore import Side
from natcore.config import POOLINGS
from natcore.testing import configurations as configurations_module
from natcore.testing import craft, traffic
from natcore.testing.configurations import WORKERS, Configuration, configuration
from natcore.testing.oracle.packets import ACK, FIXED, ICMP, TCP, UDP

Frames = list[tuple[bytes, Side]]


def randoms() -> st.SearchStrategy[Random]:
    """A random.Random with draws that Hypothesis may shrink."""
    return st.randoms(use_true_random=False)


def configurations(workers: Sequence[int] = WORKERS) -> st.SearchStrategy[Configuration]:
    """Gateways of all policies, most of them so small that their limits are met."""
    return randoms().map(lambda random: configuration(random, workers))


def seeds() -> st.SearchStrategy[int]:
    """Seeds of a random.Random: what is made of one is not shrunk, but it is drawn at once."""
    return st.integers(0, 2**32 - 1)


@st.composite
def followable(draw: st.DrawFn) -> Configuration:
    """Gateways that a test can follow by what leaves them; some have space for many sessions."""
    chosen = configuration(Random(draw(seeds())), (1,))
    spacious, redacted = draw(st.sampled_from([False, False, False, False, True])), draw(st.booleans())
    kind = draw(st.sampled_from(["any", "any", "any", "any", "few ports", "plain"]))
    if kind == "few ports":
        chosen, spacious = configurations_module.few_ports(chosen, draw(st.sampled_from(POOLINGS))), False
    elif kind == "plain":
        chosen, spacious = configurations_module.by_default(chosen), True
    return configurations_module.followable(chosen, spacious=spacious, redact_destination=redacted)


@st.composite
def frames(draw: st.DrawFn, configuration: Configuration, max_size: int = 40) -> Frames:
    """Frames and sides for a gateway that has no sessions yet: sound, odd, and damaged ones."""
    random, model = draw(randoms()), configuration.model()
    return [traffic.frame(random, model) for _ in range(draw(st.integers(0, max_size)))]


inside_hosts = st.integers(craft.address("10.0.0.2"), craft.address("10.0.255.254"))
remotes = st.integers(craft.address("8.0.0.0"), craft.address("9.255.255.255"))
ports = st.integers(0, 0xFFFF)
other_protocols = st.integers(1, 255).filter(lambda number: number not in (ICMP, TCP, UDP, *FIXED))  # 0 is dropped
payloads = st.binary(max_size=64)
ip_fields = st.fixed_dictionaries(
    {"ttl": st.integers(2, 255), "tos": st.integers(0, 255), "identification": ports, "dont_fragment": st.booleans()},
    optional={"ip_options": st.sampled_from([b"", bytes(4), b"\1" * 40, b"\x94\4\0\0", b"\1\x82\3\0"])},
)


@st.composite
def outbound_packets(draw: st.DrawFn, protocol: int) -> bytes:
    """A sound packet from an inside host to a remote, that opens a session; of ICMP an echo."""
    source, destination = (draw(inside_hosts), draw(ports)), (draw(remotes), draw(ports))
    fields: dict[str, Any] = draw(ip_fields)
    if protocol == ICMP:
        return craft.icmp(source[0], destination[0], identifier=source[1], payload=draw(payloads), **fields)
    if protocol == UDP:
        return craft.udp(source, destination, draw(payloads), no_checksum=draw(st.booleans()), **fields)
    if protocol != TCP:
        return craft.ipv4(protocol, source[0], destination[0], draw(payloads), **fields)
    sequence, acknowledgement = draw(st.integers(0, 0xFFFFFFFF)), draw(st.integers(0, 0xFFFFFFFF))
    numbers = {"sequence": sequence, "acknowledgement": acknowledgement}
    return craft.tcp(source, destination, ACK, draw(payloads), **numbers, **fields)  # type: ignore[arg-type]
