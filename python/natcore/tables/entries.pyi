"""Compiled entries, immutable, swapped whole."""

from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class RuleSet:
    def __new__(
        cls,
        snat: list[tuple[int, int, list[int]]],
        ranges: list[tuple[int, int | None]],
        dnat: list[tuple[int, int, int, int, int, list[tuple[int, int]]]],
        dnat_ranges: list[tuple[int, int, int]],
        whole: list[tuple[int, int]],
        plain: list[tuple[int, int, int, int, int]],
        inside: list[tuple[int, int]],
        speakers: list[tuple[int, int, int]],
        plain_starts: list[tuple[int, int | None]],
        plain_sources: list[tuple[int | None, list[tuple[int, int, int]]]],
    ) -> Self: ...
