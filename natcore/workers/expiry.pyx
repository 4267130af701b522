"""Expiry and window roll-over. No packet relinks a list: the hot lines are examined in turn."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc

from natcore.log.journal cimport journal_is_short, journal_room
from natcore.tables.mappings cimport Mapping, Mappings, Own, mapping_approach_end, subscriber_find, subscribers_reap
from natcore.tables.ports cimport ports_reclaim
from natcore.tables.sessions cimport (
    LIFE_SOME, LOOKED_AT, NO_WINDOW, SESSION_FREE, Cold, Session, Sessions, deadline_of, is_dead, mapping_life,
    session_approach, session_close, session_expire, window_write,
)
from natcore.base.compiler cimport fetch_add, prefetch_write, store_relaxed64, store_release64
from natcore.base.hash_table cimport NONE
from natcore.base.linked_list cimport NO_LINK, link, unlink
from natcore.base.lock_checker cimport assert_held
from natcore.base.spinlock cimport spin_lock, spin_unlock


cdef uint64_t HORIZON_NS = 2100000 * <uint64_t>1000000000   # time-out and hold-down are 10^6 s each at most


cdef enum:
    AHEAD = 6                   # ends that are prefetched ahead of the current one
    NEAR = 3                    # and their mappings
    TABLES = 64
    SLICE_ADDRESSES = 4         # outside addresses that one slice reclaims ports of
    RECLAIM_LINES = 2048        # lines that one refusal examines

cdef struct Due:
    uint64_t at_ns
    uint32_t order              # tie-break at one moment: slot; with several tables the session number
    uint32_t slot
    uint16_t table              # index into DueList.tables
    uint16_t dead               # 1: the session expires; 0: its window ends


cdef bint window_over(const Sessions* table, Session* session, const Cold* cold, uint64_t now_ns,
                      bint long_ago) noexcept nogil:
    """Whether an open window ended by now_ns. Moves a stale window_end of a closed one along, since it is modulo 2^16 s.

    long_ago: the last sweep is so far back that window_end alone cannot tell before from after.
    """
    cdef unsigned short seconds = <unsigned short>(now_ns // 1000000000)
    cdef int elapsed = <short>(seconds - session.window_end)
    if session.flags & NO_WINDOW:
        if elapsed > 4096 or long_ago:
            session.window_end = seconds
        return False
    return (elapsed >= 0 or long_ago) and now_ns >= cold.window_start_ns + table.window_ns


cdef void free_rested(Sessions* table, uint32_t addresses, uint32_t looks, uint32_t now_ms) noexcept nogil:
    """Frees ports of the next outside addresses with an expired hold-down. looks: as for ports_reclaim."""
    spin_lock(&table.mappings.ports.spin)
    ports_reclaim(table.mappings.ports, addresses, looks, now_ms)
    spin_unlock(&table.mappings.ports.spin)


cdef void sweep_slice(Sessions* table, uint32_t lines, uint32_t ends, uint64_t now_ns) noexcept nogil:
    """Examines the next lines in order of slots: ends dead sessions and writes expired windows, while the journal has space
    for their rows.

    Examining a line late is harmless: the slice stops after `ends` ended sessions.
    """
    cdef uint32_t now_ms = <uint32_t>(now_ns // 1000000), slot, ended = 0
    cdef Session* session
    cdef bint dead
    assert_held(table.lock, "sessions: sweep_slice")
    subscribers_reap(table.mappings, lines, now_ms)
    free_rested(table, SLICE_ADDRESSES, 4 * lines, now_ms)
    while lines and ended < ends:
        if table.sweep_at >= table.slots.fresh:
            table.sweep_at = 0
            store_release64(&table.complete_ns, table.swept_ns)     # every line has been examined since
            store_relaxed64(&table.swept_ns, now_ns)
            return
        slot = table.sweep_at
        session = &table.hot[slot]
        if not session.flags & SESSION_FREE:
            dead = is_dead(table, session, now_ms)
            if dead or window_over(table, session, &table.cold[slot], now_ns, False):
                if journal_is_short(table.journal):
                    return                          # resume at this line; examining it late is harmless
                if dead:
                    ended += expire(table, slot, now_ns)
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
    Sessions* tables[TABLES]    # [table_count] one per worker
    uint32_t table_count
    uint64_t now_ns             # where it is asked for


cdef void agenda_begin(Agenda* agenda, Sessions* first) noexcept nogil:
    """Starts a list for a table and those linked behind it."""
    agenda.due = NULL
    agenda.count = agenda.size = agenda.table_count = 0
    while first != NULL:
        agenda.tables[agenda.table_count] = first
        agenda.table_count += 1
        first = first.next


cdef bint note(Agenda* agenda, uint32_t table, uint64_t at_ns, uint32_t slot, bint dead) noexcept nogil:
    """Adds an item; False: out of memory; it is left to the next sweep."""
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
    """Whether the list is sorted already, as for sessions that began together."""
    cdef uint64_t i
    for i in range(1, agenda.count):
        if sooner(&agenda.due[i - 1], &agenda.due[i]) > 0:
            return False
    return True


cdef void put_in_order(Agenda* agenda) noexcept nogil:
    """Insertion sort, for short lists."""
    cdef uint64_t i, at
    cdef Due one
    for i in range(1, agenda.count):
        one = agenda.due[i]
        at = i
        while at and sooner(&one, &agenda.due[at - 1]) < 0:
            agenda.due[at] = agenda.due[at - 1]
            at -= 1
        agenda.due[at] = one


cdef bint carry_out(Agenda* agenda, uint64_t now_ns, uint64_t room) noexcept nogil:
    """Processes the list in (time, order) while space for rows is left; whether all was processed."""
    cdef uint64_t i = 0
    cdef const Due* due
    cdef Sessions* table
    cdef uint32_t* widened = &agenda.tables[0].journal.widened
    fetch_add(widened, 1)
    if agenda.count <= LOOKED_AT:
        put_in_order(agenda)
    elif not is_in_order(agenda):
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
    return i == agenda.count


cdef bint note_due(Agenda* agenda, uint32_t number, uint64_t at_ns, bint long_ago) noexcept nogil:
    """Adds everything of a table that is due by at_ns; False: out of memory."""
    cdef Sessions* table = agenda.tables[number]
    cdef uint32_t now_ms = <uint32_t>(at_ns // 1000000), slot
    cdef Session* session
    cdef bint done = True
    assert_held(table.lock, "sessions: note_due")
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
    """Processes everything due by now_ns in (time, slot) order, at most room rows; whether that was all.

    first: head of the linked tables of all workers. A window row is due at the window's end, a dead session at its deadline.
    Times are kept modulo 2^32 ms (49 days): a longer step is evaluated at the moment by which everything had ended.
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
    free(agenda.due)
    for i in range(agenda.table_count):
        agenda.tables[i].mappings.reap_at = 0
        subscribers_reap(agenda.tables[i].mappings, NONE, <uint32_t>(now_ns // 1000000))
        if complete:
            store_relaxed64(&agenda.tables[i].swept_ns, now_ns)
            store_release64(&agenda.tables[i].complete_ns, now_ns)
            agenda.tables[i].sweep_at = 0
    if complete:
        free_rested(first, NONE, NONE, now_ms)
    return complete


# ---- bounded work for one packet ---------------------------------------------------------------------------------------

cdef inline void agenda_of_few(Agenda* agenda, Sessions* table, Due* few, uint64_t now_ns) noexcept nogil:
    """A list in caller's memory. few: LOOKED_AT items."""
    agenda.due = few
    agenda.count = 0
    agenda.size = LOOKED_AT
    agenda.tables[0] = table
    agenda.table_count = 1
    agenda.now_ns = now_ns


cdef uint32_t expire_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil:
    """Ends the first LOOKED_AT sessions of a mapping without live sessions (mapping_life), in order of deadlines; how many.
    The mapping is closed with its last session."""
    cdef Agenda agenda
    cdef Due few[LOOKED_AT]
    cdef uint32_t first = table.mappings.mappings[number].first, slot = first
    agenda_of_few(&agenda, table, few, now_ns)
    while slot != NO_LINK and agenda.count < LOOKED_AT:
        note(&agenda, 0, deadline_of(table, &table.hot[slot], now_ns), slot, True)
        slot = table.by_mapping[slot].next
        if slot == first:
            break
    carry_out(&agenda, now_ns, <uint64_t>-1)
    return <uint32_t>agenda.count


cdef uint32_t expire(Sessions* table, uint32_t slot, uint64_t now_ns) noexcept nogil:
    """Ends a dead session; if its mapping has no live session, the mapping's other dead sessions too, so that rows are in
    order of deadlines. How many ended."""
    cdef uint32_t number = table.cold[slot].mapping
    cdef uint32_t* first = &table.mappings.mappings[number].first
    if mapping_life(table, number, <uint32_t>(now_ns // 1000000)) == LIFE_SOME:
        session_expire(table, slot, now_ns)
        return 1
    unlink(table.by_mapping, first, slot)           # put it first, since expire_mapping ends a limited number
    link(table.by_mapping, first, slot)
    return expire_mapping(table, number, now_ns)


cdef void look_along(Agenda* agenda, Mapping* mapping, uint32_t* count, uint32_t most) noexcept nogil:
    """Adds dead sessions among the next of a mapping, until `count` examined ones reach `most` or the mapping's total."""
    cdef Sessions* table = agenda.tables[0]
    cdef uint32_t slot = mapping.first
    if slot == NO_LINK:
        return
    while count[0] < most and count[0] < mapping.sessions:
        count[0] += 1
        if is_dead(table, &table.hot[slot], <uint32_t>(agenda.now_ns // 1000000)):
            note(agenda, 0, deadline_of(table, &table.hot[slot], agenda.now_ns), slot, True)
        slot = table.by_mapping[slot].next
    mapping.first = slot


cdef void reclaim_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil:
    """Ends dead sessions among the next LOOKED_AT of a mapping; the next call continues behind them."""
    cdef Agenda agenda
    cdef Due few[LOOKED_AT]
    cdef uint32_t count = 0
    agenda_of_few(&agenda, table, few, now_ns)
    look_along(&agenda, &table.mappings.mappings[number], &count, LOOKED_AT)
    carry_out(&agenda, now_ns, <uint64_t>-1)


cdef void reclaim_subscriber(Sessions* table, uint32_t inside_ip, uint64_t now_ns) noexcept nogil:
    """Ends dead sessions among the next LOOKED_AT of a subscriber, mapping by mapping."""
    cdef Mappings* mappings = table.mappings
    cdef Agenda agenda
    cdef Due few[LOOKED_AT]
    cdef uint32_t who = subscriber_find(mappings, inside_ip), left = LOOKED_AT, begin, number, before
    cdef Own* own
    if who == NONE or mappings.of_subscriber == NULL or mappings.of_subscriber[who].first == NO_LINK:
        return
    own = &mappings.of_subscriber[who]
    agenda_of_few(&agenda, table, few, now_ns)
    begin = number = own.first
    while True:
        before = own.looked_at
        look_along(&agenda, &mappings.mappings[number], &own.looked_at, before + left)
        left -= own.looked_at - before
        if own.looked_at >= mappings.mappings[number].sessions:
            number = mappings.by_subscriber[number].next
            own.looked_at = 0
        if left == 0 or number == begin:
            break
    own.first = number
    carry_out(&agenda, now_ns, <uint64_t>-1)


cdef bint reclaim_lines(Sessions* first, uint32_t* table_at, uint32_t* line_at, uint64_t now_ns) noexcept nogil:
    """Ends dead sessions in the next RECLAIM_LINES lines of all workers' tables, LOOKED_AT at most; whether all those lines
    were examined.

    table_at, line_at: cursor, kept by the caller. Subscribers kept for their rate counter are reaped too.
    """
    cdef Agenda agenda
    cdef Due few[LOOKED_AT]
    cdef Sessions* table
    cdef uint64_t lines = 0
    cdef uint32_t now_ms = <uint32_t>(now_ns // 1000000), left, i
    agenda_begin(&agenda, first)
    agenda.due = few
    agenda.size = LOOKED_AT
    for i in range(agenda.table_count):
        lines += agenda.tables[i].slots.fresh
        subscribers_reap(agenda.tables[i].mappings, RECLAIM_LINES, now_ms)
    left = RECLAIM_LINES if lines > RECLAIM_LINES else <uint32_t>lines
    while left and agenda.count < LOOKED_AT:
        table = agenda.tables[table_at[0]]
        if line_at[0] >= table.slots.fresh:
            line_at[0] = 0
            table_at[0] = table_at[0] + 1 if table_at[0] + 1 < agenda.table_count else 0
            continue
        if not table.hot[line_at[0]].flags & SESSION_FREE and is_dead(table, &table.hot[line_at[0]], now_ms):
            note(&agenda, table_at[0], deadline_of(table, &table.hot[line_at[0]], now_ns), line_at[0], True)
        line_at[0] += 1
        left -= 1
    carry_out(&agenda, now_ns, <uint64_t>-1)
    return left == 0


cdef uint64_t close_windows(Sessions* first, uint64_t now_ns, bint losing) noexcept nogil:
    """Closes every open window with a row that ends now; sessions continue, dead ones end (contract R10).

    Returns how many remain open for lack of space in the journal. losing: none, rows without space are lost and counted.
    first: head of the linked tables of all workers.
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
