"""Which worker an inside address or an outside port belongs to, as the core has it (worker_of_inside, worker_preferring).

Both are made of 128 lanes, and a lane's bits of exclusive ors of an address's bits, or of a port's own bits: what a packet's
RSS hash can be made to say (plane/rss.py), and a socket filter can compute.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

LANES = 128
SHIFTS = (3, 5, 7, 16)  # an address, exclusive or itself shifted right, for each of these in turn

Address = TypeVar("Address", int, NDArray[np.uint32])


def lane_of_inside(address: Address) -> Address:
    """Return the lane of an inside address in host order, or of an array of them."""
    lane = address
    for shift in SHIFTS:
        lane = lane ^ (lane >> shift)  # type: ignore[assignment]  # an array's type stays; numpy's stubs do not say so
    return lane % LANES


def worker_of_port(port: int, workers: int, port_unit: int) -> int:
    """Return the worker that draws this outside port first. port_unit: Core.port_unit."""
    return port // port_unit % LANES % workers
