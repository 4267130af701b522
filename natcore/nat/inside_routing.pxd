"""Routing between inside links: packets that a no-NAT entry matches, without a session."""
from libc.stdint cimport uint8_t, uint16_t

from natcore.nat.admission cimport inside_mtu, is_martian, may_pass
from natcore.packet.parse cimport Packet
from natcore.tables.ports cimport address_find
from natcore.tables.entries cimport no_nat_rule
from natcore.base.checksum cimport update
from natcore.frame cimport FRAME_CROSSING, Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.sentinels cimport NONE
from natcore.workers.worker cimport Worker
from natcore.packet.verdict cimport INSIDE, PENDING, UNTRANSLATED

cdef inline bint crosses(const Worker* worker, const Frame* frame, const Packet* packet) noexcept nogil:
    """Whether the packet is for a host behind an inside link and matches a no-NAT entry. Same for fragments."""
    if not frame.flags & FRAME_CROSSING or frame.side != INSIDE or worker.rules == NULL:
        return False
    return (packet.ip.destination != worker.links.address[INSIDE]
            and address_find(worker.mappings.ports, packet.ip.destination) == NONE
            and not is_martian(worker, packet.ip.source) and not is_martian(worker, packet.ip.destination)
            and no_nat_rule(worker.rules, bswap32(packet.ip.source), bswap32(packet.ip.destination)) != NULL)

cdef inline uint8_t cross(Worker* worker, const Frame* frame, Packet* packet) noexcept nogil:
    """Forwards it as a router does: TTL, MTU."""
    cdef uint8_t verdict = may_pass(worker, frame, packet, inside_mtu(worker, packet.ip.destination))
    if verdict != PENDING:
        return verdict
    if worker.configuration.decrement_ttl:
        packet.ip.ttl -= 1
        packet.ip.checksum = update(packet.ip.checksum, bswap16(0xFEFF))
    return UNTRANSLATED
