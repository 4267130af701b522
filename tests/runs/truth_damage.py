"""What befalls the files of a life: flipped bits, torn ends, frames out of order; and a machine that loses its power."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from natcore.sessionlog.spool.format import decode_frame_header, decode_segment_header


def flip(path: Path | None, random_: random.Random) -> bool:
    if path is None:
        return False
    data = bytearray(path.read_bytes())
    if not data:
        return False
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    path.write_bytes(data)
    return True


def truncate(path: Path | None, random_: random.Random) -> bool:
    if path is None:
        return False
    data = path.read_bytes()
    path.write_bytes(data[: random_.randrange(len(data) + 1)])
    return True


def remove(path: Path | None) -> bool:
    if path is None:
        return False
    path.unlink()
    return True


def reframe(path: Path | None, changed: Callable[[list[bytes]], list[bytes]]) -> bool:
    """A segment with its frames in another order, or twice."""
    data = path.read_bytes() if path is not None else b""
    header = decode_segment_header(data)
    if path is None or header is None:
        return False
    frames, at = [], header[1]
    while (frame := decode_frame_header(data[at:])) is not None and at + frame.total_bytes <= len(data):
        frames.append(data[at : at + frame.total_bytes])
        at += frame.total_bytes
    if not frames:
        return False
    path.write_bytes(data[: header[1]] + b"".join(changed(frames)) + data[at:])
    return True


class Disk:
    """What of a folder is on the disk for sure: what was synced. The rest may be there after a loss of power, or not.

    While it is entered, `os.fsync` is this one's. A folder that was made stays, as natcore syncs the one above it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._content: dict[int, bytes] = {}  # by inode
        self._names: dict[int, dict[str, int]] = {}
        self._fsync = os.fsync

    def __enter__(self) -> Disk:
        os.fsync = self._sync  # type: ignore[assignment]  # descriptors alone are synced here
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync = self._fsync

    def _sync(self, descriptor: Any) -> None:
        path = Path(f"/proc/self/fd/{descriptor}")
        inode = os.fstat(descriptor).st_ino
        if path.is_dir():
            self._names[inode] = _inodes(path)
        else:
            self._content[inode] = path.read_bytes()

    def cut(self, random_: random.Random) -> None:
        """The power fails: of names and of bytes that were not synced some are there, some are not."""
        for root, _, _ in os.walk(self.folder):
            folder = Path(root)
            names, there = self._names.get(folder.stat().st_ino, {}), _inodes(folder)
            if random_.random() < 0.7:  # a journal keeps the order: names are all new, or all as they were synced
                self._take_back(folder, names, there)
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                self._tear(path, random_)

    def _take_back(self, folder: Path, names: dict[str, int], there: dict[str, int]) -> None:
        for name in there.keys() - names.keys():
            (folder / name).unlink()
        for name, inode in names.items():
            if there.get(name) != inode and inode in self._content:
                if name in there:
                    (folder / name).unlink()
                (folder / name).write_bytes(self._content[inode])
                self._content[(folder / name).stat().st_ino] = self._content[inode]

    def _tear(self, path: Path, random_: random.Random) -> None:
        inode, data = path.stat().st_ino, path.read_bytes()
        known = self._content.get(inode, b"")
        if known == data or random_.random() < 0.3:
            return
        if data.startswith(known):  # its end was not synced: it is shorter, or has zeros
            length = random_.randrange(len(known), len(data) + 1)
            data = data[:length] + bytes(random_.choice([0, len(data) - length]))
        else:
            data = known
        path.write_bytes(data)


def _inodes(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as found:
        return {each.name: each.inode() for each in found if not each.is_dir(follow_symlinks=False)}
