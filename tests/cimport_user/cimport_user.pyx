"""A ring of frames of our own, translated through natcore's frozen C interface without the GIL."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.translate cimport (
    FRAME_CSUM_PARTIAL, FRAME_GSO, Frame, Worker, import_natcore, lock, take_generated, tick, translate, try_lock, unlock,
    worker_of,
)

import_natcore()            # ImportError where another ABI is installed than this was compiled for

CSUM_PARTIAL = FRAME_CSUM_PARTIAL
GSO = FRAME_GSO

cdef enum:
    SLOTS = 64
    SLOT_BYTES = 65_536


cdef class Ring:
    """SLOTS frames of up to SLOT_BYTES bytes, in our own memory."""

    cdef Frame frames[SLOTS]
    cdef uint32_t used
    cdef bytearray memory

    def __init__(self):
        self.memory = bytearray(SLOTS * SLOT_BYTES)
        self.used = 0

    def push(self, bytes frame not None, uint8_t side, uint16_t flags=0, uint16_t gso_size=0, uint16_t tag=0):
        """Copy one frame into the next slot."""
        if self.used == SLOTS or len(frame) > SLOT_BYTES:
            raise ValueError("the ring is full, or the frame too long")
        cdef uint8_t* memory = self.memory
        cdef Frame* slot = &self.frames[self.used]
        slot.data = memory + <size_t>self.used * SLOT_BYTES
        slot.length = <uint32_t>len(frame)
        slot.flags = flags
        slot.gso_size = gso_size
        slot.side = side
        slot.verdict = 255
        slot.tag = tag
        memcpy(slot.data, <const uint8_t*>frame, slot.length)
        self.used += 1

    def run(self, worker_capsule, uint64_t now_ns):
        """Translate what is in the ring and empty it: [(verdict, frame, tag)] in order."""
        cdef Worker* worker = worker_of(worker_capsule)
        cdef uint32_t i
        with nogil:
            lock(worker)
            translate(worker, self.frames, self.used, now_ns)
            tick(worker, now_ns)
            unlock(worker)
        result = []
        for i in range(self.used):
            result.append((self.frames[i].verdict, self.frames[i].data[: self.frames[i].length], self.frames[i].tag))
        self.used = 0
        return result

    def take_generated(self, worker_capsule):
        """(frame, side that it leaves by, verdict that caused it) of the gateway's own, or None: nothing waits, or another
        thread has the worker."""
        cdef Worker* worker = worker_of(worker_capsule)
        cdef uint8_t* out = self.memory
        cdef uint8_t send_to, cause
        cdef uint32_t length = 0
        with nogil:
            if try_lock(worker):
                length = take_generated(worker, out, SLOT_BYTES, &send_to, &cause)
                unlock(worker)
        return (out[:length], send_to, cause) if length else None
