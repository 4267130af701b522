"""Gateway: what an appliance embeds. Arguments are checked here, once; packets never see a Python object."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar, cast

import numpy as np

from natcore import choices
from natcore.api.gateway import Core
from natcore.config import BLOCKED, AnyEntry, DeliveryPolicy, Link, Policy, Timeouts
from natcore.dtypes import BLOCKS, GAP_RING, MAPPING, PORTS, RECORD, SESSION, WINDOW, gap_row
from natcore.entries.changes import Add, Applied, Change, EntryTable, Modify, Plan, Remove, Replace
from natcore.entries.table import Entry
from natcore.errors import ConfigurationError, Error
from natcore.events import Event, Generated, event_of
from natcore.internal.arguments import (
    EGRESS,
    bytes_for,
    check_array,
    check_egress,
    check_rows,
    check_side,
    check_worker,
    frame_bytes,
    nows_ns,
    parts_of,
    rows_of,
    secret,
    settings_of,
    sides_of,
)
from natcore.internal.change_lock import ChangeLock, after_fork
from natcore.internal.closing import Closing
from natcore.internal.counters import tally
from natcore.internal.gateway_arguments import GatewayArguments
from natcore.internal.hardware import memory_arguments
from natcore.internal.read_only import UNSET, ReadOnly, Unset
from natcore.internal.redaction import show
from natcore.internal.validation import MAX_TIME, Address, check_choice, check_integer, check_number, exact_ns, to_ns
from natcore.verdict import Side, Verdict
from natcore.workers.configuration import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from natcore.control.server import ControlServer
    from natcore.deterministic import Share
    from natcore.explain import Explanation
    from natcore.internal.endpoints import Criteria, Endpoint
    from natcore.internal.event_feeds import EventFeed, EventFeeds
    from natcore.internal.parts import Parts, PlaneCalls
    from natcore.internal.session_feed import SessionFeed
    from natcore.labels import LabelSource
    from natcore.plane.async_plane import AsyncPlane
    from natcore.plane.plane import Plane
    from natcore.ranking import SessionRanking
    from natcore.sessionlog.collector import Account, Collector
    from natcore.sessionlog.session_log import SessionLog
    from natcore.sinks.base import Sink
    from natcore.subscriber_rates import SubscriberRates

Asked = TypeVar("Asked", bound=AnyEntry)
MAX_ADDRESSES = 65_536  # outside addresses of a gateway
LOOK_ROWS = 4096  # rows that are copied while the worker waits
EVERYTHING = (0, 0, 0), (0, 0, 0), (-1, -1, -1), -1, 0  # natcore.internal.endpoints.Criteria


class Gateway(Closing):
    """A NAT44 gateway: entries, sessions, ports, counters, the session log.

    A gateway is a context manager that closes itself. Any thread may call any method; docs/threads.md says which calls wait.

    Parameters
    ----------
    instance
        The gateway's name in every row of its session log.
    vpc_id
        The inside network's name in every row.
    region
        Where it is; a sink with a region must be in the same one (contract R6).
    kind
        "internet" (a pool has EIPs) or "vpc" (a pool has NAT IPs).
    eip_bind_mode
        What outside frames carry: "NAT", the private addresses of EIPs, or "MULTI_BINDED", the EIPs.
    billing
        "by-usage", or "by-specification", which has no session log (contract R6).
    max_sessions
        Sessions at once, 1 to 2^30. Tables are allocated for all of them, and take memory as they are used.
    max_mappings
        Mappings at once, 1 to 2^30; None: max_sessions.
    max_subscribers
        Inside hosts with mappings at once, 1 to 2^30; None: max_sessions.
    workers
        How many threads may translate at once, 1 to 64.
    window
        Seconds of a session log row, 1 to 14,400.
    records
        Rows of the journal, 4 to 2^26: what take_records() can give at once, and what a session log may be late by.
    epoch
        Unix seconds at now = 0: labels of rows, and nothing else.
    inside, outside
        The gateway's own links; None: no address, an MTU of 1,500 bytes.
    decrement_ttl
        A forwarded packet's TTL is lowered by one, and one that arrives with 1 is dropped.
    framing
        What frames begin with: "ethernet", or "ip", the IPv4 header.
    timeouts
        Idle seconds after which sessions end; None: the defaults of `Timeouts`.
    policy
        Mapping, filtering, ports, limits; None: the defaults of `Policy`.
    seed
        Makes every choice repeatable, for tests; ports are predictable then, and a plane warns. None: random.
    huge_pages
        "auto": transparent huge pages under tables of 4 MB and more. "never". "explicit": those of vm.nr_hugepages.
    numa_node
        The NUMA node that all tables lie on; None: where they are first used.

    Raises
    ------
    ConfigurationError
        An argument is out of its range; the message names it, the value and what is expected.
    CapacityError
        Full tables are more than the memory of this machine, of its control group or of the node, or huge pages are too few.
    """

    __slots__ = (
        "__weakref__",
        "_account",
        "_billing",
        "_change_lock",
        "_closed",
        "_collector",
        "_controls",
        "_core",
        "_decrement_ttl",
        "_eip_bind_mode",
        "_feeds",
        "_framing",
        "_huge_pages",
        "_inside",
        "_instance",
        "_kind",
        "_max_mappings",
        "_max_sessions",
        "_max_subscribers",
        "_numa_node",
        "_one_at_a_time",
        "_outside",
        "_planes",
        "_policy",
        "_records",
        "_region",
        "_seed",
        "_table",
        "_timeouts",
        "_vpc_id",
        "_window",
        "_workers",
    )  # fmt: skip

    def __init__(
        self,
        *,
        instance: str = "",
        vpc_id: str = "",
        region: str = "",
        kind: choices.Kind = "internet",
        eip_bind_mode: choices.EipBindMode = "NAT",
        billing: choices.Billing = "by-usage",
        max_sessions: int = 1_000_000,
        max_mappings: int | None = None,
        max_subscribers: int | None = None,
        workers: int = 1,
        window: float = 600.0,
        records: int = 65_536,
        epoch: float = 0.0,
        inside: Link | None = None,
        outside: Link | None = None,
        decrement_ttl: bool = True,
        framing: choices.Framing = "ethernet",
        timeouts: Timeouts | None = None,
        policy: Policy | None = None,
        seed: int | None = None,
        huge_pages: choices.HugePages = "auto",
        numa_node: int | None = None,
    ) -> None:
        checked = GatewayArguments(
            instance=instance, vpc_id=vpc_id, region=region, kind=kind, eip_bind_mode=eip_bind_mode, billing=billing,
            max_sessions=max_sessions, max_mappings=max_mappings, max_subscribers=max_subscribers, workers=workers,
            window=window, records=records, epoch=epoch, inside=inside, outside=outside, decrement_ttl=decrement_ttl,
            framing=framing, timeouts=timeouts, policy=policy, seed=seed, huge_pages=huge_pages, numa_node=numa_node,
        )  # fmt: skip
        self._instance, self._vpc_id, self._region = checked.instance, checked.vpc_id, checked.region
        self._kind, self._billing, self._eip_bind_mode = checked.kind, checked.billing, checked.eip_bind_mode
        self._policy, self._timeouts = checked.policy or Policy(), checked.timeouts or Timeouts()
        self._window, self._framing, self._seed = checked.window, checked.framing, checked.seed
        self._inside, self._outside = checked.inside or Link(), checked.outside or Link()
        self._records, self._workers = checked.records, checked.workers
        self._max_sessions, self._max_mappings = checked.max_sessions, checked.max_mappings or checked.max_sessions
        self._max_subscribers = checked.max_subscribers or checked.max_sessions
        self._huge_pages, self._numa_node = checked.huge_pages, checked.numa_node
        self._decrement_ttl = checked.decrement_ttl
        self._planes: dict[Plane, PlaneCalls] = {}
        self._controls: list[ControlServer] = []
        self._feeds: EventFeeds | None = None
        self._collector: Collector | None = None
        self._account: Account | None = None  # of the process that handed the gateway over
        self._closed = False
        self._change_lock = ChangeLock()
        self._one_at_a_time = threading.RLock()
        self._core = Core(
            self._settings(self.policy, self.timeouts),
            max_sessions=self.max_sessions,
            max_mappings=self.max_mappings,
            max_subscribers=self._max_subscribers,
            max_addresses=MAX_ADDRESSES,
            records=self.records,
            hash_key=secret(self.seed, "hash")[:16],
            random_key=secret(self.seed, "ports"),
            port_ranges=self.policy.drawn_ranges,
            block_size=self.policy.block_size if self.policy.ports in BLOCKED else 0,
            epoch_ns=exact_ns(checked.epoch),
            workers=self.workers,
            link_addresses=tuple(int(side.address or 0) for side in (self.inside, self.outside)),
            mtus=(self.inside.mtu, self.outside.mtu),
            **memory_arguments(checked.huge_pages, checked.numa_node),
        )
        self._table = EntryTable(self._core, self.kind, self.eip_bind_mode, self.policy)
        after_fork(self, Gateway._forked)

    instance = ReadOnly[str]("The gateway's name in every row of its session log.")
    vpc_id = ReadOnly[str]("The inside network's name in every row of its session log.")
    region = ReadOnly[str]("Where it is.")
    kind = ReadOnly[choices.Kind]('"internet" or "vpc".')
    billing = ReadOnly[choices.Billing]('"by-usage" or "by-specification".')
    eip_bind_mode = ReadOnly[choices.EipBindMode]('"NAT" or "MULTI_BINDED".', "modify(eip_bind_mode=…) changes it")
    seed = ReadOnly[int | None]("What makes every choice repeatable; None: nothing does.")
    policy = ReadOnly[Policy]("How it maps, filters and draws ports.", "modify(policy=…) changes it")
    timeouts = ReadOnly[Timeouts]("Idle seconds after which a session ends.", "modify(timeouts=…) changes them")
    window = ReadOnly[float]("Seconds of a session log row.")
    framing = ReadOnly[choices.Framing]('Frames are "ethernet" or bare "ip" packets.')
    decrement_ttl = ReadOnly[bool]("Whether it takes a hop off the time to live of what it forwards.")
    inside = ReadOnly[Link]("Its own link on the inside.")
    outside = ReadOnly[Link]("Its own link on the outside.")
    records = ReadOnly[int]("Rows that are kept for take_records().")
    workers = ReadOnly[int]("How many workers it has.")
    max_sessions = ReadOnly[int]("Sessions at once, at most.")
    max_mappings = ReadOnly[int]("Mappings at once, at most.")

    def _settings(self, policy: Policy, timeouts: Timeouts) -> Settings:
        """Return what the workers are configured with under a policy and time-outs."""
        return settings_of(
            policy,
            timeouts,
            max_sessions=self._max_sessions,
            window_ns=to_ns(self._window, "window"),
            ethernet=self._framing == "ethernet",
            decrement_ttl=self._decrement_ttl,
        )

    # ---- entries ----------------------------------------------------------------------------------------------------

    def add(self, entry: Asked) -> Entry[Asked]:
        """Put an entry into force.

        Parameters
        ----------
        entry
            An `SnatEntry`, a `DnatEntry` or a `NoNatEntry`.

        Returns
        -------
        Entry
            The handle for `remove` and `replace`, with `.id` and `.entry`.

        Raises
        ------
        ConfigurationError
            Another entry, or a live mapping's port, is in its way; the message names it.
        """
        return cast("Entry[Asked]", self._change(Add(entry)).added[0])

    def remove(self, entry: Entry, *, drain: bool = False, now: float | None = None) -> int:
        """Take an entry out of force, and end its sessions with their rows.

        Parameters
        ----------
        entry
            A handle that `add` returned.
        drain
            True: its sessions end by themselves, and it takes no new one.
        now
            Seconds on the gateway's clock; None: its last time.

        Returns
        -------
        int
            How many sessions ended.
        """
        return self._change(Remove(entry, drain), now).ended

    def replace(self, entry: Entry, by: AnyEntry, now: float | None = None) -> int:
        """Change what a handle stands for.

        An SNAT entry's sessions stay as far as its new prefix and pool still have their addresses.

        Parameters
        ----------
        entry
            A handle that `add` returned.
        by
            The new entry.
        now
            Seconds on the gateway's clock; None: its last time.

        Returns
        -------
        int
            How many sessions ended.
        """
        return self._change(Replace(entry, by), now).ended

    def plan(self, changes: Sequence[Change]) -> Plan:
        """Say what changes would keep, drain and end; nothing is changed.

        Parameters
        ----------
        changes
            `Add`, `Remove`, `Replace`, and one `Modify` at most, carried out together.

        Returns
        -------
        Plan
            What `apply` takes; `str()` of it is a summary.

        Raises
        ------
        ConfigurationError
            As for `add`.
        RestartNeededError
            As for `modify`.
        """
        with self._change_lock:
            return self._plan(changes)

    def apply(self, plan: Plan, now: float | None = None) -> Applied:
        """Carry a plan out, in one moment for the packets; all of it or, with an error, nothing.

        Parameters
        ----------
        plan
            What `plan` returned, if entries have not changed since.
        now
            Seconds on the gateway's clock; None: its last time.

        Returns
        -------
        Applied
            The handles of new entries, and how many sessions ended.
        """
        with self._change_lock:
            return self._apply(plan, now)

    def sessions_by_entry(self) -> dict[int, int]:
        """Count the live sessions of each entry.

        Returns
        -------
        dict of int to int
            By `Entry.id`, of the entries in force and of those that drain.
        """
        self._settle()
        with self._change_lock:
            return self._table.sessions_by_entry()

    def _plan(self, changes: Sequence[Change]) -> Plan:
        self._check_open()
        self._settle()
        plan = self._table.plan(changes)
        for calls in list(self._planes.values()):
            calls.check_pool(self._table.outside(plan))
        return plan

    def _apply(self, plan: Plan, now: float | None) -> Applied:
        self._check_open()
        self._table.check(plan)
        for calls in list(self._planes.values()):
            calls.entries_come(self._table.outside(plan))
        self._drain()  # the rows of sessions that end fit beside a full ring
        policy, timeouts, settings = self._policy, self._timeouts, None
        if (modify := plan.after.modify) is not None:
            policy, timeouts = modify.policy or policy, modify.timeouts or timeouts
            if (policy, timeouts) != (self._policy, self._timeouts):
                settings = self._settings(policy, timeouts)
        try:
            applied = self._table.apply(plan, self._settle(now), settings)
        finally:
            self._notify_planes()
        if modify is not None:
            self._policy, self._timeouts = policy, timeouts
            self._eip_bind_mode = modify.eip_bind_mode or self._eip_bind_mode
        self._note_change()
        return applied

    def _change(self, change: Change, now: float | None = None) -> Applied:
        with self._change_lock:
            return self._apply(self._plan([change]), now)

    def entries(self) -> list[Entry]:
        """The entries in force, in the order in which they were added."""
        return list(self._table.rows)

    def end(
        self,
        *,
        subscriber: Endpoint | Unset = UNSET,
        remote: Endpoint | Unset = UNSET,
        outside: Endpoint | Unset = UNSET,
        protocol: choices.Protocol | int | Unset = UNSET,
        entry: Entry | int | Unset = UNSET,
        now: float | None = None,
    ) -> int:
        """End the sessions that match every criterion given, with their rows.

        Parameters
        ----------
        subscriber, remote, outside
            The inside, remote and outside address: an address, a prefix, or either as text with a port
            ("198.18.0.1:443").
        protocol
            "tcp", "udp", "icmp", or a number from 0 to 255.
        entry
            A handle, or its number.
        now
            Seconds on the gateway's clock; None: its last time.

        Returns
        -------
        int
            How many sessions ended.

        Raises
        ------
        ConfigurationError
            There is no criterion, or one is None, such as a look-up that found nothing. `end_all` ends all.
        """
        from natcore.internal.endpoints import criteria

        self._check_open()
        if all(value is UNSET for value in (subscriber, remote, outside, protocol, entry)):
            raise ConfigurationError("end: give one criterion or more; end_all() ends all sessions")

        return self._end(criteria(subscriber, remote, outside, protocol, entry), now)

    def end_all(self, now: float | None = None) -> int:
        """End every session, with its rows.

        Parameters
        ----------
        now
            Seconds on the gateway's clock; None: its last time.

        Returns
        -------
        int
            How many sessions ended.
        """
        self._check_open()
        return self._end(None, now)

    def _end(self, matching: Criteria | None, now: float | None) -> int:
        """In pieces, between which packets go on and rows are drained: those that there were when it began."""
        losing = False
        now_ns = self._now_ns(now)
        while True:
            complete, newest = self._core.end_dead(now_ns, losing)
            if complete:
                break
            now_ns = self._core.now_ns  # a now before that is counted once
            losing = not self._drain()
        ended = 0
        place: int | None = 0
        while place is not None:
            count, after = self._core.end(*matching or EVERYTHING, newest, place, losing)
            ended += count
            if count == 0 and after == place:  # the ring is full
                losing = not self._drain()
            place = after
        return ended

    def _drain(self) -> bool:
        """Takes rows out of a journal that is nearly full, if a session log runs; whether it has space now."""
        if self._collector is None or not self._collector.active:
            return False
        self._collector.drain_now()
        return not self._core.log_rows.journal_short

    def modify(
        self,
        *,
        policy: Policy | None = None,
        timeouts: Timeouts | None = None,
        eip_bind_mode: choices.EipBindMode | None = None,
        now: float | None = None,
    ) -> int:
        """Change settings while the gateway runs, all in one moment for the packets.

        `plan` with a `Modify` says beforehand whether that can be, and changes nothing.

        Parameters
        ----------
        policy
            The new policy, for new sessions and for what is asked of each packet (docs/guide/entries.md). None: as it is.
        timeouts
            The new time-outs. A session keeps its deadline until a packet refreshes it, but is dead one new time-out after
            the change at the latest. None: as they are.
        eip_bind_mode
            "NAT", from MULTI_BINDED alone (contract R7): sessions over an address that changes on the wire end, with their
            rows. None: as it is.
        now
            Seconds on the gateway's clock; None: its last time.

        Returns
        -------
        int
            How many sessions ended; only another eip_bind_mode ends some.

        Raises
        ------
        RestartNeededError
            The policy has another `mapping`, port scheme or the like; the message and `fields` name all of these.
        ConfigurationError
            Nothing is given, or an entry in force is not possible under the new settings.
        CapacityError
            There is no memory for the lists that quotas need.
        """
        return self._change(Modify(policy=policy, timeouts=timeouts, eip_bind_mode=eip_bind_mode), now).ended

    def _follow(self, addresses: Sequence[int], hosts: Mapping[int, tuple[int, int]]) -> None:
        """For a plane, with the change lock: its outside interface has these addresses (host order), and the host these TCP
        and UDP ports of them."""
        if self._closed:
            return
        self._drain()
        before = self._table.book
        self._table.follow(addresses, hosts, self._settle())
        if self._table.book is not before:
            self._note_change()

    def _note_change(self) -> None:
        """Record in the session logs what is in force now."""
        if self._collector is not None:
            self._collector.note_change()

    def _notify_planes(self) -> None:
        """Which addresses are the gateway's has changed: planes keep the kernel off these."""
        for calls in list(self._planes.values()):
            calls.entries_changed()

    # ---- frames in memory -------------------------------------------------------------------------------------------

    def translate(
        self,
        frames: NDArray[np.uint8],
        lengths: NDArray[np.uint32],
        side: int | NDArray[np.uint8],
        now: float | NDArray[np.float64],
        *,
        out: NDArray[np.uint8] | None = None,
        egress: NDArray[np.uint8] | None = None,
        worker: int | None = None,
    ) -> NDArray[np.uint8]:
        """Translate frames in place and in order; it runs without the GIL.

        Parameters
        ----------
        frames
            uint8 (count, stride), one frame a row, C-contiguous and writable.
        lengths
            uint32 (count,), bytes used in each row; cut to what each packet is.
        side
            The `Side` that the frames came from, or uint8 (count,).
        now
            Seconds on the gateway's clock, or float64 (count,).
        out
            uint8 (count,) for the verdicts; None: a new array.
        egress
            uint8 (count,), written: the `Side` that each frame leaves by, and 255 for one that is not forwarded.
        worker
            The worker that translates, as several may at once, each in a thread; None: each frame's owner.

        Returns
        -------
        numpy.ndarray
            uint8 (count,): a `Verdict` for each frame. Bad packets have one too.

        Raises
        ------
        ConfigurationError
            Shapes or types disagree, arrays overlap, or a length exceeds the stride.
        Error
            The gateway is closed, or another call or a plane translates by that worker.
        """
        if self._closed or self._table.lacks_interface:
            self._check_usable()
        count = check_rows(frames, lengths)
        out = bytes_for(out, count)
        if egress is not None:
            check_egress(egress, count, frames=frames, lengths=lengths, out=out, side=side)
        who = -1 if worker is None else check_worker(worker, self._workers)
        sides, side = sides_of(side, count)
        nows, now_ns = (nows_ns(now, count), 0) if isinstance(now, np.ndarray) else (None, to_ns(now))
        self._core.translate(frames, lengths, sides, side, nows, now_ns, out, who)
        if egress is not None:
            egress[:] = EGRESS[side if sides is None else sides & 1, out]
        return out

    def translate_many(
        self,
        frames: Iterable[Buffer],
        side: int | NDArray[np.uint8],
        now: float | NDArray[np.float64],
        *,
        worker: int | None = None,
    ) -> list[tuple[Verdict, bytes | None]]:
        """Translate several frames in order; what is given is not changed.

        Parameters
        ----------
        frames
            Contiguous buffers, one frame each: bytes, bytearrays, arrays, memoryviews.
        side
            The `Side` that they came from, or uint8 (count,).
        now
            Seconds on the gateway's clock, or float64 (count,).
        worker
            As for `translate`.

        Returns
        -------
        list of tuple of Verdict and bytes or None
            For each frame what `translate_one` gives.

        Raises
        ------
        ConfigurationError
            One of them is no contiguous buffer; then none was translated.
        """
        self._check_usable()
        given = [frame_bytes(frame, f"frames[{i}]") for i, frame in enumerate(frames)]
        sides_of(side, len(given))
        if isinstance(now, np.ndarray):
            nows_ns(now, len(given))
        else:
            to_ns(now)
        done: list[tuple[Verdict, bytes | None]] = []
        for part in parts_of(given):
            rows, lengths = rows_of(given[part])
            sides = side[part] if isinstance(side, np.ndarray) else side
            nows = now[part] if isinstance(now, np.ndarray) else now
            verdicts = self.translate(rows, lengths, sides, nows, worker=worker)
            for row, length, number in zip(rows, lengths.tolist(), verdicts.tolist(), strict=True):
                verdict = Verdict(number)
                done.append((verdict, row[:length].tobytes() if verdict.is_forwarded else None))
        return done

    def translate_one(
        self, frame: Buffer, side: int, now: float, *, worker: int | None = None
    ) -> tuple[Verdict, bytes | None]:
        """Translate one frame; what is given is not changed.

        Parameters
        ----------
        frame
            Its bytes: any contiguous buffer.
        side
            The `Side` that it came from.
        now
            Seconds on the gateway's clock.
        worker
            As for `translate`.

        Returns
        -------
        tuple of Verdict and bytes or None
            The verdict, and the frame to send; None for a drop, for LOCAL and for HELD.
        """
        self._check_usable()
        number, translated = self._core.translate_one(
            frame_bytes(frame), check_side(side), to_ns(now), check_worker(worker, self._workers)
        )
        verdict = Verdict(number)
        return verdict, translated if verdict.is_forwarded else None

    def explain(self, frame: Buffer, side: int, now: float | None = None) -> Explanation:
        """Say what translate_one would do with a frame and why, step by step; nothing changes.

        Parameters
        ----------
        frame
            Its bytes.
        side
            The `Side` that it came from.
        now
            Seconds on the gateway's clock; None: its last time.

        Returns
        -------
        Explanation
            Verdict, counter, entry, session, mapping, and the steps; `str()` of it is text for people.

        Raises
        ------
        CapacityError
            The system refused the copy of the process that it works on.
        """
        self._check_usable()
        from natcore.explain import explain

        return explain(
            self._core, self._table, self.policy, bytes(frame_bytes(frame)), Side(check_side(side)), self._now_ns(now)
        )

    def advance(self, now: float) -> None:
        """End everything that is due: idle sessions at their deadlines, windows at their ends.

        Rows that find no place in the journal are drained to the session logs as it goes. While no log runs, rows that
        take_records() has no place for are lost, and counted.

        Parameters
        ----------
        now
            Seconds on the gateway's clock.
        """
        self._check_open()
        self._advance_ns(to_ns(now))

    def _advance_ns(self, now_ns: int) -> None:
        collector = self._collector
        while not self._core.advance(now_ns):
            now_ns = self._core.now_ns  # a now before that is counted once
            if collector is None or not collector.active:
                self._core.advance(now_ns, losing=True)
                return
            collector.drain_now()

    def take_generated(self) -> list[Generated]:
        """Take the frames of the gateway's own that wait to be sent, the oldest first.

        Returns
        -------
        list of Generated
            ICMP messages, fragments that waited, fragments that were made.
        """
        return [Generated(frame, Side(side), Verdict(cause)) for frame, side, cause in self._core.take_generated()]

    def owner(
        self, frames: NDArray[np.uint8], lengths: NDArray[np.uint32], side: int | NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Say which worker each frame belongs to, as things are; nothing changes.

        Any worker may be given any frame; one that is not its own is handed off.

        Parameters
        ----------
        frames, lengths, side
            As for `translate`.

        Returns
        -------
        numpy.ndarray
            uint8 (count,): numbers of workers.
        """
        self._check_open()
        count = check_rows(frames, lengths, writable=False)
        sides, side = sides_of(side, count)
        self._core.owners(frames, lengths, sides, side, out := np.zeros(count, np.uint8))
        return out

    def capsule(self, worker: int = 0) -> object:
        """Return a worker for callers in C or Cython (natcore.h, natcore/translate.pxd).

        Parameters
        ----------
        worker
            Which one, from 0.

        Returns
        -------
        capsule
            What natcore_worker_of() takes. It keeps the gateway alive. close() does not wait for a loop of the caller's own:
            stop that first.
        """
        self._check_open()
        return self._core.worker_capsule(check_worker(worker, self._workers), self)

    # ---- interfaces -------------------------------------------------------------------------------------------------

    def forward(
        self, inside: str | Sequence[str], outside: str, *, driver: choices.Driver = "af_packet",
        favour: choices.Favour = "throughput", threads: bool = True, cpus: Sequence[int] | None = None,
        block_when_stopped: bool | None = None, fast_path: bool | int = False, steering: choices.Steering = "none",
    ) -> Plane:  # fmt: skip
        """Forward between inside interfaces and an outside one until the plane is stopped.

        Parameters
        ----------
        inside
            An interface's name, or up to 15: packets go back by the one that the kernel's route to their host leads over.
        outside
            An interface's name.
        driver
            "af_packet", or "af_xdp".
        favour
            "throughput", or "latency": packets do not wait for others.
        threads
            False: no thread moves packets; call `Plane.step` when `Plane.fileno` is readable.
        cpus
            The processor of each worker's thread; None: the system chooses.
        block_when_stopped
            The kernel forwards nothing that comes by these interfaces after the end either; None: if it forwards at all.
        fast_path
            With driver="af_xdp" and one worker: XDP programs translate packets of established TCP and UDP sessions. A number:
            of so many sessions at most, 1 to 5,000,000; True: 65,536.
        steering
            "rss", with driver="af_xdp" and several workers: network cards are set to give each frame to a queue of its worker,
            where they can (RSS key, table and fields), until the end; "none".

        Returns
        -------
        Plane
            A context manager that stops at its end.

        Raises
        ------
        InterfaceError
            There is no such interface, it is down, another process has it, or a capability is missing.
        ConfigurationError
            An address of the host's own on one of the interfaces is an entry's outside address.
        """
        self._check_open()
        from natcore.plane.plane import Plane

        return Plane(
            self, inside, outside, driver=driver, favour=favour, threads=threads, cpus=cpus,
            block_when_stopped=block_when_stopped, fast_path=fast_path, steering=steering,
        )  # fmt: skip

    def forward_async(
        self, inside: str | Sequence[str], outside: str, *, driver: choices.Driver = "af_packet",
        favour: choices.Favour = "throughput",
        block_when_stopped: bool | None = None, budget: int = 256,
    ) -> AsyncPlane:  # fmt: skip
        """Forward within an asyncio event loop: `async with gateway.forward_async(…) as plane: await plane.wait()`.

        Parameters
        ----------
        inside, outside, driver, favour, block_when_stopped
            As for `forward`; errors too, when the block is entered.
        budget
            Packets that are moved before other tasks have their turn, about, 1 to 2^30.

        Returns
        -------
        AsyncPlane
            An asynchronous context manager, which stops the plane at its end.
        """
        self._check_open()
        from natcore.plane.async_plane import AsyncPlane

        return AsyncPlane(
            lambda: self.forward(
                inside, outside, driver=driver, favour=favour, threads=False, block_when_stopped=block_when_stopped
            ),
            check_integer("budget", budget, 1, 1 << 30),
        )

    # ---- looking ----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds on the gateway's clock: the last time that it has seen."""
        return self._core.now_ns / 1e9

    @property
    def epoch(self) -> float:
        """Unix seconds at now = 0."""
        return self._core.log_rows.epoch_ns / 1e9

    @property
    def logs(self) -> tuple[SessionLog, ...]:
        """The session logs that run."""
        return () if self._collector is None else self._collector.logs

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes that forward for it now."""
        return tuple(self._planes)

    def counters(self, worker: int | None = None) -> dict[str, int]:
        """Every counter by name, cumulative, and the gauges held, sessions, mappings and ports_used.

        Parameters
        ----------
        worker
            The frames that it took and its own sessions; what workers share is counted for all. None: the sums.

        Returns
        -------
        dict of str to int
            docs/reference/counters.md says what each counts. received = forwarded + local + dropped + held, always.
        """
        self._settle()
        return tally(*self._core.inspection.counters(check_worker(worker, self._workers)))

    def sessions(self, out: NDArray[np.void] | None = None) -> NDArray[np.void]:
        """Copy the live sessions, in slices of which each row is consistent.

        Parameters
        ----------
        out
            SESSION (n,), filled as far as it goes; None: a new array.

        Returns
        -------
        numpy.ndarray
            SESSION rows (docs/reference/arrays.md).
        """
        self._settle()
        if out is None:
            out = np.zeros(self._core.inspection.session_slots, SESSION)
        else:
            check_array("out", out, SESSION, 1)
        filled = 0
        place: int | None = 0
        while filled < len(out) and place is not None:
            count, place = self._core.inspection.sessions(out[filled : filled + LOOK_ROWS], place)
            filled += count
        return out[:filled]

    def find_sessions(
        self,
        *,
        subscriber: Endpoint | Unset = UNSET,
        remote: Endpoint | Unset = UNSET,
        outside: Endpoint | Unset = UNSET,
        protocol: choices.Protocol | int | Unset = UNSET,
        entry: Entry | int | Unset = UNSET,
    ) -> Iterator[NDArray[np.void]]:
        """Find the live sessions that match every criterion given, a slice of the table at a time.

        Packets wait for the copies of what matches, and not for the search: a million sessions are looked through in some
        ten milliseconds.

        Parameters
        ----------
        subscriber, remote, outside
            The inside, remote and outside address: an address, a prefix, or either as text with a port
            ("198.18.0.1:443").
        protocol
            "tcp", "udp", "icmp", or a number from 0 to 255.
        entry
            A handle, or its number.

        Yields
        ------
        numpy.ndarray
            SESSION rows (docs/reference/arrays.md), at most 256, maybe none. Each is consistent; sessions that begin or end
            meanwhile may be missing.

        Raises
        ------
        ConfigurationError
            A criterion is none of these; None is such as a look-up that found nothing.
        """
        from natcore.internal import searches

        self._settle()
        return searches.sessions(self._core.workers, subscriber, remote, outside, protocol, entry)

    def rank_sessions(
        self,
        by: choices.SessionOrder,
        limit: int,
        *,
        after: str = "",
        reverse: bool = False,
        subscriber: Endpoint | Unset = UNSET,
        remote: Endpoint | Unset = UNSET,
        outside: Endpoint | Unset = UNSET,
        protocol: choices.Protocol | int | Unset = UNSET,
        entry: Entry | int | Unset = UNSET,
    ) -> SessionRanking:
        """Find the first live sessions in an order, of those that match every criterion given, in one pass.

        Packets wait for the copies of these alone; what is kept does not grow with the table.

        Parameters
        ----------
        by
            "bytes", "packets", "bytes-out", "bytes-in": the most first, of their whole life. "age", "idle": the longest
            first. "expires": the soonest first. "subscriber", "outside", "remote": by that address (outside: and port).
            "session": by number, that is in the order of their begin.
        limit
            Sessions at most, 1 to 100,000.
        after
            A cursor of another ranking in this order (`first`, `last`): only what comes after it is found. "": all.
        reverse
            The other way round.
        subscriber, remote, outside, protocol, entry
            As for `find_sessions`.

        Returns
        -------
        SessionRanking
            Its `rows()` are the sessions.

        Raises
        ------
        ConfigurationError
            As `find_sessions`; no such order, limit or cursor.
        """
        from natcore.internal.endpoints import criteria
        from natcore.ranking import SessionRanking

        self._settle()
        wanted = criteria(subscriber, remote, outside, protocol, entry)
        return SessionRanking(self._core.workers, wanted, by, limit, after, reverse=reverse)

    def subscriber_rates(self, subscriber: Endpoint | Unset = UNSET, *, once: bool = False) -> SubscriberRates:
        """Count by inside address what its sessions send and receive from one look to the next.

        A look reads the tables where they lie, 256 sessions with a worker locked at a time.

        Parameters
        ----------
        subscriber
            The inside addresses, as for `find_sessions`; all, unless told.
        once
            Only what the open sessions had in their whole lives is asked for: nothing is remembered. Else it takes 40 bytes
            of memory for each slot of the session table that was ever used.

        Returns
        -------
        SubscriberRates
            Its `rows()` are the counts.

        Raises
        ------
        ConfigurationError
            subscriber is neither an address nor a prefix.
        """
        from natcore.internal.endpoints import criteria
        from natcore.subscriber_rates import SubscriberRates

        self._settle()
        wanted = criteria(subscriber, UNSET, UNSET, UNSET, UNSET)
        return SubscriberRates(self._core.workers, wanted, once=once)

    def find_mappings(
        self,
        *,
        subscriber: Endpoint | Unset = UNSET,
        outside: Endpoint | Unset = UNSET,
        protocol: choices.Protocol | int | Unset = UNSET,
        entry: Entry | int | Unset = UNSET,
    ) -> Iterator[NDArray[np.void]]:
        """Find the live mappings that match every criterion given, a slice of the table at a time.

        Parameters
        ----------
        subscriber, outside, protocol, entry
            As for `find_sessions`; errors too.

        Yields
        ------
        numpy.ndarray
            MAPPING rows (docs/reference/arrays.md), at most 256, maybe none.
        """
        from natcore.internal import searches

        self._settle()
        return searches.mappings(self._core.workers, subscriber, outside, protocol, entry)

    def mappings(self) -> NDArray[np.void]:
        """Copy the live mappings, in slices of which each row is consistent.

        Returns
        -------
        numpy.ndarray
            MAPPING rows (docs/reference/arrays.md).
        """
        # numpy joins rows field by field, and leaves what is between them: a row of one field is joined whole
        whole = np.dtype((np.void, MAPPING.itemsize))
        found = [rows.view(whole) for rows in self.find_mappings()]
        return np.concatenate(found).view(MAPPING) if found else np.zeros(0, MAPPING)

    def ports(self) -> NDArray[np.void]:
        """Port use.

        Returns
        -------
        numpy.ndarray
            PORTS rows, one for each outside address and protocol (docs/reference/arrays.md).
        """
        self._settle()
        out = np.zeros(3 * self._table.address_count, PORTS)
        return out[: self._core.inspection.ports(out)]

    def blocks(self) -> NDArray[np.void]:
        """Port blocks and the subscribers that have them, with ports="block".

        Returns
        -------
        numpy.ndarray
            BLOCKS rows (docs/reference/arrays.md).
        """
        self._settle()
        out = np.zeros(self._core.inspection.block_count, BLOCKS)
        return out[: self._core.inspection.blocks(out)]

    def who(self, address: Address, port: int, protocol: str | None = None) -> IPv4Address | None:
        """The inside host behind an outside endpoint, computed from the entries, with ports="deterministic".

        Parameters
        ----------
        address
            The outside address.
        port
            The outside port, or an ICMP query's identifier.
        protocol
            "tcp", "udp" or "icmp"; None: any.

        Returns
        -------
        ipaddress.IPv4Address or None
            None: no host has it.
        """
        from natcore import deterministic

        entries = [row.entry for row in self._table.rows]
        return deterministic.who(entries, self.policy, address, port, protocol, eip_bind_mode=self.eip_bind_mode)

    def ports_of(self, inside: Address) -> Share | None:
        """The outside address and ports of an inside host, computed from the entries, with ports="deterministic".

        Parameters
        ----------
        inside
            The inside address.

        Returns
        -------
        Share or None
            None: no entry covers it.
        """
        from natcore import deterministic

        return deterministic.ports_of([row.entry for row in self._table.rows], self.policy, inside)

    def take_events(self) -> list[Event]:
        """Take what an administrator should know since the last call; each once, with a count.

        Returns
        -------
        list of Event
            docs/reference/events.md says what each reason means.
        """
        return self._take_events() if self._feeds is None else self._feeds.take()

    def watch_events(self) -> EventFeed:
        """Watch events beside `take_events`, which gets each as well.

        Returns
        -------
        EventFeed
            `take()` gives the events since the last call; at most 4,096 wait, the others are counted in `lost`. A context
            manager.
        """
        self._check_open()
        with self._change_lock:
            feeds = self._event_feeds()
        return feeds.open()

    def _event_feeds(self) -> EventFeeds:
        if self._feeds is None:
            from natcore.internal.event_feeds import EventFeeds

            inspection, ours = self._core.inspection, weakref.WeakMethod(self._take_events)  # a feed keeps no gateway

            def take() -> list[Event]:
                taking = ours()
                return [] if taking is None else taking()

            self._feeds = EventFeeds(take, lambda: os.eventfd_write(inspection.event_fd, 1))
        return self._feeds

    def _take_events(self) -> list[Event]:
        more = [] if self._collector is None else self._collector.take_notices()
        return [*(event_of(row) for row in self._core.inspection.take_events()), *more]

    def watch_sessions(self, *, capacity: int = 16_384) -> SessionFeed:
        """Watch sessions begin and end, whether or not a session log runs; nothing is taken from it.

        Parameters
        ----------
        capacity
            Rows that wait until they are taken, 1 to 2^22; the others are counted in `lost`.

        Returns
        -------
        SessionFeed
            `take()` gives RECORD rows of the kinds CREATE and END (docs/reference/arrays.md). A context manager.
        """
        self._check_open()
        from natcore.internal.session_feed import SessionFeed

        return SessionFeed(self._core.workers, check_integer("capacity", capacity, 1, 1 << 22))

    def fileno(self) -> int:
        """A descriptor that is readable while events wait."""
        return self._core.inspection.event_fd

    def _settle(self, now: float | None = None) -> int:
        """Completes expiry up to now, so that nothing dead is shown; a plane's sweep does it by itself. That moment, ns."""
        now_ns = self._now_ns(now)
        if not self._planes and not self._closed:
            self._advance_ns(now_ns)
            now_ns = self._core.now_ns
        return now_ns

    # ---- the session log --------------------------------------------------------------------------------------------

    def start_session_log(
        self, sink: Sink, *, name: str | None = None, spool: str | os.PathLike[str] | None = None, at_once: bool = True,
        delivery: DeliveryPolicy | None = None, redact_destination: bool = False, rows: choices.LogRows = "all",
        refusals: bool = False, labels: LabelSource | None = None, on_failure: choices.OnFailure = "forward",
    ) -> SessionLog:  # fmt: skip
        """Start a session log into a sink; several logs get the same rows with the same numbers.

        Parameters
        ----------
        sink
            One of natcore.sinks, or any object with deliver(batch).
        name
            Of the log, and of its folder in spool: letters, digits, '.', '_' and '-', 64 at most. None: after the sink.
        spool
            A folder where rows wait on disk; None: they wait in memory.
        delivery
            Batches, pauses, the spool's size; None: the defaults of `DeliveryPolicy`.
        redact_destination
            Rows have no pub_ip and pub_port (RFC 6888 REQ-12).
        rows
            "all": of every kind that the sink takes. "blocks": of port blocks alone, with those about the log itself; for
            Policy(ports="block").
        refusals
            Rows of refusals too: one a subscriber, reason and minute, with a count; and of thresholds and the other events.
        labels
            Writes into each row which account, line or device had the inside address then, by a table: its path, or kea:PATH or
            dnsmasq:PATH for leases (`natcore.labels.LabelFile`). Where it fails rows go without, counted `unlabelled`. A
            program may give Labels or a function (`CalledLabels`), which the delivering thread calls. None: no labels.
        on_failure
            Of the spool or the sink at the start: "forward", the log goes on trying; "refuse", an error.
        at_once
            Whether the spool is open when this returns; False: the log's own thread opens it, which may wait for the disk, and
            rows wait in memory until then.

        Returns
        -------
        SessionLog
            Its status and counters; `stop()` ends it, and so does the end of a `with` block.

        Raises
        ------
        ConfigurationError
            A name or a sink is in use, the region is another one (contract R6), the sink takes no rows of port blocks, or
            of refusals, or no labels, where they are asked for, or on_failure="refuse" and it does not work, or at_once=False
            with it.
        CapacityError
            The system has no thread left.
        """
        with self._change_lock:
            self._check_open()
            if self._collector is None:
                from natcore.sessionlog import at_exit
                from natcore.sessionlog.collector import Collector
                from natcore.sessionlog.in_force import clock_offset, in_force

                self._collector = Collector(
                    self._core.log_rows, instance=self.instance, vpc_id=self.vpc_id, billing=self.billing, region=self.region,
                    resumed=self._account, in_force=in_force(weakref.ref(self)), clock_offset=clock_offset(weakref.ref(self)),
                )  # fmt: skip
                at_exit.watch(self, self._collector)
            feeds = self._event_feeds() if check_choice("refusals", refusals, (True, False)) else None
        return self._collector.start(
            sink, name=name, spool=spool, delivery=delivery, redact_destination=redact_destination,
            rows=rows, refusals=feeds, labels=labels, on_failure=on_failure, at_once=at_once,
        )  # fmt: skip

    def stop_session_log(self, log: SessionLog, timeout: float = 10.0) -> int:
        """Stop a log; its open windows are delivered as partial rows (contract R10).

        Parameters
        ----------
        log
            What `start_session_log` returned.
        timeout
            Seconds that deliveries may take, 0 to 10^9. It ends sooner when every row is delivered or in the spool.

        Returns
        -------
        int
            Rows that are not delivered.
        """
        if self._collector is None:
            raise ConfigurationError(f"log must be a session log of this gateway, got {show(log)}")
        return self._collector.stop(log, timeout=timeout)

    def take_records(self, events: bool = False) -> NDArray[np.void]:
        """Take the rows since the last call, while no session log runs.

        Window rows and the others have `records` places each. Behind the rows a gap row (GAP_RING) says how many of those
        asked for found no place (`session`) and between which times; an event says it too.

        Parameters
        ----------
        events
            True: create and end rows too.

        Returns
        -------
        numpy.ndarray
            RECORD (count,) (docs/reference/arrays.md).

        Raises
        ------
        Error
            A session log runs.
        """
        events = check_choice("events", events, (True, False))
        if self._collector is not None and self._collector.active:
            raise Error(
                "take_records() is for a gateway without a running session log; a MemorySink keeps rows as well"
            )
        rows = np.zeros(self._core.log_rows.journal_waiting, RECORD)
        rows = rows[: self._core.log_rows.drain(rows)]
        lost_windows, lost_events, lost_from, lost_until = self._core.log_rows.take_lost()
        if not events:
            rows = rows[rows["kind"] == WINDOW]
        lost = lost_windows + lost_events
        if lost:
            last = self._core.log_rows.skip_numbers(lost) + lost - 1
            missing = lost if events else lost_windows
            if missing:
                rows = np.concatenate([rows, gap_row(lost_from, lost_until, last, missing, GAP_RING)], dtype=RECORD)
        return rows

    def set_epoch(self, epoch: float) -> None:
        """Say which Unix time now = 0 is: the labels of rows from now on. Session logs say so in a row.

        Parameters
        ----------
        epoch
            Unix seconds.
        """
        self._check_open()
        self._set_epoch_ns(exact_ns(check_number("epoch", epoch, -MAX_TIME, MAX_TIME, unit="seconds")))

    def _set_epoch_ns(self, epoch_ns: int) -> None:
        """Session logs say so in a row."""
        if self._collector is None:
            self._core.log_rows.set_epoch(epoch_ns)
        else:
            self._collector.set_epoch(epoch_ns)

    # ---- saving and restoring ---------------------------------------------------------------------------------------

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> int:
        """Write everything that decides a later packet or row into a file, from which `restore` makes the same gateway again.

        Packets wait while the tables are copied (docs/guide/state.md has figures), and go on while the file is written.
        Frames that wait to be sent are not saved, and are counted in generated_lost of a restored gateway. Rows that wait for
        `take_records` are saved; while a session log runs, rows are its own, and are not.

        Parameters
        ----------
        file
            A path: the file is written beside it, synced, and renamed, mode 0600, so that at any moment the old state or the
            new one is there, whole. Or an object with `write`, opened for bytes. docs/state-format.md describes the content,
            which is secret: who has it can foresee what a gateway with a seed will choose.

        Returns
        -------
        int
            How many bytes it has.

        Raises
        ------
        OSError
            The file cannot be written.
        Error
            The gateway is closed.
        """
        from natcore.state.saving import collect, write

        with self._change_lock:
            self._check_open()
            self._drain_all()
            sections = collect(
                self._core, self._arguments(), self._table.saved(), seeded=self._seed is not None,
                log_rows=self._collector is None or not self._collector.active,
            )  # fmt: skip
        return write(file, sections)

    def hand_over(
        self, file: str | os.PathLike[str] | BinaryIO, timeout: float = 10.0, *, at_once: bool = False
    ) -> int:
        """Close the gateway for another process to go on with: `restore(file, resume=True)` there has its sessions, and its
        session logs go on with the same run, row numbers and open windows.

        Planes stop first. No session ends, and no window is closed. Without a successor, the next start of the logs covers
        the open windows by a gap row, as after a crash.

        Parameters
        ----------
        file
            As for `save`.
        timeout
            Seconds that the deliveries of all session logs may take, 0 to 10^9. Rows that are not delivered by then stay in
            the spool; without one they are lost, and counted.
        at_once
            True: wait for no delivery. What is in a spool is left to the other process at once, and a log without one goes on
            delivering until timeout is over, which `end_handed_over` waits for.

        Returns
        -------
        int
            How many bytes the file has.

        Raises
        ------
        OSError
            The file cannot be written; the gateway is closed all the same.
        """
        from natcore.state.saving import write_handed_over

        timeout = check_number("timeout", timeout, 0, 1e9, unit="seconds")
        if not self._end_use():
            raise Error("the gateway is closed")
        collector = self._collector
        account = self._account if collector is None else collector.hand_over(timeout, at_once=at_once)
        return write_handed_over(
            file, self._core, self._arguments(), self._table.saved(), seeded=self._seed is not None, account=account
        )

    def end_handed_over(self) -> None:
        """Wait for the deliveries that `hand_over(at_once=True)` did not wait for; rows that are not delivered then are lost,
        and counted."""
        if self._collector is not None:
            self._collector.end_handed_over()

    @classmethod
    def restore(
        cls, file: str | os.PathLike[str] | BinaryIO, *, entries: Sequence[AnyEntry] | None = None,
        gap: choices.Gap = "count", wall: float | None = None, resume: bool = False, **changes: Any,
    ) -> Self:  # fmt: skip
        """Make the gateway that was saved: every later packet and row is what it would have been.

        Without a seed, random choices are drawn anew. Sessions that do not fit what is changed end, with their rows.

        Parameters
        ----------
        file
            What `save` wrote: a path, of this user or root, that no other user may write to; or an object with `read`.
        entries
            The entries that it should have, matched with the saved ones (docs/guide/state.md); None: the saved ones.
        gap
            What the time between the two does: "count", sessions are idle meanwhile, and ports are held down; "freeze", their
            deadlines move by it.
        wall
            Unix seconds now, compared with the saved gateway's own time (epoch + now). None, or before that: no time has
            passed.
        resume
            True: the session logs of a gateway that was handed over (`hand_over`) go on: the first log that is started has
            its run and its open windows. It must not be done twice: a file given by its path is written anew without that, and
            a copy of it does not go on; what a file object has is the caller's to give up. False: logs that are started begin a
            run of their own.
        changes
            Arguments of Gateway that are others now; all but kind, framing, seed and epoch may be. With another number of
            workers or smaller tables sessions are placed anew. Sessions end that a policy cannot have: of another `mapping`
            or port scheme, and those over ports outside `port_ranges`.

        Returns
        -------
        Gateway
            It has no planes and no session logs.

        Raises
        ------
        StateError
            The file is no state, is damaged, or has a newer version of the format. Nothing is restored.
        ConfigurationError
            An argument is out of its range or cannot change, or the entries cannot be together.
        CapacityError
            More sessions, mappings or subscribers were saved than the tables can hold.
        UntrustedFileError
            Another user may have written the file.
        """
        from natcore.state.restoring import account_of, read_state, restore

        saved = read_state(file)
        made = restore(cls, saved, gap=gap, wall=wall, entries=entries, changes=changes)
        made._account = account_of(saved, file, made) if resume else None
        return made

    def _arguments(self) -> dict[str, Any]:
        """What the gateway was made with, as it is now."""
        from natcore.state.settings import PLAIN

        named = {name: getattr(self, f"_{name}") for name in (*PLAIN, "policy", "timeouts", "inside", "outside")}
        return named

    def _drain_all(self) -> None:
        """Gives the rows so far to the session logs that run."""
        if self._collector is not None and self._collector.active:
            self._collector.drain_now()

    def _become(
        self, entries: Sequence[AnyEntry] | None, policy: Policy, timeouts: Timeouts, mode: choices.EipBindMode
    ) -> int:
        """Put other entries and settings into force, whatever a running gateway could change; how many sessions ended."""
        with self._change_lock:
            settings = None
            if (policy, timeouts) != (self._policy, self._timeouts):
                settings = self._settings(policy, timeouts)
            ended = self._table.become(entries, mode, policy, self._core.now_ns, settings)
            self._policy, self._timeouts, self._eip_bind_mode = policy, timeouts, mode
        return ended

    # ---- the control socket -----------------------------------------------------------------------------------------

    def serve_control(
        self, path: str | os.PathLike[str], *, group: str | int | None = None, write_group: str | int | None = None,
        mode: int = 0o660,
    ) -> ControlServer:  # fmt: skip
        """Answer the commands of `natcore` (sessions, status, end, …) on a Unix socket, in a thread of its own.

        Root, the process's own user and members of write_group may use verbs that change something; whoever else the file's
        mode lets connect may look. It needs the extra `cli`.

        Parameters
        ----------
        path
            The socket's file, at most 107 bytes; one that a process left there is replaced.
        group
            The file's group, by name or number; None: the process's own.
        write_group
            The group of those who may change something, by name or number; None: there is none.
        mode
            The file's permissions, 0 to 0o777.

        Returns
        -------
        ControlServer
            A context manager; it ends with the gateway too.

        Raises
        ------
        ConfigurationError
            A process listens there, there is no such group, or something else than a socket is at the path.
        OSError
            The file cannot be made.
        """
        self._check_open()
        from natcore.control.server import ControlServer

        server = ControlServer(self, path, group=group, write_group=write_group, mode=mode)
        self._controls.append(server)
        return server

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self, timeout: float = 10.0) -> None:
        """Stop planes, end sessions, write their rows, flush the session logs. Idempotent.

        Parameters
        ----------
        timeout
            Seconds that the deliveries of all session logs may take, 0 to 10^9. Rows that are not delivered by then stay
            in the spool; without one they are lost, and counted.

        Notes
        -----
        It waits for calls of translate that are under way, so that every packet is in the rows; later ones get an Error. A
        gateway with a running log that is garbage-collected, or still there when the program ends, is closed by itself, with
        a ResourceWarning.
        """
        timeout = check_number("timeout", timeout, 0, 1e9, unit="seconds")
        if not self._end_use():
            return
        if self._collector is not None and self._collector.active:
            self._end(None, None)
            self._collector.close(timeout, ended=True)
        else:
            self._core.log_rows.close_windows(self._core.now_ns, losing=True)

    def _end_use(self) -> bool:
        """Close the control sockets, stop the planes, and let no call translate any more; False: that was done before."""
        while self._controls:
            self._controls.pop().close()
        for plane in list(self._planes):
            plane.stop()
        with self._change_lock:
            if self._closed:
                return False
            self._closed = True
        while not self._core.claim_forever():
            for plane in list(self._planes):  # one that began meanwhile
                plane.stop()
        return True

    def _parts(self) -> Parts:
        """For the package's own modules: natcore.internal.parts."""
        from natcore.internal.parts import Parts

        return Parts(
            self._core, self._table, self._planes, self._controls, self._collector, self._change_lock, self._one_at_a_time,
            self._follow, self._settle, self._set_epoch_ns, self._advance_ns, self._become, self._arguments,
        )  # fmt: skip

    def _forked(self) -> None:
        """In the child of a fork: a gateway of its own; the planes and logs stay the parent's. A gateway that another
        thread was changing during the fork is closed, since that thread does not exist here."""
        self._closed |= self._change_lock.held or not self._core.forked(
            None if self.seed is not None else os.urandom(32)
        )
        self._change_lock, self._one_at_a_time = ChangeLock(), threading.RLock()
        self._planes, self._controls, self._collector, self._feeds = {}, [], None, None

    def __repr__(self) -> str:
        entries = len(self._table.rows)
        return f"<Gateway {self.instance or self.kind}: {entries} entries{', closed' if self._closed else ''}>"

    def _check_open(self) -> None:
        if self._closed:
            raise Error("the gateway is closed")

    def _check_usable(self) -> None:
        """Raise Error unless frames in memory can be translated."""
        self._check_open()
        if self._table.lacks_interface:
            raise ConfigurationError(
                "entries must have addresses in a gateway in memory, got the outside interface's: there is none before a plane "
                "has begun (Gateway.forward)"
            )

    def _now_ns(self, now: float | None) -> int:
        return self._core.now_ns if now is None else to_ns(now)
