"""The flow log's table of rows, with a keyed hash index."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from natcore.packet.parse cimport Packet, link_length, wire_bytes, wire_packets
from natcore.base.flow_hash cimport HashKey, flow_hash
from natcore.frame cimport FRAME_CROSSING, Frame
from natcore.base.compiler cimport bswap16
from natcore.base.pages cimport table_delete, table_new
from natcore.base.spinlock cimport assert_spin, spin_lock, spin_unlock
from natcore.packet.verdict cimport DROP_MALFORMED, LOCAL, egress_of
from natcore.base.headers cimport (
    IPV4_OFFSET, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, IcmpHeader, Ipv4Header, is_reply, is_request,
)


cdef bint flows_new(Flows* flows, uint32_t capacity, const HashKey* key, int64_t window_us, bint ethernet) noexcept nogil:
    """An empty table; False: out of memory, call flows_delete all the same."""
    memset(flows, 0, sizeof(Flows))
    flows.capacity = capacity
    flows.places = 64
    while flows.places < 2 * <uint64_t>capacity:
        flows.places *= 2
    flows.rows = <FlowRow*>table_new(capacity * sizeof(FlowRow))
    flows.index = <uint32_t*>table_new(flows.places * sizeof(uint32_t))
    flows.hash_key = key[0]
    flows.window_us = window_us
    flows.ethernet = ethernet
    flows.spin.needed = True            # even with one worker: rows are taken by any thread
    return flows.rows != NULL and flows.index != NULL


cdef void flows_delete(Flows* flows) noexcept nogil:
    table_delete(flows.rows, flows.capacity * sizeof(FlowRow))
    table_delete(flows.index, flows.places * sizeof(uint32_t))


cdef void flows_clear(Flows* flows) noexcept nogil:
    memset(flows.index, 0, flows.places * sizeof(uint32_t))
    flows.count = 0


cdef void read_ports(FlowKey* key, const uint8_t* l4, uint32_t rest, bint outward) noexcept nogil:
    """Reads ports or ICMP identifier, as far as the packet contains them."""
    cdef const IcmpHeader* icmp = <const IcmpHeader*>l4
    if key.protocol == PROTOCOL_TCP or key.protocol == PROTOCOL_UDP:
        if rest >= 4:
            memcpy(&key.ports, l4, 4)
    elif key.protocol == PROTOCOL_ICMP and rest >= 8 and (is_request(icmp.type) or is_reply(icmp.type)):
        key.ports = icmp.identifier if outward else <uint32_t>icmp.identifier << 16


cdef bint read_packet(const Flows* flows, const Frame* frame, uint8_t interface, uint8_t direction,
                      FlowSeen* seen) noexcept nogil:
    """Reads the frame's 5-tuple, and its packets and bytes on the wire; False: unreadable."""
    cdef uint32_t link = link_length(frame) if flows.ethernet else 0, headers
    cdef const Ipv4Header* ip
    cdef Packet packet
    seen.packets = 0
    if (flows.ethernet and link == 0) or frame.length < link + 20:
        return False
    ip = <const Ipv4Header*>(frame.data + link)
    headers = (ip.version_ihl & 15) * 4
    packet.total_length = bswap16(ip.total_length)
    if ip.version_ihl >> 4 != 4 or headers < 20 or packet.total_length < headers or packet.total_length > frame.length - link:
        return False
    packet.ip = <Ipv4Header*>ip
    packet.l4 = <uint8_t*>ip + headers
    packet.protocol = ip.protocol
    memcpy(&seen.key.addresses, &ip.source, 8)
    seen.key.ports = 0
    seen.key.protocol = ip.protocol
    seen.key.interface = interface
    seen.key.direction = direction
    seen.key.action = FLOW_ACCEPT
    if not ip.fragment & bswap16(IPV4_OFFSET):
        read_ports(&seen.key, packet.l4, packet.total_length - headers, interface == direction)
    seen.packets = 1
    if packet.total_length >= headers + 20:         # a super-frame has a complete header
        seen.packets = wire_packets(frame, &packet)
    seen.bytes = wire_bytes(&packet, seen.packets)
    return True


cdef uint32_t find(const Flows* flows, const FlowKey* key) noexcept nogil:
    """The key's place in the index, or the empty one for it."""
    cdef uint32_t rest = <uint32_t>key.interface << 2 | <uint32_t>key.direction << 1 | key.action
    cdef uint64_t hashed = flow_hash(&flows.hash_key, key.addresses, key.ports, key.protocol) + rest
    cdef uint32_t mask = flows.places - 1
    cdef uint32_t place = <uint32_t>(hashed ^ hashed >> 32) & mask
    while flows.index[place] and memcmp(&flows.rows[flows.index[place] - 1].key, key, sizeof(FlowKey)):
        place = (place + 1) & mask
    return place


cdef void add(Flows* flows, const FlowSeen* seen, int64_t now_us) noexcept nogil:
    """Adds to the key's row; begins a new row if there is none or its window is over."""
    cdef uint32_t place = find(flows, &seen.key)
    cdef FlowRow* row = &flows.rows[flows.index[place] - 1] if flows.index[place] else NULL
    assert_spin(&flows.spin, NULL, "flow log: add")
    if row == NULL or now_us - row.start_time >= flows.window_us:
        if flows.count == flows.capacity:
            flows.lost += seen.packets
            return
        row = &flows.rows[flows.count]
        flows.count += 1
        flows.index[place] = flows.count
        row.key = seen.key
        row.bytes = row.packets = 0
        row.start_time = now_us
    row.bytes += seen.bytes
    row.packets += seen.packets
    row.end_time = now_us


cdef inline uint8_t side_out(const Frame* frame) noexcept nogil:
    return egress_of(frame.verdict, frame.side, frame.flags & FRAME_CROSSING)


cdef void flows_arrive(const Flows* flows, FlowSeen* seen, const Frame* frames, uint32_t count) noexcept nogil:
    """Reads received frames, FLOWS_BATCH at most, before translation. seen: written, for flows_leave."""
    cdef uint32_t i
    for i in range(count):
        read_packet(flows, &frames[i], frames[i].side & 1, FLOW_IN, &seen[i])


cdef void flows_leave(Flows* flows, FlowSeen* seen, const Frame* frames, uint32_t count, int64_t now_us) noexcept nogil:
    """Adds the same frames after translation: received by their verdict, and sent if forwarded."""
    cdef uint32_t i
    cdef FlowSeen* came
    spin_lock(&flows.spin)
    for i in range(count):
        came = &seen[i]
        if came.packets == 0:
            flows.unreadable += 1
            continue
        came.key.action = FLOW_REJECT if frames[i].verdict >= DROP_MALFORMED else FLOW_ACCEPT
        add(flows, came, now_us)
        if frames[i].verdict < LOCAL:
            add_sent(flows, &frames[i], side_out(&frames[i]), now_us)
    spin_unlock(&flows.spin)


cdef void add_sent(Flows* flows, const Frame* frame, uint8_t side, int64_t now_us) noexcept nogil:
    cdef FlowSeen seen
    if read_packet(flows, frame, side, FLOW_OUT, &seen):
        add(flows, &seen, now_us)


cdef void flows_sent(Flows* flows, const Frame* frame, uint8_t side, int64_t now_us) noexcept nogil:
    """Adds a frame that leaves by an interface."""
    spin_lock(&flows.spin)
    add_sent(flows, frame, side, now_us)
    spin_unlock(&flows.spin)


cdef void flows_unsent(Flows* flows, const Frame* frame) noexcept nogil:
    """Subtracts a frame that could not be sent after all; it still counts as received."""
    cdef FlowSeen seen
    cdef FlowRow* row
    cdef uint32_t place
    if read_packet(flows, frame, side_out(frame), FLOW_OUT, &seen):
        spin_lock(&flows.spin)
        place = find(flows, &seen.key)
        if flows.index[place]:
            row = &flows.rows[flows.index[place] - 1]
            row.packets -= seen.packets if seen.packets < row.packets else row.packets
            row.bytes -= seen.bytes if seen.bytes < row.bytes else row.bytes
        spin_unlock(&flows.spin)
