"""Frames as the arrays that `Gateway.translate` takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def arrays(*frames: bytes, stride: int = 128) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    rows = np.zeros((len(frames), stride), np.uint8)
    for row, frame in zip(rows, frames, strict=True):
        row[: len(frame)] = np.frombuffer(frame, np.uint8)
    return rows, np.array([len(frame) for frame in frames], np.uint32)
