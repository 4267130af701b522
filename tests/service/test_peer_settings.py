"""[peer] of gateway.toml: what a good one makes, and what is said of a wrong one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from natcore.peer.channel import Address
from natcore.service import units
from natcore.service.configuration_file import Settings, SettingsError, load
from support.certificates import made

GOOD: dict[str, Any] = {
    "name": "gw-a", "peer_name": "gw-b", "listen": "192.0.2.1:7411", "peer": "[2001:db8::2]:7411",
    "certificate_file": "/etc/natcore/gw-a.pem", "key_file": "/etc/natcore/gw-a.key",
    "authority_file": "/etc/natcore/pair.pem",
}  # fmt: skip


def text_of(table: dict[str, Any], more: str = "") -> str:
    def value_of(value: Any) -> str:
        return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)

    lines = "\n".join(f"{name} = {value_of(value)}" for name, value in table.items())
    return (
        f'[[snat]]\nsource = "10.0.0.0/24"\npool = "203.0.113.1"\n{more}[plane]\ninside = "lan0"\noutside = "wan0"\n'
        f"[peer]\n{lines}\n"
    )


def loaded(folder: Path, table: dict[str, Any], more: str = "", *, to_run: bool = False) -> Settings:
    file = folder / "gateway.toml"
    file.write_text(text_of(table, more))
    return load(file, to_run=to_run)


def test_a_whole_table_makes_the_settings_of_a_pair(tmp_path: Path) -> None:
    peer = loaded(tmp_path, GOOD | {"witness": "198.51.100.9:7412", "lease": 1, "prefer": True}).peer
    assert peer is not None
    assert (peer.name, peer.peer_name, peer.lease, peer.prefer) == ("gw-a", "gw-b", 1, True)
    assert (peer.listen, peer.peer) == (Address("192.0.2.1", 7411), Address("2001:db8::2", 7411))
    assert peer.witness == Address("198.51.100.9", 7412)
    assert list(peer.credentials) == [Path(GOOD[f"{name}_file"]) for name in ("certificate", "key", "authority")]
    peer = loaded(tmp_path, GOOD | {"fence": ["/usr/sbin/off", "gw-b"]}).peer
    assert peer is not None
    assert (peer.witness, peer.fence, peer.lease) == (None, ("/usr/sbin/off", "gw-b"), 0.3)


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        ({"name": "gw a"}, "peer.name", "letters, digits"),
        ({"peer_name": "gw-a"}, "peer.peer_name", "the other gateway's name"),
        ({"name": "witness"}, "peer.name", "another one than the witness's"),
        ({"listen": "192.0.2.1"}, "peer.listen", "ADDRESS:PORT"),
        ({"peer": "192.0.2.1:7411"}, "peer.peer", "where the other gateway answers"),
        ({"witness": "192.0.2.1:7411"}, "peer.witness", "a third place"),
        ({"witness": "192.0.2.9:0"}, "peer.witness", "ADDRESS:PORT"),
        ({"lease": 0.01}, "peer.lease", "between 0.1 and 60"),
        ({"lease": "1"}, "peer.lease", "a number"),
        ({"prefer": True}, "peer.prefer", "without a witness"),
        ({"fence": []}, "peer.fence", "a command"),
        ({"fence": ["off"]}, "peer.fence", "the command's whole path"),
        ({"fence": "off"}, "peer.fence", "a list"),
        ({"witness": "192.0.2.9:1", "fence": ["/off"]}, "peer.fence", "left out with a witness"),
        ({"defer": "row"}, "peer.defer", "ack"),
        ({"defer": "ack", "defer_wait": 2}, "peer.defer_wait", "between 0.001 and 1"),
        ({"defer_wait": 0.02}, "peer.defer_wait", "left out without defer"),
        ({"key_file": ""}, "peer.key_file", "must be"),
        ({"password": "x"}, "peer.password", "unknown key"),
        ({"peer": None}, "peer.peer", "missing"),
    ],
)
def test_a_wrong_key_is_named_with_what_is_expected(
    tmp_path: Path, changes: dict[str, Any], key: str, problem: str
) -> None:
    table = {name: value for name, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, table)
    assert caught.value.key == key
    assert problem in str(caught.value)


def test_first_packets_wait_where_that_is_asked_for(tmp_path: Path) -> None:
    waits = []
    for more in ({}, {"defer": "ack"}, {"defer": "ack", "defer_wait": 0.1}):
        peer = loaded(tmp_path, GOOD | more).peer
        assert peer is not None
        waits.append(peer.defer)
    assert waits == [None, 0.02, 0.1]


def test_a_state_file_goes_with_a_standby(tmp_path: Path) -> None:
    settings = loaded(tmp_path, GOOD, '[state]\npath = "gateway.state"\n')
    assert settings.peer is not None and settings.state is not None


def test_what_run_refuses_of_its_files_check_refuses(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make certificates")
    credentials = made(tmp_path)
    names = ("certificate_file", "key_file", "authority_file")
    table = GOOD | dict(zip(names, map(str, credentials), strict=True))
    assert loaded(tmp_path, table, to_run=True).peer is not None
    with pytest.raises(SettingsError, match=r"peer.key_file.*: cannot be read: No such file"):
        loaded(tmp_path, table | {"key_file": str(tmp_path / "away")}, to_run=True)
    with pytest.raises(SettingsError, match="must be files in PEM"):
        loaded(tmp_path, table | {"key_file": str(credentials.certificate)}, to_run=True)


def test_a_unit_loads_the_files_for_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(tmp_path, GOOD)
    unit = units.files(settings, program="/usr/bin/natcore")[0].text
    for name in ("certificate_file", "key_file", "authority_file"):
        assert f":{GOOD[name]}\n" in unit
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "etc-natcore-gw-a.key").write_text("")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    peer = loaded(tmp_path, GOOD).peer
    assert peer is not None
    assert peer.credentials.key == folder / "etc-natcore-gw-a.key"
    assert peer.credentials.certificate == Path(GOOD["certificate_file"])
