"""What a gateway shows: counters, events, copies of its tables; of one worker, or of all together."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore._events cimport EVENT_SLOTS, Event, event_fd_clear
from natcore._hold cimport await_hold, release
from natcore._limits cimport mappings_live, sessions_live
from natcore._look cimport (
    BlockRow, MappingRow, PortRow, SessionRow, copy_blocks, copy_mappings, copy_ports, copy_sessions, count_blocks,
)
from natcore._ports cimport PORT_SPACES, Address, ports_in_use
from natcore._rows cimport Rows
from natcore.hints cimport bswap16, bswap32
from natcore.state cimport Worker

cdef enum:
    LOOK_LINES = 65536          # that sessions() reads while a worker waits
    SLOT_BITS = 32              # of a place in all tables: a worker's number and a slot


cdef uint8_t[::1] bytes_of(rows, size_t row_bytes):
    """An array of rows as its bytes: numpy keeps padding without a name, which a typed view of structs cannot have."""
    if rows.itemsize != row_bytes:
        raise ValueError(f"rows={rows.dtype}: allowed are rows of {row_bytes} bytes")
    return rows.view("u1")


cdef class Tables(Rows):
    """What Core (_gateway) is built on."""

    def counters(self, int32_t worker=-1):
        """([frames by Verdict], {name: count}), of a worker or, -1, of all. Gauges and what they share are the gateway's."""
        cdef const Worker* one
        cdef uint64_t used = 0
        cdef uint32_t i, space, w
        cdef const Address* address
        self.own()
        verdicts = [0] * 256
        own = dict.fromkeys(("created", "ended", "handed_over", "clock_backward"), 0)
        for w in range(self.shared.count):
            one = self.shared.workers[w]
            if worker < 0 or w == <uint32_t>worker:
                for i in range(256):
                    if one.counters[i]:             # one that handed frames over may be below 0, all together are not
                        verdicts[i] += <int64_t>one.counters[i]
                own["created"] += one.sessions.created
                own["ended"] += one.sessions.ended
                own["handed_over"] += one.handed_over
                own["clock_backward"] += one.clock_backward
        one = self.worker
        for i in range(one.mappings.ports.count):
            address = &one.mappings.ports.addresses[i]
            if address.memory != NULL:
                for space in range(PORT_SPACES):
                    used += ports_in_use(one.mappings.ports, &address.maps[space])
        own.update({
            "generated": one.outbox.generated, "generated_lost": one.outbox.lost, "events_lost": one.events.lost,
            "unsolicited_lost": one.unsolicited.lost, "journal_lost": one.journal.lost, "ports_used": used,
            "sessions": sessions_live(one), "mappings": mappings_live(one),
        })
        if worker >= 0:
            one = self.shared.workers[worker]
            own["sessions"], own["mappings"] = one.sessions.slots.live, one.mappings.mapping_slots.live
        self.disown()
        return verdicts, own

    @property
    def event_fd(self):
        """An eventfd, readable while events wait; the core's own, closed with it."""
        return self.worker.events.fd

    def take_events(self):
        """[(ns, reason, subscriber, destination, port, protocol, count, Limit), …], the oldest first."""
        cdef uint32_t i
        cdef Event* event
        taken = []
        self.own()
        if self.worker.events.waiting:
            for i in range(EVENT_SLOTS):
                event = &self.worker.events.slots[i]
                if event.count:
                    taken.append((event.at_ns, event.verdict, bswap32(event.subscriber), bswap32(event.destination),
                                  bswap16(event.port), event.protocol, event.count, event.limit))
                    memset(event, 0, sizeof(Event))
            self.worker.events.waiting = 0
            event_fd_clear(self.worker.events.fd)
        self.disown()
        return sorted(taken)

    @property
    def session_slots(self):
        """Slots that have been used once at least, of all workers: sessions() has no more rows."""
        cdef uint32_t w
        cdef uint64_t slots = 0
        for w in range(self.shared.count):
            slots += self.shared.workers[w].sessions.slots.fresh
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
        self.own()
        if room:
            filled = copy_ports(self.worker, <PortRow*>&raw[0], room)
        self.disown()
        return filled

    def blocks(self, rows not None):
        """Copies the port blocks that subscribers have; rows filled."""
        cdef uint8_t[::1] raw = bytes_of(rows, sizeof(BlockRow))
        cdef uint32_t filled = 0, room = <uint32_t>(raw.shape[0] // sizeof(BlockRow))
        self.own()
        if room:
            filled = copy_blocks(self.worker, <BlockRow*>&raw[0], room)
        self.disown()
        return filled

    @property
    def block_count(self):
        """Port blocks that subscribers have."""
        return count_blocks(self.worker)
