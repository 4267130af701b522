"""Core: owns a gateway's workers and tables for the Python objects; the only place where Python meets the packet path."""
from libc.stdint cimport uint32_t

from natcore.tables.entries cimport RuleSet
from natcore.workers.table_memory cimport Placement
from natcore.api.inspection cimport Tables

cdef class Core(Tables):
    cdef RuleSet rules          # keeps the workers' rules alive
    cdef bint filters
    cdef uint32_t translating[64]       # by worker: a call of translate or a plane's loop is active
    cdef uint32_t closing       # no further translation may begin
    cdef Placement placement    # of the tables
