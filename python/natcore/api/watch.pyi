"""Create and end rows of a gateway's sessions for someone who watches."""

from typing import Any, Self

from numpy.typing import NDArray

from natcore.api.log_rows import Rows

class SessionTap:
    def __new__(cls, core: Rows, capacity: int) -> Self: ...
    def close(self) -> None: ...
    @property
    def lost(self) -> int: ...
    def take(self, rows: NDArray[Any]) -> int: ...
