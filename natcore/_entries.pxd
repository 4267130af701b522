"""What changes of entries do to live sessions: counting whom they concern, and ending them."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from natcore._mappings cimport Mapping
from natcore.state cimport Worker

cdef uint64_t end_entry(Worker* worker, uint32_t entry, uint64_t first, uint64_t last, set addresses,
                        uint64_t now_ns, relief) except? 0
cdef int count_entry(Worker* worker, uint32_t entry, uint64_t first, uint64_t last, set addresses, uint64_t* count,
                     uint64_t* inside) except -1
cdef uint64_t end_matching(Worker* worker, int64_t subscriber, int64_t remote, int64_t outside, int64_t protocol,
                           uint64_t now_ns, relief) noexcept
cdef const Mapping* holder_of(const Worker* worker, uint32_t address, uint32_t space, uint32_t port) noexcept
cdef void end_dead(Worker* worker, uint64_t now_ns, relief) noexcept
