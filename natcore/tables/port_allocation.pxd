"""Port allocation: allocates and releases outside ports by the gateway's policy; mappings get ports only from here.

Theory of operation. A mapping is opened in four steps: choose an outside address of the pool, by pooling (mappings.pyx);
allocate a port of it (allocate_port); enter the mapping into its table; assign the port to it (assign_port). A step that fails
undoes those before it (unassign_port), and restores a hold-down that the allocation lifted (until_ms). By policy:

| ports= | where a port is sought |
|---|---|
| random | any free port of the address; none is free: one that is held down for this inside address |
| preserve | the inside port, free or held down for this inside address; then as random |
| block | the subscriber's blocks, from a random one on; then a new block, as long as it may have one more |
| deterministic | the block computed from the inside address (RFC 7422); nothing is stored |
| overload | an unused port; none: one unused towards this remote endpoint, which filtering by it keeps apart |

Invariants. A request's random number is consumed only by an allocation that succeeds: a packet that is repeated with all
workers locked has the same one again, and prefetching, which reads the next numbers ahead, changes no choice. (Blocks draw
others beside it.) OVER_QUOTA differs from NONE: the address has free ports, the subscriber may not have them. A port is
assigned to one mapping at a time; an overloaded one to one mapping for each remote endpoint.

Lock. The ports' spin lock, from before allocate_port to behind assign_port (ports_lock, ports_unlock in mappings.pyx).

Cost. As in ports.pxd; in a block its words; overload: SHARED_PROBES random ports, then the ports that are not full, counted.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.tables.port_overload cimport EndpointPair
from natcore.tables.ports cimport PORTS_OVERLOAD, PortMap, Ports, space_of
from natcore.base.spinlock cimport assert_spin

cdef enum:
    OVER_QUOTA = 0xFFFFFFFE     # beside NONE: the subscriber's quota is used up, though the address has free ports

cdef struct PortRequest:            # a request for a port; addresses and ports big-endian
    uint32_t owner              # inside address
    uint32_t remote_ip          # overload: the remote endpoint
    uint16_t remote_port
    uint16_t inside_port
    uint8_t protocol
    uint32_t block              # deterministic: the block of the owner
    uint64_t random                # random number of this allocation

cdef uint32_t allocate_port(Ports* ports, uint32_t address, const PortRequest* request, uint32_t now_ms,
                            uint32_t* until_ms) noexcept nogil
cdef bint assign_overloaded(Ports* ports, uint32_t address, const PortRequest* request, uint32_t port,
                            uint32_t mapping) noexcept nogil

cdef inline bint assign_port(Ports* ports, uint32_t address, const PortRequest* request, uint32_t port,
                             uint32_t mapping) noexcept nogil:
    """Assigns an allocated port to a mapping; False: probe limit reached, unassign it."""
    cdef PortMap* map = &ports.addresses[address].maps[space_of(request.protocol)]
    assert_spin(&ports.spin, ports.lock, "ports: assign_port")
    if ports.policy == PORTS_OVERLOAD:
        return assign_overloaded(ports, address, request, port, mapping)
    map.cells[port] = mapping
    if ports.workers > 1:
        map.workers[port] = <uint8_t>ports.allocating
    return True

cdef void unassign_port(Ports* ports, uint32_t address, const PortRequest* request, uint32_t port, uint32_t until_ms,
                        uint32_t now_ms) noexcept nogil
cdef uint32_t address_with_block(const Ports* ports, uint32_t owner) noexcept nogil
