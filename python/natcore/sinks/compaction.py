"""Compaction of a folder of Parquet files into which no log writes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.sinks._parquet_folder import Folder, Lock


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was put together.

    Attributes
    ----------
    parts, files
        Files before, and in their place.
    rows
        In these.
    """

    parts: int
    files: int
    rows: int


def compact(folder: str | os.PathLike[str], *, now: float | None = None) -> Compacted:
    """Put the files of each hour that is over into files of at most 4 million rows, sorted by outside endpoint and time.

    Parameters
    ----------
    folder
        A ParquetSink's folder; folders in it are folders of their own.
    now
        Unix seconds; None: by this machine's clock.

    Returns
    -------
    Compacted
        How much it was.

    Raises
    ------
    ConfigurationError
        There is no such folder, or a log writes into it.
    OSError
        A file cannot be read or written; what was put together before stays.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ConfigurationError(f"folder must be a ParquetSink's folder, got {show(str(folder))}")
    lock = Lock(path, "natcore log compact")
    try:
        files = Folder(path, None, None)
        parts = made = rows = 0
        while (kept := files.compact(time.time() if now is None else now)) is not None:
            parts += len(kept.footer.replaces)
            made += 1
            rows += kept.footer.rows
        return Compacted(parts, made, rows)
    finally:
        lock.release()
