"""No answer of `who` is wrong: a short run of the random lives of tests/runs/truth.py (`make truth` is the long one)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest

from natcore.who import conclude, knowledge, query
from runs.truth import Result, lived, one_life


@pytest.mark.parametrize("first", [0, 100])
def test_no_answer_is_wrong_whatever_the_log_went_through(first: int) -> None:
    total = Result()
    for seed in range(first, first + 5):
        total.add(one_life(seed, 60))
    assert total.wrong == []
    assert total.orderly_gaps == 0 and {"exact", "unused", "gap"} <= set(total.answers)


MUTANTS: dict[str, tuple[tuple[object, ...], str, Callable[..., Any]]] = {
    "any session is alone": ((conclude, query), "is_alone", lambda *_: True),
    "every moment is covered": ((conclude.Run,), "covers", lambda *_: True),
    "nothing is missing": ((conclude,), "_gaps", lambda *_: []),
    "no number is missing": ((knowledge,), "_connected", lambda *_: True),
    "a clock that was set is right": ((knowledge.Knowledge,), "doubtful", lambda _, row: row),
}


SEEDS = (20_001, 20_002, 20_003, 20_008, 20_019, *range(20_020, 20_050))  # lives that notice much come first


def test_the_lives_notice_each_wrong_conclusion() -> None:
    """One rule of the conclusion at a time does not hold: some answer is wrong then, and the account says so."""
    unnoticed = dict(MUTANTS)
    for seed in SEEDS:
        with lived(seed) as life:
            for name, (owners, attribute, wrong) in MUTANTS.items():
                with ExitStack() as stack:
                    for owner in owners:
                        stack.enter_context(mock.patch.object(owner, attribute, wrong))
                    life.ask(200 if name in unnoticed else 0)
                if life.result.wrong:
                    unnoticed.pop(name)
                    life.result.wrong.clear()
        if not unnoticed:
            return
    assert unnoticed == {}
