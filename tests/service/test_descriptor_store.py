"""Rings that the manager keeps between two processes of a unit: what is given is what the next one has."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import pytest

from natcore.plane.left_plane import LeftInterface, LeftPlane
from natcore.service import descriptor_store
from natcore.service.notify import Notifier
from support.netns import needs_root

KIND = ("af_packet", False, 1, 64)
PLACE = tuple(range(9))


class Manager:
    """What systemd does with descriptors: it keeps them by their names, and closes that of a barrier."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.kept: dict[str, int] = {}
        self._thread = Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(4096, 64)
            lines = data.decode().split("\n")
            told = dict(line.split("=", 1) for line in lines)
            descriptors = array("i")
            for _, _, given in ancillary:
                descriptors.frombytes(given)
            if "FDSTORE" in told:
                assert told["FDPOLL"] == "0"
                [self.kept[told["FDNAME"]]] = descriptors
            elif "FDSTOREREMOVE" in told:
                os.close(self.kept.pop(told["FDNAME"]))
            elif "BARRIER" in told:
                os.close(descriptors[0])
            else:
                return

    def close(self, notifier: Notifier) -> None:
        notifier.stopping()
        self._thread.join()
        self._socket.close()
        for descriptor in self.kept.values():
            os.close(descriptor)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[Manager, Notifier]]:
    path = tmp_path / "notify"
    made, notifier = Manager(path), Notifier({"NOTIFY_SOCKET": str(path)})
    yield made, notifier
    made.close(notifier)


def plane() -> tuple[LeftPlane, list[int]]:
    """What a plane of two interfaces leaves, and the numbers of its files."""
    files = [os.memfd_create(f"ring-{number}") for number in range(6)]
    rings = [(tuple(files[:3]), PLACE), (tuple(files[3:]), PLACE)]
    interfaces = {name: LeftInterface(name, 3, -1, [ring]) for name, ring in zip(("lan0", "wan0"), rings, strict=True)}  # type: ignore[list-item]
    return LeftPlane(KIND, None, interfaces), [os.fstat(file).st_ino for file in files]


def started(monkeypatch: pytest.MonkeyPatch, kept: dict[str, int], first: int = 3) -> None:
    """This process has the descriptors as a unit's has them, in any order."""
    names = list(reversed(kept))
    descriptors = [os.dup(kept[name]) for name in names]
    monkeypatch.setattr(descriptor_store, "_FIRST", first)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, first + number)
        os.close(descriptor)
    monkeypatch.setenv("LISTEN_FDNAMES", ":".join(names))
    monkeypatch.setenv("LISTEN_FDS", str(len(names)))
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))


def test_the_next_process_has_what_was_left_and_the_manager_keeps_it_no_more(
    manager: tuple[Manager, Notifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, notifier = manager
    monkeypatch.setattr(descriptor_store, "_is_of", lambda *_: True)
    left, files = plane()
    descriptor_store.keep(left, notifier)
    assert len(made.kept) == 7
    started(monkeypatch, made.kept, 900)
    taken = descriptor_store.taken(notifier)
    assert taken is not None
    with taken:
        assert (taken.kind, taken.ruleset, list(taken.interfaces)) == (KIND, None, ["lan0", "wan0"])
        [(first, place)], [(second, _)] = (taken.take_rings(name, 3, KIND) for name in ("lan0", "wan0"))
        assert [os.fstat(each).st_ino for each in (*first, *second)] == files
        assert place == PLACE
        for each in (*first, *second):
            assert not os.get_inheritable(each)
            os.close(each)
    notifier.keep({})  # the manager has read what came before
    assert made.kept == {}
    assert "LISTEN_FDS" not in os.environ


def test_what_is_not_whole_is_closed(manager: tuple[Manager, Notifier], monkeypatch: pytest.MonkeyPatch) -> None:
    made, notifier = manager
    descriptor_store.keep(plane()[0], notifier)
    os.close(made.kept.pop("natcore-ring-6"))
    started(monkeypatch, made.kept, 900)
    assert descriptor_store.taken(notifier) is None
    for descriptor in range(900, 906):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


@needs_root
def test_a_ring_is_a_packet_socket_of_the_interface_that_has_its_name() -> None:
    with ExitStack() as stack:
        packet = [stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) for _ in range(2)]
        packet[0].bind(("lo", 0))  # the other one is bound to none, as one of an interface that was removed
        other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        file = stack.enter_context(Path(os.devnull).open("rb"))
        assert descriptor_store._is_of(packet[0].fileno(), "lo")
        assert not descriptor_store._is_of(packet[0].fileno(), "lan0")
        assert not descriptor_store._is_of(packet[1].fileno(), "lo")
        assert not descriptor_store._is_of(other.fileno(), "lo")
        with pytest.raises(OSError, match="socket"):
            descriptor_store._is_of(file.fileno(), "lo")
        packet[0].getsockname()  # it is open still


def test_what_is_no_ring_costs_no_start(manager: tuple[Manager, Notifier], monkeypatch: pytest.MonkeyPatch) -> None:
    made, notifier = manager
    descriptor_store.keep(plane()[0], notifier)
    started(monkeypatch, made.kept, 900)
    assert descriptor_store.taken(notifier) is None
    for descriptor in range(900, 907):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


@pytest.mark.parametrize("process", ["", "1"])
def test_what_is_for_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch, process: str) -> None:
    monkeypatch.setenv("LISTEN_PID", process)
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "natcore-ring-0")
    assert descriptor_store.taken(Notifier({})) is None
