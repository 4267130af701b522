"""An answer as a timeline: when each session held its outside endpoint, its window, the time that was asked for, and gaps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from natcore.internal.files import replaced
from natcore.who.plots import check_picture
from natcore.who.query import Answer, Listing, Match

HELD, WINDOW, GAP, NOTHING, ASKED = "─", "█", "░", " ", "▲"
_MOST_AROUND = timedelta(hours=2)  # before and after the time that was asked for
_LEAST = timedelta(seconds=10)


class Row(NamedTuple):
    """One line: what it is of, whether it is sure, and its spans with what each is: HELD, WINDOW or GAP."""

    label: str
    is_sure: bool
    spans: tuple[tuple[str, datetime, datetime], ...]


class Timeline(NamedTuple):
    """The lines between two times, and the time that was asked for."""

    start: datetime
    end: datetime
    asked: tuple[datetime, datetime]
    rows: tuple[Row, ...]


def timeline(answer: Answer | Listing) -> Timeline:
    """Return an answer as lines: its sessions, perhaps others, and gaps.

    Parameters
    ----------
    answer
        Of `who`, `what` or `talked`.

    Returns
    -------
    Timeline
        From the begin of its first session to the end of its last one, by two hours around what was asked for at most. A
        session of which no end is known goes on to the end of the picture.
    """
    tolerance = timedelta(seconds=answer.tolerance)
    asked = answer.at - tolerance, (answer.until or answer.at) + tolerance
    perhaps = answer.perhaps if isinstance(answer, Listing) else ()
    matches = [*answer.matches, *perhaps]
    starts = [asked[0], *(match.start for match in matches)]
    ends = [asked[1], *(match.end for match in matches if match.end is not None)]
    ends += [match.window[1] for match in matches if match.window is not None]
    first, last = max(min(starts), asked[0] - _MOST_AROUND), min(max(ends), asked[1] + _MOST_AROUND)
    margin = max((last - first) / 20, _LEAST)
    first, last = first - margin, last + margin
    rows = [_row(match, True, last) for match in answer.matches] + [_row(match, False, last) for match in perhaps]
    for start, end, _ in answer.gaps:
        rows.append(Row("not known", True, ((GAP, start, last if end is None else end),)))
    return Timeline(first, last, asked, tuple(rows))


def _row(match: Match, is_sure: bool, last: datetime) -> Row:
    label = f"{match.pri_ip}:{match.pri_port} as {match.nat_ip}:{match.nat_port}"
    if match.block is not None:
        label = f"{match.pri_ip} as {match.nat_ip} ports {match.block[0]} to {match.block[1]}"
    spans = [(HELD, match.start, last if match.end is None else match.end)]
    if match.window is not None:
        spans.append((WINDOW, *match.window))
    return Row(label, is_sure, tuple(spans))


def lines(answer: Answer | Listing, width: int = 80) -> Iterator[str]:
    """Yield the timeline as text.

    Parameters
    ----------
    answer
        As of `timeline`.
    width
        Columns, 60 or more.

    Yields
    ------
    str
        A line; below the sessions one that points at the time that was asked for, and one with the first and the last moment.
    """
    shown = timeline(answer)
    labels = [row.label if row.is_sure else f"perhaps {row.label}" for row in shown.rows]
    left = max(map(len, labels), default=0) + 1
    columns = max(20, width - left)

    def place(moment: datetime) -> int:
        part = (moment - shown.start) / (shown.end - shown.start)
        return min(columns - 1, max(0, int(part * columns)))

    for label, row in zip(labels, shown.rows, strict=True):
        bar = [NOTHING] * columns
        for sign, start, end in row.spans:
            if start <= shown.end and end >= shown.start:
                for at in range(place(start), place(end) + 1):
                    bar[at] = sign
        yield f"{label:<{left}}{''.join(bar)}".rstrip()
    pointer = [NOTHING] * columns
    for at in range(place(shown.asked[0]), place(shown.asked[1]) + 1):
        pointer[at] = ASKED
    yield " " * left + "".join(pointer).rstrip()
    begin, finish = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (shown.start, shown.end))
    yield " " * left + f"{begin}{finish:>{max(1, columns - len(begin))}}"


def save(answer: Answer | Listing, path: str | os.PathLike[str]) -> None:
    """Draw the timeline into a .png or .svg file (extra `natcore[plot]`).

    Parameters
    ----------
    answer
        As of `timeline`.
    path
        The file; it is replaced.

    Raises
    ------
    ConfigurationError
        Another ending.
    MissingExtraError
        matplotlib is missing.
    """
    target = check_picture(path)
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
    from matplotlib.figure import Figure

    shown = timeline(answer)
    figure = Figure(figsize=(11, 1.5 + 0.35 * len(shown.rows)), layout="constrained")
    axes = figure.add_subplot(xlabel="time (UTC)", title=f"{answer.status}: {answer.reason}")
    style = {HELD: (0.25, "tab:blue", 0.5), WINDOW: (0.6, "tab:blue", 1.0), GAP: (0.6, "tab:gray", 0.4)}
    for place, row in enumerate(shown.rows):
        for sign, start, end in row.spans:
            height, color, alpha = style[sign]
            axes.barh(
                place, date2num(end) - date2num(start), left=date2num(start), height=height, color=color,
                alpha=alpha if row.is_sure else alpha / 2,
            )  # fmt: skip
    axes.axvspan(date2num(shown.asked[0]), date2num(shown.asked[1]), color="tab:red", alpha=0.3)
    axes.axvline(date2num(answer.at), color="tab:red")
    axes.set_yticks(
        range(len(shown.rows)), [row.label if row.is_sure else f"perhaps {row.label}" for row in shown.rows]
    )
    axes.invert_yaxis()
    axes.set_xlim(date2num(shown.start), date2num(shown.end))
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    with replaced(target, private=False) as file:
        figure.savefig(file, format=target.suffix[1:], dpi=130)
