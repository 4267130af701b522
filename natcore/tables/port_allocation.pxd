"""Port allocation: allocates and releases outside ports by the gateway's policy; mappings get ports only from here."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.tables.port_overload cimport EndpointPair
from natcore.tables.ports cimport PortMap, Ports

cdef enum:
    OVER_QUOTA = 0xFFFFFFFE     # beside NONE: the subscriber's quota is used up, though the address has free ports

cdef struct Request:            # a request for a port; addresses and ports big-endian
    uint32_t owner              # inside address
    uint32_t remote_ip          # overload: the remote endpoint
    uint16_t remote_port
    uint16_t inside_port
    uint8_t protocol
    uint32_t block              # deterministic: the block of the owner
    uint64_t random                # random number of this allocation

cdef uint32_t allocate_port(Ports* ports, uint32_t address, const Request* request, uint32_t now_ms,
                            uint32_t* until_ms) noexcept nogil
cdef bint assign_port(Ports* ports, uint32_t address, const Request* request, uint32_t port, uint32_t mapping) noexcept nogil
cdef void unassign_port(Ports* ports, uint32_t address, const Request* request, uint32_t port, uint32_t until_ms,
                        uint32_t now_ms) noexcept nogil
cdef uint32_t home_of_owner(const Ports* ports, uint32_t owner) noexcept nogil
