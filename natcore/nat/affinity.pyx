"""Finding the owner: by the inside address; from outside by who has the port, or by the target that an entry chooses.

What this cannot tell, or what may touch the tables of two, is looked for in all of them, by who holds all workers.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.nat.admission cimport find_live
from natcore.nat.inside_routing cimport crosses
from natcore.tables.port_overload cimport Taken, overload_find
from natcore.packet.parse cimport KIND_FRAGMENT, KIND_ICMP, KIND_OTHER, KIND_SESSION, Flight, parse, wire_length
from natcore.nat.fragment_path cimport piece_key
from natcore.tables.ports cimport (
    PORT_RESERVED, PORTS_OVERLOAD, Ports, address_find, home_of_port, port_holder, space_of,
)
from natcore.nat.icmp_errors cimport is_error, quoted_slot
from natcore.tables.entries cimport ANY_SPACE, DnatRule, dnat_key, dnat_rule, dnat_target
from natcore.tables.sessions cimport IN, is_dead, session_find
from natcore.base.flow_hash cimport flow_hash
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.hash_table cimport NONE
from natcore.base.spinlock cimport spin_lock, spin_unlock
from natcore.workers.worker cimport Clock, Worker, clock_read, has_all, owner_of_inside
from natcore.packet.verdict cimport INSIDE, OUTSIDE, PENDING
from natcore.base.headers cimport PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, IcmpHeader, is_reply, is_request


cdef inline bint has_ports(uint8_t protocol) noexcept nogil:
    return protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP or protocol == PROTOCOL_ICMP


cdef inline Worker* of_inside(const Worker* worker, uint32_t ip) noexcept nogil:
    """ip: big-endian."""
    return worker.shared.workers[owner_of_inside(bswap32(ip), worker.shared.count)]


# ---- by the key alone ------------------------------------------------------------------------------------------------

cdef Worker* of_target(const Worker* worker, uint32_t ip, uint32_t remote_ip, uint32_t space, uint32_t port) noexcept nogil:
    """The worker of the target that a DNAT entry has for a remote; NULL: no entry in force has the outside endpoint."""
    cdef const DnatRule* rule = NULL
    if worker.rules != NULL:
        rule = dnat_rule(worker.rules, dnat_key(bswap32(ip), space, port))
    if rule == NULL:
        return NULL
    return of_inside(worker, dnat_target(rule, flow_hash(&worker.sessions.key, remote_ip, rule.entry, 0)))


cdef Worker* of_pair(const Worker* worker, const Taken* ends) noexcept nogil:
    """Where ports are overloaded: the worker of the mapping that joins the two endpoints; NULL: there is none."""
    cdef Ports* ports = worker.mappings.ports
    cdef uint32_t number
    spin_lock(&ports.spin)
    number = overload_find(&ports.overload, &ports.key, ends)
    if number != NONE:
        number = ports.overload.taken[number].worker
    spin_unlock(&ports.spin)
    return NULL if number == NONE else worker.shared.workers[number]


cdef Worker* of_outside(const Worker* worker, uint32_t address, uint64_t addresses, uint32_t ports,
                        uint8_t protocol) noexcept nogil:
    """The worker of an outside endpoint of ours, as things are; it is asked again in that worker's tables (find_open).
    NULL: one of them has it, or none."""
    cdef uint32_t remote_ip = <uint32_t>addresses, outside_ip = <uint32_t>(addresses >> 32), number, holder = 0
    cdef uint32_t port = bswap16(<uint16_t>(ports >> 16)), space = space_of(protocol)
    cdef Taken ends
    cdef Worker* owner = NULL
    if not has_ports(protocol):
        return of_target(worker, outside_ip, remote_ip, ANY_SPACE, 0)
    number = port_holder(worker.mappings.ports, address, space, <uint16_t>port, &holder)
    if number == PORT_RESERVED:
        return of_target(worker, outside_ip, remote_ip, space, port)
    if worker.mappings.ports.policy == PORTS_OVERLOAD:
        ends.outside_ip = outside_ip
        ends.remote_ip = remote_ip
        ends.outside_port = <uint16_t>(ports >> 16)
        ends.remote_port = <uint16_t>ports
        ends.protocol = protocol
        owner = of_pair(worker, &ends)
    elif number != NONE:
        owner = worker.shared.workers[holder]
    return owner if owner != NULL else worker.shared.workers[home_of_port(worker.mappings.ports, port)]


cdef Worker* owner_by_key(Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports, uint8_t protocol) noexcept nogil:
    """The worker in whose tables a packet with this key begins a session, or is refused. NULL: that cannot be told."""
    cdef uint32_t address
    if side == INSIDE:
        return of_inside(worker, <uint32_t>addresses)
    address = address_find(worker.mappings.ports, <uint32_t>(addresses >> 32))
    if address == NONE:                             # a no-NAT entry's, if anybody's
        return of_inside(worker, <uint32_t>(addresses >> 32))
    return of_outside(worker, address, addresses, ports, protocol)


# ---- a packet's, for who holds one worker ----------------------------------------------------------------------------

cdef bint has_live(const Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports, uint8_t protocol,
                   const Clock* now) noexcept nogil:
    cdef uint32_t slot = session_find(&worker.sessions, side, addresses, ports, protocol)
    return slot != NONE and not is_dead(&worker.sessions, &worker.sessions.hot[slot], now.ms)


cdef Worker* owner_of(Worker* worker, const Frame* frame, const Flight* flight, const Clock* now) noexcept nogil:
    """The worker in whose tables alone a packet is to be done. NULL: whoever does it has to hold all."""
    if wire_length(frame, flight) > min(worker.mtu[INSIDE], worker.mtu[OUTSIDE]):
        return NULL                                 # fragments are written with all held
    if flight.kind == KIND_OTHER or crosses(worker, frame, flight):     # no table knows of it
        return worker
    if flight.kind != KIND_SESSION or not has_ports(flight.protocol):
        return NULL
    if frame.side == INSIDE and address_find(worker.mappings.ports, flight.ip.destination) != NONE:
        return NULL                                 # a hairpin has two sessions
    if frame.side == OUTSIDE and has_live(worker, OUTSIDE, flight.addresses, flight.ports, flight.protocol, now):
        return worker
    return owner_by_key(worker, frame.side, flight.addresses, flight.ports, flight.protocol)


# ---- for who holds all -----------------------------------------------------------------------------------------------

cdef Worker* keeper_of(Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports, uint8_t protocol, bint meet,
                       const Clock* now) noexcept nogil:
    """The worker that has the live session of a key, or NULL. meet: a dead one is ended, as by any packet that meets it."""
    cdef uint32_t i
    cdef Worker* one
    for i in range(worker.shared.count):
        one = worker.shared.workers[i]
        if meet and find_live(one, side, addresses, ports, protocol, now) != NONE:
            return one
        if not meet and has_live(one, side, addresses, ports, protocol, now):
            return one
    return NULL


cdef Worker* holder_of(Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports, uint8_t protocol) noexcept nogil:
    """The worker that has a session of a key, be it dead, or NULL."""
    cdef uint32_t i
    for i in range(worker.shared.count):
        if session_find(&worker.shared.workers[i].sessions, side, addresses, ports, protocol) != NONE:
            return worker.shared.workers[i]
    return NULL


cdef bint asks_for_session(const Worker* worker, const Frame* frame, const Flight* flight) noexcept nogil:
    """Whether it is a query the other way round, which only a 1:1 entry's sessions let pass."""
    cdef uint8_t type = (<const IcmpHeader*>flight.l4).type if flight.kind == KIND_ICMP else 0
    return (flight.kind == KIND_ICMP and (is_request(type) if frame.side == OUTSIDE else is_reply(type))
            and not (worker.link_address[frame.side] and flight.ip.destination == worker.link_address[frame.side]))


cdef Worker* owner_for_sure(Worker* worker, const Frame* frame, const Flight* flight, bint meet,
                            const Clock* now) noexcept nogil:
    """The worker in whose tables a packet is to be done; worker, if it is no matter. The caller holds all. meet: a dead
    session of it is ended."""
    cdef uint32_t i
    cdef Worker* owner
    cdef Flight copy = flight[0]
    if copy.kind == KIND_FRAGMENT and not piece_key(worker, &copy, frame.side):
        return worker
    if copy.kind == KIND_ICMP and is_error(&copy):
        for i in range(worker.shared.count):
            if quoted_slot(worker.shared.workers[i], &copy, frame.side, now) != NONE:
                return worker.shared.workers[i]
        return worker
    meet = meet and (flight.kind == KIND_SESSION or asks_for_session(worker, frame, flight))
    owner = keeper_of(worker, frame.side, copy.addresses, copy.ports, copy.protocol, meet, now)
    if owner == NULL:
        owner = owner_by_key(worker, frame.side, copy.addresses, copy.ports, copy.protocol)
    if owner == NULL:                               # of a fragment nobody knows yet whether it will meet a dead one
        owner = holder_of(worker, frame.side, copy.addresses, copy.ports, copy.protocol)
    return worker if owner == NULL else owner


cdef Worker* peer_of(Worker* worker, uint64_t addresses, uint32_t ports, uint8_t protocol, const Clock* now) noexcept nogil:
    """The worker of the way back in of a hairpinned packet, which comes with this key. The caller holds all."""
    cdef Worker* owner
    if worker.shared.count == 1:
        return worker
    owner = keeper_of(worker, IN, addresses, ports, protocol, True, now)
    if owner == NULL:
        owner = owner_by_key(worker, OUTSIDE, addresses, ports, protocol)
    return worker if owner == NULL else owner


# ---- a frame's, by itself --------------------------------------------------------------------------------------------

cdef uint32_t owner_of_frame(Worker* worker, const Frame* frame) noexcept nogil:
    """The number of the worker to which a frame belongs; a guess, if the caller holds only this one."""
    cdef Frame one = frame[0]
    cdef Flight flight
    cdef Clock now
    cdef Worker* owner
    one.side &= 1
    clock_read(&now, worker.shared.now_ns)
    if worker.shared.count == 1 or parse(&one, &flight, worker.ethernet, &worker.sessions.key) != PENDING:
        return 0
    if has_all(worker):
        return owner_for_sure(worker, &one, &flight, False, &now).number
    owner = owner_of(worker, &one, &flight, &now)
    if owner == NULL and one.side == INSIDE:
        owner = of_inside(worker, flight.ip.source)
    return worker.number if owner == NULL else owner.number
