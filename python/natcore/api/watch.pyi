"""Create and end rows of a gateway's sessions for someone who watches."""

from typing import Any, Self

from numpy.typing import NDArray
from typing_extensions import disjoint_base

from natcore.api.workers import Workers

@disjoint_base
class SessionTap:
    def __new__(cls, workers: Workers, capacity: int) -> Self: ...
    def close(self) -> None: ...
    @property
    def lost(self) -> int: ...
    def take(self, rows: NDArray[Any]) -> int: ...
