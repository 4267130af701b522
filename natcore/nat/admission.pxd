"""Admission: a packet without a session gets one by entry, mapping and port allocation, or the reason why not."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.packet.parse cimport Packet
from natcore.tables.entries cimport DnatRule
from natcore.tables.sessions cimport HAIRPINNED, IN, ROLE_INSIDE, Session
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap32
from natcore.workers.inside_mtu cimport mtu_towards
from natcore.workers.worker cimport Clock, Worker
from natcore.packet.verdict cimport INSIDE, OUTSIDE

cdef struct Endpoints:          # endpoints of an inbound packet; big-endian
    uint32_t remote_ip
    uint32_t outside_ip
    uint16_t remote_port
    uint16_t outside_port
    uint32_t address            # index of outside_ip, or NONE

cdef inline uint32_t inside_mtu(const Worker* worker, uint32_t destination) noexcept nogil:
    """MTU of the link to an inside host (big-endian)."""
    if worker.links.path_mtus == NULL:
        return worker.links.mtu[INSIDE]
    return mtu_towards(worker.links.path_mtus, bswap32(destination)) or worker.links.mtu[INSIDE]

cdef inline uint32_t session_mtu(const Worker* worker, const Session* session, uint32_t direction) noexcept nogil:
    """MTU of the session's egress link in a direction; hairpinned: the smallest inside."""
    if direction == IN:
        return inside_mtu(worker, session.ip[ROLE_INSIDE])
    return worker.links.mtu[INSIDE if session.flags & HAIRPINNED else OUTSIDE]

cdef uint8_t admit_outbound(Worker* worker, Frame* frame, Packet* packet, const Clock* now, uint32_t* slot) noexcept nogil
cdef uint8_t admit_inbound(Worker* worker, const Frame* frame, const Endpoints* ends, Packet* packet, uint8_t flags,
                           const Clock* now, uint32_t* slot) noexcept nogil
cdef uint8_t screen_inbound(Worker* worker, const Packet* packet, Endpoints* ends) noexcept nogil
cdef uint8_t may_pass(Worker* worker, const Frame* frame, const Packet* packet, uint32_t mtu) noexcept nogil
cdef uint32_t find_live(Worker* worker, uint32_t direction, uint64_t addresses, uint32_t ports, uint8_t protocol,
                        const Clock* now) noexcept nogil
cdef void log_new_session(Worker* worker, uint32_t slot, uint32_t direction, const Clock* now) noexcept nogil
cdef uint8_t refuse(Worker* worker, uint8_t verdict, uint8_t limit) noexcept nogil
cdef uint8_t may_have_more(Worker* worker, uint32_t inside_ip, const Clock* now) noexcept nogil
cdef uint8_t tcp_flags(const Packet* packet) noexcept nogil
cdef void report_drop(Worker* worker, uint8_t verdict, uint8_t limit, uint32_t subscriber, uint32_t destination, uint16_t port,
                      uint8_t protocol, const Clock* now) noexcept nogil
cdef bint is_one_to_one(const Worker* worker, uint32_t ip) noexcept nogil
cdef const DnatRule* dnat_rule_of_inside(const Worker* worker, const Packet* packet) noexcept nogil
cdef bint is_static(const Worker* worker, uint32_t slot) noexcept nogil
cdef bint is_martian(const Worker* worker, uint32_t ip) noexcept nogil
cdef bint is_shared_address(const Worker* worker, uint32_t ip) noexcept nogil
