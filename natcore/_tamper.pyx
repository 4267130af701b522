"""Reaching into a gateway's worker, for tests: what it chose, and behaviours broken on purpose (tests/mutants.py)."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint32_t

from natcore._rules cimport DnatRule, dnat_target
from natcore.flow cimport flow_hash
from natcore.hints cimport bswap32
from natcore.state cimport Worker


cdef Worker* worker_of(capsule) except NULL:
    return <Worker*>PyCapsule_GetPointer(capsule, "natcore.Worker")


def target_of(capsule, uint32_t entry, uint32_t remote):
    """The inside address (host order) that a DNAT entry of several targets has for a remote address."""
    cdef Worker* worker = worker_of(capsule)
    cdef const DnatRule* rule
    cdef uint32_t i
    for i in range(worker.rules.range_count if worker.rules != NULL else 0):
        rule = worker.rules.ranges[i].rule
        if rule.entry == entry:
            return bswap32(dnat_target(rule, flow_hash(&worker.sessions.key, bswap32(remote), entry, 0)))
    raise LookupError(f"no DNAT entry {entry}")


def touch_sessions(capsule):
    """Refreshes every session, as no packet may (RFC 7857 section 7)."""
    cdef Worker* worker = worker_of(capsule)
    cdef uint32_t slot
    for slot in range(worker.sessions.slots.fresh):
        worker.sessions.hot[slot].last_seen = <uint32_t>(worker.now_ns // 1000000)
