"""Compiled entries, immutable, swapped whole."""

from typing_extensions import Self, disjoint_base

@disjoint_base
class RuleSet:
    def __new__(cls, entries: list[tuple[int, list[int]]], ranges: list[tuple[int, int | None]]) -> Self: ...
