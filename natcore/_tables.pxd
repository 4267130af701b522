"""Tables: what a gateway shows of its workers."""
from natcore._rows cimport Rows

cdef class Tables(Rows):
    pass
