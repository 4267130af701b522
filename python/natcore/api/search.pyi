"""Searches of a gateway's tables. Addresses in host order, by role: inside, remote, outside."""

from collections.abc import Sequence
from typing import Any, Self

from numpy.typing import NDArray
from typing_extensions import disjoint_base

from natcore.api.workers import Workers

@disjoint_base
class Search:
    def __new__(
        cls,
        workers: Workers,
        addresses: Sequence[int],
        masks: Sequence[int],
        ports: Sequence[int],
        protocol: int,
        entry: int,
    ) -> Self: ...
    @property
    def done(self) -> bool: ...

class SessionSearch(Search):
    def find(self, rows: NDArray[Any]) -> int: ...

class MappingSearch(Search):
    def find(self, rows: NDArray[Any]) -> int: ...
