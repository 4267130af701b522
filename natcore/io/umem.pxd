"""Places for frames, which the AF_XDP sockets of a loop share with the kernel. No sockets."""
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    HOLDERS = 256
    HEADROOM = 256              # bytes that the kernel keeps before a received frame: XDP_PACKET_HEADROOM

cdef enum Holder:               # whose a frame's place in the memory is
    FREE = 0
    LOOP = 1                    # received and not given back, nor queued to be sent
    FIRST_QUEUE = 2             # from here on: the queue that the kernel will fill it from, or send it by

cdef struct Memory:             # places for frames; one loop's: no two threads at once
    uint8_t* area
    uint32_t place_bytes
    uint32_t place_shift        # its logarithm
    uint32_t places
    uint8_t* holders            # [places] Holder
    uint32_t* free              # [places] a stack of those that nobody holds
    uint32_t free_count
    uint8_t queues[HOLDERS]     # numbers of queues in use

cdef inline void give_back(Memory* memory, uint32_t place) noexcept nogil:
    """Nobody holds the place any more."""
    memory.holders[place] = FREE
    memory.free[memory.free_count] = place
    memory.free_count += 1

cdef class FrameMemory:
    cdef Memory memory
