"""Prefetching for packets without a session: the memory that their admission will most likely need.

A new session's bucket in the inbound index depends on the outside port, and waiting for that line is half the cost of an
admission. The random number of the next allocation is known in advance (ports.pxd), so the port can be predicted unless others
change its word of the bitmap meanwhile. Nothing is changed here, and the result does not depend on correct predictions.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from natcore.tables.mappings cimport (
    POOLING_ARBITRARY, MappingKey, Mappings, dynamic_key, mapping_find, subscriber_find,
)
from natcore.packet.parse cimport Packet
from natcore.tables.ports cimport (
    PORTS_BLOCK, PORTS_DETERMINISTIC, PORTS_OVERLOAD, Address, Pool, Ports, address_try, has_free_port, has_ports, in_pool,
    port_predict, random_after, space_of,
)
from natcore.tables.entries cimport SnatRule, snat_rule
from natcore.tables.sessions cimport IN
from natcore.base.flow_hash cimport flow_hash
from natcore.base.compiler cimport bswap16, bswap32, likely, prefetch_write
from natcore.base.sentinels cimport NONE
from natcore.base.hash_table cimport Bucket, bucket_of
from natcore.workers.worker cimport Worker


cdef inline uint32_t likely_address(const Mappings* table, const Pool* pool, uint32_t inside_ip, uint32_t space,
                                    uint64_t random) noexcept nogil:
    """Index of the outside address: the paired one, otherwise by the random number; NONE: no prediction."""
    cdef uint32_t who = subscriber_find(table, inside_ip) if table.pooling != POOLING_ARBITRARY else NONE, address
    if who != NONE and table.subscribers[who].mappings and table.subscribers[who].entry == pool.entry:
        return table.subscribers[who].address
    address = pool.addresses[in_pool(random, pool.size)]
    if likely(table.ports.policy == PORTS_OVERLOAD or has_free_port(table.ports, space, address)):
        return address
    return address_try(table.ports, space, pool, &random)


cdef inline const Bucket* inbound_bucket(const Worker* worker, const Packet* packet, uint32_t outside_ip,
                                         uint16_t outside_port) noexcept nogil:
    """The bucket where packets from outside will look up the session (outside_ip, outside_port: big-endian)."""
    cdef uint64_t addresses = <uint64_t>outside_ip << 32 | packet.ip.destination
    cdef uint32_t ports = <uint32_t>outside_port << 16 | packet.ports >> 16
    return bucket_of(&worker.sessions.index[IN], flow_hash(&worker.sessions.key, addresses, ports, packet.protocol))


cdef inline bint predict(const Worker* worker, const Packet* packet, uint32_t allocations, uint32_t* address,
                         uint32_t* port) noexcept nogil:
    cdef const Ports* ports = worker.mappings.ports
    cdef const SnatRule* rule = snat_rule(worker.rules, bswap32(packet.ip.source)) if worker.rules != NULL else NULL
    cdef uint32_t space = space_of(packet.protocol)
    cdef uint64_t random
    if rule == NULL or ports.policy == PORTS_BLOCK or ports.policy == PORTS_DETERMINISTIC:
        return False
    random = random_after(ports, allocations)
    port[0] = NONE
    address[0] = likely_address(&worker.mappings, &rule.pool, packet.ip.source, space, random)
    if address[0] != NONE:
        port[0] = port_predict(ports, &ports.addresses[address[0]].maps[space], bswap16(<uint16_t>packet.ports), random,
                               worker.mappings.worker)
    return True


cdef bint predict_allocation(const Worker* worker, const Packet* packet, uint32_t allocations, uint32_t* address,
                             uint32_t* port) noexcept nogil:
    """Whether a packet from inside, which has no mapping, will consume a random number for the port that it allocates.

    address, port: those that it gets by that number, by index and in host order; NONE: not predicted, since the tries were in
    use, though others are free.
    """
    return predict(worker, packet, allocations, address, port)


cdef bint prefetch_admission(const Worker* worker, const Packet* packet, uint32_t allocations) noexcept nogil:
    """Prefetches for a packet from inside; whether it will consume the random number of an allocation. allocations: those
    predicted before it."""
    cdef const Mappings* table = &worker.mappings
    cdef const Address* outside
    cdef MappingKey key
    cdef uint32_t space = space_of(packet.protocol), number, address = NONE, port = NONE
    if not has_ports(packet.protocol):
        return False
    dynamic_key(&key, packet.addresses, packet.ports, packet.protocol, worker.configuration.mapping[space])
    number = mapping_find(table, &key)
    if number != NONE:
        prefetch_write(inbound_bucket(worker, packet, table.mappings[number].outside_ip,
                                      table.mappings[number].outside_port))
        return False
    if not predict(worker, packet, allocations, &address, &port):
        return False
    if port != NONE:
        outside = &table.ports.addresses[address]
        prefetch_write(&outside.maps[space].cells[port])
        prefetch_write(inbound_bucket(worker, packet, outside.ip, bswap16(<uint16_t>port)))
    return True
