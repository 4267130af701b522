"""ICMP errors from other hosts: matched to a session by the packet they quote, and translated with it (RFC 5508)."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.packet.parse cimport Packet
from natcore.frame cimport Frame
from natcore.workers.worker cimport Clock, Worker

cdef bint is_error(const Packet* packet) noexcept nogil
cdef uint32_t quoted_slot(const Worker* worker, Packet* packet, uint32_t side, const Clock* now) noexcept nogil
cdef uint8_t translate_error(Worker* worker, Frame* frame, Packet* packet, const Clock* now) noexcept nogil
