import numpy as np
from numpy.typing import NDArray

FLOW_BYTES: int
EVENT_BYTES: int
BLOCK_BYTES: int
EXHAUSTED_BYTES: int
QUOTA_BYTES: int
THRESHOLD_BYTES: int

def encode_messages(
    records: NDArray[np.uint8],
    sequence: int,
    domain: int,
    export_time: int,
    largest: int,
    nat_events: bytes,
    details: bytes,
    *,
    texts: NDArray[np.uint8] | None = None,
    offsets: NDArray[np.uint32] | None = None,
    numbers: NDArray[np.uint32] | None = None,
) -> tuple[bytes, list[int], int]: ...
