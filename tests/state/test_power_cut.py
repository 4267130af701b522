"""A save that ends at any of its system calls leaves the old state or the new one, whole."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natcore import Gateway, Side, SnatEntry
from natcore.testing import craft

CALLS = ("open", "write", "fsync", "rename", "unlink", "close")


class Cut(BaseException):
    """The process ends here."""


def gateway_of(sessions: int) -> Gateway:
    gateway = Gateway(seed=1, max_sessions=100)
    gateway.add(SnatEntry("10.0.0.0/24", "203.0.113.1"))
    for at in range(sessions):
        gateway.translate_one(craft.ether(craft.udp(("10.0.0.1", 5000 + at), ("198.51.100.7", 53))), Side.INSIDE, at)
    return gateway


def bytes_of(gateway: Gateway) -> bytes:
    file = io.BytesIO()
    gateway.save(file)
    return file.getvalue()


def save_until(gateway: Gateway, path: Path, nth: int, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, list[str]]:
    """Save, up to the nth system call; whether it went through, and the calls that were made."""
    made: list[str] = []

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if len(made) >= nth:
                raise Cut
            result = real(*arguments, **more)
            made.append(real.__name__)
            return result

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            gateway.save(path)
        except Cut:
            return False, made
    return True, made


def test_the_old_state_or_the_new_one_is_there_whenever_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = gateway_of(3), gateway_of(9)
    states = {bytes_of(old): 3, bytes_of(new): 9}
    path = tmp_path / "nat.state"
    found = []
    for nth in range(1000):
        old.save(path)
        done, made = save_until(new, path, nth, monkeypatch)
        found.append(states[path.read_bytes()])
        assert len(Gateway.restore(path).sessions()) == found[-1]
        if done:
            break
    assert done
    assert found == sorted(found)
    assert set(found) == {3, 9}
    # What was written is on the disk before it gets the name, and the name before the save returns.
    assert made.count("rename") == 1
    before, after = made[: made.index("rename")], made[made.index("rename") :]
    assert before.index("fsync") > max(at for at, name in enumerate(before) if name == "write")
    assert "fsync" in after


def test_what_a_save_leaves_that_was_cut_off_hinders_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, path = gateway_of(3), tmp_path / "nat.state"
    for nth in (2, 4, 6, 8):
        save_until(gateway, path, nth, monkeypatch)
    gateway.save(path)
    assert path.read_bytes() == bytes_of(gateway)
