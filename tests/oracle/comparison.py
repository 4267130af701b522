"""natcore beside the oracle: each operation goes to both, and everything that can be seen must be the same."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count, groupby, product
from random import Random
from typing import Any

import numpy as np
import pytest

from natcore import RECORD, ConfigurationError, Error, Gateway, Generated, Side, Verdict
from natcore.dtypes import END, WINDOW
from natcore.entries.changes import Modify
from natcore.events import LIMITS
from natcore.internal.parts import parts_of
from natcore.plane.host_ports import ALL, ports_in
from natcore.testhooks.planted_faults import allocations_since, broken, crowd, target_of, thin, undeliver
from natcore.testing import configurations, traffic
from natcore.testing.checker import event_rows, expected_events, record, same_by_session, to_ns
from natcore.testing.configurations import Configuration
from natcore.testing.oracle.admission import NAMES
from natcore.testing.oracle.entries import PORTED
from natcore.testing.oracle.packets import TCP, UDP, Endpoint
from natcore.testing.oracle.sessions import MS, Session
from natcore.testing.oracle.tables import ROUND, SECOND, Choices
from oracle.fail_over import Followed
from support.multi_worker import COUNTS

SHARED = (
    "a host",
    "no host any more",
    "a TCP packet of its host",
    "a UDP packet of its host",
    "another packet of its host",
)
STRIDE = 4096  # bytes of a row in a batch
EPOCH = 1_700_000_000.25  # Unix seconds at now = 0, in the rows


@dataclass
class Pair:
    """A gateway and its oracle, made of one configuration."""

    configuration: Configuration
    seed: int = 0
    histogram: Counter[str] = field(default_factory=Counter)  # what occurred how often
    rows: list[np.ndarray] = field(default_factory=list)  # every row of natcore's, in the order taken
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gateway = Gateway(**self.configuration.options, seed=self.seed, records=4096, epoch=EPOCH)
        for entry in self.configuration.entries:
            self.gateway.add(entry)
        self.model = self.configuration.model()
        self.followed: Followed | None = None  # by a standby
        self.turns = count()  # whoever gets a frame, it is done by its owner
        self.worker = self.gateway._core.worker_capsule()
        self.choices = Choices(self._drawn, self._target_of, lambda: self.compared)
        self.compared: bytes | None = None  # of the frame that the oracle is at
        self.sent: bytes | None = None  # of the last single frame
        self.drawn: deque[Endpoint] = deque()  # by natcore, that the oracle has not asked for
        self.draws = self.taken = 0
        self.carried: Counter[Side] = Counter()  # IPv4 bytes that left, by the side that they came from
        self.histogram.update(f"policy {name}" for name in configurations.traits(self.configuration))
        self.advance(self.configuration.start)
        if self.configuration.hosts:
            self._share(self.configuration.hosts)

    def step(self, random: Random) -> None:
        """One random operation."""
        draw = random.random()
        seconds = traffic.clock(random, self.model) / 1e9
        if draw < 0.8:
            self.frame(*traffic.frame(random, self.model), seconds)
        elif draw < 0.86:
            for data, side in traffic.fragments(random, self.model):
                seconds += random.choice([0.0, 0.0, 0.001, 0.5]) if random.random() < 0.3 else 0.0
                self.frame(data, side, seconds)
        elif draw < 0.92:
            self.batch([traffic.frame(random, self.model) for _ in range(random.randrange(1, 60))], seconds)
        elif draw < 0.94:
            self.advance(seconds)
        elif draw < 0.945:
            self.end(seconds, random)
        elif draw < 0.955:
            self.change(seconds, random)
        elif draw < 0.958:
            self.modify(seconds, random)
        elif draw < 0.9585:
            self.share(seconds, random)
        elif draw < 0.961:
            self.explained(*traffic.frame(random, self.model), seconds)
        elif draw < 0.965:
            self.undelivered(*traffic.frame(random, self.model), seconds)
        elif draw < 0.97:
            self.crowded(*traffic.frame(random, self.model), seconds)
        elif draw < 0.9725:
            self.restart(Random(draw))
        elif draw < 0.975:
            self.follow(Random(draw))
        elif draw < 0.983:
            self.look()
        else:
            self.take()
        if self.followed is not None and random.random() < 0.15:
            self.tell(random)

    def frame(self, data: bytes, side: Side, seconds: float) -> Verdict:
        """One frame by translate_one."""
        self.trace.append(f"frame {data.hex()} {side.name} at {seconds!r}")
        self._keep_swept(seconds)
        self.taker = next(self.turns) % self.gateway.workers
        verdict, self.sent = self.gateway.translate_one(data, side, now=seconds, worker=self.taker)
        self._hear_draws()
        self._same_outcome(data, side, seconds, verdict, self.sent)
        self._same_generated()
        return verdict

    def explained(self, data: bytes, side: Side, seconds: float) -> None:
        """One frame of which is told beforehand what becomes of it."""
        self._keep_swept(seconds)
        told = self.gateway.explain(data, side, now=seconds)
        self.trace.append(f"explain {data.hex()} {side.name} at {seconds!r}")
        created = self.model.counts["created"]
        generated, before = self.model.generated, len(self.model.generated)
        verdict, sent = self.gateway.translate_one(
            data, side, now=seconds, worker=next(self.turns) % self.gateway.workers
        )
        self._hear_draws()
        self._same_outcome(data, side, seconds, verdict, sent)
        same("explained", (told.verdict.name, told.frame), (verdict.name, sent))
        same("explained sessions", told.created, self.model.counts["created"] - created)
        same("explained answers", [g.frame.hex() for g in told.generated], [g.frame.hex() for g in generated[before:]])
        self._same_generated()
        self.histogram["explanation"] += 1

    def undelivered(self, data: bytes, side: Side, seconds: float) -> None:
        """One frame that no next hop takes, if it is forwarded: what a plane then says."""
        verdict = self.frame(data, side, seconds)
        if self.sent is not None:
            taker = self.gateway._core.worker_capsule(self.taker)
            undeliver(taker, self.sent, side, verdict, Verdict.DROP_NO_NEIGHBOUR)
            self.model.undeliver(Verdict.DROP_NO_NEIGHBOUR, self.sent, side, verdict)
            self.histogram[f"verdict {Verdict.DROP_NO_NEIGHBOUR.name}"] += 1

    def crowded(self, data: bytes, side: Side, seconds: float) -> None:
        """One frame while the index has no place for a session, as an attacker who knew its key could have it."""
        self.advance(seconds)  # what ended meanwhile would leave one
        places = crowd(self.worker)
        self.model.index_full = True
        self.frame(data, side, seconds)
        self.model.index_full = False
        thin(self.worker, places)

    def batch(self, frames: list[tuple[bytes, Side]], seconds: float) -> None:
        """Frames by translate, each with its own side and moment; what is not forwarded stays as it came."""
        self._keep_swept(seconds)
        nows = seconds + np.arange(len(frames), dtype=np.float64) * 0.001
        rows, lengths = np.zeros((len(frames), STRIDE), np.uint8), np.zeros(len(frames), np.uint32)
        for row, (data, _) in enumerate(frames):
            rows[row, : len(data)], lengths[row] = np.frombuffer(data, np.uint8), len(data)
        sides, taker = np.array([s for _, s in frames], np.uint8), next(self.turns) % (self.gateway.workers + 1)
        worker = taker if taker < self.gateway.workers else None  # or each frame's owner
        verdicts = self.gateway.translate(rows, lengths, sides, now=nows, worker=worker)
        self._hear_draws()
        for row, (data, side) in enumerate(frames):
            self.trace.append(f"row {row} {data.hex()} {side.name} at {float(nows[row])!r}")
            verdict = Verdict(int(verdicts[row]))
            sent = rows[row, : lengths[row]].tobytes()
            assert verdict.is_forwarded or rows[row, : len(data)].tobytes() == data, "a refused frame was changed"
            self._same_outcome(data, side, float(nows[row]), verdict, sent if verdict.is_forwarded else None)
        self._same_generated()

    def _keep_swept(self, seconds: float) -> None:
        """Of several workers each packet carries the sweep of some tables; the oracle knows of one: nothing is left to them."""
        if self.gateway.workers > 1 and max(to_ns(seconds), self.model.now) + SECOND > self.model.swept + ROUND:
            self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.trace.append(f"advance {seconds!r}")
        self.gateway.advance(now=seconds)
        self.model.advance(to_ns(seconds))

    def end(self, seconds: float, random: Random) -> None:
        """End the sessions of an inside host, with a remote, over an outside address, of a protocol: what is asked for."""
        values = {
            "subscriber": configurations.HOSTS,
            "remote": configurations.REMOTES,
            "outside": list(self.model.eips) or [0],
            "protocol": [1, 6, 17, 47, 50],
        }
        match: dict[str, Any] = {}
        for which in random.choices(list(values), k=random.choice([0, 1, 1, 1, 2, 3])):
            match[which] = random.choice(values[which])
        self.trace.append(f"end {match or 'all'} at {seconds!r}")
        ended = self.gateway.end(**match, now=seconds) if match else self.gateway.end_all(seconds)
        same("ended", ended, self.model.end_matching(to_ns(seconds), **{**dict.fromkeys(values), **match}))

    def change(self, seconds: float, random: Random) -> None:
        """Change the entries, as planned; a change that cannot be is refused and leaves everything as it was."""
        changes = configurations.changes(random, self.gateway.kind, self.gateway.entries())
        modify = configurations.modification(random, self.model.policy) if random.random() < 0.2 else None
        if modify is not None:
            changes.insert(random.randrange(len(changes) + 1), modify)
        self.trace.append(f"change {changes} at {seconds!r}")
        plan = refusing(lambda: self.gateway.plan(changes))
        expected = self.model.plan(changes)
        same("plan", plan and (plan.kept, plan.drained, plan.ended), expected)
        self.histogram["change planned" if plan else "change refused"] += 1
        if plan is None or random.random() < 0.1:
            return
        applied = refusing(lambda: self.gateway.apply(plan, now=seconds))
        same("applied", applied and applied.ended, self.model.apply(changes, to_ns(seconds)))
        self.histogram["change applied" if applied else "change refused, a port being held"] += 1
        rows = [(row.id, row.entry) for row in self.gateway.entries()]
        same("entries", rows, [(row.id, row.entry) for row in self.model.entries.rows])
        if modify is not None:
            self._same_settings(modify, applied and applied.ended, applied and applied.ended)
        if applied is not None:
            with pytest.raises(Error, match="have changed"):
                self.gateway.apply(plan, now=seconds)

    def share(self, seconds: float, random: Random) -> None:
        """The host has other addresses, or other ports of them."""
        hosts = configurations.hosts(random, self.configuration.options["policy"])
        self.trace.append(f"host {hosts} at {seconds!r}")
        self.advance(seconds)
        self._share(hosts)

    def _share(self, hosts: dict[int, set[tuple[int, int]]]) -> None:
        undrawn = ALL & ~ports_in(self.configuration.options["policy"].drawn_ranges)

        def of_host(protocol: int, wanted: set[tuple[int, int]]) -> int:
            return undrawn | ports_in((port, port) for of, port in wanted if of == protocol)

        ports = {address: (of_host(TCP, wanted), of_host(UDP, wanted)) for address, wanted in hosts.items()}
        self.histogram[f"shared address: {SHARED[not hosts]}"] += 1
        parts_of(self.gateway).follow([], ports)
        self.model.share_with_host(hosts, self.model.now)

    def modify(self, seconds: float, random: Random) -> None:
        """Change settings alone; what a gateway that runs cannot have is refused by name."""
        modify = configurations.modification(random, self.model.policy)
        self.trace.append(f"modify {modify} at {seconds!r}")
        expected = self.model.plan([modify])
        same("modification planned", refusing(lambda: self.gateway.plan([modify]) and True), expected and True)
        given = {name: getattr(modify, name) for name in ("policy", "timeouts", "eip_bind_mode")}
        done = refusing(lambda: self.gateway.modify(**given, now=seconds))
        self._same_settings(modify, done, expected and self.model.apply([modify], to_ns(seconds)))

    def _same_settings(self, modify: Modify, done: int | None, expected: int | None) -> None:
        same("modified", done, expected)
        gateway, model = self.gateway, self.model
        mode = "NAT" if model.entries.private or not model.entries.public else "MULTI_BINDED"
        got = gateway.policy, gateway.timeouts, gateway.eip_bind_mode
        same("settings", got, (model.policy, model.timeouts, mode))
        if done is None:
            self.histogram["modification refused"] += 1
            return
        for name in ("policy", "timeouts", "eip_bind_mode"):
            self.histogram[f"modified {name}"] += getattr(modify, name) is not None

    def restart(self, random: Random) -> None:
        """The gateway is saved and restored, at once or after a while that counts or does not: nothing else tells it."""
        gap, lower = (
            random.choice(["count", "count", "freeze"]),
            random.choice([0.0, 0.0, 0.5, 3.0, 45.0, 400.0, 9000.0]),
        )
        wall = EPOCH + self.model.now / 1e9 + lower if lower else None
        self.trace.append(f"restart gap={gap} wall={wall!r}")
        self.restore(gap=gap, wall=wall)
        if wall is not None:
            later = max(0, to_ns(wall) - to_ns(EPOCH) - self.model.now)
            self.model.resume(later, frozen=gap == "freeze")
        self.histogram[f"restart {gap}" if wall else "restart at once"] += 1

    def restore(self, **arguments: Any) -> None:
        """Go on with a gateway that was restored from what this one saved."""
        self.gateway = Gateway.restore(self.save(), **arguments)
        self._replaced()
        self.begin_stream()
        same("invariants", broken(self.worker), None)

    def save(self) -> BytesIO:
        """What the gateway saves."""
        self._same_generated()  # frames that wait to be sent are not saved
        saved = BytesIO()
        self.gateway.save(saved)
        saved.seek(0)
        return saved

    def begin_stream(self) -> None:
        """The standby's stream begins anew, with the gateway that there is now."""
        if self.followed is not None:
            self.followed.restarted(self.gateway)

    def _replaced(self) -> None:
        """The gateway is another object."""
        self.worker = self.gateway._core.worker_capsule()
        self.draws = 0

    def follow(self, random: Random) -> None:
        """A standby follows the gateway from now on; or takes over from it, if one has an image."""
        if self.followed is None:
            self.trace.append("follow")
            self.followed = Followed(self.gateway, self.model, lambda: (Counter(self.carried), self.taken))
            self.tell(random)
        elif self.followed.has_image:
            self.fail_over(random)

    def tell(self, random: Random) -> None:
        """The standby is told what changed; a part of it may be on its way for longer."""
        assert self.followed is not None
        self._same_generated()  # frames that wait to be sent are not told
        told = self.followed.tell(random)
        self.trace.append(f"told {told}")
        self.histogram.update(f"standby told {what}" for what in told)

    def fail_over(self, random: Random) -> None:
        """The gateway dies with its rows, and with what was not told; the standby goes on."""
        assert self.followed is not None
        self.gateway, self.model, self.carried, self.taken = self.followed.take_over(random)
        self.trace.append(f"fail over at {self.model.now / 1e9!r}")
        self.followed.close()
        self.followed = None
        self._replaced()
        self.rows.clear()
        self.histogram["standby took over"] += 1
        same("invariants", broken(self.worker), None)
        if random.random() < 0.5:  # else what is due ends as packets go on
            self.advance(self.model.now / 1e9)
            self._same_tables()

    def _target_of(self, entry: int, remote: int) -> int:
        return target_of(self.worker, entry, remote)

    def look(self) -> None:
        """Counters, events, and the tables' rows."""
        self.trace.append("look")
        counters = self.gateway.counters()
        parts = ("forwarded", "local", "dropped", "held")
        assert counters["received"] == sum(counters[name] for name in parts)
        counters.pop("handed_over")  # of a worker that got another worker's packet
        carried = {side: counters.pop(f"bytes_from_{side.name.lower()}") for side in Side}
        same("bytes", carried, {side: self.carried[side] for side in Side})
        same("counters", {name: value for name, value in counters.items() if value}, self.model.counters())
        self._same_totals()
        events, expected = event_rows(self.gateway.take_events()), expected_events(self.model)
        self.trace.append(f"  events {events}, {counters}")
        same("events", events, expected)
        self.histogram.update(f"event {event[0]}: {event[3]}" for event in events)
        self._same_tables()
        same("invariants", broken(self.worker), None)

    def take(self) -> None:
        """Rows of the log."""
        self.trace.append("take")
        rows = self.gateway.take_records(events=True)
        self.trace.append(f"  rows {rows.tobytes().hex()}")
        self.rows.append(rows)
        assert rows["number"].tolist() == list(range(self.taken, self.taken + len(rows)))
        self.taken += len(rows)
        expected = [record(row, EPOCH) for row in self.model.rows]
        self.model.rows.clear()
        got = [{name: int(row[name]) for name in RECORD.names or () if name != "number"} for row in rows]
        same_by_session(got, expected)
        several = self.gateway.workers > 1
        same("order of ends", ends(got, several), ends(expected, several))

    def finish(self) -> None:
        """Everything ends: nothing is left, and the windows of each session add up to its totals (contract R1)."""
        self.look()
        self.advance(self.model.now / 1e9 + 1_000_000)
        self.take()
        self.look()
        counters = self.gateway.counters()
        assert counters["sessions"] == counters["mappings"] == counters["ports_used"] == 0
        assert counters["created"] == counters["ended"] and counters["journal_lost"] == 0
        rows = np.concatenate(self.rows)
        fields = ("bytes_from_pub", "pkts_from_pub", "bytes_from_vpc", "pkts_from_vpc")
        sums: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for row in rows[rows["kind"] == WINDOW]:
            assert row["start_time"] <= row["end_time"]
            sums[int(row["session"])] = [
                a + int(row[f]) for a, f in zip(sums[int(row["session"])], fields, strict=True)
            ]
        for row in rows[rows["kind"] == END]:
            assert sums[int(row["session"])] == [int(row[f]) for f in fields]

    def _same_outcome(self, data: bytes, side: Side, seconds: float, verdict: Verdict, sent: bytes | None) -> None:
        self.histogram[f"verdict {verdict.name}"] += 1
        self.trace.append(f"  {verdict.name} {sent.hex() if sent else ''}")
        self.compared = sent
        expected = self.model.translate_one(data, side, to_ns(seconds), self.choices)
        same("verdict", verdict.name, expected[0].name)
        if verdict is Verdict.LOCAL and self.model.for_the_host is not None:
            kind = {TCP: 2, UDP: 3}.get(self.model.for_the_host, 4)
            self.histogram[f"shared address: {SHARED[kind]}"] += 1
        same("sent", sent and sent.hex(), expected[1] and expected[1].hex())
        if expected[1] is not None:
            self.carried[side] += self._ip_bytes(expected[1])

    def _hear_draws(self) -> None:
        """The draws of what natcore has just translated, also of what it then refused."""
        drawn = allocations_since(self.worker, self.draws)
        self.draws += len(drawn)
        self.drawn.extend(drawn)

    def _drawn(self) -> Endpoint:
        assert self.drawn, "natcore drew nothing"
        return self.drawn.popleft()

    def _ip_bytes(self, frame: bytes) -> int:
        """Bytes of a frame's packet."""
        at = 0 if self.gateway.framing == "ip" else 14
        while at and frame[at - 2 : at] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
        return len(frame) - at

    def take_generated(self) -> list[Generated]:
        return self.gateway.take_generated()

    def _same_generated(self) -> None:
        assert not self.drawn, f"natcore drew {self.drawn}"
        got = [(g.frame.hex(), g.send_to.name, g.cause.name) for g in self.take_generated()]
        expected = [(g.frame.hex(), g.send_to.name, g.cause.name) for g in self.model.generated]
        for made in self.model.generated:
            if made.cause.is_forwarded or made.cause is Verdict.HELD:  # a fragment, of what came from the other side
                self.carried[Side(1 - made.send_to)] += self._ip_bytes(made.frame)
        self.model.generated.clear()
        self.trace.extend(f"  generated {made}" for made in got)
        same("generated", got, expected)

    def _same_totals(self) -> None:
        """Frames by side, sessions by protocol, refusals by limit: what the metrics tell besides the counters."""
        verdicts, _, from_outside, sessions, refused, _ = self.gateway._core.inspection.totals()
        assert all(0 <= outside <= total for outside, total in zip(from_outside, verdicts, strict=True))
        assert self.model.fragments is not None
        waiting = sum(
            len(datagram.waiting) for key, datagram in self.model.fragments.datagrams.items() if key[0] is Side.OUTSIDE
        )
        counted = set(Verdict) - {
            Verdict.OUTBOUND,
            Verdict.INBOUND,
            Verdict.DROP_FRAGMENT,
        }  # the last: also of fragments held
        expected = {verdict: self.model.from_outside[verdict] for verdict in counted} | {Verdict.HELD: waiting}
        same("from outside", {v: from_outside[v] for v in counted}, expected)
        same("sessions by protocol", sessions, {"created": self.model.began, "ended": self.model.over})
        same(
            "refusals", dict(zip(LIMITS[1:], refused[1:], strict=True)), {n: self.model.refusals[n] for n in LIMITS[1:]}
        )

    def _same_tables(self) -> None:
        """sessions() in the order of their slots, mappings() and ports() against the oracle's tables."""
        model = self.model
        got = [[r[name].item() for name in SESSION_FIELDS] for r in self.gateway.sessions()]
        several = self.gateway.workers > 1  # each has slots of its own
        slots = sorted(model.sessions, key=lambda s: s.id if several else s.slot)
        self.trace.append(f"  sessions {got}")
        same("sessions", sorted(got) if several else got, [session_row(s) for s in slots])
        names = ("protocol", "inside_ip", "inside_port", "outside_ip", "outside_port", "sessions", "entry")
        rows = sorted(tuple(int(r[name]) for name in names) for r in self.gateway.mappings())
        expected = sorted((m.protocol, *m.inside, *m.outside, len(m.sessions), m.entry) for m in model.mappings)
        same("mappings", rows, expected)
        self._same_ports()

    def _same_ports(self) -> None:
        """ports(), blocks() and, where it is computed, who has a port."""
        model, gateway = self.model, self.gateway
        drawn = [m for m in model.mappings if not m.static and m.protocol in PORTED]
        used = Counter((protocol, outside[0]) for protocol, outside in {(m.protocol, m.outside) for m in drawn})
        held = Counter((protocol, endpoint[0]) for protocol, endpoint in model.resting())
        names = ("used", "held_down", "reserved", "free", "eip")
        got = {
            (int(r["protocol"]), int(r["outside_ip"])): tuple(int(r[name]) for name in names) for r in gateway.ports()
        }
        expected = {}
        for key in product(PORTED, model.eips):
            reserved = model.reserved(*key)
            free = model.range_size - used[key] - held[key] - reserved
            expected[key] = used[key], held[key], reserved, free, model.eips[key[1]]
        same("ports", got, expected)
        if model.policy.ports == "block":
            rows = {
                (int(r["outside_ip"]), int(r["first_port"])): (int(r["inside_ip"]), int(r["ports"]))
                for r in gateway.blocks()
            }
            same("blocks", rows, model.owners())
        if model.policy.ports == "deterministic":
            self._same_computed({m.outside: m.protocol for m in drawn})

    def _same_computed(self, drawn: dict[Endpoint, int]) -> None:
        """Who has an endpoint, by any name of its address, and what an inside host has."""
        model, gateway = self.model, self.gateway
        asked = {(name, port, protocol) for (_, port), protocol in drawn.items() for name in configurations.NAMED}
        for name, port, protocol in asked:
            got = refusing(lambda who=(name, port, NAMES[protocol]): int(gateway.who(*who) or 0))  # type: ignore[misc]
            same(f"who {name}:{port}", got, model.who(protocol, (name, port)))
        for host in configurations.HOSTS:
            share = gateway.ports_of(host)
            got_share = share and (int(share.outside.address), share.first_port, share.last_port)
            same(f"ports of {host}", got_share, model.ports_of(host))


SESSION_FIELDS = (
    *("session", "protocol", "inside_ip", "inside_port", "remote_ip", "remote_port", "outside_ip", "outside_port"),
    *(
        "opened_outside",
        "bytes_in",
        "packets_in",
        "bytes_out",
        "packets_out",
        "birth_ns",
        "last_seen_ns",
        "deadline_ns",
    ),
)


def session_row(session: Session) -> list[int]:
    """The fields of SESSION_FIELDS; times in ns."""
    ends = (*session.mapping.inside, *session.remote, *session.mapping.outside)
    times = session.born, max(session.last_seen * MS, session.born // MS * MS), session.deadline
    return [session.id, session.protocol, *ends, int(session.opened_outside), *session.total, *times]


def refusing(call: Callable[[], Any]) -> Any:
    """What a call gives, or None: a ConfigurationError."""
    try:
        return call()
    except ConfigurationError:
        return None


def same(what: str, got: Any, expected: Any) -> None:
    """AssertionError with what differs; of mappings only the keys that do."""
    if isinstance(got, dict) and isinstance(expected, dict) and got != expected:
        keys = [key for key in {**got, **expected} if got.get(key) != expected.get(key)]
        got, expected = ({key: side.get(key) for key in keys} for side in (got, expected))
    assert got == expected, f"{what}: {got}, expected {expected}"


def ends(rows: list[dict[str, Any]], several: bool) -> list[int]:
    """Sessions in the order in which they ended; with several workers those of one moment in order of their numbers."""
    ended = [row for row in rows if row["kind"] == END]
    if several:
        for _, together in groupby(list(enumerate(ended)), key=lambda at: int(at[1]["end_time"])):
            first = list(together)
            ended[first[0][0] : first[-1][0] + 1] = sorted(
                (row for _, row in first), key=lambda row: int(row["session"])
            )
    return [row["session"] for row in ended]


def live(random: Random, operations: int, seed: int = 0) -> Pair:
    """A whole random life of a gateway; an AssertionError carries its configuration and the last operations."""
    pair = Pair(configurations.configuration(random, COUNTS), seed)
    try:
        for _ in range(operations):
            pair.step(random)
        pair.finish()
        pair.histogram.update({f"entry of a session: {kind}": n for kind, n in pair.model.kinds.items()})
    except Exception as error:
        explain(error, pair)
        raise
    return pair


def explain(error: Exception, pair: Pair) -> None:
    """Add the configuration of a life, and the last of it."""
    error.add_note(f"operation {len(pair.trace)}: {pair.configuration}")
    for line in pair.trace[-8:]:
        error.add_note(line[:300])


def twins(seed: int, operations: int) -> Pair:
    """A life in two copies, of which one is saved and restored again and again: verdicts, bytes, rows, events, and the tables
    of both are the same."""
    randoms, chance = (Random(seed), Random(seed)), Random(~seed)
    original, restored = pairs = tuple(Pair(configurations.configuration(each, COUNTS), seed) for each in randoms)
    try:
        for _ in range(operations):
            if chance.random() < 0.05:
                restored.restore()
                original.save()
                original.begin_stream()
                restored.histogram["twin restored"] += 1
            for pair, random in zip(pairs, randoms, strict=True):
                pair.trace.clear()
                pair.step(random)
            same("the restored gateway's life", restored.trace, original.trace)
        for pair in pairs:
            pair.trace.clear()
            pair.finish()
        same("the end of the restored gateway's life", restored.trace, original.trace)
    except Exception as error:
        explain(error, restored)
        error.add_note(f"seed {seed}")
        raise
    return restored


def run(seed: int, operations: int) -> Pair:
    """The life of a seed."""
    try:
        return live(Random(seed), operations, seed)
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise
