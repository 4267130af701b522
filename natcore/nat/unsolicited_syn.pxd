"""HeldSyn SYNs from outside: answered after a hold-off if the policy says so, unless the inside opened meanwhile."""
from libc.stdint cimport uint8_t, uint64_t

from natcore.packet.parse cimport Packet
from natcore.frame cimport Frame
from natcore.workers.worker cimport Worker

cdef void note_unsolicited(Worker* worker, const Frame* frame, const Packet* packet, uint8_t verdict,
                           uint64_t now_ns) noexcept nogil
cdef void answer_unsolicited(Worker* worker, uint64_t now_ns) noexcept nogil
