"""Explains what would become of a packet: a forked copy of this process translates it and reports; nothing changes here.

The explanation cannot differ from what translate does, because it is what translate did, in a copy that has exited. The copy
shares memory copy-on-write (fork); all workers stay locked while it runs.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.api.snapshot cimport MappingRow, SessionRow, copy_sessions, mapping_row
from natcore.tables.mappings cimport MAPPING_DRAINING, MAPPING_FREE, Mapping
from natcore.nat.affinity cimport owner_with_all_locked, hairpin_owner
from natcore.packet.parse cimport KIND_FRAGMENT, KIND_ICMP, Packet, parse
from natcore.nat.fragment_path cimport fragment_key
from natcore.tables.ports cimport address_find, has_ports, space_of
from natcore.nat.icmp_errors cimport is_error, quoted_slot
from natcore.api.workers cimport Workers
from natcore.nat.admission cimport dnat_rule_of_inside
from natcore.tables.entries cimport (
    ANY_SPACE, DnatRule, NoNatRule, SnatRule, dnat_key, dnat_rule, no_nat_rule, snat_rule, one_to_one_rule,
)
from natcore.tables.sessions cimport LIFE_SOME, Session, is_dead, mapping_life, session_find, hairpin_addresses, hairpin_ports
from natcore.nat.clock cimport clock_of_all
from natcore.nat.pipeline cimport take_generated, translate
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.sentinels cimport NONE
from natcore.workers.locks cimport free_spinlocks
from natcore.workers.worker cimport Clock, Worker, clock_read
from natcore.packet.verdict cimport HAIRPIN, HELD, INSIDE, OUTSIDE, PENDING
from natcore.base.headers cimport IPV4_OFFSET

from natcore.errors import CapacityError, Error

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stddef.h>
    #include <sys/mman.h>
    #include <sys/wait.h>
    #include <unistd.h>
    static void* natcore_shared_new(size_t bytes) {
        void* shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        return shared == MAP_FAILED ? NULL : shared;
    }
    static void natcore_shared_delete(void* shared, size_t bytes) { munmap(shared, bytes); }
    /* No signal is delivered in the copy: handlers belong to the program. */
    static int natcore_copy(void) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pid_t copy = fork();
        if (copy != 0) pthread_sigmask(SIG_SETMASK, &before, NULL);
        return (int)copy;
    }
    static void natcore_await(int copy) { while (waitpid(copy, NULL, 0) < 0 && errno == EINTR) {} }
    static void natcore_leave(void) { _exit(0); }
    """
    void* shared_new "natcore_shared_new" (size_t bytes) noexcept
    void shared_delete "natcore_shared_delete" (void* shared, size_t bytes) noexcept
    int copy_process "natcore_copy" () noexcept
    void await_copy "natcore_await" (int copy) noexcept
    void leave "natcore_leave" () noexcept

cdef enum:
    FRAME_BYTES = 1 << 18       # for the frame and all generated frames together: four times the longest packet

cdef enum:                      # Found
    FOUND_NONE = 0
    FOUND_ALIVE = 1
    FOUND_DEAD = 2              # expired, but not ended yet

cdef enum:                      # RuleKind
    RULE_NONE = 0
    RULE_SNAT = 1
    RULE_DNAT = 2
    RULE_ONE_TO_ONE = 3
    RULE_NO_NAT = 4

cdef struct SessionReport:              # a session of the packet, and its mapping
    uint8_t before              # Found: the session, before the packet
    uint8_t after               # Found: the session, after it
    uint8_t mapping_before      # Found: the mapping of the packet's endpoint, before
    uint8_t mapping_after
    SessionRow was
    SessionRow becomes
    MappingRow mapping

cdef struct Report:              # the report of the copy
    uint32_t done
    uint8_t parsed              # PENDING, or the drop by the parser
    uint8_t verdict
    uint8_t protocol
    uint8_t is_error            # an ICMP error
    uint8_t ours                # the destination is one of our outside addresses
    uint8_t rule_kind           # RuleKind
    uint8_t kept                # a SYN held off for a later answer
    uint32_t rule               # number of the entry
    uint64_t created
    uint64_t ended
    SessionReport own
    SessionReport other                 # second session of a hairpin
    uint32_t length             # of the translated frame
    uint32_t generated          # frames that the gateway originates, behind the frame: side, cause, 4 bytes of length, data
    uint32_t used               # bytes of data
    uint8_t data[262144]


# ---- inspection, in the copy -----------------------------------------------------------------------------------------

cdef void find_rule(const Worker* worker, const Packet* packet, uint32_t side, Report* report) noexcept nogil:
    """Finds the entry that applies: no-NAT before 1:1 and DNAT before SNAT."""
    cdef const NoNatRule* plain = NULL
    cdef const DnatRule* dnat = NULL
    cdef const SnatRule* snat
    cdef uint32_t source = bswap32(packet.ip.source), destination = bswap32(packet.ip.destination), space, port
    if worker.rules == NULL:
        return
    if side == OUTSIDE:
        space = space_of(packet.protocol) if has_ports(packet.protocol) else ANY_SPACE
        port = bswap16(<uint16_t>(packet.ports >> 16)) if space != ANY_SPACE else 0
        dnat = dnat_rule(worker.rules, dnat_key(destination, space, port))
    else:
        if not report.ours:
            plain = no_nat_rule(worker.rules, source, destination)
        if plain == NULL:
            dnat = dnat_rule_of_inside(worker, packet)
    if plain != NULL:
        report.rule_kind, report.rule = RULE_NO_NAT, plain.entry
    elif dnat != NULL:
        report.rule_kind = RULE_ONE_TO_ONE if side == INSIDE and dnat == one_to_one_rule(worker.rules, source) else RULE_DNAT
        report.rule = dnat.entry
    elif side == INSIDE:
        snat = snat_rule(worker.rules, source)
        if snat != NULL:
            report.rule_kind, report.rule = RULE_SNAT, snat.pool.entry


cdef uint32_t slot_of(Worker* worker, Packet* packet, uint32_t side, const Clock* now) noexcept nogil:
    """The session of the packet, or of the packet it quotes, dead or alive; or NONE."""
    if packet.kind == KIND_ICMP and is_error(packet):
        return quoted_slot(worker, packet, side, now)
    return session_find(&worker.sessions, side, packet.addresses, packet.ports, packet.protocol)


cdef uint8_t copy_session(Worker* worker, uint32_t slot, const Clock* now, SessionRow* row) noexcept nogil:
    """Copies a session as a row; Found."""
    cdef uint32_t at = slot
    if slot == NONE:
        return FOUND_NONE
    if is_dead(&worker.sessions, &worker.sessions.hot[slot], now.ms):
        return FOUND_DEAD
    copy_sessions(worker, row, 1, &at, slot + 1)
    return FOUND_ALIVE


cdef uint8_t find_endpoint(Worker* worker, const Packet* packet, uint32_t side, const Clock* now,
                           MappingRow* row) noexcept nogil:
    """Finds the mapping of the packet's own endpoint, inside or outside; Found."""
    cdef uint32_t number, ip = packet.ip.source if side == INSIDE else packet.ip.destination
    cdef uint16_t port = <uint16_t>packet.ports if side == INSIDE else <uint16_t>(packet.ports >> 16)
    cdef const Mapping* mapping
    cdef uint8_t found = FOUND_NONE
    for number in range(worker.mappings.mapping_slots.fresh):
        mapping = &worker.mappings.mappings[number]
        if mapping.flags & MAPPING_FREE or mapping.protocol != packet.protocol:
            continue
        if (mapping.inside_ip if side == INSIDE else mapping.outside_ip) != ip:
            continue
        if (mapping.inside_port if side == INSIDE else mapping.outside_port) != port:
            continue
        if mapping.flags & MAPPING_DRAINING:
            continue
        if mapping_life(&worker.sessions, number, now.ms) == LIFE_SOME:
            mapping_row(mapping, row)
            return FOUND_ALIVE
        found = FOUND_DEAD
    return found


cdef void report_after(Worker* worker, uint32_t slot, const Clock* now, SessionReport* session) noexcept nogil:
    """Reports a session and its mapping, after the packet."""
    session.after = copy_session(worker, slot, now, &session.becomes)
    if session.after == FOUND_ALIVE:
        session.mapping_after = FOUND_ALIVE
        mapping_row(&worker.mappings.mappings[worker.sessions.cold[slot].mapping], &session.mapping)


# ---- translation, in the copy ------------------------------------------------------------------------------------------

cdef void report_generated(Worker* worker, Report* report) noexcept nogil:
    """Reports the frames that the gateway would originate, as far as they fit."""
    cdef uint8_t side = 0, cause = 0
    cdef uint32_t length
    while FRAME_BYTES - report.used > 6:
        length = take_generated(worker, &report.data[report.used + 6], FRAME_BYTES - report.used - 6, &side, &cause)
        if length == 0:
            return
        report.data[report.used] = side
        report.data[report.used + 1] = cause
        memcpy(&report.data[report.used + 2], &length, 4)
        report.used += 6 + length
        report.generated += 1


cdef void report_sessions(Worker* worker, Packet* packet, uint32_t side, const Clock* now, Report* report) noexcept nogil:
    """Reports the sessions of the packet, after it was translated."""
    cdef uint32_t slot = slot_of(worker, packet, side, now)
    cdef const Session* session
    cdef Worker* peer
    report_after(worker, slot, now, &report.own)
    if slot != NONE and report.verdict == HAIRPIN:
        session = &worker.sessions.hot[slot]
        peer = hairpin_owner(worker, hairpin_addresses(session), hairpin_ports(session), session.protocol, now)
        slot = session_find(&peer.sessions, OUTSIDE, hairpin_addresses(session), hairpin_ports(session), session.protocol)
        report_after(peer, slot, now, &report.other)


cdef uint64_t created_of_all(const Worker* worker) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(worker.shared.count):
        total += worker.shared.workers[i].sessions.created
    return total


cdef uint64_t ended_of_all(const Worker* worker) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(worker.shared.count):
        total += worker.shared.workers[i].sessions.ended
    return total


cdef void translate_copy(Worker* worker, Frame* frame, uint64_t now_ns, Report* report) noexcept nogil:
    """Inspects, translates, inspects again. worker: any; all are locked. The owning worker is examined."""
    cdef uint64_t created = created_of_all(worker), ended = ended_of_all(worker)
    cdef uint32_t side = frame.side, kept = worker.syn_holdoff.head
    cdef uint32_t length = frame.length, w
    cdef bint known
    cdef Packet packet
    cdef Clock now
    memset(&packet, 0, sizeof(Packet))  # fragments: no ports
    free_spinlocks(worker.shared)
    for w in range(worker.shared.count):
        worker.shared.workers[w].flows = NULL       # the flow log is the program's
    worker.events.fd = -1               # the eventfd is shared with the program
    worker.outbox.head = worker.outbox.tail = 0
    clock_read(&now, max(now_ns, clock_of_all(worker)))
    report.parsed = parse(frame, &packet, worker.configuration.ethernet, &worker.sessions.key)
    frame.length = length
    known = report.parsed == PENDING
    if known and worker.shared.count > 1:
        worker = owner_with_all_locked(worker, frame, &packet, False, &now)
    if known and packet.kind == KIND_FRAGMENT:
        known = fragment_key(worker, &packet, <uint8_t>side)
        if not known or packet.ip.fragment & bswap16(IPV4_OFFSET):
            report.parsed = HELD         # no layer-4 header to report
    if known:
        report.protocol = packet.protocol
        report.is_error = packet.kind == KIND_ICMP and is_error(&packet)
        report.ours = address_find(worker.mappings.ports, packet.ip.destination) != NONE
        find_rule(worker, &packet, side, report)
        report.own.before = copy_session(worker, slot_of(worker, &packet, side, &now), &now, &report.own.was)
        report.own.mapping_before = find_endpoint(worker, &packet, side, &now, &report.own.mapping)
    memcpy(report.data, frame.data, length)
    frame.data = report.data
    translate(worker, frame, 1, now_ns)
    report.verdict = frame.verdict
    report.length = report.used = frame.length
    report.created = created_of_all(worker) - created
    report.ended = ended_of_all(worker) - ended
    report.kept = worker.syn_holdoff.head != kept
    if known:
        report_sessions(worker, &packet, side, &now, report)
    report_generated(worker, report)
    report.done = 1


# ---- interface to Python ---------------------------------------------------------------------------------------------

cdef bint run_copy(Worker* worker, Frame* frame, uint64_t now_ns, Report* report) noexcept nogil:
    """Forks and waits; False: fork failed."""
    cdef int copy = copy_process()
    if copy == 0:
        translate_copy(worker, frame, now_ns, report)
        leave()
    if copy < 0:
        return False
    await_copy(copy)
    return True


cdef dict session_report(const SessionReport* session):
    return {
        "before": session.before, "after": session.after, "mapping_before": session.mapping_before,
        "mapping_after": session.mapping_after, "was": PyBytes_FromStringAndSize(<const char*>&session.was, sizeof(SessionRow)),
        "becomes": PyBytes_FromStringAndSize(<const char*>&session.becomes, sizeof(SessionRow)),
        "mapping": PyBytes_FromStringAndSize(<const char*>&session.mapping, sizeof(MappingRow)),
    }


cdef list generated_of(const Report* report):
    cdef uint32_t at = report.length, length, _i
    frames = []
    for _i in range(report.generated):
        memcpy(&length, &report.data[at + 2], 4)
        frames.append((PyBytes_FromStringAndSize(<const char*>&report.data[at + 6], length), report.data[at],
                       report.data[at + 1]))
        at += 6 + length
    return frames


def explain(Workers workers not None, const uint8_t[::1] frame not None, uint8_t side, uint64_t now_ns):
    """What translate would do with the frame, and why; every field of Report by its name."""
    cdef Report* report = <Report*>shared_new(sizeof(Report))
    cdef bint copied
    cdef Frame one
    cdef uint8_t none = 0
    if report == NULL:
        raise CapacityError("explain: no memory for what it has to tell")
    try:
        if frame.shape[0] > FRAME_BYTES // 2:
            raise Error(f"frame must be at most {FRAME_BYTES // 2} bytes, got {frame.shape[0]}")
        one.data = <uint8_t*>&frame[0] if frame.shape[0] else &none
        one.length = <uint32_t>frame.shape[0]
        one.flags = 0
        one.side = side
        with nogil:
            workers.lock()
            copied = run_copy(workers.first, &one, now_ns, report)
            workers.unlock()
        if not copied:
            raise CapacityError("explain: fork failed: no memory, or too many processes")
        if not report.done:
            raise Error("explain: the forked copy was killed")
        return {
            "parsed": report.parsed, "verdict": report.verdict, "protocol": report.protocol, "is_error": bool(report.is_error),
            "ours": bool(report.ours), "rule_kind": report.rule_kind, "rule": report.rule, "kept": bool(report.kept),
            "created": report.created, "ended": report.ended,
            "own": session_report(&report.own), "other": session_report(&report.other),
            "frame": PyBytes_FromStringAndSize(<const char*>report.data, report.length),
            "generated": generated_of(report),
        }
    finally:
        shared_delete(report, sizeof(Report))
