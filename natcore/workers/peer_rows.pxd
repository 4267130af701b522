"""Rows of the stream to a standby (docs/peer-format.md): packed; addresses and ports big-endian, everything else little-endian.

A row says what a slot of the active gateway's session table has now, not what happened: a later row of a slot replaces an
earlier one, and a row that is sent twice changes nothing.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:                      # PeerKind
    PEER_ENDS = 1               # slots without a session, u32 each
    PEER_SESSIONS = 2
    PEER_REFRESHES = 3
    PEER_HELD_DOWN = 4

cdef packed struct PeerSession:  # a session, and its mapping
    uint32_t slot
    uint32_t id_low
    uint16_t id_high
    uint8_t flags               # SessionFlag
    uint8_t state               # TcpState
    uint8_t timeout_class
    uint8_t protocol
    uint8_t mapping_flags       # MappingFlag
    uint8_t unused
    uint32_t inside_ip
    uint32_t remote_ip
    uint32_t outside_ip
    uint16_t inside_port
    uint16_t remote_port
    uint16_t outside_port
    uint16_t birth_high         # ms of the gateway's clock, as the next two
    uint32_t birth_low
    uint32_t last_seen          # modulo 2^32
    uint32_t entry
    uint32_t ack[2]             # by Direction
    uint32_t end[2]
    uint32_t mapping_ip         # the remote endpoint that the mapping depends on; 0: on none
    uint16_t mapping_port
    uint16_t unused_too

cdef packed struct PeerRefresh:  # of a session that packets passed since
    uint32_t slot
    uint32_t last_seen
    uint32_t ack[2]
    uint32_t end[2]

cdef packed struct PeerHeldDown:
    uint32_t outside_ip
    uint32_t owner
    uint32_t until_ms
    uint16_t port               # host order
    uint8_t space               # PortSpace
    uint8_t unused
