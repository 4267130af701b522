"""FlowTable: the flow log's side that Python sees; it hangs a table on a worker, and takes rows out of it."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore._flows cimport FLOWS_BATCH, FlowRow, Flows, FlowSeen, flows_clear, flows_delete, flows_new
from natcore._rows cimport Rows
from natcore.hints cimport bswap16, bswap32
from natcore.memory cimport table_delete, table_new

from natcore.errors import CapacityError, ConfigurationError

cdef struct Row:                # FLOW of python/natcore/flowlog.py
    uint64_t bytes
    uint64_t packets
    int64_t start_time
    int64_t end_time
    uint32_t address[2]         # source, destination; host order
    uint16_t port[2]
    uint8_t protocol
    uint8_t interface
    uint8_t direction
    uint8_t action


cdef void copy_row(Row* out, const FlowRow* row) noexcept nogil:
    out.bytes = row.bytes
    out.packets = row.packets
    out.start_time = row.start_time
    out.end_time = row.end_time
    out.address[0] = bswap32(<uint32_t>row.key.addresses)
    out.address[1] = bswap32(<uint32_t>(row.key.addresses >> 32))
    out.port[0] = bswap16(<uint16_t>row.key.ports)
    out.port[1] = bswap16(<uint16_t>(row.key.ports >> 16))
    out.protocol = row.key.protocol
    out.interface = row.key.interface
    out.direction = row.key.direction
    out.action = row.key.action


cdef class FlowTable:
    """The flow log of a gateway, from now until `close`."""
    cdef Rows core              # kept alive; None: closed
    cdef Flows* flows
    cdef FlowSeen* seen         # [workers][FLOWS_BATCH]
    cdef uint32_t workers

    def __cinit__(self, Rows core not None, uint32_t capacity, int64_t window_us):
        cdef uint32_t i
        self.workers = core.shared.count
        self.flows = <Flows*>table_new(sizeof(Flows))
        self.seen = <FlowSeen*>table_new(self.workers * FLOWS_BATCH * sizeof(FlowSeen))
        if self.flows == NULL or self.seen == NULL or not flows_new(self.flows, capacity, &core.worker.sessions.key, window_us,
                                                                    core.worker.ethernet):
            raise CapacityError(f"capacity={capacity}: this machine has no address space for the table")
        self.flows.spin.needed = self.workers > 1
        core.own()
        if core.worker.flows == NULL:
            for i in range(self.workers):
                core.shared.workers[i].flows = self.flows
                core.shared.workers[i].seen = &self.seen[i * FLOWS_BATCH]
            self.core = core
        core.disown()
        if self.core is None:
            raise ConfigurationError("gateway: it has a flow log already; allowed is one at a time")

    def __dealloc__(self):
        self.close()
        if self.flows != NULL:
            flows_delete(self.flows)
            table_delete(self.flows, sizeof(Flows))
        table_delete(self.seen, self.workers * FLOWS_BATCH * sizeof(FlowSeen))

    def close(self):
        """Nothing is captured any more; what was stays. Idempotent."""
        cdef uint32_t i
        if self.core is not None:
            self.core.own()
            for i in range(self.workers):
                self.core.shared.workers[i].flows = NULL
            self.core.disown()
            self.core = None

    @property
    def is_open(self):
        return self.core is not None

    def counters(self):
        """(rows, packets that found no row left, packets without a 5-tuple)."""
        return self.flows.count, self.flows.lost, self.flows.unreadable

    def take(self, records not None):
        """Fill FLOW (capacity,) with all rows and forget them; how many. Raises ValueError for another size."""
        cdef uint8_t[::1] raw = records.view("u1")
        cdef uint32_t i, count
        if raw.shape[0] != <Py_ssize_t>(self.flows.capacity * sizeof(Row)):
            raise ValueError(f"records: {raw.shape[0]} bytes; allowed are {self.flows.capacity} rows of {sizeof(Row)}")
        if self.core is not None:
            self.core.own()
        with nogil:
            count = self.flows.count
            for i in range(count):
                copy_row(<Row*>&raw[i * sizeof(Row)], &self.flows.rows[i])
            flows_clear(self.flows)
        if self.core is not None:
            self.core.disown()
        return count
