import numpy as np
from numpy.typing import NDArray

FLOW_BYTES: int
EVENT_BYTES: int
BLOCK_BYTES: int

def encode_messages(
    records: NDArray[np.uint8], sequence: int, domain: int, export_time: int, largest: int
) -> tuple[bytes, list[int], int]: ...
