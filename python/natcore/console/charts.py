"""Line charts and timelines: what a template needs to draw them as SVG, with their description in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 600, 100
Values = Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, what it is now, and its pieces; between two pieces there is no figure."""

    name: str
    now: str
    pieces: list[str]


@dataclass(frozen=True)
class Chart:
    """A chart over time. Its coordinates are WIDTH times HEIGHT; `threshold` is a height, None: it has none."""

    title: str
    top: str
    start: float
    end: float
    lines: list[Line]
    about: str
    threshold: float | None = None
    threshold_text: str = ""
    width: int = WIDTH
    height: int = HEIGHT


def chart(
    title: str, times: Sequence[float], series: Sequence[tuple[str, Values]], write: Callable[[float], str], *,
    threshold: float | None = None, threshold_text: str = "", most: float = 0.0,
) -> Chart | None:  # fmt: skip
    """Return a chart; None: there are fewer than two figures. write: a value with its unit. most: the least height."""
    if len(times) < 2:
        return None
    start, end = times[0], times[-1]
    known = [value for _, values in series for value in values if value is not None]
    highest = _round_up(max([*known, most, threshold or 0.0, 1e-9]))

    def y(value: float) -> float:
        return round(HEIGHT - value / highest * (HEIGHT - 4) - 1, 2)

    def x(time: float) -> float:
        return round((time - start) / max(end - start, 1e-9) * WIDTH, 2)

    lines, told = [], []
    for name, values in series:
        pieces: list[list[str]] = [[]]
        for time, value in zip(times, values, strict=True):
            if value is None:
                pieces.append([])
            else:
                pieces[-1].append(f"{x(time)},{y(value)}")
        found = [value for value in values if value is not None]
        now = write(found[-1]) if found else "-"
        lines.append(Line(name, now, [" ".join(piece) for piece in pieces if piece]))
        told.append(f"{name} now {now}, at least {write(min(found))}, at most {write(max(found))}" if found else name)
    about = f"{title}: {'; '.join(told)}"
    return Chart(
        title, write(highest), start, end, lines, about, None if threshold is None else y(threshold), threshold_text
    )


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10 and so on."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999_999)


@dataclass(frozen=True)
class Bar:
    """A span of a timeline: from and until as shares of its width, and what it is."""

    kind: str
    x: float
    width: float


@dataclass(frozen=True)
class Lane:
    """A row of a timeline, with its spans."""

    name: str
    text: str
    bars: list[Bar] = field(default_factory=list)


@dataclass(frozen=True)
class Timeline:
    """Spans of time below each other, and the moment in question."""

    start: float
    end: float
    asked: Bar
    lanes: list[Lane]
    width: int = WIDTH


def timeline(
    asked: tuple[float, float], lanes: Sequence[tuple[str, str, Sequence[tuple[str, float, float | None]]]]
) -> Timeline:
    """Return a timeline of lanes: (name, text, spans: (kind, from, until or None: it goes on)). asked: from, until."""
    known = [time for _, _, spans in lanes for _, *pair in spans for time in pair if time is not None]
    start, end = min([*known, asked[0]]), max([*known, asked[1]])
    margin = max((end - start) * 0.06, 2.0)
    start, end = start - margin, end + margin

    def bar(kind: str, first: float, last: float | None) -> Bar:
        left = (first - start) / (end - start) * WIDTH
        right = WIDTH if last is None else (last - start) / (end - start) * WIDTH
        return Bar(kind, round(left, 2), round(max(right - left, 1.5), 2))

    drawn = [Lane(name, text, [bar(*span) for span in spans]) for name, text, spans in lanes]
    return Timeline(start, end, bar("asked", *asked), drawn)
