"""What Hypothesis calls when it is imported: afterwards `strategies.from_type` knows natcore's configurations."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any


def register() -> None:
    """Register strategies for Configuration, Policy, Timeouts, SnatEntry, DnatEntry and NoNatEntry: values that may be used."""
    from hypothesis import strategies as st

    from natcore.config import DnatEntry, NoNatEntry, Policy, SnatEntry, Timeouts
    from natcore.testing import configurations as made

    drawn: dict[type[Any], Callable[[Random], Any]] = {
        made.Configuration: made.configuration,
        Policy: made.policy,
        Timeouts: made.timeouts,
        SnatEntry: made.snat,
        DnatEntry: made.forwarding,
        NoNatEntry: made.plain,
    }

    def register_one(kind: type[Any], make: Callable[[Random], Any]) -> None:
        # it is also asked for a type above, such as object
        st.register_type_strategy(kind, lambda _: st.randoms(use_true_random=False).map(make))

    for kind, make in drawn.items():
        register_one(kind, make)
