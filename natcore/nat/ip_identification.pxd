"""IP identification: packets from an outside address are renumbered as if the gateway had sent them (RFC 6864 section 5.3.1).

Otherwise two inside hosts behind one address could use the same identification towards one remote, which would mix up their
fragments. Packets that are fragments or may be fragmented (DF not set) get the next value of a counter, chosen by a keyed
hash of source, destination and protocol, with a different start for each. Two flows that share a counter still get unique
values. Atomic packets (DF set, not a fragment) keep their value, which is never read.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from natcore.packet.parse cimport Packet, wire_packets
from natcore.base.checksum cimport delta16, update
from natcore.base.flow_hash cimport flow_hash
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, fetch_add
from natcore.workers.worker cimport IDENTIFICATIONS, Worker
from natcore.base.headers cimport IPV4_DF, IPV4_FRAGMENT, Ipv4Header, load64

cdef inline bint is_atomic(const Ipv4Header* ip) noexcept nogil:
    """RFC 6864 section 4."""
    return ip.fragment & bswap16(IPV4_DF | IPV4_FRAGMENT) == bswap16(IPV4_DF)

cdef inline void set_identification(Ipv4Header* ip, uint16_t identification) noexcept nogil:
    """identification: big-endian."""
    ip.checksum = update(ip.checksum, delta16(ip.identification, identification))
    ip.identification = identification

cdef inline uint16_t next_identification(const Worker* worker, const Ipv4Header* ip, uint32_t count) noexcept nogil:
    """Reserves `count` consecutive values for packets with these addresses and protocol; the first one."""
    cdef uint64_t hash = flow_hash(&worker.sessions.key, load64(&ip.source), 0, ip.protocol)
    cdef uint32_t* cell = &worker.identifications[hash % IDENTIFICATIONS]
    cdef uint32_t number
    if worker.shared.count > 1:
        number = fetch_add(cell, count)
    else:
        number = cell[0]
        cell[0] = number + count
    return <uint16_t>(number + (hash >> 48))

cdef inline void identify(const Worker* worker, const Frame* frame, const Packet* packet) noexcept nogil:
    """Renumbers a translated packet from inside. A super-frame reserves a value for each packet on the wire; segmentation
    counts up from its own."""
    if worker.configuration.unique_ids and not is_atomic(packet.ip):
        set_identification(packet.ip, bswap16(next_identification(worker, packet.ip, wire_packets(frame, packet))))
