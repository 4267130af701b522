"""TIME-WAIT reuse in two steps: whether the new session is admitted, and the restart itself."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.nat.admission cimport may_have_more, refuse, tcp_flags, report_drop
from natcore.workers.limits cimport (
    LIMIT_GATEWAY_RATE, LIMIT_OUTSIDE, LIMIT_SUBSCRIBER_RATE, below_caps, count_new, over_gateway_rate, over_rate,
)
from natcore.tables.mappings cimport MAPPING_DRAINING, Mapping
from natcore.tables.sessions cimport (
    IN, OPENED_OUTSIDE, OUT, ROLE_REMOTE, TIMEOUT_TCP_TRANSITORY, TIMEOUT_UNREPLIED, Session, session_restart,
)
from natcore.tables.tcp_state cimport TCP_INIT_IN, TCP_INIT_OUT, is_reopening
from natcore.base.sentinels cimport NONE
from natcore.packet.verdict cimport DROP_NO_MAPPING, DROP_OUTSIDE_LIMIT, DROP_RATE_LIMIT, PENDING
from natcore.base.headers cimport PROTOCOL_TCP


cdef uint8_t may_reopen_outbound(Worker* worker, const Session* session, const Mapping* mapping,
                                 const Clock* now) noexcept nogil:
    """Rates count every new session; the quota counts one more if the old session was opened from outside."""
    if over_gateway_rate(worker, now):
        return refuse(worker, DROP_RATE_LIMIT, LIMIT_GATEWAY_RATE)
    if mapping.subscriber == NONE:
        return PENDING
    if session.flags & OPENED_OUTSIDE:
        return may_have_more(worker, mapping.inside_ip, now)
    if over_rate(worker, mapping.inside_ip, now):
        return refuse(worker, DROP_RATE_LIMIT, LIMIT_SUBSCRIBER_RATE)
    return PENDING


cdef uint8_t may_reopen(Worker* worker, uint32_t slot, uint32_t direction, const Packet* packet,
                        const Clock* now) noexcept nogil:
    """Whether the new session is admitted, if the packet begins one; PENDING also if it does not."""
    cdef const Session* session = &worker.sessions.hot[slot]
    cdef const Mapping* mapping
    cdef uint8_t verdict = PENDING
    if packet.protocol != PROTOCOL_TCP or not is_reopening(session, tcp_flags(packet)):
        return PENDING
    mapping = &worker.mappings.mappings[worker.sessions.cold[slot].mapping]
    if mapping.flags & MAPPING_DRAINING:
        return DROP_NO_MAPPING
    if direction == OUT:
        verdict = may_reopen_outbound(worker, session, mapping, now)
    elif not (session.flags & OPENED_OUTSIDE or below_caps(worker, worker.sessions.cold[slot].mapping, now)):
        verdict = refuse(worker, DROP_OUTSIDE_LIMIT, LIMIT_OUTSIDE)
    if verdict != PENDING:
        report_drop(worker, verdict, worker.reached_limit, mapping.inside_ip, session.ip[ROLE_REMOTE],
                    session.port[ROLE_REMOTE], packet.protocol, now)
    return verdict


cdef bint reopen(Worker* worker, uint32_t slot, uint32_t direction, const Packet* packet, const Clock* now) noexcept nogil:
    """Restarts the session if the packet is a SYN that reopens it (may_reopen has admitted it); whether it did."""
    if packet.protocol != PROTOCOL_TCP or not is_reopening(&worker.sessions.hot[slot], tcp_flags(packet)):
        return False
    session_restart(&worker.sessions, slot, direction == IN,
                    TIMEOUT_UNREPLIED if direction == IN else TIMEOUT_TCP_TRANSITORY, now.ns)
    worker.sessions.hot[slot].state = TCP_INIT_IN if direction == IN else TCP_INIT_OUT
    if direction == OUT:
        count_new(worker, worker.sessions.cold[slot].mapping, now)
    return True
