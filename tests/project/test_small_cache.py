"""benchmarks/small_cache.py: what valgrind wrote, as figures."""

from __future__ import annotations

from pathlib import Path

from small_cache import counts


def test_a_count_is_read_with_its_packets_and_misses(tmp_path: Path) -> None:
    events = "events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw\n"
    (tmp_path / "out.1").write_text(f"desc: Trigger: Client Request: walk 64\n{events}totals: 1000 1 2 3 40 5 6 70 8\n")
    (tmp_path / "out.2").write_text(f"desc: Trigger: Program termination\n{events}totals: 1 1 1 1 1 1 1 1 1\n")
    assert list(counts(tmp_path)) == [("walk", 64, (1000, 45, 78))]
