"""Where the frames of a capture lie in the file's bytes, and what a gateway would have got of each."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

def frame_starts(
    data: NDArray[np.uint8], at: int, end: int, header: int, swapped: bool, starts: NDArray[np.int64]
) -> tuple[int, int]: ...
def block_starts(
    data: NDArray[np.uint8], at: int, end: int, kind: int, swapped: bool, starts: NDArray[np.int64]
) -> tuple[int, int]: ...

@disjoint_base
class Preparation:
    def __new__(
        cls, mtu: int, how: int, inside: NDArray[np.uint32], macs: NDArray[np.uint64], numbers: NDArray[np.int64]
    ) -> Self: ...
    def look(
        self,
        data: NDArray[np.uint8],
        start: NDArray[np.int64],
        captured: NDArray[np.int64],
        original: NDArray[np.int64],
        interface: NDArray[np.int64],
        direction: NDArray[np.uint8],
        links: NDArray[np.uint16],
        named: NDArray[np.uint8],
    ) -> int: ...
    def left_out(self, out: NDArray[np.uint32]) -> int: ...
    def take_mended(self) -> list[int]: ...
    def fill(self, time_ns: NDArray[np.int64], rows: NDArray[np.uint8], frames: NDArray[Any]) -> dict[int, bytes]: ...
