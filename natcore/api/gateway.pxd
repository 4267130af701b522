"""Core: what the Python objects own, and the one place where Python and the packet's side meet."""
from libc.stdint cimport uint32_t

from natcore.tables.entries cimport RuleSet
from natcore.workers.table_memory cimport Placement
from natcore.api.inspection cimport Tables

cdef class Core(Tables):
    cdef RuleSet rules          # keeps the workers' rules alive
    cdef bint filters
    cdef uint32_t translating[64]       # by worker: in translate, or in a plane's loop
    cdef uint32_t closing       # nobody may begin to translate any more
    cdef Placement placement    # of its tables
