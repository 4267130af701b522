"""Events: which subscriber or pool reached which limit; one event per cause until it is read, with a count."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.base.spinlock cimport Spinlock, assert_spin, spin_lock_inner, spin_unlock

cdef enum:
    EVENT_SLOTS = 1024
    REASON_SLOTS = 16           # one per reason, when no slot is free

cdef enum:                      # reasons other than the drops of Verdict
    PORTS_THRESHOLD = 1         # ports of an outside address and protocol (0: port blocks) are nearly used up
    SESSIONS_THRESHOLD = 2
    RECORDS_LOST = 3            # rows of the session log were lost
    ADDRESS_ADDED = 4           # the outside interface has an address more that a pool follows
    ADDRESS_REMOVED = 5

cdef struct Event:
    uint64_t count              # 0: the slot is free
    uint64_t at_ns              # time of the first, ns of the gateway's clock
    uint32_t subscriber         # inside address, big-endian; PORTS_THRESHOLD, ADDRESS_…: outside address
    uint32_t destination
    uint16_t port               # of the destination, big-endian
    uint8_t protocol
    uint8_t verdict             # reason: a drop Verdict, or one of the above
    uint8_t limit               # Limit (limits.pxd) of the first

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <sys/eventfd.h>
    #include <unistd.h>
    static int natcore_event_fd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
    static void natcore_event_fd_set(int fd) { (void)!eventfd_write(fd, 1); }
    static void natcore_event_fd_clear(int fd) { eventfd_t count; (void)!eventfd_read(fd, &count); }
    static void natcore_event_fd_close(int fd) { if (fd >= 0) close(fd); }
    """
    int event_fd "natcore_event_fd" () noexcept
    void event_fd_set "natcore_event_fd_set" (int fd) noexcept
    void event_fd_clear "natcore_event_fd_clear" (int fd) noexcept
    void event_fd_close "natcore_event_fd_close" (int fd) noexcept

cdef struct Events:
    Event slots[1024]
    Event by_reason[16]         # [REASON_SLOTS] sums by reason, when no slot was free; subscriber 0
    uint32_t waiting
    int fd                      # readable while events wait
    uint64_t lost               # events that found neither
    Spinlock spin

cdef inline void event_note(Events* events, uint8_t verdict, uint8_t limit, uint32_t subscriber, uint32_t destination,
                            uint16_t port, uint8_t protocol, uint64_t now_ns) noexcept nogil:
    spin_lock_inner(&events.spin)
    event_add(events, verdict, limit, subscriber, destination, port, protocol, now_ns)
    spin_unlock(&events.spin)

cdef inline void event_begin(Events* events, Event* event, uint8_t verdict, uint8_t limit, uint32_t subscriber,
                             uint32_t destination, uint16_t port, uint8_t protocol, uint64_t now_ns) noexcept nogil:
    event.count = 1
    event.at_ns = now_ns
    event.subscriber = subscriber
    event.destination = destination
    event.port = port
    event.protocol = protocol
    event.verdict = verdict
    event.limit = limit
    events.waiting += 1
    if events.waiting == 1:
        event_fd_set(events.fd)

cdef inline void event_add(Events* events, uint8_t verdict, uint8_t limit, uint32_t subscriber, uint32_t destination,
                           uint16_t port, uint8_t protocol, uint64_t now_ns) noexcept nogil:
    cdef uint32_t at = subscriber ^ verdict * <uint32_t>0x9E3779B9, step
    cdef Event* event
    assert_spin(&events.spin, NULL, "events: event_add")
    at = (at ^ at >> 16) * <uint32_t>0x45D9F3B      # neighbouring addresses differ in the highest byte: mix it into the lowest
    at ^= at >> 16
    for step in range(16):
        event = &events.slots[(at + step) & (EVENT_SLOTS - 1)]
        if (event.count and event.subscriber == subscriber and event.verdict == verdict
                and (event.protocol == protocol or verdict != PORTS_THRESHOLD)):
            event.count += 1
            return
        if event.count == 0:
            event_begin(events, event, verdict, limit, subscriber, destination, port, protocol, now_ns)
            return
    for step in range(REASON_SLOTS):
        event = &events.by_reason[step]
        if event.count and event.verdict == verdict:
            event.count += 1
            return
        if event.count == 0:
            event_begin(events, event, verdict, limit, 0, 0, 0, 0, now_ns)
            return
    events.lost += 1
