"""The frozen ABI for C callers: one frame and what became of it. `translate` in `_translate.pxd` takes an array of them."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum FrameFlag:
    FRAME_CSUM_PARTIAL = 1      # the layer-4 checksum field holds the uncomplemented pseudo-header sum
    FRAME_GSO = 2               # a super-frame; gso_size is valid
    FRAME_UNFINISHED = 4        # a device has to complete something else in it: it cannot be cut into fragments
    FRAME_CROSSING = 8          # from inside, and its destination is behind an inside link: a no-NAT entry routes it there

cdef struct Frame:
    uint8_t *data               # the first byte of the Ethernet header (or of the IPv4 header: link="ip"); rewritten in place
    uint32_t length             # bytes; cut to what the packet is
    uint16_t flags              # FrameFlag
    uint16_t gso_size           # layer-4 payload bytes of each segment, with FRAME_GSO
    uint8_t side                # Side: where the frame came from; a hairpinned frame goes back there
    uint8_t verdict             # Verdict, written
    uint16_t tag                # the caller's own; never touched
