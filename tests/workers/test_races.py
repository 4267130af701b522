"""What happens to a packet, a log or a call while other threads have the workers: interleavings are set up, not timed."""

from __future__ import annotations

import gc
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from natcore import DnatEntry, Gateway, Policy, Remove, Side, SnatEntry, Verdict
from natcore.entries.table import Entry
from natcore.flowlog import FlowLog
from natcore.sinks import MemorySink
from natcore.testhooks import planted_faults
from natcore.testing import craft
from support.frames import EIP, REMOTE, udp
from support.gateways import arrays, hosts_of, made
from support.interleaving import in_thread, translated, until_waited_for

ROOT = Path(__file__).resolve().parents[2]
INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE


@contextmanager
def held(*capsules: Any) -> Iterator[None]:
    """The test has the workers, as a thread would that is at a packet of theirs."""
    for capsule in capsules:
        planted_faults.lock_worker(capsule)
    try:
        yield
    finally:
        for capsule in capsules:
            planted_faults.unlock_worker(capsule)


def ipv4(address: str) -> int:
    return int.from_bytes(bytes(map(int, address.split("."))), "big")


def test_a_port_that_another_workers_host_has_drawn_meanwhile_leads_to_that_host() -> None:
    """Between the handoff of a packet and its arrival at the worker that has its port, the port gets another owner."""
    gateway = made(3, policy=Policy(port_ranges=((2000, 2001),), hold_down=0, filtering="endpoint-independent"))
    capsules = [gateway._core.worker_capsule(worker) for worker in range(3)]
    bystander, leaver = hosts_of(gateway, 1, 2)
    newcomer = hosts_of(gateway, 2, 1)[0]
    gateway.translate_one(udp(bystander), INSIDE, 0.0, worker=1)
    _, sent = gateway.translate_one(udp(leaver), INSIDE, 0.0, worker=1)
    assert sent is not None
    port = int.from_bytes(sent[34:36], "big")
    knock = craft.ether(craft.udp(("198.51.100.99", 999), (EIP, port)))
    with held(capsules[1]):
        join = in_thread(lambda: translated(gateway, knock, OUTSIDE, worker=0))
        until_waited_for(capsules[1])
        planted_faults.end_sessions_of(capsules[1], ipv4(leaver))
        verdict, drawn = translated(gateway, udp(newcomer, 7000), INSIDE, worker=2)
        assert verdict is Verdict.OUTBOUND and int.from_bytes(drawn[34:36], "big") == port
    verdict, came = join()
    assert verdict is Verdict.INBOUND
    assert (came[30:34], came[36:38]) == (craft.address(newcomer).to_bytes(4, "big"), (7000).to_bytes(2, "big"))
    assert [gateway.counters(worker=w)["sessions"] for w in range(3)] == [0, 1, 2]


def test_a_target_changed_during_a_handoff_opens_in_the_new_target_s_worker() -> None:
    gateway = Gateway(workers=3, seed=7)
    first, second = hosts_of(gateway, 1, 1)[0], hosts_of(gateway, 2, 1)[0]
    entry = gateway.add(DnatEntry(EIP, 8080, first, 80, protocol="udp"))
    capsules = [gateway._core.worker_capsule(worker) for worker in range(3)]
    changed = Entry(entry.id, DnatEntry(EIP, 8080, second, 80, protocol="udp"))
    changed.addresses = entry.addresses
    rules = gateway._table._book.compile([changed], gateway._table._book.wires([changed]))
    knock = craft.ether(craft.udp((REMOTE, 999), (EIP, 8080)))
    with held(capsules[1]):
        join = in_thread(lambda: translated(gateway, knock, OUTSIDE, worker=0))
        until_waited_for(capsules[1])
        with held(capsules[0], capsules[2]):
            planted_faults.swap_rules(capsules[0], rules)
    verdict, came = join()
    assert verdict is Verdict.INBOUND and came[30:34] == craft.address(second).to_bytes(4, "big")
    assert [gateway.counters(worker=w)["sessions"] for w in range(3)] == [0, 0, 1]
    answer = udp(second, 80, REMOTE, 999)
    for worker in range(3):  # whoever takes it, it is one session
        assert translated(gateway, answer, INSIDE, worker)[0] is Verdict.OUTBOUND
    assert gateway.counters()["sessions"] == 1


def test_a_flow_log_that_is_closed_while_a_packet_is_handed_over_waits_for_it() -> None:
    gateway = made(2)
    capsules = [gateway._core.worker_capsule(worker) for worker in range(2)]
    host = hosts_of(gateway, 1, 1)[0]
    flows = FlowLog(gateway)
    with held(capsules[1]):
        join = in_thread(lambda: translated(gateway, udp(host), INSIDE, worker=0))
        until_waited_for(capsules[1])
        close = in_thread(flows.close)
        until_waited_for(capsules[1], 2)  # it has worker 0 already
    close()
    rows = flows.take()
    assert join()[0] is Verdict.OUTBOUND
    assert rows["packets"].sum() == 2  # in and out, though it was under way
    assert translated(gateway, udp(host), INSIDE, worker=0)[0] is Verdict.OUTBOUND
    assert not len(flows.take())


def test_a_flow_log_opens_and_closes_under_traffic_and_has_what_passed_meanwhile() -> None:
    """Two threads hand each other's packets over all the time; no log may be used that is gone."""
    gateway = made(2)
    frames = [arrays(*(udp(host, 5000 + n) for host in hosts_of(gateway, w, 4) for n in range(16))) for w in range(2)]
    stop = threading.Event()

    def traffic(worker: int) -> int:
        count = 0
        while not stop.is_set():
            rows, lengths = (array.copy() for array in frames[1 - worker])
            count += int((gateway.translate(rows, lengths, INSIDE, 0.0, worker=worker) == Verdict.OUTBOUND).sum())
        return count

    joins = [in_thread(lambda worker=worker: traffic(worker)) for worker in range(2)]  # type: ignore[misc]
    logged = 0
    for _ in range(300):
        flows = FlowLog(gateway)
        flows.close()
        rows = flows.take()
        assert rows["packets"][rows["direction"] == 0].sum() == rows["packets"][rows["direction"] == 1].sum()
        logged += int(rows["packets"].sum()) // 2
        del flows
    stop.set()
    passed = sum(join() for join in joins)
    assert passed == gateway.counters()["forwarded"] and logged <= passed


# ---- Python code and the workers ---------------------------------------------------------------------------------------


@pytest.fixture
def every_allocation_collects() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*before)


LOOKS: dict[str, Callable[[Gateway], object]] = {
    "counters": lambda gateway: gateway.counters(),
    "events": lambda gateway: gateway.take_events(),
    "take_generated": lambda gateway: gateway.take_generated(),
    "sessions": lambda gateway: gateway.sessions(),
    "ports": lambda gateway: gateway.ports(),
    "plan": lambda gateway: gateway.plan([Remove(gateway.entries()[0])]),
    "replace": lambda gateway: gateway.replace(gateway.entries()[0], SnatEntry("10.0.0.0/9", EIP)),
    "end": lambda gateway: gateway.end_all(),
    "explain": lambda gateway: gateway.explain(udp(), INSIDE),
    "tables": lambda gateway: gateway._core.tables(),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.usefixtures("every_allocation_collects")
def test_a_flow_log_that_the_collector_frees_within_a_call_closes(look: str) -> None:
    """It wants the workers when it goes: no call may have them while Python allocates."""
    gateway = made(2, policy=Policy(sessions_per_subscriber=1))
    for sport in range(1, 4):
        translated(gateway, udp(sport=sport), INSIDE, worker=0)

    alive: list[weakref.ref[FlowLog]] = []

    class Ring:
        def __init__(self) -> None:
            self.flows, self.itself = FlowLog(gateway), self
            alive.append(weakref.ref(self.flows))

    def call() -> None:
        Ring()  # garbage that refers to itself
        LOOKS[look](gateway)

    in_thread(call)()
    for _ in range(1000):  # collect() returns at once while another thread collects
        if alive[0]() is None:
            break
        gc.collect()
        threading.Event().wait(0.01)
    FlowLog(gateway).close()  # the gateway is free again


def test_who_takes_rows_meanwhile_may_ask_the_gateway_for_anything() -> None:
    """Rows of a mass end are drained in between: what runs then (a log, a signal handler) finds the workers free."""
    gateway = made(2, records=16)
    sink = MemorySink()
    log = gateway.start_session_log(sink)
    for sport in range(1, 500):
        translated(gateway, udp(sport=sport), INSIDE, worker=sport % 2)
    collector = gateway._collector
    assert collector is not None
    give, asked = collector._give, []

    def ask(records: Any) -> None:
        asked.append(gateway.counters()["journal_lost"])
        give(records)

    collector._give = ask  # type: ignore[method-assign]
    lost = gateway.counters()["journal_lost"]
    assert in_thread(gateway.end_all)() == 499
    assert asked and gateway.counters()["journal_lost"] == lost
    gateway.stop_session_log(log)
    assert collector.counters()["lost_ring"] == 0 or lost
    gateway.close()


def test_a_mass_end_loses_no_row_and_ends_nothing_that_came_later() -> None:
    gateway = made(1, records=64)
    log = gateway.start_session_log(MemorySink())
    collector = gateway._collector
    assert collector is not None
    for sport in range(1, 301):
        translated(gateway, udp(sport=sport), INSIDE, worker=0)
        collector.step()
    drain = collector.drain_now
    later = iter(range(1001, 1100))

    def drain_and_go_on() -> int:
        translated(gateway, udp(sport=next(later)), INSIDE, worker=0)
        return drain()

    collector.drain_now = drain_and_go_on  # type: ignore[method-assign]
    assert gateway.end_all() == 300
    came = next(later) - 1001
    assert came > 3 and gateway.counters()["sessions"] == came
    assert gateway.counters()["journal_lost"] == 0
    collector.drain_now = drain  # type: ignore[method-assign]
    gateway.stop_session_log(log)
    gateway.close()


HOLDS = re.compile(r"\b(?:workers\.lock|self\.lock|core\.lock|_enter)\(\)|\b(?:lock_all|lock|lock_others)\(\w")
LETS_GO = re.compile(
    r"\b(?:workers\.unlock|self\.unlock|core\.unlock|_leave)\(\)|\b(?:unlock_all|unlock|unlock_others)\(\w"
)


def blocks_of(lines: list[str], at: int) -> Iterator[str]:
    """The headers of the blocks around a line, the innermost first."""
    depth = len(lines[at]) - len(lines[at].lstrip())
    for line in reversed(lines[:at]):
        indent = len(line) - len(line.lstrip())
        if line.strip() and not line.lstrip().startswith(("#", '"""')) and indent < depth:
            depth = indent
            yield line.strip()


def test_no_python_runs_while_a_worker_is_held() -> None:
    """Who holds one does it in code that the compiler keeps Python out of: `nogil`, and lets go in the same block."""
    found = 0
    for path in sorted((ROOT / "natcore").rglob("*.pyx")):
        lines = path.read_text().splitlines()
        if path.parent.name == "testhooks":
            continue
        for at, line in enumerate(lines):
            if not HOLDS.search(line) or line.lstrip().startswith(("cdef ", "from ", "#", '"""')) or '"""' in line:
                continue
            around = list(blocks_of(lines, at))
            function = next(header for header in around if re.match(r"(?:cdef|cpdef|def) ", header))
            signature = " ".join(
                lines[lines.index(next(row for row in lines if row.strip() == function)) :][:6]
            ).strip()
            found += 1
            where = f"{path.name}:{at + 1}: {line.strip()}"
            if re.match(r"cdef .*\bnogil:", signature.split('"""')[0]):
                continue
            assert "with nogil:" in around, where
            depth = len(line) - len(line.lstrip())
            rest = []
            for row in lines[at + 1 :]:
                if row.strip() and len(row) - len(row.lstrip()) < depth:
                    break
                rest.append(row)
            assert any(LETS_GO.search(row) for row in rest), where
    assert found > 40
