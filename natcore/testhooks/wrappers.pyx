"""Python wrappers of inline functions, for tests only."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore.log.journal cimport Journal, Record, journal_commit, journal_delete, journal_drain, journal_new, journal_slot
from natcore.tables.entries cimport NoNatRule, RuleSet, SnatRule, dnat_target, no_nat_rule, snat_rule
from natcore.tables.sessions cimport Cold, Session
from natcore.tables.tcp_state cimport TCP_INIT_IN, TCP_INIT_OUT, TCP_PICKED, TCP_STATE, is_reopening, tcp_step
from natcore.workers.locks cimport lock, unlock
from natcore.nat.clock cimport tick
from natcore.nat.pipeline cimport translate
from natcore.nat.prefetch cimport predict_allocation
from natcore.base.checksum cimport checksum, combine, delta16, delta32, fold, update, update_partial
from natcore.base.compiler cimport bswap32
from natcore.base.flow_hash cimport HashKey, flow_hash, has_aes, hash_aes, siphash13
from natcore.frame cimport Frame
from natcore.base.sentinels cimport NONE
from natcore.base.hash_table cimport Cursor, Index, index_begin, index_delete, index_insert, index_new, index_next, index_remove
from natcore.base.pages cimport table_delete, table_new
from natcore.base.chacha20 cimport Random, random32, random_below, random_seed
from natcore.base.freelist cimport Freelist, freelist_init, freelist_give, freelist_take
from natcore.workers.worker cimport Shared, Worker
from natcore.packet.checksum_offload cimport finish_checksum
from natcore.packet.parse cimport Packet, parse


# ---- checksum --------------------------------------------------------------------------------------------------------

def checksum_of(const uint8_t[::1] data not None, uint64_t total=0):
    """RFC 1071 over data as bytes on the wire, 2 of them, on top of total."""
    cdef uint16_t result = checksum(&data[0] if data.shape[0] else NULL, <uint32_t>data.shape[0], total)
    return PyBytes_FromStringAndSize(<const char*>&result, 2)


def finish_checksum_of(bytes frame not None):
    """Completes the layer-4 checksum of the Ethernet frame if it was partial."""
    cdef uint8_t[::1] data = bytearray(frame)
    finish_checksum(&data[0], <uint32_t>data.shape[0])
    return bytes(data)


def fold_of(uint64_t total):
    return fold(total)


def delta16_of(uint16_t old, uint16_t new):
    return delta16(old, new)


def delta32_of(uint32_t old, uint32_t new):
    return delta32(old, new)


def combine_of(uint16_t one, uint16_t other):
    return combine(one, other)


def update_of(uint16_t value, uint16_t delta):
    return update(value, delta)


def update_partial_of(uint16_t total, uint16_t delta):
    return update_partial(total, delta)


# ---- flow ------------------------------------------------------------------------------------------------------------

def siphash13_of(uint64_t low, uint64_t high, uint64_t one, uint64_t other):
    return siphash13(low, high, one, other)


def aes_available():
    """Whether flow_hash uses the AES instructions here."""
    return bool(has_aes())


def hash_aes_of(uint64_t low, uint64_t high, uint64_t one, uint64_t other):
    """In builds without AES instructions: SipHash-1-3."""
    return hash_aes(low, high, one, other)


def flow_hash_of(uint64_t low, uint64_t high, bint aes, uint64_t addresses, uint32_t ports, uint8_t protocol):
    cdef HashKey key
    key.low = low
    key.high = high
    key.aes = aes
    return flow_hash(&key, addresses, ports, protocol)


# ---- random ----------------------------------------------------------------------------------------------------------

cdef class RandomStream:
    """A key stream from a key of 32 bytes."""
    cdef Random random

    def __cinit__(self, bytes key not None):
        if len(key) != 32:
            raise ValueError(f"key must be 32 bytes, got {len(key)}")
        random_seed(&self.random, <const uint8_t*>PyBytes_AS_STRING(key))

    def seek(self, uint32_t counter, nonce):
        """Seeks to a block of RFC 8439. nonce: three words."""
        cdef int i
        self.random.state[12] = counter
        for i in range(3):
            self.random.state[13 + i] = nonce[i]
        self.random.used = 16

    def word(self):
        return random32(&self.random)

    def below(self, uint32_t bound):
        return random_below(&self.random, bound)


# ---- index and free list ---------------------------------------------------------------------------------------------

cdef class IndexTable:
    """An index that owns its buckets."""
    cdef Index index

    def __cinit__(self, uint64_t entries):
        if not index_new(&self.index, entries):
            raise MemoryError(f"{entries} entries")

    def __dealloc__(self):
        index_delete(&self.index)

    @property
    def buckets(self):
        return self.index.count

    def insert(self, uint64_t hash, uint32_t number):
        return bool(index_insert(&self.index, hash, number))

    def remove(self, uint64_t hash, uint32_t number):
        """Removes (hash, number), which must be present."""
        index_remove(&self.index, hash, number)

    def find(self, uint64_t hash):
        """Every candidate number of the hash."""
        cdef Cursor cursor
        cdef uint32_t number
        found = []
        index_begin(&self.index, hash, &cursor)
        while True:
            number = index_next(&self.index, &cursor)
            if number == NONE:
                return found
            found.append(number)

    def buckets_read(self, uint64_t hash):
        """Buckets read by a lookup that accepts no candidate."""
        cdef Cursor cursor
        cdef uint32_t left
        index_begin(&self.index, hash, &cursor)
        left = cursor.left
        while index_next(&self.index, &cursor) != NONE:
            pass
        return left - cursor.left

    def overflows(self):
        """The overflow counts of all buckets."""
        cdef uint32_t i
        return [self.index.buckets[i].overflow for i in range(self.index.count)]


cdef class FreelistTable:
    """A free list over slots of 8 bytes."""
    cdef Freelist freelist
    cdef uint64_t* slots

    def __cinit__(self, uint32_t capacity):
        self.slots = <uint64_t*>table_new(capacity * sizeof(uint64_t))
        if self.slots == NULL:
            raise MemoryError(f"{capacity} slots")
        freelist_init(&self.freelist, self.slots, sizeof(uint64_t), capacity)

    def __dealloc__(self):
        table_delete(self.slots, self.freelist.capacity * sizeof(uint64_t))

    @property
    def live(self):
        return self.freelist.live

    def take(self):
        """A slot, or None."""
        cdef uint32_t slot = freelist_take(&self.freelist)
        return None if slot == NONE else slot

    def give(self, uint32_t slot):
        freelist_give(&self.freelist, slot)


# ---- tcp -------------------------------------------------------------------------------------------------------------

cdef class TcpSession:
    """The TCP part of a session. state: INIT_OUT, INIT_IN or PICKED, as numbers of TcpState."""
    cdef Session session
    cdef uint32_t[2] syn

    def __cinit__(self, uint8_t state, uint8_t timeout_class):
        memset(&self.session, 0, sizeof(Session))
        if state not in (TCP_INIT_OUT, TCP_INIT_IN, TCP_PICKED):
            raise ValueError(f"state={state}")
        self.session.state = state
        self.session.timeout_class = timeout_class

    def step(self, uint32_t direction, uint8_t flags, uint32_t sequence=0, uint32_t acknowledgement=0, uint32_t end=0):
        """A Refresh. end: the sequence number behind the segment."""
        return tcp_step(&self.session, self.syn, direction, flags, sequence, acknowledgement, end)

    @property
    def state(self):
        return self.session.state & TCP_STATE

    @property
    def timeout_class(self):
        return self.session.timeout_class

    @property
    def ack(self):
        return self.session.ack[0], self.session.ack[1]

    @property
    def end(self):
        return self.session.end[0], self.session.end[1]

    def reopens(self, uint8_t flags):
        return bool(is_reopening(&self.session, flags))


# ---- rules and journal -----------------------------------------------------------------------------------------------

def no_nat_entry_of(RuleSet rules not None, uint32_t source, uint32_t destination):
    """The number of the no-NAT entry of two ends, host order; None: there is none."""
    cdef const NoNatRule* rule = no_nat_rule(&rules.compiled, source, destination)
    return None if rule == NULL else rule.entry


def rule_of(RuleSet rules not None, uint32_t source):
    """(entry, [outside addresses]) that covers an inside source, or None."""
    cdef const SnatRule* rule = snat_rule(&rules.compiled, source)
    if rule == NULL:
        return None
    return rule.pool.entry, [rule.pool.addresses[i] for i in range(rule.pool.size)]


def target_of(RuleSet rules not None, uint32_t number, uint64_t hash):
    """The inside address (host order) that a DNAT entry, by its place in the set, has for a remote's hash."""
    return bswap32(dnat_target(&rules.dnat[number], hash))


cdef class JournalRing:
    """A journal that owns its ring."""
    cdef Journal journal

    def __cinit__(self, uint64_t capacity):
        if not journal_new(&self.journal, capacity):
            raise MemoryError(f"{capacity} rows")

    def __dealloc__(self):
        journal_delete(&self.journal)

    def write(self, uint64_t session, bint overflowing=False, uint64_t overflow_limit=0, uint8_t kind=0):
        """Writes a row of the session for the sweep (overflowing) or a packet; whether it fit."""
        cdef Record* row
        self.journal.overflow_limit, self.journal.overflowing = overflow_limit, overflowing
        row = journal_slot(&self.journal, kind)
        if row == NULL:
            return False
        memset(row, 0, sizeof(Record))
        row.session = session
        journal_commit(&self.journal)
        return True

    def drain(self, records, uint64_t number):
        """Into RECORD (count,), numbered from number; how many."""
        cdef uint8_t[::1] raw = records.view("u1")
        return journal_drain(&self.journal, <Record*>&raw[0], <uint64_t>len(records), &number)

    @property
    def lost(self):
        return self.journal.lost

    @property
    def lifecycle_lost(self):
        return self.journal.lifecycle_lost


def record_layout():
    """{field: (offset, bytes)} of the C struct, and its size."""
    cdef Record row
    cdef char* base = <char*>&row
    return {
        "bytes_from_pub": (<char*>&row.bytes_from_pub - base, sizeof(row.bytes_from_pub)),
        "pkts_from_pub": (<char*>&row.pkts_from_pub - base, sizeof(row.pkts_from_pub)),
        "bytes_from_vpc": (<char*>&row.bytes_from_vpc - base, sizeof(row.bytes_from_vpc)),
        "pkts_from_vpc": (<char*>&row.pkts_from_vpc - base, sizeof(row.pkts_from_vpc)),
        "start_time": (<char*>&row.start_time - base, sizeof(row.start_time)),
        "end_time": (<char*>&row.end_time - base, sizeof(row.end_time)),
        "session": (<char*>&row.session - base, sizeof(row.session)),
        "number": (<char*>&row.number - base, sizeof(row.number)),
        "pri_ip": (<char*>&row.pri_ip - base, sizeof(row.pri_ip)),
        "pub_ip": (<char*>&row.pub_ip - base, sizeof(row.pub_ip)),
        "nat_ip": (<char*>&row.nat_ip - base, sizeof(row.nat_ip)),
        "eip": (<char*>&row.eip - base, sizeof(row.eip)),
        "pri_port": (<char*>&row.pri_port - base, sizeof(row.pri_port)),
        "pub_port": (<char*>&row.pub_port - base, sizeof(row.pub_port)),
        "nat_port": (<char*>&row.nat_port - base, sizeof(row.nat_port)),
        "protocol": (<char*>&row.protocol - base, sizeof(row.protocol)),
        "kind": (<char*>&row.kind - base, sizeof(row.kind)),
        "flags": (<char*>&row.flags - base, sizeof(row.flags)),
    }, sizeof(Record)


# ---- a gateway's worker ----------------------------------------------------------------------------------------------

cdef Worker* worker_of(capsule) except NULL:
    return <Worker*>PyCapsule_GetPointer(capsule, "natcore.Worker")


def translate_frame(capsule, bytes frame not None, uint8_t side, uint64_t now_ns, uint16_t flags=0, uint16_t gso_size=0):
    """(verdict, frame) as for a C caller: with FrameFlags, which Python callers cannot set."""
    cdef Frame one
    cdef bytes copy = PyBytes_FromStringAndSize(PyBytes_AS_STRING(frame), len(frame))
    one.data = <uint8_t*>PyBytes_AS_STRING(copy)
    one.length = <uint32_t>len(frame)
    one.flags = flags
    one.gso_size = gso_size
    one.side = side
    lock(worker_of(capsule))
    translate(worker_of(capsule), &one, 1, now_ns)
    unlock(worker_of(capsule))
    return one.verdict, copy[:one.length]


def predict_ports(capsule, list frames not None):
    """The outside ports that Ethernet frames from inside will get by the next allocations, as prefetching predicts them; None:
    not predicted."""
    cdef Worker* worker = worker_of(capsule)
    cdef uint32_t allocations = 0, address = NONE, port = NONE
    cdef Packet packet
    cdef Frame one
    cdef list ports = []
    lock(worker)
    for frame in frames:
        one.data = <uint8_t*>PyBytes_AS_STRING(frame)
        one.length = <uint32_t>len(frame)
        one.flags = 0
        one.side = 0
        parse(&one, &packet, True, &worker.sessions.key)
        allocations += predict_allocation(worker, &packet, allocations, &address, &port)
        ports.append(None if port == NONE else port)
    unlock(worker)
    return ports


def tick_worker(capsule, uint64_t now_ns):
    """Runs a slice of the sweep, as a plane's loop does between batches."""
    lock(worker_of(capsule))
    tick(worker_of(capsule), now_ns)
    unlock(worker_of(capsule))


def preset_counters(capsule, uint32_t slot, uint32_t direction, uint32_t packets, uint32_t bytes):
    """Presets the counters of a session's open window in a direction."""
    cdef Session* session = &worker_of(capsule).sessions.hot[slot]
    session.packets[direction] = packets
    session.bytes[direction] = bytes


def preset_caps(capsule, uint32_t of_mapping, uint32_t of_gateway):
    """Presets the caps of sessions opened from outside, per mapping and per gateway."""
    cdef Shared* shared = worker_of(capsule).shared
    cdef uint32_t i
    for i in range(shared.count):
        shared.workers[i].configuration.mapping_cap = of_mapping
        shared.workers[i].configuration.outside_cap = of_gateway


def line_sizes():
    """Bytes of a session's hot and cold line."""
    return sizeof(Session), sizeof(Cold)
