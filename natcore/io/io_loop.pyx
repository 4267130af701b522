"""The I/O loop: polls every interface, receives batches, translates, finds next hops, sends; runs timers in between."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.io.deferred_frames cimport (
    DEFERRED_ALONE, DEFERRED_OVERFLOW, DEFERRED_WAITS, deferred_add, deferred_first, deferred_follows, deferred_outcome,
    deferred_remove,
)
from natcore.io.device cimport FRAME_CAPACITY, Arrival, Device
from natcore.io.fast_path cimport fold_some, offer
from natcore.io.loop_state cimport (
    ANYWHERE, BATCH, INTERFACES_MOST, OTHER_WORKER, RESOLVE_REQUESTS, VIEWS_MOST, Interface, Loop,
)
from natcore.io.frame_view cimport view_arrive, view_leave, view_generated
from natcore.io.neighbors cimport (
    RESOLVE_AGAIN_MS, FAILED, KNOWN, NO_ROUTE, UNKNOWN, Neighbour, set_contains, neighbour_at, neighbour_of, route_to,
)
from natcore.tables.ports cimport Address, address_find, host_has, space_of
from natcore.workers.locks cimport lock, unlock
from natcore.workers.worker cimport Worker
from natcore.nat.admission cimport is_shared_address
from natcore.nat.clock cimport tick
from natcore.nat.pipeline cimport FRAME_DEFERRED, count_sides, revoke, take_generated, translate
from natcore.nat.undelivered cimport subtract_from_others
from natcore.io.pending_frames cimport (
    PENDING_MS, PendingFrame, pending_add, pending_first, pending_remove, pending_next, pending_sweep,
)
from natcore.io.arp cimport ARP_FRAME_BYTES, arp_announce, arp_reply, arp_requested_address
from natcore.frame cimport FRAME_CROSSING, FRAME_CSUM_PARTIAL, FRAME_GSO, FRAME_UNFINISHED, Frame
from natcore.base.compiler cimport (
    bswap16, bswap32, count_up, load_acquire, load_relaxed, load_relaxed64, store_relaxed, store_relaxed64, store_release,
    unlikely,
)
from natcore.base.sentinels cimport NONE
from natcore.io.kernel cimport PACKET_BROADCAST, PACKET_HOST, VIRTIO_NET_HDR_F_NEEDS_CSUM, virtio_net_hdr
from natcore.base.spinlock cimport spin_lock, spin_unlock, wait_turn
from natcore.packet.verdict cimport DROP_NO_NEIGHBOUR, HELD, INBOUND, INSIDE, LOCAL, OUTBOUND, OUTSIDE, UNTRANSLATED, egress_of
from natcore.base.headers cimport (
    ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, ICMP_ECHO_REQUEST, IPV4_FRAGMENT, PROTOCOL_ICMP, PROTOCOL_TCP,
    PROTOCOL_UDP, EthernetHeader, Ipv4Header, UdpHeader, load32,
)

cdef extern from * nogil:
    """
    #include <poll.h>
    #include <stdint.h>
    #include <time.h>
    #include <unistd.h>
    static inline uint64_t natcore_clock_ns(clockid_t clock) {
        struct timespec t;
        clock_gettime(clock, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
    static uint64_t natcore_monotonic_ns(void) { return natcore_clock_ns(CLOCK_MONOTONIC); }
    static uint64_t natcore_boot_ns(void) { return natcore_clock_ns(CLOCK_BOOTTIME); }
    static void natcore_signal(int fd) { uint64_t one = 1; if (write(fd, &one, 8) != 8) {} }
    static void natcore_drain(int fd) { uint64_t sum; if (read(fd, &sum, 8) != 8) {} }
    """
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms)
    enum:
        POLLIN
        POLLERR
    uint64_t monotonic_ns "natcore_monotonic_ns" () noexcept
    uint64_t boot_ns "natcore_boot_ns" () noexcept     # goes on while the machine is suspended
    void c_signal "natcore_signal" (int fd) noexcept
    void c_drain "natcore_drain" (int fd) noexcept

cdef enum:
    TIMERS_NS = 10000000        # interval of the sweep, pending frames and announcements
    IDLE_MS = 50                # of poll, when nothing is expected
    BUSY_MS = 5                 # of poll, with frames pending
    DEFERRED_MS = 1             # of poll, with deferred frames
    DEFERRED_MOST_MS = 1000     # age at which a deferred frame is dropped: the gateway could not send it
    OVERFLOW_FRAMES = 256       # that leave at once where there is no space for another deferred one
    ANNOUNCE_AT_ONCE = 32       # gratuitous ARPs in one service
    TURNS_GIVEN = 450           # polls, about a millisecond, until a waiting caller has locked the worker
    DHCP_ANSWER_PORTS = 67 << 16 | 68
    UNCOUNTED = 0xFFFF          # tag of a frame counted as generated, not as forwarded


# ---- the worker's lock -----------------------------------------------------------------------------------------------

cdef inline void lock_for_batch(Worker* worker) noexcept nogil:
    """Locks the worker for a batch; callers that wait go first."""
    cdef uint32_t turn = 0
    while load_acquire(&worker.waiters) and turn < TURNS_GIVEN:
        wait_turn(turn)
        turn += 1
    lock(worker)


cdef void signal_fd(int fd) noexcept nogil:
    """Makes the eventfd readable."""
    c_signal(fd)


cdef void drain_fd(int fd) noexcept nogil:
    """Makes the eventfd unreadable."""
    c_drain(fd)


cdef uint64_t clock_of(const Loop* loop) noexcept nogil:
    """The gateway's clock, ns."""
    return monotonic_ns() + load_relaxed64(&loop.offset_ns)


cdef inline bint is_fenced(const Loop* loop) noexcept nogil:
    """Whether another gateway may translate now in place of this one (python/natcore/peer/lease.py)."""
    cdef uint64_t fence_ns = load_relaxed64(&loop.worker.shared.fence_ns)
    return unlikely(fence_ns != 0) and boot_ns() >= fence_ns


cdef bint lock_unless_fenced(Loop* loop) noexcept nogil:
    """Locks the worker; False, and it is not locked: the gateway may not translate, or not any more when it was its turn."""
    if is_fenced(loop):
        return False
    lock_for_batch(loop.worker)
    if is_fenced(loop):
        unlock(loop.worker)
        return False
    return True


# ---- out -------------------------------------------------------------------------------------------------------------

cdef inline Interface* outside_interface(Loop* loop) noexcept nogil:
    return &loop.interfaces[loop.count - 1]


cdef inline bint emit(Interface* interface, const Neighbour* neighbour, Frame* frame,
                      const virtio_net_hdr* offload) noexcept nogil:
    """Writes the link header and queues the frame; true if it was not copied (see Device)."""
    cdef EthernetHeader* link = <EthernetHeader*>frame.data
    memcpy(link.destination, neighbour.mac, 6)
    memcpy(link.source, interface.mac, 6)
    interface.queued = True
    # offload still to be done by the device; never for fragments
    return interface.device.send(interface.device, frame.data, frame.length,
                                 offload if frame.flags & ~(FRAME_CROSSING | FRAME_DEFERRED) else NULL)


cdef inline void flush(Interface* interface) noexcept nogil:
    """Passes queued frames to the kernel."""
    if interface.queued and interface.device != NULL:
        interface.device.flush(interface.device)
    interface.queued = False


cdef void drop_undelivered(Loop* loop, Frame* frame) noexcept nogil:
    """Counts a frame that cannot be sent: as lost, or as dropped."""
    if frame.tag == UNCOUNTED:
        spin_lock(&loop.worker.outbox.spin)
        loop.worker.outbox.lost += 1
        spin_unlock(&loop.worker.outbox.spin)
    else:
        revoke(loop.worker, frame, DROP_NO_NEIGHBOUR)


cdef void request_resolve(Loop* loop, Neighbour* neighbour, uint32_t interface, uint32_t now_ms) noexcept nogil:
    """Requests resolution of the neighbour, at most once per RESOLVE_AGAIN_MS."""
    if neighbour.requested_ms and now_ms - neighbour.requested_ms < RESOLVE_AGAIN_MS or loop.request_count == RESOLVE_REQUESTS:
        return
    neighbour.requested_ms = now_ms or 1
    neighbour.state = UNKNOWN
    loop.requests[loop.request_count].address = neighbour.address
    loop.requests[loop.request_count].interface = interface
    loop.request_count += 1
    loop.has_requests = True


cdef bint deliver(Loop* loop, Frame* frame, const virtio_net_hdr* offload, uint32_t now_ms) noexcept nogil:
    """Sends a forwarded frame to its next hop, or counts it. True if it was queued and not copied (see Device)."""
    cdef uint32_t side = egress_of(frame.verdict, frame.side, frame.flags & FRAME_CROSSING), at = 0
    cdef uint32_t via = route_to(&loop.routes[side], bswap32((<Ipv4Header*>(frame.data + ETHERNET_BYTES)).destination),
                                 &at)
    cdef Interface* interface = &loop.interfaces[at]
    cdef Neighbour* neighbour = NULL
    if via != NO_ROUTE and interface.device != NULL:
        neighbour = neighbour_of(&interface.neighbours, via)
    if neighbour == NULL:
        loop.no_route[side] += 1
        drop_undelivered(loop, frame)
        return False
    if neighbour.state == KNOWN:
        neighbour.used = 1
        return emit(interface, neighbour, frame, offload)
    request_resolve(loop, neighbour, at, now_ms)
    if neighbour.state == FAILED or not pending_add(&loop.pending, neighbour, at, frame, offload, now_ms):
        count_up(&interface.unresolved, 1)
        drop_undelivered(loop, frame)
    return False


cdef void process_pending(Loop* loop, uint32_t now_ms, bint close) noexcept nogil:
    """Sends frames with a resolved next hop, drops those pending too long; with close, all others."""
    cdef PendingFrame* waiting = pending_first(&loop.pending)
    cdef Interface* interface
    cdef Neighbour* neighbour
    store_release(&loop.learned, 0)
    while waiting != NULL:
        if waiting.address:
            interface = &loop.interfaces[waiting.interface]
            neighbour = neighbour_at(&interface.neighbours, waiting.address)
            if neighbour.address and neighbour.state == KNOWN and interface.device != NULL and not close:
                neighbour.used = 1
                emit(interface, neighbour, &waiting.frame, &waiting.offload)
                pending_remove(&loop.pending, waiting, &interface.neighbours)
            elif neighbour.state == FAILED or now_ms - waiting.since_ms >= PENDING_MS or close:
                count_up(&interface.unresolved, 1)
                drop_undelivered(loop, &waiting.frame)
                pending_remove(&loop.pending, waiting, &interface.neighbours)
        waiting = pending_next(&loop.pending, waiting)
    flush_all(loop)             # before their space is reused: large frames are not copied
    pending_sweep(&loop.pending)


cdef void send_deferred(Loop* loop, uint32_t now_ms, uint32_t outcome, uint32_t most) noexcept nogil:
    """Sends deferred frames that need not wait any more; behind a fence, or far too late, it drops them. outcome: with which
    all others leave too, or DEFERRED_WAITS; most: how many do. The worker must be locked."""
    cdef PendingFrame* waiting = deferred_first(&loop.deferred)
    cdef uint32_t acknowledged = load_acquire(&loop.worker.shared.defer_acknowledged)
    cdef uint32_t wait_ms = load_relaxed(&loop.worker.shared.defer_ms), how
    cdef bint fenced = is_fenced(loop)
    loop.deferred.acknowledged = acknowledged
    while waiting != NULL and most:
        if waiting.address:
            how = deferred_outcome(waiting, acknowledged, wait_ms, now_ms) or outcome
            if how != DEFERRED_WAITS:
                if not fenced and now_ms - waiting.since_ms < wait_ms + DEFERRED_MOST_MS:
                    deliver(loop, &waiting.frame, &waiting.offload, now_ms)
                else:
                    drop_undelivered(loop, &waiting.frame)
                deferred_remove(&loop.deferred, waiting, how, now_ms)
                most -= 1
        waiting = pending_next(&loop.deferred.ring, waiting)
    flush_all(loop)             # before their space is reused: large frames are not copied
    pending_sweep(&loop.deferred.ring)


cdef void run_deferred(Loop* loop) noexcept nogil:
    """Sends deferred frames, once the standby has acknowledged another cycle, or the first of them has waited long enough."""
    cdef PendingFrame* first = deferred_first(&loop.deferred)
    cdef uint32_t wait_ms = load_relaxed(&loop.worker.shared.defer_ms), now_ms = <uint32_t>(clock_of(loop) // 1000000)
    if first == NULL or is_fenced(loop):
        return
    if (load_acquire(&loop.worker.shared.defer_acknowledged) == loop.deferred.acknowledged and wait_ms
            and now_ms - first.since_ms < wait_ms):
        return
    lock_for_batch(loop.worker)
    send_deferred(loop, now_ms, DEFERRED_WAITS, <uint32_t>-1)
    unlock(loop.worker)
    subtract_from_others(loop.worker)


cdef bint defer(Loop* loop, Frame* frame, const virtio_net_hdr* offload, uint32_t cycle, uint32_t now_ms) noexcept nogil:
    """Holds back a frame that opened a session, or follows one that is held back; false: it is to be sent. cycle: for which
    the first one waits."""
    cdef bint opened = frame.flags & FRAME_DEFERRED
    if (not opened and not (loop.deferred.ring.frames and deferred_follows(&loop.deferred, &loop.worker.sessions.key, frame))
            or frame.length > FRAME_CAPACITY):
        return False
    frame.flags |= FRAME_DEFERRED           # the fast path must not be offered it
    while not deferred_add(&loop.deferred, &loop.worker.sessions.key, frame, offload, opened, cycle, now_ms):
        send_deferred(loop, now_ms, DEFERRED_OVERFLOW, OVERFLOW_FRAMES)
    if opened and loop.asked_cycle != cycle and loop.worker.shared.defer_fd:
        loop.asked_cycle = cycle
        signal_fd(loop.worker.shared.defer_fd)      # the feed begins the cycle
    return True


cdef void end_pending(Loop* loop) noexcept nogil:
    """Sends the deferred frames and drops all pending ones; the worker must be locked."""
    if deferred_first(&loop.deferred) != NULL:
        send_deferred(loop, <uint32_t>(clock_of(loop) // 1000000), DEFERRED_ALONE, <uint32_t>-1)
    process_pending(loop, 0, True)


cdef void deliver_generated(Loop* loop, uint32_t length, uint8_t side, uint8_t cause, uint32_t now_ms) noexcept nogil:
    """Sends a generated frame by the route to its destination: a fragment that was held or made, or an ICMP message."""
    cdef Frame frame
    cdef virtio_net_hdr nothing
    memset(&nothing, 0, sizeof(nothing))
    memset(&frame, 0, sizeof(frame))
    frame.data = loop.generated
    frame.length = length
    frame.side = OUTSIDE if side == INSIDE else INSIDE
    frame.verdict = OUTBOUND if side == OUTSIDE else INBOUND
    frame.tag = 0 if cause == HELD else UNCOUNTED
    if deliver(loop, &frame, &nothing, now_ms):
        flush_all(loop)


cdef inline bint replies_to(const Loop* loop, const Interface* interface, uint8_t side) noexcept nogil:
    """Whether a generated frame with egress `side` replies to one from this interface. With several workers and inside
    interfaces the cause may have arrived at another one."""
    return side == interface.side and (loop.worker.shared.count == 1 or loop.count == 2 or side == OUTSIDE)


cdef void show_generated(Loop* loop, const Interface* interface, uint32_t length, uint8_t side, uint8_t cause,
                         uint64_t now_ns) noexcept nogil:
    """Shows a generated frame to whoever looks. interface: that it leaves by; NULL: by its destination."""
    cdef uint32_t i, at = 0
    if interface != NULL:
        at = <uint32_t>(interface - &loop.interfaces[0])
    else:
        route_to(&loop.routes[side], bswap32((<Ipv4Header*>(loop.generated + ETHERNET_BYTES)).destination), &at)
    for i in range(VIEWS_MOST):
        if loop.views[i] != NULL:
            view_generated(loop.views[i], loop.generated, length, side, cause, <uint8_t>at, loop.worker.number, now_ns)


cdef void send_generated(Loop* loop, Interface* from_interface, uint64_t now_ns) noexcept nogil:
    """Sends generated frames: replies to a frame from from_interface go back there, with its link header; others, and
    fragments, by their destination."""
    cdef uint8_t side = 0, cause = 0
    cdef uint32_t length
    cdef bint routed
    while True:
        length = take_generated(loop.worker, loop.generated, FRAME_CAPACITY, &side, &cause)
        if length == 0:
            return
        routed = cause == HELD or cause <= UNTRANSLATED or not replies_to(loop, from_interface, side & 1)
        if routed:
            deliver_generated(loop, length, side & 1, cause, <uint32_t>(now_ns // 1000000))
        elif from_interface.device != NULL:
            from_interface.queued = True
            if from_interface.device.send(from_interface.device, loop.generated, length, NULL):
                flush(from_interface)
        if unlikely(loop.view_count):
            show_generated(loop, NULL if routed else from_interface, length, side & 1, cause, now_ns)


cdef void announce_own(Loop* loop) noexcept nogil:
    """Announces by gratuitous ARP, on each link, the gateway's own address there, unless it is the host's too."""
    cdef Interface* interface
    cdef uint32_t i
    cdef uint8_t frame[ARP_FRAME_BYTES]
    for i in range(loop.count):
        interface = &loop.interfaces[i]
        if interface.device != NULL and interface.address and not set_contains(&loop.local, bswap32(interface.address)):
            arp_announce(frame, interface.address, interface.mac)
            interface.device.send(interface.device, frame, ARP_FRAME_BYTES, NULL)
            interface.queued = True


cdef void announce(Loop* loop) noexcept nogil:
    """Announces the gateway's own addresses, then the next few outside addresses."""
    cdef Interface* interface = outside_interface(loop)
    cdef uint32_t _i, number
    cdef uint8_t frame[ARP_FRAME_BYTES]
    if interface.device == NULL or loop.announced == OTHER_WORKER:
        return
    if loop.announced == 0:
        announce_own(loop)
        store_relaxed(&loop.announced, 1)
    for _i in range(ANNOUNCE_AT_ONCE):
        number = loop.announced - 1
        if number >= loop.worker.mappings.ports.count:
            return
        if loop.worker.mappings.ports.addresses[number].references:
            arp_announce(frame, loop.worker.mappings.ports.addresses[number].ip, interface.mac)
            interface.device.send(interface.device, frame, ARP_FRAME_BYTES, NULL)
            interface.queued = True
        store_relaxed(&loop.announced, number + 2)


# ---- in --------------------------------------------------------------------------------------------------------------

cdef void answer_arp(Loop* loop, Interface* interface, Arrival* arrival) noexcept nogil:
    """Answers ARP requests for the gateway's addresses."""
    cdef uint32_t asked = arp_requested_address(arrival.data, arrival.length), asked_be = bswap32(asked)
    count_up(&interface.left_to_kernel, 1)
    if asked == 0 or set_contains(&loop.local, asked):
        return
    if asked_be == interface.address or (
            interface.side == OUTSIDE and address_find(loop.worker.mappings.ports, asked_be) != NONE):
        arp_reply(arrival.data, interface.mac)
        interface.device.send(interface.device, arrival.data, ARP_FRAME_BYTES, NULL)
        interface.queued = True
        count_up(&interface.left_to_kernel, <uint64_t>-1)
        count_up(&interface.arp_answered, 1)


cdef inline bint is_dhcp_answer(const Arrival* arrival) noexcept nogil:
    """UDP from port 67 to 68: for the host's DHCP client, possibly to an address it does not have yet (RFC 2131 4.1)."""
    cdef const Ipv4Header* ip = <const Ipv4Header*>(arrival.data + ETHERNET_BYTES)
    return (arrival.length >= ETHERNET_BYTES + sizeof(Ipv4Header) + sizeof(UdpHeader)
            and load32(<const uint8_t*>ip + sizeof(Ipv4Header)) == bswap32(DHCP_ANSWER_PORTS)
            and ip.protocol == PROTOCOL_UDP and ip.version_ihl == 0x45
            and not ip.fragment & bswap16(IPV4_FRAGMENT))


cdef bint may_be_ours(const Address* address, const Arrival* arrival) noexcept nogil:
    """Whether a packet to a shared address may be the gateway's: TCP and UDP by the port; fragments, ICMP errors and replies
    are told apart by their datagram or session (nat/). Echo requests and other protocols are the host's."""
    cdef const Ipv4Header* ip = <const Ipv4Header*>(arrival.data + ETHERNET_BYTES)
    cdef uint32_t header = (ip.version_ihl & 15) * 4
    cdef const uint8_t* l4 = <const uint8_t*>ip + header
    cdef bint ported = ip.protocol == PROTOCOL_TCP or ip.protocol == PROTOCOL_UDP
    if not ported and ip.protocol != PROTOCOL_ICMP:
        return False
    if ip.fragment & bswap16(IPV4_FRAGMENT) or arrival.length < ETHERNET_BYTES + header + 4:
        return True
    if ported:
        return not host_has(address, space_of(ip.protocol), <uint32_t>l4[2] << 8 | l4[3])
    return l4[0] != ICMP_ECHO_REQUEST


cdef inline bint is_ours(Loop* loop, Arrival* arrival) noexcept nogil:
    """Whether the frame is translated; otherwise it is left to the kernel (or answered as ARP)."""
    cdef uint16_t ethertype
    cdef uint32_t destination, number
    cdef const Address* address
    if arrival.tagged or arrival.length < ETHERNET_BYTES:
        return False
    ethertype = bswap16((<EthernetHeader*>arrival.data).ethertype)
    if ethertype == ETHERTYPE_IPV4 and arrival.packet_type == PACKET_HOST:
        if arrival.length < ETHERNET_BYTES + sizeof(Ipv4Header):
            return True
        if is_dhcp_answer(arrival):
            return False
        destination = (<Ipv4Header*>(arrival.data + ETHERNET_BYTES)).destination
        if not set_contains(&loop.local, bswap32(destination)):
            return True
        number = address_find(loop.worker.mappings.ports, destination)
        if number == NONE:
            return False
        address = &loop.worker.mappings.ports.addresses[number]
        return address.host == NULL or may_be_ours(address, arrival)
    return False


cdef void count_local(Loop* loop, Interface* interface, const Frame* frame, bint tapped) noexcept nogil:
    """Counts what turned out to be for the host, or with a tap not for it: there the kernel has counted all."""
    cdef bint hosts = frame.verdict == LOCAL and is_shared_address(
        loop.worker, (<const Ipv4Header*>(frame.data + ETHERNET_BYTES)).destination)
    if hosts != tapped:
        count_up(&interface.left_to_kernel, 1 if hosts else <uint64_t>-1)


cdef inline uint16_t flags_of(const Arrival* arrival) noexcept nogil:
    """FrameFlag. A partial checksum further in (of an encapsulated packet) is not the layer-4 checksum."""
    cdef const virtio_net_hdr* offload = arrival.offload
    cdef const Ipv4Header* ip = <const Ipv4Header*>(arrival.data + ETHERNET_BYTES)
    cdef uint16_t flags = FRAME_GSO if offload.gso_type else 0
    if (offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and arrival.length >= ETHERNET_BYTES + sizeof(Ipv4Header)
            and offload.csum_start == ETHERNET_BYTES + (ip.version_ihl & 15) * 4
            and ((ip.protocol == PROTOCOL_TCP and offload.csum_offset == 16)
                 or (ip.protocol == PROTOCOL_UDP and offload.csum_offset == 6))):
        return flags | FRAME_CSUM_PARTIAL
    return flags | FRAME_UNFINISHED if offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM else flags


cdef inline bint is_crossing(const Loop* loop, const Interface* interface, const Frame* frame) noexcept nogil:
    """Whether it is from inside, and the best route to its destination leads to an inside interface."""
    cdef uint32_t at = 0
    if interface.side == OUTSIDE or frame.length < ETHERNET_BYTES + sizeof(Ipv4Header):
        return False
    return (route_to(&loop.routes[ANYWHERE], bswap32((<Ipv4Header*>(frame.data + ETHERNET_BYTES)).destination), &at)
            != NO_ROUTE and loop.interfaces[at].side == INSIDE)


cdef uint32_t select_frames(Loop* loop, Interface* interface, uint32_t arrived, bint tapped) noexcept nogil:
    """Converts received frames that are to be translated; how many. tapped: they are copies, the kernel has counted them."""
    cdef uint32_t i, count = 0
    cdef bint may_cross = loop.worker.rules != NULL and loop.worker.rules.no_nat_count   # only then can a packet cross
    cdef Arrival* arrival
    cdef Frame* frame
    for i in range(arrived):
        arrival = &loop.arrivals[i]
        if is_ours(loop, arrival):
            frame = &loop.frames[count]
            frame.data = arrival.data
            frame.length = arrival.length
            frame.flags = flags_of(arrival) if arrival.offload.flags or arrival.offload.gso_type else 0
            frame.gso_size = arrival.offload.gso_size
            frame.side = interface.side
            if may_cross and is_crossing(loop, interface, frame):
                frame.flags |= FRAME_CROSSING
            frame.tag = <uint16_t>i
            count += 1
        elif (not tapped and arrival.length >= ETHERNET_BYTES and not arrival.tagged
                and (<EthernetHeader*>arrival.data).ethertype == bswap16(ETHERTYPE_ARP)
                and (arrival.packet_type == PACKET_HOST or arrival.packet_type == PACKET_BROADCAST)):
            answer_arp(loop, interface, arrival)
        elif not tapped:
            count_up(&interface.left_to_kernel, 1)
    return count


cdef void show_arrived(Loop* loop, uint32_t count) noexcept nogil:
    """Shows frames to whoever looks, before they are translated."""
    cdef uint32_t i
    for i in range(VIEWS_MOST):
        if loop.views[i] != NULL:
            view_arrive(loop.views[i], loop.frames, count)


cdef void show_left(Loop* loop, const Interface* interface, uint32_t count, bint tapped, uint64_t now_ns) noexcept nogil:
    """Shows what became of them, their link headers included. tapped: what is not forwarded is the kernel's."""
    cdef uint32_t i
    for i in range(VIEWS_MOST):
        if loop.views[i] != NULL:
            view_leave(loop.views[i], loop.frames, count, <uint8_t>(interface - &loop.interfaces[0]), loop.worker.number,
                       tapped, now_ns)


cdef void offer_forwarded(Loop* loop, const Interface* interface, uint32_t count, uint64_t now_ns) noexcept nogil:
    """Offers sessions of forwarded frames to the fast path, one frame of four: a session has had some packets then. Where its
    table is full, fewer: an offer waits for memory several times."""
    cdef uint32_t i
    loop.worker.sessions.offload.now_ns = now_ns
    for i in range(count):
        loop.offered = loop.offered * <uint32_t>1664525 + <uint32_t>1013904223
        if loop.offered < loop.offer_below:
            offer(loop, interface, &loop.frames[i])


cdef uint32_t serve(Loop* loop, Interface* interface, Device* device, uint32_t budget) noexcept nogil:
    """Serves one batch of an interface's device or tap; frames received."""
    cdef uint32_t arrived, count, i, now_ms
    cdef uint64_t now_ns
    cdef uint32_t cycle
    cdef bint tapped = device != interface.device, defers
    if device == NULL or interface.device == NULL:
        return 0
    arrived = device.receive(device, loop.arrivals, budget if budget < BATCH else BATCH)
    if arrived and not lock_unless_fenced(loop):
        count_up(&interface.fenced, 0 if tapped else arrived)
    elif arrived:
        now_ns = clock_of(loop)
        now_ms = <uint32_t>(now_ns // 1000000)
        loop.worker.links.address[interface.side] = interface.address
        count = select_frames(loop, interface, arrived, tapped)
        if unlikely(loop.view_count):
            show_arrived(loop, count)
        translate(loop.worker, loop.frames, count, now_ns)
        count_sides(loop.worker, loop.frames, count)
        defers = loop.deferred.ring.frames or load_relaxed(&loop.worker.shared.defer_ms)
        cycle = load_acquire(&loop.worker.shared.defer_cycle) + 1 if unlikely(defers) else 0
        for i in range(count):
            if loop.frames[i].verdict <= UNTRANSLATED and not (unlikely(defers) and defer(
                    loop, &loop.frames[i], loop.arrivals[loop.frames[i].tag].offload, cycle, now_ms)):
                deliver(loop, &loop.frames[i], loop.arrivals[loop.frames[i].tag].offload, now_ms)
            if unlikely(tapped or loop.frames[i].verdict == LOCAL):
                count_local(loop, interface, &loop.frames[i], tapped)
        if unlikely(loop.worker.sessions.offload != NULL and not tapped):
            offer_forwarded(loop, interface, count, now_ns)
        if unlikely(loop.view_count):
            show_left(loop, interface, count, tapped, now_ns)
        send_generated(loop, interface, now_ns)
        unlock(loop.worker)
        subtract_from_others(loop.worker)
        flush_all(loop)
    device.complete(device)
    return arrived


cdef void flush_all(Loop* loop) noexcept nogil:
    """Passes queued frames to the kernel, and requests to the control side."""
    cdef uint32_t i
    for i in range(loop.count):
        flush(&loop.interfaces[i])
    if loop.has_requests:
        loop.has_requests = False
        signal_fd(loop.requests_fd)


cdef void run_timers(Loop* loop) noexcept nogil:
    """Runs timers: sweep, pending frames, announcements, generated frames."""
    cdef uint64_t now_ns = clock_of(loop), elapsed_ns
    store_relaxed64(&loop.turned_ns, now_ns - load_relaxed64(&loop.offset_ns))
    if now_ns - loop.timers_ns < TIMERS_NS and not load_acquire(&loop.learned):
        return
    elapsed_ns = now_ns - loop.timers_ns
    loop.timers_ns = now_ns
    if not lock_unless_fenced(loop):    # ARP announces nothing, and nothing that waits is sent
        return
    if unlikely(loop.worker.sessions.offload != NULL):
        loop.worker.sessions.offload.now_ns = now_ns
        fold_some(loop, elapsed_ns)
    tick(loop.worker, now_ns)
    if loop.pending.frames:
        process_pending(loop, <uint32_t>(now_ns // 1000000), False)
    store_release(&loop.learned, 0)
    announce(loop)
    send_generated(loop, outside_interface(loop), now_ns)
    unlock(loop.worker)
    subtract_from_others(loop.worker)
    flush_all(loop)


cdef uint32_t work(Loop* loop, uint32_t budget) noexcept nogil:
    """Moves about budget frames at most, of all ports; how many."""
    cdef uint32_t done = 0, before, i
    cdef Interface* interface
    while done < budget:
        before = done
        for i in range(loop.count):
            interface = &loop.interfaces[(i + loop.serve_first) % loop.count]
            done += serve(loop, interface, interface.device, budget - done if budget > done else 1)
            if unlikely(interface.tap != NULL):
                done += serve(loop, interface, interface.tap, budget - done if budget > done else 1)
        loop.serve_first = loop.serve_first + 1 if loop.serve_first + 1 < loop.count else 0
        if unlikely(loop.deferred.ring.frames != 0):
            run_deferred(loop)
        run_timers(loop)
        if done == before or load_acquire(&loop.park) or load_acquire(&loop.stop):
            break
    return done


cdef void clear_errors(Loop* loop) noexcept nogil:
    """Clears the error that a link leaves when it goes down, which makes poll return at once."""
    cdef uint32_t i
    for i in range(loop.count):
        if loop.interfaces[i].device != NULL:
            loop.interfaces[i].device.clear_error(loop.interfaces[i].device)
        if loop.interfaces[i].tap != NULL:
            loop.interfaces[i].tap.clear_error(loop.interfaces[i].tap)


cdef void wait_for_work(Loop* loop) noexcept nogil:
    """Waits for a frame, the control side, or the next service."""
    cdef pollfd fds[2 * INTERFACES_MOST + 1]
    cdef uint32_t i, failed = 0
    cdef bint announces
    cdef int most_ms = IDLE_MS
    for i in range(loop.count):
        fds[i].fd = -1 if loop.interfaces[i].device == NULL else loop.interfaces[i].device.fd
        fds[i].events = POLLIN
        fds[loop.count + 1 + i].fd = -1 if loop.interfaces[i].tap == NULL else loop.interfaces[i].tap.fd
        fds[loop.count + 1 + i].events = POLLIN
    fds[loop.count].fd = loop.wake_fd
    fds[loop.count].events = POLLIN
    announces = load_relaxed(&loop.announced) <= load_relaxed(&loop.worker.mappings.ports.count) and not is_fenced(loop)
    if loop.deferred.ring.frames:
        most_ms = DEFERRED_MS
    elif loop.pending.frames or announces:
        most_ms = BUSY_MS
    if poll(fds, 2 * loop.count + 1, most_ms) <= 0:
        return
    for i in range(loop.count):
        failed |= (fds[i].revents | fds[loop.count + 1 + i].revents) & POLLERR
    if failed:
        clear_errors(loop)
    if fds[loop.count].revents:
        drain_fd(loop.wake_fd)


cdef void run(Loop* loop) noexcept nogil:
    while not load_acquire(&loop.stop) and not load_acquire(&loop.park):
        if work(loop, 4 * BATCH) == 0:
            wait_for_work(loop)
