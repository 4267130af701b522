"""The frame fuzzer, short: its long run is `make sanitize`."""

from __future__ import annotations

from natcore import Verdict
from runs.fuzz_frames import run_all

MET = {
    Verdict.OUTBOUND,
    Verdict.INBOUND,
    Verdict.HAIRPIN,
    Verdict.UNTRANSLATED,
    Verdict.LOCAL,
    Verdict.DROP_MALFORMED,
    Verdict.DROP_CHECKSUM,
    Verdict.DROP_TTL,
    Verdict.DROP_NO_SNAT_ENTRY,
    Verdict.DROP_NO_MAPPING,
    Verdict.DROP_FILTERED,
    Verdict.DROP_PORTS_EXHAUSTED,
    Verdict.DROP_SESSION_LIMIT,
    Verdict.DROP_OUTSIDE_LIMIT,
    Verdict.DROP_UNSUPPORTED,
    Verdict.DROP_FRAGMENT,
    Verdict.DROP_SPOOFED,
    Verdict.DROP_MTU,
}


def test_random_frames_are_counted_exactly() -> None:
    met, protocols = run_all(100_000, seed=0)
    assert set(met) >= MET, sorted(Verdict(verdict).name for verdict in MET - set(met))
    assert 0 not in protocols and set(protocols) >= {1, 6, 17}
    assert len(protocols) > 150  # of the 255 that may be forwarded; some find all ports, or sessions, taken
