"""Echo replies, and the ICMP errors that report a drop: which verdicts, with which type and code."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from natcore.nat.admission cimport is_shared_address
from natcore.nat.icmp_messages cimport echo_reply, icmp_error, icmp_source
from natcore.packet.parse cimport Packet
from natcore.frame cimport Frame
from natcore.base.compiler cimport bswap16
from natcore.workers.worker cimport Clock, Worker
from natcore.packet.verdict cimport (
    DROP_CONFLICT, DROP_MTU, DROP_NO_SNAT_ENTRY, DROP_PORTS_EXHAUSTED, DROP_RATE_LIMIT, DROP_SESSION_LIMIT,
    DROP_SUBSCRIBER_LIMIT, DROP_TTL, INSIDE, LOCAL,
)
from natcore.base.headers cimport (
    ICMP_ECHO_REQUEST, ICMP_TIME_EXCEEDED, ICMP_TOO_BIG, ICMP_UNREACHABLE, IPV4_DF, IPV4_FRAGMENT, PROTOCOL_ICMP, IcmpHeader,
)


cdef void send_icmp_reply(Worker* worker, const Frame* frame, const Packet* packet, uint8_t verdict,
                          const Clock* now) noexcept nogil:
    """Replies to an echo request, or sends the ICMP error that the verdict calls for."""
    cdef uint32_t source = icmp_source(worker.links.address[frame.side])
    if verdict == LOCAL:
        if (packet.protocol == PROTOCOL_ICMP and (<const IcmpHeader*>packet.l4).type == ICMP_ECHO_REQUEST
                and not packet.ip.fragment & bswap16(IPV4_FRAGMENT)         # nothing is reassembled
                and not is_shared_address(worker, packet.ip.destination)):  # the host replies
            echo_reply(worker.outbox, frame, packet.ip, verdict)
    elif verdict == DROP_TTL:
        icmp_error(worker.outbox, frame, packet.ip, source, ICMP_TIME_EXCEEDED, 0, 0, verdict, now.ns)
    elif verdict == DROP_MTU:
        if packet.ip.fragment & bswap16(IPV4_DF):
            icmp_error(worker.outbox, frame, packet.ip, source, ICMP_UNREACHABLE, ICMP_TOO_BIG, <uint16_t>worker.exceeded_mtu,
                       verdict, now.ns)
    elif frame.side == INSIDE and worker.configuration.icmp_unreachable:
        if verdict == DROP_PORTS_EXHAUSTED or verdict == DROP_SESSION_LIMIT or verdict == DROP_CONFLICT:
            # RFC 6888 REQ-11: resources
            icmp_error(worker.outbox, frame, packet.ip, source, ICMP_UNREACHABLE, 1, 0, verdict, now.ns)
        elif verdict == DROP_SUBSCRIBER_LIMIT or verdict == DROP_RATE_LIMIT or verdict == DROP_NO_SNAT_ENTRY:
            icmp_error(worker.outbox, frame, packet.ip, source, ICMP_UNREACHABLE, 13, 0, verdict, now.ns)  # policy
