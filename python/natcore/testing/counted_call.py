"""The program of which instructions are counted: `counted_call.py FILE FUNCTION CALLS`; it imports nothing of natcore."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Import the file, call the function, and what it returned once and then CALLS times."""
    file, name, calls = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    sys.path[0] = str(file.parent)
    found = importlib.util.spec_from_file_location(file.stem, file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[file.stem] = module
    found.loader.exec_module(module)
    call = getattr(module, name)()
    call()
    for _ in range(calls):
        call()


if __name__ == "__main__":
    main()
