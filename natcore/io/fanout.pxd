"""Fan-out groups: packet sockets that share the frames of one interface."""

cdef int fanout_block_all(int fd) except -1
