"""A document's first Python example that has a text, as printed: `python tests/support/readme_example.py README.md [TEXT]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def example(document: str, text: str = "") -> str:
    """The first Python block with the text."""
    for block in re.findall(r"^```python\n(.*?)^```$", document, re.S | re.M):
        if text in block:
            return str(block)
    raise ValueError(f"the document has no Python block with {text!r}")


if __name__ == "__main__":
    print(example(Path(sys.argv[1]).read_text(), *sys.argv[2:]), end="")
