"""A configuration as Python makes it: checked by Policy and Timeouts, in the core's numbers and units."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from natcore.workers.configuration cimport Configuration


cdef class Settings:
    """What a gateway's workers are configured with; it does not change."""

    def __cinit__(self, *, bint ethernet, bint decrement_ttl, timeouts_ms, uint64_t window_ns, uint32_t outside_cap,
                  mapping, filtering, uint8_t port_policy, uint32_t blocks, uint32_t hold_down_ms, bint parity,
                  uint8_t pooling, uint32_t sessions_per_subscriber, uint32_t ports_per_subscriber,
                  uint32_t new_per_second, uint32_t gateway_per_second, warn_sessions, warn_ports, uint32_t icmp_rate,
                  bint inbound_refresh, bint tcp_pickup, bint hairpin, bint icmp_unreachable, bint unique_ids,
                  bint echo_only, bint reverse_path_filter, uint16_t mss, bint unsolicited, bint link_local, bint class_e,
                  uint8_t ip_options):
        """timeouts_ms: by TimeoutClass. mapping, filtering: by port space. warn_sessions, warn_ports: the counts at which
        the event comes, and is rearmed. outside_cap: sessions opened from outside."""
        cdef Configuration* values = &self.values
        cdef uint32_t i
        for i in range(<uint32_t>len(timeouts_ms)):
            values.timeout_ms[i] = timeouts_ms[i]
        for i in range(3):
            values.mapping[i] = mapping[i]
            values.filtering[i] = filtering[i]
        values.warn_sessions, values.rearm_sessions = warn_sessions
        values.warn_ports, values.rearm_ports = warn_ports
        values.mapping_cap = 1024
        values.outside_cap = outside_cap
        values.ethernet = ethernet
        values.decrement_ttl = decrement_ttl
        values.lowest_ttl = 2 if decrement_ttl else 0
        values.window_ns = window_ns
        values.port_policy = port_policy
        values.blocks = blocks
        values.hold_down_ms = hold_down_ms
        values.parity = parity
        values.pooling = pooling
        values.sessions_per_subscriber = sessions_per_subscriber
        values.ports_per_subscriber = ports_per_subscriber
        values.new_per_second = new_per_second
        values.gateway_per_second = gateway_per_second
        values.icmp_rate = icmp_rate
        values.inbound_refresh = inbound_refresh
        values.tcp_pickup = tcp_pickup
        values.hairpin = hairpin
        values.icmp_unreachable = icmp_unreachable
        values.unique_ids = unique_ids
        values.echo_only = echo_only
        values.reverse_path_filter = reverse_path_filter
        values.mss = mss
        values.hold_syns = unsolicited
        values.link_local = link_local
        values.class_e = class_e
        values.ip_options = ip_options
