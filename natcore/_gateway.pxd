"""Core: what the Python objects own, and the one place where Python and the packet's side meet."""
from natcore._rows cimport Rows
from natcore._rules cimport RuleSet
from natcore._storage cimport Placement

cdef class Core(Rows):
    cdef RuleSet rules          # keeps worker.rules alive
    cdef bint filters
    cdef bint translating       # in translate, or in a plane's loop
    cdef Placement placement    # of its tables
