"""Packets without a session: rules, then mapping, then port, then session; or why not."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore._parse cimport Flight
from natcore.frame cimport Frame
from natcore.state cimport Clock, Worker

cdef struct Endpoints:          # of a packet that asks to come in; big-endian
    uint32_t remote_ip
    uint32_t outside_ip
    uint16_t remote_port
    uint16_t outside_port

cdef uint8_t admit_outbound(Worker* worker, Frame* frame, Flight* flight, const Clock* now, uint32_t* slot) noexcept nogil
cdef uint8_t admit_inbound(Worker* worker, const Frame* frame, const Endpoints* ends, Flight* flight, uint8_t flags,
                           const Clock* now, uint32_t* slot) noexcept nogil
cdef uint8_t screen_inbound(Worker* worker, const Flight* flight) noexcept nogil
cdef uint8_t may_pass(Worker* worker, const Frame* frame, const Flight* flight, uint32_t mtu) noexcept nogil
cdef uint32_t find_live(Worker* worker, uint32_t direction, uint64_t addresses, uint32_t ports, uint8_t protocol,
                        const Clock* now) noexcept nogil
cdef uint8_t may_reopen(Worker* worker, uint32_t slot, const Flight* flight, const Clock* now) noexcept nogil
cdef bint is_whole(const Worker* worker, uint32_t ip) noexcept nogil
cdef bint is_static(const Worker* worker, uint32_t slot) noexcept nogil
cdef bint is_no_host(uint32_t ip) noexcept nogil
