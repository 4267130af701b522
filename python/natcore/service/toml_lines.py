"""The lines on which the keys of a TOML text stand; tomllib, which has parsed the text before, does not tell them."""

from __future__ import annotations

import re
import tomllib

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")  # comments too
_BLANK = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[ \t]*("(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
_STRING = re.compile(r'''"""(?:\\.|[^\\])*?"""(?!")|\'\'\'.*?\'\'\'(?!')|"(?:\\.|[^"\\\n])*"|'[^'\n]*\'''', re.DOTALL)
_BARE = re.compile(r"[^,\]}\n#]*")  # a number, a boolean, a time


def key_lines(text: str) -> dict[str, int]:
    """Return the line of each table, key and list element, by its path, such as "snat[1].pool[0]". text: valid TOML."""
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


def line_of(lines: dict[str, int], key: str) -> int | None:
    """Return the line of a key, else of the table that it should stand in; None: of neither."""
    while key not in lines:
        shorter = re.sub(r"(?:\[\d+\]|(?:^|\.)[^.\[\]]*)$", "", key)
        if shorter in ("", key):
            return None
        key = shorter
    return lines[key]


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._text = text
        self._at = 0
        self._counted_to, self._line = 0, 1
        self._elements: dict[str, int] = {}  # of arrays of tables, so far

    def scan(self) -> None:
        prefix = ""
        while self._skip(_SPACE) < len(self._text):
            if self._text.startswith("[[", self._at):
                prefix = self._header(2)
            elif self._text[self._at] == "[":
                prefix = self._header(1)
            else:
                self._pair(prefix)

    def _header(self, brackets: int) -> str:
        line = self._here()
        self._at += brackets
        *parents, last = self._key()
        self._at += brackets
        prefix = ""
        for part in parents:
            prefix = self._last_element(_joined(prefix, part))
            self.lines.setdefault(prefix, line)
        prefix = _joined(prefix, last)
        if brackets == 2:
            self.lines.setdefault(prefix, line)
            self._elements[prefix] = self._elements.get(prefix, 0) + 1
            prefix = self._last_element(prefix)
        self.lines[prefix] = line
        return prefix

    def _last_element(self, path: str) -> str:
        return f"{path}[{self._elements[path] - 1}]" if path in self._elements else path

    def _pair(self, path: str) -> None:
        line = self._here()
        for part in self._key():
            path = _joined(path, part)
            self.lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._value(path)

    def _key(self) -> list[str]:
        parts = []
        while match := _KEY.match(self._text, self._at):
            self._at = match.end()
            parts.append(tomllib.loads(f"key = {match[1]}")["key"] if match[1][0] in "\"'" else match[1])
            if not self._text.startswith(".", self._at):
                break
            self._at += 1
        return parts

    def _value(self, path: str) -> None:
        self._skip(_BLANK)
        opening = self._text[self._at]
        if opening in "[{":
            self._at += 1
            self._elements_of(path) if opening == "[" else self._pairs_of(path)
            self._at += 1
        elif not self._take(_STRING):
            self._take(_BARE)

    def _elements_of(self, path: str) -> None:
        count = 0
        while self._text[self._skip(_SPACE)] != "]":
            element = f"{path}[{count}]"
            self.lines[element] = self._here()
            self._value(element)
            self._comma()
            count += 1

    def _pairs_of(self, path: str) -> None:
        while self._text[self._skip(_SPACE)] != "}":
            self._pair(path)
            self._comma()

    def _comma(self) -> None:
        self._skip(_SPACE)
        self._at += self._text.startswith(",", self._at)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._take(pattern)
        return self._at

    def _take(self, pattern: re.Pattern[str]) -> bool:
        match = pattern.match(self._text, self._at)
        if match is None:
            return False
        self._at = match.end()
        return True

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted_to, self._at)
        self._counted_to = self._at
        return self._line


def _joined(prefix: str, part: str) -> str:
    return f"{prefix}.{part}" if prefix else part
