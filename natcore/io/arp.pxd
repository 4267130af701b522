"""ARP for IPv4 over Ethernet (RFC 826): replies for the gateway's addresses, and announcements (RFC 5227)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from natcore.base.compiler cimport bswap16, bswap32
from natcore.base.headers cimport ETHERTYPE_ARP, EthernetHeader

cdef enum:
    ARP_FRAME_BYTES = 42
    ARP_ETHERNET = 1            # host order
    ARP_IPV4 = 0x0800
    ARP_REQUEST = 1
    ARP_REPLY = 2

cdef packed struct ArpFrame:
    EthernetHeader link
    uint16_t hardware
    uint16_t protocol
    uint8_t hardware_bytes
    uint8_t protocol_bytes
    uint16_t operation
    uint8_t sender_mac[6]
    uint32_t sender             # big-endian
    uint8_t target_mac[6]
    uint32_t target             # big-endian

cdef inline uint32_t arp_requested_address(const uint8_t* frame, uint32_t length) noexcept nogil:
    """The address (host order) that a request asks for; 0: not a request, or gratuitous."""
    cdef const ArpFrame* arp = <const ArpFrame*>frame
    if (length < ARP_FRAME_BYTES or arp.hardware != bswap16(ARP_ETHERNET) or arp.protocol != bswap16(ARP_IPV4)
            or arp.hardware_bytes != 6 or arp.protocol_bytes != 4 or arp.operation != bswap16(ARP_REQUEST)
            or arp.sender == arp.target):
        return 0
    return bswap32(arp.target)

cdef inline void arp_reply(uint8_t* frame, const uint8_t* mac) noexcept nogil:
    """Turns a validated request into the reply that the address is at mac. ARP_FRAME_BYTES long."""
    cdef ArpFrame* arp = <ArpFrame*>frame
    cdef uint32_t asked = arp.target
    memcpy(arp.link.destination, arp.sender_mac, 6)
    memcpy(arp.link.source, mac, 6)
    arp.operation = bswap16(ARP_REPLY)
    memcpy(arp.target_mac, arp.sender_mac, 6)
    arp.target = arp.sender
    memcpy(arp.sender_mac, mac, 6)
    arp.sender = asked

cdef inline void arp_announce(uint8_t* frame, uint32_t address, const uint8_t* mac) noexcept nogil:
    """Writes a gratuitous broadcast request for address (big-endian). ARP_FRAME_BYTES long."""
    cdef ArpFrame* arp = <ArpFrame*>frame
    memset(frame, 0, ARP_FRAME_BYTES)
    memset(arp.link.destination, 0xFF, 6)
    memcpy(arp.link.source, mac, 6)
    arp.link.ethertype = bswap16(ETHERTYPE_ARP)
    arp.hardware = bswap16(ARP_ETHERNET)
    arp.protocol = bswap16(ARP_IPV4)
    arp.hardware_bytes, arp.protocol_bytes = 6, 4
    arp.operation = bswap16(ARP_REQUEST)
    memcpy(arp.sender_mac, mac, 6)
    arp.sender = arp.target = address
