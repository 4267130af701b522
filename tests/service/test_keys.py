"""The list of the file's keys agrees with what a file may have, and with a first file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from natcore.service.configuration_file import load
from natcore.service.first_file import text_for
from natcore.service.keys import Key, keys
from natcore.service.machine import interfaces
from natcore.service.tables import TABLES
from support.command_line import call, call_json

KEYS = keys()


def named(table: str, name: str, sink: str = "") -> Key:
    (key,) = (key for key in KEYS if (key.table, key.name, key.sink) == (table, name, sink))
    return key


def test_every_key_of_every_table_has_a_meaning_and_a_type() -> None:
    assert {(key.table, key.name) for key in KEYS if not key.sink} >= {
        (table, name) for table, struct in TABLES.items() if table for name in struct.__struct_fields__
    }
    assert [f"{key.heading} {key.name}" for key in KEYS if not key.meaning or not key.type] == []


def test_types_units_defaults_and_words_are_those_of_the_arguments() -> None:
    window = named("gateway", "window")
    assert (window.type, window.unit, window.default) == ("number", "seconds", "600.0")
    assert named("policy", "ports").allowed == ("random", "preserve", "block", "deterministic", "overload")
    assert named("snat", "source").default is None and named("snat", "name").default == ""
    assert named("policy", "port_ranges").default == "[[1024, 65_535]]"
    assert named("log", "roll_bytes", "jsonlines").unit == "bytes"
    assert named("plane", "cpus").meaning == "The processor of each worker's thread; left out: the system chooses."
    secret = named("log", "password_file", "clickhouse")
    assert "NATCORE_PASSWORD" in secret.meaning and secret.default == ""
    assert not [key for key in KEYS if re.search(r"\bNone\b|\bTrue\b", key.meaning)]


def test_every_default_is_a_value_of_its_key(tmp_path: Path) -> None:
    """A file with all defaults makes what an empty one makes."""
    text = ""
    for key in KEYS:
        if key.default and key.table in ("gateway", "policy", "timeouts"):
            text += f"{key.table}.{key.name} = {key.default}\n"
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    with load(path).make_gateway() as made:
        path.write_text("")
        with load(path).make_gateway() as empty:
            assert (made.policy, made.timeouts, made.window) == (empty.policy, empty.timeouts, empty.window)


def test_every_key_stands_in_a_first_file() -> None:
    text = text_for([], "gw")
    assert [
        key.name for key in KEYS if not re.search(rf"^(# )?({key.name} = |\[{key.table}\.{key.name}\])", text, re.M)
    ] == []
    commented = re.sub(r"^# (\[+[\w.]+\]+$|\w+ = (?!…))", r"\1", text.partition("# [[dnat]]")[0], flags=re.M)
    assert set(tomllib.loads(commented)) == {"gateway", "plane", "policy", "timeouts", "snat"}


def test_the_commands_list_keys_and_write_a_file_once(tmp_path: Path) -> None:
    assert "  udp: number, seconds, default 300.0\n" in call("config", "timeouts")
    assert {key["table"] for key in call_json("config")} == set(TABLES) - {""} | {"log"}
    assert "TABLE must be one of gateway" in call("config", "paper", exit_code=64)
    path = tmp_path / "gateway.toml"
    assert call_json("init", path)["interfaces"] == [each.name for each in interfaces()] and call("check", path)
    before = path.read_text()
    assert "is there already" in call("init", path, exit_code=64) and path.read_text() == before
