"""The packet path: translates batches of frames, packets of established sessions in a software pipeline (the fast path), all
others one by one (the slow path).

Theory of operation. A packet of an established session costs about two cache misses: a bucket of an index, and the session's
hot line. The pipeline hides them: it works on groups of 16 packets, and each turn moves four stages, each on an older group:

1. parse_group: parses and validates, hashes the key, prefetches the bucket; prefetches the headers of the next group.
2. find: compares tags in the bucket, prefetches the session that it names.
3. lookup_further, only if a packet of the group found none: looks into the next bucket; for a packet from inside prefetches
   what an admission needs.
4. finish: compares the whole key, checks state and time-out, accounts, rewrites.

Each packet in flight has a packet context (Packet, 64 bytes) in a ring of CONTEXTS. Nothing is decided before stage 4, in order
of the frames: whatever the stages before it found is a hint, which an earlier packet of the batch may have made stale. A packet
that stage 4 cannot translate goes the slow path, at once and to its end: expired and new sessions, hairpins, ICMP errors,
fragments, packets that a TCP SYN, a limit or the MTU concerns. The slow path finds or admits the session (nat/admission), and
with several workers hands the packet off to the owning worker (slow_path_by_owner; lock order: workers/locks.pxd).

TCP and UDP, outbound and inbound come mixed; stages 1 and 4 avoid branches on either. The stages are inlined into one function
(CMakeLists.txt), compiled for Ethernet or bare IPv4, with and without new identifications.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.nat.accounting cimport account, account_frame, is_steady, segment_of
from natcore.nat.admission cimport (
    Endpoints, admit_inbound, admit_outbound, log_new_session, find_live, is_shared_address, is_static, is_one_to_one,
    may_pass, screen_inbound, session_mtu,
)
from natcore.nat.icmp_replies cimport send_icmp_reply
from natcore.workers.invariants cimport assert_tables
from natcore.nat.inside_routing cimport cross, crosses
from natcore.log.flow_table cimport (
    FLOWS_BATCH, Flows, FlowSeen, flows_acquire, flows_arrive, flows_leave, flows_release, flows_sent, flows_unsent,
)
from natcore.nat.prefetch cimport prefetch_admission
from natcore.nat.ip_identification cimport identify
from natcore.workers.locks cimport lock, unlock_others, lock_others, unlock
from natcore.tables.outbox cimport outbox_take
from natcore.packet.tcp_mss cimport clamp_mss
from natcore.packet.parse cimport (
    KIND_FRAGMENT, KIND_ICMP, KIND_SESSION, OPTIONS_HARMLESS, OPTIONS_NONE, OPTIONS_SOURCE_ROUTE, Packet, link_length, parse,
    parse_plain,
    wire_bytes, wire_packets,
)
from natcore.tables.mappings cimport mapping_prefetch_open
from natcore.nat.affinity cimport owner_with_all_locked, owner_of, hairpin_owner, is_reverse_query
from natcore.nat.fragment_path cimport fragment_if_needed, parse_first, handle_fragment, first_fragment_done
from natcore.tables.ports cimport address_find
from natcore.nat.icmp_errors cimport is_error, translate_error
from natcore.nat.session_reuse cimport may_reopen, reopen
from natcore.nat.rewrite cimport rewrite
from natcore.tables.sessions cimport (
    HAIRPINNED, IN, OUT, ROLE_OUTSIDE, ROLE_REMOTE, SESSION_FREE, UNLOGGED, UNTRANSLATED_BOTH, Session, is_dead, micros,
    session_addresses, session_discard, session_ports, hairpin_addresses, hairpin_ports,
)
from natcore.nat.clock cimport clock_follow, clock_forward_with
from natcore.nat.undelivered cimport subtract
from natcore.nat.unsolicited_syn cimport note_unsolicited
from natcore.base.flow_hash cimport HashKey, flow_hash
from natcore.frame cimport FRAME_CROSSING, FRAME_GSO, Frame
from natcore.base.compiler cimport DEBUG, bswap16, likely, load_relaxed, prefetch, prefetch_write, unlikely
from natcore.base.lock_checker cimport assert_held
from natcore.base.sentinels cimport NONE
from natcore.base.hash_table cimport Bucket, Index, bucket_of, ctz32, index_may_have, match_some, match_tags, tag_of
from natcore.workers.configuration cimport OPTIONS_DROP, OPTIONS_PASS
from natcore.workers.worker cimport Clock, Worker, clock_read, holds_all_locks
from natcore.packet.verdict cimport (
    DROP_FILTERED, DROP_FRAGMENT, DROP_IP_OPTION, DROP_NO_MAPPING, DROP_SPOOFED, DROP_UNSUPPORTED, HAIRPIN, HELD, INSIDE, LOCAL,
    OUTSIDE, PENDING, UNTRANSLATED,
)
from natcore.base.headers cimport (
    ICMP_ECHO_REQUEST, IPV4_DF, IPV4_FRAGMENT, PROTOCOL_ICMP, PROTOCOL_TCP, TCP_SYN, IcmpHeader, TcpHeader, is_echo,
)

cdef enum:
    GROUP = 16                  # packets that go through a stage together
    FIND_AFTER = 32             # distance of `find` behind parsing, in packets
    LOOK_AFTER = 48             # distance of `lookup_further`, one group later
    REWRITE_AFTER = 64          # distance of `finish`
    AHEAD = 16                  # distance of the prefetch of headers ahead of parsing
    IDENTIFY_AFTER = 2          # groups between `find`, which sees packets without DF, and `finish`, which identifies them
    WITHOUT_CANDIDATE = 1       # result of `find`: for a packet of the group the bucket names no session
    WITHOUT_DF = 2              # a packet of the group may be fragmented
    CONTEXTS = 128               # packets in flight; a power of two above REWRITE_AFTER


# ---- the slow path ---------------------------------------------------------------------------------------------------

cdef inline void note_opened(const Worker* worker, Frame* frame, bint opened) noexcept nogil:
    """Marks a frame that began a session, for a plane that holds it back until the standby has that."""
    if unlikely(load_relaxed(&worker.shared.defer_ms) != 0) and opened:
        frame.flags |= FRAME_DEFERRED


cdef inline void limit_mss(Worker* worker, const Frame* frame, Packet* packet) noexcept nogil:
    """Lowers the MSS option of a SYN, by the policy."""
    if worker.configuration.mss and packet.protocol == PROTOCOL_TCP and (<const TcpHeader*>packet.l4).flags & TCP_SYN:
        clamp_mss(frame, packet, worker.configuration.mss)


cdef uint8_t hairpin(Worker* worker, Frame* frame, Packet* packet, uint32_t slot, bint fresh,
                     const Clock* now) noexcept nogil:
    """Translates to the inside endpoint behind the remote of the packet's own session (RFC 4787 REQ-9)."""
    cdef Session* session = &worker.sessions.hot[slot]
    cdef Worker* peer = hairpin_owner(worker, hairpin_addresses(session), hairpin_ports(session), packet.protocol, now)
    cdef uint32_t other = find_live(peer, IN, hairpin_addresses(session), hairpin_ports(session), packet.protocol, now)
    cdef Endpoints ends
    cdef uint8_t verdict = PENDING
    cdef bint is_new = other == NONE
    if is_new:
        ends.remote_ip = session.ip[ROLE_OUTSIDE]
        ends.remote_port = <uint16_t>hairpin_ports(session)
        ends.outside_ip = session.ip[ROLE_REMOTE]
        ends.outside_port = <uint16_t>(hairpin_ports(session) >> 16)
        ends.address = address_find(worker.mappings.ports, ends.outside_ip)
        verdict = admit_inbound(peer, NULL, &ends, packet, HAIRPINNED | UNLOGGED, now, &other)
    elif peer != worker or other != slot:
        verdict = may_reopen(peer, other, IN, packet, now)
    if verdict != PENDING:
        if fresh:
            session_discard(&worker.sessions, slot, now.ns)
        return verdict
    if fresh:
        log_new_session(worker, slot, OUT, now)
    else:
        fresh = reopen(worker, slot, OUT, packet, now)
    fresh |= reopen(peer, other, IN, packet, now)
    note_opened(worker, frame, fresh or is_new)
    limit_mss(worker, frame, packet)
    account_frame(worker, slot, OUT, frame, packet, now)
    if peer == worker and other == slot:            # to its own outside endpoint: count it once, as sent
        account(peer, other, IN, packet, now, 0, 0)
    else:
        account_frame(peer, other, IN, frame, packet, now)
    rewrite(frame, packet, session, OUT, worker.configuration.decrement_ttl)
    rewrite(frame, packet, &peer.sessions.hot[other], IN, False)
    identify(worker, frame, packet)
    return HAIRPIN


cdef uint8_t forward(Worker* worker, Frame* frame, Packet* packet, const Clock* now) noexcept nogil:
    """Finds or admits the packet's session and translates it; or the reason why not. packet.hash is that of its key."""
    cdef uint32_t direction = frame.side, slot
    cdef Endpoints ends
    cdef uint8_t verdict
    cdef bint fresh = False
    slot = NONE
    if index_may_have(&worker.sessions.index[direction], packet.hash):
        slot = find_live(worker, direction, packet.addresses, packet.ports, packet.protocol, now)
    if slot != NONE:
        if direction == OUT and worker.sessions.hot[slot].flags & HAIRPINNED and not holds_all_locks(worker):
            worker.needs_all_locked = True     # the destination was one of our addresses when the session was opened
            return PENDING
        if direction == IN and worker.sessions.hot[slot].flags & HAIRPINNED:
            return DROP_SPOOFED         # packets of a hairpin come from inside
        verdict = may_pass(worker, frame, packet, session_mtu(worker, &worker.sessions.hot[slot], direction))
        if verdict == PENDING:
            verdict = may_reopen(worker, slot, direction, packet, now)
        if verdict != PENDING:
            return verdict
    else:
        fresh = True
        if direction == OUT:
            verdict = admit_outbound(worker, frame, packet, now, &slot)
        else:
            verdict = screen_inbound(worker, packet, &ends)
            if verdict == PENDING:
                verdict = admit_inbound(worker, frame, &ends, packet, 0, now, &slot)
        if verdict != PENDING:
            return verdict
    if direction == OUT and worker.sessions.hot[slot].flags & HAIRPINNED:
        return hairpin(worker, frame, packet, slot, fresh, now)
    if fresh:
        log_new_session(worker, slot, direction, now)
    else:
        fresh = reopen(worker, slot, direction, packet, now)
    note_opened(worker, frame, fresh)
    limit_mss(worker, frame, packet)
    account_frame(worker, slot, direction, frame, packet, now)
    rewrite(frame, packet, &worker.sessions.hot[slot], direction, worker.configuration.decrement_ttl)
    if direction == OUT and not worker.sessions.hot[slot].flags & UNTRANSLATED_BOTH:
        identify(worker, frame, packet)
    return UNTRANSLATED if worker.sessions.hot[slot].flags & UNTRANSLATED_BOTH else <uint8_t>direction


cdef inline void screen_icmp_query(const Worker* worker, Packet* packet) noexcept nogil:
    """Treats queries that the policy refuses as other ICMP messages."""
    if (worker.configuration.echo_only and packet.protocol == PROTOCOL_ICMP and packet.kind == KIND_SESSION
            and not is_echo((<const IcmpHeader*>packet.l4).type)):
        packet.kind = KIND_ICMP


cdef bint passes_reverse_query(Worker* worker, const Frame* frame, Packet* packet, const Clock* now) noexcept nogil:
    """Whether a 1:1 entry passes this ICMP query in the reverse direction."""
    cdef uint32_t slot
    if not is_reverse_query(worker, frame, packet):
        return False
    if frame.side == OUTSIDE and is_one_to_one(worker, packet.ip.destination):
        return True
    slot = find_live(worker, frame.side, packet.addresses, packet.ports, packet.protocol, now)
    return slot != NONE and is_static(worker, slot)


cdef uint8_t handle_other_kind(Worker* worker, Frame* frame, Packet* packet, const Clock* now) noexcept nogil:
    """Handles ICMP errors, packets for the gateway itself, and unsupported ones."""
    cdef uint32_t destination = packet.ip.destination
    cdef bint whole = not packet.ip.fragment & bswap16(IPV4_FRAGMENT)
    if packet.kind == KIND_ICMP and is_error(packet) and whole:
        return translate_error(worker, frame, packet, now)
    if worker.links.address[frame.side] and destination == worker.links.address[frame.side]:
        return LOCAL
    if is_shared_address(worker, destination):
        return LOCAL
    if packet.kind == KIND_ICMP and is_error(packet):
        return DROP_FRAGMENT            # the checksum cannot be verified (RFC 5508 REQ-3)
    if packet.kind == KIND_ICMP and passes_reverse_query(worker, frame, packet, now):
        packet.hash = flow_hash(&worker.sessions.key, packet.addresses, packet.ports, packet.protocol)
        return forward(worker, frame, packet, now)
    if (packet.kind == KIND_ICMP and (<const IcmpHeader*>packet.l4).type == ICMP_ECHO_REQUEST
            and address_find(worker.mappings.ports, destination) != NONE):
        return LOCAL
    return DROP_UNSUPPORTED


cdef uint8_t decide(Worker* worker, Frame* frame, Packet* packet, const Clock* now) noexcept nogil:
    """Handles a packet, or the first fragment of one."""
    cdef uint8_t verdict
    if packet.ip.source == packet.ip.destination:   # land attack
        return DROP_SPOOFED
    if crosses(worker, frame, packet):
        verdict = cross(worker, frame, packet)
    elif packet.kind == KIND_SESSION:
        verdict = forward(worker, frame, packet, now)
        if worker.needs_all_locked:
            return verdict
        if (frame.side == OUTSIDE and (verdict == DROP_NO_MAPPING or verdict == DROP_FILTERED)
                and worker.configuration.hold_syns):
            note_unsolicited(worker, frame, packet, verdict, now.ns)
    else:
        verdict = handle_other_kind(worker, frame, packet, now)
    if verdict >= LOCAL:
        send_icmp_reply(worker, frame, packet, verdict, now)
    else:
        fragment_if_needed(worker, frame, packet, verdict, verdict)
    return verdict


cdef uint8_t slow_path_locked(Worker* worker, Frame* frame, Packet* packet, const Clock* now) noexcept nogil:
    """Slow path in the worker's tables, with this worker or all workers locked."""
    cdef uint32_t datagram
    cdef uint8_t verdict
    if packet.kind != KIND_FRAGMENT or crosses(worker, frame, packet):
        return decide(worker, frame, packet, now)
    verdict = handle_fragment(worker, frame, packet, now, &datagram)
    if verdict == PENDING:              # first fragment: its verdict holds for the later ones
        packet.kind = KIND_SESSION
        verdict = parse_first(packet, frame.side)
        if verdict == PENDING:
            packet.hash = flow_hash(&worker.sessions.key, packet.addresses, packet.ports, packet.protocol)
            screen_icmp_query(worker, packet)
        if verdict == PENDING:
            verdict = decide(worker, frame, packet, now)
        first_fragment_done(worker, frame, packet, datagram, verdict, now)
    return verdict


cdef uint8_t slow_path_in(Worker* owner, uint32_t address, Frame* frame, Packet* packet, Clock* now,
                          bint* again) noexcept nogil:
    """Slow path in the tables of `owner`, which is locked. address: the gateway's on the ingress link. again: it must be
    repeated with all workers locked."""
    cdef uint32_t own = owner.links.address[frame.side]
    cdef uint8_t verdict
    clock_follow(owner, now)
    owner.links.address[frame.side] = address
    verdict = slow_path_locked(owner, frame, packet, now)
    owner.links.address[frame.side] = own
    again[0] = owner.needs_all_locked and verdict > HELD
    owner.needs_all_locked = False
    return verdict


cdef uint8_t slow_path_by_owner(Worker* worker, Frame* frame, Packet* packet, Clock* now) noexcept nogil:
    """Slow path with several workers: hands the packet off to its owner. This worker's lock is not held meanwhile, so its
    tables may have changed afterwards: the pipeline's later packets compare their sessions anew.
    """
    cdef Worker* owner
    cdef uint32_t address = worker.links.address[frame.side]     # read while the worker is locked
    cdef uint8_t verdict = PENDING
    cdef bint again = True, alone = holds_all_locks(worker)
    if not alone:
        owner = owner_of(worker, frame, packet, now)
        if owner == worker:
            verdict = slow_path_in(worker, address, frame, packet, now, &again)
        elif owner != NULL:
            unlock(worker)
            lock(owner)
            verdict = slow_path_in(owner, address, frame, packet, now, &again)
            unlock(owner)
            lock(worker)
            worker.handed_over += not again
    if again:
        if not alone:
            lock_others(worker)
        clock_follow(worker, now)
        owner = owner_with_all_locked(worker, frame, packet, True, now)
        verdict = slow_path_in(owner, address, frame, packet, now, &again)
        worker.handed_over += owner != worker
        if not alone:
            unlock_others(worker)
    clock_follow(worker, now)
    return verdict


cdef inline uint8_t slow_path(Worker* worker, Frame* frame, Packet* packet, Clock* now) noexcept nogil:
    if likely(worker.shared.count == 1):
        return slow_path_locked(worker, frame, packet, now)
    return slow_path_by_owner(worker, frame, packet, now)


# ---- the pipeline ----------------------------------------------------------------------------------------------------

cdef inline void parse_group(const Worker* worker, Frame* frames, Packet* packets, uint32_t count, uint32_t follow,
                             bint ethernet) noexcept nogil:
    """Parses a group and prefetches its buckets, and the headers of the next group.

    Buckets are prefetched in one run, as sessions are in find, so that their page walks overlap.
    """
    cdef HashKey key = worker.sessions.key          # a copy that no store into a frame can alias
    cdef uint32_t[2] mtu
    cdef uint8_t lowest_ttl = worker.configuration.lowest_ttl
    cdef Frame* frame
    cdef Packet* packet
    cdef uint32_t i
    mtu[INSIDE], mtu[OUTSIDE] = worker.links.mtu[OUTSIDE], worker.links.mtu[INSIDE]     # of the egress link, by ingress side
    for i in range(count):
        frame = &frames[i]
        packet = &packets[i]
        if i + AHEAD < follow:
            prefetch_write(frames[AHEAD + i].data)
        frame.side &= 1
        if unlikely(not parse_plain(frame, packet, ethernet, lowest_ttl, mtu[frame.side], &key)):
            if not parse_other(worker, frame, packet):
                packet.bucket = NULL
                continue
        packet.bucket = bucket_of(&worker.sessions.index[frame.side], packet.hash)      # Side and Direction are numbered alike
    for i in range(count):
        prefetch(packets[i].bucket)


cdef inline bint options_pass(const Worker* worker, uint8_t options) noexcept nogil:
    """Whether packets with such options (Options) are forwarded."""
    return options == OPTIONS_NONE or (
        options != OPTIONS_SOURCE_ROUTE and worker.configuration.ip_options != OPTIONS_DROP
        and (options == OPTIONS_HARMLESS or worker.configuration.ip_options == OPTIONS_PASS))


cdef bint parse_other(const Worker* worker, Frame* frame, Packet* packet) noexcept nogil:
    """Parses what is not plain; whether it may still be on the fast path. Otherwise the slow path decides."""
    packet.verdict = parse(frame, packet, worker.configuration.ethernet, &worker.sessions.key)
    if packet.verdict == PENDING and not options_pass(worker, packet.options):
        packet.verdict = DROP_IP_OPTION
    if packet.verdict == PENDING:
        screen_icmp_query(worker, packet)
    return (packet.verdict == PENDING and packet.kind == KIND_SESSION and packet.ip.ttl >= worker.configuration.lowest_ttl
            and packet.total_length <= worker.links.mtu[1 - frame.side] and not frame.flags & (FRAME_GSO | FRAME_CROSSING))


cdef inline uint32_t find(const Worker* worker, const Frame* frames, Packet* packets, uint32_t count) noexcept nogil:
    """Takes the first session that a bucket names as the packet's candidate, and prefetches it; a second one is left to the
    slow path. Returns WITHOUT_CANDIDATE, WITHOUT_DF, both or 0."""
    cdef Session* hot = worker.sessions.hot
    cdef Packet* packet
    cdef uint32_t mask, i
    cdef uint32_t without_candidate = 0
    cdef uint16_t common = 0xFFFF                   # of the words that have DF
    for i in range(count):
        packet = &packets[i]
        packet.candidate = NONE
        if unlikely(packet.bucket == NULL):
            continue
        common &= packet.ip.fragment
        mask = match_some(packet.bucket.tags, tag_of(packet.hash))
        if likely(mask != 0):
            packet.candidate = packet.bucket.numbers[ctz32(mask)]
            prefetch_write(&hot[packet.candidate])
            continue
        packet.verdict = PENDING
        without_candidate = WITHOUT_CANDIDATE
        if packet.bucket.overflow:
            prefetch(packet.bucket + 1)
        elif frames[i].side == INSIDE:
            mapping_prefetch_open(&worker.mappings, packet.ip.source, <uint16_t>packet.ports, packet.protocol)
    return without_candidate if likely(common & bswap16(IPV4_DF)) else without_candidate | WITHOUT_DF


cdef uint32_t lookup_further(const Worker* worker, const Frame* frames, Packet* packets, uint32_t count,
                             uint32_t before) noexcept nogil:
    """For packets without a session in their bucket: looks into the next one; otherwise a new session is likely.

    before: port allocations predicted for the previous group; returns those predicted for this one.
    """
    cdef const Index* index
    cdef const Bucket* after
    cdef Packet* packet
    cdef uint32_t i, mask, allocations = 0
    for i in range(count):
        packet = &packets[i]
        if packet.bucket == NULL or packet.candidate != NONE:
            continue
        if packet.bucket.overflow:
            index = &worker.sessions.index[frames[i].side]
            after = packet.bucket + 1 if packet.bucket + 1 < index.buckets + index.count else index.buckets
            mask = match_tags(after.tags, tag_of(packet.hash))
            if mask:
                packet.candidate = after.numbers[ctz32(mask)]
                prefetch_write(&worker.sessions.hot[packet.candidate])
                continue
        if frames[i].side == INSIDE:
            allocations += prefetch_admission(worker, packet, before + allocations)
    return allocations


cdef inline uint8_t translate_established(Worker* worker, Frame* frame, Packet* packet, const Clock* now) noexcept nogil:
    """Translates a packet of the session that was found; PENDING: slow path."""
    cdef uint32_t direction = frame.side
    cdef Session* session = &worker.sessions.hot[packet.candidate]
    cdef const TcpHeader* segment = segment_of(packet)
    if unlikely((session_addresses(session, direction) ^ packet.addresses)
                | (session_ports(session, direction) ^ packet.ports)
                | (session.protocol ^ packet.protocol)):
        return PENDING
    if unlikely(is_dead(&worker.sessions, session, now.ms) or session.flags & (HAIRPINNED | SESSION_FREE)):
        return PENDING
    if unlikely(not is_steady(session, segment) and segment.flags & TCP_SYN):
        return PENDING                  # it may begin a new session, and its MSS may be lowered
    account(worker, packet.candidate, direction, packet, now, 1, packet.total_length)
    rewrite(frame, packet, session, direction, worker.configuration.decrement_ttl)
    return UNTRANSLATED if unlikely(session.flags & UNTRANSLATED_BOTH) else <uint8_t>direction


cdef inline void finish(Worker* worker, Frame* frames, Packet* packets, uint32_t count, Clock* now,
                        bint identifies) noexcept nogil:
    """Decides the packets of a group. identifies: some from inside may need a new identification; a compile-time constant."""
    cdef uint8_t verdict
    cdef uint32_t i
    for i in range(count):
        if likely(packets[i].candidate != NONE):
            verdict = translate_established(worker, &frames[i], &packets[i], now)
            if identifies and verdict == OUT and not packets[i].ip.fragment & bswap16(IPV4_DF):
                identify(worker, &frames[i], &packets[i])
        else:
            verdict = packets[i].verdict
        if unlikely(verdict == PENDING):
            verdict = slow_path(worker, &frames[i], &packets[i], now)
        frames[i].verdict = verdict
        worker.counters[verdict] += 1


cdef void finish_with_identification(Worker* worker, Frame* frames, Packet* packets, uint32_t count, Clock* now) noexcept nogil:
    finish(worker, frames, packets, count, now, True)


cdef inline uint32_t group_of(uint32_t count, uint32_t first) noexcept nogil:
    """Packets of the group that begins at first; 0 behind the batch, or before it (wrapped around)."""
    return 0 if first >= count else GROUP if count - first > GROUP else count - first


cdef inline void pipeline(Worker* worker, Frame* frames, uint32_t count, Clock* now, bint ethernet) noexcept nogil:
    """Runs the stages of a batch. ethernet: a compile-time constant.

    Each turn moves every stage one group further, each FIND_AFTER, LOOK_AFTER or REWRITE_AFTER packets behind parsing. In the
    first turns a later stage has no group yet: i - FIND_AFTER wraps around to a number above count, for which group_of says 0,
    so that the stage does nothing, and the addresses that are computed from it are never read. In the last turns parsing has
    none. CONTEXTS is a power of two, so that i % CONTEXTS wraps around in step.
    """
    cdef Packet packets[CONTEXTS]
    cdef uint32_t i, allocations = 0, found = 0
    cdef uint32_t without_df = 0                       # one bit per group, the last one's lowest
    for i in range(count if count < AHEAD else AHEAD):
        prefetch_write(frames[i].data)
    i = 0
    while i < count + REWRITE_AFTER:
        parse_group(worker, &frames[i], &packets[i % CONTEXTS], group_of(count, i), count - i, ethernet)
        if unlikely(found & WITHOUT_CANDIDATE):               # of the group that the last turn looked at
            allocations = lookup_further(worker, &frames[i - LOOK_AFTER], &packets[(i - LOOK_AFTER) % CONTEXTS],
                                         group_of(count, i - LOOK_AFTER), allocations)
        else:
            allocations = 0
        found = find(worker, &frames[i - FIND_AFTER], &packets[(i - FIND_AFTER) % CONTEXTS],
                     group_of(count, i - FIND_AFTER))
        without_df = without_df << 1 | found // WITHOUT_DF
        if unlikely(without_df >> IDENTIFY_AFTER & 1) and worker.configuration.unique_ids:
            finish_with_identification(worker, &frames[i - REWRITE_AFTER], &packets[(i - REWRITE_AFTER) % CONTEXTS],
                                       group_of(count, i - REWRITE_AFTER), now)
        else:
            finish(worker, &frames[i - REWRITE_AFTER], &packets[(i - REWRITE_AFTER) % CONTEXTS],
                   group_of(count, i - REWRITE_AFTER), now, False)
        i += GROUP


cdef void run_stages(Worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept nogil:
    """Runs the batch through the pipeline."""
    cdef Clock now
    clock_read(&now, clock_forward_with(worker, count, now_ns))
    if likely(worker.configuration.ethernet):
        pipeline(worker, frames, count, &now, True)
    else:
        pipeline(worker, frames, count, &now, False)


cdef void translate_logged(Worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept nogil:
    """As run_stages, with the flow log. The worker may be unlocked in between, and the log closed: each part of the batch is
    captured by the log it began with, which waits for it (flows_close)."""
    cdef FlowSeen seen[FLOWS_BATCH]
    cdef Flows* flows
    cdef uint32_t done = 0, part
    while done < count:
        part = count - done if count - done < FLOWS_BATCH else FLOWS_BATCH
        flows = worker.flows
        if flows != NULL:
            flows_acquire(flows)
            flows_arrive(flows, seen, &frames[done], part)
        run_stages(worker, &frames[done], part, now_ns if done == 0 else worker.now_ns)
        if flows != NULL:
            flows_leave(flows, seen, &frames[done], part, micros(&worker.sessions, worker.now_ns))
            flows_release(flows)
        done += part


cdef void translate(Worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept nogil:
    """Translates a batch in order: writes each frame's bytes, length and verdict. The worker must be locked; with several
    workers it is unlocked for moments in between."""
    if likely(worker.flows == NULL):
        run_stages(worker, frames, count, now_ns)
    else:
        translate_logged(worker, frames, count, now_ns)
    if DEBUG:
        assert_tables(worker)


# ---- for callers ------------------------------------------------------------------------------------------------------

cdef uint32_t bytes_of_frame(const Worker* worker, const Frame* frame) noexcept nogil:
    """IPv4 bytes of a forwarded frame; of a super-frame those of its packets on the wire."""
    cdef Packet packet
    cdef Frame copy
    if unlikely(frame.flags & FRAME_GSO):
        copy = frame[0]
        if parse(&copy, &packet, worker.configuration.ethernet, &worker.sessions.key) == PENDING:
            return wire_bytes(&packet, wire_packets(frame, &packet))
    return frame.length - (link_length(frame) if worker.configuration.ethernet else 0)


cdef void count_sides(Worker* worker, const Frame* frames, uint32_t count) noexcept nogil:
    """Counts translated frames by the side that they came from. Callers of translate() do it: the pipeline, which has its
    instructions counted, need not. The worker must be locked."""
    cdef uint32_t i
    for i in range(count):
        worker.from_outside[frames[i].verdict] += frames[i].side
        if frames[i].verdict <= UNTRANSLATED:
            worker.bytes[frames[i].side & 1] += bytes_of_frame(worker, &frames[i])


cdef void revoke(Worker* worker, Frame* frame, uint8_t verdict) noexcept nogil:
    """Counts a forwarded frame that could not be delivered as dropped, with this verdict, and in no row. The worker must be
    locked."""
    assert_held(&worker.locked, "worker: revoke")
    if unlikely(worker.flows != NULL):
        flows_unsent(worker.flows, frame)
    subtract(worker, frame)
    worker.counters[frame.verdict] -= 1
    worker.counters[verdict] += 1
    worker.from_outside[frame.verdict] -= frame.side
    worker.from_outside[verdict] += frame.side
    frame.verdict = verdict


cdef uint32_t take_generated(Worker* worker, uint8_t* out, uint32_t capacity, uint8_t* send_to,
                             uint8_t* cause) noexcept nogil:
    """Takes the next frame that the gateway originates; its length, 0: none. send_to: egress Side; cause: a Verdict."""
    cdef Frame frame
    frame.data = out
    frame.flags = 0
    frame.length = outbox_take(worker.outbox, out, capacity, send_to, cause)
    if frame.length and (cause[0] <= UNTRANSLATED or cause[0] == HELD):         # a fragment
        worker.bytes[1 - (send_to[0] & 1)] += bytes_of_frame(worker, &frame)
    if unlikely(worker.flows != NULL) and frame.length:
        flows_sent(worker.flows, &frame, send_to[0], micros(&worker.sessions, worker.now_ns))
    return frame.length


assert sizeof(Packet) == 64
