from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def encode_logs(
    records: NDArray[np.uint8],
    head: bytes,
    names: Sequence[str],
    run: bytes | None = None,
    local: Sequence[str] = (),
    *,
    texts: NDArray[np.uint8] | None = None,
    offsets: NDArray[np.uint32] | None = None,
    numbers: NDArray[np.uint32] | None = None,
) -> bytes: ...
