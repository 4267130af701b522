"""Compiled entries, immutable, swapped whole."""

from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class RuleSet:
    def __new__(cls, entries: list[tuple[int, list[int]]], ranges: list[tuple[int, int | None]]) -> Self: ...
