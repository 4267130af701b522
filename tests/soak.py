"""A long comparison of natcore with the oracle: `python tests/soak.py --seeds 1000 --operations 500`."""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter

from comparison import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="random gateways, each with a life of its own")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--operations", type=int, default=500, help="frames, batches, clock steps of each")
    parser.add_argument("--failures", type=int, default=3, help="stop after so many")
    arguments = parser.parse_args()
    verdicts: Counter[str] = Counter()
    failed: list[int] = []
    started = time.monotonic()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        try:
            verdicts += run(seed, arguments.operations).verdicts
        except AssertionError:
            traceback.print_exc()
            failed.append(seed)
            if len(failed) >= arguments.failures:
                break
    total = sum(verdicts.values())
    for name, count in verdicts.most_common():
        print(f"{name:24}{count:12,}{count / total:8.2%}")
    seconds = time.monotonic() - started
    print(f"{total:,} frames in {seconds:.1f} s, {len(failed)} of {arguments.seeds} seeds differ {failed or ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
