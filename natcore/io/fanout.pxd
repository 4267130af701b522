"""Sharing the frames of an interface among packet sockets."""

cdef int fanout_shut(int fd) except -1
