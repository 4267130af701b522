"""AF_PACKET rings of one interface."""

from collections.abc import Sequence
from typing import Self

from typing_extensions import disjoint_base

from natcore.io.device import Driver

__pyx_capi__: dict[str, object]

@disjoint_base
class PacketRing(Driver):
    def __new__(
        cls,
        index: int,
        mtu: int = 1500,
        at_once: bool = False,
        shared: bool = False,
        left: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> Self: ...
    def leave(self) -> tuple[tuple[int, int, int], tuple[int, ...]]: ...
    def send(self, frame: bytes) -> None: ...
    def receive(self) -> list[tuple[bytes, int, bool, tuple[int, int, int, int, int, int]]]: ...
