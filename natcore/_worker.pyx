"""The loop: poll both rings, batch, translate, find the next hop, send; between batches own frames and the sweep."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore._nexthop cimport (
    ASK_AGAIN_MS, FAILED, KNOWN, UNKNOWN, WAITING_MS, Neighbour, holds, neighbour_at, next_hop, waiting_free,
    waiting_take,
)
from natcore._ports cimport address_find
from natcore._ring cimport FRAME_ROOM, clear_error, complete, flush, receive, send
from natcore._hold cimport hold, release
from natcore._time cimport tick
from natcore._translate cimport revoke, take_generated, translate
from natcore.arp cimport ARP_FRAME_BYTES, arp_announce, arp_answer, arp_asked
from natcore.frame cimport FRAME_CSUM_PARTIAL, FRAME_GSO, FRAME_UNFINISHED
from natcore.hints cimport bswap16, bswap32, load_acquire
from natcore.index cimport NONE
from natcore.kernel cimport PACKET_BROADCAST, PACKET_HOST, VIRTIO_NET_HDR_F_NEEDS_CSUM, virtio_net_hdr
from natcore.verdict cimport DROP_NO_NEIGHBOUR, HELD, INBOUND, INSIDE, OUTBOUND, OUTSIDE, UNTRANSLATED
from natcore.wire cimport (
    ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, PROTOCOL_TCP, PROTOCOL_UDP, EthernetHeader, Ipv4Header,
)

cdef extern from * nogil:
    """
    #include <poll.h>
    #include <stdint.h>
    #include <time.h>
    #include <unistd.h>
    static void natcore_pause(void) { struct timespec t = {0, 20000}; nanosleep(&t, NULL); }
    static uint64_t natcore_monotonic_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
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
    void c_pause "natcore_pause" () noexcept
    uint64_t monotonic_ns "natcore_monotonic_ns" () noexcept
    void c_signal "natcore_signal" (int fd) noexcept
    void c_drain "natcore_drain" (int fd) noexcept

cdef enum:
    SERVICE_NS = 10000000       # between two looks at the sweep, the waiting room, announcements
    IDLE_MS = 50                # of poll, when nothing is expected
    BUSY_MS = 5                 # of poll, when somebody waits
    ANNOUNCE_AT_ONCE = 32       # gratuitous ARPs in one service
    YIELDS = 50                 # pauses granted to a control call before the next batch
    UNCOUNTED = 0xFFFF          # tag of a frame that the counters know as generated, not as forwarded


# ---- who holds the worker --------------------------------------------------------------------------------------------

cdef inline void enter(Worker* worker) noexcept nogil:
    """Takes the worker for a batch; whoever asked for attention goes first."""
    cdef uint32_t i = 0
    while load_acquire(&worker.attention) and i < YIELDS:
        pause()
        i += 1
    while not hold(worker):
        pause()


cdef void pause() noexcept nogil:
    """20 microseconds, for whoever holds what is wanted."""
    c_pause()


cdef void signal_fd(int fd) noexcept nogil:
    """The eventfd becomes readable."""
    c_signal(fd)


cdef void drain_fd(int fd) noexcept nogil:
    """The eventfd is not readable any more."""
    c_drain(fd)


cdef uint64_t clock_of(const Loop* loop) noexcept nogil:
    """The gateway's clock, ns."""
    return <uint64_t>(<int64_t>monotonic_ns() + loop.offset_ns)


# ---- out -------------------------------------------------------------------------------------------------------------

cdef inline uint32_t egress_of(const Frame* frame) noexcept nogil:
    """The Side that a forwarded frame leaves by."""
    if frame.verdict == OUTBOUND:
        return OUTSIDE
    if frame.verdict == UNTRANSLATED:
        return OUTSIDE if frame.side == INSIDE else INSIDE
    return INSIDE


cdef inline void emit(Port* port, const Neighbour* neighbour, Frame* frame,
                      const virtio_net_hdr* offload) noexcept nogil:
    """Writes the link header and queues the frame."""
    cdef EthernetHeader* link = <EthernetHeader*>frame.data
    memcpy(link.destination, neighbour.mac, 6)
    memcpy(link.source, port.mac, 6)
    if frame.flags:             # what a device has to do still; for fragments it was done
        send(port.ring, frame.data, frame.length, offload)
    else:
        send(port.ring, frame.data, frame.length, NULL)


cdef void give_up(Loop* loop, Frame* frame) noexcept nogil:
    """The frame cannot be delivered."""
    if frame.tag == UNCOUNTED:
        loop.worker.outbox.lost += 1
    else:
        revoke(loop.worker, frame, DROP_NO_NEIGHBOUR)


cdef void ask(Loop* loop, Neighbour* neighbour, uint32_t side, uint32_t now_ms) noexcept nogil:
    """Wants the neighbour resolved, once in a while."""
    if neighbour.asked_ms and now_ms - neighbour.asked_ms < ASK_AGAIN_MS or loop.wish_count == WISHES:
        return
    neighbour.asked_ms = now_ms or 1
    neighbour.state = UNKNOWN
    loop.wishes[loop.wish_count].address = neighbour.address
    loop.wishes[loop.wish_count].side = side
    loop.wish_count += 1
    loop.ask = True


cdef void hold_back(Loop* loop, Port* port, Neighbour* neighbour, Frame* frame, const virtio_net_hdr* offload,
                    uint32_t side, uint32_t now_ms) noexcept nogil:
    """The next hop is not known: a few frames wait for it, the others are dropped."""
    cdef Waiting* waiting = NULL
    ask(loop, neighbour, side, now_ms)
    if neighbour.state != FAILED and frame.length <= FRAME_ROOM:
        waiting = waiting_take(loop.room, neighbour)
    if waiting == NULL:
        port.unresolved += 1
        give_up(loop, frame)
        return
    memcpy(waiting.data, frame.data, frame.length)
    waiting.frame = frame[0]
    waiting.frame.data = waiting.data
    waiting.offload = offload[0]
    waiting.since_ms = now_ms
    waiting.side = <uint8_t>side
    loop.waiting += 1


cdef void deliver(Loop* loop, Frame* frame, const virtio_net_hdr* offload, uint32_t now_ms) noexcept nogil:
    """A forwarded frame, towards its destination; or why not."""
    cdef uint32_t side = egress_of(frame)
    cdef Port* port = &loop.ports[side]
    cdef Neighbour* neighbour = NULL
    if port.ring != NULL:
        neighbour = next_hop(&port.hops, bswap32((<Ipv4Header*>(frame.data + ETHERNET_BYTES)).destination))
    if neighbour == NULL:
        port.no_route += 1
        give_up(loop, frame)
    elif neighbour.state == KNOWN:
        neighbour.used = 1
        emit(port, neighbour, frame, offload)
    else:
        hold_back(loop, port, neighbour, frame, offload, side, now_ms)


cdef void look_through_room(Loop* loop, uint32_t now_ms, bint close) noexcept nogil:
    """Sends what has its next hop now, drops what waited too long; with close, whatever is left."""
    cdef uint32_t i
    cdef Waiting* waiting
    cdef Port* port
    cdef Neighbour* neighbour
    loop.learned = 0
    for i in range(WAITING_ROOM):
        waiting = &loop.room[i]
        if not waiting.taken:
            continue
        port = &loop.ports[waiting.side]
        neighbour = neighbour_at(&port.hops, waiting.address)
        if neighbour.address and neighbour.state == KNOWN and port.ring != NULL and not close:
            neighbour.used = 1
            emit(port, neighbour, &waiting.frame, &waiting.offload)
            flush(port.ring)        # a large frame is not copied, and its place is free again
        elif neighbour.state == FAILED or now_ms - waiting.since_ms >= WAITING_MS or close:
            port.unresolved += 1
            give_up(loop, &waiting.frame)
        else:
            continue
        waiting_free(waiting, &port.hops)
        loop.waiting -= 1


cdef void close_room(Loop* loop) noexcept nogil:
    """Whatever waits is dropped; the caller holds the worker."""
    look_through_room(loop, 0, True)


cdef void deliver_fragment(Loop* loop, uint32_t length, uint8_t side, uint8_t cause, uint32_t now_ms) noexcept nogil:
    """A fragment that waited or was made: it finds its next hop as any packet does."""
    cdef Frame frame
    cdef virtio_net_hdr nothing
    memset(&nothing, 0, sizeof(nothing))
    memset(&frame, 0, sizeof(frame))
    frame.data = loop.generated
    frame.length = length
    frame.side = OUTSIDE if side == INSIDE else INSIDE
    frame.verdict = OUTBOUND if side == OUTSIDE else INBOUND
    frame.tag = 0 if cause == HELD else UNCOUNTED
    deliver(loop, &frame, &nothing, now_ms)
    if loop.ports[side].ring != NULL and loop.ports[side].ring.large:
        flush(loop.ports[side].ring)    # a large frame is not copied


cdef void send_generated(Loop* loop, uint32_t now_ms) noexcept nogil:
    """The gateway's own frames; they answer the frame that caused them, link header included. And fragments."""
    cdef uint8_t side = 0, cause = 0
    cdef uint32_t length
    while True:
        length = take_generated(loop.worker, loop.generated, FRAME_ROOM, &side, &cause)
        if length == 0:
            return
        if cause == HELD or cause <= UNTRANSLATED:
            deliver_fragment(loop, length, side & 1, cause, now_ms)
        elif loop.ports[side & 1].ring != NULL and send(loop.ports[side & 1].ring, loop.generated, length, NULL):
            flush(loop.ports[side & 1].ring)


cdef void announce(Loop* loop) noexcept nogil:
    """The next few of the outside addresses, by gratuitous ARP; new ones too."""
    cdef Port* port = &loop.ports[OUTSIDE]
    cdef uint32_t _i
    cdef uint8_t frame[ARP_FRAME_BYTES]
    if port.ring == NULL:
        return
    for _i in range(ANNOUNCE_AT_ONCE):
        if port.announced >= loop.worker.mappings.ports.count:
            return
        if loop.worker.mappings.ports.addresses[port.announced].references:
            arp_announce(frame, loop.worker.mappings.ports.addresses[port.announced].ip, port.mac)
            send(port.ring, frame, ARP_FRAME_BYTES, NULL)
        port.announced += 1


# ---- in --------------------------------------------------------------------------------------------------------------

cdef void answer_arp(Loop* loop, uint32_t side, Arrival* arrival) noexcept nogil:
    """Addresses that are the gateway's and not the kernel's."""
    cdef Port* port = &loop.ports[side]
    cdef uint32_t asked = arp_asked(arrival.data, arrival.length), asked_be = bswap32(asked)
    port.left_to_kernel += 1
    if asked == 0 or holds(&loop.local, asked):
        return
    if asked_be == loop.worker.link_address[side] or (
            side == OUTSIDE and address_find(loop.worker.mappings.ports, asked_be) != NONE):
        arp_answer(arrival.data, port.mac)
        send(port.ring, arrival.data, ARP_FRAME_BYTES, NULL)
        port.left_to_kernel -= 1
        port.arp_answered += 1


cdef inline bint is_ours(Loop* loop, uint32_t side, Arrival* arrival) noexcept nogil:
    """Whether the translator takes the frame; else it is the kernel's (or an ARP request answered here)."""
    cdef uint16_t ethertype
    cdef uint32_t destination
    if arrival.tagged or arrival.length < ETHERNET_BYTES:
        return False
    ethertype = bswap16((<EthernetHeader*>arrival.data).ethertype)
    if ethertype == ETHERTYPE_IPV4 and arrival.packet_type == PACKET_HOST:
        if arrival.length < ETHERNET_BYTES + sizeof(Ipv4Header):
            return True
        destination = (<Ipv4Header*>(arrival.data + ETHERNET_BYTES)).destination
        return not holds(&loop.local, bswap32(destination)) or (
            address_find(loop.worker.mappings.ports, destination) != NONE)
    return False


cdef inline uint16_t flags_of(const Arrival* arrival) noexcept nogil:
    """FrameFlag. A sum that is partial further in (an encapsulated packet's) is none of layer 4 here."""
    cdef const virtio_net_hdr* offload = arrival.offload
    cdef const Ipv4Header* ip = <const Ipv4Header*>(arrival.data + ETHERNET_BYTES)
    cdef uint16_t flags = FRAME_GSO if offload.gso_type else 0
    if (offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and arrival.length >= ETHERNET_BYTES + sizeof(Ipv4Header)
            and offload.csum_start == ETHERNET_BYTES + (ip.version_ihl & 15) * 4
            and ((ip.protocol == PROTOCOL_TCP and offload.csum_offset == 16)
                 or (ip.protocol == PROTOCOL_UDP and offload.csum_offset == 6))):
        return flags | FRAME_CSUM_PARTIAL
    return flags | FRAME_UNFINISHED if offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM else flags


cdef uint32_t sort_out(Loop* loop, uint32_t side, uint32_t arrived) noexcept nogil:
    """Makes frames of what the translator takes; how many."""
    cdef uint32_t i, count = 0
    cdef Arrival* arrival
    cdef Frame* frame
    for i in range(arrived):
        arrival = &loop.arrivals[i]
        if is_ours(loop, side, arrival):
            frame = &loop.frames[count]
            frame.data = arrival.data
            frame.length = arrival.length
            frame.flags = flags_of(arrival) if arrival.offload.flags or arrival.offload.gso_type else 0
            frame.gso_size = arrival.offload.gso_size
            frame.side = <uint8_t>side
            frame.tag = <uint16_t>i
            count += 1
        elif (arrival.length >= ETHERNET_BYTES and not arrival.tagged
                and (<EthernetHeader*>arrival.data).ethertype == bswap16(ETHERTYPE_ARP)
                and (arrival.packet_type == PACKET_HOST or arrival.packet_type == PACKET_BROADCAST)):
            answer_arp(loop, side, arrival)
        else:
            loop.ports[side].left_to_kernel += 1
    return count


cdef uint32_t serve(Loop* loop, uint32_t side, uint32_t budget) noexcept nogil:
    """One batch of one side, all the way; how many frames arrived."""
    cdef Ring* ring = loop.ports[side].ring
    cdef uint32_t arrived = 0, count, i
    cdef uint64_t now_ns
    if ring == NULL:
        return 0
    if budget > BATCH:
        budget = BATCH
    while arrived < budget and receive(ring, &loop.arrivals[arrived]):
        arrived += 1
    if arrived:
        enter(loop.worker)
        now_ns = clock_of(loop)
        count = sort_out(loop, side, arrived)
        translate(loop.worker, loop.frames, count, now_ns)
        for i in range(count):
            if loop.frames[i].verdict <= UNTRANSLATED:
                deliver(loop, &loop.frames[i], loop.arrivals[loop.frames[i].tag].offload, <uint32_t>(now_ns // 1000000))
        send_generated(loop, <uint32_t>(now_ns // 1000000))
        release(loop.worker)
        hand_over(loop)
    complete(ring)
    return arrived


cdef void hand_over(Loop* loop) noexcept nogil:
    """What was queued goes to the kernel, what is wanted to the control side."""
    cdef uint32_t side
    for side in range(2):
        if loop.ports[side].ring != NULL:
            flush(loop.ports[side].ring)
    if loop.ask:
        loop.ask = False
        signal_fd(loop.ask_fd)


cdef void service(Loop* loop) noexcept nogil:
    """What time asks for."""
    cdef uint64_t now_ns = clock_of(loop)
    if now_ns - loop.serviced_ns < SERVICE_NS and not load_acquire(&loop.learned):
        return
    loop.serviced_ns = now_ns
    enter(loop.worker)
    tick(loop.worker, now_ns)
    if loop.waiting:
        look_through_room(loop, <uint32_t>(now_ns // 1000000), False)
    loop.learned = 0
    announce(loop)
    send_generated(loop, <uint32_t>(now_ns // 1000000))
    release(loop.worker)
    hand_over(loop)


cdef uint32_t work(Loop* loop, uint32_t budget) noexcept nogil:
    """At most about budget frames of both sides; how many."""
    cdef uint32_t done = 0, before, side
    while done < budget:
        before = done
        for side in range(2):
            done += serve(loop, (side + loop.turn) & 1, budget - done if budget > done else 1)
        loop.turn ^= 1
        service(loop)
        if done == before or load_acquire(&loop.park) or load_acquire(&loop.stop):
            break
    return done


cdef void clear_errors(Loop* loop) noexcept nogil:
    """A link that went down leaves an error, at which poll returns at once for ever."""
    cdef uint32_t side
    for side in range(2):
        if loop.ports[side].ring != NULL:
            clear_error(loop.ports[side].ring)


cdef void rest(Loop* loop) noexcept nogil:
    """Until a frame arrives, the control side calls, or time asks for something."""
    cdef pollfd fds[3]
    cdef uint32_t side
    for side in range(2):
        fds[side].fd = -1 if loop.ports[side].ring == NULL else loop.ports[side].ring.fd
        fds[side].events = POLLIN
    fds[2].fd = loop.wake_fd
    fds[2].events = POLLIN
    if poll(fds, 3, BUSY_MS if loop.waiting or loop.ports[OUTSIDE].announced < loop.worker.mappings.ports.count
            else IDLE_MS) <= 0:
        return
    if (fds[0].revents | fds[1].revents) & POLLERR:
        clear_errors(loop)
    if fds[2].revents:
        drain_fd(loop.wake_fd)


cdef void run(Loop* loop) noexcept nogil:
    while not load_acquire(&loop.stop) and not load_acquire(&loop.park):
        if work(loop, 4 * BATCH) == 0:
            rest(loop)
