"""The labels of inside addresses in a log's rows, as of the times of the rows (natcore.labels).

A label is looked up when its row is delivered, and never again. Where that fails the row is delivered without one.
"""

from __future__ import annotations

import logging
import os

import numpy as np

from natcore.dtypes import GAP, REFUSAL, WINDOW, is_of_block
from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.internal.validation import check_path
from natcore.labels import CalledLabels, Labels, LabelSource, labels_at
from natcore.sinks.base import Batch, LabelTexts

_log = logging.getLogger(__name__)


def check_labels(labels: object) -> None:
    """Raise ConfigurationError unless it is something that `RowLabels` can ask; a file is not looked at."""
    if isinstance(labels, Labels) or callable(labels):
        return
    if not isinstance(labels, str | os.PathLike):
        raise ConfigurationError(f"labels must be a path, Labels, a function or None, got {show(labels)}")
    check_path("labels", labels)


class RowLabels:
    """What a log's rows are labelled by.

    Parameters
    ----------
    source
        A path as of `natcore.labels.labels_at`, Labels, or a function as of CalledLabels.
    """

    def __init__(self, source: LabelSource) -> None:
        self._path: str | None = None
        self._labels: Labels | None = None
        if isinstance(source, Labels):
            self._labels = source
        elif callable(source):
            self._labels = CalledLabels(source)
        else:
            self._path = os.fspath(source)
        self._failing = False

    def open(self) -> Labels:
        """Return the labels. Raises ConfigurationError: their file cannot be read."""
        if self._labels is None:
            assert self._path is not None
            self._labels = labels_at(self._path)
        return self._labels

    def of(self, batch: Batch) -> tuple[LabelTexts, int]:
        """Return the label of each row, None where there is none; and of how many rows it could not be asked."""
        rows = batch.records
        kinds = rows["kind"]
        wanted = np.flatnonzero(((kinds < GAP) | (kinds == REFUSAL) | is_of_block(rows)) & (rows["pri_ip"] != 0))
        if not len(wanted):
            return (None,) * len(batch), 0
        chosen = rows[wanted]
        spans = np.isin(chosen["kind"], (WINDOW, REFUSAL))  # other rows are of the moment when they end
        starts = np.where(spans, chosen["start_time"], chosen["end_time"])
        try:
            texts = self.open().find_each(chosen["pri_ip"].tolist(), starts.tolist(), chosen["end_time"].tolist())
            if len(texts) != len(wanted) or not all(text is None or isinstance(text, str) for text in texts):
                raise TypeError("find_each must return a text or None for each address")
        except Exception as error:
            if not self._failing:
                _log.error("rows are delivered without labels, since these cannot be asked: %s", error, exc_info=error)
            self._failing = True
            return (None,) * len(batch), len(wanted)
        if self._failing:
            _log.warning("rows have labels again")
        self._failing = False
        if len(wanted) == len(batch):
            return tuple(texts), 0
        found: list[str | None] = [None] * len(batch)
        for place, text in zip(wanted.tolist(), texts, strict=True):
            found[place] = text
        return tuple(found), 0
