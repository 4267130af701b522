"""The queries that SlsServer understands: a search by indexed fields, and an SQL analysis of what it finds, by DuckDB."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from natcore.internal.extras import extra
from natcore.testing.sls_signature import Refusal

Log = Mapping[str, str]
Test = Callable[[Log], bool]
_TOKEN = re.compile(r'\s*(?:(?P<word>[A-Za-z_]\w*)|(?P<number>-?\d+)|"(?P<text>[^"]*)"|(?P<sign><=|>=|[:=<>()\[\]*]))')
_COMPARE: Mapping[str, Callable[[int, int], bool]] = {
    "=": lambda a, b: a == b, ":": lambda a, b: a == b, "<": lambda a, b: a < b, ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b,
}  # fmt: skip


def run_query(logs: Sequence[Log], query: str, types: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the rows of a query "SEARCH | SELECT …", values as text; without an analysis the logs that are found.

    types: "long" or "text" of each indexed field; no other may be searched or analysed. Raises Refusal.
    """
    search, bar, analysis = query.partition("|")
    is_wanted = _Search(search, types).test
    found = [log for log in logs if is_wanted(log)]
    if not bar:
        return [dict(log) for log in found]
    with extra("query"):
        import duckdb
        import pyarrow as pa

    columns = {
        name: pa.array([int(log[name]) if name in log else None for log in found], pa.int64()) if kind == "long"
        else pa.array([log.get(name) for log in found], pa.string())
        for name, kind in types.items()
    }  # fmt: skip
    with duckdb.connect() as database:
        database.register("log", pa.table(columns))
        try:
            answer = database.execute(analysis)
        except duckdb.Error as error:
            raise Refusal("ParameterInvalid", str(error)) from error
        names = [column[0] for column in answer.description or ()]
        return [
            {name: "null" if value is None else str(value) for name, value in zip(names, row, strict=True)}
            for row in answer.fetchall()
        ]


class _Search:
    """`*`, FIELD: "text", FIELD = 5 (<, >, <=, >=, :), FIELD in [1 5], and, or, not, parentheses."""

    def __init__(self, text: str, types: Mapping[str, str]) -> None:
        self._types = types
        self._tokens: list[tuple[str, str]] = []
        at, text = 0, text.strip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise Refusal("ParameterInvalid", f"the search is not understood here: {text[at:]}")
            kind = str(match.lastgroup)
            self._tokens.append((kind, match[kind]))
            at = match.end()
        self.test: Test = self._either() if self._tokens else lambda log: True
        if self._tokens:
            raise Refusal("ParameterInvalid", f"the search ends at {self._tokens[0][1]}")

    def _next(self, *wanted: str) -> str:
        kind, value = self._tokens.pop(0) if self._tokens else ("end", "the end")
        if wanted and kind not in wanted and value.lower() not in wanted:
            raise Refusal("ParameterInvalid", f"the search has {value} where {' or '.join(wanted)} is expected")
        return value

    def _is_next(self, word: str) -> bool:
        if self._tokens and self._tokens[0][1].lower() == word:
            self._tokens.pop(0)
            return True
        return False

    def _either(self) -> Test:
        first = self._both()
        if not self._is_next("or"):
            return first
        rest = self._either()
        return lambda log: first(log) or rest(log)

    def _both(self) -> Test:
        first = self._one()
        if not self._is_next("and"):
            return first
        rest = self._both()
        return lambda log: first(log) and rest(log)

    def _one(self) -> Test:
        if self._is_next("not"):
            inner = self._one()
            return lambda log: not inner(log)
        if self._is_next("("):
            inner = self._either()
            self._next(")")
            return inner
        if self._is_next("*"):
            return lambda log: True
        name = self._next("word")
        if name not in self._types:
            raise Refusal("ParameterInvalid", f"key ({name}) is not config as key value config")
        return self._number(name) if self._types[name] == "long" else self._text(name)

    def _text(self, name: str) -> Test:
        self._next(":")
        wanted = self._next("text", "word")
        return lambda log: log.get(name) == wanted

    def _number(self, name: str) -> Test:
        sign: Any = self._next("in", *_COMPARE)
        if sign.lower() == "in":
            self._next("[")
            first, last = int(self._next("number")), int(self._next("number"))
            self._next("]")
            return lambda log: name in log and first <= int(log[name]) <= last
        compare, wanted = _COMPARE[sign], int(self._next("number"))
        return lambda log: name in log and compare(int(log[name]), wanted)
