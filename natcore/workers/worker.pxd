"""Worker: configuration, links and state of one translator. Shared: what all workers of a gateway have in common."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.log.events cimport Events
from natcore.log.flow_table cimport Flows
from natcore.tables.fragments cimport Fragments
from natcore.tables.outbox cimport Outbox
from natcore.log.journal cimport Journal
from natcore.tables.mappings cimport Mappings
from natcore.tables.ports cimport LANES, Ports
from natcore.tables.entries cimport Rules
from natcore.tables.sessions cimport Sessions
from natcore.tables.syn_holdoff cimport SynHoldoff
from natcore.workers.configuration cimport Configuration, Links
from natcore.base.spinlock cimport Spinlock

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
    uint32_t* identifications   # [IDENTIFICATIONS] counters of ip_identification.pxd, modulo 2^16
    uint64_t now_ns             # several workers: the gateway's clock; no worker is ahead of it
    uint64_t created            # several workers: sessions ever created, the source of session numbers
    uint64_t reclaimed          # ms of the clock, plus one, at the last reclaim for a refusal; 0: never
    uint32_t reclaim_table      # cursor of that reclaim: worker and line
    uint32_t reclaim_line
    Spinlock spin                   # protects the next three
    uint32_t opened_second      # of the gateway's clock, modulo 2^32
    uint32_t opened             # sessions opened from inside in that second
    uint8_t sessions_warned       # threshold event sent and not rearmed
    uint64_t fence_ns           # CLOCK_BOOTTIME from which on planes translate and send nothing; 0: there is none; atomic
    uint32_t defer_ms           # how long planes hold back a frame of a new session (io/deferred_frames.pxd); 0: not; atomic
    uint32_t defer_cycle        # number of the cycle in which a standby is told now; atomic
    uint32_t defer_acknowledged  # the newest one that it has acknowledged; atomic
    int defer_fd                # eventfd: makes the next cycle begin; 0: there is none; read with a worker locked

cdef struct Worker:
    uint32_t waiters            # callers that wait for the lock
    uint32_t locked             # 1: locked
    Shared* shared
    uint32_t number             # index in Shared.workers
    uint32_t needs_all_locked          # the current packet must be repeated with all workers locked
    Configuration configuration     # the same for all workers
    Links links
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
    bint monotonic_clock        # the caller's clock is monotonic, though another worker may have read it later
    uint64_t ticked_ns          # last slice of the sweep between batches
    uint32_t swept_for          # worker that this one last swept a slice for, on behalf of packets
    uint64_t batches            # counted in debug builds (invariants.pyx)
    uint64_t handed_over        # frames that this worker handed off to the owning worker
    uint32_t exceeded_mtu       # MTU that the last DROP_MTU exceeded
    uint8_t reached_limit       # Limit that the last refusal met
    uint64_t undelivered_in_rows        # packets that remain in their session's row
    uint32_t undelivered_count
    Undelivered undelivered[1024]       # [UNDELIVERED_SLOTS] of sessions that other workers may own

cdef inline bint holds_all_locks(const Worker* worker) noexcept nogil:
    """Whether the caller, who has locked the worker, has locked all workers."""
    return worker.shared.count == 1 or worker.shared.all_locked

cdef inline uint32_t worker_of_inside(uint32_t ip, uint32_t count) noexcept nogil:
    """Worker affinity: the worker, of count, that owns an inside address (host order). Socket filters and a device's RSS, which
    is linear in the bits of a packet, compute the same (python/natcore/internal/affinity.py)."""
    ip ^= ip >> 3
    ip ^= ip >> 5
    ip ^= ip >> 7
    ip ^= ip >> 16
    return ip % LANES % count

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
