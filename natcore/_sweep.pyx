"""Expiry and window roll-over: nothing is relinked by a packet, so the lines are looked at in turn."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc

from natcore._journal cimport journal_is_short, journal_room
from natcore._mappings cimport subscribers_reap
from natcore._ports cimport ports_reclaim
from natcore._sessions cimport (
    NO_WINDOW, Cold, Session, Sessions, deadline_of, is_dead, mapping_alive, session_approach, session_close,
    session_expire, window_write,
)
from natcore.hints cimport prefetch_write
from natcore.index cimport NONE


cdef uint64_t HORIZON_NS = 2100000 * <uint64_t>1000000000   # a time-out and a hold-down are 10^6 s each at most


cdef enum:
    AHEAD = 6                   # ends that are prepared while one is carried out

cdef struct Due:
    uint64_t at_ns
    uint32_t slot
    uint32_t dead               # else its window is over


cdef bint window_over(const Sessions* table, Session* session, const Cold* cold, uint64_t now_ns,
                      bint long_ago) noexcept nogil:
    """Whether an open window ended by now_ns. A window_end that passed a while ago is moved, since it is modulo 2^16 s.

    long_ago: the last sweep is so far back that window_end alone cannot tell before from after.
    """
    cdef unsigned short seconds = <unsigned short>(now_ns // 1000000000)
    cdef int elapsed = <short>(seconds - session.window_end)
    if session.flags & NO_WINDOW:
        if elapsed > 4096 or long_ago:
            session.window_end = seconds
        return False
    return (elapsed >= 0 or long_ago) and now_ns >= cold.window_start_ns + table.window_ns


cdef void sweep_slice(Sessions* table, uint32_t lines, uint64_t now_ns) noexcept nogil:
    """Looks at the next lines; dead sessions end, windows that are over are written, as long as their rows find room."""
    cdef uint32_t now_ms = <uint32_t>(now_ns // 1000000), slot
    cdef Session* session
    cdef bint dead
    while lines:
        if table.sweep_at >= table.slots.fresh:
            table.sweep_at = 0
            table.swept_ns = now_ns
            ports_reclaim(&table.mappings.ports, now_ms)
            subscribers_reap(table.mappings, now_ms)
            return
        slot = table.sweep_at
        session = &table.hot[slot]
        if session.protocol:
            dead = is_dead(table, session, now_ms)
            if dead or window_over(table, session, &table.cold[slot], now_ns, False):
                if journal_is_short(table.journal):
                    return                          # this line is the next one: it comes to no harm by a late sweep
                if dead:
                    expire(table, slot, now_ns)
                else:
                    window_write(table, slot, now_ns)
        table.sweep_at += 1
        lines -= 1


cdef int sooner(const void* a, const void* b) noexcept nogil:
    cdef const Due* one = <const Due*>a
    cdef const Due* other = <const Due*>b
    if one.at_ns != other.at_ns:
        return -1 if one.at_ns < other.at_ns else 1
    return -1 if one.slot < other.slot else 1 if one.slot > other.slot else 0


cdef struct Agenda:
    Due* due
    uint64_t count
    uint64_t size


cdef bint note(Agenda* agenda, uint64_t at_ns, uint32_t slot, bint dead) noexcept nogil:
    """False: out of memory; what is not noted comes with the next sweep."""
    cdef Due* more
    if agenda.count == agenda.size:
        more = <Due*>realloc(agenda.due, (agenda.size * 2 + 1024) * sizeof(Due))
        if more == NULL:
            return False
        agenda.due = more
        agenda.size = agenda.size * 2 + 1024
    agenda.due[agenda.count].at_ns = at_ns
    agenda.due[agenda.count].slot = slot
    agenda.due[agenda.count].dead = dead
    agenda.count += 1
    return True


cdef bint is_in_order(const Agenda* agenda) noexcept nogil:
    """Sessions that began together often are."""
    cdef uint64_t i
    for i in range(1, agenda.count):
        if sooner(&agenda.due[i - 1], &agenda.due[i]) > 0:
            return False
    return True


cdef bint carry_out(Sessions* table, Agenda* agenda, uint64_t now_ns, uint64_t room) noexcept nogil:
    """What is noted, in (time, slot) order, while there is room for its rows; whether that was all."""
    cdef uint64_t i = 0
    cdef uint32_t widened = table.journal.widened
    table.journal.widened = 1
    if not is_in_order(agenda):
        qsort(agenda.due, agenda.count, sizeof(Due), sooner)
    while i < agenda.count and room >= 2:
        if i + 2 * AHEAD < agenda.count:
            prefetch_write(&table.hot[agenda.due[i + 2 * AHEAD].slot])
            prefetch_write(&table.cold[agenda.due[i + 2 * AHEAD].slot])
        if i + AHEAD < agenda.count and agenda.due[i + AHEAD].dead:
            session_approach(table, agenda.due[i + AHEAD].slot)
        if agenda.due[i].dead:
            session_close(table, agenda.due[i].slot, agenda.due[i].at_ns, now_ns)
        else:
            window_write(table, agenda.due[i].slot, now_ns)
            table.hot[agenda.due[i].slot].window_end = <unsigned short>(now_ns // 1000000000)
        room -= 2
        i += 1
    table.journal.widened = widened
    free(agenda.due)
    return i == agenda.count


cdef bint sweep_all(Sessions* table, uint64_t now_ns, uint64_t room) noexcept nogil:
    """Everything that is due by now_ns, in (time, slot) order, but no more than room rows; whether that was all.

    A row of a session that lives on is due at its window's end; of one that died at its deadline. Times are kept
    modulo 2^32 ms (49 days): a step further than that is looked at from where everything has just ended.
    """
    cdef uint64_t since_ns = now_ns - table.swept_ns
    cdef uint64_t at_ns = now_ns if since_ns < HORIZON_NS else table.swept_ns + HORIZON_NS
    cdef Agenda agenda
    cdef uint32_t now_ms = <uint32_t>(at_ns // 1000000), slot
    cdef Session* session
    cdef bint complete = True, long_ago = is_long_ago(table, now_ns)
    agenda.due = NULL
    agenda.count = agenda.size = 0
    for slot in range(table.slots.fresh):
        session = &table.hot[slot]
        if not session.protocol:
            continue
        if is_dead(table, session, now_ms):
            complete = note(&agenda, deadline_of(table, session, at_ns), slot, True)
        elif window_over(table, session, &table.cold[slot], at_ns, long_ago):
            complete = note(&agenda, table.cold[slot].window_start_ns + table.window_ns, slot, False)
        if not complete:
            break
    complete = carry_out(table, &agenda, at_ns, room) and complete
    subscribers_reap(table.mappings, <uint32_t>(now_ns // 1000000))
    if complete:
        table.swept_ns = now_ns
        ports_reclaim(&table.mappings.ports, now_ms)
    return complete


cdef void expire_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil:
    """Ends a mapping that has no live session, with all it has, in the order of their ends."""
    cdef Agenda agenda
    cdef uint32_t slot = table.mappings.mappings[number].first, after
    agenda.due = NULL
    agenda.count = agenda.size = 0
    while slot != NONE:
        after = table.by_mapping[slot].next
        if not note(&agenda, deadline_of(table, &table.hot[slot], now_ns), slot, True):
            session_expire(table, slot, now_ns)
        slot = after
    carry_out(table, &agenda, now_ns, <uint64_t>-1)


cdef void expire(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil:
    """Ends a dead session; with its mapping, if nothing of that lives, so that the port rests from the last end on."""
    cdef uint32_t number = table.cold[slot].mapping
    if mapping_alive(table, number, <uint32_t>(now_ns // 1000000)):
        session_expire(table, slot, now_ns)
    else:
        expire_mapping(table, number, now_ns)


cdef uint64_t close_windows(Sessions* table, uint64_t now_ns, bint losing) noexcept nogil:
    """Writes every open window as a partial row that ends now; the sessions go on, but for what is dead (contract R10).

    How many are open still, since the journal had no room for them. losing: none, their rows are lost and counted.
    """
    cdef uint64_t left = 0, room = <uint64_t>-1 if losing else journal_room(table.journal)
    cdef uint32_t slot
    if not sweep_all(table, now_ns, room):
        return table.slots.live
    room = <uint64_t>-1 if losing else journal_room(table.journal)
    for slot in range(table.slots.fresh):
        if table.hot[slot].protocol and not table.hot[slot].flags & NO_WINDOW:
            if room == 0:
                left += 1
                continue
            window_write(table, slot, now_ns)
            table.hot[slot].window_end = <unsigned short>(now_ns // 1000000000)
            room -= 1
    return left
