"""A locked file: released by its process alone, and for good."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from natcore.internal.file_lock import FileLock
from natcore.sessionlog.ledger import Ledger
from natcore.sessionlog.spool.format import Identity
from natcore.sessionlog.spool.spool import Spool
from natcore.sinks import JsonLinesSink
from natcore.sinks._parquet_folder import Lock


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


@contextmanager
def a_child_that_begins(*folders: Path) -> Iterator[None]:
    """It has a copy of each open file of these folders, as every child has until it executes its program."""
    descriptors = [int(each.name) for each in Path("/proc/self/fd").iterdir()]
    copies = [os.dup(d) for d in descriptors if is_of(d, folders)]
    assert copies
    try:
        yield
    finally:
        for copy in copies:
            os.close(copy)


def is_of(descriptor: int, folders: Sequence[Path]) -> bool:
    with suppress(OSError):  # the listing's own
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        return any(file.is_relative_to(folder) for folder in folders)
    return False


def test_a_released_lock_is_free_although_a_child_has_the_file(tmp_path: Path) -> None:
    lock = FileLock(opened(tmp_path / "lock"))
    with a_child_that_begins(tmp_path):
        lock.release()
        FileLock(opened(tmp_path / "lock")).release()


def test_a_child_releases_nothing(tmp_path: Path) -> None:
    lock = FileLock(opened(tmp_path / "lock"))
    again = opened(tmp_path / "lock")
    child = os.fork()
    if not child:
        lock.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(BlockingIOError):
        FileLock(again)
    os.close(again)
    lock.release()


def test_a_lock_ends_with_its_object(tmp_path: Path) -> None:
    lock = FileLock(opened(tmp_path / "lock"))
    del lock
    FileLock(opened(tmp_path / "lock")).release()


def a_parquet_folder(path: Path) -> Callable[[], object]:
    lock = Lock(path, "a log")
    return lambda: lock.release()  # it lives as long as this


def a_folder_of_json_lines(path: Path) -> Callable[[], object]:
    sink = JsonLinesSink(path)
    sink.open()
    return sink.close


def a_spool(path: Path) -> Callable[[], object]:
    return Spool(path, Identity("i", "v", "run"), bound_bytes=1 << 20, ledger=Ledger()).close


@pytest.mark.parametrize("open_it", [a_parquet_folder, a_folder_of_json_lines, a_spool])
def test_a_folder_is_free_for_the_next_log_although_a_child_began_meanwhile(
    tmp_path: Path, open_it: Callable[[Path], Callable[[], object]]
) -> None:
    close = open_it(tmp_path)
    with a_child_that_begins(tmp_path):
        close()
        open_it(tmp_path)()
