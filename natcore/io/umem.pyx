"""FrameMemory: the Python object that owns a umem."""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free

from natcore.io.kernel cimport (
    MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap, munmap,
)
from natcore.base.headers cimport ETHERNET_BYTES


cdef class FrameMemory:
    """A umem, shared by the AF_XDP sockets of one loop.

    frames: number of chunks, 1 to 2^22. mtu: bytes of the largest IPv4 packet: up to 1,778, else up to 3,826.
    Raises ValueError; OSError (ENOMEM).
    """

    def __cinit__(self, uint32_t frames, uint32_t mtu=1500):
        cdef uint32_t i
        cdef void* area
        if not 1 <= frames <= 1 << 22:
            raise ValueError(f"frames must be between 1 and {1 << 22}, got {frames}")
        self.umem.chunk_shift = 11 if mtu + ETHERNET_BYTES + HEADROOM <= 2048 else 12
        self.umem.chunk_bytes = <uint32_t>1 << self.umem.chunk_shift
        if mtu > self.mtu:
            raise ValueError(f"mtu must be at most {self.mtu} with AF_XDP, got {mtu}")
        self.umem.chunks = frames
        area = mmap(NULL, <size_t>frames << self.umem.chunk_shift, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if area != MAP_FAILED:
            self.umem.area = <uint8_t*>area
            madvise(area, <size_t>frames << self.umem.chunk_shift, MADV_HUGEPAGE)
        self.umem.holders = <uint8_t*>calloc(frames, 1)
        self.umem.free = <uint32_t*>calloc(frames, 4)
        if self.umem.area == NULL or self.umem.holders == NULL or self.umem.free == NULL:
            raise MemoryError(f"frames={frames}: no memory")
        for i in range(frames):
            free_chunk(&self.umem, frames - 1 - i)

    def __dealloc__(self):
        if self.umem.area != NULL:
            munmap(self.umem.area, <size_t>self.umem.chunks << self.umem.chunk_shift)
        free(self.umem.holders)
        free(self.umem.free)

    @property
    def mtu(self) -> int:
        """Bytes of the largest IPv4 packet that fits."""
        return self.umem.chunk_bytes - HEADROOM - ETHERNET_BYTES

    @property
    def free(self) -> int:
        """Free chunks. For tests."""
        return self.umem.free_count
