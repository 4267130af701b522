"""RFC 5382 REQ-4: a dropped SYN may belong to a simultaneous open; port unreachable is sent after 6 s if it does not."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from natcore.nat.icmp_messages cimport icmp_error, icmp_source
from natcore.packet.parse cimport Packet
from natcore.tables.ports cimport address_find
from natcore.tables.sessions cimport IN, Session, deadline_of, session_find
from natcore.tables.syn_holdoff cimport HeldSyn, syn_holdoff_due, syn_holdoff_hold
from natcore.frame cimport Frame
from natcore.base.sentinels cimport NONE
from natcore.workers.worker cimport Worker
from natcore.packet.verdict cimport OUTSIDE
from natcore.base.headers cimport (
    ICMP_UNREACHABLE, PROTOCOL_TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Ipv4Header, TcpHeader,
)

cdef enum:
    PORT_UNREACHABLE = 3


cdef void note_unsolicited(Worker* worker, const Frame* frame, const Packet* packet, uint8_t verdict,
                           uint64_t now_ns) noexcept nogil:
    """Holds a first SYN to one of our addresses that found no mapping or did not pass the filter."""
    if (packet.protocol != PROTOCOL_TCP or address_find(worker.mappings.ports, packet.ip.destination) == NONE
            or (<const TcpHeader*>packet.l4).flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) != TCP_SYN):
        return
    syn_holdoff_hold(worker.syn_holdoff, frame, <uint32_t>(<const uint8_t*>packet.ip - frame.data), packet.ip.source,
                     verdict, now_ns)


cdef bint had_session(const Worker* worker, const Ipv4Header* ip, uint64_t at_ns, uint64_t now_ns) noexcept nogil:
    """Whether the held SYN's connection had a session of this worker at a past moment; packets may have refreshed it since."""
    cdef uint64_t addresses
    cdef uint32_t ports, slot
    cdef const Session* session
    memcpy(&addresses, &ip.source, 8)
    memcpy(&ports, <const uint8_t*>ip + (ip.version_ihl & 15) * 4, 4)
    slot = session_find(&worker.sessions, IN, addresses, ports, PROTOCOL_TCP)
    if slot == NONE or worker.sessions.cold[slot].birth_ns > at_ns:
        return False
    session = &worker.sessions.hot[slot]
    return deadline_of(&worker.sessions, session, now_ns) > at_ns


cdef void answer_unsolicited(Worker* worker, uint64_t now_ns) noexcept nogil:
    """Sends port unreachable for held SYNs when the hold-off is over, unless their connection is open by now (REQ-4).

    Call it with all workers locked.
    """
    cdef uint32_t w
    cdef bint open
    cdef HeldSyn* syn
    cdef Ipv4Header* ip
    cdef Frame frame
    while True:
        syn = syn_holdoff_due(worker.syn_holdoff, now_ns)
        if syn == NULL:
            return
        ip = <Ipv4Header*>(syn.data + syn.link_bytes)
        open = False
        for w in range(worker.shared.count):
            open = open or had_session(worker.shared.workers[w], ip, syn.due_ns, now_ns)
        if open:
            continue
        frame.data = syn.data
        frame.length = syn.length
        frame.flags = 0
        frame.side = OUTSIDE
        icmp_error(worker.outbox, &frame, ip, icmp_source(worker.links.address[OUTSIDE]), ICMP_UNREACHABLE,
                   PORT_UNREACHABLE, 0, syn.cause, now_ns)
