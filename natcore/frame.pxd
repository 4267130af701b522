"""Frame: one frame of natcore.h, and what became of it; `translate` of translate.pxd takes an array of them."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef extern from "natcore/natcore.h" nogil:
    enum:                       # Frame.flags
        FRAME_CSUM_PARTIAL "NATCORE_CSUM_PARTIAL"
        FRAME_GSO "NATCORE_GSO"
        FRAME_UNFINISHED "NATCORE_UNFINISHED"
        FRAME_CROSSING "NATCORE_CROSSING"

    ctypedef struct Frame "natcore_frame":
        uint8_t *data
        uint32_t length
        uint16_t flags
        uint16_t gso_size
        uint8_t side
        uint8_t verdict
        uint16_t tag
