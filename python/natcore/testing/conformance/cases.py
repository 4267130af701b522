"""A case of conformance: a function that puts a NAT to a requirement."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from natcore.testing.conformance.device import Bench


class Case(NamedTuple):
    """A case.

    Attributes
    ----------
    rfc, number
        The requirement that it shows.
    name
        A word for it, unique among all.
    run
        Takes a `Bench`; an AssertionError says what is wrong.
    """

    rfc: str
    number: str
    name: str
    run: Callable[[Bench], None]

    @property
    def key(self) -> str:
        """Such as "4787-13a"."""
        return f"{self.rfc}-{self.number}"


CASES: list[Case] = []


def case(rfc: str, number: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Register a function as a case of a requirement."""

    def register(run: Callable[[Bench], None]) -> Callable[[Bench], None]:
        CASES.append(Case(rfc, number, run.__name__, run))
        return run

    return register
