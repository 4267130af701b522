"""A gateway inside an asyncio program: no thread of its own, forwarding between two interfaces until a signal comes.

python asyncio_gateway.py INSIDE OUTSIDE SOURCE POOL, for instance: lan0 wan0 10.0.0.0/16 203.0.113.1
"""

from __future__ import annotations

import asyncio
import signal
import sys

from natcore import Gateway, SnatEntry


async def forward(gateway: Gateway, inside: str, outside: str) -> None:
    """Step the plane whenever frames wait, and four times a second for what is only due by the clock."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    with gateway.forward(inside=inside, outside=outside, threads=False) as plane:
        loop.add_reader(plane.fileno(), plane.step)
        print("forwarding", flush=True)
        while not stopped.is_set():
            plane.step()
            try:
                await asyncio.wait_for(stopped.wait(), timeout=0.25)
            except TimeoutError:
                continue
        loop.remove_reader(plane.fileno())


def main() -> None:
    inside, outside, source, pool = sys.argv[1:]
    with Gateway(instance="ngw-1", vpc_id="vpc-1") as gateway:
        gateway.add(SnatEntry(source, pool=pool))
        asyncio.run(forward(gateway, inside, outside))
        counters = gateway.counters()
        print(f"forwarded {counters['forwarded']} dropped {counters['dropped']} sessions {counters['created']}")


if __name__ == "__main__":
    main()
