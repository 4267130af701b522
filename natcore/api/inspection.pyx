"""Read access to a gateway's state: counters, events, copies of tables; per worker or in total."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from natcore.log.events cimport EVENT_SLOTS, REASON_SLOTS, Event, Events, event_fd_clear
from natcore.workers.locks cimport lock, unlock
from natcore.workers.limits cimport LIMITS, mappings_live, sessions_live
from natcore.api.snapshot cimport BlockRow, PortRow, SessionRow, copy_blocks, copy_ports, copy_sessions, count_blocks
from natcore.tables.port_overload cimport ALL_PARTS, RemoteCount, Overload
from natcore.tables.ports cimport PORT_SPACES, Address, ports_in_use
from natcore.base.sentinels cimport NONE
from natcore.api.workers cimport Workers
from natcore.base.compiler cimport bswap16, bswap32
from natcore.packet.verdict cimport INSIDE, OUTSIDE
from natcore.workers.worker cimport WORKERS_AT_MOST, Shared, Worker
from natcore.tables.sessions cimport KINDS

cdef enum:
    LOOK_LINES = 65536          # lines that sessions() examines with a worker locked
    SLOT_BITS = 32              # of a place: worker number above, slot below
    MOST_SLOTS = 192            # outside addresses and protocols that most_taken() tells of


cdef uint8_t[::1] bytes_of(rows, size_t row_bytes):
    """The rows' bytes: numpy leaves padding unnamed, which a typed memory view of structs cannot express."""
    if rows.itemsize != row_bytes:
        raise ValueError(f"rows must be records of {row_bytes} bytes, got {rows.dtype}")
    return rows.view("u1")


cdef struct Sums:               # sums returned by counters()
    uint64_t verdicts[256]
    uint64_t from_outside[256]
    uint64_t bytes[2]           # by Side
    uint64_t refused[LIMITS]
    uint64_t created_of[KINDS]
    uint64_t ended_of[KINDS]
    uint64_t handed_over_by[WORKERS_AT_MOST]
    uint64_t created
    uint64_t ended
    uint64_t handed_over
    uint64_t undelivered_in_rows
    uint64_t clock_backward
    uint64_t generated
    uint64_t generated_lost
    uint64_t generated_withheld
    uint64_t fragments_evicted
    uint64_t events_lost
    uint64_t unsolicited_lost
    uint64_t journal_lost
    uint64_t ports_used
    uint64_t sessions
    uint64_t mappings


cdef void sum_up(const Shared* shared, int32_t worker, Sums* sums) noexcept nogil:
    """Sums counters of a worker or, -1, of all; all workers must be locked."""
    cdef const Worker* one = shared.workers[0]
    cdef const Address* address
    cdef uint32_t i, space, w
    for i in range(shared.ports.count):
        address = &shared.ports.addresses[i]
        if address.memory != NULL:
            for space in range(PORT_SPACES):
                sums.ports_used += ports_in_use(&shared.ports, &address.maps[space])
    sums.generated, sums.generated_lost = one.outbox.generated, one.outbox.lost
    sums.generated_withheld = one.outbox.withheld
    sums.fragments_evicted = one.fragments[0].evicted + one.fragments[1].evicted
    sums.events_lost, sums.unsolicited_lost = one.events.lost, one.syn_holdoff.lost
    sums.journal_lost = one.journal.lost + one.journal.lifecycle_lost
    sums.sessions, sums.mappings = sessions_live(one), mappings_live(one)
    for w in range(shared.count):
        if worker >= 0 and w != <uint32_t>worker:
            continue
        one = shared.workers[w]
        for i in range(256):
            sums.verdicts[i] += one.counters[i]
            sums.from_outside[i] += one.from_outside[i]
        for i in range(2):
            sums.bytes[i] += one.bytes[i]
        for i in range(LIMITS):
            sums.refused[i] += one.refused[i]
        for i in range(KINDS):
            sums.created_of[i] += one.sessions.created_of[i]
            sums.ended_of[i] += one.sessions.ended_of[i]
        sums.handed_over_by[w] = one.handed_over
        sums.created += one.sessions.created
        sums.ended += one.sessions.ended
        sums.handed_over += one.handed_over
        sums.undelivered_in_rows += one.undelivered_in_rows
        sums.clock_backward += one.clock_backward
        if worker >= 0:
            sums.sessions, sums.mappings = one.sessions.slots.live, one.mappings.mapping_slots.live


cdef struct Most:
    uint32_t outside_ip         # big-endian
    uint32_t taken              # ports in use towards one destination; 0: the slot is free
    uint8_t protocol


cdef void most_taken(const Overload* table, uint32_t first, uint32_t last, Most* found) noexcept nogil:
    """Finds the most ports in use towards one destination, by outside address and protocol, among counts first to last - 1.
    Of more addresses than there are slots the later ones are left out. All workers must be locked."""
    cdef const RemoteCount* remote
    cdef uint32_t slot, i
    for slot in range(first, last):
        remote = &table.remote_counts[slot]
        if remote.taken == 0 or remote.part != ALL_PARTS:
            continue
        for i in range(MOST_SLOTS):
            if found[i].taken == 0:
                found[i].outside_ip, found[i].protocol = remote.outside_ip, remote.protocol
            if found[i].outside_ip == remote.outside_ip and found[i].protocol == remote.protocol:
                found[i].taken = remote.taken if remote.taken > found[i].taken else found[i].taken
                break


cdef class Inspection:
    """Counters, events and copies of the tables of a gateway. Thread-safe."""

    def __cinit__(self, Workers workers not None):
        self.workers = workers
        self.shared, self.worker = workers.shared, workers.first

    def counters(self, int32_t worker=-1):
        """([frames by Verdict], {name: count}) of a worker or, -1, of all. Gauges and shared counters are the gateway's."""
        verdicts, named, *_ = self.totals(worker)
        return verdicts, named

    def totals(self, int32_t worker=-1):
        """counters() at one moment with its parts: ([frames by Verdict], {name: count}, [those from outside by Verdict],
        {name: [by TCP, UDP, ICMP, others]}, [refusals by Limit], [frames handed off by each worker])."""
        cdef Sums sums
        memset(&sums, 0, sizeof(Sums))
        with nogil:
            self.workers.lock()
            sum_up(self.shared, worker, &sums)
            self.workers.unlock()
        # of one worker the counters can be negative after handoff; the total cannot
        return [<int64_t>sums.verdicts[i] for i in range(256)], {
            "created": sums.created, "ended": sums.ended, "handed_over": sums.handed_over,
            "undelivered_in_rows": sums.undelivered_in_rows,
            "clock_backward": sums.clock_backward, "generated": sums.generated, "generated_lost": sums.generated_lost,
            "generated_withheld": sums.generated_withheld, "fragments_evicted": sums.fragments_evicted,
            "events_lost": sums.events_lost, "unsolicited_lost": sums.unsolicited_lost,
            "journal_lost": sums.journal_lost, "bytes_from_inside": sums.bytes[INSIDE],
            "bytes_from_outside": sums.bytes[OUTSIDE], "ports_used": sums.ports_used,
            "sessions": sums.sessions, "mappings": sums.mappings,
        }, [<int64_t>sums.from_outside[i] for i in range(256)], {
            "created": [sums.created_of[i] for i in range(KINDS)], "ended": [sums.ended_of[i] for i in range(KINDS)],
        }, [sums.refused[i] for i in range(LIMITS)], [sums.handed_over_by[i] for i in range(self.shared.count)]

    def most_taken(self, uint32_t place):
        """With ports="overload": of a slice of the destinations, from a place on, 0 at first, the most ports that are in use
        towards one; ({(outside address, protocol): ports}, place to continue from, or None: done)."""
        cdef const Overload* table = &self.shared.ports.overload
        cdef Most found[MOST_SLOTS]
        cdef uint32_t last
        memset(found, 0, sizeof(found))
        with nogil:
            self.workers.lock()
            last = min(table.count_slots.fresh, place + LOOK_LINES) if table.pairs != NULL else 0
            most_taken(table, place, last, found)
            place = last if table.pairs != NULL and last < table.count_slots.fresh else NONE
            self.workers.unlock()
        return ({(bswap32(found[i].outside_ip), found[i].protocol): found[i].taken
                 for i in range(MOST_SLOTS) if found[i].taken},
                None if place == NONE else place)

    @property
    def event_fd(self):
        """An eventfd, readable while events wait; owned by the core."""
        return self.worker.events.fd

    def take_events(self):
        """[(ns, reason, subscriber, destination, port, protocol, count, Limit), …], oldest first."""
        cdef Events* events = self.worker.events
        cdef Event* taken
        cdef Event* event
        cdef uint32_t count = 0, i
        taken = <Event*>malloc((EVENT_SLOTS + REASON_SLOTS) * sizeof(Event))
        if taken == NULL:
            raise MemoryError
        with nogil:
            self.workers.lock()
            for i in range(EVENT_SLOTS + REASON_SLOTS):
                event = &events.slots[i] if i < EVENT_SLOTS else &events.by_reason[i - EVENT_SLOTS]
                if event.count:
                    taken[count] = event[0]
                    count += 1
                    memset(event, 0, sizeof(Event))
            events.waiting = 0
            event_fd_clear(events.fd)
            self.workers.unlock()
        try:
            return sorted((taken[i].at_ns, taken[i].verdict, bswap32(taken[i].subscriber), bswap32(taken[i].destination),
                           bswap16(taken[i].port), taken[i].protocol, taken[i].count, taken[i].limit)
                          for i in range(count))
        finally:
            free(taken)

    @property
    def session_slots(self):
        """Slots ever used, of all workers: an upper bound of the rows of sessions()."""
        cdef uint32_t w
        cdef uint64_t slots = 0
        with nogil:
            self.workers.lock()
            for w in range(self.shared.count):
                slots += self.shared.workers[w].sessions.slots.fresh
            self.workers.unlock()
        return slots

    def sessions(self, rows not None, uint64_t place):
        """Copies live sessions from a place on, 0 at first; (rows filled, place to continue from, or None: done)."""
        cdef uint8_t[::1] raw = bytes_of(rows, sizeof(SessionRow))
        cdef uint32_t capacity = <uint32_t>(raw.shape[0] // sizeof(SessionRow))
        cdef Worker* worker = self.shared.workers[place >> SLOT_BITS]
        cdef uint32_t slot = <uint32_t>place, filled = 0, last
        with nogil:
            lock(worker)                      # other workers continue
            last = worker.sessions.slots.fresh
            if last - slot > LOOK_LINES:
                last = slot + LOOK_LINES
            if capacity:
                filled = copy_sessions(worker, <SessionRow*>&raw[0], capacity, &slot, last)
            last = worker.sessions.slots.fresh
            unlock(worker)
        if slot < last:
            return filled, (place >> SLOT_BITS << SLOT_BITS) + slot
        place = (place >> SLOT_BITS) + 1
        return filled, place << SLOT_BITS if place < self.shared.count else None

    def ports(self, rows not None):
        """Copies port usage; rows filled."""
        cdef uint8_t[::1] raw = bytes_of(rows, sizeof(PortRow))
        cdef uint32_t filled = 0, capacity = <uint32_t>(raw.shape[0] // sizeof(PortRow))
        with nogil:
            self.workers.lock()
            if capacity:
                filled = copy_ports(self.worker, <PortRow*>&raw[0], capacity)
            self.workers.unlock()
        return filled

    def blocks(self, rows not None):
        """Copies assigned port blocks; rows filled."""
        cdef uint8_t[::1] raw = bytes_of(rows, sizeof(BlockRow))
        cdef uint32_t filled = 0, capacity = <uint32_t>(raw.shape[0] // sizeof(BlockRow))
        with nogil:
            self.workers.lock()
            if capacity:
                filled = copy_blocks(self.worker, <BlockRow*>&raw[0], capacity)
            self.workers.unlock()
        return filled

    @property
    def block_count(self):
        """Number of assigned port blocks."""
        cdef uint32_t count
        with nogil:
            self.workers.lock()
            count = count_blocks(self.worker)
            self.workers.unlock()
        return count
