"""Packets without a session: rules, then mapping, then port, then session; or why not."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore._parse cimport Flight
from natcore.frame cimport Frame
from natcore.state cimport Clock, Worker

cdef uint8_t admit_outbound(Worker* worker, Frame* frame, Flight* flight, const Clock* now, uint32_t* slot) noexcept nogil
cdef uint8_t admit_inbound(Worker* worker, const Frame* frame, uint32_t outside_ip, uint16_t outside_port,
                           uint32_t remote_ip, uint16_t remote_port, Flight* flight, uint8_t flags, const Clock* now,
                           uint32_t* slot) noexcept nogil
cdef uint8_t screen_inbound(Worker* worker, const Flight* flight) noexcept nogil
cdef uint8_t may_pass(Worker* worker, const Frame* frame, const Flight* flight, uint32_t mtu) noexcept nogil
cdef bint complete(Worker* worker, uint64_t now_ns) noexcept nogil
