"""Rows that a destination refused for good, set aside in a file for a person."""

from __future__ import annotations

import os
from pathlib import Path

from natcore.internal.files import make_private, open_private, sync_folder, write_all
from natcore.internal.json_fields import compact
from natcore.sinks.base import Batch


class DeadLetters:
    """`folder`/dead-letter.jsonl: a row a line with all that is known of it, and the code and words of the refusal.

    bound_bytes: the file's size at most.
    """

    def __init__(self, folder: Path, bound_bytes: int) -> None:
        self.path = folder / "dead-letter.jsonl"
        self._bound_bytes = bound_bytes

    def add(self, batch: Batch, code: str, message: str) -> bool:
        """Write the rows durably; False: there is no space. Raises OSError."""
        rows = batch.rows(local=True)
        lines = "".join(f"{compact({**row, 'code': code, 'message': message})}\n" for row in rows).encode()
        make_private(self.path.parent)
        descriptor = open_private(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(descriptor).st_size
            if size + len(lines) > self._bound_bytes:
                return False
            try:
                write_all(descriptor, lines)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
            sync_folder(self.path.parent)
            return True
        finally:
            os.close(descriptor)
