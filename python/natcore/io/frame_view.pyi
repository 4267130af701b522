"""A ring of frames, as they came and as they leave, for one reader."""

from collections.abc import Sequence
from typing import Self

from typing_extensions import disjoint_base

_Seen = tuple[int, int, int, int, int, int, bytes, int, bytes]

@disjoint_base
class FrameView:
    def __new__(
        cls,
        addresses: Sequence[int],
        masks: Sequence[int],
        ports: Sequence[int],
        protocol: int,
        drops: bool,
        snap: int,
        capacity: int,
    ) -> Self: ...
    @property
    def lost(self) -> int: ...
    def take(self, most: int = 1024) -> list[_Seen]: ...
