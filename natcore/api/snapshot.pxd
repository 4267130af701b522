"""Tables as rows for Python: copies, each row consistent."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.log.journal cimport Record
from natcore.tables.mappings cimport Mapping
from natcore.tables.sessions cimport Cold, Session, Sessions
from natcore.workers.worker cimport Worker

cdef packed struct SessionRow:  # SESSION of python/natcore/dtypes.py
    uint64_t session
    uint64_t bytes_out
    uint64_t packets_out
    uint64_t bytes_in
    uint64_t packets_in
    uint64_t birth_ns           # of the gateway's clock, as the next two
    uint64_t last_seen_ns
    uint64_t deadline_ns
    int64_t start_time          # creation, and start of the open window (0: none), microseconds since 1970
    int64_t window_time
    uint32_t inside_ip          # addresses and ports in host order
    uint32_t remote_ip
    uint32_t outside_ip
    uint32_t entry
    uint16_t inside_port
    uint16_t remote_port
    uint16_t outside_port
    uint8_t protocol
    uint8_t state               # TCP: TcpState; else 0
    uint8_t opened_outside
    uint8_t unused[7]

cdef packed struct MappingRow:  # MAPPING
    uint32_t inside_ip
    uint32_t outside_ip
    uint32_t entry
    uint32_t sessions
    uint16_t inside_port
    uint16_t outside_port
    uint8_t protocol
    uint8_t unused[3]

cdef packed struct PortRow:     # PORTS
    uint32_t outside_ip
    uint32_t eip
    uint32_t total              # ports of the ranges: the sum of the next four
    uint32_t used
    uint32_t held_down
    uint32_t reserved
    uint32_t free
    uint8_t protocol
    uint8_t unused[3]

cdef packed struct BlockRow:    # BLOCKS
    uint32_t outside_ip
    uint32_t eip
    uint32_t inside_ip
    uint32_t ports              # of the three protocols, in use or held down
    uint16_t first_port
    uint16_t last_port

cdef inline uint64_t bytes_of_session(const Session* session, const Cold* cold, uint32_t direction) noexcept nogil:
    """Bytes of its whole life, by Direction."""
    return cold.total_bytes[direction] + (<uint64_t>cold.carry_bytes[direction] << 32) + session.bytes[direction]

cdef inline uint64_t packets_of_session(const Session* session, const Cold* cold, uint32_t direction) noexcept nogil:
    """Packets likewise."""
    return cold.total_packets[direction] + (<uint64_t>cold.carry_packets[direction] << 32) + session.packets[direction]

cdef inline uint64_t last_seen_ns(const Sessions* table, const Session* session, const Cold* cold,
                                  uint64_t deadline) noexcept nogil:
    """When its last packet passed, ns. deadline: of deadline_of."""
    cdef uint64_t timeout_ns = <uint64_t>table.timeout_ms[session.timeout_class] * 1000000
    # before its birth, as last_seen has it in ms: longer time-outs came into force (retime)
    return max(cold.birth_ns // 1000000 * 1000000, deadline - min(deadline, timeout_ns))

cdef uint32_t copy_sessions(const Worker* worker, SessionRow* rows, uint32_t capacity, uint32_t* slot,
                            uint32_t last) noexcept nogil
cdef uint64_t oldest_window(const Worker* worker, uint32_t first, uint32_t last, uint64_t now_ns) noexcept nogil
cdef void mapping_row(const Mapping* mapping, MappingRow* row) noexcept nogil
cdef uint32_t copy_ports(const Worker* worker, PortRow* rows, uint32_t capacity) noexcept nogil
cdef uint32_t count_blocks(const Worker* worker) noexcept nogil
cdef uint64_t copy_block_rows(const Worker* worker, Record* rows, uint64_t capacity) noexcept nogil
cdef uint32_t copy_blocks(const Worker* worker, BlockRow* rows, uint32_t capacity) noexcept nogil
