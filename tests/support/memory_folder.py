"""`tmp_path` in memory, for tests of what is written and synced often."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

MEMORY = Path("/dev/shm")
ROOM_BYTES = 32 << 20


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A disk takes its time for each fsync, which loses nothing here: a test kills a process, not the machine."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        yield tmp_path
        return
    with TemporaryDirectory(prefix="natcore-test-", dir=MEMORY) as folder:
        yield Path(folder)
