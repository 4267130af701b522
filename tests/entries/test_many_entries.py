"""Many entries: what planning and putting them into force costs grows with their number, not with its square."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from natcore import Add, ConfigurationError, DnatEntry, Gateway, Remove, Replace, SnatEntry
from natcore.service.configuration_file import SettingsError, load

POOL = "203.0.113.0-203.0.113.255"


def entry(number: int) -> DnatEntry:
    """A port of a pool's address: up to 256 addresses with 40 ports each."""
    return DnatEntry(f"203.0.113.{number % 256}", 2000 + number // 256, f"10.0.{number // 250}.{1 + number % 250}", 80)


def calls(work: Callable[[], object]) -> int:
    """Calls of functions, Python's and C's."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def filled(number: int) -> Gateway:
    made = Gateway(max_sessions=1000)
    entries = [SnatEntry("10.0.0.0/16", pool=POOL), *map(entry, range(number))]
    made.apply(made.plan([Add(each) for each in entries]))
    return made


def file_of(number: int, folder: Path) -> Path:
    lines = ["[gateway]", "max_sessions = 1000", "[[snat]]", 'source = "10.0.0.0/16"', f'pool = ["{POOL}"]']
    for each in map(entry, range(number)):
        lines += [
            "[[dnat]]", f'external_ip = "{each.external_ip}"', f"external_port = {each.external_port}",
            f'internal_ip = "10.0.{(each.external_port - 2000) % 200}.7"', "internal_port = 80",
        ]  # fmt: skip
    path = folder / f"{number}.toml"
    path.write_text("\n".join(lines))
    return path


def test_a_files_entries_cost_by_their_number(tmp_path: Path) -> None:
    few, many = (calls(lambda n=n: load(file_of(n, tmp_path)).make_gateway().close()) for n in (100, 400))
    assert many < 4.5 * few


def test_entries_added_together_cost_by_their_number() -> None:
    few, many = (calls(lambda n=n: filled(n).close()) for n in (100, 400))
    assert many < 4.5 * few


@pytest.mark.parametrize("what", ["add", "replace", "remove"])
def test_a_change_among_many_costs_little_for_each_of_them(what: str) -> None:
    costs = []
    for number in (200, 800):
        with filled(number) as made:
            rows = made.entries()
            change = {
                "add": lambda made=made: made.add(DnatEntry("203.0.113.9", 9999, "10.0.0.9", 80)),
                "replace": lambda made=made, rows=rows: made.replace(
                    rows[5], DnatEntry("203.0.113.9", 9999, "10.0.0.9", 80)
                ),
                "remove": lambda made=made, rows=rows: made.remove(rows[5]),
            }[what]
            costs.append(calls(change))
    assert (costs[1] - costs[0]) / 600 < 300  # calls an entry; not one more for each address of the pool


def test_many_changes_at_once_cost_by_their_number() -> None:
    costs = []
    for number in (100, 400):
        with filled(number) as made:
            rows = made.entries()[1:]
            changes = [Remove(row) for row in rows[::2]]
            changes += [
                Replace(row, DnatEntry("203.0.113.9", 9000 + n, "10.0.0.9", 80)) for n, row in enumerate(rows[1::2])
            ]
            costs.append(calls(lambda made=made, changes=changes: made.apply(made.plan(changes))))
    assert costs[1] < 4.5 * costs[0]


def test_ten_thousand_entries_are_put_into_force_and_changed(tmp_path: Path) -> None:
    with load(file_of(10_000, tmp_path)).make_gateway() as made:
        assert len(made.entries()) == 10_001
        assert made.add(DnatEntry("203.0.113.9", 9999, "10.0.0.9", 80)).id == 10_002


def test_an_entry_in_the_way_is_named_by_its_key_among_many(tmp_path: Path) -> None:
    path = file_of(50, tmp_path)
    again = (
        '\n[[dnat]]\nexternal_ip = "203.0.113.3"\nexternal_port = 2000\ninternal_ip = "10.0.0.9"\ninternal_port = 80\n'
    )
    path.write_text(path.read_text() + again)
    with pytest.raises(SettingsError) as caught:
        load(path).make_gateway()
    assert caught.value.key == "dnat[50].external_port"
    assert "entry 52 (any 203.0.113.3:2000) and entry 5" in str(caught.value).replace("tcp", "any")


def test_a_plan_that_failed_leaves_everything_as_it_was() -> None:
    with filled(10) as made:
        rows = made.entries()
        with pytest.raises(ConfigurationError, match="must not overlap"):
            made.plan([Add(entry(20)), Add(entry(3))])
        assert made.entries() == rows
        assert made.add(entry(20)).id == 12
