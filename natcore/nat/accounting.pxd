"""Accounting of forwarded packets: the session's TCP state, time-out, window and counters."""
from libc.stdint cimport int16_t, uint8_t, uint32_t

from natcore.packet.parse cimport Packet, wire_bytes, wire_packets
from natcore.tables.sessions cimport OUT, Session, class_of, note_change, session_count, session_recall, window_roll
from natcore.tables.tcp_state cimport REFRESH_BY_POLICY, TCP_STATE, TCP_STEADY, tcp_step
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap32, either, likely, unlikely
from natcore.base.serial_numbers cimport ahead
from natcore.workers.worker cimport Clock, Worker
from natcore.base.headers cimport PROTOCOL_TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TcpHeader

cdef extern from * nogil:
    """
    static const unsigned char natcore_no_segment[20] = {[13] = 0x10};
    """
    const uint8_t* NO_SEGMENT "natcore_no_segment"  # a TCP header that changes no state: an ACK of nothing

cdef inline const TcpHeader* segment_of(const Packet* packet) noexcept nogil:
    """The packet's TCP header, or NO_SEGMENT. TCP and UDP come mixed: what follows must not branch on which it is."""
    return <const TcpHeader*>either(packet.protocol == PROTOCOL_TCP, packet.l4, NO_SEGMENT)

cdef inline bint is_steady(const Session* session, const TcpHeader* segment) noexcept nogil:
    """Whether the segment leaves the state unchanged, as nearly all do. Sessions of other protocols are steady by default."""
    return session.state == TCP_STEADY and segment.flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK) == TCP_ACK

cdef inline uint32_t account_other(Session* session, uint32_t* syn, uint32_t direction, const Packet* packet) noexcept nogil:
    """Accounts a packet that may change the session's state; returns a Refresh."""
    cdef const TcpHeader* tcp = <const TcpHeader*>packet.l4
    cdef uint32_t end
    if packet.protocol != PROTOCOL_TCP:
        if direction == OUT:                        # the inside answers a session opened from outside
            session.timeout_class = class_of(packet.protocol)
            session.state = TCP_STEADY
        return REFRESH_BY_POLICY
    end = bswap32(tcp.sequence) + packet.payload + (1 if tcp.flags & TCP_SYN else 0) + (1 if tcp.flags & TCP_FIN else 0)
    return tcp_step(session, syn, direction, tcp.flags, bswap32(tcp.sequence), bswap32(tcp.acknowledgement), end)

cdef inline void account(Worker* worker, uint32_t slot, uint32_t direction, const Packet* packet, const Clock* now,
                         uint32_t packets, uint32_t bytes) noexcept nogil:
    """Updates state, time-out, window and counters of the session of a packet that will be forwarded."""
    cdef Session* session = &worker.sessions.hot[slot]
    cdef const TcpHeader* segment = segment_of(packet)
    cdef uint32_t refresh = REFRESH_BY_POLICY
    cdef uint8_t state, timeout_class
    if likely(is_steady(session, segment)):
        session.end[direction] += ahead(bswap32(segment.sequence) + packet.payload, session.end[direction])
        session.ack[direction] += ahead(bswap32(segment.acknowledgement), session.ack[direction])
    else:
        if unlikely(worker.sessions.offload != NULL):
            session_recall(&worker.sessions, slot)
        state, timeout_class = session.state, session.timeout_class
        refresh = account_other(session, &worker.sessions.syn[2 * <size_t>slot], direction, packet)
        if (session.state ^ state) & TCP_STATE or session.timeout_class != timeout_class:
            note_change(&worker.sessions, slot)
    if unlikely(<int16_t>(now.seconds - session.window_end) >= 0):
        window_roll(&worker.sessions, slot, now.ns)
    # Without a branch on the direction: REFRESH_ALWAYS (2) refreshes, REFRESH_NEVER (0) does not; REFRESH_BY_POLICY (1) does,
    # except from outside (direction 1) where the policy excludes inbound packets, which raises the threshold to 1.
    if likely(refresh > (direction & ~<uint32_t>worker.configuration.inbound_refresh)):
        session.last_seen = now.ms
    session_count(session, &worker.sessions.cold[slot], direction, packets, bytes)

cdef inline void account_frame(Worker* worker, uint32_t slot, uint32_t direction, const Frame* frame,
                               const Packet* packet, const Clock* now) noexcept nogil:
    """As account, for a frame that may be a super-frame: counts the packets it becomes on the wire."""
    cdef uint32_t packets = wire_packets(frame, packet)
    account(worker, slot, direction, packet, now, packets, wire_bytes(packet, packets))
