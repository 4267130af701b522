"""Reaching into a gateway's worker, for tests: what it chose, and behaviours broken on purpose (tests/mutants.py)."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore._mappings cimport DRAWS_KEPT, Draw
from natcore._rules cimport DnatRule, dnat_target
from natcore._translate cimport revoke
from natcore.flow cimport flow_hash
from natcore.frame cimport Frame
from natcore.hints cimport bswap16, bswap32
from natcore.index cimport BUCKET_ENTRIES, Index
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


def draws_since(capsule, uint64_t since):
    """The outside endpoints (address, port; host order) that were drawn after the first since draws, undone ones too."""
    cdef Worker* worker = worker_of(capsule)
    cdef uint64_t count = worker.mappings.draws, i
    cdef const Draw* draw
    if count - since > DRAWS_KEPT:
        raise LookupError(f"{count - since} draws: the last {DRAWS_KEPT} are known")
    drawn = []
    for i in range(since, count):
        draw = &worker.mappings.drawn[i % DRAWS_KEPT]
        drawn.append((bswap32(draw.outside_ip), bswap16(draw.outside_port)))
    return drawn


def crowd(capsule):
    """Fills the index of sessions from inside, so that no more can be entered; the places that thin() makes free again."""
    cdef Index* index = &worker_of(capsule).sessions.outbound
    cdef uint32_t bucket, at
    places = []
    for bucket in range(index.count):
        for at in range(BUCKET_ENTRIES):
            if index.buckets[bucket].tags[at] == 0:
                index.buckets[bucket].tags[at] = 0xFFFF
                index.buckets[bucket].numbers[at] = 0       # of whatever session: who looks compares the key
                places.append((bucket, at))
    return places


def thin(capsule, places):
    """Empties what crowd() filled."""
    cdef Index* index = &worker_of(capsule).sessions.outbound
    for bucket, at in places:
        index.buckets[<uint32_t>bucket].tags[<uint32_t>at] = 0


def undeliver(capsule, const uint8_t[::1] sent not None, uint8_t side, uint8_t forwarded, uint8_t dropped):
    """What a plane does with a frame that was forwarded and that it cannot deliver: it counts as dropped, with this verdict."""
    cdef Frame frame
    memset(&frame, 0, sizeof(Frame))
    frame.data = <uint8_t*>&sent[0]
    frame.length = <uint32_t>sent.shape[0]
    frame.side = side
    frame.verdict = forwarded
    revoke(worker_of(capsule), &frame, dropped)


def touch_sessions(capsule):
    """Refreshes every session, as no packet may (RFC 7857 section 7)."""
    cdef Worker* worker = worker_of(capsule)
    cdef uint32_t slot
    for slot in range(worker.sessions.slots.fresh):
        worker.sessions.hot[slot].last_seen = <uint32_t>(worker.now_ns // 1000000)
