"""A gateway inside an asyncio program: no thread moves packets, and forwarding goes on until a signal comes.

python asyncio_gateway.py INSIDE OUTSIDE SOURCE POOL, for instance: lan0 wan0 10.0.0.0/16 203.0.113.1
"""

from __future__ import annotations

import asyncio
import signal
import sys

from natcore import Gateway, SnatEntry


async def forward(gateway: Gateway, inside: str, outside: str) -> None:
    """Forward until SIGINT or SIGTERM, or until the plane fails."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with gateway.forward_async(inside=inside, outside=outside) as plane:
        print("forwarding", flush=True)
        failed = asyncio.create_task(plane.wait())
        signalled = asyncio.create_task(stopped.wait())
        await asyncio.wait({failed, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()


def main() -> None:
    inside, outside, source, pool = sys.argv[1:]
    with Gateway(instance="ngw-1", vpc_id="vpc-1") as gateway:
        gateway.add(SnatEntry(source, pool=pool))
        asyncio.run(forward(gateway, inside, outside))
        counters = gateway.counters()
        print(f"forwarded {counters['forwarded']} dropped {counters['dropped']} sessions {counters['created']}")


if __name__ == "__main__":
    main()
