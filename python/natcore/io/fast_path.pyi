"""The kernel fast path."""

from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class FastPath:
    def __new__(
        cls,
        tags: int,
        entries: int,
        hops: int,
        generation: int,
        bits: int,
        key: int,
        other_key: int,
        capacity: int,
        outside: int,
        offset_ns: int,
    ) -> Self: ...
    def counters(self) -> dict[str, int]: ...
    def interface_counters(self, number: int) -> dict[str, int]: ...
    def barrier(self) -> None: ...
    def close(self) -> None: ...
