"""The stages in order, as a software pipeline: while one packet is parsed, an earlier one finds its session, and a still
earlier one is rewritten, so that the waits for memory overlap. Whatever the pipeline cannot do at once goes the slow way.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.nat.accounting cimport account, account_frame, is_steady, segment_of
from natcore.nat.admission cimport (
    Endpoints, admit_inbound, admit_outbound, announce, find_live, is_static, is_whole, may_pass, screen_inbound, session_mtu,
)
from natcore.nat.icmp_replies cimport answer
from natcore.workers.invariants cimport assert_tables
from natcore.nat.inside_routing cimport cross, crosses
from natcore.log.flow_table cimport (
    FLOWS_BATCH, Flows, FlowSeen, flows_arrive, flows_enter, flows_exit, flows_leave, flows_sent, flows_unsent,
)
from natcore.nat.prefetch cimport foresee
from natcore.nat.ip_identification cimport identify
from natcore.workers.locks cimport await_hold, disperse, gather, release
from natcore.tables.icmp_output cimport outbox_take
from natcore.packet.tcp_mss cimport clamp_mss
from natcore.packet.parse cimport (
    KIND_FRAGMENT, KIND_ICMP, KIND_SESSION, OPTIONS_HARMLESS, OPTIONS_NONE, OPTIONS_ROUTE, Flight, parse, parse_plain,
)
from natcore.tables.mappings cimport mapping_approach
from natcore.nat.affinity cimport owner_for_sure, owner_of, peer_of
from natcore.nat.fragment_path cimport fit, parse_first, piece_enter, piece_known
from natcore.tables.ports cimport address_find
from natcore.nat.icmp_errors cimport is_error, translate_error
from natcore.nat.session_reuse cimport may_reopen, reopen
from natcore.nat.rewrite cimport rewrite
from natcore.tables.sessions cimport (
    HAIRPINNED, IN, OUT, ROLE_OUTSIDE, ROLE_REMOTE, SESSION_FREE, UNLOGGED, UNTRANSLATED_BOTH, Session, is_dead, micros,
    session_addresses, session_discard, session_ports, turned_addresses, turned_ports,
)
from natcore.nat.clock cimport clock_follow, clock_forward_with
from natcore.nat.undelivered cimport take_back
from natcore.nat.unsolicited_syn cimport note_unsolicited
from natcore.base.flow_hash cimport HashKey
from natcore.frame cimport FRAME_CROSSING, FRAME_GSO, Frame
from natcore.base.compiler cimport DEBUG, bswap16, likely, prefetch, prefetch_write, unlikely
from natcore.base.hash_table cimport NONE, Bucket, Index, bucket_of, ctz32, match_some, match_tags, tag_of
from natcore.workers.worker cimport OPTIONS_DROP, OPTIONS_PASS, Clock, Worker, clock_read, has_all
from natcore.packet.verdict cimport (
    DROP_FILTERED, DROP_FRAGMENT, DROP_IP_OPTION, DROP_NO_MAPPING, DROP_SPOOFED, DROP_UNSUPPORTED, HAIRPIN, HELD, INSIDE, LOCAL,
    OUTSIDE, PENDING, UNTRANSLATED,
)
from natcore.base.headers cimport (
    ICMP_ECHO_REQUEST, IPV4_DF, IPV4_FRAGMENT, PROTOCOL_ICMP, PROTOCOL_TCP, TCP_SYN, IcmpHeader, TcpHeader, is_echo, is_reply,
    is_request,
)

cdef enum:
    GROUP = 16                  # packets that go through a stage together
    FIND_AFTER = 32             # packets between parsing one and looking for its session
    LOOK_AFTER = 48             # and looking further, a group later
    REWRITE_AFTER = 64          # and rewriting it
    AHEAD = 16                  # packets whose headers are on their way into the cache
    NUMBERED_AFTER = 2          # groups between looking for sessions and rewriting
    UNNAMED = 1                 # of a group
    LACKING = 2
    FLIGHTS = 128               # packets on their way at once; a power of two above REWRITE_AFTER


# ---- the slow way ----------------------------------------------------------------------------------------------------

cdef inline void limit_mss(Worker* worker, const Frame* frame, Flight* flight) noexcept nogil:
    """What a SYN that is forwarded says of its sender's segments, as the policy has it."""
    if worker.mss and flight.protocol == PROTOCOL_TCP and (<const TcpHeader*>flight.l4).flags & TCP_SYN:
        clamp_mss(frame, flight, worker.mss)


cdef uint8_t hairpin(Worker* worker, Frame* frame, Flight* flight, uint32_t slot, bint fresh,
                     const Clock* now) noexcept nogil:
    """The way back in, towards the inside endpoint behind the remote of the packet's own session (RFC 4787 REQ-9)."""
    cdef Session* session = &worker.sessions.hot[slot]
    cdef Worker* peer = peer_of(worker, turned_addresses(session), turned_ports(session), flight.protocol, now)
    cdef uint32_t other = find_live(peer, IN, turned_addresses(session), turned_ports(session), flight.protocol, now)
    cdef Endpoints ends
    cdef uint8_t verdict = PENDING
    if other == NONE:
        ends.remote_ip = session.ip[ROLE_OUTSIDE]
        ends.remote_port = <uint16_t>turned_ports(session)
        ends.outside_ip = session.ip[ROLE_REMOTE]
        ends.outside_port = <uint16_t>(turned_ports(session) >> 16)
        ends.address = address_find(worker.mappings.ports, ends.outside_ip)
        verdict = admit_inbound(peer, NULL, &ends, flight, HAIRPINNED | UNLOGGED, now, &other)
    elif peer != worker or other != slot:
        verdict = may_reopen(peer, other, IN, flight, now)
    if verdict != PENDING:
        if fresh:
            session_discard(&worker.sessions, slot, now.ns)
        return verdict
    if fresh:
        announce(worker, slot, OUT, now)
    else:
        reopen(worker, slot, OUT, flight, now)
    reopen(peer, other, IN, flight, now)
    limit_mss(worker, frame, flight)
    account_frame(worker, slot, OUT, frame, flight, now)
    if peer == worker and other == slot:            # to its own outside endpoint: counted once, as what it sent
        account(peer, other, IN, flight, now, 0, 0)
    else:
        account_frame(peer, other, IN, frame, flight, now)
    rewrite(frame, flight, session, OUT, worker.decrement_ttl)
    rewrite(frame, flight, &peer.sessions.hot[other], IN, False)
    identify(worker, frame, flight)
    return HAIRPIN


cdef uint8_t forward(Worker* worker, Frame* frame, Flight* flight, const Clock* now) noexcept nogil:
    """Finds or admits the packet's session and translates it; or why not."""
    cdef uint32_t direction = frame.side, slot
    cdef Endpoints ends
    cdef uint8_t verdict
    cdef bint fresh = False
    slot = find_live(worker, direction, flight.addresses, flight.ports, flight.protocol, now)
    if slot != NONE:
        if direction == OUT and worker.sessions.hot[slot].flags & HAIRPINNED and not has_all(worker):
            worker.wants_all = True     # its destination was ours, and is not any more
            return PENDING
        if direction == IN and worker.sessions.hot[slot].flags & HAIRPINNED:
            return DROP_SPOOFED         # a hairpin's packets come from inside
        verdict = may_pass(worker, frame, flight, session_mtu(worker, &worker.sessions.hot[slot], direction))
        if verdict == PENDING:
            verdict = may_reopen(worker, slot, direction, flight, now)
        if verdict != PENDING:
            return verdict
    else:
        fresh = True
        if direction == OUT:
            verdict = admit_outbound(worker, frame, flight, now, &slot)
        else:
            verdict = screen_inbound(worker, flight, &ends)
            if verdict == PENDING:
                verdict = admit_inbound(worker, frame, &ends, flight, 0, now, &slot)
        if verdict != PENDING:
            return verdict
    if direction == OUT and worker.sessions.hot[slot].flags & HAIRPINNED:
        return hairpin(worker, frame, flight, slot, fresh, now)
    if fresh:
        announce(worker, slot, direction, now)
    else:
        reopen(worker, slot, direction, flight, now)
    limit_mss(worker, frame, flight)
    account_frame(worker, slot, direction, frame, flight, now)
    rewrite(frame, flight, &worker.sessions.hot[slot], direction, worker.decrement_ttl)
    if direction == OUT and not worker.sessions.hot[slot].flags & UNTRANSLATED_BOTH:
        identify(worker, frame, flight)
    return UNTRANSLATED if worker.sessions.hot[slot].flags & UNTRANSLATED_BOTH else <uint8_t>direction


cdef inline void screen_query(const Worker* worker, Flight* flight) noexcept nogil:
    """A query that the policy refuses is one of the other messages."""
    if (worker.echo_only and flight.protocol == PROTOCOL_ICMP and flight.kind == KIND_SESSION
            and not is_echo((<const IcmpHeader*>flight.l4).type)):
        flight.kind = KIND_ICMP


cdef bint is_whole_query(Worker* worker, const Frame* frame, Flight* flight, const Clock* now) noexcept nogil:
    """A query the other way round, which a 1:1 entry lets pass: a request from outside, or the inside's reply to one."""
    cdef uint8_t type = (<const IcmpHeader*>flight.l4).type
    cdef uint32_t slot
    if not (is_request(type) if frame.side == OUTSIDE else is_reply(type)) or (worker.echo_only and not is_echo(type)):
        return False
    if frame.side == OUTSIDE and is_whole(worker, flight.ip.destination):
        return True
    slot = find_live(worker, frame.side, flight.addresses, flight.ports, flight.protocol, now)
    return slot != NONE and is_static(worker, slot)


cdef uint8_t other_kind(Worker* worker, Frame* frame, Flight* flight, const Clock* now) noexcept nogil:
    """What no session of its own can have: an ICMP error, something for the gateway itself, or not supported."""
    cdef uint32_t destination = flight.ip.destination
    cdef bint whole = not flight.ip.fragment & bswap16(IPV4_FRAGMENT)
    if flight.kind == KIND_ICMP and is_error(flight) and whole:
        return translate_error(worker, frame, flight, now)
    if worker.link_address[frame.side] and destination == worker.link_address[frame.side]:
        return LOCAL
    if flight.kind == KIND_ICMP and is_error(flight):
        return DROP_FRAGMENT            # its checksum cannot be verified (RFC 5508 REQ-3)
    if flight.kind == KIND_ICMP and is_whole_query(worker, frame, flight, now):
        return forward(worker, frame, flight, now)
    if (flight.kind == KIND_ICMP and (<const IcmpHeader*>flight.l4).type == ICMP_ECHO_REQUEST
            and address_find(worker.mappings.ports, destination) != NONE):
        return LOCAL
    return DROP_UNSUPPORTED


cdef uint8_t decide(Worker* worker, Frame* frame, Flight* flight, const Clock* now) noexcept nogil:
    """A whole packet, or the first fragment of one."""
    cdef uint8_t verdict
    if flight.ip.source == flight.ip.destination:   # a land packet: nobody speaks to itself over a wire
        return DROP_SPOOFED
    if crosses(worker, frame, flight):
        verdict = cross(worker, frame, flight)
    elif flight.kind == KIND_SESSION:
        verdict = forward(worker, frame, flight, now)
        if worker.wants_all:
            return verdict
        if (frame.side == OUTSIDE and (verdict == DROP_NO_MAPPING or verdict == DROP_FILTERED)
                and worker.unsolicited.slots != NULL):
            note_unsolicited(worker, frame, flight, verdict, now.ns)
    else:
        verdict = other_kind(worker, frame, flight, now)
    if verdict >= LOCAL:
        answer(worker, frame, flight, verdict, now)
    else:
        fit(worker, frame, flight, verdict, verdict)
    return verdict


cdef uint8_t do_alone(Worker* worker, Frame* frame, Flight* flight, const Clock* now) noexcept nogil:
    """In the tables of one worker, or of all, as the caller holds them."""
    cdef uint32_t datagram
    cdef uint8_t verdict
    if flight.kind != KIND_FRAGMENT or crosses(worker, frame, flight):
        return decide(worker, frame, flight, now)
    verdict = piece_enter(worker, frame, flight, now, &datagram)
    if verdict == PENDING:              # a first fragment: what becomes of it holds for the later ones
        flight.kind = KIND_SESSION
        verdict = parse_first(flight, frame.side)
        if verdict == PENDING:
            screen_query(worker, flight)
        if verdict == PENDING:
            verdict = decide(worker, frame, flight, now)
        piece_known(worker, frame, flight, datagram, verdict, now)
    return verdict


cdef uint8_t do_in(Worker* owner, uint32_t address, Frame* frame, Flight* flight, Clock* now, bint* again) noexcept nogil:
    """In the tables of a worker that the caller holds. address: the gateway's on the link that the frame came by.
    again: it has to be done with all held."""
    cdef uint32_t own = owner.link_address[frame.side]
    cdef uint8_t verdict
    clock_follow(owner, now)
    owner.link_address[frame.side] = address
    verdict = do_alone(owner, frame, flight, now)
    owner.link_address[frame.side] = own
    again[0] = owner.wants_all and verdict > HELD
    owner.wants_all = False
    return verdict


cdef uint8_t do_by_owner(Worker* worker, Frame* frame, Flight* flight, Clock* now) noexcept nogil:
    """One of several workers missed: the packet is its owner's, in whose tables it is done. Two are never held in another
    way than all are: who waits for one holds none, so the pipeline's other packets look at their sessions anew.
    """
    cdef Worker* owner
    cdef uint32_t address = worker.link_address[frame.side]     # read while the worker is held
    cdef uint8_t verdict = PENDING
    cdef bint again = True, alone = has_all(worker)
    if not alone:
        owner = owner_of(worker, frame, flight, now)
        if owner == worker:
            verdict = do_in(worker, address, frame, flight, now, &again)
        elif owner != NULL:
            release(worker)
            await_hold(owner)
            verdict = do_in(owner, address, frame, flight, now, &again)
            release(owner)
            await_hold(worker)
            worker.handed_over += not again
    if again:
        if not alone:
            gather(worker)
        clock_follow(worker, now)
        owner = owner_for_sure(worker, frame, flight, True, now)
        verdict = do_in(owner, address, frame, flight, now, &again)
        worker.handed_over += owner != worker
        if not alone:
            disperse(worker)
    clock_follow(worker, now)
    return verdict


cdef inline uint8_t slow(Worker* worker, Frame* frame, Flight* flight, Clock* now) noexcept nogil:
    if likely(worker.shared.count == 1):
        return do_alone(worker, frame, flight, now)
    return do_by_owner(worker, frame, flight, now)


# ---- the pipeline ----------------------------------------------------------------------------------------------------

cdef inline void begin(const Worker* worker, Frame* frames, Flight* flights, uint32_t count, uint32_t follow,
                       bint ethernet) noexcept nogil:
    """Parses a group; each packet's bucket is on its way into the cache then, and the headers of the group that follows.

    Buckets are asked for one right after the other, as sessions are in find: so the walks for their pages overlap.
    """
    cdef HashKey key = worker.sessions.key          # copies, which no store into a frame can change
    cdef uint32_t[2] mtu
    cdef uint8_t lowest_ttl = worker.lowest_ttl
    cdef Frame* frame
    cdef Flight* flight
    cdef uint32_t i
    mtu[INSIDE], mtu[OUTSIDE] = worker.mtu[OUTSIDE], worker.mtu[INSIDE]     # of the next link, by the side it came from
    for i in range(count):
        frame = &frames[i]
        flight = &flights[i]
        if i + AHEAD < follow:
            prefetch_write(frames[AHEAD + i].data)
        frame.side &= 1
        if unlikely(not parse_plain(frame, flight, ethernet, lowest_ttl, mtu[frame.side], &key)):
            if not begin_other(worker, frame, flight):
                flight.bucket = NULL
                continue
        flight.bucket = bucket_of(&worker.sessions.index[frame.side], flight.hash)      # Side and Direction are numbered alike
    for i in range(count):
        prefetch(flights[i].bucket)


cdef inline bint passes(const Worker* worker, uint8_t options) noexcept nogil:
    """Whether a packet with such options (Options) is forwarded."""
    return options == OPTIONS_NONE or (
        options != OPTIONS_ROUTE and worker.ip_options != OPTIONS_DROP
        and (options == OPTIONS_HARMLESS or worker.ip_options == OPTIONS_PASS))


cdef bint begin_other(const Worker* worker, Frame* frame, Flight* flight) noexcept nogil:
    """Parses what is not plain; whether it still is a packet for an established session. Else the slow way decides."""
    flight.verdict = parse(frame, flight, worker.ethernet, &worker.sessions.key)
    if flight.verdict == PENDING and not passes(worker, flight.options):
        flight.verdict = DROP_IP_OPTION
    if flight.verdict == PENDING:
        screen_query(worker, flight)
    return (flight.verdict == PENDING and flight.kind == KIND_SESSION and flight.ip.ttl >= worker.lowest_ttl
            and flight.total_length <= worker.mtu[1 - frame.side] and not frame.flags & (FRAME_GSO | FRAME_CROSSING))


cdef inline uint32_t find(const Worker* worker, const Frame* frames, Flight* flights, uint32_t count) noexcept nogil:
    """The first session that a bucket names is on its way into the cache; a second one is the slow way's. Whether there
    is a packet for which none is named (UNNAMED), or one without DF (LACKING)."""
    cdef Session* hot = worker.sessions.hot
    cdef Flight* flight
    cdef uint32_t mask, i
    cdef uint32_t unnamed = 0
    cdef uint16_t common = 0xFFFF                   # of the words that have DF
    for i in range(count):
        flight = &flights[i]
        flight.candidate = NONE
        if unlikely(flight.bucket == NULL):
            continue
        common &= flight.ip.fragment
        mask = match_some(flight.bucket.tags, tag_of(flight.hash))
        if likely(mask != 0):
            flight.candidate = flight.bucket.numbers[ctz32(mask)]
            prefetch_write(&hot[flight.candidate])
            continue
        flight.verdict = PENDING
        unnamed = UNNAMED
        if flight.bucket.overflow:
            prefetch(flight.bucket + 1)
        elif frames[i].side == INSIDE:
            mapping_approach(&worker.mappings, flight.ip.source, <uint16_t>flight.ports, flight.protocol)
    return unnamed if likely(common & bswap16(IPV4_DF)) else unnamed | LACKING


cdef uint32_t look_further(const Worker* worker, const Frame* frames, Flight* flights, uint32_t count,
                           uint32_t before) noexcept nogil:
    """For what no bucket named a session: it may lie in the bucket after, else a new one is likely.

    before: ports that will be drawn for the group before; how many will be for this one.
    """
    cdef const Index* index
    cdef const Bucket* after
    cdef Flight* flight
    cdef uint32_t i, mask, draws = 0
    for i in range(count):
        flight = &flights[i]
        if flight.bucket == NULL or flight.candidate != NONE:
            continue
        if flight.bucket.overflow:
            index = &worker.sessions.index[frames[i].side]
            after = flight.bucket + 1 if flight.bucket + 1 < index.buckets + index.count else index.buckets
            mask = match_tags(after.tags, tag_of(flight.hash))
            if mask:
                flight.candidate = after.numbers[ctz32(mask)]
                prefetch_write(&worker.sessions.hot[flight.candidate])
                continue
        if frames[i].side == INSIDE:
            draws += foresee(worker, flight, before + draws)
    return draws


cdef inline uint8_t established(Worker* worker, Frame* frame, Flight* flight, const Clock* now) noexcept nogil:
    """Translates a packet of the session that the index named; PENDING: it has to go the slow way."""
    cdef uint32_t direction = frame.side
    cdef Session* session = &worker.sessions.hot[flight.candidate]
    cdef const TcpHeader* segment = segment_of(flight)
    if unlikely((session_addresses(session, direction) ^ flight.addresses)
                | (session_ports(session, direction) ^ flight.ports)
                | (session.protocol ^ flight.protocol)):
        return PENDING
    if unlikely(is_dead(&worker.sessions, session, now.ms) or session.flags & (HAIRPINNED | SESSION_FREE)):
        return PENDING
    if unlikely(not is_steady(session, segment) and segment.flags & TCP_SYN):
        return PENDING                  # it may begin a new session, and its MSS may be lowered
    account(worker, flight.candidate, direction, flight, now, 1, flight.total_length)
    rewrite(frame, flight, session, direction, worker.decrement_ttl)
    return UNTRANSLATED if unlikely(session.flags & UNTRANSLATED_BOTH) else <uint8_t>direction


cdef inline void finish(Worker* worker, Frame* frames, Flight* flights, uint32_t count, Clock* now,
                        bint numbers) noexcept nogil:
    """numbers: from inside some of the group may need an identification of the gateway's; known when this is compiled."""
    cdef uint8_t verdict
    cdef uint32_t i
    for i in range(count):
        if likely(flights[i].candidate != NONE):
            verdict = established(worker, &frames[i], &flights[i], now)
            if numbers and verdict == OUT and not flights[i].ip.fragment & bswap16(IPV4_DF):
                identify(worker, &frames[i], &flights[i])
        else:
            verdict = flights[i].verdict
        if unlikely(verdict == PENDING):
            verdict = slow(worker, &frames[i], &flights[i], now)
        frames[i].verdict = verdict
        worker.counters[verdict] += 1


cdef void finish_numbering(Worker* worker, Frame* frames, Flight* flights, uint32_t count, Clock* now) noexcept nogil:
    finish(worker, frames, flights, count, now, True)


cdef inline uint32_t group_of(uint32_t count, uint32_t first) noexcept nogil:
    """Packets of the group that begins at first; 0 behind the batch, or before it (wrapped around)."""
    return 0 if first >= count else GROUP if count - first > GROUP else count - first


cdef inline void pipeline(Worker* worker, Frame* frames, uint32_t count, Clock* now, bint ethernet) noexcept nogil:
    """Runs the stages of a batch. ethernet: a compile-time constant.

    Each turn moves every stage one group further, each FIND_AFTER, LOOK_AFTER or REWRITE_AFTER packets behind parsing. In the
    first turns a later stage has no group yet: i - FIND_AFTER wraps around to a number above count, for which group_of says 0,
    so that the stage does nothing, and the addresses that are computed from it are never read. In the last turns parsing has
    none. FLIGHTS is a power of two, so that i % FLIGHTS wraps around in step.
    """
    cdef Flight flights[FLIGHTS]
    cdef uint32_t i, draws = 0, found = 0
    cdef uint32_t lacking = 0                       # a bit a group, the last one's lowest
    for i in range(count if count < AHEAD else AHEAD):
        prefetch_write(frames[i].data)
    i = 0
    while i < count + REWRITE_AFTER:
        begin(worker, &frames[i], &flights[i % FLIGHTS], group_of(count, i), count - i, ethernet)
        if unlikely(found & UNNAMED):               # of the group that the last turn looked at
            draws = look_further(worker, &frames[i - LOOK_AFTER], &flights[(i - LOOK_AFTER) % FLIGHTS],
                                 group_of(count, i - LOOK_AFTER), draws)
        else:
            draws = 0
        found = find(worker, &frames[i - FIND_AFTER], &flights[(i - FIND_AFTER) % FLIGHTS],
                     group_of(count, i - FIND_AFTER))
        lacking = lacking << 1 | found // LACKING
        if unlikely(lacking >> NUMBERED_AFTER & 1) and worker.identifications != NULL:
            finish_numbering(worker, &frames[i - REWRITE_AFTER], &flights[(i - REWRITE_AFTER) % FLIGHTS],
                             group_of(count, i - REWRITE_AFTER), now)
        else:
            finish(worker, &frames[i - REWRITE_AFTER], &flights[(i - REWRITE_AFTER) % FLIGHTS],
                   group_of(count, i - REWRITE_AFTER), now, False)
        i += GROUP


cdef void run_stages(Worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept nogil:
    """The batch through the pipeline."""
    cdef Clock now
    clock_read(&now, clock_forward_with(worker, count, now_ns))
    if likely(worker.ethernet):
        pipeline(worker, frames, count, &now, True)
    else:
        pipeline(worker, frames, count, &now, False)


cdef void translate_logged(Worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept nogil:
    """The same for the flow log. Within run_stages the worker may be let go, and the log be closed: a part of the batch is
    the log's that it came to, which waits for it (flows_close)."""
    cdef FlowSeen seen[FLOWS_BATCH]
    cdef Flows* flows
    cdef uint32_t done = 0, part
    while done < count:
        part = count - done if count - done < FLOWS_BATCH else FLOWS_BATCH
        flows = worker.flows
        if flows != NULL:
            flows_enter(flows)
            flows_arrive(flows, seen, &frames[done], part)
        run_stages(worker, &frames[done], part, now_ns if done == 0 else worker.now_ns)
        if flows != NULL:
            flows_leave(flows, seen, &frames[done], part, micros(&worker.sessions, worker.now_ns))
            flows_exit(flows)
        done += part


cdef void translate(Worker* worker, Frame* frames, uint32_t count, uint64_t now_ns) noexcept nogil:
    """A batch, in order: each frame's bytes, length and verdict. The caller holds the worker, which is let go for moments
    in between where there are several."""
    if likely(worker.flows == NULL):
        run_stages(worker, frames, count, now_ns)
    else:
        translate_logged(worker, frames, count, now_ns)
    if DEBUG:
        assert_tables(worker)


# ---- the rest that callers need ---------------------------------------------------------------------------------------

cdef void revoke(Worker* worker, Frame* frame, uint8_t verdict) noexcept nogil:
    """A frame that was forwarded could not be delivered after all: it counts as dropped, with this verdict, and in no row."""
    if unlikely(worker.flows != NULL):
        flows_unsent(worker.flows, frame)
    take_back(worker, frame)
    worker.counters[frame.verdict] -= 1
    worker.counters[verdict] += 1
    frame.verdict = verdict


cdef uint32_t take_generated(Worker* worker, uint8_t* out, uint32_t room, uint8_t* send_to,
                             uint8_t* cause) noexcept nogil:
    """The next frame of the gateway's own: its bytes, 0: none. send_to: the Side it leaves by; cause: a Verdict."""
    cdef Frame frame
    frame.data = out
    frame.flags = 0
    frame.length = outbox_take(worker.outbox, out, room, send_to, cause)
    if unlikely(worker.flows != NULL) and frame.length:
        flows_sent(worker.flows, &frame, send_to[0], micros(&worker.sessions, worker.now_ns))
    return frame.length


assert sizeof(Flight) == 64
