"""The frame fuzzer, short: its long run is `make sanitize`."""

from __future__ import annotations

import pytest

from fuzz_frames import run
from natcore import Verdict

MET = {
    Verdict.OUTBOUND,
    Verdict.INBOUND,
    Verdict.HAIRPIN,
    Verdict.LOCAL,
    Verdict.DROP_MALFORMED,
    Verdict.DROP_CHECKSUM,
    Verdict.DROP_TTL,
    Verdict.DROP_NO_SNAT_ENTRY,
    Verdict.DROP_NO_MAPPING,
    Verdict.DROP_UNSUPPORTED,
    Verdict.DROP_FRAGMENT,
    Verdict.DROP_SPOOFED,
    Verdict.DROP_MTU,
}


@pytest.mark.parametrize("seed", [1, 2])
def test_random_frames_are_counted_exactly(seed: int) -> None:
    assert set(run(25_000, seed)) >= MET
