"""ICMP replies of the gateway to packets that it does not forward."""
from libc.stdint cimport uint8_t

from natcore.packet.parse cimport Packet
from natcore.frame cimport Frame
from natcore.workers.worker cimport Clock, Worker

cdef void send_icmp_reply(Worker* worker, const Frame* frame, const Packet* packet, uint8_t verdict,
                          const Clock* now) noexcept nogil
