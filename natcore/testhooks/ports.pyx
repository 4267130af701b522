"""Outside addresses and their ports without a gateway, for tests."""
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from natcore.tables.ports cimport (
    LOOKS, PortMap, Ports, address_add, address_drop, address_find, random_after, random_take, randoms_fill, pick_by_policy,
    allocate_from_map,
    port_mapping, port_release, ports_allow, ports_delete, ports_new, ports_reclaim,
)
from natcore.base.sentinels cimport NONE
from natcore.base.chacha20 cimport random_seed


cdef class PortTable:
    """Outside addresses (no byte order here) and their ports; protocols by port space, 0 to 2."""
    cdef Ports ports

    def __cinit__(self, uint32_t addresses, ranges, bytes key=bytes(32)):
        if not ports_new(&self.ports, addresses):
            raise MemoryError(f"{addresses} addresses")
        self.ports.key.low = self.ports.key.high = 1
        random_seed(&self.ports.random, <const uint8_t*>PyBytes_AS_STRING(key))
        randoms_fill(&self.ports)
        for first, last in ranges:
            ports_allow(&self.ports, first, last)

    def __dealloc__(self):
        ports_delete(&self.ports)

    def add(self, uint32_t ip, uint32_t eip=0):
        """Its index, or None: limit reached."""
        cdef uint32_t number = address_add(&self.ports, ip, eip)
        return None if number == NONE else number

    def drop(self, uint32_t number):
        address_drop(&self.ports, number)

    def find(self, uint32_t ip):
        cdef uint32_t number = address_find(&self.ports, ip)
        return None if number == NONE else number

    cdef PortMap* map(self, uint32_t number, uint32_t space):
        return &self.ports.addresses[number].maps[space]

    def draw(self, uint32_t number, uint32_t space, uint32_t owner, uint32_t now_ms, uint32_t mapping=0):
        """Allocates a port for the mapping; None: none is free."""
        cdef uint32_t until_ms = 0, port
        self.ports.looks = LOOKS
        port = allocate_from_map(&self.ports, self.map(number, space), owner, 0, random_take(&self.ports), now_ms, &until_ms)
        if port == NONE:
            return None
        self.map(number, space).cells[port] = mapping
        return port

    def foretell(self, uint32_t number, uint32_t space, uint32_t draws):
        """Predicts the port after so many other allocations; None: none is free."""
        cdef uint32_t port = pick_by_policy(&self.ports, self.map(number, space), 0, random_after(&self.ports, draws), 0)
        return None if port == NONE else port

    def release(self, uint32_t number, uint32_t space, uint32_t port, uint32_t owner, uint32_t until_ms, uint32_t now_ms):
        port_release(&self.ports, self.map(number, space), port, owner, until_ms, now_ms)

    def reclaim(self, uint32_t now_ms):
        ports_reclaim(&self.ports, NONE, NONE, now_ms)

    def mapping(self, uint32_t number, uint32_t space, uint16_t port):
        """The mapping that has the port, or None."""
        cdef uint32_t found = port_mapping(self.map(number, space), port)
        return None if found == NONE else found

    def free(self, uint32_t number, uint32_t space):
        return self.map(number, space).free

    def held(self, uint32_t number, uint32_t space):
        return self.map(number, space).held_count
