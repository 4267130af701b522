"""ICMP errors from other hosts: matched to a session by the packet they quote, and translated with it (RFC 5508)."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.packet.parse cimport Flight
from natcore.frame cimport Frame
from natcore.workers.worker cimport Clock, Worker

cdef bint is_error(const Flight* flight) noexcept nogil
cdef uint32_t quoted_slot(const Worker* worker, Flight* flight, uint32_t side, const Clock* now) noexcept nogil
cdef uint8_t translate_error(Worker* worker, Frame* frame, Flight* flight, const Clock* now) noexcept nogil
