"""InsideLink: a gateway that is fed with the frames of a capture of its inside link, one after the other.

The capture has answers with the inside host's address. Each goes in as its sender sent it: to the outside endpoint that its
inside endpoint had at the last packet that left, or that a DNAT entry gives it. Later fragments and protocols without ports
go to the outside address that the host had last.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from natcore.api.captured cimport PORTS_NONE, PORTS_QUERY, ROW_BYTES, CapturedFrame
from natcore.api.gateway cimport Core
from natcore.base.checksum cimport delta32, update
from natcore.base.compiler cimport bswap16, bswap32, prefetch
from natcore.base.flow_hash cimport HashKey, has_aes, hash_aes, siphash13
from natcore.base.headers cimport ETHERNET_BYTES, PROTOCOL_ICMP, IcmpHeader, Ipv4Header, UdpHeader
from natcore.frame cimport Frame
from natcore.nat.affinity cimport owner_of_frame
from natcore.nat.pipeline cimport count_sides, translate
from natcore.packet.verdict cimport INSIDE, OUTBOUND, UNTRANSLATED
from natcore.workers.locks cimport lock, unlock
from natcore.workers.worker cimport Worker

cdef enum:
    FIRST_PLACES = 1 << 12
    AHEAD = 8                   # frames: how far ahead an endpoint's place is fetched
    FRAME_BYTES = 1 << 17       # of a frame's space: the packet path may read, of a fragment, what the row does not have
    ANY_PROTOCOL = 0xFF         # of a key: any endpoint of the host
    SKIPPED = 255               # in place of a verdict

cdef struct Known:              # the outside endpoint that an inside endpoint had last; inside = 0: the place is free
    uint64_t inside             # protocol, address and port
    uint64_t remote             # address and port where the mapping depends on it, else 0
    uint32_t address            # in host order
    uint16_t port


cdef inline uint64_t key_of(uint8_t protocol, uint32_t address, uint16_t port) noexcept nogil:
    return <uint64_t>protocol << 48 | <uint64_t>address << 16 | port


cdef class InsideLink:
    """by_remote: an inside endpoint may have several outside endpoints. forwarded: what DNAT entries give, as rows of
    (protocol, inside address, first and last port, outside address, its first port). secret: 16 random bytes."""
    cdef Core core
    cdef bint by_remote
    cdef const int64_t[:, ::1] forwarded
    cdef HashKey key
    cdef Known* known           # [mask + 1], at most half of it taken
    cdef uint64_t mask, held
    cdef uint8_t* space         # FRAME_BYTES

    def __cinit__(self, Core core not None, bint by_remote, const int64_t[:, ::1] forwarded not None, bytes secret not None):
        self.core = core
        self.by_remote = by_remote
        self.forwarded = forwarded
        memcpy(&self.key, <const char*>secret, 16)
        self.key.aes = has_aes()
        self.known = <Known*>calloc(FIRST_PLACES, sizeof(Known))
        self.mask = FIRST_PLACES - 1
        self.space = <uint8_t*>calloc(FRAME_BYTES, 1)
        if self.known == NULL or self.space == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.known)
        free(self.space)

    def feed(self, const uint8_t[:, ::1] rows not None, const CapturedFrame[::1] frames not None, int64_t first_ns,
             uint8_t[::1] verdicts not None, Py_ssize_t begin, Py_ssize_t end):
        """Translates frames, from begin on, and writes their verdicts; SKIPPED for an answer to nothing. Returns where it
        ended: at end, or at an ICMP error, which needs its whole frame."""
        cdef Py_ssize_t at = begin
        self.core.claim()
        try:
            with nogil:
                while at < end and frames[at].message < 0:
                    if not self.provide():
                        with gil:
                            raise MemoryError
                    prefetch(self.place_ahead(&frames[at + AHEAD if at + AHEAD < end else at]))
                    verdicts[at] = self.take(&rows[at, 0], &frames[at], <uint64_t>(frames[at].time_ns - first_ns))
                    at += 1
        finally:
            self.core.unclaim()
        return at

    def find(self, uint8_t protocol, uint32_t address, uint16_t port, uint32_t remote, uint16_t remote_port):
        """The outside endpoint that an inside endpoint has, (address, port); None: none is known."""
        cdef uint32_t outside = 0
        cdef uint16_t outside_port = 0
        if not self.outside_of(protocol, address, port, remote, remote_port, &outside, &outside_port):
            return None
        return outside, outside_port

    def learn_host(self, uint32_t address, uint32_t outside):
        """A packet of the host left with that outside address."""
        if not self.provide():
            raise MemoryError
        self.learn(key_of(ANY_PROTOCOL, address, 0), 0, outside, 0)

    # ---- the outside endpoints ---------------------------------------------------------------------------------------------

    cdef inline uint64_t home_of(self, uint64_t inside, uint64_t remote) noexcept nogil:
        """Where the search for an endpoint begins."""
        if self.key.aes:
            return hash_aes(self.key.low, self.key.high, inside, remote) & self.mask
        return siphash13(self.key.low, self.key.high, inside, remote) & self.mask

    cdef inline const Known* place_ahead(self, const CapturedFrame* frame) noexcept nogil:
        """Where the inside endpoint of a frame that comes soon is looked for."""
        cdef uint64_t inside, remote
        if frame.side == INSIDE:
            inside = key_of(frame.protocol, frame.source, frame.source_port)
            remote = self.remote_of(frame.protocol, frame.destination, frame.destination_port)
        else:
            inside = key_of(frame.protocol, frame.destination, frame.destination_port)
            remote = self.remote_of(frame.protocol, frame.source, frame.source_port)
        return &self.known[self.home_of(inside, remote)]

    cdef Known* place_of(self, uint64_t inside, uint64_t remote) noexcept nogil:
        """An endpoint's place, or the free one where it belongs."""
        cdef uint64_t at = self.home_of(inside, remote)
        while self.known[at].inside and (self.known[at].inside != inside or self.known[at].remote != remote):
            at = (at + 1) & self.mask
        return &self.known[at]

    cdef bint provide(self) noexcept nogil:
        """Makes place for two more endpoints; False: there is no memory."""
        cdef uint64_t i, mask = self.mask
        cdef Known* before = self.known
        if 2 * (self.held + 2) <= mask + 1:
            return True
        self.known = <Known*>calloc(2 * (mask + 1), sizeof(Known))
        if self.known == NULL:
            self.known = before
            return False
        self.mask = 2 * mask + 1
        for i in range(mask + 1):
            if before[i].inside:
                self.place_of(before[i].inside, before[i].remote)[0] = before[i]
        free(before)
        return True

    cdef void learn(self, uint64_t inside, uint64_t remote, uint32_t address, uint16_t port) noexcept nogil:
        cdef Known* place = self.place_of(inside, remote)
        self.held += place.inside == 0
        place.inside, place.remote, place.address, place.port = inside, remote, address, port

    cdef inline uint64_t remote_of(self, uint8_t protocol, uint32_t address, uint16_t port) noexcept nogil:
        if not self.by_remote:
            return 0
        return <uint64_t>address << 16 | (0 if protocol == PROTOCOL_ICMP else port)

    cdef bint outside_of(self, uint8_t protocol, uint32_t address, uint16_t port, uint32_t remote, uint16_t remote_port,
                         uint32_t* outside, uint16_t* outside_port) noexcept nogil:
        """Finds an inside endpoint's outside one; False: there is none."""
        cdef Known* known = self.place_of(key_of(protocol, address, port), self.remote_of(protocol, remote, remote_port))
        cdef Py_ssize_t i
        if known.inside:
            outside[0], outside_port[0] = known.address, known.port
            return True
        for i in range(self.forwarded.shape[0]):
            if (self.forwarded[i, 0] == protocol and self.forwarded[i, 1] == address
                    and self.forwarded[i, 2] <= port <= self.forwarded[i, 3]):
                outside[0] = <uint32_t>self.forwarded[i, 4]
                outside_port[0] = <uint16_t>(self.forwarded[i, 5] + port - self.forwarded[i, 2])
                return True
        return False

    # ---- a frame -----------------------------------------------------------------------------------------------------------

    cdef uint8_t take(self, const uint8_t* row, const CapturedFrame* frame, uint64_t now_ns) noexcept nogil:
        """Translates one frame; its verdict, or SKIPPED."""
        cdef Worker* worker = self.core.worker
        cdef Frame one
        cdef uint32_t owner
        memcpy(self.space, row, ROW_BYTES)
        if frame.side != INSIDE and not self.readdress(frame):
            return SKIPPED
        one.data, one.length, one.flags, one.side = self.space, frame.length, 0, frame.side
        if self.core.shared.count > 1:
            lock(worker)
            owner = owner_of_frame(worker, &one)
            unlock(worker)
            worker = self.core.shared.workers[owner]
        lock(worker)
        translate(worker, &one, 1, now_ns)
        count_sides(worker, &one, 1)
        unlock(worker)
        if frame.side == INSIDE and (one.verdict == OUTBOUND or one.verdict == UNTRANSLATED):
            self.note(frame)
        return one.verdict

    cdef bint readdress(self, const CapturedFrame* frame) noexcept nogil:
        """Gives an answer its outside destination, with the IPv4 checksum; a gateway verifies no other one. False: there is
        none."""
        cdef Ipv4Header* ip = <Ipv4Header*>(self.space + ETHERNET_BYTES)
        cdef Known* host
        cdef uint32_t address = 0
        cdef uint16_t port = 0
        if frame.ports == PORTS_NONE:
            host = self.place_of(key_of(ANY_PROTOCOL, frame.destination, 0), 0)
            if not host.inside:
                return False
            address = host.address
        elif not self.outside_of(frame.protocol, frame.destination, frame.destination_port, frame.source, frame.source_port,
                                 &address, &port):
            return False
        elif frame.ports == PORTS_QUERY:
            (<IcmpHeader*>(self.space + frame.l4)).identifier = bswap16(port)
        else:
            (<UdpHeader*>(self.space + frame.l4)).destination_port = bswap16(port)
        ip.checksum = update(ip.checksum, delta32(ip.destination, bswap32(address)))
        ip.destination = bswap32(address)
        return True

    cdef void note(self, const CapturedFrame* frame) noexcept nogil:
        """A packet left: notes the outside endpoint that it has now."""
        cdef uint32_t address = bswap32((<Ipv4Header*>(self.space + ETHERNET_BYTES)).source)
        cdef uint16_t port
        self.learn(key_of(ANY_PROTOCOL, frame.source, 0), 0, address, 0)
        if frame.ports == PORTS_NONE:
            return
        if frame.ports == PORTS_QUERY:
            port = (<IcmpHeader*>(self.space + frame.l4)).identifier
        else:
            port = (<UdpHeader*>(self.space + frame.l4)).source_port
        self.learn(key_of(frame.protocol, frame.source, frame.source_port),
                   self.remote_of(frame.protocol, frame.destination, frame.destination_port), address, bswap16(port))
