"""The way of a packet, stage by stage: what C callers drive (frame.pxd), and what the gateway and the worker build on."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.workers.locks cimport await_hold, hold, release
from natcore.nat.clock cimport tick
from natcore.frame cimport Frame
from natcore.workers.worker cimport Worker

cdef void translate(Worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept nogil
cdef void revoke(Worker* worker, Frame* frame, uint8_t verdict) noexcept nogil
cdef uint32_t take_generated(Worker* worker, uint8_t* out, uint32_t room, uint8_t* send_to, uint8_t* cause) noexcept nogil
