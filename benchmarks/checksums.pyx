"""The checksum module in loops long enough to be timed: from scratch over frames, and by the delta of an address."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from natcore.base.checksum cimport checksum, delta32, update


def from_scratch(const uint8_t[:, ::1] rows not None, uint16_t[::1] out not None):
    """The checksum of each row (RFC 1071), in the byte order of the rows; uint8 (count, bytes) -> uint16 (count,)."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(rows.shape[0]):
            out[i] = checksum(&rows[i, 0], <uint32_t>rows.shape[1], 0)


def by_delta(const uint16_t[::1] checksums not None, const uint32_t[::1] old not None, const uint32_t[::1] new not None,
             uint16_t[::1] out not None):
    """Each checksum after an address old became new (RFC 1624, eq. 3); all of (count,), in one byte order."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(checksums.shape[0]):
            out[i] = update(checksums[i], delta32(old[i], new[i]))
