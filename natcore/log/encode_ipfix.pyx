"""Encodes records as IPFIX (RFC 7011): flow records, and events of RFC 8158: NAT44 sessions, port blocks, ports exhausted,
quotas exceeded and thresholds reached."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from natcore.log.journal cimport (
    RECORD_BLOCK_ALLOCATED, RECORD_CREATE, RECORD_END, RECORD_OPENED_OUTSIDE, RECORD_WINDOW, Record, is_block_row,
)
from natcore.log.row_tails cimport RowTails, put_row_tail, row_tails_set
from natcore.base.compiler cimport bswap16, bswap32, bswap64, unlikely

cdef enum:
    FLOW_SET = 256              # template identifiers; the templates are in sinks/ipfix.py
    EVENT_SET = 257
    BLOCK_SET = 258
    EXHAUSTED_SET = 259
    QUOTA_SET = 260
    THRESHOLD_SET = 261
    NAT44_SESSION_CREATE = 4    # natEvent, RFC 8158
    NAT44_SESSION_DELETE = 5
    PORT_BLOCK_ALLOCATED = 16
    PORT_BLOCK_DEALLOCATED = 17
    PORTS_EXHAUSTED = 12
    QUOTA_EXCEEDED = 13
    THRESHOLD_REACHED = 18
    REFUSAL = 10                # RecordKind of python/natcore/dtypes.py
    EVENT = 11
    CODES = 4096                # reason | limit << 8, in `flags` of these two kinds
    INITIATOR = 1               # biflowDirection, RFC 5103
    REVERSE_INITIATOR = 2
    VERSION = 10

cdef packed struct MessageHeader:
    uint16_t version
    uint16_t length             # bytes, this header included
    uint32_t export_time        # Unix seconds
    uint32_t sequence           # data records sent before this message
    uint32_t domain

cdef packed struct SetHeader:
    uint16_t id
    uint16_t length             # bytes, this header included

cdef packed struct Ends:
    uint32_t address[4]         # source and destination, before and after NAT
    uint16_t port[4]

cdef packed struct FlowRecord:
    uint64_t start_ms
    uint64_t end_ms
    uint64_t flow_id
    uint64_t octets             # from inside
    uint64_t packets
    uint64_t reverse_octets
    uint64_t reverse_packets
    Ends ends
    uint8_t protocol
    uint8_t direction

cdef packed struct EventRecord:
    uint64_t observed_ms
    uint64_t start_ms           # of the session; collectors search events by these two
    uint64_t end_ms
    uint64_t flow_id
    Ends ends
    uint8_t protocol
    uint8_t event

cdef packed struct BlockRecord:
    uint64_t observed_ms
    uint64_t start_ms           # when the block was assigned
    uint64_t end_ms
    uint64_t flow_id            # of the assignment
    uint32_t inside
    uint32_t outside
    uint16_t first_port
    uint16_t last_port
    uint8_t event

cdef packed struct RefusalRecord:
    uint64_t observed_ms
    uint64_t start_ms           # of the first packet that was refused
    uint64_t end_ms
    uint64_t packets
    uint32_t inside             # 0: of several subscribers
    uint32_t remote             # where the first one was going
    uint16_t remote_port
    uint8_t protocol
    uint8_t event
    uint32_t quota              # QUOTA_SET only: natQuotaExceededEvent

cdef packed struct ThresholdRecord:
    uint64_t observed_ms
    uint64_t start_ms
    uint64_t end_ms
    uint32_t outside
    uint8_t protocol
    uint8_t event
    uint32_t threshold          # natThresholdEvent

cdef struct Message:
    uint8_t* start              # NULL: no message is open
    uint8_t* set_start          # NULL: no set is open
    uint8_t* at
    uint16_t set_id

FLOW_BYTES = sizeof(FlowRecord)
EVENT_BYTES = sizeof(EventRecord)
BLOCK_BYTES = sizeof(BlockRecord)
QUOTA_BYTES = sizeof(RefusalRecord)
EXHAUSTED_BYTES = sizeof(RefusalRecord) - sizeof(uint32_t)
THRESHOLD_BYTES = sizeof(ThresholdRecord)


cdef inline uint64_t milliseconds_be(int64_t microseconds) noexcept nogil:
    return bswap64(<uint64_t>(microseconds // 1000) if microseconds > 0 else 0)


cdef inline Ends ends_of(const Record* row) noexcept nogil:
    """The destination is the same after NAT."""
    cdef Ends ends
    ends.address[0] = bswap32(row.pri_ip)
    ends.address[1] = ends.address[3] = bswap32(row.pub_ip)
    ends.address[2] = bswap32(row.nat_ip)
    ends.port[0] = bswap16(row.pri_port)
    ends.port[1] = ends.port[3] = bswap16(row.pub_port)
    ends.port[2] = bswap16(row.nat_port)
    return ends


cdef uint8_t* put_flow(uint8_t* at, const Record* row) noexcept nogil:
    cdef FlowRecord flow
    flow.start_ms = milliseconds_be(row.start_time)
    flow.end_ms = milliseconds_be(row.end_time)
    flow.flow_id = bswap64(row.session)
    flow.octets = bswap64(row.bytes_from_vpc)
    flow.packets = bswap64(row.pkts_from_vpc)
    flow.reverse_octets = bswap64(row.bytes_from_pub)
    flow.reverse_packets = bswap64(row.pkts_from_pub)
    flow.ends = ends_of(row)
    flow.protocol = row.protocol
    flow.direction = REVERSE_INITIATOR if row.flags & RECORD_OPENED_OUTSIDE else INITIATOR
    memcpy(at, &flow, sizeof(flow))
    return at + sizeof(flow)


cdef uint8_t* put_event(uint8_t* at, const Record* row) noexcept nogil:
    cdef EventRecord event
    event.observed_ms = event.end_ms = milliseconds_be(row.end_time)
    event.start_ms = milliseconds_be(row.start_time)
    event.flow_id = bswap64(row.session)
    event.ends = ends_of(row)
    event.protocol = row.protocol
    event.event = NAT44_SESSION_CREATE if row.kind == RECORD_CREATE else NAT44_SESSION_DELETE
    memcpy(at, &event, sizeof(event))
    return at + sizeof(event)


cdef uint8_t* put_block(uint8_t* at, const Record* row) noexcept nogil:
    cdef BlockRecord block
    block.observed_ms = block.end_ms = milliseconds_be(row.end_time)
    block.start_ms = milliseconds_be(row.start_time)
    block.flow_id = bswap64(row.session)
    block.inside = bswap32(row.pri_ip)
    block.outside = bswap32(row.nat_ip)
    block.first_port = bswap16(row.nat_port)
    block.last_port = bswap16(row.pub_port)
    block.event = PORT_BLOCK_ALLOCATED if row.kind == RECORD_BLOCK_ALLOCATED else PORT_BLOCK_DEALLOCATED
    memcpy(at, &block, sizeof(block))
    return at + sizeof(block)


cdef uint8_t* put_refusal(uint8_t* at, const Record* row, uint8_t event, uint8_t quota, uint64_t size) noexcept nogil:
    cdef RefusalRecord refusal
    refusal.observed_ms = refusal.end_ms = milliseconds_be(row.end_time)
    refusal.start_ms = milliseconds_be(row.start_time)
    refusal.packets = bswap64(row.session)
    refusal.inside = bswap32(row.pri_ip)
    refusal.remote = bswap32(row.pub_ip)
    refusal.remote_port = bswap16(row.pub_port)
    refusal.protocol = row.protocol
    refusal.event = event
    refusal.quota = bswap32(quota)
    memcpy(at, &refusal, size)
    return at + size


cdef uint8_t* put_threshold(uint8_t* at, const Record* row, uint8_t threshold) noexcept nogil:
    cdef ThresholdRecord reached
    reached.observed_ms = reached.end_ms = milliseconds_be(row.end_time)
    reached.start_ms = milliseconds_be(row.start_time)
    reached.outside = bswap32(row.nat_ip)
    reached.protocol = row.protocol
    reached.event = THRESHOLD_REACHED
    reached.threshold = bswap32(threshold)
    memcpy(at, &reached, sizeof(reached))
    return at + sizeof(reached)


cdef inline void close_set(Message* message) noexcept nogil:
    if message.set_start != NULL:
        (<SetHeader*>message.set_start).id = bswap16(message.set_id)
        (<SetHeader*>message.set_start).length = bswap16(<uint16_t>(message.at - message.set_start))
        message.set_start = NULL


cdef inline void open_set(Message* message, uint16_t set_id) noexcept nogil:
    close_set(message)
    message.set_start = message.at
    message.set_id = set_id
    message.at += sizeof(SetHeader)


cdef inline void close_message(Message* message) noexcept nogil:
    if message.start != NULL:
        close_set(message)
        (<MessageHeader*>message.start).length = bswap16(<uint16_t>(message.at - message.start))
        message.start = NULL


cdef inline void open_message(Message* message, uint32_t sequence, uint32_t domain, uint32_t time) noexcept nogil:
    cdef MessageHeader* header = <MessageHeader*>message.at
    message.start = message.at
    header.version = bswap16(VERSION)
    header.export_time = bswap32(time)
    header.sequence = bswap32(sequence)
    header.domain = bswap32(domain)
    message.at += sizeof(MessageHeader)


def encode_messages(const uint8_t[::1] records not None, uint32_t sequence, uint32_t domain, uint32_t export_time,
                    uint32_t largest, bytes nat_events not None, bytes details not None, *,
                    const uint8_t[::1] texts=None, const uint32_t[::1] offsets=None, const uint32_t[::1] numbers=None):
    """Encodes rows as IPFIX messages, in order and without the GIL: -> (bytes, end offset of each message, data records).

    records: the bytes of RECORD (n,). Window rows become flow records, `create` and `end` rows session events, rows of port
    blocks their events, refusals and events what nat_events says; other kinds have no counterpart in IPFIX and are skipped.
    sequence: data records sent before. export_time: Unix seconds. largest: maximum bytes of a message, 128 to 65535.
    nat_events, details: 4,096 bytes each, by the `flags` of such a row: its natEvent (12, 13, 18; 0: none, skipped), and its
    natQuotaExceededEvent or natThresholdEvent.
    texts, offsets, numbers: fields, one behind the other; where each begins, and the last one ends; and of each row the number
    of that at its record's end (a threshold's has none). With its record it must fit into a message, else ValueError.
    """
    cdef uint64_t count = records.shape[0] // sizeof(Record), row, messages = 0
    cdef const Record* rows = <const Record*>&records[0] if count else NULL
    cdef uint32_t first = sequence
    cdef uint64_t size
    cdef uint16_t set_id, code
    cdef const uint8_t* events = <const uint8_t*>PyBytes_AS_STRING(nat_events)
    cdef const uint8_t* detail = <const uint8_t*>PyBytes_AS_STRING(details)
    cdef uint8_t* buffer
    cdef uint32_t* ends
    cdef uint64_t longest = sizeof(FlowRecord)
    cdef Message message
    cdef RowTails tails
    row_tails_set(&tails, texts, offsets, numbers, count)
    cdef bint has_tails = tails.bytes > 0
    cdef uint64_t most = largest - min(largest, tails.longest)      # any row's fits behind
    longest += tails.longest
    if sizeof(MessageHeader) + sizeof(SetHeader) + longest > largest:
        raise ValueError(f"largest must hold the longest record, {longest} bytes, got {largest}")
    if records.shape[0] % sizeof(Record) or not 128 <= largest <= 65535:
        raise ValueError(f"largest must be between 128 and 65535 bytes and records whole, got largest={largest} and "
                         f"{records.shape[0]} bytes of records")
    if len(nat_events) != CODES or len(details) != CODES:
        raise ValueError(f"nat_events and details must be {CODES} bytes, got {len(nat_events)} and {len(details)}")
    buffer = <uint8_t*>malloc(64 + count * (sizeof(MessageHeader) + sizeof(SetHeader) + sizeof(FlowRecord))
                              + tails.bytes)
    ends = <uint32_t*>malloc((count + 1) * sizeof(uint32_t))
    try:
        if buffer == NULL or ends == NULL:
            raise MemoryError
        message.start = message.set_start = NULL
        message.at = buffer
        message.set_id = 0
        with nogil:
            for row in range(count):
                if rows[row].kind == RECORD_WINDOW:
                    set_id, size = FLOW_SET, sizeof(FlowRecord)
                elif rows[row].kind == RECORD_CREATE or rows[row].kind == RECORD_END:
                    set_id, size = EVENT_SET, sizeof(EventRecord)
                elif is_block_row(rows[row].kind):
                    set_id, size = BLOCK_SET, sizeof(BlockRecord)
                elif rows[row].kind == REFUSAL or rows[row].kind == EVENT:
                    code = rows[row].flags & (CODES - 1)
                    if events[code] == PORTS_EXHAUSTED:
                        set_id, size = EXHAUSTED_SET, sizeof(RefusalRecord) - sizeof(uint32_t)
                    elif events[code] == QUOTA_EXCEEDED:
                        set_id, size = QUOTA_SET, sizeof(RefusalRecord)
                    elif events[code] == THRESHOLD_REACHED:
                        set_id, size = THRESHOLD_SET, sizeof(ThresholdRecord)
                    else:
                        continue
                else:
                    continue
                if message.start != NULL and <uint64_t>(message.at - message.start) + sizeof(SetHeader) + size > most:
                    close_message(&message)
                    ends[messages] = <uint32_t>(message.at - buffer)
                    messages += 1
                if message.start == NULL:
                    open_message(&message, sequence, domain, export_time)
                if message.set_start == NULL or message.set_id != set_id:
                    open_set(&message, set_id)
                if set_id == FLOW_SET:
                    message.at = put_flow(message.at, &rows[row])
                elif set_id == EVENT_SET:
                    message.at = put_event(message.at, &rows[row])
                elif set_id == BLOCK_SET:
                    message.at = put_block(message.at, &rows[row])
                elif set_id == THRESHOLD_SET:
                    message.at = put_threshold(message.at, &rows[row], detail[code])
                else:
                    message.at = put_refusal(message.at, &rows[row], events[code], detail[code], size)
                if unlikely(has_tails) and set_id != THRESHOLD_SET:
                    message.at = put_row_tail(message.at, &tails, row)
                sequence += 1
            if message.start != NULL:
                close_message(&message)
                ends[messages] = <uint32_t>(message.at - buffer)
                messages += 1
        found = [ends[row] for row in range(messages)]
        return PyBytes_FromStringAndSize(<char*>buffer, message.at - buffer), found, <uint32_t>(sequence - first)
    finally:
        free(buffer)
        free(ends)
