"""The null forwarder: natcore's own drivers joined by nothing but the exchange of link addresses. What the wire allows."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from natcore.io.device cimport Arrival, Device, Driver
from natcore.base.compiler cimport load_acquire, store_release
from natcore.io.kernel cimport PACKET_HOST

cdef extern from * nogil:
    """
    #include <poll.h>
    """
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms)
    enum:
        POLLIN

cdef enum:
    BATCH = 256                 # as in natcore's loop
    IDLE_MS = 50


cdef uint32_t pass_on(Device* source, Device* destination, Arrival* arrivals, const uint8_t* macs) noexcept nogil:
    """One batch of one direction; how many frames arrived. Only IPv4 for this machine goes on."""
    cdef uint32_t arrived = source.receive(source, arrivals, BATCH), i
    cdef Arrival* arrival
    for i in range(arrived):
        arrival = &arrivals[i]
        if arrival.packet_type != PACKET_HOST or arrival.tagged or arrival.data[12] != 8 or arrival.data[13] != 0:
            continue
        memcpy(arrival.data, macs, 12)
        if arrival.offload.flags or arrival.offload.gso_type:
            destination.send(destination, arrival.data, arrival.length, arrival.offload)
        else:
            destination.send(destination, arrival.data, arrival.length, NULL)
    if arrived:
        destination.flush(destination)
    source.complete(source)
    return arrived


cdef class Forwarder:
    """macs: for frames that leave inside and outside: destination and source, 12 bytes each."""

    cdef Driver inside, outside
    cdef bytes macs_inside, macs_outside
    cdef uint32_t ended

    def __cinit__(self, Driver inside not None, Driver outside not None, bytes macs_inside not None,
                  bytes macs_outside not None):
        if len(macs_inside) != 12 or len(macs_outside) != 12:
            raise ValueError(f"macs must be 12 bytes, got {len(macs_inside)} and {len(macs_outside)}")
        self.inside, self.outside = inside, outside
        self.macs_inside, self.macs_outside = macs_inside, macs_outside
        self.ended = 0

    def run(self):
        """Moves packets until `stop`, without the GIL."""
        cdef pollfd fds[2]
        cdef uint32_t done
        cdef Device* inside = self.inside.device
        cdef Device* outside = self.outside.device
        cdef Arrival arrivals[BATCH]
        cdef const uint8_t* to_inside = <const uint8_t*><const char*>self.macs_inside
        cdef const uint8_t* to_outside = <const uint8_t*><const char*>self.macs_outside
        fds[0].fd, fds[1].fd = inside.fd, outside.fd
        fds[0].events = fds[1].events = POLLIN
        with nogil:
            while not load_acquire(&self.ended):
                done = pass_on(inside, outside, arrivals, to_outside)
                done += pass_on(outside, inside, arrivals, to_inside)
                if done == 0:
                    poll(fds, 2, IDLE_MS)

    def stop(self):
        store_release(&self.ended, 1)
