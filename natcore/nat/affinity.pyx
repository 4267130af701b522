"""Finds the owning worker of a packet: by inside address; from outside by the port's mapping, or by the DNAT target.

Packets that this does not tell, or that touch the tables of two workers, are handled with all workers locked.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.nat.admission cimport find_live, is_shared_address
from natcore.nat.inside_routing cimport crosses
from natcore.tables.port_overload cimport EndpointPair, overload_find
from natcore.packet.parse cimport KIND_FRAGMENT, KIND_ICMP, KIND_OTHER, KIND_SESSION, Packet, parse, wire_length
from natcore.nat.fragment_path cimport fragment_key
from natcore.tables.ports cimport (
    PORT_OF_HOST, PORT_RESERVED, PORTS_OVERLOAD, Ports, address_find, has_ports, worker_preferring, port_holder, space_of,
)
from natcore.nat.icmp_errors cimport is_error, quoted_slot
from natcore.tables.entries cimport ANY_SPACE, DnatRule, dnat_key, dnat_rule, dnat_target
from natcore.tables.sessions cimport IN, is_dead, session_find
from natcore.base.flow_hash cimport flow_hash
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.sentinels cimport NONE
from natcore.base.spinlock cimport spin_lock, spin_unlock
from natcore.workers.worker cimport Clock, Worker, clock_read, holds_all_locks, worker_of_inside
from natcore.packet.verdict cimport INSIDE, OUTSIDE, PENDING
from natcore.base.headers cimport IcmpHeader, is_echo, is_reply, is_request


cdef inline Worker* owner_of_address(const Worker* worker, uint32_t ip) noexcept nogil:
    """ip: big-endian."""
    return worker.shared.workers[worker_of_inside(bswap32(ip), worker.shared.count)]


# ---- by key ----------------------------------------------------------------------------------------------------------

cdef Worker* owner_of_target(const Worker* worker, uint32_t ip, uint32_t remote_ip, uint32_t space,
                             uint32_t port) noexcept nogil:
    """The worker that owns the DNAT target for this remote; NULL: no entry has the outside endpoint."""
    cdef const DnatRule* rule = NULL
    if worker.rules != NULL:
        rule = dnat_rule(worker.rules, dnat_key(bswap32(ip), space, port))
    if rule == NULL:
        return NULL
    return owner_of_address(worker, dnat_target(rule, flow_hash(&worker.sessions.key, remote_ip, rule.entry, 0)))


cdef Worker* owner_of_pair(const Worker* worker, const EndpointPair* ends) noexcept nogil:
    """Overloaded ports: the worker with the mapping between the two endpoints; NULL: none."""
    cdef Ports* ports = worker.mappings.ports
    cdef uint32_t number
    spin_lock(&ports.spin)
    number = overload_find(&ports.overload, &ports.key, ends)
    if number != NONE:
        number = ports.overload.pairs[number].worker
    spin_unlock(&ports.spin)
    return NULL if number == NONE else worker.shared.workers[number]


cdef Worker* owner_of_outside(const Worker* worker, uint32_t address, uint64_t addresses, uint32_t ports,
                              uint8_t protocol) noexcept nogil:
    """The worker of an outside endpoint. The answer may be outdated: find_open checks it again in that worker's tables.
    NULL: any worker may have it."""
    cdef uint32_t remote_ip = <uint32_t>addresses, outside_ip = <uint32_t>(addresses >> 32), number, holder = 0
    cdef uint32_t port = bswap16(<uint16_t>(ports >> 16)), space = space_of(protocol)
    cdef EndpointPair ends
    cdef Worker* owner = NULL
    if not has_ports(protocol):
        return owner_of_target(worker, outside_ip, remote_ip, ANY_SPACE, 0)
    number = port_holder(worker.mappings.ports, address, space, <uint16_t>port, &holder)
    if number == PORT_RESERVED:
        return owner_of_target(worker, outside_ip, remote_ip, space, port)
    if number == PORT_OF_HOST:
        return worker.shared.workers[worker.number]
    if worker.mappings.ports.policy == PORTS_OVERLOAD:
        ends.outside_ip = outside_ip
        ends.remote_ip = remote_ip
        ends.outside_port = <uint16_t>(ports >> 16)
        ends.remote_port = <uint16_t>ports
        ends.protocol = protocol
        owner = owner_of_pair(worker, &ends)
    elif number != NONE:
        owner = worker.shared.workers[holder]
    return owner if owner != NULL else worker.shared.workers[worker_preferring(worker.mappings.ports, port)]


cdef Worker* owner_by_key(Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports, uint8_t protocol) noexcept nogil:
    """The worker that admits or refuses a packet with this key. NULL: unknown."""
    cdef uint32_t address
    if side == INSIDE:
        return owner_of_address(worker, <uint32_t>addresses)
    address = address_find(worker.mappings.ports, <uint32_t>(addresses >> 32))
    if address == NONE:                             # a no-NAT entry's, or none
        return owner_of_address(worker, <uint32_t>(addresses >> 32))
    return owner_of_outside(worker, address, addresses, ports, protocol)


# ---- by packet, with one worker locked -------------------------------------------------------------------------------

cdef bint has_live(const Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports, uint8_t protocol,
                   const Clock* now) noexcept nogil:
    cdef uint32_t slot = session_find(&worker.sessions, side, addresses, ports, protocol)
    return slot != NONE and not is_dead(&worker.sessions, &worker.sessions.hot[slot], now.ms)


cdef Worker* owner_of(Worker* worker, const Frame* frame, const Packet* packet, const Clock* now) noexcept nogil:
    """The worker that can process the packet in its tables alone. NULL: all workers must be locked."""
    if wire_length(frame, packet) > min(worker.links.mtu[INSIDE], worker.links.mtu[OUTSIDE]):
        return NULL                                 # fragments are written with all workers locked
    if packet.kind == KIND_OTHER or crosses(worker, frame, packet):     # stateless
        return worker
    if packet.kind != KIND_SESSION or not has_ports(packet.protocol):
        return NULL
    if frame.side == INSIDE and address_find(worker.mappings.ports, packet.ip.destination) != NONE:
        return NULL                                 # a hairpin has two sessions
    if frame.side == OUTSIDE and has_live(worker, OUTSIDE, packet.addresses, packet.ports, packet.protocol, now):
        return worker
    return owner_by_key(worker, frame.side, packet.addresses, packet.ports, packet.protocol)


# ---- by packet, with all workers locked ------------------------------------------------------------------------------

cdef Worker* find_live_owner(Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports, uint8_t protocol,
                             bint expire_dead, const Clock* now) noexcept nogil:
    """The worker with a live session of this key, or NULL. expire_dead: end a dead one, as a packet that belongs to it does."""
    cdef uint32_t i
    cdef Worker* one
    for i in range(worker.shared.count):
        one = worker.shared.workers[i]
        if expire_dead and find_live(one, side, addresses, ports, protocol, now) != NONE:
            return one
        if not expire_dead and has_live(one, side, addresses, ports, protocol, now):
            return one
    return NULL


cdef Worker* find_session_owner(Worker* worker, uint32_t side, uint64_t addresses, uint32_t ports,
                                uint8_t protocol) noexcept nogil:
    """The worker with a session of this key, dead or alive, or NULL."""
    cdef uint32_t i
    for i in range(worker.shared.count):
        if session_find(&worker.shared.workers[i].sessions, side, addresses, ports, protocol) != NONE:
            return worker.shared.workers[i]
    return NULL


cdef bint is_reverse_query(const Worker* worker, const Frame* frame, const Packet* packet) noexcept nogil:
    """Whether it is an ICMP query in the reverse direction, which only sessions of 1:1 entries pass: a request from outside, or
    the inside's reply, not for the gateway or its host, and not refused by the policy."""
    cdef uint8_t type
    if packet.kind != KIND_ICMP:
        return False
    type = (<const IcmpHeader*>packet.l4).type
    return ((is_request(type) if frame.side == OUTSIDE else is_reply(type))
            and not (worker.configuration.echo_only and not is_echo(type))
            and not (worker.links.address[frame.side] and packet.ip.destination == worker.links.address[frame.side])
            and not is_shared_address(worker, packet.ip.destination))


cdef Worker* owner_with_all_locked(Worker* worker, const Frame* frame, const Packet* packet, bint expire_dead,
                                   const Clock* now) noexcept nogil:
    """The worker that processes the packet; `worker` if it does not matter. Call it with all workers locked. expire_dead: end a
    dead session of it."""
    cdef uint32_t i
    cdef Worker* owner
    cdef Packet copy = packet[0]
    if copy.kind == KIND_FRAGMENT and not fragment_key(worker, &copy, frame.side):
        return worker
    if copy.kind == KIND_ICMP and is_error(&copy):
        for i in range(worker.shared.count):
            if quoted_slot(worker.shared.workers[i], &copy, frame.side, now) != NONE:
                return worker.shared.workers[i]
        return worker
    expire_dead = expire_dead and (packet.kind == KIND_SESSION or is_reverse_query(worker, frame, packet))
    owner = find_live_owner(worker, frame.side, copy.addresses, copy.ports, copy.protocol, expire_dead, now)
    if owner == NULL:
        owner = owner_by_key(worker, frame.side, copy.addresses, copy.ports, copy.protocol)
    if owner == NULL:                               # fragment: it may yet expire_dead a dead session
        owner = find_session_owner(worker, frame.side, copy.addresses, copy.ports, copy.protocol)
    return worker if owner == NULL else owner


cdef Worker* hairpin_owner(Worker* worker, uint64_t addresses, uint32_t ports, uint8_t protocol,
                           const Clock* now) noexcept nogil:
    """The worker of the second session of a hairpinned packet, which has this key. Call it with all workers locked."""
    cdef Worker* owner
    if worker.shared.count == 1:
        return worker
    owner = find_live_owner(worker, IN, addresses, ports, protocol, True, now)
    if owner == NULL:
        owner = owner_by_key(worker, OUTSIDE, addresses, ports, protocol)
    return worker if owner == NULL else owner


# ---- by frame --------------------------------------------------------------------------------------------------------

cdef uint32_t owner_of_frame(Worker* worker, const Frame* frame) noexcept nogil:
    """The number of the worker that owns the frame; a guess unless all workers are locked."""
    cdef Frame one = frame[0]
    cdef Packet packet
    cdef Clock now
    cdef Worker* owner
    one.side &= 1
    clock_read(&now, worker.shared.now_ns)
    if worker.shared.count == 1 or parse(&one, &packet, worker.configuration.ethernet, &worker.sessions.key) != PENDING:
        return 0
    if holds_all_locks(worker):
        return owner_with_all_locked(worker, &one, &packet, False, &now).number
    owner = owner_of(worker, &one, &packet, &now)
    if owner == NULL and one.side == INSIDE:
        owner = owner_of_address(worker, packet.ip.source)
    return worker.number if owner == NULL else owner.number
