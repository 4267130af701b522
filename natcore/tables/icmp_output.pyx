"""Builds the gateway's own ICMP messages in reply to the frame that caused them (RFC 792, RFC 1812, RFC 5508)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.base.checksum cimport checksum, delta16, update
from natcore.base.compiler cimport bswap16, bswap32, load_relaxed, store_relaxed
from natcore.base.pages cimport table_delete, table_new
from natcore.base.spinlock cimport assert_spin, spin_lock, spin_unlock
from natcore.base.headers cimport (
    ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMP_TOO_BIG, ICMP_UNREACHABLE, PROTOCOL_ICMP, IcmpHeader, Ipv4Header, is_reply,
    is_request,
)


cdef enum:
    BROADCAST = 0xFFFFFFFF

cdef struct OutboxEntry:             # header of each frame in the outbox
    uint32_t length
    uint32_t space               # bytes up to the next header
    uint8_t send_to
    uint8_t cause
    uint8_t unused[6]


cdef bint outbox_new(Outbox* outbox) noexcept nogil:
    memset(outbox, 0, sizeof(Outbox))
    outbox.buffer = <uint8_t*>table_new(OUTBOX_BYTES)
    return outbox.buffer != NULL


cdef void outbox_delete(Outbox* outbox) noexcept nogil:
    table_delete(outbox.buffer, OUTBOX_BYTES)
    outbox.buffer = NULL


cdef uint32_t outbox_waiting(const Outbox* outbox) noexcept nogil:
    """Length of the next frame, in bytes; 0: none."""
    return 0 if outbox.tail == outbox.head else (<const OutboxEntry*>(outbox.buffer + outbox.tail)).length


cdef uint32_t outbox_next(const Outbox* outbox) noexcept nogil:
    """Bytes that the next frame occupies in the outbox; there must be one."""
    return (<const OutboxEntry*>(outbox.buffer + outbox.tail)).space


cdef uint32_t outbox_take(Outbox* outbox, uint8_t* out, uint32_t space, uint8_t* send_to,
                          uint8_t* cause) noexcept nogil:
    """Copies the next frame to out; its length in bytes, 0: none. Frames longer than space are discarded and counted."""
    cdef uint32_t length
    if load_relaxed(&outbox.tail) == load_relaxed(&outbox.head):    # a frame written just now is taken the next time
        return 0
    spin_lock(&outbox.spin)
    length = outbox_pop(outbox, out, space, send_to, cause)
    spin_unlock(&outbox.spin)
    return length


cdef uint32_t outbox_pop(Outbox* outbox, uint8_t* out, uint32_t space, uint8_t* send_to, uint8_t* cause) noexcept nogil:
    cdef const OutboxEntry* entry
    cdef const uint8_t* frame
    assert_spin(&outbox.spin, outbox.lock, "ICMP output: outbox_pop")
    while outbox.tail != outbox.head:
        entry = <const OutboxEntry*>(outbox.buffer + outbox.tail)
        frame = outbox.buffer + outbox.tail + sizeof(OutboxEntry)
        store_relaxed(&outbox.tail, outbox.tail + entry.space)
        if outbox.tail == outbox.head:
            store_relaxed(&outbox.tail, 0)
            store_relaxed(&outbox.head, 0)
        if entry.length <= space:
            memcpy(out, frame, entry.length)
            send_to[0] = entry.send_to
            cause[0] = entry.cause
            return entry.length
        outbox.lost += 1
    return 0


cdef inline uint32_t entry_bytes(uint32_t length) noexcept nogil:
    return <uint32_t>sizeof(OutboxEntry) + ((length + 7) & ~<uint32_t>7)


cdef uint8_t* outbox_push(Outbox* outbox, uint32_t length, uint32_t side, uint8_t send_to, uint8_t cause) noexcept nogil:
    """Appends a frame of length bytes to be written by the caller; NULL: no space. side: of the packet that caused it."""
    cdef uint32_t need = entry_bytes(length)
    cdef OutboxEntry* entry
    assert_spin(&outbox.spin, outbox.lock, "ICMP output: outbox_push")
    if outbox_space(outbox, side) < need:
        return NULL
    entry = <OutboxEntry*>(outbox.buffer + outbox.head)
    entry.length = length
    entry.space = need
    entry.send_to = send_to
    entry.cause = cause
    store_relaxed(&outbox.head, outbox.head + need)
    return <uint8_t*>(entry + 1)


cdef void outbox_amend(uint8_t* frame, uint32_t length, uint8_t send_to) noexcept nogil:
    """Corrects length and egress side of a frame just written."""
    cdef OutboxEntry* entry = <OutboxEntry*>frame - 1
    entry.length = length
    entry.send_to = send_to


cdef void outbox_cancel(Outbox* outbox, uint32_t length) noexcept nogil:
    """Removes the last frame, which was begun with this length."""
    store_relaxed(&outbox.head, outbox.head - entry_bytes(length))


cdef uint8_t* push_own(Outbox* outbox, uint32_t length, uint8_t send_to, uint8_t cause) noexcept nogil:
    """Appends a message that the gateway originates, and counts it as generated or as lost."""
    cdef uint8_t* out = outbox_push(outbox, length, send_to, send_to, cause)
    if out == NULL:
        outbox.lost += 1
    else:
        outbox.generated += 1
    return out


cdef void swap_link_header(uint8_t* out, const Frame* frame, uint32_t link_bytes) noexcept nogil:
    """Copies the frame's link header with its addresses swapped; 802.1Q tags are kept."""
    memcpy(out, frame.data, link_bytes)
    if link_bytes:
        memcpy(out, frame.data + 6, 6)
        memcpy(out + 6, frame.data, 6)


cdef bint may_get_error(const Ipv4Header* ip) noexcept nogil:
    """Whether an error may be sent in reply: not about an ICMP error, nor to an address that is no host (RFC 1812 4.3.2.7)."""
    cdef uint32_t source = bswap32(ip.source) >> 24
    cdef uint8_t type
    if source == 0 or source == 127 or 224 <= source < 240 or ip.source == BROADCAST:
        return False
    if ip.protocol == PROTOCOL_ICMP:
        type = (<const uint8_t*>ip)[(ip.version_ihl & 15) * 4]
        return is_request(type) or is_reply(type)
    return True


cdef bint take_from_budget(Outbox* outbox, uint32_t side, bint too_big, uint32_t source, uint64_t now_ns) noexcept nogil:
    """Takes one error from the budget of this second and from the source's share; False: exhausted."""
    cdef Budget* budget = &outbox.budgets[2 * side + too_big]
    cdef uint32_t share = outbox.rate // 4 if outbox.rate // 4 > SHARE_AT_LEAST else SHARE_AT_LEAST, i
    cdef uint32_t* own = &budget.others
    if budget.second != now_ns // 1000000000:
        budget.second = now_ns // 1000000000
        budget.sent = budget.count = budget.others = 0
    if budget.sent >= outbox.rate:
        return False
    for i in range(budget.count):
        if budget.source[i] == source:
            own = &budget.sent_to[i]
            break
    else:
        if budget.count < BUDGET_SOURCES:
            own = &budget.sent_to[budget.count]
            own[0] = 0
            budget.source[budget.count] = source
            budget.count += 1
    if own[0] >= share:
        return False
    own[0] += 1
    budget.sent += 1
    return True


cdef void write_error(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint32_t source, uint8_t type,
                      uint8_t code, uint16_t mtu, uint8_t cause, uint64_t now_ns) noexcept nogil:
    cdef uint32_t link_bytes = <uint32_t>(<const uint8_t*>ip - frame.data)
    cdef uint32_t quote = bswap16(ip.total_length)
    cdef Ipv4Header* out_ip
    cdef IcmpHeader* icmp
    cdef uint8_t* out
    if not take_from_budget(outbox, frame.side, type == ICMP_UNREACHABLE and code == ICMP_TOO_BIG, ip.source, now_ns):
        outbox.withheld += 1
        return
    quote = quote if quote < ICMP_QUOTE_LIMIT - 28 else ICMP_QUOTE_LIMIT - 28
    out = push_own(outbox, link_bytes + 28 + quote, frame.side, cause)
    if out == NULL:
        return
    swap_link_header(out, frame, link_bytes)
    out_ip = <Ipv4Header*>(out + link_bytes)
    memset(out_ip, 0, 28)
    out_ip.version_ihl = 0x45
    out_ip.total_length = bswap16(<uint16_t>(28 + quote))
    out_ip.ttl = 64
    out_ip.protocol = PROTOCOL_ICMP
    out_ip.source = source
    out_ip.destination = ip.source
    out_ip.checksum = checksum(<const uint8_t*>out_ip, 20, 0)
    icmp = <IcmpHeader*>(out_ip + 1)
    icmp.type = type
    icmp.code = code
    icmp.sequence = bswap16(mtu)
    memcpy(icmp + 1, ip, quote)
    icmp.checksum = checksum(<const uint8_t*>icmp, 8 + quote, 0)


cdef void icmp_error(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint32_t source, uint8_t type,
                     uint8_t code, uint16_t mtu, uint8_t cause, uint64_t now_ns) noexcept nogil:
    """Sends an error about a validated packet back to its source, within the side's budget. source: big-endian."""
    if may_get_error(ip):
        spin_lock(&outbox.spin)
        write_error(outbox, frame, ip, source, type, code, mtu, cause, now_ns)
        spin_unlock(&outbox.spin)


cdef void write_reply(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint8_t cause) noexcept nogil:
    cdef uint32_t link_bytes = <uint32_t>(<const uint8_t*>ip - frame.data), total = bswap16(ip.total_length)
    cdef uint8_t* out
    cdef Ipv4Header* out_ip
    cdef IcmpHeader* icmp
    out = push_own(outbox, link_bytes + total, frame.side, cause)
    if out == NULL:
        return
    swap_link_header(out, frame, link_bytes)
    out_ip = <Ipv4Header*>(out + link_bytes)
    memcpy(out_ip, ip, total)
    out_ip.source = ip.destination
    out_ip.destination = ip.source
    out_ip.ttl = 64
    out_ip.checksum = 0
    out_ip.checksum = checksum(<const uint8_t*>out_ip, (ip.version_ihl & 15) * 4, 0)
    icmp = <IcmpHeader*>(<uint8_t*>out_ip + (ip.version_ihl & 15) * 4)
    icmp.checksum = update(icmp.checksum, delta16(ICMP_ECHO_REQUEST, ICMP_ECHO_REPLY))
    icmp.type = ICMP_ECHO_REPLY


cdef void echo_reply(Outbox* outbox, const Frame* frame, const Ipv4Header* ip, uint8_t cause) noexcept nogil:
    """Replies to a validated echo request (RFC 792): addresses swapped, TTL 64, the rest unchanged.

    No reply to a source that is no host (RFC 1122 section 3.2.1.3).
    """
    if may_get_error(ip):
        spin_lock(&outbox.spin)
        write_reply(outbox, frame, ip, cause)
        spin_unlock(&outbox.spin)
