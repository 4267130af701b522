"""Builds ICMP messages in reply to the frame that caused them, and puts them into the outbox. Errors have a budget: so many a
second for each side, of which one source gets a share."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.tables.outbox cimport BUDGET_SOURCES, ErrorBudget, Outbox, outbox_push
from natcore.base.checksum cimport checksum, delta16, update
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.spinlock cimport spin_lock, spin_unlock
from natcore.base.headers cimport (
    ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMP_TOO_BIG, ICMP_UNREACHABLE, PROTOCOL_ICMP, IcmpHeader, Ipv4Header, is_reply,
    is_request,
)

cdef enum:
    BROADCAST = 0xFFFFFFFF
    ICMP_QUOTE_LIMIT = 576      # bytes of an error at most (RFC 1812 section 4.3.2.3)
    SHARE_AT_LEAST = 8          # errors a second for one source; a quarter of the rate if that is more


cdef uint8_t* push_message(Outbox* outbox, uint32_t length, uint8_t send_to, uint8_t cause) noexcept nogil:
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
    cdef ErrorBudget* budget = &outbox.budgets[2 * side + too_big]
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
    out = push_message(outbox, link_bytes + 28 + quote, frame.side, cause)
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
    out = push_message(outbox, link_bytes + total, frame.side, cause)
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
