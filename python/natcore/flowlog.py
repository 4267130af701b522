"""The flow log: what each interface saw, to be laid beside the session log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from natcore.api.flow_log import FlowTable
from natcore.config import check_integer, check_number
from natcore.internal.change_lock import after_fork
from natcore.internal.closing import Closing
from natcore.internal.parts import parts_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.gateway import Gateway

# The fields of the cloud's flow log. Addresses and ports in host order; times in microseconds since 1970.
FLOW = np.dtype(
    {
        "names": [
            "srcaddr", "srcport", "dstaddr", "dstport", "protocol", "direction", "bytes", "packets", "start", "end",
            "interface", "action",
        ],
        "formats": ["u4", "u2", "u4", "u2", "u1", "u1", "u8", "u8", "i8", "i8", "u1", "u1"],
        "offsets": [32, 40, 36, 42, 44, 46, 0, 8, 16, 24, 45, 47],
        "itemsize": 48,
    }
)  # fmt: skip
IN, OUT = 0, 1  # direction, as the interface sees it; `interface` is a Side
ACCEPT, REJECT = 0, 1  # action: forwarded, or dropped by the gateway


class FlowLog(Closing):
    """Every packet of a gateway, from now until `close`: once as it comes in and once as it goes out.

    A row adds up the packets of one 5-tuple on one interface, in one direction, with one action. For ICMP queries the
    inside host's (or the outside endpoint's) port is the identifier, as in the session log. While it runs every packet
    is looked at twice more; while none runs it costs nothing.

    Parameters
    ----------
    gateway
        The gateway; one flow log at a time.
    capacity
        Rows that are kept until they are taken, 1 to 2^26; packets that find no row left are counted as lost.
    window
        Seconds of a row from its first packet, 10^-6 to 10^9.
    """

    def __init__(self, gateway: Gateway, *, capacity: int = 65_536, window: float = 600.0) -> None:
        check_integer("FlowLog.capacity", capacity, 1, 1 << 26)
        check_number("FlowLog.window", window, 1e-6, 1e9, unit="seconds")
        self._capacity = capacity
        self._table = FlowTable(parts_of(gateway).core.workers, capacity, round(window * 1e6))
        after_fork(self, FlowLog._forked)

    def take(self) -> NDArray[np.void]:
        """FLOW (n,): the rows so far, in the order of their first packets; they are removed here."""
        rows = np.zeros(self._capacity, FLOW)
        return rows[: self._table.take(rows)].copy()

    def counters(self) -> dict[str, int]:
        """rows: that wait to be taken; lost: packets for which there was no row; unreadable: without a 5-tuple."""
        return dict(zip(("rows", "lost", "unreadable"), self._table.counters(), strict=True))

    def close(self) -> None:
        """Nothing is captured any more; rows can still be taken. Idempotent."""
        self._table.close()

    def _forked(self) -> None:
        """In the child of a fork: the rows so far are the parent's."""
        self._table.forked()

    def __repr__(self) -> str:
        return f"<FlowLog {'open' if self._table.is_open else 'closed'}>"
