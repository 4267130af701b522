"""One program of the rig in a process of its own: sender, null forwarder, or natcore; told what to do by lines on stdin."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import programs

from compiled import load_module
from natcore import Gateway, SnatEntry, Timeouts
from natcore.io import bpf
from natcore.io.af_packet import PacketRing
from natcore.plane import kernel_bypass
from natcore.plane.drivers import ACCESS
from natcore.plane.links import Link

OFFERED = (
    3e6  # frames a second of a flood: more than what is measured takes, not so many more that losing them costs much
)
PRIORITY = -20  # other work on the machine is not to decide the figures


def prefer() -> None:
    """This process before others, in whatever group the scheduler has it."""
    os.setsid()
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(PRIORITY))
    os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)


def link_of(interface: str) -> Link:
    """An interface of this namespace."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=interface)[0]
        found = netlink.get_links(index)[0]
        mac = bytes.fromhex(str(found.get_attr("IFLA_ADDRESS")).replace(":", ""))
        return Link(interface, index, mac, int(found.get_attr("IFLA_MTU")), True, True)


class Sender:
    """flood: UDP flows out of an interface by a packet socket, which sends again what the link refuses. flood_frames: at full
    rate, as frames that no socket owns (programs.py)."""

    def __init__(self, interface: str, peer: str, remote: int) -> None:
        self.link = link_of(interface)
        self.ring = PacketRing(self.link.index)
        self.macs, self.remote = bytes.fromhex(peer) + self.link.mac, remote
        self.module = load_module("wire/sender")
        self.makers: dict[int, programs.Maker] = {}
        signal.signal(signal.SIGALRM, lambda *_: None)  # ends what the kernel runs

    def flood(self, flows: int, seconds: float, rate: float = 0.0, most: int = 0) -> dict[str, Any]:
        taken, took = self.module.flood(self.ring, self.macs, self.remote, flows, seconds, rate, most)
        return {"sent": taken, "seconds": took}

    def flood_frames(self, flows: int, seconds: float) -> dict[str, Any]:
        if flows not in self.makers:
            self.makers[flows] = programs.maker(self.link.index, self.macs, self.remote, flows)
        maker = self.makers[flows]
        maker.begin(OFFERED)
        took = self.module.make(maker.program, programs.FRAME_BYTES, seconds)
        return {"sent": maker.made(), "seconds": took}


class Redirect:
    """start, stop: XDP programs that only redirect between two interfaces."""

    def __init__(self, interfaces: tuple[str, str], peers: tuple[str, str]) -> None:
        links = [link_of(interface) for interface in interfaces]
        macs = [bytes.fromhex(peer) + link.mac for peer, link in zip(peers, links, strict=True)]
        self.links = links
        self.programs = [programs.redirect(links[1 - side].index, macs[1 - side]) for side in range(2)]
        self.attached: list[int] = []

    def start(self) -> dict[str, Any]:
        self.attached = [bpf.link(program, link.index) for program, link in zip(self.programs, self.links, strict=True)]
        return {}

    def stop(self) -> dict[str, Any]:
        while self.attached:
            os.close(self.attached.pop())
        return {}


class Null:
    """start, stop: the null forwarder between two interfaces, the kernel kept off them as natcore keeps it."""

    def __init__(self, interfaces: tuple[str, str], peers: tuple[str, str], driver: str, cpu: int) -> None:
        self.interfaces, self.peers, self.driver, self.cpu = interfaces, peers, driver, cpu
        self.module = load_module("wire/null")

    def start(self) -> dict[str, Any]:
        links = [link_of(interface) for interface in self.interfaces]
        access = ACCESS[self.driver](links)
        for link in links:
            kernel_bypass.install(link.name, set())
        self.drivers = [access.open(port, link, set(), set(), {})[0] for port, link in enumerate(links)]
        macs = [bytes.fromhex(peer) + link.mac for peer, link in zip(self.peers, links, strict=True)]
        self.forwarder = self.module.Forwarder(*self.drivers, *macs)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return {}

    def _run(self) -> None:
        os.sched_setaffinity(0, {self.cpu})
        self.forwarder.run()

    def stop(self) -> dict[str, Any]:
        self.forwarder.stop()
        self.thread.join()
        for driver, interface in zip(self.drivers, self.interfaces, strict=True):
            driver.close()
            kernel_bypass.remove(interface)
        return {}


class Natcore:
    """start, stop: a plane; the gateway and its sessions stay."""

    def __init__(self, interfaces: tuple[str, str], driver: str, cpus: list[int], pool: str, max_sessions: int,
                 options: dict[str, Any]) -> None:  # fmt: skip
        self.gateway = Gateway(
            instance="ngw-wire", max_sessions=max_sessions, timeouts=Timeouts(udp=3600.0), workers=len(cpus)
        )
        self.gateway.add(SnatEntry("10.0.0.0/8", pool=pool))
        self.interfaces, self.options = interfaces, {"driver": driver, "cpus": cpus, **options}

    def start(self) -> dict[str, Any]:
        with warnings.catch_warnings(action="ignore"):  # the kernel forwards, in its turn
            self.plane = self.gateway.forward(*self.interfaces, block_when_stopped=False, **self.options)
        return {}

    def counters(self) -> dict[str, Any]:
        return self.plane.counters() | self.gateway.counters()

    def end(self) -> dict[str, Any]:
        """Ends every session; how many there were."""
        return {"ended": self.gateway.end_all()}

    def stop(self) -> dict[str, Any]:
        self.plane.stop()
        return {}


def main() -> None:
    prefer()
    part: Any = {"sender": Sender, "null": Null, "redirect": Redirect, "natcore": Natcore}[sys.argv[1]](
        **json.loads(sys.argv[2])
    )
    print("{}", flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(part, name)(**arguments)), flush=True)


if __name__ == "__main__":
    main()
