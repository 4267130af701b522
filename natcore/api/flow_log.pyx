"""FlowTable: the flow log as Python sees it, attached to the workers of a gateway; rows are taken from here."""
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natcore.tables.offload cimport offload_outdate
from natcore.log.flow_table cimport FlowRow, Flows, flows_clear, flows_delete, flows_new
from natcore.workers.locks cimport lock_all, unlock_all
from natcore.api.workers cimport Workers
from natcore.base.compiler cimport bswap16, bswap32, exchange, load_acquire
from natcore.base.pages cimport table_delete, table_new
from natcore.base.spinlock cimport spin_lock, spin_unlock, wait_turn
from natcore.workers.worker cimport Shared

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
    """The flow log of a gateway, from construction until `close`."""
    cdef PyObject* workers      # Workers; counted by hand, since the garbage collector might clear it before close()
    cdef Shared* shared         # of workers
    cdef Flows* flows
    cdef uint32_t attached       # 1: attached to the workers

    def __cinit__(self, Workers workers not None, uint32_t capacity, int64_t window_us):
        cdef uint32_t i
        cdef bint ethernet
        self.shared = workers.shared
        with nogil:
            workers.lock()
            ethernet = workers.first.configuration.ethernet
            workers.unlock()
        self.flows = <Flows*>table_new(sizeof(Flows))
        if self.flows == NULL or not flows_new(self.flows, capacity, &workers.first.sessions.key, window_us, ethernet):
            raise CapacityError(f"capacity={capacity}: no address space for the table")
        with nogil:
            workers.lock()
            if workers.first.flows == NULL:
                self.attached = 1
                for i in range(self.shared.count):
                    self.shared.workers[i].flows = self.flows
                    offload_outdate(self.shared.workers[i].sessions.offload)    # it sees every packet
            workers.unlock()
        if not self.attached:
            raise ConfigurationError("the gateway has a flow log already: one at a time")
        self.workers = <PyObject*>workers
        Py_INCREF(workers)

    def __dealloc__(self):
        self.close()
        Py_XDECREF(self.workers)
        if self.flows != NULL:
            flows_delete(self.flows)
            table_delete(self.flows, sizeof(Flows))

    def close(self):
        """Stops capturing; captured rows stay. Idempotent, from any thread."""
        if exchange(&self.attached, 0):
            with nogil:
                lock_all(self.shared.workers[0])
                flows_detach(self.shared)
                unlock_all(self.shared.workers[0])
                flows_await(self.flows)

    def forked(self):
        """In a forked child: the rows so far are the parent's. Packets of the child are captured on."""
        self.flows.spin.taken = self.flows.users = 0
        flows_clear(self.flows)
        self.flows.lost = self.flows.unreadable = 0

    @property
    def is_open(self):
        return load_acquire(&self.attached) != 0

    def counters(self):
        """(rows, packets without a row for lack of space, packets without a 5-tuple)."""
        cdef uint64_t rows, lost, unreadable
        with nogil:
            spin_lock(&self.flows.spin)
            rows, lost, unreadable = self.flows.count, self.flows.lost, self.flows.unreadable
            spin_unlock(&self.flows.spin)
        return rows, lost, unreadable

    def take(self, records not None):
        """Fills FLOW (capacity,) with all rows and clears the table; how many. Raises ValueError for another size."""
        cdef uint8_t[::1] raw = records.view("u1")
        cdef uint32_t i, count
        if raw.shape[0] != <Py_ssize_t>(self.flows.capacity * sizeof(Row)):
            raise ValueError(f"records must be {self.flows.capacity} rows of {sizeof(Row)} bytes, got {raw.shape[0]} bytes")
        with nogil:
            spin_lock(&self.flows.spin)
            count = self.flows.count
            for i in range(count):
                copy_row(<Row*>&raw[i * sizeof(Row)], &self.flows.rows[i])
            flows_clear(self.flows)
            spin_unlock(&self.flows.spin)
        return count


cdef void flows_detach(Shared* shared) noexcept nogil:
    """Detaches the flow log. Call it with all workers locked."""
    cdef uint32_t i
    for i in range(shared.count):
        shared.workers[i].flows = NULL


cdef void flows_await(Flows* flows) noexcept nogil:
    """Waits for batches that still use the detached log. The caller has locked no worker."""
    cdef uint32_t turn = 0
    while load_acquire(&flows.users):
        wait_turn(turn)
        turn += 1
