"""The rig's sender: UDP flows in 60-byte frames into a transmit ring, as fast as the link takes them or at a rate; or made by
an XDP program that the kernel runs.

A flow's number is its payload's first word, so that whoever gets a frame knows what it was before translation.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natcore.io.device cimport Device
from natcore.io.af_packet cimport PacketRing, Ring
from natcore.base.checksum cimport fold
from natcore.base.compiler cimport bswap16, bswap32

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <time.h>
    static double wire_seconds(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
    }
    """
    double seconds_now "wire_seconds" () noexcept

cdef extern from * nogil:
    """
    #include <linux/bpf.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <sys/time.h>
    #include <unistd.h>
    static int wire_run_live(int program, const void* frame, uint32_t bytes, uint32_t batch, uint64_t us) {
        struct itimerval until = {{0, 0}, {us / 1000000, us % 1000000}};
        union bpf_attr a;
        memset(&a, 0, sizeof(a));
        a.test.prog_fd = program; a.test.data_in = (uint64_t)(uintptr_t)frame; a.test.data_size_in = bytes;
        a.test.repeat = UINT32_MAX; a.test.batch_size = batch; a.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
        setitimer(ITIMER_REAL, &until, 0);
        return (int)syscall(SYS_bpf, BPF_PROG_TEST_RUN, &a, sizeof(a));
    }
    """
    int run_live "wire_run_live" (int program, const void* frame, uint32_t bytes, uint32_t batch, uint64_t us)

cdef enum:
    FRAME_BYTES = 60            # 64 on the wire, with the checksum that the device adds
    BATCH = 64
    IP = 14
    UDP = 34
    LOAD = 42
    UDP_BYTES = FRAME_BYTES - UDP

HOSTS = 0x0A010000              # 10.1.0.0: the first inside host; each has 64 flows
REMOTE_PORT = 9


cdef inline void put16(uint8_t* at, uint32_t value) noexcept nogil:
    cdef uint16_t word = bswap16(<uint16_t>value)
    memcpy(at, &word, 2)


cdef inline void put32(uint8_t* at, uint32_t value) noexcept nogil:
    cdef uint32_t word = bswap32(value)
    memcpy(at, &word, 4)


cdef struct Template:
    uint8_t frame[64]
    uint32_t header_sum         # of the words that all flows have in common
    uint32_t udp_sum


cdef void begin(Template* template, const uint8_t* macs, uint32_t remote) noexcept nogil:
    cdef uint32_t i
    cdef uint8_t* frame = template.frame
    memset(template, 0, sizeof(Template))
    memcpy(frame, macs, 12)
    put16(frame + 12, 0x0800)
    put16(frame + IP, 0x4500)
    put16(frame + IP + 2, FRAME_BYTES - IP)
    put16(frame + IP + 6, 0x4000)                   # DF, as Linux sends UDP
    put16(frame + IP + 8, 64 << 8 | 17)
    put32(frame + IP + 16, remote)
    put16(frame + UDP + 2, 9)
    put16(frame + UDP + 4, UDP_BYTES)
    for i in range(IP, UDP, 2):
        template.header_sum += <uint32_t>frame[i] << 8 | frame[i + 1]
    template.udp_sum = (remote >> 16) + (remote & 0xFFFF) + 17 + 2 * UDP_BYTES + 9


cdef inline void fill(Template* template, uint32_t flow) noexcept nogil:
    """The flow's addresses, ports, payload and checksums."""
    cdef uint8_t* frame = template.frame
    cdef uint32_t source = 0x0A010000 + (flow >> 6), port = 1024 + flow % 32768
    cdef uint32_t words = (source >> 16) + (source & 0xFFFF)
    put16(frame + IP + 10, <uint16_t>~fold(template.header_sum + words))
    put32(frame + IP + 12, source)
    put16(frame + UDP, port)
    put32(frame + LOAD, flow)
    put16(frame + UDP + 6, <uint16_t>~fold(template.udp_sum + words + port + (flow >> 16) + (flow & 0xFFFF)) or 0xFFFF)


def flood(PacketRing packets not None, bytes macs not None, uint32_t remote, uint32_t flows, double seconds,
          double rate, uint64_t most):
    """Sends frames of `flows` flows in a scattered order, again and again; (how many were taken, seconds).

    macs: destination and source, 12 bytes. flows: a power of two. rate: frames a second, 0: what the link takes.
    most: frames; 0: no bound. What the link refuses is sent again: it is the sender that waits.
    """
    cdef Template template
    cdef Ring* ring = &packets.ring
    cdef Device* device = packets.device
    cdef uint64_t taken = 0, refused
    cdef double start = seconds_now(), now = start
    cdef uint32_t i
    begin(&template, <const uint8_t*><const char*>macs, remote)
    with nogil:
        while now - start < seconds and (most == 0 or taken < most):
            refused = ring.send_dropped
            for i in range(BATCH):
                fill(&template, (<uint32_t>(taken + i) * <uint32_t>0x9E3779B1) & (flows - 1))
                device.send(device, template.frame, FRAME_BYTES, NULL)
            device.flush(device)
            taken += BATCH - (ring.send_dropped - refused)
            now = seconds_now()
            while rate > 0 and taken > (now - start) * rate and now - start < seconds:
                now = seconds_now()
    return taken, now - start


def make(int program, uint32_t frame_bytes, double seconds):
    """Has the kernel run an XDP program (programs.py) on frames of its own, again and again, which go where it redirects them;
    seconds that it took. SIGALRM ends it and must have a handler.

    They are as a network card's driver gives them: in pages that no socket owns, with the space before them that XDP asks for.
    """
    cdef uint8_t frame[64]
    cdef double start = seconds_now()
    cdef int failed
    memset(frame, 0, sizeof(frame))
    with nogil:
        failed = run_live(program, frame, frame_bytes, BATCH, <uint64_t>(seconds * 1e6))
    if failed < 0 and errno != EINTR:
        raise OSError(errno, "bpf: running the program on live frames")
    return seconds_now() - start
