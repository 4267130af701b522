"""A process that is killed while it translates and logs: tests/runs/crash.py, a few times; `make crash` is the long run."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

pytest.importorskip("aliyun.log", reason="the extra natcore[sls] is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK's own
    from runs.crash import SENT, Log, check, torment


def test_every_packet_is_in_a_row_or_in_a_declared_gap_after_sigkills(tmp_path):
    for name, (sent, unsure) in torment(tmp_path, kills=4, longest=3.5, seed=3).items():
        assert 0 <= unsure < sent, name  # some are in rows


def test_the_check_finds_what_is_missing():
    sent = np.array([(10, 0, 7), (20, 0, 7)], SENT)
    row = {(0, 7): [(10, 30, 2)]}
    assert check(sent, Log(rows=row)) == (2, 0)
    assert check(sent, Log(gaps=[(5, 25)])) == (2, 2)
    for log in (Log(), Log(gaps=[(5, 15)]), Log(rows={(0, 7): [(10, 30, 1)]}), Log(rows={(0, 7): [(10, 30, 3)]}),
                Log(rows={(0, 7): [(10, 15, 2)]})):  # fmt: skip
        with pytest.raises(AssertionError):
            check(sent, log)
