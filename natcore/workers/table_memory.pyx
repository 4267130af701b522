"""Lists a worker's tables with their sizes, and moves them to huge pages or a NUMA node before first use."""
from libc.errno cimport ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t

import os

from natcore.tables.port_blocks cimport BLOCK_CHAINS, Block
from natcore.tables.fragments cimport (
    CHUNK_BYTES, CHUNKS, DATAGRAM_UNITS, DATAGRAMS, RANGES_KEPT, SOURCES, Datagram, Fragments, FragmentRange, SourceCount,
)
from natcore.tables.outbox cimport OUTBOX_BYTES
from natcore.log.journal cimport Record
from natcore.tables.mappings cimport Mapping, Subscriber
from natcore.tables.port_overload cimport RemoteCount, EndpointPair
from natcore.tables.ports cimport MAP_BYTES, PORT_SPACES, Address
from natcore.tables.sessions cimport IN, OUT, Cold, Filter, Session
from natcore.tables.syn_holdoff cimport HELD_SYNS, HeldSyn
from natcore.base.hash_table cimport Bucket, Index
from natcore.base.linked_list cimport Link
from natcore.base.pages cimport HUGE_BYTES, table_mapped, table_span
from natcore.workers.worker cimport IDENTIFICATIONS

from natcore.errors import CapacityError, Error

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <linux/mempolicy.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif

    #ifdef __SANITIZE_ADDRESS__             /* its allocator's memory is not ours to map again */
    static int natcore_map_huge_pages(void* base, size_t bytes) { (void)base; (void)bytes; errno = ENOTSUP; return -1; }
    static int natcore_never_huge(void* base, size_t bytes) { (void)base; (void)bytes; return 0; }
    static int natcore_bind(void* base, size_t bytes, int node) { (void)base; (void)bytes; (void)node; return 0; }
    static int natcore_populate(void* base, size_t bytes) { (void)base; (void)bytes; return 0; }
    #else
    static int natcore_map_huge_pages(void* base, size_t bytes) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT;   /* of 2^21 bytes */
        return mmap(base, bytes, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED ? -1 : 0;
    }
    static int natcore_never_huge(void* base, size_t bytes) {
        return madvise(base, bytes, MADV_NOHUGEPAGE) && errno != EINVAL ? -1 : 0;      /* EINVAL: no such pages here */
    }
    static int natcore_bind(void* base, size_t bytes, int node) {
        unsigned long mask[16] = {0};                                                  /* 1,024 nodes */
        mask[node / (8 * sizeof(long))] = 1ul << node % (8 * sizeof(long));
        return (int)syscall(SYS_mbind, base, bytes, MPOL_BIND, mask, 8 * sizeof(mask), MPOL_MF_MOVE);
    }
    static int natcore_populate(void* base, size_t bytes) {
        return madvise(base, bytes, MADV_POPULATE_WRITE) && errno != EINVAL ? -1 : 0;  /* EINVAL: before Linux 5.14 */
    }
    #endif
    """
    int map_huge_pages "natcore_map_huge_pages" (void* base, size_t bytes) noexcept
    int never_huge "natcore_never_huge" (void* base, size_t bytes) noexcept
    int bind "natcore_bind" (void* base, size_t bytes, int node) noexcept
    int populate "natcore_populate" (void* base, size_t bytes) noexcept


cdef void add(Region* regions, uint32_t* count, const char* name, const void* base, uint64_t bytes) noexcept nogil:
    """Appends a table if it exists."""
    cdef Region* region = &regions[count[0]]
    if base == NULL:
        return
    region.name = name
    region.base = <void*>base
    region.bytes = table_mapped(bytes)
    region.index = False
    region.large = region.bytes >= 2 * <uint64_t>HUGE_BYTES
    count[0] += 1


cdef void add_index(Region* regions, uint32_t* count, const char* name, const Index* index) noexcept nogil:
    add(regions, count, name, index.buckets, <uint64_t>index.count * sizeof(Bucket))
    regions[count[0] - 1].index = True


cdef void add_lists(Region* regions, uint32_t* count, const Mappings* table, const Link* by_subscriber,
                    const MappingCursor* cursors) noexcept nogil:
    add(regions, count, "mappings by subscriber", by_subscriber, <uint64_t>table.mapping_slots.capacity * sizeof(Link))
    add(regions, count, "mappings of subscribers", cursors,
        <uint64_t>table.subscriber_slots.capacity * sizeof(MappingCursor))


cdef uint32_t regions_of(const Worker* worker, Region* regions) noexcept nogil:
    """Lists the tables that a worker has from the start, the first worker's with the shared ones; how many.

    regions: space for REGIONS.
    """
    cdef uint32_t n = 0, space
    cdef uint64_t sessions = worker.sessions.slots.capacity, mappings = worker.mappings.mapping_slots.capacity
    cdef const Fragments* fragments
    cdef uint32_t side
    add(regions, &n, "worker", worker, sizeof(Worker))
    add(regions, &n, "sessions", worker.sessions.hot, sessions * sizeof(Session))
    add(regions, &n, "sessions, cold lines", worker.sessions.cold, sessions * sizeof(Cold))
    add(regions, &n, "sessions, SYNs", worker.sessions.syn, sessions * 8)
    add(regions, &n, "sessions by mapping", worker.sessions.by_mapping, sessions * sizeof(Link))
    add(regions, &n, "sessions by filter", worker.sessions.by_filter, sessions * sizeof(Link))
    add(regions, &n, "filters", worker.sessions.filters, sessions * sizeof(Filter))
    add_index(regions, &n, "filters by remote", &worker.sessions.by_remote)
    add_index(regions, &n, "outbound index", &worker.sessions.index[OUT])
    add_index(regions, &n, "inbound index", &worker.sessions.index[IN])
    add(regions, &n, "mappings", worker.mappings.mappings, mappings * sizeof(Mapping))
    add_index(regions, &n, "mappings by inside", &worker.mappings.by_inside)
    add(regions, &n, "subscribers", worker.mappings.subscribers,
        <uint64_t>worker.mappings.subscriber_slots.capacity * sizeof(Subscriber))
    add_index(regions, &n, "subscribers by address", &worker.mappings.by_ip)
    add_lists(regions, &n, &worker.mappings, worker.mappings.by_subscriber, worker.mappings.cursors)
    if worker.number:
        return n
    add(regions, &n, "shared by workers", worker.shared, sizeof(Shared))
    add(regions, &n, "outside addresses", worker.mappings.ports.addresses,
        <uint64_t>worker.mappings.ports.capacity * sizeof(Address))
    regions[n - 1].large = False        # most gateways use few of its lines
    for space in range(PORT_SPACES):
        add(regions, &n, "outside addresses by release", worker.mappings.ports.next_release[space],
            <uint64_t>worker.mappings.ports.capacity * sizeof(uint32_t))
        regions[n - 1].large = False
    add_index(regions, &n, "outside addresses by address", &worker.mappings.ports.index)
    add(regions, &n, "blocks", worker.mappings.ports.blocks.of,
        <uint64_t>worker.mappings.ports.blocks.capacity * sizeof(Block*))
    add(regions, &n, "blocks free", worker.mappings.ports.blocks.free,
        <uint64_t>worker.mappings.ports.blocks.capacity * sizeof(uint32_t))
    add(regions, &n, "blocks by owner", worker.mappings.ports.blocks.chains, BLOCK_CHAINS * sizeof(uint32_t))
    add(regions, &n, "overloaded ports", worker.mappings.ports.overload.pairs,
        <uint64_t>worker.mappings.ports.overload.slots.capacity * sizeof(EndpointPair))
    add(regions, &n, "overloaded ports, counted", worker.mappings.ports.overload.remote_counts,
        <uint64_t>worker.mappings.ports.overload.count_slots.capacity * sizeof(RemoteCount))
    add_index(regions, &n, "overloaded ports by remote", &worker.mappings.ports.overload.index)
    add_index(regions, &n, "overloaded ports, counted by remote", &worker.mappings.ports.overload.by_part)
    add(regions, &n, "journal", worker.journal.ring, worker.journal.capacity * sizeof(Record))
    add(regions, &n, "journal of beginnings and ends", worker.journal.lifecycle, worker.journal.capacity * sizeof(Record))
    add(regions, &n, "generated frames", worker.outbox.buffer, OUTBOX_BYTES)
    add(regions, &n, "unsolicited", worker.syn_holdoff.slots, HELD_SYNS * sizeof(HeldSyn))
    add(regions, &n, "identifications", worker.identifications, IDENTIFICATIONS * sizeof(uint32_t))
    add(regions, &n, "fragments", worker.fragments, 2 * sizeof(Fragments))
    for side in range(2):
        fragments = &worker.fragments[side]
        add(regions, &n, "fragments, datagrams", fragments.datagrams, DATAGRAMS * sizeof(Datagram))
        add(regions, &n, "fragments seen", fragments.seen, DATAGRAMS * DATAGRAM_UNITS // 8)
        add(regions, &n, "fragments, ranges", fragments.ranges, DATAGRAMS * RANGES_KEPT * sizeof(FragmentRange))
        add(regions, &n, "fragments, chunks", fragments.chunks, CHUNKS * CHUNK_BYTES)
        add(regions, &n, "fragments, sources", fragments.sources, SOURCES * sizeof(SourceCount))
        add(regions, &n, "fragments by age", fragments.by_age, DATAGRAMS * sizeof(Link))
        add(regions, &n, "fragments by source", fragments.of_source, DATAGRAMS * sizeof(Link))
        add_index(regions, &n, "fragments by datagram", &fragments.index)
    return n


cdef uint32_t address_regions(const Worker* worker, uint32_t address, Region* regions) noexcept nogil:
    """Lists the tables of one outside address; how many."""
    cdef uint32_t n = 0
    add(regions, &n, "port maps", worker.mappings.ports.addresses[address].memory, PORT_SPACES * MAP_BYTES)
    if worker.mappings.ports.blocks.of != NULL:
        add(regions, &n, "blocks of addresses", worker.mappings.ports.blocks.of[address],
            <uint64_t>worker.mappings.ports.blocks.per_address * sizeof(Block))
    return n


cdef int apply_placement(const Region* regions, uint32_t count, const Placement* how) noexcept nogil:
    """Applies the placement to tables. Large ones must be unused: explicit huge pages are mapped empty.

    0, or -1 with errno (ENOMEM: too few reserved huge pages).
    """
    cdef uint32_t i
    cdef uint64_t bytes
    cdef bint explicit
    for i in range(count):
        explicit = how.huge_pages == HUGE_EXPLICIT and regions[i].large
        bytes = table_span(regions[i].bytes) if explicit else regions[i].bytes
        if explicit and map_huge_pages(regions[i].base, bytes) < 0:
            return -1
        if how.huge_pages == HUGE_NEVER and never_huge(regions[i].base, bytes) < 0:
            return -1
        if how.node != ANY_NODE and bind(regions[i].base, bytes, how.node) < 0:
            return -1
        if explicit and populate(regions[i].base, bytes) < 0:    # a later page fault without a free page would be SIGBUS
            return -1
    return 0


cdef int raise_refusal(const Placement* how, uint64_t bytes, int error) except -1:
    """Raises the error for tables of so many bytes."""
    asked = "huge_pages='explicit'" if how.huge_pages == HUGE_EXPLICIT else f"numa_node={how.node}"
    if error == ENOMEM and how.huge_pages == HUGE_EXPLICIT:
        raise CapacityError(f"{asked}: the tables need {bytes:,} bytes of huge pages, more than is reserved (vm.nr_hugepages) "
                            f"and free (HugePages_Free in /proc/meminfo, {HUGE_BYTES:,} bytes each)")
    raise Error(f"{asked}: the system refuses it: {os.strerror(error)}")


cdef dict tables_of(const Worker* worker):
    """{table: bytes mapped}, summed over workers and outside addresses."""
    cdef Region regions[REGIONS]
    cdef uint32_t address, i, w
    tables = {}
    for w in range(worker.shared.count):
        for i in range(regions_of(worker.shared.workers[w], regions)):
            name = regions[i].name.decode()
            tables[name] = tables.get(name, 0) + regions[i].bytes
    for address in range(worker.mappings.ports.count):
        for i in range(address_regions(worker, address, regions)):
            name = regions[i].name.decode()
            tables[name] = tables.get(name, 0) + regions[i].bytes
    return tables


cdef int place_tables(Worker* worker, const Placement* how, uint64_t limit_bytes, str limit_name) except -1:
    """Places the tables of all workers, which must be empty. CapacityError: they do not fit into memory, or too few huge
    pages.

    Each worker has tables for all sessions, but together they hold no more than that: of further workers only the indexes
    count, which a few entries touch widely. limit_bytes: memory available; limit_name: where that limit comes from. Address
    space beyond it is granted by the system without an error.
    """
    cdef Region regions[REGIONS]
    cdef uint32_t i, w
    cdef uint64_t bytes = 0, large = 0
    for w in range(worker.shared.count):
        for i in range(regions_of(worker.shared.workers[w], regions)):
            bytes += regions[i].bytes if w == 0 or regions[i].index else 0
            large += table_span(regions[i].bytes) if regions[i].large else 0
    if bytes > limit_bytes:
        raise CapacityError(f"max_sessions={worker.sessions.slots.capacity}: full tables (max_mappings="
                            f"{worker.mappings.mapping_slots.capacity}, max_subscribers="
                            f"{worker.mappings.subscriber_slots.capacity}, records={worker.journal.capacity}) need "
                            f"{bytes:,} bytes, more than {limit_bytes:,}, {limit_name}")
    for w in range(worker.shared.count):
        if apply_placement(regions, regions_of(worker.shared.workers[w], regions), how) < 0:
            raise_refusal(how, large, errno)
    return 0


cdef int place_address_tables(Worker* worker, const Placement* how, uint32_t address) except -1:
    """Places the tables of an outside address just added."""
    cdef Region regions[REGIONS]
    if apply_placement(regions, address_regions(worker, address, regions), how) < 0:
        raise_refusal(how, 0, errno)
    return 0


cdef int place_lists(const Mappings* table, Link* by_subscriber, MappingCursor* cursors, const Placement* how) except -1:
    """Places lists of subscribers' mappings just made."""
    cdef Region regions[2]
    cdef uint32_t n = 0
    add_lists(regions, &n, table, by_subscriber, cursors)
    if apply_placement(regions, n, how) < 0:
        raise_refusal(how, regions[0].bytes + regions[1].bytes, errno)
    return 0
