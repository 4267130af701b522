"""Fan-out groups: packet sockets that share the frames of one interface; a classic BPF program selects one, or what a socket
alone receives. No NAT."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from natcore.io.system_errors cimport checked
from natcore.io.kernel cimport (
    PACKET_FANOUT, PACKET_FANOUT_CBPF, PACKET_FANOUT_DATA, PACKET_FANOUT_FLAG_IGNORE_OUTGOING,
    PACKET_FANOUT_FLAG_UNIQUEID, SOL_PACKET, SOL_SOCKET, SO_ATTACH_FILTER, SO_DETACH_FILTER, getsockopt, setsockopt,
    sock_filter, sock_fprog,
)

cdef enum:
    RETURN = 0x06               # BPF_RET | BPF_K

assert sizeof(sock_filter) == 8


cdef int _set(int fd, int level, int name, const void* value, uint32_t length, str step) except -1:
    return checked(setsockopt(fd, level, name, value, length), step)


cdef int fanout_block_all(int fd) except -1:
    """Blocks all frames to an unbound socket until `join`; otherwise it would receive those of the other sockets too."""
    cdef sock_filter nothing
    cdef sock_fprog program
    memset(&nothing, 0, sizeof(nothing))
    nothing.code = RETURN
    program.len = 1
    program.filter = &nothing
    return _set(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program), "SO_ATTACH_FILTER")


def listen(int fd, bytes program not None) -> None:
    """Makes a bound and blocked socket receive the frames for which a program (as for `join`) returns another number than 0."""
    cdef sock_fprog code
    code.len = <uint16_t>(len(program) // 8)
    code.filter = <sock_filter*><const uint8_t*>program
    _set(fd, SOL_SOCKET, SO_ATTACH_FILTER, &code, sizeof(code), "SO_ATTACH_FILTER")


def join(fds, bytes program not None) -> None:
    """Joins bound and blocked sockets of one interface into a group, which receives from then on.

    program: instructions of 8 bytes (struct sock_filter) that see a frame from its network header on (SKF_NET_OFF); the
    result modulo the number of fds is the index of the receiving socket in fds.
    Raises OSError: EINVAL if the kernel rejects the program.
    """
    cdef uint32_t argument = (PACKET_FANOUT_CBPF | PACKET_FANOUT_FLAG_UNIQUEID | PACKET_FANOUT_FLAG_IGNORE_OUTGOING) << 16
    cdef uint32_t length = sizeof(argument)
    cdef sock_fprog code
    cdef int number = 0, fd
    for fd in fds:                  # the kernel numbers them in this order
        _set(fd, SOL_PACKET, PACKET_FANOUT, &argument, sizeof(argument), "PACKET_FANOUT")
        if argument >> 16 & PACKET_FANOUT_FLAG_UNIQUEID:
            if getsockopt(fd, SOL_PACKET, PACKET_FANOUT, &argument, &length) < 0:
                checked(-1, "PACKET_FANOUT")
            argument = (argument & 0xFFFF
                        | <uint32_t>(PACKET_FANOUT_CBPF | PACKET_FANOUT_FLAG_IGNORE_OUTGOING) << 16)
            code.len = <uint16_t>(len(program) // 8)
            code.filter = <sock_filter*><const uint8_t*>program
            _set(fd, SOL_PACKET, PACKET_FANOUT_DATA, &code, sizeof(code), "PACKET_FANOUT_DATA")
    for fd in fds:
        _set(fd, SOL_SOCKET, SO_DETACH_FILTER, &number, sizeof(number), "SO_DETACH_FILTER")
