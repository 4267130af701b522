"""Explains what would become of a packet: a forked copy of this process translates it and reports; nothing changes here.

The explanation cannot differ from what translate does, because it is what translate did, in a copy that has exited. The copy
shares memory copy-on-write (fork); all workers stay locked while it runs.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.api.snapshot cimport MappingRow, SessionRow, copy_sessions, mapping_row
from natcore.tables.mappings cimport MAPPING_DRAINING, MAPPING_FREE, Mapping
from natcore.nat.affinity cimport owner_for_sure, peer_of
from natcore.packet.parse cimport KIND_FRAGMENT, KIND_ICMP, Flight, parse
from natcore.nat.fragment_path cimport piece_key
from natcore.tables.ports cimport address_find, has_ports, space_of
from natcore.nat.icmp_errors cimport is_error, quoted_slot
from natcore.api.log_rows cimport Rows
from natcore.nat.admission cimport forwarding_rule
from natcore.tables.entries cimport (
    ANY_SPACE, DnatRule, PlainRule, SnatRule, dnat_key, dnat_rule, plain_rule, snat_rule, whole_rule,
)
from natcore.tables.sessions cimport LIFE_SOME, Session, is_dead, mapping_life, session_find, turned_addresses, turned_ports
from natcore.nat.clock cimport clock_of_all
from natcore.nat.pipeline cimport take_generated, translate
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.hash_table cimport NONE
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
    RULE_WHOLE = 3
    RULE_PLAIN = 4

cdef struct Party:              # a session of the packet, and its mapping
    uint8_t before              # Found: the session, before the packet
    uint8_t after               # Found: the session, after it
    uint8_t mapping_before      # Found: the mapping of the packet's endpoint, before
    uint8_t mapping_after
    SessionRow was
    SessionRow becomes
    MappingRow mapping

cdef struct Facts:              # the report of the copy
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
    Party own
    Party other                 # second session of a hairpin
    uint32_t length             # of the translated frame
    uint32_t generated          # frames that the gateway originates, behind the frame: side, cause, 4 bytes of length, data
    uint32_t used               # bytes of data
    uint8_t data[262144]


# ---- inspection, in the copy -----------------------------------------------------------------------------------------

cdef void find_rule(const Worker* worker, const Flight* flight, uint32_t side, Facts* facts) noexcept nogil:
    """Finds the entry that applies: no-NAT before 1:1 and DNAT before SNAT."""
    cdef const PlainRule* plain = NULL
    cdef const DnatRule* dnat = NULL
    cdef const SnatRule* snat
    cdef uint32_t source = bswap32(flight.ip.source), destination = bswap32(flight.ip.destination), space, port
    if worker.rules == NULL:
        return
    if side == OUTSIDE:
        space = space_of(flight.protocol) if has_ports(flight.protocol) else ANY_SPACE
        port = bswap16(<uint16_t>(flight.ports >> 16)) if space != ANY_SPACE else 0
        dnat = dnat_rule(worker.rules, dnat_key(destination, space, port))
    else:
        if not facts.ours:
            plain = plain_rule(worker.rules, source, destination)
        if plain == NULL:
            dnat = forwarding_rule(worker, flight)
    if plain != NULL:
        facts.rule_kind, facts.rule = RULE_PLAIN, plain.entry
    elif dnat != NULL:
        facts.rule_kind = RULE_WHOLE if side == INSIDE and dnat == whole_rule(worker.rules, source) else RULE_DNAT
        facts.rule = dnat.entry
    elif side == INSIDE:
        snat = snat_rule(worker.rules, source)
        if snat != NULL:
            facts.rule_kind, facts.rule = RULE_SNAT, snat.pool.entry


cdef uint32_t slot_of(Worker* worker, Flight* flight, uint32_t side, const Clock* now) noexcept nogil:
    """The session of the packet, or of the packet it quotes, dead or alive; or NONE."""
    if flight.kind == KIND_ICMP and is_error(flight):
        return quoted_slot(worker, flight, side, now)
    return session_find(&worker.sessions, side, flight.addresses, flight.ports, flight.protocol)


cdef uint8_t look_at(Worker* worker, uint32_t slot, const Clock* now, SessionRow* row) noexcept nogil:
    """Copies a session as a row; Found."""
    cdef uint32_t at = slot
    if slot == NONE:
        return FOUND_NONE
    if is_dead(&worker.sessions, &worker.sessions.hot[slot], now.ms):
        return FOUND_DEAD
    copy_sessions(worker, row, 1, &at, slot + 1)
    return FOUND_ALIVE


cdef uint8_t find_endpoint(Worker* worker, const Flight* flight, uint32_t side, const Clock* now,
                           MappingRow* row) noexcept nogil:
    """Finds the mapping of the packet's own endpoint, inside or outside; Found."""
    cdef uint32_t number, ip = flight.ip.source if side == INSIDE else flight.ip.destination
    cdef uint16_t port = <uint16_t>flight.ports if side == INSIDE else <uint16_t>(flight.ports >> 16)
    cdef const Mapping* mapping
    cdef uint8_t found = FOUND_NONE
    for number in range(worker.mappings.mapping_slots.fresh):
        mapping = &worker.mappings.mappings[number]
        if mapping.flags & MAPPING_FREE or mapping.protocol != flight.protocol:
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


cdef void meet(Worker* worker, uint32_t slot, const Clock* now, Party* party) noexcept nogil:
    """Reports a session and its mapping, after the packet."""
    party.after = look_at(worker, slot, now, &party.becomes)
    if party.after == FOUND_ALIVE:
        party.mapping_after = FOUND_ALIVE
        mapping_row(&worker.mappings.mappings[worker.sessions.cold[slot].mapping], &party.mapping)


# ---- translation, in the copy ------------------------------------------------------------------------------------------

cdef void tell_generated(Worker* worker, Facts* facts) noexcept nogil:
    """Reports the frames that the gateway would originate, as far as they fit."""
    cdef uint8_t side = 0, cause = 0
    cdef uint32_t length
    while FRAME_BYTES - facts.used > 6:
        length = take_generated(worker, &facts.data[facts.used + 6], FRAME_BYTES - facts.used - 6, &side, &cause)
        if length == 0:
            return
        facts.data[facts.used] = side
        facts.data[facts.used + 1] = cause
        memcpy(&facts.data[facts.used + 2], &length, 4)
        facts.used += 6 + length
        facts.generated += 1


cdef void tell_parties(Worker* worker, Flight* flight, uint32_t side, const Clock* now, Facts* facts) noexcept nogil:
    """Reports the sessions of the packet, after it was translated."""
    cdef uint32_t slot = slot_of(worker, flight, side, now)
    cdef const Session* session
    cdef Worker* peer
    meet(worker, slot, now, &facts.own)
    if slot != NONE and facts.verdict == HAIRPIN:
        session = &worker.sessions.hot[slot]
        peer = peer_of(worker, turned_addresses(session), turned_ports(session), session.protocol, now)
        slot = session_find(&peer.sessions, OUTSIDE, turned_addresses(session), turned_ports(session), session.protocol)
        meet(peer, slot, now, &facts.other)


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


cdef void open_locks(Worker* worker) noexcept nogil:
    """Resets spinlocks that other threads held at the time of the fork; those threads do not exist in the copy. Detaches the
    flow log, which belongs to the program."""
    cdef Worker* one
    cdef uint32_t w
    for w in range(worker.shared.count):
        one = worker.shared.workers[w]
        one.flows = NULL
        one.unsolicited.spin.taken = 0
        one.outbox.spin.taken = 0
        one.events.spin.taken = 0
        one.journal.spin.taken = 0
        one.mappings.ports.spin.taken = 0
    worker.shared.spin.taken = 0


cdef void rehearse(Worker* worker, Frame* frame, uint64_t now_ns, Facts* facts) noexcept nogil:
    """Inspects, translates, inspects again. worker: any; all are locked. The owning worker is examined."""
    cdef uint64_t created = created_of_all(worker), ended = ended_of_all(worker)
    cdef uint32_t side = frame.side, kept = worker.unsolicited.head
    cdef uint32_t length = frame.length
    cdef bint known
    cdef Flight flight
    cdef Clock now
    memset(&flight, 0, sizeof(Flight))  # fragments: no ports
    open_locks(worker)
    worker.events.fd = -1               # the eventfd is shared with the program
    worker.outbox.head = worker.outbox.tail = 0
    clock_read(&now, max(now_ns, clock_of_all(worker)))
    facts.parsed = parse(frame, &flight, worker.ethernet, &worker.sessions.key)
    frame.length = length
    known = facts.parsed == PENDING
    if known and worker.shared.count > 1:
        worker = owner_for_sure(worker, frame, &flight, False, &now)
    if known and flight.kind == KIND_FRAGMENT:
        known = piece_key(worker, &flight, <uint8_t>side)
        if not known or flight.ip.fragment & bswap16(IPV4_OFFSET):
            facts.parsed = HELD         # no layer-4 header to report
    if known:
        facts.protocol = flight.protocol
        facts.is_error = flight.kind == KIND_ICMP and is_error(&flight)
        facts.ours = address_find(worker.mappings.ports, flight.ip.destination) != NONE
        find_rule(worker, &flight, side, facts)
        facts.own.before = look_at(worker, slot_of(worker, &flight, side, &now), &now, &facts.own.was)
        facts.own.mapping_before = find_endpoint(worker, &flight, side, &now, &facts.own.mapping)
    memcpy(facts.data, frame.data, length)
    frame.data = facts.data
    translate(worker, frame, 1, now_ns)
    facts.verdict = frame.verdict
    facts.length = facts.used = frame.length
    facts.created = created_of_all(worker) - created
    facts.ended = ended_of_all(worker) - ended
    facts.kept = worker.unsolicited.head != kept
    if known:
        tell_parties(worker, &flight, side, &now, facts)
    tell_generated(worker, facts)
    facts.done = 1


# ---- interface to Python ---------------------------------------------------------------------------------------------

cdef bint run_copy(Worker* worker, Frame* frame, uint64_t now_ns, Facts* facts) noexcept nogil:
    """Forks and waits; False: fork failed."""
    cdef int copy = copy_process()
    if copy == 0:
        rehearse(worker, frame, now_ns, facts)
        leave()
    if copy < 0:
        return False
    await_copy(copy)
    return True


cdef dict told(const Party* party):
    return {
        "before": party.before, "after": party.after, "mapping_before": party.mapping_before,
        "mapping_after": party.mapping_after, "was": PyBytes_FromStringAndSize(<const char*>&party.was, sizeof(SessionRow)),
        "becomes": PyBytes_FromStringAndSize(<const char*>&party.becomes, sizeof(SessionRow)),
        "mapping": PyBytes_FromStringAndSize(<const char*>&party.mapping, sizeof(MappingRow)),
    }


cdef list generated_of(const Facts* facts):
    cdef uint32_t at = facts.length, length, _i
    frames = []
    for _i in range(facts.generated):
        memcpy(&length, &facts.data[at + 2], 4)
        frames.append((PyBytes_FromStringAndSize(<const char*>&facts.data[at + 6], length), facts.data[at],
                       facts.data[at + 1]))
        at += 6 + length
    return frames


def explain(Rows core not None, const uint8_t[::1] frame not None, uint8_t side, uint64_t now_ns):
    """What translate would do with the frame, and why; every field of Facts by its name."""
    cdef Facts* facts = <Facts*>shared_new(sizeof(Facts))
    cdef bint copied
    cdef Frame one
    cdef uint8_t none = 0
    if facts == NULL:
        raise CapacityError("explain: no memory for what it has to tell")
    try:
        if frame.shape[0] > FRAME_BYTES // 2:
            raise Error(f"frame must be at most {FRAME_BYTES // 2} bytes, got {frame.shape[0]}")
        one.data = <uint8_t*>&frame[0] if frame.shape[0] else &none
        one.length = <uint32_t>frame.shape[0]
        one.flags = 0
        one.side = side
        with nogil:
            core.own()
            copied = run_copy(core.worker, &one, now_ns, facts)
            core.disown()
        if not copied:
            raise CapacityError("explain: fork failed: no memory, or too many processes")
        if not facts.done:
            raise Error("explain: the forked copy was killed")
        return {
            "parsed": facts.parsed, "verdict": facts.verdict, "protocol": facts.protocol, "is_error": bool(facts.is_error),
            "ours": bool(facts.ours), "rule_kind": facts.rule_kind, "rule": facts.rule, "kept": bool(facts.kept),
            "created": facts.created, "ended": facts.ended, "own": told(&facts.own), "other": told(&facts.other),
            "frame": PyBytes_FromStringAndSize(<const char*>facts.data, facts.length),
            "generated": generated_of(facts),
        }
    finally:
        shared_delete(facts, sizeof(Facts))
