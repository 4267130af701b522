"""The boundary of a plane to Python: what the loop is told, and what it tells. Packets do not come here."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import array
import threading
import time

from natcore._nexthop cimport (
    FAILED, KNOWN, NEIGHBOURS, UNKNOWN, NextHops, hops_delete, hops_new, neighbour_learn, neighbours_forget,
    routes_replace, set_delete, set_replace, waiting_delete, waiting_new,
)
from natcore._ports cimport address_find
from natcore._ring cimport FRAME_ROOM, PacketRing
from natcore._hold cimport hold, release
from natcore._worker cimport Loop, Port, clear_errors, clock_of, close_room, drain_fd, pause, run, signal_fd, work
from natcore.hints cimport bswap32, fetch_add, load_acquire, store_release
from natcore.index cimport NONE
from natcore.state cimport Worker

from natcore.errors import CapacityError


cdef class PlaneLoop:
    """One worker's loop. capsule: Core.worker_capsule(), valid as long as owner. offset_ns: its clock - monotonic.

    wake_fd, ask_fd: eventfds, kept open by the caller longer than the loop. Every method may be called from any thread
    while `run` runs in another; it takes effect before it returns.
    """

    def __cinit__(self, capsule, owner, int64_t offset_ns, int wake_fd, int ask_fd):
        self.loop = <Loop*>calloc(1, sizeof(Loop))
        if self.loop == NULL:
            raise CapacityError("no memory for a plane")
        self._owner = owner
        self._rings = [None, None]
        self._turn = threading.Lock()
        self._past = [{}, {}]
        self.loop.worker = <Worker*>PyCapsule_GetPointer(capsule, "natcore.Worker")
        self.loop.offset_ns = offset_ns
        self.loop.wake_fd, self.loop.ask_fd = wake_fd, ask_fd
        self.loop.generated = <uint8_t*>calloc(1, FRAME_ROOM)
        if not (self.loop.generated != NULL and waiting_new(self.loop.room) and hops_new(&self.loop.ports[0].hops)
                and hops_new(&self.loop.ports[1].hops)):
            raise CapacityError("no memory for a plane")

    def __dealloc__(self):
        if self.loop == NULL:
            return
        hops_delete(&self.loop.ports[0].hops)
        hops_delete(&self.loop.ports[1].hops)
        set_delete(&self.loop.local)
        if self.loop.room[0].data != NULL:
            waiting_delete(self.loop.room)
        free(self.loop.generated)
        free(self.loop)

    cdef void _enter(self) noexcept:
        cdef Worker* worker = self.loop.worker
        with nogil:
            fetch_add(&worker.attention, 1)
            while not hold(worker):
                pause()
            fetch_add(&worker.attention, <uint32_t>-1)

    cdef void _leave(self) noexcept:
        release(self.loop.worker)

    # ---- running ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Moves packets until `stop`, without the GIL."""
        while not self.loop.stop:
            with self._turn:
                with nogil:
                    run(self.loop)
            while load_acquire(&self.loop.park) and not load_acquire(&self.loop.stop):
                time.sleep(0.0005)

    def step(self, uint32_t budget) -> int:
        """At most about budget frames, without waiting; how many."""
        cdef uint32_t done
        with self._turn:
            drain_fd(self.loop.wake_fd)
            with nogil:
                done = work(self.loop, budget)
                if done == 0:
                    clear_errors(self.loop)
        return done

    def stop(self) -> None:
        """`run` returns after the batch that it is in."""
        store_release(&self.loop.stop, 1)
        signal_fd(self.loop.wake_fd)

    def attach(self, int side, PacketRing ring not None, bytes mac not None) -> None:
        """The side's interface is there: frames are read from and sent by ring, with mac (6 bytes) as their source."""
        if len(mac) != 6:
            raise ValueError(f"mac={mac!r}: allowed are 6 bytes")
        self._exchange(side, ring)
        memcpy(self.loop.ports[side].mac, <const uint8_t*>mac, 6)
        self.announce()

    def detach(self, int side) -> None:
        """The side's interface is away; its ring is closed, its neighbours are forgotten."""
        self._exchange(side, None)

    def _exchange(self, int side, PacketRing ring):
        cdef Port* port = &self.loop.ports[side & 1]
        cdef uint32_t i
        fetch_add(&self.loop.park, 1)
        signal_fd(self.loop.wake_fd)
        try:
            with self._turn:
                before = self._rings[side]
                self._rings[side] = ring
                port.ring = &ring.ring if ring is not None else NULL
                self._enter()
                for i in range(NEIGHBOURS):
                    if port.hops.neighbours[i].address:
                        port.hops.neighbours[i].state = UNKNOWN
                self._leave()
                if before is not None:
                    before.close()
                    self._past[side] = add(self._past[side], before.counters())
        finally:
            fetch_add(&self.loop.park, <uint32_t>-1)

    def close(self) -> None:
        """After the loop's end: frames that still wait are dropped, rings closed. Idempotent."""
        self.stop()
        with self._turn:
            self._enter()
            close_room(self.loop)
            self._leave()
        self.detach(0)
        self.detach(1)

    # ---- what the loop is told --------------------------------------------------------------------------------------

    def set_mac(self, int side, bytes mac not None) -> None:
        """The interface's address changed; it is announced again."""
        self._enter()
        memcpy(self.loop.ports[side & 1].mac, <const uint8_t*>mac, 6)
        self.loop.ports[side & 1].announced = 0
        self._leave()

    def announce(self) -> None:
        """Gratuitous ARP for every outside address, soon."""
        self.loop.ports[0].announced = self.loop.ports[1].announced = 0
        signal_fd(self.loop.wake_fd)

    def set_local(self, addresses) -> None:
        """The host's own addresses (host order): packets to them are the kernel's, unless they are in a pool."""
        cdef uint32_t[::1] members = as_words(addresses)
        cdef bint done
        self._enter()
        done = set_replace(&self.loop.local, &members[0], <uint32_t>len(addresses))
        self._leave()
        if not done:
            raise CapacityError("no memory for the host's own addresses")

    def set_routes(self, int side, starts, vias) -> None:
        """Disjoint ranges of destinations: starts ascending; vias a next hop, ON_LINK (0) or NO_ROUTE (2^32 - 1)."""
        cdef uint32_t[::1] first = as_words(starts)
        cdef uint32_t[::1] via = as_words(vias)
        cdef bint done
        if len(starts) != len(vias):
            raise ValueError(f"{len(starts)} starts and {len(vias)} vias: allowed is one via for each start")
        self._enter()
        done = routes_replace(&self.loop.ports[side & 1].hops, &first[0], &via[0], <uint32_t>len(starts))
        self._leave()
        if not done:
            raise CapacityError("no memory for routes")

    def learn(self, int side, uint32_t address, mac, bint failed=False) -> None:
        """A neighbour (host order) is at mac (6 bytes), or not known any more (None), or did not answer (failed)."""
        cdef bytes where = mac or b""
        cdef uint8_t state = KNOWN if len(where) == 6 else FAILED if failed else UNKNOWN
        self._enter()
        neighbour_learn(&self.loop.ports[side & 1].hops, address,
                        <const uint8_t*>where if state == KNOWN else NULL, state)
        self._leave()
        if load_acquire(&self.loop.waiting):
            store_release(&self.loop.learned, 1)
            signal_fd(self.loop.wake_fd)

    # ---- what the loop tells ----------------------------------------------------------------------------------------

    def take_wishes(self) -> list[tuple[int, int]]:
        """(side, address) of neighbours to be resolved, each asked for once a second at most."""
        cdef uint32_t i
        if not self.loop.wish_count:
            return []
        self._enter()
        wishes = [(self.loop.wishes[i].side, self.loop.wishes[i].address) for i in range(self.loop.wish_count)]
        self.loop.wish_count = 0
        self._leave()
        return wishes

    def take_used(self, int side) -> list[int]:
        """Neighbours that packets went to since the last call; forgets those long sought in vain."""
        cdef NextHops* hops = &self.loop.ports[side & 1].hops
        cdef uint32_t count = 0, i
        cdef uint32_t[::1] used
        if hops.count == 0:
            return []
        used = array.array("I", bytes(4 * NEIGHBOURS))
        self._enter()
        with nogil:
            for i in range(NEIGHBOURS):
                if hops.neighbours[i].used:
                    hops.neighbours[i].used = 0
                    used[count] = hops.neighbours[i].address
                    count += 1
            if hops.count > count + 1024:
                neighbours_forget(hops, <uint32_t>(clock_of(self.loop) // 1000000))
        self._leave()
        return list(used[:count])

    def in_pool(self, addresses) -> set[int]:
        """Those of the addresses (host order) that are in the pool of an entry."""
        self._enter()
        pooled = {a for a in addresses if address_find(self.loop.worker.mappings.ports, bswap32(a)) != NONE}
        self._leave()
        return pooled

    def counters(self) -> dict[str, int]:
        """Cumulative, by side ("inside_…", "outside_…"), and what both left to the kernel; the gauge waiting."""
        cdef Port* port
        result = {"left_to_kernel": 0, "waiting": self.loop.waiting}
        for side, name in enumerate(("inside", "outside")):
            port = &self.loop.ports[side]
            ring = self._rings[side]
            own = add(self._past[side], ring.counters()) if ring is not None else self._past[side]
            own = {**own, "left_to_kernel": port.left_to_kernel, "arp_answered": port.arp_answered,
                   "no_route": port.no_route, "unresolved": port.unresolved}
            result["left_to_kernel"] += port.left_to_kernel
            result.update({f"{name}_{key}": value for key, value in own.items()})
        return result


cdef dict add(dict first, dict second):
    """The sum, for the names of second."""
    return {key: first.get(key, 0) + value for key, value in second.items()}


cdef object as_words(values):
    """uint32 array of the values, one unused element longer, so that it has a first."""
    return array.array("I", [*values, 0])
