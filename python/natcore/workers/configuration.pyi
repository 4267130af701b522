"""A configuration as Python makes it: checked by Policy and Timeouts, in the core's numbers and units."""

from collections.abc import Sequence
from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Settings:
    def __new__(
        cls,
        *,
        ethernet: bool,
        decrement_ttl: bool,
        timeouts_ms: Sequence[int],
        window_ns: int,
        outside_cap: int,
        mapping: Sequence[int],
        filtering: Sequence[int],
        port_policy: int,
        blocks: int,
        hold_down_ms: int,
        parity: bool,
        pooling: int,
        sessions_per_subscriber: int,
        ports_per_subscriber: int,
        new_per_second: int,
        gateway_per_second: int,
        warn_sessions: tuple[int, int],
        warn_ports: tuple[int, int],
        icmp_rate: int,
        inbound_refresh: bool,
        tcp_pickup: bool,
        hairpin: bool,
        icmp_unreachable: bool,
        unique_ids: bool,
        echo_only: bool,
        reverse_path_filter: bool,
        mss: int,
        unsolicited: bool,
        link_local: bool,
        class_e: bool,
        ip_options: int,
    ) -> Self: ...
