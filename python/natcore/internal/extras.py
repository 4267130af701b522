"""Optional packages: each belongs to an extra of natcore; a missing one raises an error that names the extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from natcore.errors import MissingExtraError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """For the imports of an extra's packages. Raises MissingExtraError if one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "natcore"):
            raise
        raise MissingExtraError(f"{module} is not installed: pip install 'natcore[{name}]'", name=module) from error
