"""A gateway in scapy's pipes: between a source of packets and a sink, with the links of both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from natcore.internal.extras import extra
from natcore.verdict import Side, Verdict

with extra("testing"):
    from scapy.layers.inet import IP
    from scapy.layers.l2 import Ether
    from scapy.pipetool import Drain

if TYPE_CHECKING:
    from natcore.gateway import Gateway


class GatewayDrain(Drain):
    """Translates what comes by its entries, from one thread, such as that of scapy's PipeEngine.

    The low entry is the inside link, the high entry the outside link: ``inside > drain > outside``, and back
    ``outside >> drain >> inside``. What leaves outside goes to the low exit, what leaves inside to the high exit: hairpins and
    ICMP errors to inside hosts too.

    Parameters
    ----------
    gateway
        In memory; it stays the caller's.
    clock
        Gives the seconds on the gateway's clock of a packet that came; None: by the packets' own times (`packet.time`),
        from the first one's on.
    name
        As scapy shows it.

    Attributes
    ----------
    verdicts
        How often each.
    """

    def __init__(self, gateway: Gateway, clock: Callable[[Any], float] | None = None, name: str | None = None) -> None:
        super().__init__(name)
        self.verdicts: dict[Verdict, int] = {}
        self._gateway = gateway
        self._clock = clock or self._time_of
        self._layer = IP if gateway.framing == "ip" else Ether
        self._first: float | None = None

    def push(self, msg: Any) -> None:
        """Take a packet of the inside link."""
        self._translate(msg, Side.INSIDE)

    def high_push(self, msg: Any) -> None:
        """Take a packet of the outside link."""
        self._translate(msg, Side.OUTSIDE)

    def _time_of(self, packet: Any) -> float:
        time = float(packet.time)
        if self._first is None:
            self._first = time
        return max(0.0, time - self._first)

    def _translate(self, packet: Any, side: Side) -> None:
        verdict, frame = self._gateway.translate_one(bytes(packet), side, self._clock(packet))
        self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1
        egress = verdict.egress(side)
        if frame is not None and egress is not None:
            self._leave(frame, egress, packet.time)
        for made in self._gateway.take_generated():
            self._leave(made.frame, made.send_to, packet.time)

    def _leave(self, frame: bytes, side: Side, time: Any) -> None:
        packet = self._layer(frame)
        packet.time = time
        (self._send if side is Side.OUTSIDE else self._high_send)(packet)
