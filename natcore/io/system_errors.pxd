"""The one way in which a failed system call becomes an OSError."""
from libc.errno cimport errno
from libc.string cimport strerror


cdef inline int checked(int result, str step) except -1:
    """The result, or an OSError with errno and the step that failed."""
    cdef int reason
    if result < 0:
        reason = errno
        raise OSError(reason, f"{step}: {strerror(reason).decode()}")
    return result
