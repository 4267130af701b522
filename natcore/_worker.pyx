"""The loop: poll both rings, batch, translate, find the next hop, send; between batches the gateway's own frames and the sweep."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import threading
import time

from natcore._nexthop cimport (
    ASK_AGAIN_MS, FAILED, KNOWN, UNKNOWN, WAITING_MS, Neighbour, NEIGHBOURS, holds, hops_delete, hops_new,
    neighbour_at, neighbour_learn, neighbours_forget, next_hop, routes_replace, set_delete, set_replace, waiting_delete,
    waiting_free, waiting_new, waiting_take,
)
from natcore._ports cimport address_find
from natcore._ring cimport (
    FRAME_ROOM, PACKET_BROADCAST, PACKET_HOST, VIRTIO_NET_HDR_F_NEEDS_CSUM, clear_error, complete, flush, receive, send,
    virtio_net_hdr,
)
from natcore._translate cimport hold, release, revoke, take_generated, tick, translate
from natcore.arp cimport ARP_FRAME_BYTES, arp_announce, arp_answer, arp_asked
from natcore.frame cimport FRAME_CSUM_PARTIAL, FRAME_GSO
from natcore.hints cimport bswap16, bswap32, fetch_add, load_acquire, store_release
from natcore.index cimport NONE
from natcore.verdict cimport DROP_NO_NEIGHBOUR, HAIRPIN, INBOUND, INSIDE, OUTBOUND, OUTSIDE, UNTRANSLATED
from natcore.wire cimport (
    ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, PROTOCOL_TCP, PROTOCOL_UDP, EthernetHeader, Ipv4Header,
)

from natcore.errors import CapacityError

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
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    enum:
        POLLIN
        POLLERR
    void pause "natcore_pause" () noexcept
    uint64_t monotonic_ns "natcore_monotonic_ns" () noexcept
    void signal_fd "natcore_signal" (int fd) noexcept
    void drain_fd "natcore_drain" (int fd) noexcept

cdef enum:
    SERVICE_NS = 10000000       # between two looks at the sweep, the waiting room, announcements
    IDLE_MS = 50                # of poll, when nothing is expected
    BUSY_MS = 5                 # of poll, when somebody waits
    ANNOUNCE_AT_ONCE = 32       # gratuitous ARPs in one service
    YIELDS = 50                 # pauses granted to a control call before the next batch


# ---- who holds the worker --------------------------------------------------------------------------------------------

cdef inline void enter(Worker *worker) noexcept nogil:
    """Takes the worker for a batch; whoever asked for attention goes first."""
    cdef uint32_t i = 0
    while load_acquire(&worker.attention) and i < YIELDS:
        pause()
        i += 1
    while not hold(worker):
        pause()


cdef inline uint64_t clock_of(const Loop *loop) noexcept nogil:
    return <uint64_t>(<int64_t>monotonic_ns() + loop.offset_ns)


# ---- out -------------------------------------------------------------------------------------------------------------

cdef inline uint32_t egress_of(const Frame *frame) noexcept nogil:
    """The Side that a forwarded frame leaves by."""
    if frame.verdict == OUTBOUND:
        return OUTSIDE
    if frame.verdict == UNTRANSLATED:
        return OUTSIDE if frame.side == INSIDE else INSIDE
    return INSIDE


cdef inline void emit(Port *port, const Neighbour *neighbour, Frame *frame, const virtio_net_hdr *offload) noexcept nogil:
    """Writes the link header and queues the frame."""
    cdef EthernetHeader *link = <EthernetHeader *>frame.data
    memcpy(link.destination, neighbour.mac, 6)
    memcpy(link.source, port.mac, 6)
    if offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM or offload.gso_type:
        send(port.ring, frame.data, frame.length, offload)
    else:
        send(port.ring, frame.data, frame.length, NULL)


cdef void ask(Loop *loop, Neighbour *neighbour, uint32_t side, uint32_t now_ms) noexcept nogil:
    """Wants the neighbour resolved, once in a while."""
    if neighbour.asked_ms and now_ms - neighbour.asked_ms < ASK_AGAIN_MS or loop.wish_count == WISHES:
        return
    neighbour.asked_ms = now_ms or 1
    neighbour.state = UNKNOWN
    loop.wishes[loop.wish_count].address = neighbour.address
    loop.wishes[loop.wish_count].side = side
    loop.wish_count += 1
    loop.ask = True


cdef void hold_back(Loop *loop, Port *port, Neighbour *neighbour, Frame *frame, const virtio_net_hdr *offload,
                    uint32_t side, uint32_t now_ms) noexcept nogil:
    """The next hop is not known: a few frames wait for it, the others are dropped."""
    cdef Waiting *waiting = NULL
    ask(loop, neighbour, side, now_ms)
    if neighbour.state != FAILED and frame.length <= FRAME_ROOM:
        waiting = waiting_take(loop.room, neighbour)
    if waiting == NULL:
        port.unresolved += 1
        revoke(loop.worker, frame, DROP_NO_NEIGHBOUR)
        return
    memcpy(waiting.data, frame.data, frame.length)
    waiting.frame = frame[0]
    waiting.frame.data = waiting.data
    waiting.offload = offload[0]
    waiting.since_ms = now_ms
    waiting.side = <uint8_t>side
    loop.waiting += 1


cdef void deliver(Loop *loop, Frame *frame, const virtio_net_hdr *offload, uint32_t now_ms) noexcept nogil:
    """A forwarded frame, towards its destination; or why not."""
    cdef uint32_t side = egress_of(frame)
    cdef Port *port = &loop.ports[side]
    cdef Neighbour *neighbour = NULL
    if port.ring != NULL:
        neighbour = next_hop(&port.hops, bswap32((<Ipv4Header *>(frame.data + ETHERNET_BYTES)).destination))
    if neighbour == NULL:
        port.no_route += 1
        revoke(loop.worker, frame, DROP_NO_NEIGHBOUR)
    elif neighbour.state == KNOWN:
        neighbour.used = 1
        emit(port, neighbour, frame, offload)
    else:
        hold_back(loop, port, neighbour, frame, offload, side, now_ms)


cdef void look_through_room(Loop *loop, uint32_t now_ms, bint close) noexcept nogil:
    """Sends what has its next hop now, drops what waited too long; with close, whatever is left."""
    cdef uint32_t i
    cdef Waiting *waiting
    cdef Port *port
    cdef Neighbour *neighbour
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
            revoke(loop.worker, &waiting.frame, DROP_NO_NEIGHBOUR)
        else:
            continue
        waiting_free(waiting, &port.hops)
        loop.waiting -= 1


cdef void send_generated(Loop *loop) noexcept nogil:
    """The gateway's own frames; they answer the frame that caused them, link header included."""
    cdef uint8_t side = 0, cause = 0
    cdef uint32_t length
    while True:
        length = take_generated(loop.worker, loop.generated, FRAME_ROOM, &side, &cause)
        if length == 0:
            return
        if loop.ports[side & 1].ring != NULL and send(loop.ports[side & 1].ring, loop.generated, length, NULL):
            flush(loop.ports[side & 1].ring)


cdef void announce(Loop *loop) noexcept nogil:
    """The next few of the outside addresses, by gratuitous ARP; new ones too."""
    cdef Port *port = &loop.ports[OUTSIDE]
    cdef uint32_t i
    cdef uint8_t frame[ARP_FRAME_BYTES]
    if port.ring == NULL:
        return
    for i in range(ANNOUNCE_AT_ONCE):
        if port.announced >= loop.worker.mappings.ports.count:
            return
        if loop.worker.mappings.ports.addresses[port.announced].references:
            arp_announce(frame, loop.worker.mappings.ports.addresses[port.announced].ip, port.mac)
            send(port.ring, frame, ARP_FRAME_BYTES, NULL)
        port.announced += 1


# ---- in --------------------------------------------------------------------------------------------------------------

cdef void answer_arp(Loop *loop, uint32_t side, Arrival *arrival) noexcept nogil:
    """Addresses that are the gateway's and not the kernel's."""
    cdef Port *port = &loop.ports[side]
    cdef uint32_t asked = arp_asked(arrival.data, arrival.length), asked_be = bswap32(asked)
    port.left_to_kernel += 1
    if asked == 0 or holds(&loop.local, asked):
        return
    if asked_be == loop.worker.link_address[side] or (
            side == OUTSIDE and address_find(&loop.worker.mappings.ports, asked_be) != NONE):
        arp_answer(arrival.data, port.mac)
        send(port.ring, arrival.data, ARP_FRAME_BYTES, NULL)
        port.left_to_kernel -= 1
        port.arp_answered += 1


cdef inline bint is_ours(Loop *loop, uint32_t side, Arrival *arrival) noexcept nogil:
    """Whether the translator takes the frame; else it is the kernel's (or an ARP request answered here)."""
    cdef uint16_t ethertype
    cdef uint32_t destination
    if arrival.tagged or arrival.length < ETHERNET_BYTES:
        return False
    ethertype = bswap16((<EthernetHeader *>arrival.data).ethertype)
    if ethertype == ETHERTYPE_IPV4 and arrival.packet_type == PACKET_HOST:
        if arrival.length < ETHERNET_BYTES + sizeof(Ipv4Header):
            return True
        destination = (<Ipv4Header *>(arrival.data + ETHERNET_BYTES)).destination
        return not holds(&loop.local, bswap32(destination)) or (
            address_find(&loop.worker.mappings.ports, destination) != NONE)
    return False


cdef inline uint16_t flags_of(const Arrival *arrival) noexcept nogil:
    """FrameFlag. A sum that is partial further in (an encapsulated packet's) is none of layer 4 here."""
    cdef const virtio_net_hdr *offload = arrival.offload
    cdef const Ipv4Header *ip = <const Ipv4Header *>(arrival.data + ETHERNET_BYTES)
    cdef uint16_t flags = FRAME_GSO if offload.gso_type else 0
    if (offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and arrival.length >= ETHERNET_BYTES + sizeof(Ipv4Header)
            and offload.csum_start == ETHERNET_BYTES + (ip.version_ihl & 15) * 4
            and ((ip.protocol == PROTOCOL_TCP and offload.csum_offset == 16)
                 or (ip.protocol == PROTOCOL_UDP and offload.csum_offset == 6))):
        flags |= FRAME_CSUM_PARTIAL
    return flags


cdef uint32_t sort_out(Loop *loop, uint32_t side, uint32_t arrived) noexcept nogil:
    """Makes frames of what the translator takes; how many."""
    cdef uint32_t i, count = 0
    cdef Arrival *arrival
    cdef Frame *frame
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
                and (<EthernetHeader *>arrival.data).ethertype == bswap16(ETHERTYPE_ARP)
                and (arrival.packet_type == PACKET_HOST or arrival.packet_type == PACKET_BROADCAST)):
            answer_arp(loop, side, arrival)
        else:
            loop.ports[side].left_to_kernel += 1
    return count


cdef uint32_t serve(Loop *loop, uint32_t side, uint32_t budget) noexcept nogil:
    """One batch of one side, all the way; how many frames arrived."""
    cdef Ring *ring = loop.ports[side].ring
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
        send_generated(loop)
        release(loop.worker)
        hand_over(loop)
    complete(ring)
    return arrived


cdef void hand_over(Loop *loop) noexcept nogil:
    """What was queued goes to the kernel, what is wanted to the control side."""
    cdef uint32_t side
    for side in range(2):
        if loop.ports[side].ring != NULL:
            flush(loop.ports[side].ring)
    if loop.ask:
        loop.ask = False
        signal_fd(loop.ask_fd)


cdef void service(Loop *loop) noexcept nogil:
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
    send_generated(loop)
    release(loop.worker)
    hand_over(loop)


cdef uint32_t work(Loop *loop, uint32_t budget) noexcept nogil:
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


cdef void rest(Loop *loop) noexcept nogil:
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
    for side in range(2):
        if fds[side].revents & POLLERR:
            clear_error(loop.ports[side].ring)      # the link went down: poll would return at once for ever
    if fds[2].revents:
        drain_fd(loop.wake_fd)


cdef void run(Loop *loop) noexcept nogil:
    while not load_acquire(&loop.stop) and not load_acquire(&loop.park):
        if work(loop, 4 * BATCH) == 0:
            rest(loop)


# ---- the control side ------------------------------------------------------------------------------------------------

cdef class PlaneLoop:
    """One worker's loop. capsule: Core.worker_capsule(), valid as long as owner; offset_ns: gateway's clock - CLOCK_MONOTONIC.

    wake_fd, ask_fd: eventfds, kept open by the caller longer than the loop. Every method may be called from any thread
    while `run` runs in another; it takes effect before it returns.
    """

    def __cinit__(self, capsule, owner, int64_t offset_ns, int wake_fd, int ask_fd):
        self.loop = <Loop *>calloc(1, sizeof(Loop))
        if self.loop == NULL:
            raise CapacityError("no memory for a plane")
        self._owner = owner
        self._rings = [None, None]
        self._turn = threading.Lock()
        self._past = [{}, {}]
        self.loop.worker = <Worker *>PyCapsule_GetPointer(capsule, "natcore.Worker")
        self.loop.offset_ns = offset_ns
        self.loop.wake_fd, self.loop.ask_fd = wake_fd, ask_fd
        self.loop.generated = <uint8_t *>calloc(1, FRAME_ROOM)
        if not (self.loop.generated != NULL and waiting_new(self.loop.room) and hops_new(&self.loop.ports[0].hops)
                and hops_new(&self.loop.ports[1].hops)):
            raise CapacityError("no memory for a plane")

    def __dealloc__(self):
        if self.loop == NULL:
            return
        hops_delete(&self.loop.ports[0].hops)
        hops_delete(&self.loop.ports[1].hops)
        set_delete(&self.loop.local)
        if self.loop.room[0].data != NULL:
            waiting_delete(self.loop.room)
        free(self.loop.generated)
        free(self.loop)

    cdef void _enter(self) noexcept:
        cdef Worker *worker = self.loop.worker
        with nogil:
            fetch_add(&worker.attention, 1)
            while not hold(worker):
                pause()
            fetch_add(&worker.attention, <uint32_t>-1)

    cdef void _leave(self) noexcept:
        release(self.loop.worker)

    # ---- running ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Moves packets until `stop`, without the GIL."""
        while not self.loop.stop:
            with self._turn:
                with nogil:
                    run(self.loop)
            while load_acquire(&self.loop.park) and not load_acquire(&self.loop.stop):
                time.sleep(0.0005)

    def step(self, uint32_t budget) -> int:
        """At most about budget frames, without waiting; how many."""
        cdef uint32_t done
        with self._turn:
            drain_fd(self.loop.wake_fd)
            with nogil:
                done = work(self.loop, budget)
        return done

    def stop(self) -> None:
        """`run` returns after the batch that it is in."""
        store_release(&self.loop.stop, 1)
        signal_fd(self.loop.wake_fd)

    def attach(self, int side, PacketRing ring not None, bytes mac not None) -> None:
        """The side's interface is there: frames are read from and sent by ring, with mac (6 bytes) as their source."""
        if len(mac) != 6:
            raise ValueError(f"mac={mac!r}: allowed are 6 bytes")
        self._exchange(side, ring)
        memcpy(self.loop.ports[side].mac, <const uint8_t *>mac, 6)
        self.announce()

    def detach(self, int side) -> None:
        """The side's interface is away; its ring is closed, its neighbours are forgotten."""
        self._exchange(side, None)

    def _exchange(self, int side, PacketRing ring):
        cdef Port *port = &self.loop.ports[side & 1]
        cdef uint32_t i
        fetch_add(&self.loop.park, 1)
        signal_fd(self.loop.wake_fd)
        try:
            with self._turn:
                before = self._rings[side]
                self._rings[side] = ring
                port.ring = &ring.ring if ring is not None else NULL
                self._enter()
                for i in range(NEIGHBOURS):
                    if port.hops.neighbours[i].address:
                        port.hops.neighbours[i].state = UNKNOWN
                self._leave()
                if before is not None:
                    before.close()
                    self._past[side] = add(self._past[side], before.counters())
        finally:
            fetch_add(&self.loop.park, <uint32_t>-1)

    def close(self) -> None:
        """After the loop's end: frames that still wait are dropped, rings closed. Idempotent."""
        self.stop()
        with self._turn:
            self._enter()
            look_through_room(self.loop, 0, True)
            self._leave()
        self.detach(0)
        self.detach(1)

    # ---- what the loop is told --------------------------------------------------------------------------------------

    def set_mac(self, int side, bytes mac not None) -> None:
        """The interface's address changed; it is announced again."""
        self._enter()
        memcpy(self.loop.ports[side & 1].mac, <const uint8_t *>mac, 6)
        self.loop.ports[side & 1].announced = 0
        self._leave()

    def announce(self) -> None:
        """Gratuitous ARP for every outside address, soon."""
        self.loop.ports[OUTSIDE].announced = 0
        signal_fd(self.loop.wake_fd)

    def set_local(self, addresses) -> None:
        """The host's own addresses (host order): packets to them are the kernel's, unless they are in a pool."""
        cdef uint32_t[::1] members = as_words(addresses)
        cdef bint done
        self._enter()
        done = set_replace(&self.loop.local, &members[0], <uint32_t>len(addresses))
        self._leave()
        if not done:
            raise CapacityError("no memory for the host's own addresses")

    def set_routes(self, int side, starts, vias) -> None:
        """Disjoint ranges of destinations: starts ascending; vias a next hop, ON_LINK (0) or NO_ROUTE (2^32 - 1)."""
        cdef uint32_t[::1] first = as_words(starts)
        cdef uint32_t[::1] via = as_words(vias)
        cdef bint done
        if len(starts) != len(vias):
            raise ValueError(f"{len(starts)} starts and {len(vias)} vias: allowed is one via for each start")
        self._enter()
        done = routes_replace(&self.loop.ports[side & 1].hops, &first[0], &via[0], <uint32_t>len(starts))
        self._leave()
        if not done:
            raise CapacityError("no memory for routes")

    def learn(self, int side, uint32_t address, mac, bint failed=False) -> None:
        """A neighbour (host order) is at mac (6 bytes), or not known any more (None), or did not answer (failed)."""
        cdef bytes where = mac or b""
        cdef uint8_t state = KNOWN if len(where) == 6 else FAILED if failed else UNKNOWN
        self._enter()
        neighbour_learn(&self.loop.ports[side & 1].hops, address,
                        <const uint8_t *>where if state == KNOWN else NULL, state)
        self._leave()
        if load_acquire(&self.loop.waiting):
            store_release(&self.loop.learned, 1)
            signal_fd(self.loop.wake_fd)

    # ---- what the loop tells ----------------------------------------------------------------------------------------

    def take_wishes(self) -> list[tuple[int, int]]:
        """(side, address) of neighbours to be resolved, each asked for once a second at most."""
        cdef uint32_t i
        if not self.loop.wish_count:
            return []
        self._enter()
        wishes = [(self.loop.wishes[i].side, self.loop.wishes[i].address) for i in range(self.loop.wish_count)]
        self.loop.wish_count = 0
        self._leave()
        return wishes

    def take_used(self, int side) -> list[int]:
        """Neighbours that packets went to since the last call; forgets those long sought in vain."""
        cdef NextHops *hops = &self.loop.ports[side & 1].hops
        cdef uint32_t i
        used = []
        if hops.count == 0:
            return used
        self._enter()
        for i in range(NEIGHBOURS):
            if hops.neighbours[i].used:
                hops.neighbours[i].used = 0
                used.append(hops.neighbours[i].address)
        if hops.count > len(used) + 1024:
            neighbours_forget(hops, <uint32_t>(clock_of(self.loop) // 1000000))
        self._leave()
        return used

    def in_pool(self, addresses) -> set[int]:
        """Those of the addresses (host order) that are in the pool of an entry."""
        self._enter()
        pooled = {a for a in addresses if address_find(&self.loop.worker.mappings.ports, bswap32(a)) != NONE}
        self._leave()
        return pooled

    def counters(self) -> dict[str, int]:
        """Cumulative, by side ("inside_…", "outside_…"), and what both left to the kernel; the gauge waiting."""
        cdef Port *port
        result = {"left_to_kernel": 0, "waiting": self.loop.waiting}
        for side, name in enumerate(("inside", "outside")):
            port = &self.loop.ports[side]
            ring = self._rings[side]
            own = add(self._past[side], ring.counters()) if ring is not None else self._past[side]
            own = {**own, "left_to_kernel": port.left_to_kernel, "arp_answered": port.arp_answered,
                   "no_route": port.no_route, "unresolved": port.unresolved}
            result["left_to_kernel"] += port.left_to_kernel
            result.update({f"{name}_{key}": value for key, value in own.items()})
        return result


def add(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {key: first.get(key, 0) + value for key, value in second.items()}


def as_words(values):
    """uint32 array of the values, one unused element longer, so that it has a first."""
    import array
    return array.array("I", [*values, 0])
