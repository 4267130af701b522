"""The control socket: what a client gets, and that a hostile, stuck or slow one costs its own connection alone."""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from natcore import ConfigurationError, ControlError, Gateway
from natcore.control.client import Client
from natcore.control.connection import Limits
from natcore.control.protocol import MAX_REQUEST_BYTES
from natcore.control.verb import Answer, Context, verb
from natcore.internal.exit_codes import ExitCode
from support.control import MEMBERS, STRANGERS, Raw, ask_as, folder, joined, serving, verbs  # noqa: F401
from support.netns import needs_root, until

pytestmark = pytest.mark.usefixtures("verbs")


@pytest.fixture
def path(folder: Path) -> Path:  # noqa: F811
    return folder / "ngw-1.sock"


def test_the_server_greets_with_its_version_and_the_gateway(path: Path) -> None:
    with serving(path), Client(path) as client:
        greeting = client.greeting
    assert (greeting.protocol, greeting.instance, greeting.pid, greeting.writer) == (1, "ngw-1", os.getpid(), True)


def test_an_answer_is_rows_and_an_end_with_the_requests_number(path: Path) -> None:
    with serving(path), Raw(path) as client:
        client.line()
        rows, end = client.ask("verbs")
    assert {row["verb"] for row in rows["rows"]} >= {"verbs"}
    assert (rows["id"], end) == (7, {"type": "end", "id": 7, "summary": {}})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"nonsense\n", "a request must be an object"),
        (b"[]\n", "a request must be an object"),
        (b'{"arguments": {}}\n', "verb"),
        (b'{"verb": "fly"}\n', "verb must be one of"),
        (b'{"verb": "verbs", "arguments": {"wings": 2}}\n', "unknown argument 'wings'; known are none"),
        (b"\xff\xfe\n", "a request must be an object"),
        (b"[" * 60_000 + b"\n", "a request must be an object"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason_and_the_next_one_is_answered(
    path: Path, line: bytes, said: str
) -> None:
    with serving(path) as server, Raw(path) as client:
        client.line()
        client.send(line)
        answer = client.line()
        assert (answer["type"], answer["code"]) == ("failure", ExitCode.USAGE)
        assert said in answer["message"]
        assert client.ask("verbs")[-1]["type"] == "end"
        assert server.counters()["requests_failed"] == 1


def test_a_request_that_is_too_long_ends_its_connection_and_is_counted(path: Path) -> None:
    with serving(path) as server, Raw(path) as client:
        client.line()
        client.send(b"x" * MAX_REQUEST_BYTES)
        assert f"at most {MAX_REQUEST_BYTES:,} bytes" in client.line()["message"]
        assert client.line() is None
        until(lambda: server.counters()["too_long"] == 1)


def test_requests_that_come_together_are_answered_in_order(path: Path) -> None:
    with serving(path), Raw(path) as client:
        client.line()
        client.send(b"".join(json.dumps({"verb": "verbs", "id": n}).encode() + b"\n" for n in range(50)))
        ends = []
        while len(ends) < 50:
            line = client.line()
            ends += [line["id"]] if line["type"] == "end" else []
    assert ends == list(range(50))


def test_a_client_that_sends_all_and_ends_its_side_gets_the_whole_answer(path: Path) -> None:
    with serving(path), Raw(path) as client:
        client.line()
        client.send(b'{"verb": "verbs"}\n')
        client.socket.shutdown(socket.SHUT_WR)
        found = list(iter(client.line, None))
    assert [message["type"] for message in joined(found)] == ["rows", "end"]


def test_a_slow_reader_holds_up_neither_others_nor_the_memory(path: Path) -> None:
    taken = 0

    @verb("flood")
    def flood(context: Context) -> Answer:
        nonlocal taken
        while True:
            taken += 1
            yield {"text": "x" * 1000}

    with serving(path) as server, Raw(path, receive_bytes=4096) as stuck:
        stuck.send(b'{"verb": "flood"}\n')  # and it reads nothing
        until(lambda: taken)
        with Client(path) as other:
            for _ in range(20):
                assert other.ask("verbs")
        bound = taken
        with Client(path) as other:
            assert other.ask("verbs")
        assert bound <= taken < 2000  # what fits: the kernel's buffers and a quarter of a megabyte
        assert server.counters()["dropped_slow"] == 0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_client_that_reads_nothing_is_dropped_and_counted(path: Path) -> None:
    ended = threading.Event()

    @verb("flood")
    def flood(context: Context) -> Answer:
        try:
            while True:
                yield {"text": "x" * 10_000}
        finally:
            ended.set()

    clock = Clock()
    with serving(path, clock=clock) as server, Raw(path, receive_bytes=4096) as stuck:
        stuck.send(b'{"verb": "flood"}\n')
        until(lambda: server.counters()["requests"])

        def is_dropped() -> bool:
            clock.now += 31  # also while the buffers are still being filled
            return server.counters()["dropped_slow"] == 1

        until(is_dropped)
        until(ended.is_set)  # the verb was told
        until(lambda: server.counters()["clients"] == 0)


def test_a_client_that_was_quiet_for_long_is_told_what_is_wrong(path: Path) -> None:
    clock = Clock()
    with serving(path, clock=clock), Raw(path) as client:
        client.line()
        clock.now += 200
        client.send(b"x" * MAX_REQUEST_BYTES)
        assert "at most" in client.line()["message"]


def test_a_client_that_asks_nothing_is_dropped_and_counted(path: Path) -> None:
    clock = Clock()
    with serving(path, clock=clock) as server, Raw(path) as idle:
        assert idle.line()["type"] == "greeting"
        idle.send(b'{"verb"')  # a part of a line is no request
        clock.now += 301
        assert idle.line() is None
        until(lambda: server.counters()["dropped_idle"] == 1)


def test_too_many_clients_are_refused_and_said_why(path: Path) -> None:
    with serving(path, limits=Limits(clients=3)) as server:
        clients = [Client(path) for _ in range(3)]
        with pytest.raises(ControlError, match="too many clients") as refused:
            Client(path)
        assert refused.value.code == ExitCode.TRY_AGAIN
        assert server.counters()["refused_full"] == 1
        for client in clients:
            client.close()
        until(lambda: server.counters()["clients"] == 0)
        Client(path).close()


def test_no_descriptor_left_is_counted_and_the_socket_answers_again(path: Path) -> None:
    with serving(path) as server, socket.socket(socket.AF_UNIX) as waiting:
        free = os.dup(0)
        os.close(free)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            waiting.connect(os.fsencode(path))
            until(lambda: server.counters()["no_descriptor"])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        waiting.settimeout(60)
        assert waiting.recv(1000).startswith(b'{"type":"greeting"')


def test_a_verb_that_fails_is_a_failure_and_the_next_request_is_answered(path: Path) -> None:
    @verb("broken")
    def broken(context: Context) -> Answer:
        yield {"row": 1}
        raise RuntimeError("a planted fault")

    @verb("unspeakable")
    def unspeakable(context: Context) -> Answer:
        rows: list[Any] = []
        rows.append(rows)
        yield {"endless": rows}
        return {}

    with serving(path), Client(path) as client:
        with pytest.raises(ControlError, match="RuntimeError: a planted fault") as failed:
            client.ask("broken")
        assert failed.value.code == ExitCode.FAILED
        with pytest.raises(ControlError):
            client.ask("unspeakable")
        assert client.ask("verbs")


def test_a_failure_that_cannot_be_written_costs_one_connection(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @verb("mute")
    def mute(context: Context) -> Answer:
        yield []
        raise ControlError("\ud800")

    with serving(path) as server, Raw(path) as client:
        client.line()
        client.send(b'{"verb": "mute"}\n')
        assert client.line() is None
        assert server.counters()["dropped_error"] == 1
        Client(path).close()
    assert "is dropped" in caplog.text


def test_a_slow_verb_runs_in_a_thread_and_others_are_answered_meanwhile(path: Path) -> None:
    go, names = threading.Event(), []

    @verb("wait", slow=True)
    def wait(context: Context) -> Answer:
        names.append(threading.current_thread().name)
        go.wait(60)
        yield {"done": True}
        return {"slept": True}

    with serving(path), Client(path) as client, Raw(path) as waiting:
        waiting.line()
        waiting.send(b'{"verb": "wait"}\n')
        until(lambda: names)
        assert client.ask("verbs")
        go.set()
        assert waiting.line()["rows"] == [{"done": True}]
        assert waiting.line()["summary"] == {"slept": True}
    assert names == ["natcore-verb"]


def test_slow_requests_are_bounded_and_one_without_a_client_ends(path: Path) -> None:
    running: set[int] = set()

    @verb("wait", slow=True)
    def wait(context: Context, *, n: int) -> Answer:
        running.add(n)
        try:
            while True:
                yield {"n": n, "text": "x" * 10_000}
        finally:
            running.remove(n)

    with serving(path, limits=Limits(jobs=2)):
        clients = [Raw(path) for _ in range(3)]
        for n, client in enumerate(clients):
            client.line()
            client.send(json.dumps({"verb": "wait", "arguments": {"n": n}}).encode() + b"\n")
            if n < 2:
                until(lambda n=n: n in running)  # type: ignore[misc]
        answer = clients[2].line()
        assert (answer["message"], answer["code"]) == ("too many slow requests; try again", ExitCode.TRY_AGAIN)
        for client in clients:
            client.close()
        until(lambda: not running)


def test_closing_the_gateway_closes_the_socket_and_removes_the_file(path: Path) -> None:
    gateway = Gateway()
    gateway.serve_control(path)
    with Raw(path) as client:
        assert client.line()
        gateway.close()
        assert client.line() is None
    assert not path.exists()
    with pytest.raises(ControlError, match="no gateway serves there"):
        Client(path)


def test_a_gateway_that_is_dropped_takes_its_socket_along(path: Path) -> None:
    gateway = Gateway()
    gateway.serve_control(path)
    del gateway
    until(lambda: not path.exists())


def test_the_file_of_a_dead_process_is_replaced_and_a_living_one_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fsencode(path))
    with serving(path):
        with Gateway() as second, pytest.raises(ConfigurationError, match="a process answers there"):
            second.serve_control(path)
        Client(path).close()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with Gateway() as gateway, pytest.raises(ConfigurationError, match="path must be free or a socket"):
        gateway.serve_control(path)
    assert path.read_text() == "precious"


def test_a_later_file_at_the_path_is_not_removed(path: Path) -> None:
    with serving(path):
        path.unlink()
        path.write_text("another one")
    assert path.read_text() == "another one"


def test_a_path_that_is_too_long_and_an_unknown_group_are_named(folder: Path) -> None:  # noqa: F811
    with Gateway() as gateway:
        with pytest.raises(ConfigurationError, match="path must have at most 107 bytes"):
            gateway.serve_control(folder / ("x" * 120))
        with pytest.raises(ConfigurationError, match=r"group must be a group of this system, .* got 'no-such-group'"):
            gateway.serve_control(folder / "x", group="no-such-group")


def test_a_child_of_a_fork_leaves_the_file_to_its_parent(path: Path) -> None:
    gc.collect()
    gc.freeze()  # what other tests have left, with threads that the child has not, is none of the child's collector's
    try:
        with serving(path):
            child = os.fork()
            if child == 0:
                gc.collect()
                os._exit(0)
            os.waitpid(child, 0)
            Client(path).close()
    finally:
        gc.unfreeze()


# ---- who may do what ------------------------------------------------------------------------------------------------


@pytest.fixture
def change(verbs: None) -> Iterator[list[int]]:  # noqa: F811
    """A verb that changes something: who asked it."""
    asked: list[int] = []

    @verb("change", writes=True)
    def change(context: Context) -> dict[str, Any]:
        asked.append(context.peer.uid)
        return {"changed": True}

    return asked


@needs_root
def test_a_member_of_the_group_looks_and_changes_nothing(path: Path, change: list[int]) -> None:
    with serving(path, group=MEMBERS):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, MEMBERS)
        requests: list[dict[str, Any]] = [{"verb": "verbs"}, {"verb": "change"}]
        for groups in ((MEMBERS, ()), (STRANGERS, (MEMBERS,))):  # its first group, or another one
            greeting, rows, end, refused = ask_as(path, *requests, group=groups[0], groups=groups[1])
            assert greeting["writer"] is False
            assert {row["verb"]: row["permitted"] for row in rows["rows"]}["change"] is False
            assert end["type"] == "end"
            assert (refused["type"], refused["code"]) == ("failure", ExitCode.REFUSED)
    assert change == []


@needs_root
def test_a_member_of_the_write_group_changes(path: Path, change: list[int]) -> None:
    with serving(path, group=MEMBERS, write_group=STRANGERS):
        greeting, end = ask_as(path, {"verb": "change"}, group=MEMBERS, groups=(STRANGERS,))
    assert greeting["writer"] is True
    assert end["summary"] == {"changed": True}
    assert change == [65_534]


@needs_root
def test_who_is_in_neither_group_cannot_connect(path: Path, change: list[int]) -> None:
    with serving(path, group=MEMBERS):
        (refused,) = ask_as(path, {"verb": "change"}, group=STRANGERS)
    assert refused == {"type": "refused", "errno": 13}
    assert change == []


@needs_root
def test_readers_leave_places_for_writers(path: Path) -> None:
    limits = Limits(clients=6, kept_for_writers=2, clients_of_user=2)
    with serving(path, group=MEMBERS, limits=limits) as server:
        children = [os.fork() for _ in range(1)]
        if children[0] == 0:  # two connections of a reader, then a third that is one too many
            os.setgroups([])
            os.setgid(MEMBERS)
            os.setuid(65_534)
            held = [Raw(path) for _ in range(3)]
            kinds = [client.line()["type"] for client in held]
            os._exit(0 if kinds == ["greeting", "greeting", "failure"] else 1)
        _, status = os.waitpid(children[0], 0)
        assert status == 0
        assert server.counters()["refused_full"] == 1
