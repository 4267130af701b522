"""The file `run` of a spool: the run that fills it, its heartbeats, and the end mark of an orderly stop."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from natcore.dtypes import GAP_DIED, gap_row
from natcore.errors import ConfigurationError
from natcore.internal.files import open_private, read_regular, replaced
from natcore.internal.redaction import show_text
from natcore.sessionlog.heartbeat import Beat
from natcore.sessionlog.spool.format import (
    BEAT_BYTES,
    RUN_MAGIC,
    Identity,
    decode_beats,
    decode_segment_header,
    encode_beat,
    encode_segment_header,
    newer_version,
)
from natcore.sinks.base import Records

_log = logging.getLogger(__name__)
_NAME = "run"
# Gap rows of runs that died have numbers from here: no row of a run reaches it, and JSON keeps it exact (below 2^53). A number
# just behind the rows that the spool knows may be a row's: where the disk took none, rows went from memory to the sink.
GAP_NUMBER = 1 << 48


def read_run(folder: Path) -> tuple[Identity, Beat] | None:
    """Return the last run that filled the spool, and its last heartbeat; None: there is none, or it is damaged.

    A run without its end mark is running, or has died.
    """
    try:
        data = read_regular(folder / _NAME)
    except FileNotFoundError:
        return None
    if version := newer_version(data, RUN_MAGIC):
        raise ConfigurationError(
            f"{show_text(str(folder / _NAME))}: the run must have version {RUN_MAGIC[7:].decode()}, got {version}: a later "
            "natcore wrote it; let that natcore end it, or give the log another spool"
        )
    header = decode_segment_header(data, RUN_MAGIC)
    beat = decode_beats(data[header[1] :]) if header else None
    if header is None or beat is None:
        _log.error("%s: damaged; whether the run before ended in order is not known", folder / _NAME)
        return None
    return header[0], beat[1]


def gap_after(beat: Beat, next_number: int, wall: int) -> Records:
    """Return the gap row, RECORD (1,), of a run that died after `beat` and before `wall` (microseconds since 1970).

    next_number: behind every row of the run that is in the spool, gap rows among them.
    """
    return gap_row(beat.oldest, beat.gap_end(wall), max(GAP_NUMBER + beat.next_number, next_number), 0, GAP_DIED)


class RunFile:
    """The file of the present run."""

    def __init__(self, folder: Path, identity: Identity, beat: Beat) -> None:
        """Write the file durably, in the place of the run before. Raises OSError."""
        self.path = folder / _NAME
        self.beat = beat
        header = encode_segment_header(identity, RUN_MAGIC)
        with replaced(self.path) as file:
            file.write(header + encode_beat(0, beat) + bytes(BEAT_BYTES))
        self._slots = len(header)
        self._sequence = 0
        self._descriptor = open_private(self.path, os.O_WRONLY)

    def note(self, beat: Beat) -> None:
        """Write a heartbeat. Only the end mark is synced: a beat lost in a power cut makes the gap longer, never shorter."""
        self._sequence += 1
        try:
            data = encode_beat(self._sequence, beat)
            os.pwrite(self._descriptor, data, self._slots + self._sequence % 2 * BEAT_BYTES)
            if beat.ended:
                os.fsync(self._descriptor)
        except OSError as error:
            _log.warning("%s: %s; a restart would tell of a longer gap", self.path, error)
            return
        self.beat = beat

    def close(self) -> None:
        os.close(self._descriptor)
