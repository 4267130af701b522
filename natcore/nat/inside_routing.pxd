"""Routing between inside links: packets that a no-NAT entry matches, without a session."""
from libc.stdint cimport uint8_t, uint16_t

from natcore.nat.admission cimport inside_mtu, is_no_host, may_pass
from natcore.packet.parse cimport Flight
from natcore.tables.ports cimport address_find
from natcore.tables.entries cimport plain_rule
from natcore.base.checksum cimport update
from natcore.frame cimport FRAME_CROSSING, Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.hash_table cimport NONE
from natcore.workers.worker cimport Worker
from natcore.packet.verdict cimport INSIDE, PENDING, UNTRANSLATED

cdef inline bint crosses(const Worker* worker, const Frame* frame, const Flight* flight) noexcept nogil:
    """Whether the packet is for a host behind an inside link and matches a no-NAT entry. Same for fragments."""
    if not frame.flags & FRAME_CROSSING or frame.side != INSIDE or worker.rules == NULL:
        return False
    return (flight.ip.destination != worker.link_address[INSIDE]
            and address_find(worker.mappings.ports, flight.ip.destination) == NONE
            and not is_no_host(worker, flight.ip.source) and not is_no_host(worker, flight.ip.destination)
            and plain_rule(worker.rules, bswap32(flight.ip.source), bswap32(flight.ip.destination)) != NULL)

cdef inline uint8_t cross(Worker* worker, const Frame* frame, Flight* flight) noexcept nogil:
    """Forwards it as a router does: TTL, MTU."""
    cdef uint8_t verdict = may_pass(worker, frame, flight, inside_mtu(worker, flight.ip.destination))
    if verdict != PENDING:
        return verdict
    if worker.decrement_ttl:
        flight.ip.ttl -= 1
        flight.ip.checksum = update(flight.ip.checksum, bswap16(0xFEFF))
    return UNTRANSLATED
