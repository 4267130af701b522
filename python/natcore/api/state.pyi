"""A gateway's state as sections of rows."""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from natcore.api.log_rows import LogRows

@disjoint_base
class State:
    def __new__(cls, log_rows: LogRows) -> Self: ...
    @staticmethod
    def row_bytes() -> list[int]: ...
    def expected(self, tables: bool = True) -> list[list[int]]: ...
    def copy(
        self, buffers: list[list[NDArray[np.uint8]]], seeded: bool, log_rows: bool, tables: bool = True
    ) -> list[list[int]]: ...
    def set_key(self, low: int, high: int) -> None: ...
    def restore(
        self,
        buffers: list[list[NDArray[np.uint8]]],
        entries: NDArray[np.uint8],
        gap_ns: int,
        frozen: bool,
        seeded: bool,
    ) -> None: ...
