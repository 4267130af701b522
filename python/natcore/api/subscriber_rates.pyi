"""What each inside address had from one pass through the tables to the next."""

from typing import Any

from numpy.typing import NDArray
from typing_extensions import disjoint_base

from natcore.api.search import Search

@disjoint_base
class SubscriberRates(Search):
    once: bool
    @property
    def count(self) -> int: ...
    def look(self) -> bool: ...
    def take(self, rows: NDArray[Any]) -> int: ...
