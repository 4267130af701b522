"""Deferred frames in a ring of bytes (pending_frames.pyx), and how many of each connection wait."""
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore.io.pending_frames cimport pending_copy, pending_delete, pending_new
from natcore.base.compiler cimport bswap16, count_up, store_relaxed
from natcore.base.flow_hash cimport flow_hash
from natcore.base.headers cimport (
    ETHERNET_BYTES, IPV4_OFFSET, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header, load32, load64,
)
from natcore.base.pages cimport table_delete, table_new

cdef enum:
    SHARED_FLOW = 0             # of `tag`; those of connections are odd
    IDENTIFIER = 0xFFFF         # of an ICMP query: the first two of the four bytes that have TCP's and UDP's ports


cdef bint deferred_new(DeferredFrames* deferred) noexcept nogil:
    memset(deferred, 0, sizeof(DeferredFrames))
    deferred.flows = <Flow*>table_new(DEFERRED_FLOWS * sizeof(Flow))
    return deferred.flows != NULL and pending_new(&deferred.ring)


cdef void deferred_delete(DeferredFrames* deferred) noexcept nogil:
    pending_delete(&deferred.ring)
    table_delete(deferred.flows, DEFERRED_FLOWS * sizeof(Flow))
    deferred.flows = NULL


cdef uint64_t hash_of(const HashKey* key, const Frame* frame) noexcept nogil:
    """The hash of a translated frame's five-tuple; a later fragment has no ports, and is of a connection of its own."""
    cdef const Ipv4Header* ip = <const Ipv4Header*>(frame.data + ETHERNET_BYTES)
    cdef uint32_t header = (ip.version_ihl & 15) * 4, ports = 0
    cdef const uint8_t* l4 = <const uint8_t*>ip + header
    if frame.length >= ETHERNET_BYTES + header + 8 and not ip.fragment & bswap16(IPV4_OFFSET):
        if ip.protocol == PROTOCOL_TCP or ip.protocol == PROTOCOL_UDP:
            ports = load32(l4)
        elif ip.protocol == PROTOCOL_ICMP:
            ports = load32(l4 + 4) & IDENTIFIER
    return flow_hash(key, load64(&ip.source), ports, ip.protocol)


cdef inline uint32_t flow_of(uint64_t hashed) noexcept nogil:
    return <uint32_t>hashed % DEFERRED_FLOWS


cdef inline uint32_t tag_of(uint64_t hashed) noexcept nogil:
    return <uint32_t>(hashed >> 32) | 1


cdef bint deferred_follows(const DeferredFrames* deferred, const HashKey* key, const Frame* frame) noexcept nogil:
    """Whether a frame of the same connection waits, perhaps."""
    cdef uint64_t hashed = hash_of(key, frame)
    cdef const Flow* flow = &deferred.flows[flow_of(hashed)]
    return flow.frames and (flow.tag == tag_of(hashed) or flow.tag == SHARED_FLOW)


cdef bint deferred_add(DeferredFrames* deferred, const HashKey* key, const Frame* frame, const virtio_net_hdr* offload,
                       bint opened, uint32_t cycle, uint32_t now_ms) noexcept nogil:
    """Stores a copy of a frame that opened a session, to wait for the cycle, or of one that follows such a frame; false: no
    space."""
    cdef uint64_t hashed = hash_of(key, frame)
    cdef uint32_t number = flow_of(hashed)
    cdef Flow* flow = &deferred.flows[number]
    cdef PendingFrame* waiting
    if deferred.ring.frames >= DEFERRED_FRAMES:
        return False
    waiting = pending_copy(&deferred.ring, frame, offload, now_ms)
    if waiting == NULL:
        return False
    if opened or not flow.frames:
        flow.cycle, flow.since_ms = cycle, now_ms
    if not flow.frames:
        flow.tag = tag_of(hashed)
    elif flow.tag != tag_of(hashed):
        flow.tag = SHARED_FLOW
    flow.frames += 1
    waiting.address, waiting.flow = 1, number
    waiting.cycle, waiting.since_ms = flow.cycle, flow.since_ms
    return True


cdef uint32_t deferred_outcome(const PendingFrame* waiting, uint32_t acknowledged, uint32_t wait_ms,
                               uint32_t now_ms) noexcept nogil:
    """Whether the frame leaves now, and why. acknowledged: the newest cycle that the standby has acknowledged; wait_ms: how
    long a frame waits at most, 0: no standby follows."""
    if <int32_t>(acknowledged - waiting.cycle) >= 0:
        return DEFERRED_ACKNOWLEDGED
    if wait_ms == 0:
        return DEFERRED_ALONE
    return DEFERRED_LATE if now_ms - waiting.since_ms >= wait_ms else DEFERRED_WAITS


cdef void deferred_remove(DeferredFrames* deferred, PendingFrame* waiting, uint32_t outcome, uint32_t now_ms) noexcept nogil:
    """Removes and counts a frame. Its bytes stay valid, and its space in use, until `pending_sweep`."""
    deferred.flows[waiting.flow].frames -= 1
    waiting.address = 0
    store_relaxed(&deferred.ring.frames, deferred.ring.frames - 1)
    count_up(&deferred.outcomes[outcome], 1)
    count_up(&deferred.waited_ms, now_ms - waiting.since_ms)
