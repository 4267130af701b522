"""For callers in C and Cython: where natcore.h and the .pxd files are, and the version of what they freeze."""

from __future__ import annotations

from pathlib import Path

from natcore.api import c_interface

ABI_VERSION: int = c_interface.ABI_VERSION
C_API = c_interface.C_API


def get_include() -> str:
    """The folder for a compiler's and Cython's -I, as in `#include <natcore/natcore.h>` and `from natcore.translate cimport …`.

    >>> (Path(get_include()) / "natcore" / "natcore.h").exists()
    True
    """
    return str(Path(c_interface.__file__).parents[2])
