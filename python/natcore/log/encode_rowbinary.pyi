import numpy as np
from numpy.typing import NDArray

ROW_BYTES: int

def encode_rows(records: NDArray[np.uint8], head: bytes, tail: bytes) -> bytes: ...
