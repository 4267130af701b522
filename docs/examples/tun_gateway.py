"""A gateway between two TUN devices: bare IPv4 packets from and to the kernel, as a tunnel or a user-space network has them.

python tun_gateway.py INSIDE OUTSIDE SOURCE POOL, for instance: tun-in tun-out 10.0.0.0/16 203.0.113.1
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import struct
import sys
import time

from natcore import Gateway, Side, SnatEntry

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
MTU, BATCH = 1500, 64


def open_tun(name: str) -> int:
    """A TUN device, made if it is not there; a read is one packet, without a header before it."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def read_batch(descriptor: int) -> list[bytes]:
    """Up to BATCH packets that wait."""
    packets: list[bytes] = []
    try:
        while len(packets) < BATCH:
            packets.append(os.read(descriptor, MTU))
    except BlockingIOError:
        pass
    return packets


def forward(gateway: Gateway, tuns: dict[Side, int], stopped: list[int]) -> None:
    """Translate what comes from each device and write it to the one that its verdict names."""
    selector = selectors.DefaultSelector()
    for side, descriptor in tuns.items():
        selector.register(descriptor, selectors.EVENT_READ, side)
    start = time.monotonic()
    while not stopped:
        ready = selector.select(timeout=0.25)
        now = time.monotonic() - start
        for key, _ in ready:
            came_from: Side = key.data
            for verdict, packet in gateway.translate_many(read_batch(tuns[came_from]), came_from, now):
                to = verdict.egress(came_from)
                if to is not None and packet is not None:
                    os.write(tuns[to], packet)
        gateway.advance(now)  # what is due has ended
        for generated in gateway.take_generated():  # ICMP errors, echo replies, fragments
            os.write(tuns[generated.send_to], generated.frame)


def main() -> None:
    inside, outside, source, pool = sys.argv[1:]
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    tuns = {Side.INSIDE: open_tun(inside), Side.OUTSIDE: open_tun(outside)}
    with Gateway(instance="ngw-1", vpc_id="vpc-1", framing="ip") as gateway:
        gateway.add(SnatEntry(source, pool=pool))
        print("forwarding", flush=True)
        forward(gateway, tuns, stopped)
        counters = gateway.counters()
        print(f"forwarded {counters['forwarded']} dropped {counters['dropped']} sessions {counters['created']}")


if __name__ == "__main__":
    main()
