"""The interface to Python: arguments come checked from python/natcore/gateway.py, tables are returned as copies."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from natcore.workers.configuration cimport FILTER_ADDRESS, Configuration, Settings
from natcore.workers.setup cimport configure, workers_grow
from natcore.workers.entry_changes cimport (
    Transition, count_entries, count_sessions, drain_mappings, end_dead, end_matching, end_sessions, holder_of,
)
from natcore.log.events cimport ADDRESS_ADDED, ADDRESS_REMOVED, event_note, event_fd, event_fd_close, event_fd_set
from natcore.tables.criteria cimport Criteria, criteria_of
from natcore.tables.fragments cimport fragments_new
from natcore.log.flow_table cimport Flows
from natcore.workers.locks cimport free_spinlocks, lock, yield_lock, unlock
from natcore.tables.outbox cimport outbox_bytes, outbox_new, outbox_next, outbox_waiting
from natcore.log.journal cimport journal_new, journal_space_for_bulk
from natcore.tables.mappings cimport (
    Mapping, MappingCursor, Mappings, lists_begin, lists_delete, lists_new, mappings_new, mappings_unpair,
)
from natcore.tables.port_overload cimport overload_new
from natcore.nat.affinity cimport owner_of_frame
from natcore.tables.ports cimport (
    BITMAP_BYTES, HOST_SPACES, PORT_RESERVED, PORTS_OVERLOAD, SPACE_TCP, SPACE_UDP, PortMap, Ports, address_add,
    address_drop, address_find, address_open, address_share, address_unshare, randoms_fill, ports_allow,
    ports_divide,
    ports_new, ports_reserve, ports_taken, ports_unreserve,
)
from natcore.tables.sessions cimport sessions_new
from natcore.workers.table_memory cimport place_address_tables, place_lists, place_tables, tables_of
from natcore.workers.expiry cimport retime, sweep_all
from natcore.tables.syn_holdoff cimport syn_holdoff_new
from natcore.api.inspection cimport Inspection
from natcore.api.log_rows cimport LogRows
from natcore.api.workers cimport Workers
from natcore.nat.clock cimport advance, clock_forward, clock_of_all, finish_held
from natcore.nat.pipeline cimport count_sides, take_generated, translate
from natcore.base.flow_hash cimport has_aes
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32, exchange, load_acquire, store_release
from natcore.base.linked_list cimport Link
from natcore.base.sentinels cimport NONE, NO_LIMIT
from natcore.base.pages cimport table_new
from natcore.base.chacha20 cimport random_seed
from natcore.base.spinlock cimport wait_turn
from natcore.workers.worker cimport IDENTIFICATIONS, Worker, tables_of_all

import array

from natcore.errors import CapacityError, ConfigurationError, Error

cdef enum:
    CHUNK = 512                 # frames per call of the pipeline
    TURNS_WAITED = 1000         # polls, some 15 ms, for a call of translate to end
    END_LINES = 65536           # lines that one call of end() examines with all workers locked
    SLOT_BITS = 32              # of a place: worker number above, slot below

cdef struct Taken:              # a frame that the gateway originates
    uint32_t length
    uint8_t side                # egress Side
    uint8_t cause               # Verdict that caused it


cdef uint32_t take_all(Worker* worker, uint8_t* frames, Taken* taken, uint32_t capacity) noexcept nogil:
    """Copies out waiting frames that the gateway originates, as long as their outbox entries fit into capacity; how many. All
    workers must be locked."""
    cdef uint32_t count = 0, used = 0
    cdef Taken* one
    while outbox_waiting(worker.outbox) and outbox_next(worker.outbox) <= capacity:
        capacity -= outbox_next(worker.outbox)
        one = &taken[count]
        one.length = take_generated(worker, frames + used, outbox_waiting(worker.outbox), &one.side, &one.cause)
        used += one.length
        count += 1
    return count


cdef inline uint32_t used_bytes(uint8_t[:, ::1] frames, uint32_t* length) noexcept nogil:
    """Length of a row, read once: another thread may change the array after it was checked."""
    cdef uint32_t used = load_acquire(length)
    return used if used <= <size_t>frames.shape[1] else <uint32_t>frames.shape[1]


cdef int check_lengths(uint8_t[:, ::1] frames, uint32_t[::1] lengths) except -1:
    """Checks that each row is at most as long as the stride."""
    cdef Py_ssize_t i
    cdef uint32_t longest = 0
    if frames.shape[0] >= 1 << 31 or frames.shape[1] >= 1 << 31:
        raise ConfigurationError(f"frames must have fewer than 2^31 rows and bytes a row, got {frames.shape[0]} and "
                                 f"{frames.shape[1]}")
    for i in range(frames.shape[0]):
        longest = lengths[i] if lengths[i] > longest else longest
    for i in range(frames.shape[0] if longest > <size_t>frames.shape[1] else 0):
        if lengths[i] > <size_t>frames.shape[1]:
            raise ConfigurationError(f"lengths[{i}] must be at most {frames.shape[1]}, the stride of frames, got {lengths[i]}")
    return 0


cdef bint overlap(const void* one, size_t one_bytes, const void* other, size_t other_bytes) noexcept:
    """Whether two contiguous arrays overlap."""
    return <const char*>one < <const char*>other + other_bytes and <const char*>other < <const char*>one + one_bytes


cdef int check_apart(uint8_t[:, ::1] frames, uint32_t[::1] lengths, const uint8_t[::1] sides, uint8_t[::1] out) except -1:
    """Checks that arrays written by a call overlap no other array of it."""
    cdef const void* places[4]
    cdef size_t sizes[4]
    cdef int i, j
    if frames.shape[0] == 0:
        return 0
    places[0] = &frames[0, 0]
    places[1] = &lengths[0]
    places[2] = &out[0]
    places[3] = NULL
    if sides is not None:
        places[3] = &sides[0]
    sizes[0] = frames.shape[0] * frames.shape[1]
    sizes[1] = 4 * lengths.shape[0]
    sizes[2] = out.shape[0]
    sizes[3] = 0 if sides is None else sides.shape[0]
    for i in range(3):
        for j in range(i + 1, 4):
            if sizes[i] and sizes[j] and overlap(places[i], sizes[i], places[j], sizes[j]):
                names = ("frames", "lengths", "out", "side")
                raise ConfigurationError(f"{names[j]} must not share memory with {names[i]}: pass separate arrays")
    return 0


cdef void translate_rows(Worker* worker, uint8_t[:, ::1] frames, uint32_t[::1] lengths, const uint8_t[::1] sides, uint8_t side,
                         const uint64_t[::1] nows, uint64_t now_ns, uint8_t[::1] verdicts, uint32_t done,
                         uint32_t last) noexcept nogil:
    """Translates rows done to last - 1 on one worker."""
    cdef Frame batch[CHUNK]
    cdef uint32_t count, i
    cdef uint64_t at
    lock(worker)
    if nows is None:
        now_ns = clock_forward(worker, now_ns)
    while done < last:
        count = last - done if last - done < CHUNK else CHUNK
        at = now_ns if nows is None else nows[done]
        for i in range(count):
            if nows is not None and nows[done + i] != at:
                count = i
                break
            batch[i].data = &frames[done + i, 0]
            batch[i].length = used_bytes(frames, &lengths[done + i])
            batch[i].flags = 0
            batch[i].side = side if sides is None else sides[done + i] & 1
        if nows is not None and at < clock_of_all(worker):
            worker.clock_backward += count - 1      # translate counts one per batch
        translate(worker, batch, count, at)
        count_sides(worker, batch, count)
        for i in range(count):
            lengths[done + i] = batch[i].length
            verdicts[done + i] = batch[i].verdict
        done += count
        yield_lock(worker)
    unlock(worker)


cdef void translate_steered(Worker* first, uint8_t[:, ::1] frames, uint32_t[::1] lengths, const uint8_t[::1] sides,
                            uint8_t side, const uint64_t[::1] nows, uint64_t now_ns, uint8_t[::1] verdicts) noexcept nogil:
    """Translates all rows in order, each on the worker that seems to own it, as predicted before the rows ahead are done."""
    cdef uint32_t total = <uint32_t>frames.shape[0], done = 0, last = 0, owner = 0, before = 0
    cdef Frame one
    if nows is None:                                # once, not for each run of rows
        lock(first)
        now_ns = clock_forward(first, now_ns)
        unlock(first)
    while last < total:
        one.data = &frames[last, 0]
        one.length = used_bytes(frames, &lengths[last])
        one.flags = 0
        one.side = side if sides is None else sides[last] & 1
        lock(first)                           # no change of entries meanwhile
        owner = owner_of_frame(first, &one)
        unlock(first)
        if last > done and owner != before:
            translate_rows(first.shared.workers[before], frames, lengths, sides, side, nows, now_ns, verdicts, done, last)
            done = last
        before = owner
        last += 1
    translate_rows(first.shared.workers[before], frames, lengths, sides, side, nows, now_ns, verdicts, done, total)


cdef void free_owner(object capsule) noexcept:
    """Releases the capsule's reference to its gateway."""
    Py_XDECREF(<PyObject*>PyCapsule_GetContext(capsule))


cdef inline bint has_quotas(const Configuration* values) noexcept nogil:
    """Whether a subscriber's sessions or ports are limited."""
    return values.sessions_per_subscriber != NO_LIMIT or values.ports_per_subscriber != NO_LIMIT


cdef class Core:
    def __cinit__(self, Settings settings not None, *, uint32_t max_sessions, uint32_t max_mappings, uint32_t max_subscribers,
                  uint32_t max_addresses, uint64_t records, bytes hash_key not None, bytes random_key not None,
                  port_ranges, uint32_t block_size, int64_t epoch_ns, uint32_t workers, link_addresses, mtus,
                  uint32_t huge_pages, int32_t numa_node, uint64_t memory_bytes, str memory_name not None):
        """Allocates the tables, untouched. hash_key: 16 bytes; random_key: 32 bytes. block_size: 0: no port blocks.
        memory_bytes: available in total."""
        cdef const Configuration* values = &settings.values
        cdef Worker* worker
        cdef uint32_t i
        self.workers = Workers(values.filtering[SPACE_TCP] == FILTER_ADDRESS or values.filtering[SPACE_UDP] == FILTER_ADDRESS)
        self.shared, self.worker = self.workers.shared, self.workers.first
        self.log_rows, self.inspection = LogRows(self.workers), Inspection(self.workers)
        worker = self.worker
        worker.fragments = fragments_new()
        if not (worker.fragments != NULL and sessions_new(&worker.sessions, max_sessions, self.workers.filters)
                and mappings_new(&worker.mappings, max_mappings, max_subscribers, block_size > 0 or has_quotas(values))
                and ports_new(worker.mappings.ports, max_addresses)
                and journal_new(worker.journal, records) and outbox_new(worker.outbox)
                and syn_holdoff_new(worker.syn_holdoff)):
            raise CapacityError(f"max_sessions={max_sessions}: no address space for the tables")
        worker.identifications = self.shared.identifications = <uint32_t*>table_new(IDENTIFICATIONS * sizeof(uint32_t))
        if worker.identifications == NULL:
            raise CapacityError("out of memory for a gateway")
        memcpy(&worker.sessions.key.low, PyBytes_AS_STRING(hash_key), 8)
        memcpy(&worker.sessions.key.high, PyBytes_AS_STRING(hash_key) + 8, 8)
        worker.sessions.key.aes = has_aes()
        worker.mappings.key = worker.mappings.ports.key = worker.sessions.key
        worker.fragments[0].key = worker.fragments[1].key = worker.sessions.key
        random_seed(&worker.mappings.ports.random, <const uint8_t*>PyBytes_AS_STRING(random_key))
        randoms_fill(worker.mappings.ports)
        for first, last in port_ranges:
            ports_allow(worker.mappings.ports, first, last)
        ready = block_size == 0 or ports_divide(worker.mappings.ports, block_size, values.blocks > 0)
        if values.port_policy == PORTS_OVERLOAD:
            ready = overload_new(&worker.mappings.ports.overload, max_mappings)
        if not ready:
            raise CapacityError(f"max_mappings={max_mappings}: no address space for the tables")
        if block_size and values.blocks:
            worker.mappings.ports.unit = block_size
        worker.sessions.epoch_ns = epoch_ns
        for i in range(2):
            worker.links.address[i] = bswap32(link_addresses[i])
            worker.links.mtu[i] = mtus[i]
        if not workers_grow(self.shared, workers, self.workers.filters):
            raise CapacityError(f"workers={workers}: no address space for {max_sessions} sessions each")
        configure(self.shared, values)
        self.placement.huge_pages, self.placement.node = huge_pages, numa_node
        place_tables(worker, &self.placement, memory_bytes, memory_name)

    @property
    def now_ns(self):
        """The gateway's clock."""
        return clock_of_all(self.worker)

    # ---- one caller translates on a worker at a time -----------------------------------------------------------------------

    def claim(self, int32_t worker=-1):
        """Reserves a worker (-1: all) for the caller's translation; Error if another call or plane has it."""
        cdef uint32_t w, taken
        for w in range(self.shared.count):
            if (worker < 0 or w == <uint32_t>worker) and exchange(&self.translating[w], 1):
                for taken in range(w if worker < 0 else 0):
                    store_release(&self.translating[taken], 0)
                if load_acquire(&self.closing):
                    raise Error("the gateway is closed")
                raise Error("the worker is translating already: one call or one plane at a time")
        if load_acquire(&self.closing):
            self.unclaim(worker)
            raise Error("the gateway is closed")

    def claim_forever(self):
        """Prevents further translation; whether calls in progress have ended. Waits some ms for them; call it again if not."""
        cdef uint32_t w, turn
        cdef bint done = True
        store_release(&self.closing, 1)
        with nogil:
            for w in range(self.shared.count):
                turn = 0
                while load_acquire(&self.translating[w]) and turn < TURNS_WAITED:
                    wait_turn(turn)
                    turn += 1
                done = done and not load_acquire(&self.translating[w])
        return done

    def unclaim(self, int32_t worker=-1):
        cdef uint32_t w
        for w in range(self.shared.count):
            if worker < 0 or w == <uint32_t>worker:
                store_release(&self.translating[w], 0)

    def worker_capsule(self, int64_t worker=0, owner=None):
        """A capsule "natcore.Worker" with the Worker*. It keeps the owner alive, or this core."""
        if not 0 <= worker < self.shared.count:
            raise ConfigurationError(f"worker must be between 0 and {self.shared.count - 1}, got {worker}")
        if owner is None:
            owner = self
        capsule = PyCapsule_New(self.shared.workers[worker], "natcore.Worker", free_owner)
        PyCapsule_SetContext(capsule, <void*>owner)
        Py_INCREF(owner)
        return capsule

    def forked(self, bytes key):
        """In a forked child: frees the locks of the parent's other threads, reseeds port randomness (key: 32 bytes, or None)
        and opens an eventfd of its own. False: a thread was using the tables or reading the flow log, and they may be
        inconsistent."""
        cdef uint32_t w
        cdef Flows* flows = self.worker.flows
        cdef bint whole = flows == NULL or not flows.spin.taken
        cdef int fd = event_fd()
        event_fd_close(self.worker.events.fd)           # the parent keeps its own
        self.worker.events.fd = fd
        if self.worker.events.waiting:
            event_fd_set(fd)
        self.log_rows.forked()
        if key is not None:
            random_seed(&self.worker.mappings.ports.random, <const uint8_t*>PyBytes_AS_STRING(key))
            randoms_fill(self.worker.mappings.ports)
        for w in range(self.shared.count):
            whole = whole and not self.shared.workers[w].locked and not self.translating[w]
            self.shared.workers[w].locked = self.shared.workers[w].waiters = self.translating[w] = 0
        self.shared.all_locked = False
        free_spinlocks(self.shared)
        if flows != NULL:
            flows.spin.taken = flows.users = 0
        return whole and fd >= 0

    @property
    def port_unit(self):
        """Consecutive ports that the same worker prefers."""
        return self.worker.mappings.ports.unit

    def tables(self):
        """{table: bytes when full}; "port maps" are those of all outside addresses."""
        return tables_of(self.worker)               # reads only what changes with the entries

    # ---- packets ----------------------------------------------------------------------------------------------------

    def translate(self, uint8_t[:, ::1] frames not None, uint32_t[::1] lengths not None, const uint8_t[::1] sides,
                  uint8_t side, const uint64_t[::1] nows, uint64_t now_ns, uint8_t[::1] verdicts not None,
                  int32_t worker=-1):
        """Translates rows in place. sides, nows: one per row, or None: side and now_ns for all. worker: -1: the owner of each
        row."""
        cdef uint32_t total = <uint32_t>frames.shape[0]
        check_lengths(frames, lengths)
        check_apart(frames, lengths, sides, verdicts)
        if self.shared.count == 1:
            worker = 0
        self.claim(worker)
        try:
            with nogil:
                if worker >= 0:
                    translate_rows(self.shared.workers[worker], frames, lengths, sides, side, nows, now_ns, verdicts, 0, total)
                else:
                    translate_steered(self.worker, frames, lengths, sides, side, nows, now_ns, verdicts)
        finally:
            self.unclaim(worker)

    def translate_one(self, const uint8_t[::1] frame not None, uint8_t side, uint64_t now_ns, int32_t worker=-1):
        """(verdict, frame after translation). worker: -1: the owner."""
        cdef Frame one
        cdef Worker* who
        cdef bytes copy = PyBytes_FromStringAndSize(<const char*>&frame[0] if frame.shape[0] else NULL, frame.shape[0])
        one.data = <uint8_t*>PyBytes_AS_STRING(copy)
        one.length = <uint32_t>frame.shape[0]
        one.flags = 0
        one.side = side
        if worker < 0 and self.shared.count > 1:
            with nogil:
                lock(self.worker)
                worker = <int32_t>owner_of_frame(self.worker, &one)
                unlock(self.worker)
        worker = max(worker, 0)
        who = self.shared.workers[worker]
        self.claim(worker)
        try:
            with nogil:
                lock(who)
                translate(who, &one, 1, now_ns)
                count_sides(who, &one, 1)
                unlock(who)
        finally:
            self.unclaim(worker)
        return one.verdict, copy[:one.length]

    def owners(self, uint8_t[:, ::1] frames not None, uint32_t[::1] lengths not None, const uint8_t[::1] sides, uint8_t side,
               uint8_t[::1] out not None):
        """Writes the owning worker of each row to out. sides: one per row, or None: side for all."""
        cdef uint32_t i
        cdef Frame one
        check_lengths(frames, lengths)
        with nogil:
            self.workers.lock()
            for i in range(<uint32_t>frames.shape[0]):
                one.data = &frames[i, 0]
                one.length = used_bytes(frames, &lengths[i])
                one.flags = 0
                one.side = side if sides is None else sides[i] & 1
                out[i] = <uint8_t>owner_of_frame(self.worker, &one)
            self.workers.unlock()

    def advance(self, uint64_t now_ns, bint losing=False):
        """Expires everything due by now_ns, as far as the journal has space; whether that was all.

        losing: complete; rows without space are lost and counted.
        """
        cdef bint complete
        with nogil:
            self.workers.lock()
            complete = advance(self.worker, now_ns, <uint64_t>-1 if losing else journal_space_for_bulk(self.worker.journal))
            self.workers.unlock()
        return complete

    def take_generated(self):
        """[(frame, egress side, verdict that caused it), …]"""
        cdef uint32_t capacity, used, count
        cdef uint8_t* frames
        cdef Taken* taken
        with nogil:
            self.workers.lock()
            capacity = outbox_bytes(self.worker.outbox)
            self.workers.unlock()
        if capacity == 0:
            return []
        frames = <uint8_t*>malloc(capacity)
        taken = <Taken*>malloc(capacity)                # an outbox entry is larger than a Taken
        try:
            if frames == NULL or taken == NULL:
                raise MemoryError
            with nogil:
                self.workers.lock()
                count = take_all(self.worker, frames, taken, capacity)
                self.workers.unlock()
            used = 0
            rows = []
            for i in range(count):
                rows.append((PyBytes_FromStringAndSize(<const char*>&frames[used], taken[i].length), taken[i].side,
                             taken[i].cause))
                used += taken[i].length
            return rows
        finally:
            free(frames)
            free(taken)

    # ---- entries ---------------------------------------------------------------------------------------------------------

    def add_address(self, uint32_t ip, uint32_t eip):
        """Adds a reference to the outside address ip (host order), creating it if new; its index."""
        cdef uint32_t number
        with nogil:
            self.workers.lock()
            number = address_add(self.worker.mappings.ports, bswap32(ip), eip)
            self.workers.unlock()
        if number == NONE:
            raise CapacityError(f"outside addresses are limited to {self.worker.mappings.ports.capacity:,}")
        try:
            place_address_tables(self.worker, &self.placement, number)
        except Error:
            self.drop_address(number)
            raise
        return number

    def find_address(self, uint32_t ip):
        """The index of an outside address (host order); None: it is none."""
        cdef uint32_t number
        with nogil:
            self.workers.lock()
            number = address_find(self.worker.mappings.ports, bswap32(ip))
            self.workers.unlock()
        return None if number == NONE else number

    def place_address(self, uint32_t number, uint32_t ip, uint32_t eip):
        """Adds the new outside address ip (host order) under an unused number, without a reference yet; False: either is
        used."""
        cdef Ports* ports = self.worker.mappings.ports
        cdef bint unused = False, done = False
        with nogil:
            self.workers.lock()
            unused = (number < ports.capacity and (number >= ports.count or ports.addresses[number].memory == NULL)
                      and address_find(ports, bswap32(ip)) == NONE)
            done = unused and address_open(ports, number, bswap32(ip), eip)
            if done:
                ports.addresses[number].references = 0
            self.workers.unlock()
        if unused and not done:
            raise CapacityError("out of memory for an outside address")
        if done:
            place_address_tables(self.worker, &self.placement, number)
        return done

    def drop_address(self, uint32_t number):
        """Drops a reference to an outside address. Its mappings must have ended."""
        cdef uint32_t w
        with nogil:
            self.workers.lock()
            if address_drop(self.worker.mappings.ports, number):
                for w in range(self.shared.count):
                    mappings_unpair(&self.shared.workers[w].mappings, number)
            self.workers.unlock()

    def swap(self, Transition after not None, uint64_t now_ns, Settings settings=None, eips=()):
        """Puts the rule set into force, whole, with settings that change, and ends what may not stay: one moment for the
        packets. eips: (index of an outside address, its EIP in host order) from then on. How many ended."""
        cdef uint32_t[::1] addressed = array.array("I", [number for pair in eips for number in pair] + [0, 0])
        cdef uint32_t pairs = <uint32_t>len(eips), i
        cdef const Configuration* new = NULL if settings is None else &settings.values
        cdef uint64_t ended = 0
        cdef uint32_t w
        with nogil:
            self.workers.lock()
            now_ns = clock_forward(self.worker, now_ns)
            for w in range(self.shared.count):
                self.shared.workers[w].rules = &after.rules.compiled
            if after.count or after.range_count or new != NULL:
                end_dead(self.worker, now_ns)       # what is dead ended before, at its deadline
            if new != NULL:
                finish_held(self.worker, now_ns)
                for w in range(self.shared.count):
                    retime(&self.shared.workers[w].sessions, new.timeout_ms, <uint32_t>(now_ns // 1000000))
                configure(self.shared, new)
            if after.count or after.range_count:
                ended = end_sessions(self.worker, after, now_ns)
            if after.drains:
                drain_mappings(self.worker, after)
            for i in range(pairs):                  # at last: what has just ended had the address with the EIP before
                self.shared.ports.addresses[addressed[2 * i]].eip = addressed[2 * i + 1]
            self.workers.unlock()
        self.rules = after.rules                    # drops the old set while no worker is locked
        return ended

    def prepare(self, Settings settings not None):
        """Allocates what settings need beyond those in force: quotas, lists of each subscriber's mappings."""
        if has_quotas(&settings.values):
            self.keep_lists()

    def keep_lists(self):
        """Keeps lists of each subscriber's mappings from now on."""
        cdef Mappings* table
        cdef Link* by_subscriber
        cdef MappingCursor* cursors
        cdef uint32_t w
        for w in range(self.shared.count):
            table = &self.shared.workers[w].mappings
            if table.by_subscriber != NULL:         # only changes of the gateway, one at a time, set it
                continue
            if not lists_new(table, &by_subscriber, &cursors):
                raise CapacityError("out of memory for lists of subscribers' mappings")
            try:
                place_lists(table, by_subscriber, cursors, &self.placement)
            except Error:
                lists_delete(table, by_subscriber, cursors)
                raise
            with nogil:
                self.workers.lock()
                lists_begin(table, by_subscriber, cursors)
                self.workers.unlock()

    def preview(self, Transition after not None):
        """What `swap` would do: how many sessions it would keep, drain, end."""
        cdef uint64_t kept = 0, drained = 0, ended = 0
        with nogil:
            self.workers.lock()
            count_sessions(self.worker, after, &kept, &drained, &ended)
            self.workers.unlock()
        return kept, drained, ended

    def count_all(self, uint64_t[::1] counts not None):
        """Adds each entry's sessions to counts[entry]."""
        if counts.shape[0]:
            with nogil:
                self.workers.lock()
                count_entries(self.worker, &counts[0], <uint64_t>counts.shape[0])
                self.workers.unlock()

    def reserve(self, uint32_t address, uint32_t space, uint32_t first, uint32_t last, uint64_t now_ns, bint look=False):
        """Reserves ports, or with look only checks. None, or the conflict: (port, inside address, inside port) of a live
        mapping, (port, 0, 0) of an entry."""
        cdef uint32_t port, inside_ip = 0
        cdef uint16_t inside_port = 0
        cdef Ports* ports = self.worker.mappings.ports
        cdef PortMap* map = &ports.addresses[address].maps[space]
        cdef const Mapping* holder
        with nogil:
            self.workers.lock()
            port = ports_taken(map, first, last)
            if port != NONE and map.cells[port] != PORT_RESERVED:     # dead mappings do not count
                if now_ns > clock_of_all(self.worker):
                    clock_forward(self.worker, now_ns)
                end_dead(self.worker, clock_of_all(self.worker))
                port = ports_taken(map, first, last)
            if port == NONE:
                if not look:
                    ports_reserve(ports, map, first, last)
            elif map.cells[port] != PORT_RESERVED:
                holder = holder_of(self.worker, address, space, port)
                inside_ip, inside_port = bswap32(holder.inside_ip), bswap16(holder.inside_port)
            self.workers.unlock()
        return None if port == NONE else (port, inside_ip, inside_port)

    def unreserve(self, uint32_t address, uint32_t space, uint32_t first, uint32_t last):
        cdef Ports* ports = self.worker.mappings.ports
        with nogil:
            self.workers.lock()
            ports_unreserve(ports, &ports.addresses[address].maps[space], first, last)
            self.workers.unlock()

    def share_address(self, uint32_t ip, bytes wanted):
        """The gateway's host has an outside address (host order) too, and these of its ports: bits of TCP, then of UDP, 64-bit
        words; None: the address is the gateway's alone. A port in use by a mapping or an entry is the host's after a later
        call. Nothing happens where the address is not there."""
        cdef bint done = True
        cdef uint32_t address
        cdef const char* bits = NULL
        if wanted is not None:
            if len(wanted) != HOST_SPACES * BITMAP_BYTES:
                raise ValueError(f"wanted must be {HOST_SPACES * BITMAP_BYTES} bytes, got {len(wanted)}")
            bits = wanted
        with nogil:
            self.workers.lock()
            address = address_find(self.worker.mappings.ports, bswap32(ip))
            if address == NONE:
                pass
            elif bits == NULL:
                address_unshare(self.worker.mappings.ports, address)
            else:
                done = address_share(self.worker.mappings.ports, address, <const uint64_t*>bits)
            self.workers.unlock()
        if not done:
            raise CapacityError("out of memory for a shared address")

    def note_address(self, uint32_t address, bint came):
        """An event: the outside interface has an address (host order) that the gateway uses from now on, or no more."""
        with nogil:
            self.workers.lock()
            event_note(self.worker.events, ADDRESS_ADDED if came else ADDRESS_REMOVED, 0, bswap32(address), 0, 0, 0,
                       clock_of_all(self.worker))
            self.workers.unlock()

    def set_mtu(self, uint32_t side, uint32_t mtu):
        cdef uint32_t w
        with nogil:
            self.workers.lock()
            for w in range(self.shared.count):
                self.shared.workers[w].links.mtu[side] = mtu
            self.workers.unlock()

    def set_reverse_path_filter(self, bint on):
        """Whether packets from outside with an inside source are dropped whatever the policy, as between interfaces."""
        cdef uint32_t w
        with nogil:
            self.workers.lock()
            for w in range(self.shared.count):
                self.shared.workers[w].links.reverse_path_filter = on
            self.workers.unlock()

    def set_link_address(self, uint32_t side, uint32_t address):
        """Sets the gateway's own address of a side, host order, 0: none."""
        cdef uint32_t w
        with nogil:
            self.workers.lock()
            for w in range(self.shared.count):
                self.shared.workers[w].links.address[side] = bswap32(address)
            self.workers.unlock()

    def end_dead(self, uint64_t now_ns, bint losing=False):
        """Ends what is dead by now_ns, at its deadline, as far as the journal has space (losing: regardless); (whether that was
        all, number of the newest session)."""
        cdef bint complete
        cdef uint64_t newest
        with nogil:
            self.workers.lock()
            now_ns = clock_forward(self.worker, now_ns)
            complete = sweep_all(tables_of_all(self.worker), now_ns,
                                 <uint64_t>-1 if losing else journal_space_for_bulk(self.worker.journal))
            newest = self.worker.sessions.created if self.shared.count == 1 else self.shared.created
            self.workers.unlock()
        return complete, newest

    def end(self, addresses, masks, ports, int protocol, uint32_t entry, uint64_t newest, uint64_t place, bint losing=False):
        """Ends sessions that meet the criteria (see tables/criteria.pxd), up to session number newest, from a place on, 0 at
        first, as far as the journal has space (losing: regardless).

        (how many, place to continue from, or None: done). Packets are translated and rows drained in between calls.
        """
        cdef Criteria criteria = criteria_of(addresses, masks, ports, protocol, entry)
        cdef Worker* worker = self.shared.workers[place >> SLOT_BITS]
        cdef uint32_t slot = <uint32_t>place, last
        cdef uint64_t ended
        with nogil:
            self.workers.lock()
            last = worker.sessions.slots.fresh
            ended = end_matching(worker, &criteria, newest, clock_of_all(worker), &slot, min(last, slot + END_LINES),
                                 losing)
            self.workers.unlock()
        if slot < last:
            return ended, (place >> SLOT_BITS << SLOT_BITS) + slot
        place = (place >> SLOT_BITS) + 1
        return ended, place << SLOT_BITS if place < self.shared.count else None
