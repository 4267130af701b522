"""A long run says how far it is, at most once in a while."""

import io

from support.progress_line import ProgressLine


def test_a_line_has_what_is_done_and_what_is_left():
    now, out = [100.0], io.StringIO()
    line = ProgressLine("lives", 1000, every=15.0, clock=lambda: now[0], out=out)
    for now[0], done, note in [
        (105.0, 10, ""),
        (115.0, 50, ""),
        (116.0, 60, ""),
        (200.0, 100, "2 wrong"),
        (4000.0, 999, ""),
    ]:
        line.at(done, note)
    assert out.getvalue().splitlines() == [
        "50 of 1,000 lives, 0:00:15, about 0:04:45 left",
        "100 of 1,000 lives, 0:01:40, about 0:15:00 left; 2 wrong",
        "999 of 1,000 lives, 1:05:00, about 0:00:04 left",
    ]


def test_a_short_run_prints_nothing():
    out = io.StringIO()
    line = ProgressLine("seeds", 3, clock=lambda: 0.0, out=out)
    for done in range(4):
        line.at(done)
    assert out.getvalue() == ""
