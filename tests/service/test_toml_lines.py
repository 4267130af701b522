"""The lines of keys in a TOML text: of every key that tomllib finds there."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from natcore.service.toml_lines import key_lines, line_of

TEXT = '''# [not] = "a table"
[gateway] # with a comment
instance = "a # b"
"dotted.name" = """
]
\\""" two quotes: """""
list = [ 1, # one
  "x]", [2,
  3], 1979-05-27 07:32:00, ]

[[snat]]
source = '\\'
pool = [{ address = "1", private_ip = "2" },
  "z"]
[[snat]]
a.b . "c" = true
[snat.sub]
k = {}
[[snat.inner]]
q = \'\'\'
\'\'\'\'\'
[[snat.inner]]
q = -inf
'''


def test_keys_stand_on_their_lines() -> None:
    lines = key_lines(TEXT)
    assert lines["gateway"] == 2 and lines["gateway.instance"] == 3 and lines["gateway.dotted.name"] == 4
    assert [lines[f"gateway.list[{n}]"] for n in range(4)] == [7, 8, 8, 9] and lines["gateway.list[2][1]"] == 9
    assert lines["snat"] == lines["snat[0]"] == 11 and lines["snat[0].pool[0].private_ip"] == 13
    assert lines["snat[0].pool[1]"] == 14 and lines["snat[1]"] == 15 and lines["snat[1].a.b.c"] == 16
    assert lines["snat[1].sub.k"] == 18 and lines["snat[1].inner[0].q"] == 20 and lines["snat[1].inner[1].q"] == 23


def test_a_key_that_is_not_there_has_the_line_of_its_table() -> None:
    lines = key_lines(TEXT)
    assert line_of(lines, "snat[1].source") == 15 and line_of(lines, "snat[0].pool[0].x") == 13
    assert line_of(lines, "plane.inside") is None and line_of(lines, "") is None


def test_every_path_of_the_text_has_a_line() -> None:
    assert set(key_lines(TEXT)) >= set(paths("", tomllib.loads(TEXT)))


def paths(prefix: str, value: Any) -> Iterator[str]:
    if prefix:
        yield prefix
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(f"{prefix}.{key}" if prefix else key, inner)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from paths(f"{prefix}[{position}]", inner)


KEYS = st.text("ab_-.\"'#[]= é", min_size=1, max_size=6)
SCALARS = st.one_of(st.booleans(), st.integers(-9, 9), st.text("ab\"'\\#,]}\n\t", max_size=8))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
TABLES = st.dictionaries(KEYS, VALUES, max_size=4)


def quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[ # ]\n" + ",\n".join(map(written, value)) + "\n]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {written(each)}" for key, each in value.items()) + "}"
    return str(value)


@given(st.dictionaries(KEYS, TABLES | st.lists(TABLES, min_size=1, max_size=3), max_size=3), st.integers(0, 3))
def test_every_key_is_found_on_its_line(tables: dict[str, Any], blank: int) -> None:
    """Lines are counted independently: each top-level key of a table begins a line of its own."""
    text, expected = "\n" * blank, dict[str, int]()
    for name, found in tables.items():
        elements = found if isinstance(found, list) else [found]
        for position, table in enumerate(elements):
            path = f"{name}[{position}]" if isinstance(found, list) else name
            expected[path] = text.count("\n") + 1
            text += f"[[{quoted(name)}]]\n" if isinstance(found, list) else f"[ {quoted(name)} ] # [x]\n"
            for key, value in table.items():
                expected[f"{path}.{key}"] = text.count("\n") + 1
                text += f"{quoted(key)}= {written(value)}\n"
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # an inline table with lists has line ends, which TOML 1.0 has not
        return
    lines = key_lines(text)
    ambiguous = len(set(paths("", parsed))) < len(list(paths("", parsed)))  # "a.b" and a table a with b
    assert set(lines) >= set(paths("", parsed))
    assert ambiguous or {key: lines[key] for key in expected} == expected
