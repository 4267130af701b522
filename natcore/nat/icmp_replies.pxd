"""ICMP replies of the gateway to packets that it does not forward."""
from libc.stdint cimport uint8_t

from natcore.packet.parse cimport Flight
from natcore.frame cimport Frame
from natcore.workers.worker cimport Clock, Worker

cdef void answer(Worker* worker, const Frame* frame, const Flight* flight, uint8_t verdict, const Clock* now) noexcept nogil
