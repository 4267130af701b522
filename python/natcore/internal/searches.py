"""What a gateway's searches begin with: its tables, and criteria that were checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from natcore.api.search import MappingSearch, SessionSearch
from natcore.dtypes import MAPPING, SESSION
from natcore.internal.endpoints import criteria
from natcore.internal.read_only import UNSET

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from natcore.api.workers import Workers

FIND_ROWS = 256  # of a slice


def sessions(workers: Workers, *asked: Any) -> Iterator[NDArray[np.void]]:
    """Yield slices of SESSION rows. asked: as `criteria` takes them; ConfigurationError comes at once."""
    return _slices(SessionSearch(workers, *criteria(*asked)), SESSION)


def mappings(workers: Workers, subscriber: Any, outside: Any, protocol: Any, entry: Any) -> Iterator[NDArray[np.void]]:
    """Yield slices of MAPPING rows likewise."""
    return _slices(MappingSearch(workers, *criteria(subscriber, UNSET, outside, protocol, entry)), MAPPING)


def _slices(search: SessionSearch | MappingSearch, dtype: np.dtype[np.void]) -> Iterator[NDArray[np.void]]:
    while not search.done:
        rows = np.zeros(FIND_ROWS, dtype)
        yield rows[: search.find(rows)]
