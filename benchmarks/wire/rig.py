"""The rig's network, where its work runs, and one measurement: what arrives, what it cost the gateway's processor, and whether
it is what it must be.

    wire-in  c0 --veth-- nci0  wire-gw  nco0 --veth-- s0  wire-out
    10.0.0.2/8        10.0.0.1/8        198.18.0.1/15        198.18.0.2/15        pool 198.18.1.0/24
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natcore.demo.namespaces import Network, inside

HERE = Path(__file__).resolve().parent
TOOLS = {"nft": "nftables", "ip": "iproute2", "ethtool": "ethtool", "iperf3": "iperf3", "ping": "iputils-ping"}
POOL, REMOTE = "198.18.1.0/24", "198.18.0.2"
FIRST, LAST = (int.from_bytes(socket.inet_aton(address), "big") for address in ("198.18.1.0", "198.18.1.255"))
INTERFACES = ("nci0", "nco0")
SNAT = "table ip wire { chain post { type nat hook postrouting priority 100; oifname nco0 snat to 198.18.1.0-198.18.1.255; }; }"
SINK = "table netdev sink { chain in { type filter hook ingress device s0 priority 0; counter drop; }; }"
PORT = 9
SAMPLE = 400  # frames that are looked at
WARM_SECONDS = 0.25  # of a flood, before what is measured
LEAST = 1000  # frames of a measurement
ATTEMPTS = 3
LOCK = Path(tempfile.gettempdir(), "natcore-wire.lock")  # one rig at a time
ENTRIES = Path("/proc/sys/net/netfilter/nf_conntrack_max")
BUCKETS = Path("/sys/module/nf_conntrack/parameters/hashsize")


class Wrong(AssertionError):
    """What was timed was not what it says."""


class Disturbed(Wrong):
    """The machine did something else meanwhile: there is no figure."""


@dataclass
class Part:
    """A program of the rig (part.py) and how it is told what to do."""

    process: subprocess.Popen[str]

    def begin(self, name: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Wrong(f"{self.process.args!r}: it ended with {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        self.begin(name, **arguments)
        return self.answer()

    def cpu(self) -> float:
        """Processor seconds of all its threads so far."""
        folder = Path(f"/proc/{self.process.pid}/task")
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in folder.iterdir()) / 1e9

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


@dataclass
class Blast:
    """One measurement."""

    packets_a_second: float  # that arrived
    cpu_ns: float | None  # of the gateway's processor a packet; None where it cannot be told apart
    offered: float
    load: float = field(default_factory=lambda: os.getloadavg()[0])


def missing_tools() -> list[str]:
    """Debian packages of the programs that are not there."""
    return sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})


class Rig:
    """The three namespaces. A context manager; what it changed of the machine is put back.

    frames: floods to one processor are frames as a network card's driver gives them; else a packet socket's.
    """

    def __init__(self, frames: bool = True) -> None:
        self._frames = frames
        self._lock = LOCK.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # another one's would disturb, and put back what this one set
        cores = sorted(os.sched_getaffinity(0))
        self.sender_core, self.core, self.cores = cores[0], cores[-1], cores
        self._settings: dict[Path, str] = {}
        self._napi: list[int] = []
        self._apart = False
        self._parts: list[Part] = []
        self.network = Network(f"wire-{os.getpid()}-", ["in", "gw", "out"])
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        network = self.network
        for member in network.members:
            network.setting(member, "net/ipv6/conf/all/disable_ipv6", 1)
        network.pair("in", "c0", "gw", "nci0")
        network.pair("gw", "nco0", "out", "s0")
        ends = (("in", "c0", "10.0.0.2/8"), ("gw", "nci0", "10.0.0.1/8"), ("gw", "nco0", "198.18.0.1/15"),
                ("out", "s0", "198.18.0.2/15"))  # fmt: skip
        for member, interface, address in ends:
            network.up(member, interface, address)
        network.route("in", "default", via="10.0.0.1")
        network.route("out", "10.0.0.0/8", via="198.18.0.1")
        network.route("out", POOL, via="198.18.0.1")  # the pool is on no interface: ARP would have no answer
        self.mac = {interface: network.mac(member, interface).replace(":", "") for member, interface, _ in ends}
        for member, interface, address, peer in (
            ("in", "c0", "10.0.0.1", "nci0"),
            ("gw", "nci0", "10.0.0.2", "c0"),
            ("gw", "nco0", "198.18.0.2", "s0"),
            ("out", "s0", "198.18.0.1", "nco0"),
        ):
            there = _colons(self.mac[peer])
            self.run(member, f"ip neigh replace {address} dev {interface} lladdr {there} nud permanent")
        network.setting("gw", "net/ipv4/ip_forward", 1)
        for member, interface in (
            ("in", "c0"),
            ("out", "s0"),
        ):  # as network cards have; frames can be redirected to it then
            self.run(member, f"ethtool -K {interface} gro on")
        network.run("gw", ["nft", SNAT])
        for name, value in (("nf_conntrack_udp_timeout", 3600), ("nf_conntrack_udp_timeout_stream", 3600)):
            network.setting("gw", f"net/netfilter/{name}", value)
        self.machine(ENTRIES, 32 << 20)
        self.machine(BUCKETS, 2 << 20)

    def machine(self, path: Path, value: int) -> None:
        """A setting of the whole machine, put back at the end."""
        self._settings.setdefault(path, path.read_text())
        path.write_text(str(value))

    def run(self, member: str, command: str, check: bool = True) -> str:
        return self.network.run(member, command.split(), check=check).stdout

    def part(self, member: str, role: str, core: int | None = None, **arguments: Any) -> Part:
        """Starts one of part.py's programs."""
        command = [sys.executable, str(HERE / "part.py"), role, json.dumps(arguments)]
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        process = self.network.popen(member, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        made = Part(process)
        self._parts.append(made)
        made.answer()
        return made

    def sender(self) -> Part:
        return self.part("in", "sender", self.sender_core, interface="c0", peer=self.mac["nci0"],
                         remote=int.from_bytes(socket.inet_aton(REMOTE), "big"))  # fmt: skip

    def null(self, driver: str) -> Part:
        return self.part("gw", "null", interfaces=INTERFACES, peers=(self.mac["c0"], self.mac["s0"]), driver=driver,
                         cpu=self.core)  # fmt: skip

    def redirect(self) -> Part:
        return self.part("gw", "redirect", interfaces=INTERFACES, peers=(self.mac["c0"], self.mac["s0"]))

    def natcore(self, driver: str, max_sessions: int, workers: int = 1, **options: Any) -> Part:
        return self.part("gw", "natcore", interfaces=INTERFACES, driver=driver, cpus=self.cores[-workers:], pool=POOL,
                         max_sessions=max_sessions, options=options)  # fmt: skip

    def queues(self, count: int) -> None:
        """So many receive and transmit queues of each interface."""
        for member, interface in (("in", "c0"), ("gw", "nci0"), ("gw", "nco0"), ("out", "s0")):
            self.run(member, f"ethtool -L {interface} rx {count} tx {count}", check=False)  # it may have them already

    # ---- where the gateway's work runs -----------------------------------------------------------------------------

    def one_core(self, on: bool) -> None:
        """on: what arrives at nci0 is received by a kernel thread on the gateway's processor, where the program runs too, so
        that all that a packet costs is there. off: as it is by default, on the sender's."""
        self._sysfs("nci0/threaded", 0)
        self.run("in", f"ethtool -K c0 tso {'off' if on else 'on'}")  # else frames of a socket go past that thread
        self.run("gw", f"ethtool -K nci0 gro {'on' if on else 'off'}")
        self._apart = on
        if on:
            self._sysfs("nci0/threaded", 1)

    def bind(self) -> None:
        """The receiving threads of now go to the gateway's processor: an XDP program that comes or goes makes new ones."""
        self._napi = []
        if not self._apart:
            return
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and _name_of(folder).startswith("napi/nci0-"):
                thread = int(folder.name)
                os.sched_setaffinity(thread, {self.core})
                os.setpriority(os.PRIO_PROCESS, thread, -15)  # the program first: no work is put in that is thrown away
                self._napi.append(thread)

    def _sysfs(self, path: str, value: int) -> None:
        self.network.run("gw", ["ip", "netns", "exec", self.network.name("gw"), "sh", "-c",
                                f"echo {value} > /sys/class/net/{path}"], check=bool(value))  # fmt: skip

    def sink(self, on: bool) -> None:
        """Whether what arrives outside ends there, uncounted by any socket; else it is the host's."""
        self.network.run("out", ["nft", "delete table netdev sink"], check=False)
        if on:
            self.network.run("out", ["nft", SINK])

    def sunk(self) -> int:
        """Frames that ended in the sink."""
        return int(re.findall(r"counter packets (\d+)", self.run("out", "nft list table netdev sink"))[0])

    # ---- the kernel's NAT ------------------------------------------------------------------------------------------

    def entries(self) -> int:
        """Of the kernel's connection table."""
        with inside(self.network.name("gw")):
            return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())

    def forget_entries(self) -> None:
        """Empties it: one ctnetlink message without attributes."""
        with inside(self.network.name("gw")), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
            netlink.send(struct.pack("=IHHII4B", 20, 0x102, 5, 1, 0, socket.AF_INET, 0, 0, 0))
            netlink.recv(4096)

    # ---- measuring -------------------------------------------------------------------------------------------------

    def arrived(self) -> int:
        """Frames that came to the outside host's interface."""
        with inside(self.network.name("out")):
            for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name.strip() == "s0":
                    return int(rest.split()[1])
        raise Wrong("s0 is gone")

    def cpu(self, program: Part | None) -> float:
        """Seconds of the gateway's processor: its receiving thread and the program."""
        threads = sum(int(Path(f"/proc/{thread}/schedstat").read_text().split()[0]) for thread in self._napi) / 1e9
        return threads + (program.cpu() if program else 0.0)

    def blast(self, sender: Part, program: Part | None, flows: int, seconds: float) -> Blast:
        """Frames at full rate over `flows` flows through whatever forwards now; again where the machine stood still."""
        for _ in range(ATTEMPTS):
            found = self._blast(sender, program, flows, seconds)
            if found is not None:
                return found
        raise Disturbed(f"hardly a frame arrived, {ATTEMPTS} times")

    def _blast(self, sender: Part, program: Part | None, flows: int, seconds: float) -> Blast | None:
        self.bind()
        sunk, before = self.sunk(), self.arrived()
        # a processor that makes frames has no time left to receive them
        flood = "flood_frames" if self._frames and self._apart else "flood"
        sender.begin(flood, flows=flows, seconds=WARM_SECONDS + seconds + 0.05)
        time.sleep(WARM_SECONDS)
        first, spent, start = self.arrived(), self.cpu(program), time.monotonic()
        time.sleep(seconds)
        last, spent_last, end = self.arrived(), self.cpu(program), time.monotonic()
        told = sender.answer()
        self.settle()
        self._same(sunk, before)
        count = last - first
        if count < LEAST:
            return None
        cpu_ns = (spent_last - spent) / count * 1e9 if self._napi else None
        return Blast(count / (end - start), cpu_ns, told["sent"] / told["seconds"])

    def settle(self) -> None:
        """Waits until nothing arrives any more."""
        before = -1
        while before != (before := self.arrived()):
            time.sleep(0.02)

    def _same(self, sunk: int, arrived: int) -> None:
        """The sink has what arrived since, sooner or later: what is not there yet waits for a processor."""
        end = time.monotonic() + 2.0
        while abs((found := self.sunk() - sunk) - (came := self.arrived() - arrived)) > 10 + came * 0.001:
            if time.monotonic() > end:
                raise Disturbed(f"the sink had {found} frames, the interface {came}")
            time.sleep(0.05)

    def establish(self, sender: Part, flows: int, sessions: Callable[[], int]) -> None:
        """Every flow has its session: sent slowly enough that none is lost, and again where one was."""
        self.bind()
        for rate in (250_000.0, 150_000.0, 80_000.0):
            sender.call("flood", flows=flows, seconds=60.0, rate=rate, most=flows)
            self.settle()
            if sessions() == flows:
                return
        raise Disturbed(f"{sessions()} sessions of {flows} flows")

    def sample(self, sender: Part, flows: int, translated: bool) -> int:
        """Looks at frames as they arrive outside; how many. Wrong: one is not what it must be."""
        with inside(self.network.name("out")):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            tap.bind(("s0", 0))
        endpoints: dict[int, tuple[int, int]] = {}
        with tap:
            tap.settimeout(5.0)
            sender.begin("flood", flows=flows, seconds=5.0, rate=20_000.0, most=SAMPLE)
            for _ in range(SAMPLE // 2):
                try:
                    frame = tap.recv(2048)
                except TimeoutError:
                    raise Disturbed(f"{len(endpoints)} of {SAMPLE} frames arrived") from None
                flow, endpoint = check_frame(frame, translated)
                if endpoints.setdefault(flow, endpoint) != endpoint:
                    raise Wrong(f"flow {flow} had two outside endpoints")
            sender.answer()
        if translated and len(set(endpoints.values())) != len(endpoints):
            raise Wrong("two flows have one outside endpoint")
        return len(endpoints)

    def close(self) -> None:
        for part in self._parts:
            if part.process.poll() is None:
                try:
                    part.close()
                except (OSError, subprocess.TimeoutExpired):
                    part.process.kill()
        for path, value in self._settings.items():
            path.write_text(value)
        self._settings.clear()
        self.network.close()
        self._lock.close()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _colons(mac: str) -> str:
    return ":".join(mac[i : i + 2] for i in range(0, 12, 2))


def _name_of(process: Path) -> str:
    try:
        return (process / "comm").read_text()
    except OSError:  # it ended meanwhile
        return ""


def _sum(words: bytes) -> int:
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def check_frame(frame: bytes, translated: bool) -> tuple[int, tuple[int, int]]:
    """(flow, source endpoint) of a frame of the sender's, as it arrived. Wrong: it is not what became of that flow."""
    source, remote = struct.unpack_from(">II", frame, 26)
    port, remote_port, length = struct.unpack_from(">HHH", frame, 34)
    (flow,) = struct.unpack_from(">I", frame, 42)
    datagram = frame[34 : 34 + length]
    pseudo = frame[26:34] + struct.pack(">HH", 17, length)
    if _sum(frame[14:34]) != 0xFFFF or _sum(pseudo + datagram) != 0xFFFF:
        raise Wrong(f"flow {flow}: a checksum is wrong: {frame.hex()}")
    if (remote, remote_port) != (int.from_bytes(socket.inet_aton(REMOTE), "big"), PORT):
        raise Wrong(f"flow {flow}: another remote: {frame.hex()}")
    own = (0x0A010000 + (flow >> 6), 1024 + flow % 32_768)
    if (FIRST <= source <= LAST) if not translated else not FIRST <= source <= LAST:
        raise Wrong(f"flow {flow}: from {source:08x}, {'not in' if translated else 'in'} the pool")
    if not translated and (source, port) != own:
        raise Wrong(f"flow {flow}: from {source:08x}:{port}, which is not its own endpoint")
    return flow, (source, port)


def ping_ms(rig: Rig, count: int, every: float) -> list[float]:
    """Round trips through whatever forwards now, ms."""
    command = ["ping", "-n", "-c", str(count), "-i", str(every), "-W", "2", REMOTE]
    text = rig.network.run("in", command, timeout=60 + count * every * 2, check=False).stdout
    times = [float(found) for found in re.findall(r"time=([\d.]+) ms", text)]
    if len(times) < count * 0.98:
        raise Disturbed(f"{len(times)} of {count} pings were answered")
    return times


def tcp_gbit(rig: Rig, seconds: int) -> float:
    """One iperf3 stream outwards, Gbit/s received."""
    with_server: Sequence[str] = ["iperf3", "-s", "-1", "-B", REMOTE]
    server = rig.network.popen("out", with_server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    told = json.loads(rig.network.run("in", ["iperf3", "-J", "-c", REMOTE, "-t", str(seconds)], check=False).stdout)
    if "error" in told:
        server.kill()
        raise Disturbed(f"iperf3: {told['error']}")
    server.wait(timeout=20)
    return float(told["end"]["sum_received"]["bits_per_second"]) / 1e9
