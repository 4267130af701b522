"""Random lives of gateways and logs, and an account of their own of who held what: `python tests/runs/truth.py --lives 1000`.

A life has two gateways, each restarted with another configuration now and then, and logs of theirs: redacted or not, with
a spool or without, one folder or several. It meets seams: kills, also in the midst of work, a loss of power, full disks,
damaged, removed and exchanged files and spool segments, a clock that is set, logs that start and stop, entries that come
and go, addresses that move. Then questions are asked, live and offline, and each answer is judged by the packets that were
sent: no wrong subscriber, no wrong "unused", no exception; and in a life without a seam no "gap".
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/

import argparse
import gc
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from ipaddress import IPv4Address
from typing import Any

from natcore import DeliveryPolicy, DnatEntry, Gateway, Policy, Side, SnatEntry, Timeouts
from natcore.dtypes import format_ipv4
from natcore.sessionlog.collector import COVER_BEATS, Collector
from natcore.sessionlog.in_force import in_force
from natcore.sessionlog.session_log import SessionLog
from natcore.sinks import ParquetSink
from natcore.testing import craft
from natcore.who.query import Answer, Listing, Store, answered, talked, what, who
from natcore.who.question import Question
from natcore.who.waiting import Waiting, live_rows, waiting
from runs.truth_account import Held, Static, Truth
from runs.truth_asking import Asking, Loaded, judge, judge_listing
from runs.truth_damage import Disk, flip, reframe, remove, truncate
from support.progress_line import ProgressLine

EPOCH = 1_700_000_000.0
POOLS = {"a": "203.0.113.1", "b": "203.0.113.2", "moving": "203.0.113.3"}
STATICS = {"dnat": "203.0.113.9", "whole": "203.0.113.10"}
PROTOCOLS = ("udp", "udp", "tcp", "icmp")
SYN, ACK = 0x02, 0x10
REMOTES = ("198.51.100.7", "198.51.100.8", "198.51.100.9")
SEAMS = (
    "kill", "close", "restart", "stop-log", "start-log", "sink-fails", "spool-fails", "clock", "suspend", "entry", "move",
    "flip", "truncate", "remove", "exchange", "spool-flip", "spool-truncate", "spool-remove", "spool-reorder",
    "spool-double", "ring-full", "long-idle", "sigkill", "power-cut",
)  # fmt: skip


@dataclass
class OpenLog:
    log: SessionLog
    sink: ParquetSink
    fails: bool = False


class Process:
    """A gateway in a life, and what a kill leaves of it."""

    def __init__(self, life: Life, instance: str, pools: list[str], clock_error: float) -> None:
        random_ = life.random
        self.life, self.instance = life, instance
        self.pools = list(pools)
        self.began = life.now
        self.error = clock_error  # seconds by which its labels are ahead
        self.timeout = float(random_.choice([20, 60, 300, 5000]))
        ports: Any = random_.choice(["random", "random", "preserve", "block", "deterministic", "overload"])
        ports = "block" if life.in_blocks else ports
        self.more_random = random.Random(f"{life.seed} {instance} {life.now}")
        more: dict[str, Any] = {}
        if ports == "overload":
            more = {"mapping": "address-and-port-dependent", "filtering": "address-and-port-dependent"}
        self.window = float(random_.choice([10, 60, 600]))
        self.policy = Policy(ports=ports, port_ranges=((1024, 1039),), block_size=4, blocks=4, hold_down=0.0, **more)
        self.gateway = Gateway(
            instance=instance, vpc_id="vpc", max_sessions=256, window=self.window, records=random_.choice([64, 4096]),
            epoch=self.label(0.0), seed=random_.randrange(1 << 30), framing="ip", policy=self.policy,
            timeouts=Timeouts(udp=self.timeout, tcp_established=self.timeout, tcp_transitory=self.timeout, icmp=self.timeout,
                              other=self.timeout, unreplied=self.timeout),
        )  # fmt: skip
        self.collector = Collector(
            self.gateway._core.log_rows, instance=instance, vpc_id="vpc", threads=False,
            in_force=in_force(weakref.ref(self.gateway)),
            clock=lambda: life.now, wall=lambda: EPOCH + life.now, chance=random.Random(1),
        )  # fmt: skip
        self.gateway._collector = self.collector
        self.entries: dict[Any, Any] = {}
        self.static_entries: list[tuple[Any, Static]] = []
        for pool in pools:
            self.add_pool(pool)
        self.logs: list[OpenLog] = []
        self.has_blocks_alone = False
        self.alive = True

    def label(self, now: float) -> float:
        """The epoch with which `now` on the gateway's clock is labelled as it is."""
        return EPOCH + self.began + self.error

    @property
    def now(self) -> float:
        return self.life.now - self.began

    @property
    def run(self) -> str:
        return self.collector.run

    def add_pool(self, name: str) -> None:
        sources = {"a": "10.0.0.0/30", "b": "10.0.0.4/30", "moving": "10.0.0.8/30"}
        try:
            self.entries[name] = self.gateway.add(SnatEntry(sources[name], pool=POOLS[name]))
        except Exception:
            if self.policy.ports != "deterministic":
                raise

    def remove_pool(self, name: str) -> None:
        entry = self.entries.pop(name, None)
        if entry is not None:
            self.gateway.remove(entry, now=self.now)
            self.note_blocks()
            self.life.truth.end(self.run, self.life.now, POOLS[name])

    def start_log(self, name: str, folder: Path, redact: bool, spool: Path | None) -> None:
        sink = ParquetSink(folder, batch_seconds=0.0, batch_rows=self.life.random.choice([8, 64, 131_072]),
                           roll_bytes=20_000, compact=self.life.seed % 2 == 0, clock=lambda: self.life.now,
                           wall=lambda: EPOCH + self.life.now)  # fmt: skip
        self.advance()
        self.has_blocks_alone = self.policy.ports == "block" and (
            self.life.in_blocks or self.more_random.random() < 0.3
        )
        log = self.collector.start(sink, name=name, spool=spool, redact_destination=redact,
                                   rows="blocks" if self.has_blocks_alone else "all",
                                   delivery=DeliveryPolicy(linger=0.0, backoff_min=0.0, backoff_max=0.0))  # fmt: skip
        self.logs.append(OpenLog(log, sink))

    def packet(self) -> None:
        random_ = self.life.random
        name = random_.choice(self.pools)
        base = {"a": 1, "b": 5, "moving": 9}[name]
        host, host_port = f"10.0.0.{base + random_.randrange(2)}", 5000 + random_.randrange(4)
        remote = (random_.choice(REMOTES), random_.choice([53, 443]))
        protocol = random_.choice(PROTOCOLS)
        packet = craft.udp((host, host_port), remote, b"x")
        if protocol == "tcp":
            packet = craft.tcp((host, host_port), remote, random_.choice([SYN, SYN, ACK]))
        elif protocol == "icmp":
            remote = (remote[0], 0)
            packet = craft.icmp(host, remote[0], identifier=host_port)
        _, out = self.gateway.translate_one(packet, Side.INSIDE, self.now)
        self.note_blocks()
        if out is None:
            return
        place = 24 if protocol == "icmp" else 20
        outside = (str(IPv4Address(out[12:16])), int.from_bytes(out[place : place + 2], "big"))
        if outside[0] in POOLS.values():
            self.life.truth.sent(
                self.run, self.instance, host, host_port, outside, remote, protocol, self.timeout, self.life.now
            )

    def advance(self) -> None:
        self.gateway.advance(self.now)
        self.note_blocks()

    def note_blocks(self) -> None:
        if self.policy.ports == "block":
            blocks = {
                (
                    format_ipv4(row["inside_ip"]),
                    format_ipv4(row["outside_ip"]),
                    int(row["first_port"]),
                    int(row["last_port"]),
                )
                for row in self.gateway.blocks()
            }
            self.life.truth.assigned(self.run, self.instance, blocks, self.life.now)

    def beat(self) -> None:
        self.collector.beat()

    def work(self) -> None:
        """What the logs' threads do."""
        for each in self.logs:
            if each.log._spool is not None:
                each.log._persist()
            for _ in range(20):
                if each.log._send() != 0.0:
                    break

    def stop_log(self, each: OpenLog) -> None:
        self.advance()
        self.collector.stop(each.log, timeout=0.0)
        self.logs.remove(each)

    def kill(self) -> None:
        """Nothing more is written, by anybody."""
        for each in self.logs:
            spool = each.log._spool
            if spool is not None:
                if spool._run is not None:
                    spool._run.close()
                if spool._descriptor is not None:
                    os.close(spool._descriptor)
                spool._close_descriptors()
            each.sink.close()
        self.collector._logs = ()
        self.alive = False
        self.life.truth.end(self.run, self.life.now)
        self.life.truth.assigned(self.run, self.instance, set(), self.life.now)
        self._end_statics()

    def kill_at_work(self, calls: int) -> None:
        """SIGKILL after so many calls of functions, while it writes its rows and closes: a copy of it dies so."""
        child = os.fork()
        if not child:
            signal.alarm(20)
            gc.disable()  # databases of lives before would be closed without their threads
            left = iter(range(calls))

            def count(*_: object) -> None:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.setprofile(count)
            try:
                self.work()
                self.gateway.close()
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        self.kill()

    def close(self) -> None:
        self.advance()
        self.gateway.close()
        self.alive = False
        self.life.truth.end(self.run, self.life.now)
        self.life.truth.assigned(self.run, self.instance, set(), self.life.now)
        self._end_statics()

    def _end_statics(self) -> None:
        for _, static in self.static_entries:
            static.end = min(static.end, self.life.now)

    def set_clock(self) -> None:
        self.error = 0.0
        self.collector.set_epoch(round(self.label(0.0) * 1e9))


@dataclass
class Result:
    seams: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)  # of questions
    wrong: list[str] = field(default_factory=list)
    questions: int = 0
    orderly: int = 0
    orderly_gaps: int = 0

    def add(self, other: Result) -> None:
        self.seams += other.seams
        self.answers += other.answers
        self.kinds += other.kinds
        self.wrong += other.wrong
        self.questions += other.questions
        self.orderly += other.orderly
        self.orderly_gaps += other.orderly_gaps


class Life:
    def __init__(self, seed: int, folder: Path, *, in_blocks: bool = False) -> None:
        self.seed, self.folder = seed, folder
        self.in_blocks = in_blocks  # every log is of port blocks alone
        self.random = random.Random(seed)
        self.now = 0.0
        self.truth = Truth()
        self.result = Result()
        self.is_orderly = self.random.random() < 0.2
        self.has_clock = not self.is_orderly and self.random.random() < 0.25
        self.may_damage = not self.is_orderly and not self.has_clock
        self.processes: dict[str, Process] = {}
        self.pools = {"ngw-a": ["a", "moving"], "ngw-b": ["b"]}
        self.store: Loaded | None = None
        self.real: Store | None = None
        self.there: dict[tuple[int, Path | None], Waiting] = {}
        self.times: list[float] = []  # of seams
        self.number = 0
        self.began: dict[str, float] = {}
        self.ends: dict[str, float] = {}
        self.disk = Disk(folder) if self.random.random() < 0.3 else None
        (folder / "log").mkdir()

    # ---- living ----

    def start(self, instance: str) -> None:
        error = self.random.choice([-20.0, 5.0, 40.0]) if self.has_clock and self.random.random() < 0.6 else 0.0
        process = Process(self, instance, self.pools[instance], error)
        self.processes[instance] = process
        self.times.append(self.now)
        if not self.is_orderly and self.random.random() < 0.2:
            for _ in range(10):
                process.packet()  # before any log
        self.start_log(process, always=True)
        if self.random.random() < 0.3:
            self.start_log(process)
        self.began.setdefault(instance, self.now)

    def start_log(self, process: Process, always: bool = False) -> None:
        used = {each.log.name for each in process.logs}
        names = [name for name in ("audit", "second") if name not in used]
        if not names:
            return
        name = names[0] if always else self.random.choice(names)
        self.seam("start-log")
        spool = self.folder / "spool" / process.instance if self.random.random() < 0.7 else None
        shared = self.random.random() < 0.5
        redact = name == "second" and self.random.random() < 0.7
        folder = (
            self.folder / "log" / (f"{process.instance}-{name}" if not shared else f"shared-{process.instance}-{name}")
        )
        process.start_log(name, folder, redact, spool)

    def seam(self, name: str) -> None:
        self.result.seams[name] += 1
        self.times.append(self.now)

    def live(self, steps: int) -> None:
        for instance in self.pools:
            self.start(instance)
        self.add_statics(next(iter(self.processes.values())))
        for _ in range(steps):
            self.step()
        for process in self.processes.values():
            if process.alive and process.error:
                self.seam("clock")
                process.set_clock()
                process.beat()
                self._flush(process)
        if self.random.random() < 0.5 or self.is_orderly:
            for process in self.processes.values():
                if process.alive:
                    process.advance()
                    for _ in range(
                        COVER_BEATS if self.is_orderly else 1
                    ):  # a gateway at rest tells so by one beat of these
                        process.beat()
                    process.work()

    def _flush(self, process: Process) -> None:
        """All rows so far are in files: a change of the clock that is in none leaves no trace."""
        for each in process.logs:
            self._mend(each)
        for _ in range(100):
            process.work()
            if not any(each.log._ledger.waiting for each in process.logs):
                return
            self.now += 60.0  # the destination is left alone for a while after it failed
        raise AssertionError("the log is not delivered")

    def step(self) -> None:
        self.now += self.random.choice([0.25, 1.0, 3.0, 10.0, 30.0])
        for process in list(self.processes.values()):
            if not process.alive:
                if self.random.random() < 0.05:
                    self.meet("restart", process)
                continue
            for _ in range(self.random.randrange(3)):
                process.packet()
            if self.random.random() < 0.8:
                process.advance()
            if self.random.random() < 0.7:
                process.beat()
            if self.random.random() < 0.6:
                process.work()
        if self.random.random() < 0.02:
            self.now += self.random.choice([200.0, 2000.0])
            self.seam("long-idle")
        if not self.is_orderly and self.random.random() < 0.12:
            self.meet(self.random.choice(SEAMS))

    def meet(self, seam: str, process: Process | None = None) -> None:
        process = process or self.random.choice(list(self.processes.values()))
        method: Callable[[Process], bool] = getattr(self, "_" + seam.replace("-", "_"))
        if method(process):
            self.seam(seam)

    def add_statics(self, process: Process) -> None:
        if self.random.random() < 0.7:
            for entry, address, port, host in (
                (DnatEntry(STATICS["dnat"], 8443, "10.9.0.5", 443, protocol="udp"), STATICS["dnat"], 8443, "10.9.0.5"),
                (
                    DnatEntry(STATICS["whole"], "any", "10.9.0.6", "any", protocol="any"),
                    STATICS["whole"],
                    None,
                    "10.9.0.6",
                ),
            ):
                handle = process.gateway.add(entry)
                static = Static(process.instance, entry, address, port, host, self.now)
                process.static_entries.append((handle, static))
                self.truth.statics.append(static)

    def _entry(self, process: Process) -> bool:
        if not process.alive:
            return False
        live = [(handle, static) for handle, static in process.static_entries if static.end > self.now]
        if live:
            handle, static = self.random.choice(live)
            process.advance()
            process.gateway.remove(handle, now=process.now)
            process.note_blocks()
            static.end = self.now
        else:
            self.add_statics(process) if not any(s.end > self.now for s in self.truth.statics) else None
        return True

    def _move(self, process: Process) -> bool:
        """An outside address goes from one gateway to the other."""
        here = next(name for name in self.pools if "moving" in self.pools[name])
        there = "ngw-b" if here == "ngw-a" else "ngw-a"
        if not self.processes[there].alive:
            return False
        self.pools[here].remove("moving")
        self.pools[there].append("moving")
        if self.processes[here].alive:
            self.processes[here].advance()
            self.processes[here].remove_pool("moving")
        self.processes[here].pools = list(self.pools[here])
        self.processes[there].advance()
        self.processes[there].add_pool("moving")
        self.processes[there].pools = list(self.pools[there])
        return True

    def _kill(self, process: Process) -> bool:
        if not process.alive:
            return False
        if self.has_clock:
            process.set_clock()
            process.beat()
            self._flush(process)
        process.kill()
        return True

    def _sigkill(self, process: Process) -> bool:
        if not process.alive:
            return False
        if self.has_clock:
            process.set_clock()
            process.beat()
            self._flush(process)
        for _ in range(self.random.randrange(20)):
            process.packet()
        process.advance()
        process.beat()
        process.kill_at_work(self.random.choice([100, 1000, 10_000]) * self.random.randrange(1, 10))
        return True

    def _power_cut(self, process: Process) -> bool:
        """All processes of the machine end, and what was not synced may be gone."""
        alive = [each for each in self.processes.values() if each.alive]
        if self.disk is None or not alive:
            return False
        for each in alive:
            if self.has_clock:
                each.set_clock()
                each.beat()
                self._flush(each)
            each.kill()
        self.disk.cut(self.random)
        return True

    def _close(self, process: Process) -> bool:
        if not process.alive:
            return False
        if process.error:
            process.set_clock()
            process.beat()
            self._flush(process)
        process.close()
        return True

    def _restart(self, process: Process) -> bool:
        if process.alive:
            return False
        self.now += self.random.choice([0.0, 1.0, 50.0])
        self.start(process.instance)
        return True

    def _stop_log(self, process: Process) -> bool:
        if not process.alive or not process.logs or process.error:
            return False
        process.stop_log(self.random.choice(process.logs))
        return True

    def _start_log(self, process: Process) -> bool:
        if process.alive:
            self.start_log(process)
        return False

    def _sink_fails(self, process: Process) -> bool:
        if not process.logs:
            return False
        each = self.random.choice(process.logs)
        if each.fails:
            self._mend(each)
        else:
            each.fails = True

            def fail(batch: Any) -> Any:
                raise OSError(28, "No space left on device")

            each.sink.deliver = fail  # type: ignore[method-assign]
        return True

    def _mend(self, each: OpenLog) -> None:
        each.sink.__dict__.pop("deliver", None)
        each.fails = False
        if each.log._spool is not None:
            each.log._spool.__dict__.pop("_write", None)

    def _spool_fails(self, process: Process) -> bool:
        logs = [each for each in process.logs if each.log._spool is not None]
        if not logs:
            return False
        spool = self.random.choice(logs).log._spool
        assert spool is not None
        if "_write" in spool.__dict__:
            del spool.__dict__["_write"]
        else:

            def fail(owner: Any, frame: bytes) -> Any:
                raise OSError(5, "Input/output error")

            spool._write = fail  # type: ignore[method-assign]
        return True

    def _clock(self, process: Process) -> bool:
        if not self.has_clock or not process.alive or not process.error:
            return False
        process.set_clock()
        process.beat()
        self._flush(process)
        return True

    def _suspend(self, process: Process) -> bool:
        """The gateway's clock stands still, the world's does not."""
        if not self.has_clock or not process.alive:
            return False
        process.advance()
        asleep = self.random.choice([5.0, 600.0])
        before = self.now
        self.now += asleep
        for held in self.truth._live.values():
            if held.end > before and any(
                key[0] == process.run and value is held for key, value in self.truth._live.items()
            ):
                held.timeout += asleep
        process.began += asleep
        process.collector.set_epoch(round(process.label(0.0) * 1e9), suspended=True)
        process.beat()
        self._flush(process)
        return True

    def _ring_full(self, process: Process) -> bool:
        if not process.alive:
            return False
        for _ in range(150):
            process.packet()
            if self.random.random() < 0.2:
                self.now += 5.0
        return True

    def _long_idle(self, process: Process) -> bool:
        self.now += self.random.choice([300.0, 4000.0])
        return True

    def _file(self) -> Path | None:
        files = sorted((self.folder / "log").rglob("*.parquet"))
        return self.random.choice(files) if files and self.may_damage else None

    def _flip(self, process: Process) -> bool:
        return flip(self._file(), self.random)

    def _truncate(self, process: Process) -> bool:
        return truncate(self._file(), self.random)

    def _remove(self, process: Process) -> bool:
        return remove(self._file())

    def _exchange(self, process: Process) -> bool:
        one, other = self._file(), self._file()
        if one is None or other is None or one == other or one.parent != other.parent:
            return False
        aside = one.with_suffix(".aside")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
        return True

    def _segment(self) -> Path | None:
        files = sorted((self.folder / "spool").rglob("*.segment")) if (self.folder / "spool").exists() else []
        return self.random.choice(files) if files and self.may_damage else None

    def _spool_flip(self, process: Process) -> bool:
        return flip(self._segment(), self.random)

    def _spool_truncate(self, process: Process) -> bool:
        return truncate(self._segment(), self.random)

    def _spool_remove(self, process: Process) -> bool:
        return remove(self._segment())

    def _spool_reorder(self, process: Process) -> bool:
        return self._frames(lambda frames: [*reversed(frames)])

    def _spool_double(self, process: Process) -> bool:
        return self._frames(lambda frames: [*frames, self.random.choice(frames)])

    def _frames(self, changed: Callable[[list[bytes]], list[bytes]]) -> bool:
        return reframe(self._segment(), changed)

    # ---- asking ----

    def ask(self, count: int) -> None:
        """Those of one source one after another, as its rows are read once."""
        if self.store is not None:
            self.store.remembered = ()
        asked = [self.draw() for _ in range(count)]
        sources = [self.draw_source(each) for each in asked]
        order: dict[tuple[int, Any], list[int]] = {}
        for at, source in enumerate(sources):
            order.setdefault((id(source.get("gateway")), source.get("spool")), []).append(at)
        for numbers in order.values():
            for at in numbers:
                self.question(asked[at], sources[at])

    def draw(self) -> Asking:
        """Mostly the endpoint at a moment; else a span of it, an address without a port, an inside address, a remote."""
        asked = self._draw_endpoint()
        kind = self.random.choice(["who", "who", "who", "who", "address", "what", "talked"])
        span = 0.0
        if kind in ("what", "talked") or self.random.random() < 0.1:
            span = self.random.choice([0.0, 1.0, 30.0, 600.0])
        if kind == "who":
            return replace(asked, span=span)
        held = self.random.choice(self.truth.held) if self.truth.held else None
        inside = held.host if held is not None and self.random.random() < 0.8 else f"10.0.0.{self.random.randrange(20)}"
        remote = asked.remote
        if remote is None and kind != "what":
            near = [each for each in self.truth.held if each.start <= asked.at <= each.end]
            remote = self.random.choice(near).remote if near else (self.random.choice(REMOTES), 53)
            remote = remote[0] if self.random.random() < 0.3 else remote
        protocol = asked.protocol if self.random.random() < 0.5 else ""
        return replace(asked, kind=kind, span=span, inside=inside, remote=remote, protocol=protocol)

    def _draw_endpoint(self) -> Asking:
        choice = self.random.random()
        if choice < 0.1 and self.truth.statics:
            return self._draw_static()
        if choice < 0.2 and self.rivals:
            return self._draw_rivals()
        held = self.random.choice(self.truth.held) if self.truth.held else None
        if held is None or choice > 0.9:
            outside = (self.random.choice(list(POOLS.values())), 1024 + self.random.randrange(16))
            at = self.random.choice([self.random.uniform(-50, self.now + 50), *(self.times[-8:] or [0.0])])
            return Asking(outside, self.random.choice(PROTOCOLS), at, self._draw_remote(held), self._draw_tolerance())
        edges = [held.start, held.last, held.end, self.random.uniform(held.start, held.end)]
        edges += [at for at in self.times if held.start <= at <= held.end][:2]
        at = self.random.choice(edges) + self.random.choice([0.0, 0.0, -0.5, 0.5, 3.0, -3.0, 70.0])
        return Asking(held.outside, held.protocol, at, self._draw_remote(held), self._draw_tolerance())

    def _draw_static(self) -> Asking:
        static = self.random.choice(self.truth.statics)
        outside = (static.address, static.port or self.random.randrange(1, 65_536))
        at = static.start + self.random.random() * (min(static.end, self.now) - static.start)
        return Asking(outside, self.random.choice(PROTOCOLS), at, self._draw_remote(None), self._draw_tolerance())

    def _draw_rivals(self) -> Asking:
        """When two subscribers had the endpoint one after the other, or both at once."""
        one, other = self.random.choice(self.rivals)
        edges = [at for at in one.packets if other.start - 100.0 <= at <= other.last + 100.0][-4:]
        at = self.random.choice([*edges, *other.packets[:4], (one.last + other.start) / 2])
        return Asking(one.outside, one.protocol, at, self._draw_remote(one), self.random.choice([0.0, 2.0, 60.0, 60.0]))

    @cached_property
    def rivals(self) -> list[tuple[Held, Held]]:
        found = []
        for held in self.truth.by_outside.values():
            ordered = sorted(held, key=lambda each: each.start)
            for at, one in enumerate(ordered):
                for other in ordered[at + 1 : at + 5]:
                    if (one.instance, one.host) != (other.instance, other.host) and other.start - one.last < 100.0:
                        found.append((one, other))
        return found

    def _draw_tolerance(self) -> float:
        return self.random.choice([0.0, 0.0, 2.0, 60.0])

    def _draw_remote(self, held: Held | None) -> Any:
        if self.random.random() < 0.7:
            return None
        remote = held.remote if held is not None and self.random.random() < 0.7 else (self.random.choice(REMOTES), 53)
        return remote[0] if self.random.random() < 0.3 else remote

    def draw_source(self, asked: Asking) -> dict[str, Any]:
        """What is asked: the folder, and a running gateway or a spool besides."""
        source: dict[str, Any] = {}
        mode = "live" if self.is_orderly else self.random.choice(["offline", "offline", "spool", "live"])
        alive = [process for process in self.processes.values() if process.alive]
        if mode == "live" and alive:
            owner = [process for process in alive if any(POOLS[p] == asked.outside[0] for p in process.pools)]
            source["gateway"] = self.random.choice(owner or alive).gateway
        if mode in ("spool", "live") and (self.folder / "spool").exists():
            name = source["gateway"].instance if "gateway" in source else self.random.choice(list(self.pools))
            if (self.folder / "spool" / name).exists():
                source["spool"] = self.folder / "spool" / name
        return source

    def question(self, asked: Asking, source: dict[str, Any]) -> None:
        at = round(asked.at, 3)
        moment = datetime.fromtimestamp(EPOCH, UTC) + timedelta(seconds=at)
        arguments = {"protocol": asked.protocol or None, "at": moment, "remote": asked.remote, "tolerance": asked.tolerance,
                     "until": moment + timedelta(seconds=asked.span) if asked.span else None}  # fmt: skip
        self.result.questions += 1
        try:
            answer = self._answer(asked, source)
            if self.random.random() < 0.01:
                self.real = self.real or Store(self.folder / "log")
                again = self._answer_in_full(asked, arguments, source)
                if (answer.status, answer.matches) != (again.status, again.matches):
                    self.wrong(f"{answer}, and in full {again}", asked, at, source)
        except Exception:
            self.wrong(f"exception {traceback.format_exc()}", asked, at, source)
            return
        self.result.answers[answer.status] += 1
        self.result.kinds[asked.kind] += 1
        if isinstance(answer, Listing):
            text = judge_listing(self.truth, answer, asked, at)
        else:
            text = judge(self.truth, answer, asked, at)
        if text:
            self.wrong(f"{text}; answered {answer.status}: {answer.reason}", asked, at, source)
        if asked.kind == "who" or not any(process.has_blocks_alone for process in self.processes.values()):
            self._judge_order(answer, at, at + asked.span, asked.tolerance)

    def question_of(self, asked: Asking) -> Question:
        moment = datetime.fromtimestamp(EPOCH, UTC) + timedelta(seconds=round(asked.at, 3))
        return Question(
            asked.outside[0] if asked.kind in ("who", "address") else None, asked.outside[1] if asked.kind == "who" else None,
            asked.protocol or None, moment, asked.remote, asked.tolerance, None,
            inside=asked.inside if asked.kind == "what" else None,
            until=moment + timedelta(seconds=asked.span) if asked.span else None,
        )  # fmt: skip

    def _answer(self, asked: Asking, source: dict[str, Any]) -> Answer | Listing:
        """The answer; what it reads is read once."""
        if self.store is None:
            self.store = Loaded(self.folder / "log")
        gateway, spool = source.get("gateway"), source.get("spool")
        question = self.question_of(asked)
        there = self.there.get((id(gateway), spool))
        if there is None:
            there = self.there[id(gateway), spool] = waiting(question, gateway, spool)
        if gateway is not None:
            assert there.now is not None
            there = replace(there, live=tuple(live_rows(question, gateway, there.now)))
        return answered(question, self.store, there)

    def _answer_in_full(self, asked: Asking, arguments: dict[str, Any], source: dict[str, Any]) -> Answer | Listing:
        """The answer by the public functions, and files that are read for it."""
        if asked.kind == "what":
            return what(self.real, asked.inside, **arguments, **source)
        if asked.kind == "talked":
            return talked(self.real, **arguments, **source)
        return who(
            self.real, asked.outside[0], asked.outside[1] if asked.kind == "who" else None, **arguments, **source
        )

    def _judge_order(self, answer: Answer | Listing, start: float, end: float, tolerance: float) -> None:
        if not self.is_orderly or start - tolerance < 1 or end + tolerance > self.now - 0.5:
            return
        at = start
        self.result.orderly += 1
        if answer.status == "gap" or (answer.status == "incomplete" and answer.gaps):
            self.result.orderly_gaps += 1
            if len(self.result.wrong) < 50 and os.environ.get("NATCORE_TRUTH_GAPS"):
                print(self.seed, "orderly gap", at, tolerance, answer.reason, file=sys.stderr)

    def wrong(self, text: str, asked: Asking, at: float, source: dict[str, Any]) -> None:
        live = "gateway" in source
        self.result.wrong.append(f"seed {self.seed}: {asked} at {at} spool={source.get('spool')} {live=}: {text}")


@contextmanager
def lived(seed: int, steps: int = 120, *, in_blocks: bool = False) -> Iterator[Life]:
    """A life that is over, or goes on without packets: to be asked."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # there a sync costs nothing
    folder = Path(tempfile.mkdtemp(prefix="natcore-truth-", dir=memory))
    life = Life(seed, folder, in_blocks=in_blocks)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with life.disk or nullcontext():
                life.live(steps)
            yield life
    finally:
        for process in life.processes.values():
            if process.alive:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def one_life(seed: int, questions: int, *, in_blocks: bool = False) -> Result:
    try:
        with lived(seed, in_blocks=in_blocks) as life:
            life.ask(questions)
            return life.result
    except Exception:
        return Result(wrong=[f"seed {seed}: the life itself: {traceback.format_exc()}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lives", type=int, default=20)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--blocks", action="store_true", help="only logs of port blocks alone")
    parser.add_argument("--show", type=int, default=20, help="wrong answers to print")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    total, line = Result(), ProgressLine("lives", arguments.lives)
    for seed in range(arguments.first, arguments.first + arguments.lives):
        one = one_life(seed, arguments.questions, in_blocks=arguments.blocks)
        for text in one.wrong[: max(0, arguments.show - len(total.wrong))]:
            print(text, flush=True)
        total.add(one)
        line.at(seed + 1 - arguments.first, f"{len(total.wrong)} of {total.questions:,} answers wrong")
    print(json.dumps({
        "seams": total.seams, "kinds": total.kinds, "answers": total.answers, "questions": total.questions,
        "orderly": total.orderly, "orderly_gaps": total.orderly_gaps, "wrong": len(total.wrong),
    }, indent=1))  # fmt: skip
    sys.exit(1 if total.wrong else 0)


if __name__ == "__main__":
    main()
