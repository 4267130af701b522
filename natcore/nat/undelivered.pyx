"""Forwarded frames that could not be sent: finds their session by the translated addresses and ports, and subtracts them from
its open window.

The session may belong to another worker, which is not locked: then the frame is listed until the loop has unlocked its worker.
Fragments, which have no ports, and frames of a window that has closed are counted instead (undelivered_in_rows).
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from natcore.frame cimport FRAME_CROSSING, Frame
from natcore.nat.icmp_errors cimport is_error
from natcore.packet.parse cimport KIND_FRAGMENT, KIND_ICMP, Packet, parse, wire_bytes, wire_packets
from natcore.packet.verdict cimport HAIRPIN, PENDING
from natcore.base.sentinels cimport NONE
from natcore.tables.sessions cimport (
    IN, NO_WINDOW, OUT, Cold, Session, session_addresses, session_find, session_ports, hairpin_addresses, hairpin_ports,
)
from natcore.workers.locks cimport lock, unlock
from natcore.workers.worker cimport UNDELIVERED_SLOTS, Undelivered, Worker, holds_all_locks
from natcore.base.compiler cimport bswap16
from natcore.base.headers cimport IPV4_FRAGMENT, PROTOCOL_ICMP


cdef bint describe(const Worker* worker, const Frame* frame, Undelivered* what) noexcept nogil:
    """Describes how the frame was counted, and its session's key. packets 0: in no session. False: the frame has no key."""
    cdef Frame copy = frame[0]
    cdef Packet packet
    memset(what, 0, sizeof(Undelivered))
    if frame.flags & FRAME_CROSSING:
        return True
    if parse(&copy, &packet, worker.configuration.ethernet, &worker.sessions.key) != PENDING:
        return False
    if packet.kind == KIND_FRAGMENT or packet.ip.fragment & bswap16(IPV4_FRAGMENT):
        return False
    if packet.kind == KIND_ICMP and is_error(&packet):
        return True
    what.addresses = packet.addresses << 32 | packet.addresses >> 32            # of a packet in the opposite direction
    what.ports = packet.ports << 16 | packet.ports >> 16
    what.protocol = packet.protocol
    what.packets = wire_packets(frame, &packet)
    what.bytes = wire_bytes(&packet, what.packets)
    what.hairpin = frame.verdict == HAIRPIN
    what.direction = IN if what.hairpin else frame.side
    what.index = 1 - what.direction
    if what.hairpin and packet.protocol == PROTOCOL_ICMP:
        what.ports = packet.ports
    return True


cdef bint subtract_from_window(Worker* worker, uint32_t slot, const Undelivered* what) noexcept nogil:
    """Takes it out of the session's open window; False: the window that counted it has closed. A window without packets is
    closed without a row: the next packet opens one."""
    cdef Session* session = &worker.sessions.hot[slot]
    cdef Cold* cold = &worker.sessions.cold[slot]
    cdef uint32_t direction = what.direction
    if (session.flags & NO_WINDOW
            or (<uint64_t>cold.carry_packets[direction] << 32) + session.packets[direction] < what.packets
            or (<uint64_t>cold.carry_bytes[direction] << 32) + session.bytes[direction] < what.bytes):
        return False
    cold.carry_packets[direction] -= session.packets[direction] < what.packets
    cold.carry_bytes[direction] -= session.bytes[direction] < what.bytes
    session.packets[direction] -= what.packets
    session.bytes[direction] -= what.bytes
    if not (session.packets[OUT] or session.packets[IN] or cold.carry_packets[OUT] or cold.carry_packets[IN]):
        session.flags |= NO_WINDOW
        session.window_end = <uint16_t>(worker.now_ns // 1000000000)
    return True


cdef bint subtract_in(Worker* worker, Undelivered* what) noexcept nogil:
    """Takes it back from a session in the tables of a locked worker; whether there was one. For a hairpin, `what` is the
    initiator's session afterwards."""
    cdef uint32_t slot = session_find(&worker.sessions, what.index, what.addresses, what.ports, what.protocol)
    cdef const Session* session
    cdef bint itself
    if slot == NONE:
        return False
    session = &worker.sessions.hot[slot]
    itself = (what.hairpin and session_addresses(session, IN) == hairpin_addresses(session)
              and session_ports(session, IN) == hairpin_ports(session))       # counted once, as sent
    if not itself and not subtract_from_window(worker, slot, what):
        worker.undelivered_in_rows += what.packets
    if what.hairpin:
        what.addresses = hairpin_addresses(session)
        what.ports = hairpin_ports(session)
        what.index = IN
        what.direction = OUT
        what.hairpin = 0
    else:
        what.packets = 0
    return True


cdef void lock_both(Worker* worker, Worker* other) noexcept nogil:
    """Locks two workers, or the one, in the order of their numbers."""
    if other.number < worker.number:
        lock(other)
    lock(worker)
    if other.number > worker.number:
        lock(other)


cdef void unlock_both(Worker* worker, Worker* other) noexcept nogil:
    if other != worker:
        unlock(other)
    unlock(worker)


cdef void subtract_anywhere(Worker* worker, Undelivered* what, bint held) noexcept nogil:
    """Subtracts it from sessions of any worker. held: the caller has locked all workers; otherwise none. What is left of it,
    and the sessions, are of one moment for who has locked all."""
    cdef Worker* other
    cdef uint32_t w, _round
    for _round in range(2):                         # a hairpin has two sessions
        for w in range(worker.shared.count):
            if what.packets == 0:
                return
            other = worker.shared.workers[w]
            if not held:
                lock_both(worker, other)
            subtract_in(other, what)
            if not held:
                unlock_both(worker, other)
    if what.packets:
        if not held:
            lock(worker)
        worker.undelivered_in_rows += what.packets
        what.packets = 0
        if not held:
            unlock(worker)


cdef void subtract(Worker* worker, const Frame* frame) noexcept nogil:
    """Subtracts a forwarded frame from its session's row. The worker must be locked."""
    cdef Undelivered what
    if not describe(worker, frame, &what):
        worker.undelivered_in_rows += 1
    elif holds_all_locks(worker):
        subtract_anywhere(worker, &what, True)
    elif what.packets:
        subtract_in(worker, &what)
        if what.packets and worker.undelivered_count < UNDELIVERED_SLOTS:
            worker.undelivered[worker.undelivered_count] = what
            worker.undelivered_count += 1
        elif what.packets:
            worker.undelivered_in_rows += what.packets


cdef void subtract_from_others(Worker* worker) noexcept nogil:
    """Processes the list that `subtract` left. The caller has locked no worker, and is the only user of the list."""
    cdef uint32_t i
    for i in range(worker.undelivered_count):
        subtract_anywhere(worker, &worker.undelivered[i], False)
    if worker.undelivered_count:
        lock(worker)
        worker.undelivered_count = 0
        unlock(worker)
