"""What a packet that has no session will most likely need, on its way into the cache before it is admitted.

A new session's place in the inbound index follows from the port that will be drawn, and the wait for that line is half
of what an admission costs. The draw's lot is known beforehand (_ports), so the port is too, unless others change its word
of the map meanwhile. Nothing is changed here, and nothing depends on whether it came as foreseen.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from natcore.tables.mappings cimport (
    POOLING_ARBITRARY, MappingKey, Mappings, dynamic_key, mapping_find, subscriber_find,
)
from natcore.packet.parse cimport Flight
from natcore.tables.ports cimport (
    PORTS_BLOCK, PORTS_DETERMINISTIC, PORTS_OVERLOAD, Pool, PortMap, Ports, address_guess, has_ports, in_pool, lot_after,
    port_guess, space_of,
)
from natcore.tables.entries cimport SnatRule, snat_rule
from natcore.tables.sessions cimport IN
from natcore.base.flow_hash cimport flow_hash
from natcore.base.compiler cimport bswap16, bswap32, prefetch_write
from natcore.base.hash_table cimport NONE, Bucket, bucket_of
from natcore.workers.worker cimport Worker


cdef inline uint32_t likely_address(const Mappings* table, const Pool* pool, uint32_t inside_ip, uint32_t space,
                                    uint64_t lot) noexcept nogil:
    """Number of the outside address: the one that the subscriber is paired with, else the lot's; NONE: it is not foreseen."""
    cdef uint32_t who = subscriber_find(table, inside_ip) if table.pooling != POOLING_ARBITRARY else NONE
    if who != NONE and table.subscribers[who].mappings and table.subscribers[who].entry == pool.entry:
        return table.subscribers[who].address
    if table.ports.policy == PORTS_OVERLOAD:
        return pool.addresses[in_pool(lot, pool.size)]
    return address_guess(table.ports, space, pool, &lot)


cdef inline const Bucket* inbound_bucket(const Worker* worker, const Flight* flight, uint32_t outside_ip,
                                         uint16_t outside_port) noexcept nogil:
    """Where packets of the session from outside will be looked up (outside_ip, outside_port: big-endian)."""
    cdef uint64_t addresses = <uint64_t>outside_ip << 32 | flight.ip.destination
    cdef uint32_t ports = <uint32_t>outside_port << 16 | flight.ports >> 16
    return bucket_of(&worker.sessions.index[IN], flow_hash(&worker.sessions.key, addresses, ports, flight.protocol))


cdef bint foresee(const Worker* worker, const Flight* flight, uint32_t draws) noexcept nogil:
    """For a packet from inside; whether a port will be drawn for it. draws: those that will come before."""
    cdef const Mappings* table = &worker.mappings
    cdef const Ports* ports = table.ports
    cdef const SnatRule* rule
    cdef PortMap* map
    cdef MappingKey key
    cdef uint32_t number, address, port
    cdef uint64_t lot
    if not has_ports(flight.protocol):
        return False
    dynamic_key(&key, flight.addresses, flight.ports, flight.protocol, worker.mapping[space_of(flight.protocol)])
    number = mapping_find(table, &key)
    if number != NONE:
        prefetch_write(inbound_bucket(worker, flight, table.mappings[number].outside_ip,
                                      table.mappings[number].outside_port))
        return False
    rule = snat_rule(worker.rules, bswap32(flight.ip.source)) if worker.rules != NULL else NULL
    if rule == NULL or ports.policy == PORTS_BLOCK or ports.policy == PORTS_DETERMINISTIC:
        return False
    lot = lot_after(ports, draws)
    address = likely_address(table, &rule.pool, flight.ip.source, space_of(flight.protocol), lot)
    if address == NONE:
        return False
    map = &ports.addresses[address].maps[space_of(flight.protocol)]
    port = port_guess(ports, map, bswap16(<uint16_t>flight.ports), lot, table.worker)
    if port == NONE:
        return False
    prefetch_write(&map.cells[port])
    prefetch_write(inbound_bucket(worker, flight, ports.addresses[address].ip, bswap16(<uint16_t>port)))
    return True
