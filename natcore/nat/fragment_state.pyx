"""Saves and restores datagrams in progress with their frames that wait, which are parsed anew: a file may hold anything."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.frame cimport Frame
from natcore.packet.parse cimport KIND_FRAGMENT, Packet, parse_network
from natcore.packet.verdict cimport INSIDE, OUTSIDE, PENDING
from natcore.tables.fragments cimport (
    DATAGRAM_BROKEN, DATAGRAM_UNITS, DATAGRAM_WAITING, RANGES_KEPT, Datagram, Fragments, datagram_copy_held, datagram_find,
    datagram_hold, datagram_next_length, datagram_open, datagram_set_state,
)
from natcore.workers.state_rows cimport (
    SECTION_DATAGRAM_UNITS, SECTION_DATAGRAMS, SECTION_FRAGMENTS, SECTION_FRAME_BYTES, SECTION_FRAME_LENGTHS, SECTION_GATEWAY,
    DatagramState, GatewayState, next_row, refuse,
)
from natcore.base.compiler cimport bswap16
from natcore.base.headers cimport IPV4_OFFSET
from natcore.base.sentinels cimport NONE


cdef void give_words(Rows* section, const uint64_t* words, uint64_t count) noexcept nogil:
    if section.count + count <= section.capacity and count:
        memcpy(section.rows + section.count * 8, words, count * 8)
    section.count += count


cdef void give_datagram(const Fragments* table, uint32_t number, Rows* sections) noexcept nogil:
    """A datagram in progress, with what was received of it and the frames that wait."""
    cdef const Datagram* datagram = &table.datagrams[number]
    cdef Rows* bytes = &sections[SECTION_FRAME_BYTES]
    cdef DatagramState* row = <DatagramState*>next_row(&sections[SECTION_DATAGRAMS], sizeof(DatagramState))
    cdef uint32_t at = datagram.held, length
    cdef uint32_t* told
    if row != NULL:
        memset(row, 0, sizeof(DatagramState))
        row.addresses, row.since_ms, row.session = datagram.addresses, datagram.since_ms, datagram.session
        row.ports, row.sequence, row.identification = datagram.ports, datagram.sequence, datagram.identification
        row.units, row.high, row.end, row.sent_as = datagram.units, datagram.high, datagram.end, datagram.sent_identification
        row.ranges, row.held = datagram.ranges, datagram.held_count
        row.protocol, row.side, row.state, row.verdict = datagram.protocol, datagram.side, datagram.state, datagram.verdict
    give_words(&sections[SECTION_DATAGRAM_UNITS], table.seen + <size_t>number * (DATAGRAM_UNITS // 64),
               (datagram.high + 63) // 64)
    give_words(&sections[SECTION_FRAGMENTS], <const uint64_t*>(table.ranges + <size_t>number * RANGES_KEPT), datagram.ranges)
    while at != NONE:
        told = <uint32_t*>next_row(&sections[SECTION_FRAME_LENGTHS], 4)
        length = datagram_next_length(table, at)
        if told != NULL:
            told[0] = length
        at = datagram_copy_held(table, at, bytes.rows + bytes.count if bytes.count + length <= bytes.capacity else NULL)
        bytes.count += length


cdef void give_side(const Fragments* table, Rows* sections) noexcept nogil:
    """The datagrams of a side, from the oldest to the newest."""
    cdef uint32_t number = table.newest
    if number == NONE:
        return
    while True:
        number = table.by_age[number].previous
        give_datagram(table, number, sections)
        if number == table.newest:
            return


cdef void give_datagrams(const Worker* first, Rows* sections) noexcept nogil:
    """The sections of datagrams in progress. Call it with all workers locked."""
    give_side(&first.fragments[INSIDE], sections)
    give_side(&first.fragments[OUTSIDE], sections)


cdef bint is_fragment_of(uint8_t* data, uint32_t length, const DatagramState* row, bint ethernet) noexcept nogil:
    """Whether a held frame is a later fragment of the datagram, as it was checked when it came."""
    cdef Frame frame
    cdef Packet packet
    frame.data, frame.length, frame.flags, frame.side = data, length, 0, row.side
    if parse_network(&frame, &packet, ethernet) != PENDING or packet.kind != KIND_FRAGMENT:
        return False
    return (packet.addresses == row.addresses and packet.protocol == row.protocol
            and packet.ip.identification == row.identification and frame.length == length
            and packet.total_length > <uint32_t>(packet.l4 - <uint8_t*>packet.ip)
            and (bswap16(packet.ip.fragment) & IPV4_OFFSET) * 8 + packet.total_length <= 0xFFFF)


cdef bint take_frames(Fragments* table, uint32_t number, const DatagramState* row, const Rows* sections, uint64_t* frame_at,
                      uint64_t* byte_at, bint ethernet) noexcept nogil:
    """The frames of a datagram that wait; False: they are none of its."""
    cdef uint32_t _frame, length
    if row.held and row.state != DATAGRAM_WAITING or frame_at[0] + row.held > sections[SECTION_FRAME_LENGTHS].count:
        return False
    for _frame in range(row.held):
        length = (<const uint32_t*>sections[SECTION_FRAME_LENGTHS].rows)[frame_at[0]]
        if length == 0 or byte_at[0] + length > sections[SECTION_FRAME_BYTES].count:
            return False
        if not (is_fragment_of(sections[SECTION_FRAME_BYTES].rows + byte_at[0], length, row, ethernet)
                and datagram_hold(table, number, sections[SECTION_FRAME_BYTES].rows + byte_at[0], length)):
            return False
        frame_at[0] += 1
        byte_at[0] += length
    return True


cdef bint take_datagrams(Worker* first, const Rows* sections, const Later* later, Damage* damage) noexcept nogil:
    """Datagrams in progress, and their frames that wait."""
    cdef const DatagramState* row = <const DatagramState*>sections[SECTION_DATAGRAMS].rows
    cdef const GatewayState* gateway = <const GatewayState*>sections[SECTION_GATEWAY].rows
    cdef uint64_t i, word_at = 0, range_at = 0, frame_at = 0, byte_at = 0, later_ms = 0
    cdef uint32_t number, words
    cdef Fragments* table
    cdef Datagram* datagram
    if later.frozen:
        later_ms = later.gap_ns // 1000000
    for i in range(sections[SECTION_DATAGRAMS].count):
        words = (row[i].high + 63) // 64
        if (row[i].side > 1 or row[i].state > DATAGRAM_BROKEN or row[i].high > DATAGRAM_UNITS or row[i].ranges > RANGES_KEPT
                or word_at + words > sections[SECTION_DATAGRAM_UNITS].count
                or range_at + row[i].ranges > sections[SECTION_FRAGMENTS].count):
            return refuse(damage, SECTION_DATAGRAMS, i, "no datagram in progress")
        table = &first.fragments[row[i].side]
        number = datagram_find(table, row[i].side, row[i].addresses, row[i].protocol, row[i].identification)
        if number == NONE:
            number = datagram_open(table, row[i].side, row[i].addresses, row[i].protocol, row[i].identification, True,
                                   row[i].since_ms + later_ms)
        if number == NONE or table.datagrams[number].high:
            return refuse(damage, SECTION_DATAGRAMS, i, "the table has no place for it")
        datagram = &table.datagrams[number]
        datagram.session, datagram.ports, datagram.sequence = row[i].session, row[i].ports, row[i].sequence
        datagram.units, datagram.high, datagram.end = row[i].units, row[i].high, row[i].end
        datagram.sent_identification, datagram.ranges = row[i].sent_as, row[i].ranges
        memcpy(table.seen + <size_t>number * (DATAGRAM_UNITS // 64),
               sections[SECTION_DATAGRAM_UNITS].rows + word_at * 8, words * 8)
        memcpy(table.ranges + <size_t>number * RANGES_KEPT, sections[SECTION_FRAGMENTS].rows + range_at * 8, row[i].ranges * 8)
        word_at += words
        range_at += row[i].ranges
        if not take_frames(table, number, &row[i], sections, &frame_at, &byte_at, first.configuration.ethernet):
            return refuse(damage, SECTION_DATAGRAMS, i, "its frames are none of its own")
        if row[i].state != DATAGRAM_WAITING:
            datagram_set_state(table, number, row[i].state, row[i].verdict)
    if word_at != sections[SECTION_DATAGRAM_UNITS].count or byte_at != sections[SECTION_FRAME_BYTES].count:
        return refuse(damage, SECTION_DATAGRAMS, sections[SECTION_DATAGRAMS].count, "more than the datagrams have")
    for i in range(2):
        first.fragments[i].evicted = gateway.evicted[i]
    return True
