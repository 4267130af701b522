"""CapturedFrame: a frame of a capture as `natcore.api.captured` prepares it and `natcore.api.inside_link` takes it."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

cdef enum:
    ROW_BYTES = 144             # of a frame's row: Ethernet 14, IPv4 60, TCP 60, and some

cdef enum:                      # what its two port fields are
    PORTS_NONE = 0
    PORTS_L4 = 1                # ports of TCP or UDP
    PORTS_QUERY = 2             # in both: an ICMP query's identifier

cdef packed struct CapturedFrame:   # FRAME of python/natcore/capture/prepared.py
    int64_t time_ns             # since 1970
    uint32_t source             # addresses and ports in host order
    uint32_t destination
    uint32_t length             # bytes of the frame, of which the row has the headers
    int32_t message             # number of an ICMP error's whole frame, -1: it is none
    uint16_t source_port
    uint16_t destination_port
    uint8_t ports               # PORTS_…
    uint8_t protocol
    uint8_t side                # Side that it came from
    uint8_t l4                  # where the layer-4 header begins in the row
