from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

def encode_frames(
    records: NDArray[np.uint8], start: bytes, middles: Iterable[bytes], names: Iterable[bytes]
) -> bytes: ...
