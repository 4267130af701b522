"""`natcore restart` again and again under iperf3, silent and talking TCP connections, UDP flows and a download, as root:
`python tests/runs/restarts.py --restarts 50 --connections 1000 --bytes 1G`.

Nothing may be reset, the download's SHA-256 must be equal, the log's sums must be the traffic's over all processes, and
`who` must answer across them. The longest pauses are printed; with --limit a longer one fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/

import argparse
import statistics
import tempfile

from support.netns import build
from support.restarts import look

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    """Return bytes: "1G"."""
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1] in _UNITS else int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--bytes", type=size, default=size("1G"))
    parser.add_argument("--seconds", type=float, default=0.0, help="that the traffic lasts; 0: six a restart")
    parser.add_argument("--iperf", default="100M", help="bits a second of iperf3; empty: none")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds of the longest pause; 0: it is only printed")
    given = parser.parse_args()
    seconds = given.seconds or 6.0 * given.restarts
    with tempfile.TemporaryDirectory(prefix="natcore-restarts-") as folder, build() as network:
        found = look(
            network, Path(folder), restarts=given.restarts, connections=given.connections, size=given.bytes,
            seconds=seconds, iperf=given.iperf,
        )  # fmt: skip
    waited = found.waited or [0.0]
    print(
        f"{len(found.waited)} of {given.restarts} restarts; packets waited {statistics.median(waited):.3f} s (median), "
        f"{max(waited):.3f} s (longest)"
    )
    for name, longest in found.longest.items():
        print(f"longest time without {'an answer' if name == 'udp' else 'data'} ({name}): {longest:.3f} s")
    print(f"frames from inside that found a ring full: {found.dropped}")
    for wrong in found.wrong:
        print(f"wrong: {wrong}")
    too_long = given.limit and max(*found.longest.values(), *waited) > given.limit
    return 1 if found.wrong or too_long or len(found.waited) < given.restarts else 0


if __name__ == "__main__":
    sys.exit(main())
