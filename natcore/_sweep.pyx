"""Expiry and window roll-over: nothing is relinked by a packet, so the lines are looked at in turn."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc

from natcore._journal cimport journal_is_short, journal_room
from natcore._mappings cimport mapping_approach_end, subscribers_reap
from natcore._ports cimport ports_reclaim
from natcore._sessions cimport (
    NO_WINDOW, SESSION_FREE, Cold, Session, Sessions, deadline_of, is_dead, mapping_alive, session_approach,
    session_close, session_expire, window_write,
)
from natcore.hints cimport fetch_add, prefetch_write
from natcore.index cimport NONE
from natcore.spin cimport spin_lock, spin_unlock


cdef uint64_t HORIZON_NS = 2100000 * <uint64_t>1000000000   # a time-out and a hold-down are 10^6 s each at most


cdef enum:
    AHEAD = 6                   # ends that are prepared while one is carried out
    NEAR = 3                    # and their mappings'
    TABLES = 64

cdef struct Due:
    uint64_t at_ns
    uint32_t order              # among those of one moment: slot; of several tables: the session's number
    uint32_t slot
    uint16_t table              # number in its agenda
    uint16_t dead               # else its window is over


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


cdef void free_rested(Sessions* table, uint32_t now_ms) noexcept nogil:
    """Ports whose hold-down is over may be drawn again."""
    spin_lock(&table.mappings.ports.spin)
    ports_reclaim(table.mappings.ports, now_ms)
    spin_unlock(&table.mappings.ports.spin)


cdef void sweep_slice(Sessions* table, uint32_t lines, uint64_t now_ns) noexcept nogil:
    """Looks at the next lines; dead sessions end, windows that are over are written, as long as their rows find room."""
    cdef uint32_t now_ms = <uint32_t>(now_ns // 1000000), slot
    cdef Session* session
    cdef bint dead
    while lines:
        if table.sweep_at >= table.slots.fresh:
            table.sweep_at = 0
            table.swept_ns = now_ns
            free_rested(table, now_ms)
            subscribers_reap(table.mappings, now_ms)
            return
        slot = table.sweep_at
        session = &table.hot[slot]
        if not session.flags & SESSION_FREE:
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
    return -1 if one.order < other.order else 1 if one.order > other.order else 0


cdef struct Agenda:
    Due* due
    uint64_t count
    uint64_t size
    Sessions* tables[TABLES]    # [table_count] one for each worker, from the first on
    uint32_t table_count


cdef void agenda_begin(Agenda* agenda, Sessions* first) noexcept nogil:
    """Of a table and those behind it."""
    agenda.due = NULL
    agenda.count = agenda.size = agenda.table_count = 0
    while first != NULL:
        agenda.tables[agenda.table_count] = first
        agenda.table_count += 1
        first = first.next


cdef bint note(Agenda* agenda, uint32_t table, uint64_t at_ns, uint32_t slot, bint dead) noexcept nogil:
    """False: out of memory; what is not noted comes with the next sweep."""
    cdef Due* more
    if agenda.count == agenda.size:
        more = <Due*>realloc(agenda.due, (agenda.size * 2 + 1024) * sizeof(Due))
        if more == NULL:
            return False
        agenda.due = more
        agenda.size = agenda.size * 2 + 1024
    agenda.due[agenda.count].at_ns = at_ns
    agenda.due[agenda.count].order = slot if agenda.table_count == 1 else agenda.tables[table].cold[slot].id_low
    agenda.due[agenda.count].slot = slot
    agenda.due[agenda.count].table = <uint16_t>table
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


cdef bint carry_out(Agenda* agenda, uint64_t now_ns, uint64_t room) noexcept nogil:
    """What is noted, in (time, order), while there is room for its rows; whether that was all."""
    cdef uint64_t i = 0
    cdef const Due* due
    cdef Sessions* table
    cdef uint32_t* widened = &agenda.tables[0].journal.widened
    fetch_add(widened, 1)
    if not is_in_order(agenda):
        qsort(agenda.due, agenda.count, sizeof(Due), sooner)
    while i < agenda.count and room >= 2:
        if i + 2 * AHEAD < agenda.count:
            due = &agenda.due[i + 2 * AHEAD]
            prefetch_write(&agenda.tables[due.table].hot[due.slot])
            prefetch_write(&agenda.tables[due.table].cold[due.slot])
        if i + AHEAD < agenda.count and agenda.due[i + AHEAD].dead:
            due = &agenda.due[i + AHEAD]
            session_approach(agenda.tables[due.table], due.slot)
        if i + NEAR < agenda.count and agenda.due[i + NEAR].dead:
            due = &agenda.due[i + NEAR]
            table = agenda.tables[due.table]
            mapping_approach_end(table.mappings, table.cold[due.slot].mapping)
        due = &agenda.due[i]
        table = agenda.tables[due.table]
        if due.dead:
            session_close(table, due.slot, due.at_ns, now_ns)
        else:
            window_write(table, due.slot, now_ns)
            table.hot[due.slot].window_end = <unsigned short>(now_ns // 1000000000)
        room -= 2
        i += 1
    fetch_add(widened, <uint32_t>-1)
    free(agenda.due)
    return i == agenda.count


cdef bint note_due(Agenda* agenda, uint32_t number, uint64_t at_ns, bint long_ago) noexcept nogil:
    """Notes everything of a table that is due by a moment; False: out of memory."""
    cdef Sessions* table = agenda.tables[number]
    cdef uint32_t now_ms = <uint32_t>(at_ns // 1000000), slot
    cdef Session* session
    cdef bint done = True
    for slot in range(table.slots.fresh):
        session = &table.hot[slot]
        if session.flags & SESSION_FREE:
            continue
        if is_dead(table, session, now_ms):
            done = note(agenda, number, deadline_of(table, session, at_ns), slot, True)
        elif window_over(table, session, &table.cold[slot], at_ns, long_ago):
            done = note(agenda, number, table.cold[slot].window_start_ns + table.window_ns, slot, False)
        if not done:
            break
    return done


cdef bint sweep_all(Sessions* first, uint64_t now_ns, uint64_t room) noexcept nogil:
    """Everything that is due by now_ns, in (time, slot) order, but no more than room rows; whether that was all.

    first: of the tables of all workers. A row of a session that lives on is due at its window's end; of one that died at
    its deadline. Times are kept modulo 2^32 ms (49 days): a step further than that is looked at from where everything has
    just ended.
    """
    cdef uint64_t swept_ns = now_ns, at_ns = now_ns
    cdef uint32_t i, now_ms
    cdef bint complete = True, long_ago = False
    cdef Agenda agenda
    agenda_begin(&agenda, first)
    for i in range(agenda.table_count):
        swept_ns = min(swept_ns, agenda.tables[i].swept_ns)
        long_ago = long_ago or is_long_ago(agenda.tables[i], now_ns)
    if now_ns - swept_ns >= HORIZON_NS:
        at_ns = swept_ns + HORIZON_NS
    now_ms = <uint32_t>(at_ns // 1000000)
    for i in range(agenda.table_count):
        complete = complete and note_due(&agenda, i, at_ns, long_ago)
    complete = carry_out(&agenda, at_ns, room) and complete
    for i in range(agenda.table_count):
        subscribers_reap(agenda.tables[i].mappings, <uint32_t>(now_ns // 1000000))
        if complete:
            agenda.tables[i].swept_ns = now_ns
    if complete:
        free_rested(first, now_ms)
    return complete


cdef void expire_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil:
    """Ends a mapping that has no live session, with all it has, in the order of their ends."""
    cdef Agenda agenda
    cdef uint32_t slot = table.mappings.mappings[number].first, after
    agenda.due = NULL
    agenda.count = agenda.size = 0
    agenda.tables[0] = table
    agenda.table_count = 1
    while slot != NONE:
        after = table.by_mapping[slot].next
        if not note(&agenda, 0, deadline_of(table, &table.hot[slot], now_ns), slot, True):
            session_expire(table, slot, now_ns)
        slot = after
    carry_out(&agenda, now_ns, <uint64_t>-1)


cdef void expire(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil:
    """Ends a dead session; with its mapping, if nothing of that lives, so that the port rests from the last end on."""
    cdef uint32_t number = table.cold[slot].mapping
    if mapping_alive(table, number, <uint32_t>(now_ns // 1000000)):
        session_expire(table, slot, now_ns)
    else:
        expire_mapping(table, number, now_ns)


cdef uint64_t close_windows(Sessions* first, uint64_t now_ns, bint losing) noexcept nogil:
    """Writes every open window as a partial row that ends now; the sessions go on, but for what is dead (contract R10).

    How many are open still, since the journal had no room for them. losing: none, their rows are lost and counted.
    first: of the tables of all workers.
    """
    cdef uint64_t left = 0, room = <uint64_t>-1 if losing else journal_room(first.journal)
    cdef uint32_t slot
    cdef Sessions* table = first
    if not sweep_all(first, now_ns, room):
        while table != NULL:
            left += table.slots.live
            table = table.next
        return left
    room = <uint64_t>-1 if losing else journal_room(first.journal)
    while table != NULL:
        for slot in range(table.slots.fresh):
            if not table.hot[slot].flags & (SESSION_FREE | NO_WINDOW):
                if room == 0:
                    left += 1
                    continue
                window_write(table, slot, now_ns)
                table.hot[slot].window_end = <unsigned short>(now_ns // 1000000000)
                room -= 1
        table = table.next
    return left
