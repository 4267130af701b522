"""Verdicts and sides by number, as python/natcore/verdict.py defines and documents them."""
from libc.stdint cimport uint8_t

cdef enum:                      # Side
    INSIDE = 0
    OUTSIDE = 1

cdef enum:                      # Verdict
    OUTBOUND = 0
    INBOUND = 1
    HAIRPIN = 2
    UNTRANSLATED = 3
    LOCAL = 4
    HELD = 5
    DROP_MALFORMED = 128
    DROP_CHECKSUM = 129
    DROP_TTL = 130
    DROP_NO_SNAT_ENTRY = 131
    DROP_NO_MAPPING = 132
    DROP_FILTERED = 133
    DROP_PORTS_EXHAUSTED = 134
    DROP_SESSION_LIMIT = 135
    DROP_SUBSCRIBER_LIMIT = 136
    DROP_RATE_LIMIT = 137
    DROP_CONFLICT = 138
    DROP_UNSUPPORTED = 139
    DROP_FRAGMENT = 140
    DROP_SPOOFED = 141
    DROP_MTU = 142
    DROP_NO_NEIGHBOUR = 143
    DROP_OUTSIDE_LIMIT = 144
    DROP_PROBE_LIMIT = 145
    DROP_IP_OPTION = 146
    PENDING = 255               # not decided yet; internal

cdef inline uint8_t egress_of(uint8_t verdict, uint8_t side, bint crossing) noexcept nogil:
    """Egress Side of a forwarded packet. side: ingress; crossing: FRAME_CROSSING."""
    if verdict == UNTRANSLATED:
        return OUTSIDE if side == INSIDE and not crossing else INSIDE
    return OUTSIDE if verdict == OUTBOUND else INSIDE
