"""Places for frames, which AF_XDP sockets share with the kernel."""

from typing import Self

from typing_extensions import disjoint_base

__pyx_capi__: dict[str, object]

@disjoint_base
class FrameMemory:
    def __new__(cls, frames: int, mtu: int = 1500) -> Self: ...
    @property
    def mtu(self) -> int: ...
    @property
    def free(self) -> int: ...
