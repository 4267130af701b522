"""An interface is one process's, and no unprivileged user can say otherwise."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from natcore import InterfaceError
from natcore.plane import interface_lock
from natcore.plane.interface_lock import Claim
from support.links import pair
from support.netns import Network, at, needs_root

__all__ = ["pair"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder that is not there yet."""
    monkeypatch.setattr(interface_lock, "_RUN", tmp_path / "natcore")
    return tmp_path / "natcore"


def test_a_second_claim_is_refused_and_names_the_process(run: Path) -> None:
    first = Claim("lan0")
    with pytest.raises(InterfaceError, match=rf"'lan0': another plane of natcore .process {os.getpid()}. has it"):
        Claim("lan0")
    Claim("wan0").close()
    first.close()
    first.close()
    Claim("lan0").close()
    assert list(run.iterdir()) == []
    assert run.stat().st_mode & 0o777 == 0o755  # control sockets lie here too: their group passes, and writes nothing


def test_an_unprivileged_user_s_socket_blocks_nothing(run: Path) -> None:
    """Anybody can bind an abstract socket; the lock's folder is root's alone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as squatter:
        squatter.bind("\0natcore:lan7")
        Claim("lan7").close()


def test_what_a_dead_process_claimed_is_free(run: Path) -> None:
    script = f"""
import os, pathlib
from natcore.plane import interface_lock
interface_lock._RUN = pathlib.Path({str(run)!r})
mine = interface_lock.Claim("lan0")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert len(list(run.iterdir())) == 1  # its file is there still
    Claim("lan0").close()


def test_equal_names_of_two_namespaces_are_two_interfaces(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Claim("lan0")
    monkeypatch.setattr(interface_lock, "network_namespace", lambda: "4-123")
    second = Claim("lan0")
    assert len(list(run.iterdir())) == 2
    first.close()
    second.close()


def test_a_planted_lock_is_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("root's")
    run.mkdir(mode=0o700)
    (run / f"{interface_lock.network_namespace()}-lan0.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(InterfaceError, match="its lock"):
        Claim("lan0")
    assert (tmp_path / "victim").read_text() == "root's"


def test_a_folder_that_others_may_write_to_holds_no_locks(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.mkdir()
    run.chmod(0o777)
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
    made = Claim("lan0")
    assert list(run.iterdir()) == [] and len(list((own / "natcore").iterdir())) == 1
    made.close()


@needs_root
def test_a_namespace_is_told_by_its_inode(pair: Network) -> None:
    with at(pair, "a"):
        one = interface_lock.network_namespace()
        held = Claim("one")
    with at(pair, "b"):
        other = interface_lock.network_namespace()
        Claim("one").close()
    assert one != other
    held.close()
