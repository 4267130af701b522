"""Configuration: what Policy, Timeouts and the gateway's arguments say; it is replaced whole, with all workers locked."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.workers.inside_mtu cimport PathMtus

cdef enum:                      # Filtering
    FILTER_NONE = 0             # endpoint-independent
    FILTER_ADDRESS = 1
    FILTER_ADDRESS_AND_PORT = 2

cdef enum:                      # IpOptions: of forwarded packets; source routes are always dropped
    OPTIONS_RFC7126 = 0         # drop what RFC 7126 drops by default
    OPTIONS_PASS = 1            # forward all well-formed options
    OPTIONS_DROP = 2            # drop all options

cdef struct Configuration:      # packets of established sessions read the first line
    bint ethernet               # frames begin with an Ethernet header
    bint decrement_ttl
    bint inbound_refresh
    bint unique_ids             # translated packets that may be fragmented leave with a new IP identification
    uint16_t mss                # upper bound of a SYN's MSS option; 0: unchanged
    uint8_t lowest_ttl          # minimum TTL of forwarded packets
    uint8_t ip_options          # IpOptions
    uint8_t filtering[3]        # Filtering, by port space
    uint8_t mapping[3]          # 1: address-and-port-dependent mapping, by port space
    bint tcp_pickup
    bint hairpin
    bint icmp_unreachable
    bint echo_only              # refuse ICMP queries other than echo
    bint reverse_path_filter    # drop packets from outside with an inside source
    bint hold_syns              # hold unsolicited SYNs and answer them (RFC 5382 REQ-4)
    bint link_local             # forward 169.254/16
    bint class_e                # forward 240/4
    uint32_t mapping_cap        # sessions opened from outside, per mapping
    uint32_t outside_cap        # sessions opened from outside, per gateway
    uint32_t sessions_per_subscriber    # NO_LIMIT: none; likewise the next three
    uint32_t ports_per_subscriber
    uint32_t new_per_second
    uint32_t gateway_per_second         # sessions opened from inside in a second
    uint32_t warn_sessions      # threshold of the event; 0: off
    uint32_t rearm_sessions     # at or below: rearms it
    uint32_t warn_ports         # likewise for the ports of an outside address and protocol (port blocks: of an outside address)
    uint32_t rearm_ports
    uint64_t window_ns          # of the tables, from here on: configure() in setup.pyx tells them
    uint32_t timeout_ms[8]      # by TimeoutClass
    uint32_t hold_down_ms
    uint32_t blocks             # port blocks of a subscriber at most; 0: none are assigned
    uint32_t icmp_rate
    uint8_t port_policy         # PortPolicy
    uint8_t pooling             # Pooling
    bint parity

cdef struct Links:              # the gateway's own links; a plane's loop says what its worker's are
    uint32_t address[2]         # by Side, big-endian; 0: none: address of the gateway
    uint32_t mtu[2]             # by Side, bytes of an IPv4 packet; the smallest of several links
    const PathMtus* path_mtus   # MTUs of inside links where they differ, or NULL
    bint reverse_path_filter    # both sides are interfaces: packets from outside with an inside source are spoofed

cdef class Settings:
    cdef Configuration values
