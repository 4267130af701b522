"""Packets without a session: rules, then mapping, then port, then session; or why not."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.packet.parse cimport Flight
from natcore.tables.entries cimport DnatRule
from natcore.tables.sessions cimport HAIRPINNED, IN, ROLE_INSIDE, Session
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap32
from natcore.workers.inside_mtu cimport mtu_towards
from natcore.workers.worker cimport Clock, Worker
from natcore.packet.verdict cimport INSIDE, OUTSIDE

cdef struct Endpoints:          # of a packet that asks to come in; big-endian
    uint32_t remote_ip
    uint32_t outside_ip
    uint16_t remote_port
    uint16_t outside_port
    uint32_t address            # number of outside_ip, or NONE

cdef inline uint32_t inside_mtu(const Worker* worker, uint32_t destination) noexcept nogil:
    """Of the link that leads to an inside host (big-endian)."""
    if worker.paths == NULL:
        return worker.mtu[INSIDE]
    return mtu_towards(worker.paths, bswap32(destination)) or worker.mtu[INSIDE]

cdef inline uint32_t session_mtu(const Worker* worker, const Session* session, uint32_t direction) noexcept nogil:
    """Of the link that the session's packets of a direction leave by; hairpinned, the smallest inside."""
    if direction == IN:
        return inside_mtu(worker, session.ip[ROLE_INSIDE])
    return worker.mtu[INSIDE if session.flags & HAIRPINNED else OUTSIDE]

cdef uint8_t admit_outbound(Worker* worker, Frame* frame, Flight* flight, const Clock* now, uint32_t* slot) noexcept nogil
cdef uint8_t admit_inbound(Worker* worker, const Frame* frame, const Endpoints* ends, Flight* flight, uint8_t flags,
                           const Clock* now, uint32_t* slot) noexcept nogil
cdef uint8_t screen_inbound(Worker* worker, const Flight* flight, Endpoints* ends) noexcept nogil
cdef uint8_t may_pass(Worker* worker, const Frame* frame, const Flight* flight, uint32_t mtu) noexcept nogil
cdef uint32_t find_live(Worker* worker, uint32_t direction, uint64_t addresses, uint32_t ports, uint8_t protocol,
                        const Clock* now) noexcept nogil
cdef void announce(Worker* worker, uint32_t slot, uint32_t direction, const Clock* now) noexcept nogil
cdef uint8_t refuse(Worker* worker, uint8_t verdict, uint8_t limit) noexcept nogil
cdef uint8_t may_have_more(Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil
cdef uint8_t tcp_flags(const Flight* flight) noexcept nogil
cdef void tell(Worker* worker, uint8_t verdict, uint8_t limit, uint32_t subscriber, uint32_t destination, uint16_t port,
               uint8_t protocol, const Clock* now) noexcept nogil
cdef bint is_whole(const Worker* worker, uint32_t ip) noexcept nogil
cdef const DnatRule* forwarding_rule(const Worker* worker, const Flight* flight) noexcept nogil
cdef bint is_static(const Worker* worker, uint32_t slot) noexcept nogil
cdef bint is_no_host(const Worker* worker, uint32_t ip) noexcept nogil
