"""What the tests of fragments share: datagrams to cut, what leaves a gateway of their pieces, and the counters' identity."""

from __future__ import annotations

from natcore import Gateway, Side, Verdict
from support.frames import echo, tcp, udp

LOAD = bytes(range(256)) * 12  # 3,072 bytes
MAKERS = {"udp": udp, "tcp": lambda **fields: tcp("PA", **fields), "icmp": echo}


def sent(
    over: Gateway, frames: list[bytes], side: Side = Side.INSIDE, now: float = 0.0
) -> tuple[list[Verdict], list[bytes]]:
    """The verdicts, and all that left, what waited included."""
    results = [over.translate_one(frame, side, now) for frame in frames]
    released = over.take_generated()
    assert {g.cause for g in released} <= {Verdict.HELD}
    return [verdict for verdict, _ in results], [out for _, out in results if out] + [g.frame for g in released]


def adds_up(over: Gateway, **expected: int) -> None:
    counters = over.counters()
    assert counters["received"] == sum(counters[name] for name in ("forwarded", "local", "dropped", "held"))
    assert {name: counters[name] for name in expected} == expected
