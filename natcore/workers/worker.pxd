"""Worker: everything that one translator owns, and how it may be held; Shared: what a gateway's workers have together."""
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
from natcore.tables.syn_holdoff cimport UnsolicitedQueue
from natcore.workers.inside_mtu cimport Paths
from natcore.base.spinlock cimport Spin

cdef enum:                      # Filtering
    FILTER_NONE = 0             # endpoint-independent
    FILTER_ADDRESS = 1
    FILTER_ADDRESS_AND_PORT = 2

cdef enum:                      # IpOptions: which options a forwarded packet may have; source routes never
    OPTIONS_RFC7126 = 0         # what RFC 7126 lets pass by default
    OPTIONS_PASS = 1            # any others that are well-formed
    OPTIONS_DROP = 2            # none

cdef enum:
    NO_LIMIT = 0xFFFFFFFF

cdef enum:
    IDENTIFICATIONS = 1 << 14   # counters

cdef enum:
    WORKERS_AT_MOST = 64

cdef struct Worker

cdef struct Shared:             # by the workers of a gateway; no packet of an established session touches it
    uint32_t count              # workers
    uint32_t alone              # one caller holds them all: every table is its own
    Worker* workers[64]         # [count]
    Ports ports
    Journal journal
    Outbox outbox
    Events events
    UnsolicitedQueue unsolicited
    uint32_t* identifications   # [IDENTIFICATIONS] of IPv4 packets (_identify.pxd), modulo 2^16; NULL: policy keeps them
    uint64_t now_ns             # of several workers: the gateway's clock, which no worker's is ahead of
    uint64_t created            # likewise: sessions ever, from which they have their numbers
    uint64_t reclaimed          # ms of now + 1 in which lines were last looked at for a refusal; 0: never
    uint32_t reclaim_table      # a worker's number, and the next line of its sessions that is looked at
    uint32_t reclaim_line
    Spin spin                   # of the next three
    uint32_t opened_second      # of the gateway's clock, modulo 2^32
    uint32_t opened             # sessions that the inside opened in it
    uint8_t sessions_told       # that there are many

cdef struct Worker:
    uint32_t attention          # somebody waits to hold the worker
    uint32_t held               # somebody does
    Shared* shared
    uint32_t number             # of [0, count)
    uint32_t wants_all          # what it is at has to be done again, with all workers held
    Sessions sessions
    Mappings mappings
    Journal* journal            # the gateway's, as the next four
    Outbox* outbox
    Fragments* fragments        # used by who holds all workers
    UnsolicitedQueue* unsolicited
    uint32_t* identifications
    Events* events
    Flows* flows                # the flow log, or NULL
    const Rules* rules          # immutable; swapped whole
    uint64_t counters[256]      # by Verdict
    uint64_t clock_backward
    uint64_t now_ns             # never goes back
    bint steady                 # nor does the clock that its caller reads, though another worker may have read it later
    uint64_t ticked_ns          # when the sweep's last slice between batches was
    uint32_t swept_for          # the worker that this one's packets carried a slice for last
    uint64_t batches            # counted in debug builds (_check.pyx)
    uint64_t handed_over        # frames that it took and another one did
    uint32_t link_address[2]    # by Side, big-endian, 0: none: the gateway's own
    uint32_t mtu[2]             # by Side, bytes of an IPv4 packet; of several links the smallest
    const Paths* paths          # of the inside links, where their MTUs differ; or NULL
    uint32_t mtu_met            # that the last packet refused for its length was too long for
    uint32_t mapping_cap        # sessions opened from outside, of a mapping
    uint32_t outside_cap        # and of the whole table
    uint8_t filtering[3]        # Filtering, by port space
    uint8_t mapping[3]          # 1: address-and-port-dependent, by port space
    uint32_t sessions_per_subscriber    # or NO_LIMIT, as the next two
    uint32_t ports_per_subscriber
    uint32_t new_per_second
    uint32_t gateway_per_second         # sessions that the inside may open in a second, or NO_LIMIT
    uint32_t warn_sessions      # so many are told of; 0: never
    uint32_t rearm_sessions     # and again after there were fewer than these
    uint32_t warn_ports         # the same of an outside address and protocol (port blocks: of an outside address)
    uint32_t rearm_ports
    uint8_t limit_met           # Limit: what the last refusal was for
    uint16_t mss                # of a SYN's MSS option at most; 0: as it is
    bint ethernet               # frames begin with an Ethernet header
    bint decrement_ttl
    uint8_t lowest_ttl          # that a packet may have to be forwarded
    bint inbound_refresh
    bint tcp_pickup
    bint hairpin
    bint icmp_unreachable
    bint echo_only              # other ICMP queries are refused
    bint reverse_path_filter    # an inside address opens nothing from outside
    bint link_local             # 169.254/16 is forwarded
    bint class_e                # 240/4 may be hosts'
    uint8_t ip_options          # IpOptions

cdef inline bint has_all(const Worker* worker) noexcept nogil:
    """Whether the caller, who holds the worker, holds them all."""
    return worker.shared.count == 1 or worker.shared.alone

cdef inline uint32_t owner_of_inside(uint32_t ip, uint32_t count) noexcept nogil:
    """The worker, of count, of an inside address (host order). A filter on a socket computes the same."""
    return (ip * <uint32_t>0x9E3779B1 >> 16) * count >> 16

cdef inline Sessions* tables_of_all(Worker* worker) noexcept nogil:
    """The first of the tables of all workers, which are linked."""
    return &worker.shared.workers[0].sessions

cdef struct Clock:              # one moment, in the units that the hot path wants
    uint64_t ns
    uint32_t ms                 # modulo 2^32
    uint16_t seconds            # modulo 2^16

cdef inline void clock_read(Clock* clock, uint64_t now_ns) noexcept nogil:
    clock.ns = now_ns
    clock.ms = <uint32_t>(now_ns // 1000000)
    clock.seconds = <uint16_t>(now_ns // 1000000000)
