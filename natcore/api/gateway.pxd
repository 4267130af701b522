"""Core: configures a gateway's workers, translates, and puts entries into force; where Python meets the packet path."""
from libc.stdint cimport uint32_t

from natcore.api.inspection cimport Inspection
from natcore.api.log_rows cimport LogRows
from natcore.api.workers cimport Workers
from natcore.tables.entries cimport RuleSet
from natcore.workers.table_memory cimport Placement
from natcore.workers.worker cimport Shared, Worker

cdef class Core:
    cdef readonly Workers workers
    cdef readonly LogRows log_rows
    cdef readonly Inspection inspection
    cdef Shared* shared         # of workers
    cdef Worker* worker         # the first one
    cdef RuleSet rules          # keeps the workers' rules alive
    cdef uint32_t translating[64]       # by worker: a call of translate or a plane's loop is active
    cdef uint32_t closing       # no further translation may begin
    cdef Placement placement    # of the tables
