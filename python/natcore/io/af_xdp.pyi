"""AF_XDP sockets of one interface."""

from typing import Self

from typing_extensions import disjoint_base

from natcore.io.device import Driver
from natcore.io.umem import FrameMemory

__pyx_capi__: dict[str, object]

@disjoint_base
class XdpSockets(Driver):
    def __new__(
        cls,
        memory: FrameMemory,
        index: int,
        queues: int = 1,
        entries: int = 4096,
        virtual: bool = False,
        first: int = 0,
    ) -> Self: ...
    @property
    def fds(self) -> list[int]: ...
    @property
    def zero_copy(self) -> bool: ...
    def send(self, frame: bytes) -> None: ...
    def receive(self) -> list[bytes]: ...
