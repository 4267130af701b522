"""Fuzzing: bytes become a gateway's configuration, frames, and both sides' clocks. A test replays its corpus.

An input is a byte that selects the gateway, then records of RECORD_BYTES, each a packet or a clock step. A record names
endpoints by small numbers, some of which refer to packets translated before: so mutations mostly remain meaningful packets.
What was learned, and the gateway's state, is cleared at the end of the input.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.workers.locks cimport lock, lock_all, unlock, unlock_all
from natcore.nat.clock cimport advance, tick
from natcore.nat.pipeline cimport take_generated, translate
from natcore.base.checksum cimport checksum
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.workers.worker cimport Worker
from natcore.packet.verdict cimport DROP_MALFORMED, INSIDE, OUTBOUND, OUTSIDE
from natcore.base.headers cimport PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP

cdef extern from *:
    """
    #include <stdlib.h>
    """
    void abort() noexcept nogil
    void* malloc(size_t bytes) noexcept nogil
    void free(void* memory) noexcept nogil

cdef enum:
    RECORD_BYTES = 24
    BATCH = 64                  # frames
    GATEWAYS = 64
    LEARNED = 16
    FRAME_BYTES = 1600
    FORGET_NS = 200000000000    # longer than any time-out or hold-down of the gateways

cdef struct Learned:            # a packet that was translated; fields as in the packet
    uint32_t ip[2]
    uint16_t port[2]
    uint8_t protocol

cdef Worker* gateways[GATEWAYS]
cdef uint32_t gateway_count = 0
cdef uint64_t clock_ns[GATEWAYS]
cdef uint32_t[16] places        # addresses in host order: hosts, remotes, gateway, unused


def prepare(list capsules, list addresses):
    """Registers the first worker of each gateway, and 16 addresses; returns the function that runs an input."""
    global gateway_count
    gateway_count = <uint32_t>len(capsules)
    for i, capsule in enumerate(capsules):
        gateways[i] = <Worker*>PyCapsule_GetPointer(capsule, "natcore.Worker")
    for i, address in enumerate(addresses):
        places[i] = address
    return PyCapsule_New(<void*>run_input, "natcore.fuzz", NULL)


def replay(const uint8_t[::1] data not None):
    """One input, as the fuzzer runs it: what must not be aborts the process."""
    if data.shape[0]:
        with nogil:
            run_input(&data[0], data.shape[0])


cdef uint32_t place_of(uint8_t selector, const Learned* learned, uint32_t count, uint32_t which) noexcept nogil:
    """An address, big-endian. Selectors from 128 on: an end of a packet translated before."""
    if selector >= 128 and count:
        return learned[(selector >> 1) % count].ip[which]
    return bswap32(places[selector & 15] + (selector >> 4 & 7))


cdef uint32_t build(const uint8_t* record, const Learned* learned, uint32_t count, bint ethernet,
                    uint8_t* out) noexcept nogil:
    """Builds the frame of a record; its length."""
    cdef uint32_t link = 14 if ethernet else 0, options = (record[12] & 15) % 11 * 4, at, total, data, i
    cdef uint8_t protocol = record[1]
    cdef uint8_t* ip = out + link
    cdef uint16_t ports[2]
    cdef bint inward = record[0] & 8
    cdef const Learned* known = &learned[(record[2] >> 1) % count] if record[2] >= 128 and count else NULL
    memset(out, 0, FRAME_BYTES)
    if ethernet:
        out[0], out[6], out[12] = 2, 2, 8
    memcpy(ports, record + 4, 4)
    ports[0], ports[1] = bswap16(ports[0]), bswap16(ports[1])
    data = 4 * <uint32_t>record[13]
    total = 20 + options + data
    ip[0] = 0x45 + options // 4
    ip[8] = record[11]
    memcpy(ip + 4, record + 16, 2)
    ip[6], ip[7] = record[9], record[10]
    i = place_of(record[2], learned, count, 1 if inward else 0)
    memcpy(ip + 12, &i, 4)
    i = place_of(record[3], learned, count, 0 if inward else 1)
    memcpy(ip + 16, &i, 4)
    if known != NULL and record[0] & 4:         # an answer to, or another packet of, that flow
        protocol = known.protocol
        ports[0], ports[1] = known.port[1], known.port[0]
        if not inward:
            ports[0], ports[1] = known.port[0], known.port[1]
        memcpy(ip + 12, &known.ip[1 if inward else 0], 4)
        memcpy(ip + 16, &known.ip[0 if inward else 1], 4)
    ip[9] = protocol
    for i in range(options):
        ip[20 + i] = record[20 + i % 4]
    at = 20 + options
    if protocol == PROTOCOL_TCP:
        total += 20
        memcpy(ip + at, ports, 4)
        memcpy(ip + at + 4, record + 20, 4)
        memcpy(ip + at + 8, record + 18, 4)
        ip[at + 12] = 0x50
        ip[at + 13] = record[8]
    elif protocol == PROTOCOL_UDP:
        total += 8
        memcpy(ip + at, ports, 4)
        ip[at + 4], ip[at + 5] = <uint8_t>((8 + data) >> 8), <uint8_t>(8 + data)
    elif protocol == PROTOCOL_ICMP:
        total += 8
        ip[at] = record[8]
        ip[at + 1] = record[17]
        memcpy(ip + at + 4, &ports[1 if inward else 0], 2)
        if record[8] == 3 or record[8] == 11 or record[8] == 12 or record[8] == 4:
            total = 20 + options + 8 + quote(record, learned, count, inward, ip + at + 8)
        ports[0] = checksum(ip + at, total - at, 0)
        memcpy(ip + at + 2, ports, 2)
    else:
        total += record[14] & 31
    ip[2], ip[3] = <uint8_t>(total >> 8), <uint8_t>total
    if record[18] and record[0] & 2:            # one header byte, before the checksum is computed
        ip[(record[18] - 1) % 60] = record[19]
    ports[0] = checksum(ip, (ip[0] & 15) * 4 if (ip[0] & 15) >= 5 else 20, 0)
    if ip[10] == 0 and ip[11] == 0:
        memcpy(ip + 10, ports, 2)
    return link + total


cdef uint32_t quote(const uint8_t* record, const Learned* learned, uint32_t count, bint inward, uint8_t* out) noexcept nogil:
    """Builds a quoted packet for an error: one translated before, or its answer; its bytes."""
    cdef const Learned* known
    cdef uint32_t bytes = 28 + (record[14] & 31)
    cdef uint16_t sum
    if count == 0:
        return bytes
    known = &learned[record[15] % count]
    out[0], out[3], out[8], out[9] = 0x45, 60, 60, known.protocol
    memcpy(out + 12, &known.ip[0 if inward else 1], 4)
    memcpy(out + 16, &known.ip[1 if inward else 0], 4)
    memcpy(out + 20, &known.port[0 if inward else 1], 2)
    memcpy(out + 22, &known.port[1 if inward else 0], 2)
    if known.protocol == PROTOCOL_ICMP:
        out[20], out[21], out[22], out[23] = 8 if inward else 0, 0, 0, 0
        memcpy(out + 24, &known.port[0], 2)
    memcpy(out + 28, record + 20, 4)
    sum = checksum(out, 20, 0)
    memcpy(out + 10, &sum, 2)
    return bytes


cdef void learn(const Frame* frame, bint ethernet, Learned* learned, uint32_t* count) noexcept nogil:
    cdef const uint8_t* ip = frame.data + (14 if ethernet else 0)
    cdef Learned* one = &learned[count[0] % LEARNED]
    cdef uint32_t header
    if frame.verdict != OUTBOUND:
        return
    header = (ip[0] & 15) * 4
    if frame.length < (14 if ethernet else 0) + header + 8:
        return
    memcpy(one.ip, ip + 12, 8)
    one.protocol = ip[9]
    memcpy(one.port, ip + header, 4)
    if one.protocol == PROTOCOL_ICMP:
        memcpy(one.port, ip + header + 4, 2)
        one.port[1] = 0
    count[0] += 1


cdef uint64_t received(const Worker* worker) noexcept nogil:
    """Frames with a verdict, of all workers."""
    cdef uint64_t total = 0
    cdef uint32_t w, verdict
    for w in range(worker.shared.count):
        for verdict in range(256):
            total += worker.shared.workers[w].counters[verdict]
    return total


cdef bint is_empty(const Worker* worker) noexcept nogil:
    """Whether no state is left after everything has expired."""
    return (worker.sessions.slots.live == 0 and worker.sessions.filter_slots.live == 0 and worker.sessions.opened_outside == 0
            and worker.mappings.mapping_slots.live == 0 and worker.mappings.subscriber_slots.live == 0
            and worker.fragments[INSIDE].slots.live == 0 and worker.fragments[INSIDE].chunk_slots.live == 0
            and worker.fragments[OUTSIDE].slots.live == 0 and worker.fragments[OUTSIDE].chunk_slots.live == 0)


cdef void send(Worker* first, Frame* frames, uint8_t* memory, uint32_t count, uint32_t turn, uint64_t now_ns,
               Learned* learned, uint32_t* learned_count) noexcept nogil:
    """Translates a batch on one of the workers; each frame in memory of exactly its length."""
    cdef Worker* worker = first.shared.workers[turn % first.shared.count]
    cdef uint64_t before = received(first)
    cdef uint8_t side, cause
    cdef uint32_t i
    lock(worker)
    translate(worker, frames, count, now_ns)
    tick(worker, now_ns)
    unlock(worker)
    if received(first) - before != count:
        abort()                                 # a frame without verdict, or with two
    for i in range(count):
        if OUTBOUND + 5 < frames[i].verdict < DROP_MALFORMED:
            abort()
        learn(&frames[i], first.configuration.ethernet, learned, learned_count)
        free(frames[i].data)
    lock(first)
    while take_generated(first, memory, 65536 + 64, &side, &cause):
        pass
    unlock(first)


cdef int run_input(const uint8_t* data, size_t size) noexcept nogil:
    """Runs one input on one gateway."""
    cdef Frame frames[BATCH]
    cdef Learned learned[LEARNED]
    cdef uint32_t known = 0, count = 0, length, turn = 0, number
    cdef const uint8_t* record
    cdef Worker* first
    cdef uint8_t* frame = <uint8_t*>malloc(65536 + 64)
    cdef uint64_t now_ns
    if size == 0 or gateway_count == 0:
        free(frame)
        return 0
    number = data[0] % gateway_count
    first = gateways[number]
    now_ns = clock_ns[number]
    memset(learned, 0, sizeof(learned))
    record = data + 1
    while record + RECORD_BYTES <= data + size:
        if record[0] & 7 == 7:                  # clock step
            now_ns += (<uint64_t>1 << record[14] % 36)
        else:
            length = build(record, learned, known if known < LEARNED else LEARNED, first.configuration.ethernet, frame)
            if record[0] & 1 and record[14] > 200:
                length = record[15] * length // 256        # truncated
            frames[count].data = <uint8_t*>malloc(length if length else 1)
            memcpy(frames[count].data, frame, length)
            frames[count].length = length
            frames[count].flags = record[0] >> 4 & 15
            frames[count].gso_size = record[15]
            frames[count].side = 1 if record[0] & 8 else 0
            frames[count].verdict = 255
            count += 1
        if count == BATCH or record[0] & 7 == 7 or record[12] & 16:
            send(first, frames, frame, count, turn, now_ns, learned, &known)
            turn += 1 + (record[12] >> 5)
            count = 0
        record += RECORD_BYTES
    send(first, frames, frame, count, turn, now_ns, learned, &known)
    lock_all(first)
    now_ns += FORGET_NS
    advance(first, now_ns, <uint64_t>-1)
    unlock_all(first)
    first.journal.tail = first.journal.head
    first.journal.tail_at = first.journal.head_at
    for length in range(first.shared.count):
        if not is_empty(first.shared.workers[length]):
            abort()
    clock_ns[number] = now_ns
    free(frame)
    return 0
