"""What a change of entries does to the sessions that are there."""

from typing import Self

from typing_extensions import disjoint_base

from natcore.tables.entries import RuleSet

@disjoint_base
class Transition:
    def __new__(
        cls,
        rules: RuleSet,
        entries: int,
        leaving: list[tuple[int, int, int, set[int]]],
        draining: list[int],
        coming: list[int],
        concerned: list[tuple[int, int]],
    ) -> Self: ...
