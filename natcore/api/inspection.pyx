"""What a gateway shows: counters, events, copies of its tables; of one worker, or of all together."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from natcore.log.events cimport EVENT_SLOTS, REST_SLOTS, Event, Events, event_fd_clear
from natcore.workers.locks cimport await_hold, release
from natcore.workers.limits cimport mappings_live, sessions_live
from natcore.api.snapshot cimport (
    BlockRow, MappingRow, PortRow, SessionRow, copy_blocks, copy_mappings, copy_ports, copy_sessions, count_blocks,
)
from natcore.tables.ports cimport PORT_SPACES, Address, ports_in_use
from natcore.api.log_rows cimport Rows
from natcore.base.compiler cimport bswap16, bswap32
from natcore.workers.worker cimport Shared, Worker

cdef enum:
    LOOK_LINES = 65536          # that sessions() reads while a worker waits
    SLOT_BITS = 32              # of a place in all tables: a worker's number and a slot


cdef uint8_t[::1] bytes_of(rows, size_t row_bytes):
    """An array of rows as its bytes: numpy keeps padding without a name, which a typed view of structs cannot have."""
    if rows.itemsize != row_bytes:
        raise ValueError(f"rows={rows.dtype}: allowed are rows of {row_bytes} bytes")
    return rows.view("u1")


cdef struct Sums:               # what counters() tells
    uint64_t verdicts[256]
    uint64_t created
    uint64_t ended
    uint64_t handed_over
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
    """Of a worker or, -1, of all; the caller holds all."""
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
    sums.events_lost, sums.unsolicited_lost = one.events.lost, one.unsolicited.lost
    sums.journal_lost = one.journal.lost + one.journal.apart_lost
    sums.sessions, sums.mappings = sessions_live(one), mappings_live(one)
    for w in range(shared.count):
        if worker >= 0 and w != <uint32_t>worker:
            continue
        one = shared.workers[w]
        for i in range(256):
            sums.verdicts[i] += one.counters[i]
        sums.created += one.sessions.created
        sums.ended += one.sessions.ended
        sums.handed_over += one.handed_over
        sums.clock_backward += one.clock_backward
        if worker >= 0:
            sums.sessions, sums.mappings = one.sessions.slots.live, one.mappings.mapping_slots.live


cdef class Tables(Rows):
    """What Core (_gateway) is built on."""

    def counters(self, int32_t worker=-1):
        """([frames by Verdict], {name: count}), of a worker or, -1, of all. Gauges and what they share are the gateway's."""
        cdef Sums sums
        memset(&sums, 0, sizeof(Sums))
        with nogil:
            self.own()
            sum_up(self.shared, worker, &sums)
            self.disown()
        # one that handed frames over may be below 0, all together are not
        return [<int64_t>sums.verdicts[i] for i in range(256)], {
            "created": sums.created, "ended": sums.ended, "handed_over": sums.handed_over,
            "clock_backward": sums.clock_backward, "generated": sums.generated, "generated_lost": sums.generated_lost,
            "generated_withheld": sums.generated_withheld, "fragments_evicted": sums.fragments_evicted,
            "events_lost": sums.events_lost, "unsolicited_lost": sums.unsolicited_lost,
            "journal_lost": sums.journal_lost, "ports_used": sums.ports_used, "sessions": sums.sessions,
            "mappings": sums.mappings,
        }

    @property
    def event_fd(self):
        """An eventfd, readable while events wait; the core's own, closed with it."""
        return self.worker.events.fd

    def take_events(self):
        """[(ns, reason, subscriber, destination, port, protocol, count, Limit), …], the oldest first."""
        cdef Events* events = self.worker.events
        cdef Event* taken
        cdef Event* event
        cdef uint32_t count = 0, i
        taken = <Event*>malloc((EVENT_SLOTS + REST_SLOTS) * sizeof(Event))
        if taken == NULL:
            raise MemoryError
        with nogil:
            self.own()
            for i in range(EVENT_SLOTS + REST_SLOTS):
                event = &events.slots[i] if i < EVENT_SLOTS else &events.rest[i - EVENT_SLOTS]
                if event.count:
                    taken[count] = event[0]
                    count += 1
                    memset(event, 0, sizeof(Event))
            events.waiting = 0
            event_fd_clear(events.fd)
            self.disown()
        try:
            return sorted((taken[i].at_ns, taken[i].verdict, bswap32(taken[i].subscriber), bswap32(taken[i].destination),
                           bswap16(taken[i].port), taken[i].protocol, taken[i].count, taken[i].limit)
                          for i in range(count))
        finally:
            free(taken)

    @property
    def session_slots(self):
        """Slots that have been used once at least, of all workers: sessions() has no more rows."""
        cdef uint32_t w
        cdef uint64_t slots = 0
        with nogil:
            self.own()
            for w in range(self.shared.count):
                slots += self.shared.workers[w].sessions.slots.fresh
            self.disown()
        return slots

    def sessions(self, rows not None, uint64_t place):
        """Copies live sessions from a place on, 0 at first; (rows filled, the place to go on from, or None: that was all)."""
        cdef uint8_t[::1] raw = bytes_of(rows, sizeof(SessionRow))
        cdef uint32_t room = <uint32_t>(raw.shape[0] // sizeof(SessionRow))
        cdef Worker* worker = self.shared.workers[place >> SLOT_BITS]
        cdef uint32_t slot = <uint32_t>place, filled = 0, last
        with nogil:
            await_hold(worker)                      # this one alone: the others go on
            last = worker.sessions.slots.fresh
            if last - slot > LOOK_LINES:
                last = slot + LOOK_LINES
            if room:
                filled = copy_sessions(worker, <SessionRow*>&raw[0], room, &slot, last)
            last = worker.sessions.slots.fresh
            release(worker)
        if slot < last:
            return filled, (place >> SLOT_BITS << SLOT_BITS) + slot
        place = (place >> SLOT_BITS) + 1
        return filled, place << SLOT_BITS if place < self.shared.count else None

    def mappings(self, rows not None):
        """Copies mappings; rows filled."""
        cdef uint8_t[::1] raw = bytes_of(rows, sizeof(MappingRow))
        cdef uint32_t filled = 0, room = <uint32_t>(raw.shape[0] // sizeof(MappingRow)), w
        with nogil:
            self.own()
            for w in range(self.shared.count):
                if filled < room:
                    filled += copy_mappings(self.shared.workers[w], <MappingRow*>&raw[0] + filled, room - filled)
            self.disown()
        return filled

    def ports(self, rows not None):
        """Copies port use; rows filled."""
        cdef uint8_t[::1] raw = bytes_of(rows, sizeof(PortRow))
        cdef uint32_t filled = 0, room = <uint32_t>(raw.shape[0] // sizeof(PortRow))
        with nogil:
            self.own()
            if room:
                filled = copy_ports(self.worker, <PortRow*>&raw[0], room)
            self.disown()
        return filled

    def blocks(self, rows not None):
        """Copies the port blocks that subscribers have; rows filled."""
        cdef uint8_t[::1] raw = bytes_of(rows, sizeof(BlockRow))
        cdef uint32_t filled = 0, room = <uint32_t>(raw.shape[0] // sizeof(BlockRow))
        with nogil:
            self.own()
            if room:
                filled = copy_blocks(self.worker, <BlockRow*>&raw[0], room)
            self.disown()
        return filled

    @property
    def block_count(self):
        """Port blocks that subscribers have."""
        cdef uint32_t count
        with nogil:
            self.own()
            count = count_blocks(self.worker)
            self.disown()
        return count
