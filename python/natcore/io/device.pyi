"""What every driver of an interface has."""

from typing_extensions import disjoint_base

__pyx_capi__: dict[str, object]

@disjoint_base
class Driver:
    @property
    def fd(self) -> int: ...
    def counters(self) -> dict[str, int]: ...
    def close(self) -> None: ...
