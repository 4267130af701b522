"""The list of a worker's tables with their sizes, and their placement on huge pages and NUMA nodes."""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from natcore.base.linked_list cimport Link
from natcore.tables.mappings cimport MappingCursor, Mappings
from natcore.workers.worker cimport Shared, Worker

cdef enum:                      # HugePages
    HUGE_AUTO = 0               # transparent huge pages for every large table (pages.pxd)
    HUGE_NEVER = 1
    HUGE_EXPLICIT = 2           # reserved huge pages (vm.nr_hugepages), populated at once

cdef enum:
    ANY_NODE = -1
    REGIONS = 48                # tables of a worker at most

cdef struct Region:             # one table
    const char* name
    void* base
    uint64_t bytes              # bytes mapped, whole pages
    bint index
    bint large                  # aligned to huge pages and mostly used

cdef struct Placement:          # what kind of memory
    uint32_t huge_pages         # HugePages
    int32_t node                # of NUMA, or ANY_NODE

cdef uint32_t regions_of(const Worker* worker, Region* regions) noexcept nogil
cdef uint32_t address_regions(const Worker* worker, uint32_t address, Region* regions) noexcept nogil
cdef int apply_placement(const Region* regions, uint32_t count, const Placement* how) noexcept nogil
cdef dict tables_of(const Worker* worker)
cdef int place_tables(Worker* worker, const Placement* how, uint64_t limit_bytes, str limit_name) except -1
cdef int place_address_tables(Worker* worker, const Placement* how, uint32_t address) except -1
cdef int place_lists(const Mappings* table, Link* by_subscriber, MappingCursor* cursors, const Placement* how) except -1
