"""Worker: configuration and tables of one translator. Shared: what all workers of a gateway have in common."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.log.events cimport Events
from natcore.log.flow_table cimport Flows
from natcore.tables.fragments cimport Fragments
from natcore.tables.icmp_output cimport Outbox
from natcore.log.journal cimport Journal
from natcore.tables.mappings cimport Mappings
from natcore.tables.ports cimport Ports
from natcore.tables.entries cimport Rules
from natcore.tables.sessions cimport Sessions
from natcore.tables.syn_holdoff cimport SynHoldoff
from natcore.workers.inside_mtu cimport Paths
from natcore.base.spinlock cimport Spinlock

cdef enum:                      # Filtering
    FILTER_NONE = 0             # endpoint-independent
    FILTER_ADDRESS = 1
    FILTER_ADDRESS_AND_PORT = 2

cdef enum:                      # IpOptions: of forwarded packets; source routes are always dropped
    OPTIONS_RFC7126 = 0         # drop what RFC 7126 drops by default
    OPTIONS_PASS = 1            # forward all well-formed options
    OPTIONS_DROP = 2            # drop all options

cdef enum:
    IDENTIFICATIONS = 1 << 14   # counters

cdef enum:
    WORKERS_AT_MOST = 64

cdef struct Worker

cdef enum:
    UNDELIVERED_SLOTS = 1024

cdef struct Undelivered:        # packets counted into a session that then had no next hop
    uint64_t addresses          # key of the session (session_find), with the next two
    uint32_t ports
    uint8_t protocol
    uint8_t index               # Direction of the index that has the key
    uint8_t direction           # Direction in which they were counted
    uint8_t hairpin             # also counted into the initiator's session
    uint32_t packets
    uint32_t bytes

cdef struct Shared:             # state common to a gateway's workers; packets of established sessions do not touch it
    uint32_t count              # workers
    uint32_t all_locked            # one caller has locked all workers
    Worker* workers[64]         # [count]
    Ports ports
    Journal journal
    Outbox outbox
    Events events
    SynHoldoff syn_holdoff
    uint32_t* identifications   # [IDENTIFICATIONS] counters of ip_identification.pxd, modulo 2^16; NULL: not rewritten
    uint64_t now_ns             # several workers: the gateway's clock; no worker is ahead of it
    uint64_t created            # several workers: sessions ever created, the source of session numbers
    uint64_t reclaimed          # ms of the clock, plus one, at the last reclaim for a refusal; 0: never
    uint32_t reclaim_table      # cursor of that reclaim: worker and line
    uint32_t reclaim_line
    Spinlock spin                   # protects the next three
    uint32_t opened_second      # of the gateway's clock, modulo 2^32
    uint32_t opened             # sessions opened from inside in that second
    uint8_t sessions_warned       # threshold event sent and not rearmed

cdef struct Worker:
    uint32_t waiters            # callers that wait for the lock
    uint32_t locked             # 1: locked
    Shared* shared
    uint32_t number             # index in Shared.workers
    uint32_t needs_all_locked          # the current packet must be repeated with all workers locked
    Sessions sessions
    Mappings mappings
    Journal* journal            # shared, as the next five
    Outbox* outbox
    Fragments* fragments        # used with all workers locked
    SynHoldoff* syn_holdoff
    uint32_t* identifications
    Events* events
    Flows* flows                # the flow log, or NULL
    const Rules* rules          # immutable; swapped whole
    uint64_t counters[256]      # by Verdict
    uint64_t from_outside[256]  # by Verdict: those of them from outside (count_sides)
    uint64_t bytes[2]           # by Side that they came from: IPv4 bytes that left, or found no next hop (count_sides)
    uint64_t refused[11]        # by Limit
    uint64_t clock_backward
    uint64_t now_ns             # the worker's clock, monotonic
    bint steady                 # the caller's clock is monotonic, though another worker may have read it later
    uint64_t ticked_ns          # last slice of the sweep between batches
    uint32_t swept_for          # worker that this one last swept a slice for, on behalf of packets
    uint64_t batches            # counted in debug builds (invariants.pyx)
    uint64_t handed_over        # frames that this worker handed off to the owning worker
    uint32_t link_address[2]    # by Side, big-endian; 0: none: address of the gateway
    uint32_t mtu[2]             # by Side, bytes of an IPv4 packet; the smallest of several links
    const Paths* paths          # MTUs of inside links where they differ, or NULL
    uint32_t mtu_met            # MTU that the last DROP_MTU exceeded
    uint32_t mapping_cap        # sessions opened from outside, per mapping
    uint32_t outside_cap        # sessions opened from outside, per gateway
    uint8_t filtering[3]        # Filtering, by port space
    uint8_t mapping[3]          # 1: address-and-port-dependent mapping, by port space
    uint32_t sessions_per_subscriber    # NO_LIMIT: none; likewise the next three
    uint32_t ports_per_subscriber
    uint32_t new_per_second
    uint32_t gateway_per_second         # sessions opened from inside in a second
    uint32_t warn_sessions      # threshold of the event; 0: off
    uint32_t rearm_sessions     # at or below: rearms it
    uint32_t warn_ports         # likewise for the ports of an outside address and protocol (port blocks: of an outside address)
    uint32_t rearm_ports
    uint8_t limit_met           # Limit that the last refusal met
    uint16_t mss                # upper bound of a SYN's MSS option; 0: unchanged
    bint ethernet               # frames begin with an Ethernet header
    bint decrement_ttl
    uint8_t lowest_ttl          # minimum TTL of forwarded packets
    bint inbound_refresh
    bint tcp_pickup
    bint hairpin
    bint icmp_unreachable
    bint echo_only              # refuse ICMP queries other than echo
    bint reverse_path_filter    # drop packets from outside with an inside source
    bint link_local             # forward 169.254/16
    bint class_e                # forward 240/4
    uint8_t ip_options          # IpOptions
    uint64_t undelivered_in_rows        # packets that remain in their session's row
    uint32_t undelivered_count
    Undelivered undelivered[1024]       # [UNDELIVERED_SLOTS] of sessions that other workers may own

cdef inline bint holds_all_locks(const Worker* worker) noexcept nogil:
    """Whether the caller, who has locked the worker, has locked all workers."""
    return worker.shared.count == 1 or worker.shared.all_locked

cdef inline uint32_t worker_of_inside(uint32_t ip, uint32_t count) noexcept nogil:
    """Worker affinity: the worker, of count, that owns an inside address (host order). Socket filters compute the same."""
    return (ip * <uint32_t>0x9E3779B1 >> 16) * count >> 16

cdef inline Sessions* tables_of_all(Worker* worker) noexcept nogil:
    """Head of the linked session tables of all workers."""
    return &worker.shared.workers[0].sessions

cdef struct Clock:              # one moment in the units of the fast path
    uint64_t ns
    uint32_t ms                 # modulo 2^32
    uint16_t seconds            # modulo 2^16

cdef inline void clock_read(Clock* clock, uint64_t now_ns) noexcept nogil:
    clock.ns = now_ns
    clock.ms = <uint32_t>(now_ns // 1000000)
    clock.seconds = <uint16_t>(now_ns // 1000000000)
