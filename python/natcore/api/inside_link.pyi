"""A gateway that is fed with the frames of a capture of its inside link, one after the other."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from natcore.api.gateway import Core

@disjoint_base
class InsideLink:
    def __new__(cls, core: Core, by_remote: bool, forwarded: NDArray[np.int64], secret: bytes) -> Self: ...
    def feed(
        self,
        rows: NDArray[np.uint8],
        frames: NDArray[Any],
        first_ns: int,
        verdicts: NDArray[np.uint8],
        begin: int,
        end: int,
    ) -> int: ...
    def find(self, protocol: int, address: int, port: int, remote: int, remote_port: int) -> tuple[int, int] | None: ...
    def learn_host(self, address: int, outside: int) -> None: ...
