"""Tables: read access to a gateway's state."""
from natcore.api.log_rows cimport Rows

cdef class Tables(Rows):
    pass
