"""The boundary between Gateway and the core: everything checked already, addresses in host order, times in ns."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from natcore.api.inspection import Inspection
from natcore.api.log_rows import LogRows
from natcore.api.workers import Workers
from natcore.workers.entry_changes import Transition

@disjoint_base
class Core:
    def __new__(
        cls,
        *,
        max_sessions: int,
        max_mappings: int,
        max_subscribers: int,
        max_addresses: int,
        records: int,
        hash_key: bytes,
        random_key: bytes,
        port_ranges: Sequence[tuple[int, int]],
        port_policy: int,
        block_size: int,
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
        timeouts_ms: Sequence[int],
        window_ns: int,
        epoch_ns: int,
        workers: int,
        mapping: Sequence[int],
        filtering: Sequence[int],
        link_addresses: Sequence[int],
        mtus: Sequence[int],
        icmp_rate: int,
        ethernet: bool,
        decrement_ttl: bool,
        inbound_refresh: bool,
        tcp_pickup: bool,
        hairpin: bool,
        icmp_unreachable: bool,
        unique_ids: bool,
        echo_only: bool,
        reverse_path_filter: bool,
        mss: int,
        unsolicited: bool,
        huge_pages: int,
        numa_node: int,
        memory_bytes: int,
        memory_name: str,
    ) -> Self: ...
    @property
    def workers(self) -> Workers: ...
    @property
    def log_rows(self) -> LogRows: ...
    @property
    def inspection(self) -> Inspection: ...
    @property
    def now_ns(self) -> int: ...
    def tables(self) -> dict[str, int]: ...
    def claim(self, worker: int = -1) -> None: ...
    def unclaim(self, worker: int = -1) -> None: ...
    def claim_for_ever(self) -> bool: ...
    def forked(self, key: bytes | None) -> bool: ...
    def worker_capsule(self, worker: int = 0, owner: object = None) -> object: ...
    @property
    def port_unit(self) -> int: ...
    def translate(
        self,
        frames: NDArray[np.uint8],
        lengths: NDArray[np.uint32],
        sides: NDArray[np.uint8] | None,
        side: int,
        nows: NDArray[np.uint64] | None,
        now_ns: int,
        verdicts: NDArray[np.uint8],
        worker: int = -1,
    ) -> None: ...
    def translate_one(
        self, frame: bytes | bytearray | memoryview, side: int, now_ns: int, worker: int = -1
    ) -> tuple[int, bytes]: ...
    def owners(
        self,
        frames: NDArray[np.uint8],
        lengths: NDArray[np.uint32],
        sides: NDArray[np.uint8] | None,
        side: int,
        out: NDArray[np.uint8],
    ) -> None: ...
    def advance(self, now_ns: int, losing: bool = False) -> bool: ...
    def take_generated(self) -> list[tuple[bytes, int, int]]: ...
    def add_address(self, ip: int, eip: int) -> int: ...
    def drop_address(self, number: int) -> None: ...
    def swap(self, after: Transition, now_ns: int) -> int: ...
    def preview(self, after: Transition) -> tuple[int, int, int]: ...
    def count_all(self, counts: NDArray[np.uint64]) -> None: ...
    def reserve(
        self, address: int, space: int, first: int, last: int, now_ns: int, look: bool = False
    ) -> tuple[int, int, int] | None: ...
    def unreserve(self, address: int, space: int, first: int, last: int) -> None: ...
    def share_address(self, ip: int, wanted: bytes | None) -> None: ...
    def note_address(self, address: int, came: bool) -> None: ...
    def set_mtu(self, side: int, mtu: int) -> None: ...
    def set_reverse_path_filter(self, on: bool) -> None: ...
    def set_link_address(self, side: int, address: int) -> None: ...
    def end_dead(self, now_ns: int, losing: bool = False) -> tuple[bool, int]: ...
    def end(
        self,
        addresses: Sequence[int],
        masks: Sequence[int],
        ports: Sequence[int],
        protocol: int,
        entry: int,
        newest: int,
        place: int,
        losing: bool = False,
    ) -> tuple[int, int | None]: ...
