"""The workers of a gateway, which its parts share."""

from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Workers:
    def __new__(cls, filters: bool) -> Self: ...
