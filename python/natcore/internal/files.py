"""Files that natcore writes or trusts: others may not read them, no planted link leads elsewhere, a crash does not tear them.

A path is walked folder by folder (openat): a link on it must be root's or this process's own. In the folder, names are used by
its descriptor and never followed. A new file is made with O_EXCL and 0600. One that is there must be a regular file with one
name, root's or our own, that no other user may write to; a folder of natcore's own likewise. Else: UntrustedFileError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from natcore.errors import UntrustedFileError
from natcore.internal.redaction import show, show_text

_MOST_LINKS = 40  # on a path, as the kernel has it
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: the open of a FIFO must not wait
_DRAFT = ".draft"
_AT_EMPTY_PATH, _STATX_BTIME, _STATX_BYTES = 0x1000, 0x800, 256  # linux/fcntl.h, linux/stat.h


def make_private(folder: Path) -> None:
    """Make the folder and its missing parents, 0700, durable; an existing one must be trusted and stays as it is."""
    os.close(open_folder(folder, create=True))


def open_folder(folder: Path, *, create: bool = False, private: bool = True) -> int:
    """Return a descriptor of the folder. create: make missing folders, 0700, durable. private: no other user may write there.

    Raises UntrustedFileError, OSError.
    """
    current, links = os.open("/", _STEP | os.O_DIRECTORY), 0
    names = list(reversed(folder.absolute().parts[1:]))
    try:
        while names:
            name = names.pop()
            try:
                step = os.open(name, _STEP, dir_fd=current)
            except FileNotFoundError:
                if not create:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from None
                _make(name, current)
                names.append(name)
                continue
            status = os.fstat(step)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                try:
                    target = _target(folder, name, step, status, links)
                finally:
                    os.close(step)
                if target.startswith("/"):
                    step, current = current, os.open("/", _STEP | os.O_DIRECTORY)
                    os.close(step)
                names += [each for each in reversed(target.split("/")) if each not in ("", ".")]
            else:
                step, current = current, step
                os.close(step)
        try:
            found = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=current)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        os.close(current)
    if private and (wrong := _untrusted(os.fstat(found), is_folder=True)):
        os.close(found)
        raise UntrustedFileError(
            f"{show_text(str(folder))}: {wrong}; it must be a folder of this user or root that no other user may write to"
        )
    return found


def _make(name: str, parent: int) -> None:
    with suppress(FileExistsError):  # another log makes the same folder
        os.mkdir(name, 0o700, dir_fd=parent)
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _target(folder: Path, name: str, link: int, status: os.stat_result, links: int) -> str:
    """Return the target of a link on the way to a folder."""
    if status.st_uid not in (0, os.geteuid()):
        raise UntrustedFileError(
            f"{show_text(str(folder))}: the link {show(name)} on the way belongs to user {status.st_uid}; "
            "it must belong to this user or root"
        )
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
    return os.readlink("", dir_fd=link)


def _untrusted(status: os.stat_result, *, is_folder: bool) -> str:
    """Return why another user may have written to a file or folder; empty: no other user can have."""
    mode, mine = status.st_mode, os.geteuid()
    if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
        return f"it is not a {'folder' if is_folder else 'regular file'}"
    if status.st_uid not in (0, mine):
        return f"it is user {status.st_uid}'s, and we are user {mine}"
    shared_group = mode & stat.S_IWGRP and status.st_gid != os.getegid()
    if mode & stat.S_IWOTH or shared_group:
        return f"others may write to it (mode {stat.S_IMODE(mode):04o})"
    if not is_folder and status.st_nlink > 1:
        return f"it has {status.st_nlink} names"
    return ""


def identity(descriptor: int) -> tuple[int, int]:
    """Return a file's inode, and when it was made, ns since 1970: an inode's number is given again to a later file. 0: the
    system does not tell."""
    told = ctypes.create_string_buffer(_STATX_BYTES)
    with suppress(AttributeError):  # an old libc
        if not ctypes.CDLL(None).statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_BTIME, told):
            mask, seconds, nanoseconds = struct.unpack("@I76xqI164x", told.raw)
            if mask & _STATX_BTIME:
                return os.fstat(descriptor).st_ino, seconds * 10**9 + nanoseconds
    return os.fstat(descriptor).st_ino, 0


def sync_folder(folder: Path) -> None:
    """Make names in the folder durable: a created, renamed or removed file."""
    descriptor = open_folder(folder, private=False)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _inside(folder: Path, *, private: bool) -> Iterator[int]:
    descriptor = open_folder(folder, private=private)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_private(path: Path, flags: int) -> int:
    """Open the file in a private folder; a new one gets mode 0600. Raises UntrustedFileError, OSError."""
    with _inside(path.parent, private=True) as folder:
        try:
            return os.open(path.name, flags | _OPEN | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        except FileExistsError:
            return _open_trusted(path, flags, folder)


def _open_trusted(path: Path, flags: int, folder: int) -> int:
    """Open an existing file that is trusted."""
    descriptor = _open_there(path, flags & ~os.O_TRUNC, folder)
    try:
        if wrong := _untrusted(os.fstat(descriptor), is_folder=False):
            raise UntrustedFileError(
                f"{show_text(str(path))}: {wrong}; it must be a file of this user or root that no other user may write to"
            )
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_there(path: Path, flags: int, folder: int) -> int:
    try:
        return os.open(path.name, flags | _OPEN, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UntrustedFileError(f"{show_text(str(path))}: it must be a regular file, and is a link") from None
        raise OSError(
            error.errno, error.strerror, str(path)
        ) from None  # OSError picks the subclass, such as FileNotFoundError


def read_private(path: Path) -> bytes:
    """Return the content of a trusted file. Raises UntrustedFileError, OSError."""
    with _inside(path.parent, private=True) as folder:
        descriptor = _open_trusted(path, os.O_RDONLY, folder)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def read_regular(path: Path) -> bytes:
    """Return the content of a file of any owner; a link, a FIFO or a device is refused."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def open_regular(path: Path) -> int:
    """Open a regular file of any owner for reading. Raises UntrustedFileError, OSError."""
    with _inside(path.parent, private=False) as folder:
        descriptor = _open_there(path, os.O_RDONLY, folder)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise UntrustedFileError(f"{show_text(str(path))}: it must be a regular file")


def read_trusted(path: Path, head: int, check: Callable[[bytes, int], object]) -> bytearray:
    """Return the content of a file that no other user can have written, in a folder of anybody's.

    check: is given the first `head` bytes and the file's size before memory is taken for it, and may raise. Raises
    UntrustedFileError, OSError.
    """
    with _inside(path.parent, private=False) as folder:
        descriptor = _open_trusted(path, os.O_RDONLY, folder)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        check(os.pread(descriptor, head, 0), size)
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < len(data) and (count := file.readinto(view[at:])):
            at += count
    view.release()
    return data[:at] if at < len(data) else data


def remove(path: Path) -> None:
    """Remove the name if it exists, durably."""
    with _inside(path.parent, private=True) as folder:
        with suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        os.fsync(folder)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename the file to an unused name that ends in suffix; return that name."""
    with _inside(path.parent, private=True) as folder:
        names, number = _names(folder), 1
        while (name := f"{path.name}{suffix}" if number == 1 else f"{path.name}.{number}{suffix}") in names:
            number += 1
        os.rename(path.name, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    return path.with_name(name)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def replaced(path: Path, *, private: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that atomically and durably becomes `path` when the block ends, and never if it raises.

    private: its folder is natcore's own. Elsewhere (an export) others may have a hand in the folder: the draft is a new file
    under a name that cannot be predicted, and what is at `path` is replaced, never written to.
    """
    draft = f".{path.name}.{secrets.token_hex(8)}{_DRAFT}"
    with _inside(path.parent, private=private) as folder:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.rename(draft, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)
            raise
        os.fsync(folder)


def _names(folder: int) -> set[str]:
    with os.scandir(folder) as found:
        return {each.name for each in found}


def remove_drafts(folder: Path) -> None:
    """Remove the drafts that a crash left."""
    with _inside(folder, private=True) as descriptor:
        for name in _names(descriptor):
            if name.startswith(".") and name.endswith(_DRAFT):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=descriptor)
