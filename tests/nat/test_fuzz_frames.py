"""The frame fuzzer, short: its long run is `make sanitize`."""

from __future__ import annotations

from natcore import Verdict
from runs.fuzz_frames import run

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
    met = set(run(25_000, seed=1)) | set(run(25_000, seed=2))
    assert met >= MET, sorted(Verdict(verdict).name for verdict in MET - met)
