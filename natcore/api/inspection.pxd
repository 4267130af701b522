"""Inspection: read access to a gateway's state."""
from natcore.api.workers cimport Workers
from natcore.workers.worker cimport Shared, Worker

cdef class Inspection:
    cdef Workers workers
    cdef Shared* shared         # of workers
    cdef Worker* worker         # the first one
