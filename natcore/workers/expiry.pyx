"""Expiry and window roll-over. No packet relinks a list: the hot lines are examined in turn."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc

from natcore.log.journal cimport journal_is_short, journal_space
from natcore.tables.mappings cimport Mapping, Mappings, MappingCursor, mapping_prefetch_close, subscriber_find, subscribers_reap
from natcore.tables.ports cimport ports_reclaim
from natcore.tables.sessions cimport (
    LIFE_SOME, EXAMINED_MOST, NO_WINDOW, SESSION_FREE, TIMEOUTS, Cold, Session, Sessions, deadline_of, is_dead, mapping_life,
    is_over, session_prefetch_close, session_close, session_expire, sessions_fold, window_write,
)
from natcore.base.compiler cimport fetch_add, prefetch_write, store_relaxed64, store_release64
from natcore.base.sentinels cimport NONE, NO_LIMIT
from natcore.base.linked_list cimport link, unlink
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


cdef void free_expired_ports(Sessions* table, uint32_t addresses, uint32_t looks, uint32_t now_ms) noexcept nogil:
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
    free_expired_ports(table, SLICE_ADDRESSES, 4 * lines, now_ms)
    while lines and ended < ends:
        if table.sweep_at >= table.slots.fresh:
            table.sweep_at = 0
            store_release64(&table.complete_ns, table.swept_ns)     # every line has been examined since
            store_relaxed64(&table.swept_ns, now_ns)
            return
        slot = table.sweep_at
        session = &table.hot[slot]
        if not session.flags & SESSION_FREE:
            dead = is_over(table, slot, now_ms)
            if dead or window_over(table, session, &table.cold[slot], now_ns, False):
                if journal_is_short(table.journal):
                    return                          # resume at this line; examining it late is harmless
                if dead:
                    ended += expire(table, slot, now_ns)
                else:
                    window_write(table, slot, now_ns)
        table.sweep_at += 1
        lines -= 1


cdef int compare_due(const void* a, const void* b) noexcept nogil:
    cdef const Due* one = <const Due*>a
    cdef const Due* other = <const Due*>b
    if one.at_ns != other.at_ns:
        return -1 if one.at_ns < other.at_ns else 1
    return -1 if one.order < other.order else 1 if one.order > other.order else 0


cdef struct DueList:
    Due* due
    uint64_t count
    uint64_t size
    Sessions* tables[TABLES]    # [table_count] one per worker
    uint32_t table_count
    uint64_t now_ns             # where it is asked for


cdef void due_begin(DueList* list_, Sessions* first) noexcept nogil:
    """Starts a list for a table and those linked behind it."""
    list_.due = NULL
    list_.count = list_.size = list_.table_count = 0
    while first != NULL:
        list_.tables[list_.table_count] = first
        list_.table_count += 1
        first = first.next


cdef bint add_due(DueList* list_, uint32_t table, uint64_t at_ns, uint32_t slot, bint dead) noexcept nogil:
    """Adds an item; False: out of memory; it is left to the next sweep."""
    cdef Due* more
    if list_.count == list_.size:
        more = <Due*>realloc(list_.due, (list_.size * 2 + 1024) * sizeof(Due))
        if more == NULL:
            return False
        list_.due = more
        list_.size = list_.size * 2 + 1024
    list_.due[list_.count].at_ns = at_ns
    list_.due[list_.count].order = slot if list_.table_count == 1 else list_.tables[table].cold[slot].id_low
    list_.due[list_.count].slot = slot
    list_.due[list_.count].table = <uint16_t>table
    list_.due[list_.count].dead = dead
    list_.count += 1
    return True


cdef bint is_sorted(const DueList* list_) noexcept nogil:
    """Whether the list is sorted already, as for sessions that began together."""
    cdef uint64_t i
    for i in range(1, list_.count):
        if compare_due(&list_.due[i - 1], &list_.due[i]) > 0:
            return False
    return True


cdef bint process_due(DueList* list_, uint64_t now_ns, uint64_t rows) noexcept nogil:
    """Processes the list in (time, order) while space for rows is left; whether all was processed."""
    cdef uint64_t i = 0
    cdef const Due* due
    cdef Sessions* table
    cdef uint32_t* overflowing = &list_.tables[0].journal.overflowing
    fetch_add(overflowing, 1)
    if not is_sorted(list_):
        qsort(list_.due, list_.count, sizeof(Due), compare_due)
    while i < list_.count and rows >= 2:
        if i + 2 * AHEAD < list_.count:
            due = &list_.due[i + 2 * AHEAD]
            prefetch_write(&list_.tables[due.table].hot[due.slot])
            prefetch_write(&list_.tables[due.table].cold[due.slot])
        if i + AHEAD < list_.count and list_.due[i + AHEAD].dead:
            due = &list_.due[i + AHEAD]
            session_prefetch_close(list_.tables[due.table], due.slot)
        if i + NEAR < list_.count and list_.due[i + NEAR].dead:
            due = &list_.due[i + NEAR]
            table = list_.tables[due.table]
            mapping_prefetch_close(table.mappings, table.cold[due.slot].mapping)
        due = &list_.due[i]
        table = list_.tables[due.table]
        if due.dead:
            session_close(table, due.slot, due.at_ns, now_ns)
        else:
            window_write(table, due.slot, now_ns)
            table.hot[due.slot].window_end = <unsigned short>(now_ns // 1000000000)
        rows -= 2
        i += 1
    fetch_add(overflowing, <uint32_t>-1)
    return i == list_.count


cdef bint add_all_due(DueList* list_, uint32_t number, uint64_t at_ns, bint long_ago) noexcept nogil:
    """Adds everything of a table that is due by at_ns; False: out of memory."""
    cdef Sessions* table = list_.tables[number]
    cdef uint32_t now_ms = <uint32_t>(at_ns // 1000000), slot
    cdef Session* session
    cdef bint done = True
    assert_held(table.lock, "sessions: add_all_due")
    for slot in range(table.slots.fresh):
        session = &table.hot[slot]
        if session.flags & SESSION_FREE:
            continue
        if is_dead(table, session, now_ms):
            done = add_due(list_, number, deadline_of(table, session, at_ns), slot, True)
        elif window_over(table, session, &table.cold[slot], at_ns, long_ago):
            done = add_due(list_, number, table.cold[slot].window_start_ns + table.window_ns, slot, False)
        if not done:
            break
    return done


cdef bint sweep_all(Sessions* first, uint64_t now_ns, uint64_t rows) noexcept nogil:
    """Processes everything due by now_ns in (time, slot) order, at most rows rows; whether that was all.

    first: head of the linked tables of all workers. A window row is due at the window's end, a dead session at its deadline.
    Times are kept modulo 2^32 ms (49 days): a longer step is evaluated at the moment by which everything had ended.
    """
    cdef uint64_t swept_ns = now_ns, at_ns = now_ns
    cdef uint32_t i, now_ms
    cdef bint complete = True, long_ago = False
    cdef DueList list_
    due_begin(&list_, first)
    for i in range(list_.table_count):
        sessions_fold(list_.tables[i])
        swept_ns = min(swept_ns, list_.tables[i].swept_ns)
        long_ago = long_ago or is_long_ago(list_.tables[i], now_ns)
    if now_ns - swept_ns >= HORIZON_NS:
        at_ns = swept_ns + HORIZON_NS
    now_ms = <uint32_t>(at_ns // 1000000)
    for i in range(list_.table_count):
        complete = complete and add_all_due(&list_, i, at_ns, long_ago)
    complete = process_due(&list_, at_ns, rows) and complete
    free(list_.due)
    for i in range(list_.table_count):
        list_.tables[i].mappings.reap_at = 0
        subscribers_reap(list_.tables[i].mappings, NO_LIMIT, <uint32_t>(now_ns // 1000000))
        if complete:
            store_relaxed64(&list_.tables[i].swept_ns, now_ns)
            store_release64(&list_.tables[i].complete_ns, now_ns)
            list_.tables[i].sweep_at = 0
    if complete:
        free_expired_ports(first, NO_LIMIT, NO_LIMIT, now_ms)
    return complete


# ---- a change of time-outs -------------------------------------------------------------------------------------------

cdef void retime(Sessions* table, const uint32_t* timeout_ms, uint32_t now_ms) noexcept nogil:
    """Prepares the sessions, all of which are alive, for other time-outs by TimeoutClass, which are set next.

    A session keeps its deadline until a packet refreshes it, but is dead one new time-out from now on at the latest. The
    deadline is last_seen plus the time-out in force, so last_seen moves: it is when the time-out began, as it were.
    """
    cdef uint32_t slot, old, new, left
    cdef Session* session
    cdef uint32_t changed = 0
    assert_held(table.lock, "sessions: retime")
    sessions_fold(table)
    for slot in range(TIMEOUTS):
        changed |= table.timeout_ms[slot] ^ timeout_ms[slot]
    for slot in range(table.slots.fresh if changed else 0):
        session = &table.hot[slot]
        old, new = table.timeout_ms[session.timeout_class], timeout_ms[session.timeout_class]
        if old == new or session.flags & SESSION_FREE:
            continue
        left = old - min(old, now_ms - session.last_seen)
        session.last_seen = now_ms - (new - min(left, new))


# ---- bounded work for one packet ---------------------------------------------------------------------------------------

cdef inline void due_begin_few(DueList* list_, Sessions* table, Due* few, uint64_t now_ns) noexcept nogil:
    """A list in caller's memory. few: EXAMINED_MOST items."""
    list_.due = few
    list_.count = 0
    list_.size = EXAMINED_MOST
    list_.tables[0] = table
    list_.table_count = 1
    list_.now_ns = now_ns


cdef uint32_t expire_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil:
    """Ends the first EXAMINED_MOST sessions of a mapping without live sessions (mapping_life), in order of deadlines; how many.
    The mapping is closed with its last session."""
    cdef DueList list_
    cdef Due few[EXAMINED_MOST]
    cdef uint32_t first = table.mappings.mappings[number].first, slot = first
    due_begin_few(&list_, table, few, now_ns)
    while slot != NONE and list_.count < EXAMINED_MOST:
        add_due(&list_, 0, deadline_of(table, &table.hot[slot], now_ns), slot, True)
        slot = table.by_mapping[slot].next
        if slot == first:
            break
    process_due(&list_, now_ns, <uint64_t>-1)
    return <uint32_t>list_.count


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


cdef void add_dead_of(DueList* list_, Mapping* mapping, uint32_t* count, uint32_t most) noexcept nogil:
    """Adds dead sessions among the next of a mapping, until `count` examined ones reach `most` or the mapping's total."""
    cdef Sessions* table = list_.tables[0]
    cdef uint32_t slot = mapping.first
    if slot == NONE:
        return
    while count[0] < most and count[0] < mapping.sessions:
        count[0] += 1
        if is_over(table, slot, <uint32_t>(list_.now_ns // 1000000)):
            add_due(list_, 0, deadline_of(table, &table.hot[slot], list_.now_ns), slot, True)
        slot = table.by_mapping[slot].next
    mapping.first = slot


cdef void reclaim_mapping(Sessions* table, uint32_t number, uint64_t now_ns) noexcept nogil:
    """Ends dead sessions among the next EXAMINED_MOST of a mapping; the next call continues behind them."""
    cdef DueList list_
    cdef Due few[EXAMINED_MOST]
    cdef uint32_t count = 0
    due_begin_few(&list_, table, few, now_ns)
    add_dead_of(&list_, &table.mappings.mappings[number], &count, EXAMINED_MOST)
    process_due(&list_, now_ns, <uint64_t>-1)


cdef void reclaim_subscriber(Sessions* table, uint32_t inside_ip, uint64_t now_ns) noexcept nogil:
    """Ends dead sessions among the next EXAMINED_MOST of a subscriber, mapping by mapping."""
    cdef Mappings* mappings = table.mappings
    cdef DueList list_
    cdef Due few[EXAMINED_MOST]
    cdef uint32_t who = subscriber_find(mappings, inside_ip), left = EXAMINED_MOST, begin, number, before
    cdef MappingCursor* own
    if who == NONE or mappings.cursors == NULL or mappings.cursors[who].first == NONE:
        return
    own = &mappings.cursors[who]
    due_begin_few(&list_, table, few, now_ns)
    begin = number = own.first
    while True:
        before = own.examined
        add_dead_of(&list_, &mappings.mappings[number], &own.examined, before + left)
        left -= own.examined - before
        if own.examined >= mappings.mappings[number].sessions:
            number = mappings.by_subscriber[number].next
            own.examined = 0
        if left == 0 or number == begin:
            break
    own.first = number
    process_due(&list_, now_ns, <uint64_t>-1)


cdef bint reclaim_lines(Sessions* first, uint32_t* table_at, uint32_t* line_at, uint64_t now_ns) noexcept nogil:
    """Ends dead sessions in the next RECLAIM_LINES lines of all workers' tables, EXAMINED_MOST at most; whether all those lines
    were examined.

    table_at, line_at: cursor, kept by the caller. Subscribers kept for their rate counter are reaped too.
    """
    cdef DueList list_
    cdef Due few[EXAMINED_MOST]
    cdef Sessions* table
    cdef uint64_t lines = 0
    cdef uint32_t now_ms = <uint32_t>(now_ns // 1000000), left, i
    due_begin(&list_, first)
    list_.due = few
    list_.size = EXAMINED_MOST
    for i in range(list_.table_count):
        lines += list_.tables[i].slots.fresh
        subscribers_reap(list_.tables[i].mappings, RECLAIM_LINES, now_ms)
    left = RECLAIM_LINES if lines > RECLAIM_LINES else <uint32_t>lines
    while left and list_.count < EXAMINED_MOST:
        table = list_.tables[table_at[0]]
        if line_at[0] >= table.slots.fresh:
            line_at[0] = 0
            table_at[0] = table_at[0] + 1 if table_at[0] + 1 < list_.table_count else 0
            continue
        if not table.hot[line_at[0]].flags & SESSION_FREE and is_over(table, line_at[0], now_ms):
            add_due(&list_, table_at[0], deadline_of(table, &table.hot[line_at[0]], now_ns), line_at[0], True)
        line_at[0] += 1
        left -= 1
    process_due(&list_, now_ns, <uint64_t>-1)
    return left == 0


cdef uint64_t close_windows(Sessions* first, uint64_t now_ns, bint losing) noexcept nogil:
    """Closes every open window with a row that ends now; sessions continue, dead ones end (contract R10).

    Returns how many remain open for lack of space in the journal. losing: none, rows without space are lost and counted.
    first: head of the linked tables of all workers.
    """
    cdef uint64_t left = 0, rows = <uint64_t>-1 if losing else journal_space(first.journal)
    cdef uint32_t slot
    cdef Sessions* table = first
    if not sweep_all(first, now_ns, rows):
        while table != NULL:
            left += table.slots.live
            table = table.next
        return left
    rows = <uint64_t>-1 if losing else journal_space(first.journal)
    while table != NULL:
        for slot in range(table.slots.fresh):
            if not table.hot[slot].flags & (SESSION_FREE | NO_WINDOW):
                if rows == 0:
                    left += 1
                    continue
                window_write(table, slot, now_ns)
                table.hot[slot].window_end = <unsigned short>(now_ns // 1000000000)
                rows -= 1
        table = table.next
    return left
