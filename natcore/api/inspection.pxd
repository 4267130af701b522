"""Tables: what a gateway shows of its workers."""
from natcore.api.log_rows cimport Rows

cdef class Tables(Rows):
    pass
