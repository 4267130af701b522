#!/usr/bin/env python3
"""Draws the diagrams of the documentation: each `NAME.txt` beside this file becomes `NAME.svg`. Standard library only.

`draw.py` writes the pictures, `draw.py --check` exits with status 1 where one is out of date. A text has one statement a line:

    title: TEXT
    box ID COLUMN ROW [KIND]: LINE / LINE        KIND: plain, data, kernel, python, lock
    area COLUMN ROW COLUMNS ROWS: TEXT           a dashed frame around cells
    ID -> ID: TEXT                               an arrow; `<->` has two heads
    lane NAME: TEXT                              a row of a time line
    span LANE FROM TO [KIND]: TEXT               from and to: units of time
    mark LANE AT: TEXT                           a moment
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

SIZE, LINE, PAD, GAP = 13, 18, 12, 34  # pixels: text, a line of it, around it in a box, between boxes
COLOURS = {
    "plain": ("#ffffff", "#37474f"),
    "data": ("#e3f2fd", "#1565c0"),
    "kernel": ("#eceff1", "#78909c"),
    "python": ("#fff8e1", "#b28704"),
    "lock": ("#fce4ec", "#ad1457"),
}
UNIT, LABEL, LANE = 52, 150, 62  # pixels of a time line: a unit of time, the lanes' names, a lane


def width(text: str, size: float = SIZE) -> float:
    """About how wide a text is."""
    return (
        sum(0.34 if letter in "il.,:;'|!()[] /-tfjr" else 0.88 if letter in "mwMW—" else 0.6 for letter in text) * size
    )


@dataclass
class Box:
    """A box of the grid, and where it was put."""

    column: int
    row: int
    kind: str
    lines: list[str]
    x: float = 0.0
    y: float = 0.0
    w: float = 0.0
    h: float = 0.0

    def measure(self) -> None:
        """Its size by its text."""
        bold = width(self.lines[0], SIZE * 1.13)
        self.w = max(bold, *map(width, self.lines)) + 2 * PAD
        self.h = len(self.lines) * LINE + 2 * PAD - 6


@dataclass
class Picture:
    """What a text says."""

    title: str = ""
    boxes: dict[str, Box] = field(default_factory=dict)
    areas: list[tuple[int, int, int, int, str]] = field(default_factory=list)
    arrows: list[tuple[str, str, str, bool]] = field(default_factory=list)
    lanes: dict[str, str] = field(default_factory=dict)
    spans: list[tuple[str, float, float, str, str]] = field(default_factory=list)
    marks: list[tuple[str, float, str]] = field(default_factory=list)


def read(text: str, name: str) -> Picture:
    """The statements of a text."""
    picture = Picture()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        head, _, words = (part.strip() for part in line.partition(":"))
        parts = head.split()
        match parts:
            case ["title"]:
                picture.title = words
            case ["box", key, column, row, *kind]:
                lines = [one.strip() for one in words.split(" / ")]
                picture.boxes[key] = Box(int(column), int(row), kind[0] if kind else "plain", lines)
                picture.boxes[key].measure()
            case ["area", column, row, columns, rows]:
                picture.areas.append((int(column), int(row), int(columns), int(rows), words))
            case [one, "->" | "<->" as arrow, other]:
                picture.arrows.append((one, other, words, arrow == "<->"))
            case ["lane", key]:
                picture.lanes[key] = words
            case ["span", lane, begin, end, *kind]:
                picture.spans.append((lane, float(begin), float(end), kind[0] if kind else "data", words))
            case ["mark", lane, at]:
                picture.marks.append((lane, float(at), words))
            case _:
                raise SystemExit(f"{name}:{number}: not a statement: {line}")
    return picture


def text(x: float, y: float, words: str, size: float = SIZE, anchor: str = "middle", extra: str = "") -> str:
    """One line of text."""
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size:g}" text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def rectangle(x: float, y: float, w: float, h: float, kind: str) -> str:
    """A box."""
    fill, stroke = COLOURS[kind]
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}" rx="5" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="1.3"/>'
    )


def place(picture: Picture) -> tuple[float, float]:
    """Puts the boxes on the grid; the picture's size."""
    boxes = picture.boxes.values()
    columns, rows = max(box.column for box in boxes) + 1, max(box.row for box in boxes) + 1
    wide = [max([box.w for box in boxes if box.column == column], default=0) for column in range(columns)]
    high = [max([box.h for box in boxes if box.row == row], default=0) for row in range(rows)]
    beside = [GAP] * columns  # the gap behind a column holds the labels of the arrows in it
    below = [GAP] * rows
    for one, other, words, _ in picture.arrows:
        first, second = picture.boxes[one], picture.boxes[other]
        if first.row == second.row and words:
            left = min(first.column, second.column)
            beside[left] = max(beside[left], width(words, SIZE - 1) + 26)
        elif words:
            below[min(first.row, second.row)] = GAP + 12
    for _, row, _, _, _ in picture.areas:
        if row:
            below[row - 1] = max(below[row - 1], GAP + 24)
    left = 24.0
    for column in range(columns):
        top = 62.0 if not picture.areas or min(area[1] for area in picture.areas) else 86.0
        for row in range(rows):
            for box in boxes:
                if (box.column, box.row) == (column, row):
                    box.w = wide[column]
                    box.x, box.y = left, top + (high[row] - box.h) / 2
            top += high[row] + below[row]
        left += wide[column] + beside[column]
    return left - beside[-1] + 24, top - below[-1] + 30


def arrow(first: Box, second: Box, words: str, both: bool) -> list[str]:
    """From box to box: straight in a row or a column, else with one bend."""
    heads = ' marker-end="url(#head)"' + (' marker-start="url(#tail)"' if both else "")
    style = f' fill="none" stroke="#37474f" stroke-width="1.3"{heads}'
    middle = (first.x + first.w / 2, first.y + first.h / 2)
    target = (second.x + second.w / 2, second.y + second.h / 2)
    if first.row == second.row:
        right = first.column < second.column
        x1, x2 = (first.x + first.w, second.x) if right else (first.x, second.x + second.w)
        out = [f'<path d="M{x1:.0f} {middle[1]:.0f} H{x2:.0f}"{style}/>']
        if words:
            out.append(text((x1 + x2) / 2, middle[1] - 6, words, SIZE - 1, extra=' fill="#5d4037"'))
        return out
    down = first.row < second.row
    y2 = second.y if down else second.y + second.h
    if first.column == second.column:
        y1 = first.y + first.h if down else first.y
        out = [f'<path d="M{middle[0]:.0f} {y1:.0f} V{y2:.0f}"{style}/>']
        if words:
            at = (y1 + y2) / 2 + 4
            out.append(text(middle[0] + 7, at, words, SIZE - 1, "start", ' fill="#5d4037"'))
        return out
    x1 = first.x + first.w if second.column > first.column else first.x
    out = [f'<path d="M{x1:.0f} {middle[1]:.0f} H{target[0]:.0f} V{y2:.0f}"{style}/>']
    if words:
        out.append(text(target[0] + 7, y2 - 14 if down else y2 + 22, words, SIZE - 1, "start", ' fill="#5d4037"'))
    return out


def draw_boxes(picture: Picture) -> tuple[float, float, list[str]]:
    """Boxes and arrows."""
    w, h = place(picture)
    out = []
    for column, row, columns, rows, words in picture.areas:
        inside = [
            box for box in picture.boxes.values()
            if column <= box.column < column + columns and row <= box.row < row + rows
        ]  # fmt: skip
        x, y = min(box.x for box in inside) - 12, min(box.y for box in inside) - 26
        right, bottom = max(box.x + box.w for box in inside) + 12, max(box.y + box.h for box in inside) + 12
        out.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{right - x:.0f}" height="{bottom - y:.0f}" rx="8" fill="#fafafa" '
            'stroke="#90a4ae" stroke-dasharray="5 4"/>'
        )
        out.append(text(x + 10, y + 17, words, SIZE - 1, "start", ' fill="#546e7a" font-style="italic"'))
    for one, other, words, both in picture.arrows:
        out += arrow(picture.boxes[one], picture.boxes[other], words, both)
    for box in picture.boxes.values():
        out.append(rectangle(box.x, box.y, box.w, box.h, box.kind))
        for number, line in enumerate(box.lines):
            path = re.match(r"[\w.]+/[\w./*]+", line) is not None
            extra = ' fill="#00695c"' if path else ' font-weight="bold"' if number == 0 else ""
            out.append(text(box.x + box.w / 2, box.y + PAD + 10 + number * LINE, line, extra=extra))
    return w, h, out


def draw_time(picture: Picture) -> tuple[float, float, list[str]]:
    """Lanes with spans and moments."""
    last = max([end for _, _, end, _, _ in picture.spans] + [at for _, at, _ in picture.marks])
    w, out = LABEL + last * UNIT + 40, []
    tops = {key: 64 + number * LANE for number, key in enumerate(picture.lanes)}
    for key, words in picture.lanes.items():
        y = tops[key] + LANE / 2
        for number, line in enumerate(words.split(" / ")):
            bold = ' font-weight="bold"' if number == 0 else ' fill="#546e7a"'
            out.append(text(16, y - 2 + number * 16, line, SIZE if number == 0 else SIZE - 2, "start", bold))
        out.append(f'<path d="M{LABEL} {y + 12:.0f} H{w - 20:.0f}" stroke="#cfd8dc" fill="none"/>')
    for lane, begin, end, kind, words in picture.spans:
        x, y = LABEL + begin * UNIT, tops[lane] + LANE / 2 - 14
        out.append(rectangle(x, y, (end - begin) * UNIT, 26, kind))
        out.append(text(x + (end - begin) * UNIT / 2, y + 18, words, SIZE - 1))
    for lane, at, words in picture.marks:
        x, y = LABEL + at * UNIT, tops[lane] + LANE / 2 + 12
        out.append(f'<path d="M{x:.0f} {y - 20:.0f} V{y:.0f}" stroke="#ad1457" stroke-width="2" fill="none"/>')
        out.append(f'<circle cx="{x:.0f}" cy="{y - 20:.0f}" r="4" fill="#ad1457"/>')
        out.append(text(x, y + 14, words, SIZE - 2))
    return w, 64 + len(picture.lanes) * LANE + 20, out


def svg(picture: Picture) -> str:
    """The whole file."""
    w, h, parts = draw_time(picture) if picture.lanes else draw_boxes(picture)
    w = max(w, width(picture.title, SIZE + 3) + 60)
    head = '<path d="M0 0 L8 4 L0 8 z" fill="#37474f"/>'
    size = 'markerWidth="8" markerHeight="8" refY="4" markerUnits="userSpaceOnUse"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" height="{h:.0f}" '
            'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" role="img">',
            f"<title>{escape(picture.title)}</title>",
            f'<defs><marker id="head" {size} refX="8" orient="auto">{head}</marker>'
            f'<marker id="tail" {size} refX="8" orient="auto-start-reverse">{head}</marker></defs>',
            f'<rect width="{w:.0f}" height="{h:.0f}" fill="#ffffff"/>',
            text(24, 30, picture.title, SIZE + 3, "start", ' font-weight="bold" fill="#263238"'),
            *parts,
            "</svg>",
            "",
        ]
    )


def main() -> None:
    """Writes every picture, or says which one is old."""
    old = []
    for source in sorted(Path(__file__).parent.glob("*.txt")):
        drawn, target = svg(read(source.read_text(), source.name)), source.with_suffix(".svg")
        if not target.exists() or target.read_text() != drawn:
            old.append(target.name)
            if "--check" not in sys.argv[1:]:
                target.write_text(drawn)
    print(*(old or ["nothing to draw"]))
    raise SystemExit(bool(old) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    main()
