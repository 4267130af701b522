"""Fan-out groups: packet sockets that share the frames of one interface."""

cdef int fanout_shut(int fd) except -1
