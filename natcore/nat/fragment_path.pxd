"""Fragments in transit: later ones follow their first fragment, or wait for it (RFC 4787 REQ-14)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.packet.parse cimport Flight
from natcore.frame cimport Frame
from natcore.workers.worker cimport Clock, Worker

cdef uint8_t piece_enter(Worker* worker, Frame* frame, Flight* flight, const Clock* now, uint32_t* datagram) noexcept nogil
cdef uint8_t parse_first(Flight* flight, uint32_t side) noexcept nogil
cdef void piece_known(Worker* worker, const Frame* frame, const Flight* flight, uint32_t number, uint8_t verdict,
                      const Clock* now) noexcept nogil
cdef bint piece_key(const Worker* worker, Flight* flight, uint8_t side) noexcept nogil
cdef void pieces_expire(Worker* worker, uint64_t now_ns) noexcept nogil
cdef void fit(Worker* worker, Frame* frame, const Flight* flight, uint8_t verdict, uint8_t cause) noexcept nogil
