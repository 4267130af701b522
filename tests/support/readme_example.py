"""The README's first Python example, as printed: `python tests/support/readme_example.py README.md` prints it."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def example(readme: str) -> str:
    """The first Python block."""
    match = re.search(r"^```python\n(.*?)^```$", readme, re.S | re.M)
    if match is None:
        raise ValueError("the README has no Python block")
    return match[1]


if __name__ == "__main__":
    print(example(Path(sys.argv[1]).read_text()), end="")
