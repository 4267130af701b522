"""One AF_XDP socket: one queue of an interface, and the four rings shared with the kernel. No frames here."""
from libc.stdint cimport uint8_t, uint32_t

from natcore.io.umem cimport Umem

cdef struct KernelRing:         # a ring shared with the kernel; its indices run freely, modulo 2^32
    uint8_t* base
    size_t bytes
    uint32_t* producer
    uint32_t* consumer
    uint32_t* flags
    void* slots                 # xdp_desc (rx, tx) or uint64_t chunk addresses (fill, completion)
    uint32_t mask
    uint32_t next               # our next slot

cdef struct Queue:
    int fd
    uint8_t holder              # its number as a Holder
    bint unsent                 # the kernel did not accept all that was queued
    uint32_t void_slots         # descriptors voided after queueing that the kernel has not passed yet
    KernelRing rx
    uint32_t returned           # consumed slots of rx that were returned
    KernelRing fill           # chunks that the kernel may receive into
    KernelRing tx           # frames to be sent
    KernelRing completion             # chunks of those that were

cdef int queue_open(Queue* queue, Umem* umem, int index, uint32_t number, uint32_t entries) except -1
cdef void queue_close(Queue* queue, Umem* umem) noexcept nogil
