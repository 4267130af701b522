"""No answer of `who` is wrong: a short run of the random lives of tests/truth.py (`make truth` is the long one)."""

from __future__ import annotations

import pytest

from truth import Result, one_life


@pytest.mark.parametrize("first", [0, 100])
def test_no_answer_is_wrong_whatever_the_log_went_through(first: int) -> None:
    total = Result()
    for seed in range(first, first + 5):
        total.add(one_life(seed, 60))
    assert total.wrong == []
    assert total.orderly_gaps == 0 and {"exact", "nobody", "gap"} <= set(total.answers)
