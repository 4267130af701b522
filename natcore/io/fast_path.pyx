"""Offers sessions to the XDP program, and takes back what it has counted. The loop calls it with the worker locked."""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset, strerror

from natcore.base.compiler cimport (
    bswap16, bswap32, load_acquire64, load_relaxed, load_relaxed64, store_release, store_release16, store_release64,
)
from natcore.base.headers cimport (
    ETHERNET_BYTES, ETHERTYPE_IPV4, IPV4_FRAGMENT, PROTOCOL_TCP, PROTOCOL_UDP, EthernetHeader, Ipv4Header, load16,
)
from natcore.base.grace_period cimport grace_period
from natcore.base.pages cimport table_delete, table_new
from natcore.base.sentinels cimport NONE
from natcore.base.serial_numbers cimport ahead
from natcore.io.loop_state cimport Interface, Loop
from natcore.io.kernel cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from natcore.io.neighbors cimport KNOWN, NO_ROUTE, Neighbour, neighbour_at, route_to, spread
from natcore.nat.rewrite cimport directed_delta
from natcore.packet.verdict cimport INBOUND, egress_of
from natcore.tables.offload cimport (
    OFFLOAD_HOPS, OFFLOAD_UNIT_SHIFT, OFFLOAD_WAYS, Offload, OffloadEntry, OffloadHop, OffloadUse, offload_bucket, offload_hash,
    offload_tag, offload_tag_of, offload_take, offload_units,
)
from natcore.tables.sessions cimport (
    OPENED_OUTSIDE, UNLOGGED, Session, Sessions, session_addresses, session_find, session_fold, session_ports,
)
from natcore.tables.tcp_state cimport TCP_STEADY
from natcore.workers.locks cimport lock, unlock
from natcore.workers.worker cimport Worker

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <time.h>
    static uint64_t natcore_tick_ns(void) {
        struct timespec t;
        clock_getres(CLOCK_MONOTONIC_COARSE, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
    """
    uint64_t tick_ns "natcore_tick_ns" ()

cdef enum:
    IDLE_LEAST_MS = 5000        # shorter time-outs are not offloaded: sessions are brought up to date each second
    FOLD_ALL_NS = 500000000     # in so long every entry is looked at
    HOPS_MOST = OFFLOAD_HOPS // 4 * 3
    OFFER_MOST = 1 << 30        # of 2^32 forwarded packets so many are offered,
    OFFER_LEAST = 1 << 24       # and so many where the table is full


# ---- offering --------------------------------------------------------------------------------------------------------

cdef bint is_plain(const Frame* frame) noexcept nogil:
    """Whether the program could have translated it: an untagged, whole packet of TCP or UDP without IPv4 options."""
    cdef const Ipv4Header* ip = <const Ipv4Header*>(frame.data + ETHERNET_BYTES)
    return (not frame.flags and frame.length >= ETHERNET_BYTES + 28
            and (<const EthernetHeader*>frame.data).ethertype == bswap16(ETHERTYPE_IPV4) and ip.version_ihl == 0x45
            and not ip.fragment & bswap16(IPV4_FRAGMENT)
            and (ip.protocol == PROTOCOL_TCP or ip.protocol == PROTOCOL_UDP))


cdef uint32_t session_of(const Worker* worker, const Frame* frame) noexcept nogil:
    """The session of a translated frame, found by the packet that would answer it."""
    cdef const Ipv4Header* ip = <const Ipv4Header*>(frame.data + ETHERNET_BYTES)
    cdef const uint8_t* l4 = <const uint8_t*>ip + 20
    return session_find(&worker.sessions, 1 - frame.side, ip.destination | <uint64_t>ip.source << 32,
                        load16(l4 + 2) | <uint32_t>load16(l4) << 16, ip.protocol)


cdef bint may_offload(const Worker* worker, const Session* session, uint32_t direction) noexcept nogil:
    """Whether packets of the session change nothing but counters, marks and the time of the last one."""
    return (session.state == TCP_STEADY and not session.flags & ~(OPENED_OUTSIDE | UNLOGGED)
            and worker.sessions.timeout_ms[session.timeout_class] >= IDLE_LEAST_MS
            and (direction != INBOUND or worker.configuration.inbound_refresh))


cdef uint32_t hop_to(Loop* loop, const Frame* frame) noexcept nogil:
    """The next hop of a forwarded frame, as the program finds it; NONE: unresolved, or out of redirection's reach."""
    cdef Offload* offload = loop.worker.sessions.offload
    cdef uint32_t at = 0, side = egress_of(frame.verdict, frame.side, False), i
    cdef uint32_t via = route_to(&loop.routes[side], bswap32((<Ipv4Header*>(frame.data + ETHERNET_BYTES)).destination), &at)
    cdef const Neighbour* neighbour
    cdef const Interface* interface = &loop.interfaces[at]
    cdef OffloadHop hop
    if via == NO_ROUTE or interface.device == NULL or not loop.redirects[at]:
        return NONE
    neighbour = neighbour_at(&interface.neighbours, via)
    if neighbour.address == 0 or neighbour.state != KNOWN:
        return NONE
    memcpy(hop.destination, neighbour.mac, 6)
    memcpy(hop.source, interface.mac, 6)
    hop.mtu = <uint16_t>min(loop.mtus[at] or loop.worker.links.mtu[side], <uint32_t>0xFFFF)
    hop.interface = <uint16_t>at
    i = spread(via ^ at << 24) & (OFFLOAD_HOPS - 1)
    while offload.hop_addresses[i] and not (offload.hop_addresses[i] == via and offload.hops[i].interface == at):
        i = (i + 1) & (OFFLOAD_HOPS - 1)
    if offload.hop_addresses[i] == 0:
        if loop.hops >= HOPS_MOST:
            return NONE
        loop.hops += 1
        offload.hop_addresses[i] = via
    if memcmp(&offload.hops[i], &hop, sizeof(OffloadHop)):
        offload.hops[i] = hop
    return i


cdef uint32_t place_for(const Offload* offload, uint64_t hash) noexcept nogil:
    """A free entry of the flow's bucket, or NONE; also where another one has its tag, since the program looks at one alone."""
    cdef uint32_t place = NONE, number, way
    cdef uint16_t tag
    for way in range(OFFLOAD_WAYS):
        number = way << offload.bits | offload_bucket(offload, hash)
        tag = offload_tag_of(offload, number)[0]
        if tag == offload_tag(offload, hash):
            return NONE
        if place == NONE and tag == 0 and load_acquire64(&offload.epoch) >= offload.uses[number].recalled + 2:
            place = number
    return place


cdef void note_late(Offload* offload, uint32_t number, uint32_t direction) noexcept nogil:
    """Counts what the program has translated after the entry was recalled."""
    cdef uint64_t bytes_
    offload.late += offload_take(offload, &offload.entries[number], &offload.uses[number], direction, &bytes_)


cdef inline uint32_t direction_of(const Offload* offload, const OffloadEntry* entry) noexcept nogil:
    return 1 if entry.interface == offload.outside else 0


cdef void offer(Loop* loop, const Interface* ingress, const Frame* frame) noexcept nogil:
    """Has the program translate the next packets like this one, which was forwarded, if it can; renews its entry."""
    cdef Worker* worker = loop.worker
    cdef Sessions* table = &worker.sessions
    cdef Offload* offload = table.offload
    cdef uint32_t direction = frame.side, slot, hop, number
    cdef uint64_t hash
    cdef Session* session
    cdef OffloadEntry* entry
    if (frame.verdict > INBOUND or loop.view_count or worker.flows != NULL or load_relaxed64(&worker.shared.fence_ns)
            or not is_plain(frame)):    # who looks, and a fence, are for every packet
        return
    slot = session_of(worker, frame)
    if slot == NONE or not may_offload(worker, &table.hot[slot], direction):
        return
    hop = hop_to(loop, frame)
    if hop == NONE:
        return
    session = &table.hot[slot]
    hash = offload_hash(offload, session_addresses(session, direction), session_ports(session, direction), session.protocol)
    number = offload.of_slot[2 * <size_t>slot + direction]
    if number == NONE:
        number = place_for(offload, hash)
        if number == NONE:
            loop.offer_below = max(loop.offer_below >> 1, <uint32_t>OFFER_LEAST)
            return
        note_late(offload, number, direction_of(offload, &offload.entries[number]))
        offload.sessions += offload.of_slot[2 * <size_t>slot + 1 - direction] == NONE
        offload.uses[number].slot = slot
        offload.of_slot[2 * <size_t>slot + direction] = number
        offload.live += 1
        entry = &offload.entries[number]
        entry.source = <uint32_t>session_addresses(session, direction)
        entry.destination = <uint32_t>(session_addresses(session, direction) >> 32)
        entry.ports = session_ports(session, direction)
        entry.protocol = session.protocol
        entry.address = session.ip[2 - 2 * direction]
        entry.port = session.port[2 - 2 * direction]
        entry.network_delta = directed_delta(session.l3_delta, direction)
        entry.transport_delta = directed_delta(session.l4_delta, direction)
        entry.end, entry.ack = session.end[direction], session.ack[direction]
    else:
        session_fold(table, slot)
        entry = &offload.entries[number]
    entry.interface = <uint8_t>(ingress - &loop.interfaces[0])
    entry.hop = <uint16_t>hop
    entry.until = offload_units(offload, table.cold[slot].window_start_ns + table.window_ns) - offload.lag
    entry.idle = <uint32_t>(<uint64_t>table.timeout_ms[session.timeout_class] * 1000000 >> OFFLOAD_UNIT_SHIFT)
    entry.last_seen = offload_units(offload, worker.now_ns) - offload.lag
    entry.end += ahead(session.end[direction], entry.end)
    entry.ack += ahead(session.ack[direction], entry.ack)
    store_release(&entry.generation, offload.generation[0])         # in force, with what was renewed
    store_release16(offload_tag_of(offload, number), offload_tag(offload, hash))    # at last: now the program finds it
    loop.offer_below = min(loop.offer_below << 1, <uint32_t>OFFER_MOST)


# ---- taking back -----------------------------------------------------------------------------------------------------

cdef void mark_used(Loop* loop, const OffloadEntry* entry) noexcept nogil:
    """The kernel is asked to keep the next hop resolved."""
    cdef const Offload* offload = loop.worker.sessions.offload
    cdef Interface* interface = &loop.interfaces[offload.hops[entry.hop].interface]
    cdef Neighbour* neighbour = neighbour_at(&interface.neighbours, offload.hop_addresses[entry.hop])
    if neighbour.address:
        neighbour.used = 1


cdef void fold_entry(Loop* loop, uint32_t number) noexcept nogil:
    cdef Offload* offload = loop.worker.sessions.offload
    cdef OffloadUse* use = &offload.uses[number]
    cdef OffloadEntry* entry = &offload.entries[number]
    if load_relaxed(&entry.packets) == use.packets:
        return
    mark_used(loop, entry)
    if use.slot == NONE:
        note_late(offload, number, direction_of(offload, entry))
    else:
        session_fold(&loop.worker.sessions, use.slot)


cdef void count_forwarded(Worker* worker) noexcept nogil:
    """Counts in the worker's counters what was folded since the last call."""
    cdef Offload* offload = worker.sessions.offload
    cdef uint32_t direction
    for direction in range(2):          # Verdict, Side and Direction are numbered alike
        worker.counters[direction] += offload.packets[direction]
        worker.from_outside[direction] += direction * offload.packets[direction]
        worker.bytes[direction] += offload.bytes[direction]
        offload.packets[direction] = offload.bytes[direction] = 0


cdef void fold_some(Loop* loop, uint64_t elapsed_ns) noexcept nogil:
    """Takes back what the program counted in a part of the entries: in half a second in all of them."""
    cdef Offload* offload = loop.worker.sessions.offload
    cdef uint64_t all_ = <uint64_t>OFFLOAD_WAYS << offload.bits, left
    left = all_ * min(elapsed_ns, <uint64_t>FOLD_ALL_NS) // FOLD_ALL_NS + 1
    while left:
        if offload.uses[offload.fold_at].slot != NONE or offload.uses[offload.fold_at].recalled:
            fold_entry(loop, offload.fold_at)
        offload.fold_at = offload.fold_at + 1 if offload.fold_at + 1 < all_ else 0
        left -= 1
    count_forwarded(loop.worker)


# ---- for Python ------------------------------------------------------------------------------------------------------

cdef void* shared_memory(int fd, uint64_t bytes_) except NULL:
    cdef void* memory = mmap(NULL, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if memory == MAP_FAILED:
        raise OSError(errno, f"no memory to share with the kernel: {strerror(errno).decode()}")
    return memory


cdef class FastPath:
    """The table of offloaded sessions, in the memory of array maps that XDP programs use: tags and entries of 2^bits buckets,
    next hops, the generation. The tables of one worker use it from PlaneLoop.set_fast_path until `close`.

    capacity: of the session table. outside: the outside interface's number. offset_ns: the gateway's clock - CLOCK_MONOTONIC.
    Raises OSError, MemoryError.
    """

    def __cinit__(self, int tags, int entries, int hops, int generation, uint32_t bits, uint64_t key, uint64_t other_key,
                  uint32_t capacity, uint32_t outside, int64_t offset_ns):
        cdef uint64_t count = <uint64_t>OFFLOAD_WAYS << bits, i
        memset(&self.offload, 0, sizeof(Offload))
        self._capacity = capacity
        self.offload.bits, self.offload.outside, self.offload.offset_ns = bits, outside, offset_ns
        self.offload.keys[0], self.offload.keys[1] = key, other_key
        self.offload.epoch = 2
        self.offload.lag = <uint32_t>(tick_ns() >> OFFLOAD_UNIT_SHIFT) + 1
        self.offload.tags = <uint16_t*>shared_memory(tags, 8 << bits)
        self.offload.entries = <OffloadEntry*>shared_memory(entries, count * sizeof(OffloadEntry))
        self.offload.hops = <OffloadHop*>shared_memory(hops, OFFLOAD_HOPS * sizeof(OffloadHop))
        self.offload.generation = <uint32_t*>shared_memory(generation, 4096)
        self.offload.uses = <OffloadUse*>table_new(count * sizeof(OffloadUse))
        self.offload.hop_addresses = <uint32_t*>calloc(OFFLOAD_HOPS, sizeof(uint32_t))
        self.offload.of_slot = <uint32_t*>table_new(<uint64_t>capacity * 8)
        if self.offload.uses == NULL or self.offload.hop_addresses == NULL or self.offload.of_slot == NULL:
            raise MemoryError("no memory for so many sessions")
        memset(self.offload.of_slot, 0xFF, <uint64_t>capacity * 8)
        for i in range(count):
            self.offload.uses[i].slot = NONE
        self.offload.generation[0] = 1

    def __dealloc__(self):
        cdef uint64_t count = <uint64_t>OFFLOAD_WAYS << self.offload.bits
        self.close()
        if self.offload.tags != NULL:
            munmap(self.offload.tags, 8 << self.offload.bits)
        if self.offload.entries != NULL:
            munmap(self.offload.entries, count * sizeof(OffloadEntry))
        if self.offload.hops != NULL:
            munmap(self.offload.hops, OFFLOAD_HOPS * sizeof(OffloadHop))
        if self.offload.generation != NULL:
            munmap(self.offload.generation, 4096)
        table_delete(self.offload.uses, count * sizeof(OffloadUse))
        table_delete(self.offload.of_slot, <uint64_t>self._capacity * 8)
        free(self.offload.hop_addresses)

    def counters(self) -> dict[str, int]:
        """Packets that the program has translated, known half a second later; late: those of them that came when their session
        had been recalled, and are in no row. Gauges: sessions that are offloaded, and their directions (entries)."""
        return {"fast_path": load_relaxed64(&self.offload.total), "fast_path_late": load_relaxed64(&self.offload.late),
                "fast_path_sessions": load_relaxed(&self.offload.sessions),
                "fast_path_entries": load_relaxed(&self.offload.live)}

    def interface_counters(self, uint32_t number) -> dict[str, int]:
        """Packets that came by an interface, and that left by it: received, sent."""
        return {"received": load_relaxed64(&self.offload.interfaces[number].received),
                "sent": load_relaxed64(&self.offload.interfaces[number].sent)}

    def barrier(self) -> None:
        """Waits until no program is under way that began before; some milliseconds."""
        with nogil:
            grace_period()
        store_release64(&self.offload.epoch, self.offload.epoch + 1)

    cdef void begin(self, Loop* loop) noexcept:
        loop.offer_below = OFFER_MOST
        with nogil:
            lock(loop.worker)
            self.offload.now_ns = loop.worker.now_ns
            loop.worker.sessions.offload = &self.offload
            unlock(loop.worker)
        self._loop = loop

    def close(self) -> None:
        """Takes all sessions back; the programs must be detached before. Idempotent."""
        cdef uint64_t i
        cdef Worker* worker
        if self._loop == NULL:
            return
        worker = self._loop.worker
        self.barrier()
        with nogil:
            lock(worker)
            for i in range(<uint64_t>OFFLOAD_WAYS << self.offload.bits):
                fold_entry(self._loop, <uint32_t>i)
            count_forwarded(worker)
            worker.sessions.offload = NULL
            unlock(worker)
        self._loop = NULL
