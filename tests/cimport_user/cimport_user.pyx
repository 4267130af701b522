"""A ring of frames of our own, translated through natcore's frozen C interface without the GIL."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.nat.pipeline cimport Worker, await_hold, release, tick, translate
from natcore.frame cimport FRAME_CSUM_PARTIAL, FRAME_GSO, Frame

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
        cdef Worker* worker = <Worker*>PyCapsule_GetPointer(worker_capsule, "natcore.Worker")
        cdef uint32_t i
        with nogil:
            await_hold(worker)
            translate(worker, self.frames, self.used, now_ns)
            tick(worker, now_ns)
            release(worker)
        result = []
        for i in range(self.used):
            result.append((self.frames[i].verdict, self.frames[i].data[: self.frames[i].length], self.frames[i].tag))
        self.used = 0
        return result
