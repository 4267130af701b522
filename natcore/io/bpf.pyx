"""The bpf system call as far as XDP needs it: maps, a program, a link. No NAT, no packets."""
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport strerror

from natcore.io.system_errors cimport checked

cdef extern from * nogil:
    """
    #include <linux/bpf.h>
    #include <linux/if_link.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static int natcore_bpf(int command, union bpf_attr* attributes) {
        return (int)syscall(SYS_bpf, command, attributes, sizeof(*attributes));
    }
    static int natcore_bpf_map(uint32_t kind, uint32_t key, uint32_t value, uint32_t entries, uint32_t flags) {
        union bpf_attr a;
        memset(&a, 0, sizeof(a));
        a.map_type = kind; a.key_size = key; a.value_size = value; a.max_entries = entries; a.map_flags = flags;
        memcpy(a.map_name, "natcore", 8);
        return natcore_bpf(BPF_MAP_CREATE, &a);
    }
    static int natcore_bpf_element(int command, int map, const void* key, const void* value) {
        union bpf_attr a;
        memset(&a, 0, sizeof(a));
        a.map_fd = map; a.key = (uint64_t)(uintptr_t)key; a.value = (uint64_t)(uintptr_t)value;
        return natcore_bpf(command, &a);
    }
    static int natcore_bpf_program(const void* instructions, uint32_t count, char* log, uint32_t bytes) {
        union bpf_attr a;
        memset(&a, 0, sizeof(a));
        a.prog_type = BPF_PROG_TYPE_XDP; a.insns = (uint64_t)(uintptr_t)instructions; a.insn_cnt = count;
        a.license = (uint64_t)(uintptr_t)"Apache-2.0";
        a.log_buf = (uint64_t)(uintptr_t)log; a.log_size = bytes; a.log_level = bytes ? 1 : 0;
        memcpy(a.prog_name, "natcore", 8);
        return natcore_bpf(BPF_PROG_LOAD, &a);
    }
    static int natcore_bpf_link(int program, uint32_t interface) {
        union bpf_attr a;
        memset(&a, 0, sizeof(a));
        a.link_create.prog_fd = program; a.link_create.target_ifindex = interface;
        a.link_create.attach_type = BPF_XDP; a.link_create.flags = XDP_FLAGS_DRV_MODE;
        return natcore_bpf(BPF_LINK_CREATE, &a);
    }
    static int natcore_bpf_run(int program, const void* in, uint32_t bytes, void* out, uint32_t* capacity,
                               uint32_t interface, uint32_t* action) {
        union bpf_attr a;
        struct xdp_md context;
        int result;
        memset(&a, 0, sizeof(a));
        memset(&context, 0, sizeof(context));
        context.data_end = bytes;
        context.ingress_ifindex = interface;
        a.test.prog_fd = program; a.test.data_in = (uint64_t)(uintptr_t)in; a.test.data_size_in = bytes;
        a.test.data_out = (uint64_t)(uintptr_t)out; a.test.data_size_out = *capacity;
        if (interface) { a.test.ctx_in = (uint64_t)(uintptr_t)&context; a.test.ctx_size_in = sizeof(context); }
        result = natcore_bpf(BPF_PROG_TEST_RUN, &a);
        *capacity = a.test.data_size_out;
        *action = a.test.retval;
        return result;
    }
    """
    enum:
        BPF_MAP_TYPE_ARRAY
        BPF_MAP_TYPE_HASH
        BPF_MAP_TYPE_XSKMAP
        BPF_MAP_TYPE_DEVMAP
        BPF_F_NO_PREALLOC
        BPF_F_MMAPABLE
        BPF_MAP_LOOKUP_ELEM
        BPF_MAP_UPDATE_ELEM
        BPF_MAP_DELETE_ELEM
    int c_map "natcore_bpf_map" (uint32_t kind, uint32_t key, uint32_t value, uint32_t entries, uint32_t flags)
    int c_element "natcore_bpf_element" (int command, int map, const void* key, const void* value)
    int c_program "natcore_bpf_program" (const void* instructions, uint32_t count, char* log, uint32_t bytes)
    int c_run "natcore_bpf_run" (int program, const void* frame, uint32_t bytes, void* out, uint32_t* capacity,
                                 uint32_t interface, uint32_t* action)
    int c_link "natcore_bpf_link" (int program, uint32_t interface)

cdef enum:
    LOG_BYTES = 65536


def array(uint32_t entries, uint32_t value_bytes) -> int:
    """Creates an array map; its descriptor. Raises OSError: EPERM without CAP_BPF (or CAP_SYS_ADMIN), ENOMEM."""
    return checked(c_map(BPF_MAP_TYPE_ARRAY, 4, value_bytes, entries, 0), "bpf: an array")


def table(uint32_t entries, uint32_t key_bytes, uint32_t value_bytes) -> int:
    """Creates a hash map of at most entries keys, allocated on demand; its descriptor."""
    return checked(c_map(BPF_MAP_TYPE_HASH, key_bytes, value_bytes, entries, BPF_F_NO_PREALLOC), "bpf: a hash map")


def sockets(uint32_t entries) -> int:
    """Creates a map of AF_XDP sockets by queue; its descriptor."""
    return checked(c_map(BPF_MAP_TYPE_XSKMAP, 4, 4, entries, 0), "bpf: a map of sockets")


def shared_array(uint32_t entries, uint32_t value_bytes) -> int:
    """Creates an array map that can be mapped into memory; its descriptor. Raises OSError (E2BIG, ENOMEM)."""
    return checked(c_map(BPF_MAP_TYPE_ARRAY, 4, value_bytes, entries, BPF_F_MMAPABLE), "bpf: a shared array")


def devices(uint32_t entries) -> int:
    """Creates a map of interfaces that programs redirect to; its descriptor."""
    return checked(c_map(BPF_MAP_TYPE_DEVMAP, 4, 4, entries, 0), "bpf: a map of devices")


def set_element(int map_fd, bytes key not None, bytes value not None) -> None:
    """Sets a key's value; lengths as the map was created with."""
    checked(c_element(BPF_MAP_UPDATE_ELEM, map_fd, <const uint8_t*>key, <const uint8_t*>value), "bpf: setting an element")


def get_element(int map_fd, bytes key not None, uint32_t value_bytes) -> bytes:
    """A key's value. Raises OSError (ENOENT)."""
    value = bytearray(value_bytes)
    checked(c_element(BPF_MAP_LOOKUP_ELEM, map_fd, <const uint8_t*>key, <const uint8_t*>value), "bpf: reading an element")
    return bytes(value)


def delete_element(int map_fd, bytes key not None) -> None:
    """Deletes a key. Raises OSError (ENOENT)."""
    checked(c_element(BPF_MAP_DELETE_ELEM, map_fd, <const uint8_t*>key, NULL), "bpf: deleting an element")


def program(bytes instructions not None) -> int:
    """Loads an XDP program of 8 bytes per instruction; its descriptor. Raises OSError with the verifier's log."""
    cdef uint32_t count = <uint32_t>(len(instructions) // 8)
    cdef int fd = c_program(<const uint8_t*>instructions, count, NULL, 0), reason
    if fd >= 0:
        return fd
    reason = errno
    log = bytearray(LOG_BYTES)
    c_program(<const uint8_t*>instructions, count, <char*>log, LOG_BYTES)
    said = log.rstrip(b"\0").decode(errors="replace").strip().replace("\n", " / ")
    raise OSError(reason, f"bpf: the XDP program: {strerror(reason).decode()}: {said}")


def link(int program_fd, uint32_t interface) -> int:
    """Attaches the program to the interface's driver while the descriptor is open.

    Raises OSError: EBUSY if there is another XDP program, EOPNOTSUPP if the driver has no XDP support.
    """
    return checked(c_link(program_fd, interface), "bpf: attaching the XDP program")


def test_run(int program_fd, bytes frame not None, uint32_t interface=0) -> tuple[int, bytes]:
    """Runs the program once on a frame, which goes nowhere: its action and the frame as it left it. interface: as if it had
    come by that one (its index)."""
    cdef uint32_t capacity = <uint32_t>len(frame) + 256, action = 0
    out = bytearray(capacity)
    checked(c_run(program_fd, <const uint8_t*>frame, <uint32_t>len(frame), <char*>out, &capacity, interface, &action),
            "bpf: running the program")
    return action, bytes(out[:capacity])
