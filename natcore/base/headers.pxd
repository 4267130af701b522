"""Protocol headers as on the wire: packed, every field big-endian; protocol numbers; unaligned loads."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "natcore takes two fields as one word, the first in its low half: it runs on little-endian processors"
    #endif
    """

cdef enum:
    ETHERNET_BYTES = 14
    VLAN_BYTES = 4
    ETHERTYPE_IPV4 = 0x0800     # host order
    ETHERTYPE_ARP = 0x0806
    ETHERTYPE_VLAN = 0x8100     # 802.1Q
    ETHERTYPE_QINQ = 0x88A8     # 802.1ad

    PROTOCOL_HOP_BY_HOP = 0
    PROTOCOL_ICMP = 1
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    PROTOCOL_DCCP = 33
    PROTOCOL_AH = 51
    PROTOCOL_UDPLITE = 136

    IPV4_DF = 0x4000            # host order
    IPV4_FRAGMENT = 0x3FFF      # more-fragments or offset
    IPV4_MORE = 0x2000
    IPV4_OFFSET = 0x1FFF        # in units of 8 bytes
    IPV4_OPTION_END = 0
    IPV4_OPTION_NONE = 1        # a byte alone
    IPV4_OPTION_COPIED = 0x80   # bit of an option's type: copy into every fragment
    TCP_FIN = 0x01
    TCP_SYN = 0x02
    TCP_RST = 0x04
    TCP_PSH = 0x08
    TCP_ACK = 0x10
    TCP_CWR = 0x80
    TCP_HEADER_BYTES = 20       # without options
    TCP_OPTION_END = 0
    TCP_OPTION_NOP = 1
    TCP_OPTION_MSS = 2

    ICMP_ECHO_REPLY = 0
    ICMP_UNREACHABLE = 3
    ICMP_TOO_BIG = 4            # code of destination unreachable: fragmentation needed, and DF set
    ICMP_ECHO_REQUEST = 8
    ICMP_TIME_EXCEEDED = 11
    ICMP_PARAMETER_PROBLEM = 12

cdef enum:                      # one bit per type: echo, timestamp, information, address mask (RFC 792, RFC 950)
    ICMP_REQUESTS = 1 << 8 | 1 << 13 | 1 << 15 | 1 << 17
    ICMP_REPLIES = 1 << 0 | 1 << 14 | 1 << 16 | 1 << 18

cdef inline bint is_request(uint8_t type) noexcept nogil:
    """Whether it is an ICMP query, which has an identifier as its reply does."""
    return type < 32 and <uint32_t>ICMP_REQUESTS >> type & 1

cdef inline bint is_reply(uint8_t type) noexcept nogil:
    return type < 32 and <uint32_t>ICMP_REPLIES >> type & 1

cdef inline bint is_echo(uint8_t type) noexcept nogil:
    return type == ICMP_ECHO_REQUEST or type == ICMP_ECHO_REPLY

cdef packed struct EthernetHeader:  # IEEE 802.3
    uint8_t destination[6]
    uint8_t source[6]
    uint16_t ethertype

cdef packed struct Ipv4Header:      # RFC 791
    uint8_t version_ihl         # version 4, header length in 32-bit words
    uint8_t tos
    uint16_t total_length       # bytes, header included
    uint16_t identification
    uint16_t fragment           # flags and offset
    uint8_t ttl
    uint8_t protocol
    uint16_t checksum
    uint32_t source
    uint32_t destination

cdef packed struct TcpHeader:       # RFC 9293
    uint16_t source_port
    uint16_t destination_port
    uint32_t sequence
    uint32_t acknowledgement
    uint8_t data_offset         # high four bits: header length in 32-bit words
    uint8_t flags
    uint16_t window
    uint16_t checksum
    uint16_t urgent

cdef packed struct UdpHeader:       # RFC 768
    uint16_t source_port
    uint16_t destination_port
    uint16_t length             # bytes, header included
    uint16_t checksum           # 0: none

cdef packed struct IcmpHeader:      # RFC 792
    uint8_t type
    uint8_t code
    uint16_t checksum
    uint16_t identifier         # query and reply; otherwise the first half of the rest of the header
    uint16_t sequence           # echo; destination unreachable code 4: MTU of the next hop

cdef inline uint64_t load64(const void* at) noexcept nogil:
    """Loads eight bytes from any address, in memory order."""
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value

cdef inline uint32_t load32(const void* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value

cdef inline uint16_t load16(const void* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value
