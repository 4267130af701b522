"""Applies the rows of the stream to a standby's tables.

Theory of operation. A row is what is true of a slot of the active gateway since it was taken. So whatever stands against it in
the tables is outdated and makes way (its own end, or what became of it, is in a row to come): the session that the slot had
before, one with the same key, a mapping that has the port or the inside endpoint, a hold-down, a block of another subscriber.
Applying rows twice, or only those of the last cycle, leads to the same tables.

Sessions are opened, ended and placed as by packets (session_open, session_forget, mapping_open_given), so that all counts and
indexes follow; but without rows of the session log, which is the active gateway's, and in slots of the standby's own: `places`
says where. A row may be from anywhere: every number in it is checked before it is used as an index. After a refusal the tables
are sound, but no longer those of the active gateway, and the caller begins anew.

Lock. All workers.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from natcore.workers.peer_rows cimport PeerHeldDown, PeerRefresh, PeerSession
from natcore.workers.worker cimport Shared

cdef struct Place:              # where a slot of the active gateway is here
    uint64_t id                 # number of its session; another session has taken the place: it is outdated
    uint32_t worker
    uint32_t slot

cdef struct Standby:
    Shared* shared
    Place** places              # [workers][capacity]
    uint32_t workers            # of the active gateway
    uint32_t capacity           # slots of each
    const uint8_t* entries      # EntryKind by the number of an entry
    uint32_t entry_count
    uint64_t now_ns             # the active gateway's clock
    uint64_t created            # the highest number of a session in a row
    uint64_t evicted            # sessions that made way for a row

cdef bint standby_new(Standby* standby, Shared* shared, uint32_t workers, uint32_t capacity) noexcept nogil
cdef void standby_delete(Standby* standby) noexcept nogil
cdef const char* apply_end(Standby* standby, uint32_t worker, uint32_t slot) noexcept nogil
cdef const char* apply_session(Standby* standby, uint32_t worker, const PeerSession* row) noexcept nogil
cdef const char* apply_refresh(Standby* standby, uint32_t worker, const PeerRefresh* row) noexcept nogil
cdef const char* apply_held_down(Standby* standby, const PeerHeldDown* row) noexcept nogil
cdef void apply_time(Standby* standby, uint64_t now_ns) noexcept nogil
cdef void promote(Standby* standby, uint64_t now_ns, uint64_t created, uint32_t grace_ms) noexcept nogil
