"""Labels of inside addresses (natcore.labels) in answers, as of the time that was asked for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from natcore.labels import Labels
from natcore.who.query import Answer, Listing, Match

Reply = TypeVar("Reply", Answer, Listing, Answer | Listing)


def labelled(answer: Reply, labels: Labels) -> Reply:
    """Return the answer with the labels of each session's inside address, as of the time that was asked for.

    Parameters
    ----------
    answer
        Of `who`, `what` or `talked`.
    labels
        What knows them.

    Returns
    -------
    Answer or Listing
        With `labels` in its matches.
    """
    tolerance = timedelta(seconds=answer.tolerance)
    start, end = answer.at - tolerance, (answer.until or answer.at) + tolerance

    def of(match: Match) -> Match:
        first, last = max(start, match.start), min(end, match.end or end)
        return replace(match, labels=tuple(labels.find(match.pri_ip, min(first, last), last)))

    matches = tuple(map(of, answer.matches))
    if isinstance(answer, Listing):
        return replace(answer, matches=matches, perhaps=tuple(map(of, answer.perhaps)))
    return replace(answer, matches=matches, others=tuple(map(of, answer.others)))
