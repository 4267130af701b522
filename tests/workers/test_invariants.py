"""The invariants of the tables notice: for each a fault is planted that no code makes, and is named."""

from __future__ import annotations

import pytest

from natcore import Gateway, Policy, Side, SnatEntry
from natcore.testhooks import planted_faults
from natcore.testing import craft

NONE, FREE = 0xFFFFFFFF, 128  # no slot; the flag of a slot that was given back
PORT, OTHER, BLOCK, SPARE = (
    -1,
    -2,
    -3,
    2000,
)  # the first mapping's port, the second's, the first one's block; a free port

POLICIES = {
    "random": Policy(port_ranges=((2000, 2063),), hold_down=0),
    "address-dependent": Policy(filtering="address-dependent", port_ranges=((2000, 2063),)),
    "overload": Policy(ports="overload", mapping="address-and-port-dependent", filtering="address-and-port-dependent"),
    "block": Policy(ports="block", block_size=64, port_ranges=((1984, 2239),)),
}
Poke = tuple[str, int, int]  # field, slot or port, value

FAULTS: list[tuple[str, list[Poke], str]] = [
    ("random", [("sessions.free", 0, 10_000)], "free list of sessions"),
    ("random", [("sessions.live", 0, 9)], "free list of sessions"),
    ("random", [("session.timeout_class", 0, 255)], "time-out class of a session"),
    ("random", [("session.inside_port", 0, 1)], "session by its outbound key"),
    ("random", [("session.outside_port", 0, 1)], "session by its inbound key"),
    ("random", [("session.mapping", 0, 9999)], "mapping of a session"),
    ("random", [("mapping.flags", 0, FREE)], "mapping of a session is free"),
    ("random", [("session.flags", 0, FREE)], "live sessions"),
    ("random", [("sessions.opened_outside", 0, 5)], "sessions opened from outside"),
    ("random", [("mappings.free", 0, 10_000)], "free list of mappings"),
    ("random", [("mapping.inside_port", 0, 1)], "mapping by its key"),
    ("random", [("mapping.first", 0, 9999)], "session of a mapping"),
    ("random", [("session.mapping", 0, 1)], "mapping of its session"),
    ("random", [("mapping.first", 0, NONE)], "a mapping without sessions"),
    ("random", [("mapping.sessions", 0, 5)], "sessions of a mapping"),
    ("random", [("mapping.opened_outside", 0, 1)], "its sessions opened from outside"),
    ("random", [("mapping.address", 0, 77)], "outside address of a mapping"),
    ("random", [("mapping.outside_ip", 0, 1)], "outside address of a mapping, on the wire"),
    ("random", [("port.used", PORT, 0)], "port of a mapping is in use"),
    ("random", [("port.held", PORT, 1)], "port of a mapping is held down"),
    ("random", [("port.cell", PORT, 9)], "mapping of a port"),
    ("overload", [("mapping.outside_port", 0, OTHER)], "overloaded port of a mapping"),
    ("overload", [("pair.mapping", 0, 9)], "mapping of an overloaded port"),
    ("overload", [("pair.worker", 0, 9)], "worker of an overloaded port"),
    ("random", [("mapping.subscriber", 0, 999)], "subscriber of a mapping"),
    ("random", [("mapping.subscriber", 0, 1)], "subscriber of a mapping, by address"),
    ("random", [("subscribers.free", 0, 9999)], "free list of subscribers"),
    ("random", [("subscriber.mappings", 0, 2)], "mappings of all subscribers"),
    ("random", [("subscriber.sessions", 0, 9)], "sessions of all subscribers"),
    ("random", [("port.held", SPARE, 1)], "ports held down that are not taken"),
    ("random", [("port.used", SPARE, 1), ("port.worker", SPARE, 9)], "worker of a port"),
    ("random", [("port.used", SPARE, 1), ("port.cell", SPARE, 9999)], "mapping of a port"),
    ("random", [("port.used", SPARE, 1), ("port.cell", SPARE, 2)], "mapping of a port is free"),
    ("random", [("port.used", SPARE, 1), ("port.cell", SPARE, 0)], "port of a port's mapping"),
    ("random", [("tcp.used", PORT, 1), ("tcp.cell", PORT, 0)], "protocol of a port's mapping"),
    ("random", [("ports.free", 0, 1)], "free ports"),
    ("random", [("ports.held", 0, 5)], "ports held down"),
    ("random", [("ports.reserved", 0, 5)], "ports reserved"),
    ("random", [("ports.taken_in", 1, 3)], "ports not free of a group"),
    ("random", [("ports.taken_in", 64, 3)], "ports not free of a super"),
    ("random", [("ports.addresses_free", 0, 0)], "bit of an address with free ports"),
    ("random", [("ports.addresses_held", 0, 1)], "bit of an address with ports held down"),
    ("overload", [("port.cell", PORT, 7)], "uses of all ports"),
    ("block", [("block.ports", BLOCK, 9)], "ports of a block"),
    ("block", [("blocks.free", 0, 9)], "free blocks"),
    ("address-dependent", [("filters.free", 0, 9999)], "free list of filters"),
    ("address-dependent", [("filter.remote_ip", 0, 1)], "filter of a session"),
    ("address-dependent", [("filter.in_use", 0, 0)], "live filters"),
    ("address-dependent", [("filter.sessions", 0, 5)], "sessions of a filter"),
    ("address-dependent", [("filter.first", 0, 9999)], "session of a filter"),
    ("address-dependent", [("filter.first", 0, 1)], "filter by its key"),
]


def lived(kind: str) -> Gateway:
    """Two hosts have a session each, in slots 0 and 1; a third one's has ended."""
    gateway = Gateway(seed=3, max_sessions=100, workers=1, policy=POLICIES[kind])
    gateway.add(SnatEntry("10.0.0.0/16", "203.0.113.1"))
    for n in range(3):
        frame = craft.ether(craft.udp((f"10.0.0.{5 + n}", 5000), (f"198.51.100.{7 + n}", 53)))
        verdict, _ = gateway.translate_one(frame, Side.INSIDE, 0.0)
        assert not verdict.is_drop
    assert gateway.end(subscriber="10.0.0.7") == 1
    assert planted_faults.broken(gateway._core.worker_capsule()) is None
    return gateway


@pytest.mark.parametrize(("kind", "pokes", "named"), FAULTS, ids=[f"{kind}-{named}" for kind, _, named in FAULTS])
def test_a_planted_fault_is_named(kind: str, pokes: list[Poke], named: str) -> None:
    gateway = lived(kind)
    capsule = gateway._core.worker_capsule()
    ports = [int(row["outside_port"]) for row in gateway.mappings()]
    for field, at, value in pokes:
        chosen = {PORT: ports[0], BLOCK: (ports[0] - 1984) // 64}
        wire = int.from_bytes(ports[1].to_bytes(2, "little"), "big")  # as it lies in a packet
        table, _, name = field.partition(".")
        space = 0 if table == "tcp" else 1
        field = f"port.{name}" if table == "tcp" else field
        planted_faults.poke(capsule, field, chosen.get(at, at), wire if value == OTHER else value, space)
    broken = planted_faults.broken(capsule)
    assert broken is not None and broken.startswith(f"{named}: "), broken


@pytest.mark.parametrize("number", [0, 0xFFFFFF])
@pytest.mark.parametrize(
    "index", ["outbound index", "inbound index", "index of filters", "index of mappings", "index of subscribers"]
)
def test_an_index_entry_too_many_is_named(index: str, number: int) -> None:
    gateway = lived("address-dependent")
    planted_faults.poke_index(gateway._core.worker_capsule(), index, number)
    broken = planted_faults.broken(gateway._core.worker_capsule())
    assert broken is not None and broken.startswith(f"{index}: "), broken


def test_a_port_of_another_worker_is_named() -> None:
    gateway = Gateway(seed=3, workers=2, max_sessions=100, policy=POLICIES["random"])
    gateway.add(SnatEntry("10.0.0.0/16", "203.0.113.1"))
    frame = craft.ether(craft.udp(("10.0.0.5", 5000), ("198.51.100.7", 53)))
    gateway.translate_one(frame, Side.INSIDE, 0.0)
    owner = next(w for w in range(2) if gateway.counters(worker=w)["sessions"])
    capsule = gateway._core.worker_capsule(owner)
    planted_faults.poke(capsule, "port.worker", int(gateway.mappings()[0]["outside_port"]), 1 - owner)
    broken = planted_faults.broken(capsule)
    assert broken is not None and broken.startswith("worker of a port: "), broken


def test_a_port_of_another_outside_address_is_named() -> None:
    gateway = Gateway(seed=3, max_sessions=100, policy=POLICIES["random"])
    gateway.add(SnatEntry("10.0.0.0/16", "203.0.113.1-203.0.113.2"))
    for host in range(5, 20):
        frame = craft.ether(craft.udp((f"10.0.0.{host}", 5000), ("198.51.100.7", 53)))
        gateway.translate_one(frame, Side.INSIDE, 0.0)
    second = craft.address("203.0.113.2")
    ports = {address: set() for address in (second - 1, second)}  # type: dict[int, set[int]]
    of_second = []
    for slot, row in enumerate(gateway.mappings()):
        ports[int(row["outside_ip"])].add(int(row["outside_port"]))
        of_second += [(slot, int(row["outside_port"]))] if row["outside_ip"] == second else []
    slot, port = next((slot, port) for slot, port in of_second if port not in ports[second - 1])
    capsule = gateway._core.worker_capsule()
    planted_faults.poke(capsule, "port.used", port, 1)
    planted_faults.poke(capsule, "port.cell", port, slot)
    broken = planted_faults.broken(capsule)
    assert broken is not None and broken.startswith("address of a port's mapping: "), broken
