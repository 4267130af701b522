"""Which process has an interface: a locked file in a folder that unprivileged users cannot write to.

The lock is gone with its process, whatever ends it. Its name holds the network namespace (by its inode) and the interface, so
that equal names in two namespaces are two interfaces. Processes that share a network namespace but not /run do not see each
other's locks; there the tables' owner in nf_tables decides.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from natcore.errors import Error, InterfaceError
from natcore.internal.file_lock import release
from natcore.internal.files import make_private, open_folder

_RUN = Path("/run/natcore")


def network_namespace() -> str:
    """Return the calling thread's network namespace, unique on this machine."""
    status = Path("/proc/thread-self/ns/net").stat()
    return f"{status.st_dev:x}-{status.st_ino}"


def folders() -> Iterator[Path]:
    """Yield the folders for locks, the best first: the system's, made by root; then one of this user alone."""
    yield _RUN
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "natcore")
    yield Path(f"/tmp/natcore-{os.geteuid()}")


class Claim:
    """Ownership of an interface in this network namespace, until `close` or the end of the process.

    left: what `leave` gave in another process: its ownership, without a moment between.
    """

    def __init__(self, interface: str, left: int | None = None) -> None:
        self.interface = interface
        self._owner = os.getpid()
        self._name = f"{network_namespace()}-{interface}.lock"
        self._folder = lock_folder(interface)
        try:
            self._descriptor = self._lock() if left is None else self._sign(left)
        except BaseException:
            os.close(self._folder)
            raise

    def _lock(self) -> int:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            try:
                descriptor = os.open(self._name, flags, 0o600, dir_fd=self._folder)
            except OSError as error:
                raise InterfaceError(
                    error.errno or errno.EIO, f"{self.interface!r}: its lock: {error.strerror}"
                ) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same(descriptor, self._name, self._folder):  # the last owner may just have removed it
                    return self._sign(descriptor)
            except BlockingIOError:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise InterfaceError(
                    errno.EBUSY, f"{self.interface!r}: another plane of natcore{holder} has it; stop that one first"
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _sign(self, descriptor: int) -> int:
        """Write this process's number into the file."""
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        return descriptor

    def leave(self) -> int:
        """Give the locked file's descriptor, which is the caller's from now on, for another process's Claim."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(self._folder)
        return descriptor

    def close(self) -> None:
        if self._descriptor < 0:
            return
        with suppress(OSError):
            os.unlink(self._name, dir_fd=self._folder)
        release(self._descriptor, self._owner)
        os.close(self._folder)
        self._descriptor = self._folder = -1


def _is_same(descriptor: int, name: str, folder: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    with suppress(OSError, ValueError):
        return f" (process {int(os.pread(descriptor, 20, 0))})"
    return ""


def lock_folder(interface: str) -> int:
    """Return a descriptor of the folder for locks. Raises InterfaceError: no folder is usable."""
    reasons = []
    for folder in folders():
        try:
            if folder == _RUN:
                return _system_folder()
            make_private(folder)
            return open_folder(folder)
        except (Error, OSError) as error:
            reasons.append(str(error))
    raise InterfaceError(errno.EACCES, f"{interface!r}: no folder for its lock: {'; '.join(reasons)}")


def _system_folder() -> int:
    """Made by root, or by systemd for the service's user (RuntimeDirectory=natcore): whoever owns it, root gave it."""
    with suppress(FileExistsError, PermissionError):
        _RUN.mkdir()
        _RUN.chmod(0o755)  # control sockets lie here too, for the members of a group
    folder = open_folder(_RUN, private=False)
    if os.fstat(folder).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(folder)
        raise InterfaceError(
            errno.EACCES, f"{_RUN}: it must be writable by its owner alone, and others may write to it"
        )
    if not os.access(_RUN, os.W_OK, effective_ids=True):
        os.close(folder)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(_RUN))
    return folder
