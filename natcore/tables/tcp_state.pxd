"""The TCP state machine (RFC 6146 section 3.5.2, RFC 7857 section 2), and the checks of RST segments."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.tables.sessions cimport (
    IN, OUT, SYN_NOTED, TIMEOUT_TCP_ESTABLISHED, TIMEOUT_TCP_TRANSITORY, TIMEOUT_UNREPLIED, Session,
)
from natcore.base.headers cimport TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN
from natcore.base.serial_numbers cimport is_later

cdef enum:                      # TcpState
    TCP_INIT_OUT = 0            # SYN from inside
    TCP_INIT_IN = 1             # SYN from outside
    TCP_PICKED = 2              # other segment from inside: the connection is older than the session
    TCP_ESTABLISHED = 3
    TCP_FIN_OUT = 4             # FIN from inside
    TCP_FIN_IN = 5              # FIN from outside
    TCP_CLOSING = 6             # FIN from both
    TCP_TRANSITORY = 7          # acceptable RST
    TCP_PICKED_IN = 8           # other segment from outside, to an entry's endpoint
    TCP_STATE = 0x0F
    TCP_SENT = 0x10             # << Direction: end[] is set
    TCP_ACKED = 0x40            # << Direction: ack[] is set
    # Established with all four set: the fast path. Sessions of other protocols are steady too, except those opened from
    # outside and not answered, which are TCP_INIT_IN.
    TCP_STEADY = TCP_ESTABLISHED | 0xF0

cdef inline void tcp_track(Session* session, uint32_t direction, uint8_t flags, uint32_t acknowledgement,
                           uint32_t end) noexcept nogil:
    """Updates the highest acknowledgement and end sent. end: sequence number plus payload, SYN and FIN."""
    if not session.state & (TCP_SENT << direction) or is_later(end, session.end[direction]):
        session.end[direction] = end
        session.state |= <uint8_t>(TCP_SENT << direction)
    if flags & TCP_ACK and (not session.state & (TCP_ACKED << direction)
                            or is_later(acknowledgement, session.ack[direction])):
        session.ack[direction] = acknowledgement
        session.state |= <uint8_t>(TCP_ACKED << direction)

cdef enum:
    RST_WINDOW = 1 << 16        # bytes that the sender of a RST may have in flight

cdef inline bint is_acceptable_rst(const Session* session, uint32_t direction, uint32_t sequence) noexcept nogil:
    """Whether a RST is acceptable, and so starts the transitory time-out; it is forwarded in any case. Its sequence is the
    other side's last acknowledgement, or the end of its own side's data. The latter only within a window of the
    acknowledgement, since a forged segment can move the end (RFC 5961)."""
    cdef bint acked = session.state & (TCP_ACKED << (1 - direction)) != 0
    if acked and sequence - session.ack[1 - direction] >= RST_WINDOW:
        return False
    return ((acked and sequence == session.ack[1 - direction])
            or (session.state & (TCP_SENT << direction) and sequence == session.end[direction]))

cdef inline uint8_t next_state(uint8_t state, uint32_t direction, uint8_t flags) noexcept nogil:
    """The state after a segment other than RST."""
    if state == TCP_INIT_OUT:
        return TCP_ESTABLISHED if flags & TCP_SYN and direction == IN else state
    if state == TCP_INIT_IN:
        return TCP_ESTABLISHED if flags & TCP_SYN and direction == OUT else state
    if state == TCP_PICKED:
        return TCP_ESTABLISHED if direction == IN else state
    if state == TCP_PICKED_IN:
        return TCP_ESTABLISHED if direction == OUT else state
    if state == TCP_TRANSITORY:
        return TCP_ESTABLISHED
    if not flags & TCP_FIN or state == TCP_CLOSING:
        return state
    if state == TCP_ESTABLISHED:
        return TCP_FIN_OUT if direction == OUT else TCP_FIN_IN
    if (state == TCP_FIN_OUT) == (direction == OUT):
        return state
    return TCP_CLOSING

cdef inline uint8_t tcp_class(uint8_t state) noexcept nogil:
    """The time-out class of a state, once the inside has sent."""
    if TCP_ESTABLISHED <= state <= TCP_FIN_IN:
        return TIMEOUT_TCP_ESTABLISHED
    return TIMEOUT_TCP_TRANSITORY

cdef enum:                      # Refresh
    REFRESH_NEVER = 0           # a RST that changes nothing (RFC 7857 section 7)
    REFRESH_BY_POLICY = 1       # like any packet of its direction
    REFRESH_ALWAYS = 2          # the time-out class changed: its timer starts (RFC 6146 section 3.5.2.2)

cdef enum:
    FAST_OPEN = 1 << 11         # bytes of data in a SYN that its answer may acknowledge (RFC 7413)

cdef inline bint answers_syn(const Session* session, const uint32_t* syn, uint32_t direction, uint8_t flags,
                             uint32_t acknowledgement) noexcept nogil:
    """Whether a segment acknowledges a SYN that the other side sent on a live connection."""
    return (flags & TCP_ACK and session.flags & (SYN_NOTED << (1 - direction))
            and acknowledgement - syn[1 - direction] < FAST_OPEN)

cdef inline void restart_tracking(Session* session, uint32_t direction, uint32_t acknowledgement, uint32_t end) noexcept nogil:
    """A SYN-ACK answered a new SYN: the old connection's state is discarded."""
    session.state = TCP_ESTABLISHED | TCP_SENT * 3 | TCP_ACKED << direction
    session.flags &= ~<uint8_t>(SYN_NOTED * 3)
    session.end[1 - direction] = session.ack[direction] = acknowledgement
    session.end[direction] = end

cdef inline bint tcp_opening(Session* session, uint32_t* syn, uint32_t direction, uint8_t flags, uint32_t sequence,
                             uint32_t acknowledgement, uint32_t end) noexcept nogil:
    """Handles a SYN that begins a connection on an existing session; False: it does not, or it is the session's first SYN
    and tracked as any segment.

    A SYN alone changes nothing of a live connection, since anyone can forge one; the answer that acknowledges it does.
    """
    cdef uint8_t state = session.state & TCP_STATE
    if flags & (TCP_SYN | TCP_ACK | TCP_FIN) == TCP_SYN and state == (TCP_INIT_OUT if direction == OUT else TCP_INIT_IN):
        session.state &= <uint8_t>~(TCP_SENT << direction | TCP_ACKED << direction)     # SYN not answered yet: track anew
        return False
    if state <= TCP_INIT_IN:
        return False
    if flags & (TCP_SYN | TCP_ACK | TCP_FIN) == TCP_SYN:
        syn[direction] = sequence + 1
        session.flags |= <uint8_t>(SYN_NOTED << direction)
        return True
    if flags & TCP_SYN and answers_syn(session, syn, direction, flags, acknowledgement):
        restart_tracking(session, direction, acknowledgement, end)
        return True
    return False

cdef inline uint8_t tcp_step(Session* session, uint32_t* syn, uint32_t direction, uint8_t flags, uint32_t sequence,
                             uint32_t acknowledgement, uint32_t end) noexcept nogil:
    """Tracks a segment; returns a Refresh. syn: the session's SYN sequence numbers."""
    cdef uint8_t state = session.state & TCP_STATE, before = session.timeout_class
    if flags & TCP_RST:
        if TCP_ESTABLISHED <= state <= TCP_FIN_IN and (is_acceptable_rst(session, direction, sequence)
                                                       or answers_syn(session, syn, direction, flags, acknowledgement)):
            session.state = (session.state & ~TCP_STATE) | TCP_TRANSITORY
            session.timeout_class = TIMEOUT_TCP_TRANSITORY
            return REFRESH_ALWAYS
        return REFRESH_NEVER
    if not (flags & TCP_SYN and tcp_opening(session, syn, direction, flags, sequence, acknowledgement, end)):
        tcp_track(session, direction, flags, acknowledgement, end)
        session.state = (session.state & ~TCP_STATE) | next_state(state, direction, flags)
    elif state == TCP_PICKED_IN and direction == OUT:
        session.state = (session.state & ~TCP_STATE) | TCP_ESTABLISHED
    state = session.state & TCP_STATE
    if before != TIMEOUT_UNREPLIED or direction == OUT:
        session.timeout_class = tcp_class(state)
    return REFRESH_BY_POLICY if session.timeout_class == before else REFRESH_ALWAYS

cdef inline bint is_reopening(const Session* session, uint8_t flags) noexcept nogil:
    """Whether a SYN begins a new connection on a session that is closing (TIME-WAIT reuse)."""
    cdef uint8_t state = session.state & TCP_STATE
    return (flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN and TCP_CLOSING <= state <= TCP_TRANSITORY
