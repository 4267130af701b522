"""Files that others may not read and that a crash does not tear: private modes, synced files and folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def make_private(folder: Path) -> None:
    """Make the folder and the missing ones above it, 0700, durable; one that is there stays as it is."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with suppress(FileExistsError):  # another log makes the same folder
            each.mkdir(mode=0o700)
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Make names in the folder durable: a created, renamed or removed file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_private(path: Path, flags: int) -> int:
    """A descriptor of the file, made with 0600 where it is new."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at once and durably when the block ends, and never if it raises."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with open(open_private(draft, os.O_RDWR | os.O_TRUNC), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_drafts(folder: Path) -> None:
    """What a crash left of files that were being written."""
    for draft in folder.glob(".*.draft"):
        draft.unlink(missing_ok=True)
