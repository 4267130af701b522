"""A plane's loop as Python controls it: configuration in, counters and requests out. Packets do not come here."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import array
import threading
import time

from natcore.io.deferred_frames cimport (
    DEFERRED_ACKNOWLEDGED, DEFERRED_ALONE, DEFERRED_LATE, DEFERRED_OVERFLOW, deferred_delete, deferred_new,
)
from natcore.io.device cimport FRAME_CAPACITY, Driver
from natcore.io.fast_path cimport FastPath
from natcore.io.frame_view cimport ArrivedFrames, FrameView, arrived_delete, arrived_new
from natcore.io.neighbors cimport (
    FAILED, KNOWN, NEIGHBOURS, UNKNOWN, Neighbours, neighbour_is, neighbour_learn, neighbours_delete, neighbours_forget,
    neighbours_lose, neighbours_new, routes_delete, routes_replace, set_delete, set_replace,
)
from natcore.nat.undelivered cimport subtract_from_others
from natcore.tables.offload cimport offload_outdate
from natcore.tables.ports cimport HostPorts, Ports, address_find
from natcore.workers.locks cimport lock, unlock
from natcore.io.pending_frames cimport pending_delete, pending_new
from natcore.io.io_loop cimport clear_errors, clock_of, end_pending, drain_fd, run, signal_fd, work
from natcore.io.loop_state cimport (
    OTHER_WORKER, ANYWHERE, INTERFACES_MOST, RESOLVE_REQUESTS, VIEWS_MOST, Interface, Loop, ResolveRequest,
)
from natcore.base.compiler cimport (
    bswap32, fetch_add, load_acquire, load_relaxed, load_relaxed64, store_relaxed, store_relaxed64, store_release,
)
from natcore.base.sentinels cimport NONE
from natcore.workers.worker cimport Worker
from natcore.packet.verdict cimport INSIDE, OUTSIDE

from natcore.errors import CapacityError


cdef class PlaneLoop:
    """One worker's loop over interfaces, which are numbered: inside ones from 0 on, the outside one last.

    capsule: Core.worker_capsule(), valid as long as owner. offset_ns: gateway's clock minus monotonic. wake_fd, requests_fd:
    eventfds that outlive the loop. Every method may be called from any thread while `run` runs in another, and takes effect
    before it returns.
    """

    def __cinit__(self, capsule, owner, int64_t offset_ns, int wake_fd, int requests_fd, uint32_t interfaces=2):
        cdef uint32_t i
        if not 2 <= interfaces <= INTERFACES_MOST:
            raise ValueError(f"interfaces must be between 2 and {INTERFACES_MOST}, got {interfaces}")
        self.loop = <Loop*>calloc(1, sizeof(Loop))
        if self.loop == NULL:
            raise CapacityError("no memory for a plane")
        self._owner = owner
        self._drivers = [None] * interfaces
        self._taps = [None] * interfaces
        self._turn = threading.Lock()
        self._past = [{}] * interfaces
        self._views = {}
        self.loop.worker = <Worker*>PyCapsule_GetPointer(capsule, "natcore.Worker")
        self.loop.worker.monotonic_clock = self.loop.worker.shared.count > 1
        self.loop.announced = OTHER_WORKER if self.loop.worker.number else 0     # only the first worker's loop announces
        self.loop.offset_ns = <uint64_t>offset_ns
        self.loop.wake_fd, self.loop.requests_fd = wake_fd, requests_fd
        self.loop.count = interfaces
        self.loop.generated = <uint8_t*>calloc(1, FRAME_CAPACITY)
        if self.loop.generated == NULL or not pending_new(&self.loop.pending) or not deferred_new(&self.loop.deferred):
            raise CapacityError("no memory for a plane")
        for i in range(interfaces):
            self.loop.interfaces[i].side = OUTSIDE if i == interfaces - 1 else INSIDE
            if not neighbours_new(&self.loop.interfaces[i].neighbours):
                raise CapacityError("no memory for a plane")

    def __dealloc__(self):
        cdef uint32_t i
        if self.loop == NULL:
            return
        for i in range(self.loop.count):
            neighbours_delete(&self.loop.interfaces[i].neighbours)
        for i in range(ANYWHERE + 1):
            routes_delete(&self.loop.routes[i])
        for i in range(VIEWS_MOST):
            if self.loop.views[i] != NULL:
                arrived_delete(self.loop.views[i])
                free(self.loop.views[i])
        set_delete(&self.loop.local)
        pending_delete(&self.loop.pending)
        deferred_delete(&self.loop.deferred)
        free(self.loop.generated)
        free(self.loop)

    cdef void _lock(self) noexcept nogil:
        """Call it in one `with nogil:` with _unlock: no Python code may run in between (see Workers.lock)."""
        lock(self.loop.worker)

    cdef void _unlock(self) noexcept nogil:
        unlock(self.loop.worker)

    cdef void _outdate(self) noexcept nogil:
        """The way of offloaded packets may be another one now: all come the ordinary way once. The worker must be locked."""
        offload_outdate(self.loop.worker.sessions.offload)

    # ---- running ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Moves packets until `stop`, without the GIL."""
        while not load_acquire(&self.loop.stop):
            with self._turn:
                with nogil:
                    run(self.loop)
            while load_acquire(&self.loop.park) and not load_acquire(&self.loop.stop):
                time.sleep(0.0005)

    def step(self, uint32_t budget) -> int:
        """Moves about budget frames at most, without waiting; how many."""
        cdef uint32_t done
        with self._turn:
            drain_fd(self.loop.wake_fd)
            with nogil:
                done = work(self.loop, budget)
                if done == 0:
                    clear_errors(self.loop)
        return done

    def stop(self) -> None:
        """Makes `run` return after the current batch."""
        store_release(&self.loop.stop, 1)
        signal_fd(self.loop.wake_fd)

    cdef Interface* _interface(self, uint32_t number) except NULL:
        if number >= self.loop.count:
            raise ValueError(f"interface must be between 0 and {self.loop.count - 1}, got {number}")
        return &self.loop.interfaces[number]

    def attach(self, uint32_t number, Driver driver not None, bytes mac not None) -> None:
        """Attaches the interface: frames are received and sent by driver, with mac (6 bytes) as source."""
        self.set_mac(number, mac)
        self._replace_driver(number, driver)
        self.announce()

    def detach(self, uint32_t number) -> None:
        """Detaches the interface: closes its driver, forgets its neighbours."""
        self._replace_driver(number, None)

    def release(self, uint32_t number) -> Driver | None:
        """Detaches the interface, and gives its driver, which stays open. Call it after the loop ended."""
        cdef Interface* interface = self._interface(number)
        driver = self._drivers[number]
        if driver is not None:
            with self._turn:
                self._drivers[number] = None
                interface.device = NULL
            self._past[number] = add(self._past[number], driver.counters())
        return driver

    def _replace_driver(self, uint32_t index, Driver driver):
        """Replaces an interface's driver between two batches: `park` makes the loop return, `_turn` keeps it from resuming
        until the new driver is in place and the old one closed."""
        cdef Interface* interface = self._interface(index)
        self._park()
        try:
            before = self._drivers[index]
            self._drivers[index] = driver
            interface.device = driver.device if driver is not None else NULL
            with nogil:
                self._lock()
                neighbours_lose(&interface.neighbours)
                self._outdate()
                self._unlock()
            if interface.device != NULL:
                interface.device.complete(interface.device)       # gives the kernel buffers to receive into
            if before is not None:
                before.close()
                self._past[index] = add(self._past[index], before.counters())
        finally:
            self._resume()

    def attach_view(self, FrameView view not None) -> bool:
        """Shows the loop's frames to a view from the next batch on; False: there are too many views."""
        cdef uint32_t i
        cdef ArrivedFrames* before = <ArrivedFrames*>calloc(1, sizeof(ArrivedFrames))
        if before == NULL or not arrived_new(before, &view.view):
            free(before)
            raise CapacityError("no memory for a view")
        self._park()
        try:
            for i in range(VIEWS_MOST):
                if self.loop.views[i] == NULL:
                    self.loop.views[i] = before
                    self.loop.view_count += 1
                    with nogil:
                        self._lock()
                        self._outdate()                 # it sees every packet
                        self._unlock()
                    self._views[view] = i
                    return True
        finally:
            self._resume()
        arrived_delete(before)
        free(before)
        return False

    def detach_view(self, FrameView view not None) -> None:
        """Shows it nothing more. Idempotent."""
        cdef uint32_t i
        cdef ArrivedFrames* before
        self._park()
        try:
            if view not in self._views:
                return
            i = self._views.pop(view)
            before = self.loop.views[i]
            self.loop.views[i] = NULL
            self.loop.view_count -= 1
        finally:
            self._resume()
        arrived_delete(before)
        free(before)

    def _park(self):
        """Keeps the loop from its next batch until _resume."""
        fetch_add(&self.loop.park, 1)
        signal_fd(self.loop.wake_fd)
        self._turn.acquire()

    def _resume(self):
        self._turn.release()
        fetch_add(&self.loop.park, <uint32_t>-1)

    def set_tap(self, uint32_t number, Driver tap) -> None:
        """Sets the packet ring that brings an interface the ICMP and fragments for shared addresses which its driver leaves to
        the kernel; None: it needs none."""
        cdef Interface* changed = self._interface(number)
        self._park()
        try:
            before = self._taps[number]
            self._taps[number] = tap
            changed.tap = tap.device if tap is not None else NULL
            if before is not None:
                before.close()
                self._past[number] = add(self._past[number], {"ring_drops": before.counters()["ring_drops"]})
        finally:
            self._resume()

    def close(self) -> None:
        """Call it after the loop ended: sends deferred frames, drops pending ones, closes drivers. Idempotent."""
        self.stop()
        with self._turn:
            with nogil:
                self._lock()
                end_pending(self.loop)
                self.loop.worker.links.path_mtus = NULL
                self.loop.worker.monotonic_clock = False
                self._unlock()
                subtract_from_others(self.loop.worker)
        for number in range(self.loop.count):
            self.detach(number)
            self.set_tap(number, None)

    # ---- the fast path ---------------------------------------------------------------------------------------------------

    def set_fast_path(self, FastPath fast_path) -> None:
        """Offers sessions to the XDP programs by this; None: takes them back. The programs must be detached then."""
        if self._fast_path is not None:
            self._fast_path.close()                         # its counters stay
        if fast_path is not None:
            self._fast_path = fast_path
            fast_path.begin(self.loop)

    def set_redirects(self, uint32_t number, bint redirects) -> None:
        """Says whether XDP programs can send by the interface."""
        self._interface(number)
        with nogil:
            self._lock()
            if self.loop.redirects[number] != redirects:
                self.loop.redirects[number] = redirects
                self._outdate()
            self._unlock()

    # ---- configuration of the loop ---------------------------------------------------------------------------------------

    def set_mac(self, uint32_t number, bytes mac not None) -> None:
        """Sets the interface's MAC (6 bytes); outside addresses are announced again."""
        cdef Interface* changed = self._interface(number)
        cdef uint8_t new[6]
        if len(mac) != 6:
            raise ValueError(f"mac must be 6 bytes, got {mac!r}")
        memcpy(new, <const uint8_t*>mac, 6)
        with nogil:
            self._lock()
            memcpy(changed.mac, new, 6)
            self._outdate()
            self._unlock()
        if changed.side == OUTSIDE:
            self.announce()

    def set_address(self, uint32_t number, uint32_t address) -> None:
        """Sets the gateway's address on that link (host order; 0: none): source of its ICMP errors, answered and announced by
        ARP."""
        cdef Interface* changed = self._interface(number)
        cdef bint other = changed.address != bswap32(address)
        with nogil:
            self._lock()
            changed.address = bswap32(address)
            self._unlock()
        if other:
            self.announce()

    def set_mtu(self, uint32_t number, uint32_t mtu) -> None:
        """Sets the MTU of that link, bytes of an IPv4 packet."""
        self._interface(number)
        with nogil:
            self._lock()
            self.loop.mtus[number] = mtu
            update_mtus(self.loop)
            self._outdate()
            self._unlock()

    def set_offset(self, int64_t offset_ns) -> None:
        """Sets the gateway's clock anew, minus monotonic. Call it while a fence is closed: no packet is under way."""
        with nogil:
            self._lock()
            store_relaxed64(&self.loop.offset_ns, <uint64_t>offset_ns)
            self._unlock()

    def announce(self) -> None:
        """Makes the first worker send gratuitous ARP for the gateway's own addresses and every outside address soon."""
        with nogil:
            self._lock()
            if self.loop.announced != OTHER_WORKER:
                store_relaxed(&self.loop.announced, 0)
            self._unlock()
        signal_fd(self.loop.wake_fd)

    def set_local(self, addresses) -> None:
        """Sets the host's own addresses (host order): packets to them go to the kernel, unless they are in a pool."""
        cdef uint32_t[::1] members = as_words(addresses)
        cdef bint done
        with nogil:
            self._lock()
            done = set_replace(&self.loop.local, &members[0], <uint32_t>members.shape[0] - 1)
            self._outdate()
            self._unlock()
        if not done:
            raise CapacityError("no memory for the host's own addresses")

    def set_routes(self, uint32_t over, starts, vias, interfaces) -> None:
        """Sets disjoint ranges of destinations over the interfaces of a Side, or over all (2).

        starts: ascending; vias: next hops, ON_LINK (0) or NO_ROUTE (2^32 - 1); interfaces: egress interfaces.
        """
        cdef uint32_t[::1] first = as_words(starts)
        cdef uint32_t[::1] via = as_words(vias)
        cdef bytes egress = bytes(interfaces)
        cdef const uint8_t* by = <const uint8_t*>egress
        cdef bint done
        if over > ANYWHERE:
            raise ValueError(f"over must be between 0 and {ANYWHERE}, got {over}")
        if not len(starts) == len(vias) == len(egress):
            raise ValueError("starts, vias and interfaces must be equally long, "
                             f"got {len(starts)}, {len(vias)} and {len(egress)}")
        if max(egress, default=0) >= self.loop.count:
            raise ValueError(f"interfaces must be between 0 and {self.loop.count - 1}, got {max(egress)}")
        with nogil:
            self._lock()
            done = routes_replace(&self.loop.routes[over], &first[0], &via[0], by, <uint32_t>first.shape[0] - 1)
            update_mtus(self.loop)
            self._outdate()
            self._unlock()
        if not done:
            raise CapacityError("no memory for routes")

    def learn(self, uint32_t number, uint32_t address, mac, bint failed=False) -> None:
        """Updates a neighbour (host order): resolved at mac (6 bytes), lost (None), or unreachable (failed)."""
        cdef Neighbours* neighbours = &self._interface(number).neighbours
        cdef bytes where = mac or b""
        cdef const uint8_t* known = NULL
        cdef uint8_t state = KNOWN if len(where) == 6 else FAILED if failed else UNKNOWN
        if state == KNOWN:
            known = where
        with nogil:
            self._lock()
            if not neighbour_is(neighbours, address, known, state):
                neighbour_learn(neighbours, address, known, state)
                self._outdate()
            self._unlock()
        if load_acquire(&self.loop.pending.frames):
            store_release(&self.loop.learned, 1)
            signal_fd(self.loop.wake_fd)

    # ---- requests and counters of the loop -------------------------------------------------------------------------------

    def take_resolve_requests(self) -> list[tuple[int, int]]:
        """(interface, address) of neighbours to resolve, each at most once a second."""
        cdef ResolveRequest requests[RESOLVE_REQUESTS]
        cdef uint32_t i, count
        with nogil:
            self._lock()
            count = self.loop.request_count
            memcpy(requests, self.loop.requests, count * sizeof(ResolveRequest))
            self.loop.request_count = 0
            self._unlock()
        return [(requests[i].interface, requests[i].address) for i in range(count)]

    def take_used(self, uint32_t number) -> list[int]:
        """Neighbours that packets were sent to since the last call; removes long unresolved ones."""
        cdef Neighbours* neighbours = &self._interface(number).neighbours
        cdef uint32_t count = 0, i
        cdef uint32_t[::1] used
        if load_relaxed(&neighbours.count) == 0:
            return []
        used = array.array("I", bytes(4 * NEIGHBOURS))
        with nogil:
            self._lock()
            for i in range(NEIGHBOURS):
                if neighbours.slots[i].used:
                    neighbours.slots[i].used = 0
                    used[count] = neighbours.slots[i].address
                    count += 1
            if neighbours.count > count + 1024:
                neighbours_forget(neighbours, <uint32_t>(clock_of(self.loop) // 1000000))
            self._unlock()
        return list(used[:count])

    def in_pool(self, addresses) -> set[int]:
        """Those of the addresses (host order) that are in a pool."""
        cdef uint32_t[::1] asked = as_words(addresses)
        cdef uint8_t[::1] pooled = bytearray(asked.shape[0])
        cdef Py_ssize_t i
        with nogil:
            self._lock()
            for i in range(asked.shape[0] - 1):
                pooled[i] = address_find(self.loop.worker.mappings.ports, bswap32(asked[i])) != NONE
            self._unlock()
        return {asked[i] for i in range(asked.shape[0] - 1) if pooled[i]}

    def pool(self) -> bytes:
        """The outside addresses of all entries, in host order, four bytes each."""
        cdef const Ports* ports = self.loop.worker.mappings.ports
        cdef uint32_t i, count = 0
        cdef uint32_t* addresses
        with nogil:
            self._lock()
            addresses = <uint32_t*>malloc((ports.count + 1) * sizeof(uint32_t))
            for i in range(ports.count if addresses != NULL else 0):
                if ports.addresses[i].references:
                    addresses[count] = bswap32(ports.addresses[i].ip)
                    count += 1
            self._unlock()
        if addresses == NULL:
            raise MemoryError
        try:
            return (<const char*>addresses)[:4 * count]
        finally:
            free(addresses)

    def shared(self) -> dict[int, bytes]:
        """{shared address (host order): bits of the TCP ports that the host has, then of its UDP ports, 64-bit words}."""
        cdef const Ports* ports = self.loop.worker.mappings.ports
        cdef uint32_t i
        cdef HostPorts copy
        cdef uint32_t ip
        result = {}
        for i in range(load_relaxed(&ports.count)):
            with nogil:
                self._lock()
                ip = 0 if ports.addresses[i].host == NULL else ports.addresses[i].ip
                if ip:
                    copy = ports.addresses[i].host[0]
                self._unlock()
            if ip:
                result[bswap32(ip)] = (<const char*>copy.now)[:sizeof(copy.now)]
        return result

    def interface_counters(self, uint32_t number) -> dict[str, int]:
        """Cumulative counters of one interface."""
        cdef Interface* interface = self._interface(number)
        driver = self._drivers[number]
        own = add(self._past[number], driver.counters()) if driver is not None else self._past[number]
        tap = self._taps[number]
        if tap is not None:
            own = {**own, "ring_drops": own.get("ring_drops", 0) + tap.counters()["ring_drops"]}
        if self._fast_path is not None:
            own = add(own, self._fast_path.interface_counters(number))
        passed = own.get("left_to_kernel", 0)               # counted by a driver that does not deliver them
        return {**own, "left_to_kernel": passed + load_relaxed64(&interface.left_to_kernel),
                "arp_answered": load_relaxed64(&interface.arp_answered), "unresolved": load_relaxed64(&interface.unresolved),
                "fenced": load_relaxed64(&interface.fenced)}

    @property
    def turned_ns(self) -> int:
        """CLOCK_MONOTONIC at the loop's last turn, ns; 0: none yet."""
        return load_relaxed64(&self.loop.turned_ns)

    def counters(self) -> dict[str, int]:
        """Cumulative sums by side ("inside_…", "outside_…"), frames left to the kernel on both, deferred frames that have left,
        by outcome, and how long they waited; the gauges waiting and deferred."""
        cdef const uint64_t* outcomes = self.loop.deferred.outcomes
        result = {"left_to_kernel": 0, "waiting": load_relaxed(&self.loop.pending.frames),
                  "deferred": load_relaxed(&self.loop.deferred.ring.frames),
                  "deferred_acknowledged": load_relaxed64(&outcomes[DEFERRED_ACKNOWLEDGED]),
                  "deferred_late": load_relaxed64(&outcomes[DEFERRED_LATE]),
                  "deferred_alone": load_relaxed64(&outcomes[DEFERRED_ALONE]),
                  "deferred_overflow": load_relaxed64(&outcomes[DEFERRED_OVERFLOW]),
                  "deferred_ms": load_relaxed64(&self.loop.deferred.waited_ms)}
        for number in range(self.loop.count):
            side = self.loop.interfaces[number].side
            name = "outside" if side == OUTSIDE else "inside"
            for key, value in self.interface_counters(number).items():
                result[f"{name}_{key}"] = result.get(f"{name}_{key}", 0) + value
            result[f"{name}_no_route"] = self.loop.no_route[side]
        result["left_to_kernel"] = result["inside_left_to_kernel"] + result["outside_left_to_kernel"]
        if self._fast_path is not None:
            result.update(self._fast_path.counters())
        return result


cdef void update_mtus(Loop* loop) noexcept nogil:
    """Tells the worker the smallest MTU of each side, and the MTUs by route where inside links differ."""
    cdef uint32_t smallest = 0, largest = 0, i
    for i in range(loop.count - 1):
        if loop.mtus[i]:
            smallest = loop.mtus[i] if smallest == 0 or loop.mtus[i] < smallest else smallest
            largest = loop.mtus[i] if loop.mtus[i] > largest else largest
    loop.path_mtus.starts, loop.path_mtus.interfaces = loop.routes[INSIDE].starts, loop.routes[INSIDE].interfaces
    loop.path_mtus.ranges, loop.path_mtus.mtus = loop.routes[INSIDE].ranges, loop.mtus
    loop.worker.links.path_mtus = &loop.path_mtus if smallest != largest else NULL
    loop.worker.links.mtu[INSIDE] = smallest or loop.worker.links.mtu[INSIDE]
    loop.worker.links.mtu[OUTSIDE] = loop.mtus[loop.count - 1] or loop.worker.links.mtu[OUTSIDE]


cdef dict add(dict first, dict second):
    """Sums per name."""
    return {key: first.get(key, 0) + second.get(key, 0) for key in [*second, *(key for key in first if key not in second)]}


cdef object as_words(values):
    """uint32 array of the values plus one unused element, so that it is never empty."""
    return array.array("I", [*values, 0])
