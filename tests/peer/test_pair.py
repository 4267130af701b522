"""Two gateways in one process, over TCP with TLS: they follow, yield, take over, and come back."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from threading import Thread

import pytest

from natcore import ConfigurationError, Gateway, PeerError, Side, SnatEntry
from natcore.api.peer import Fence
from natcore.internal.parts import parts_of
from natcore.peer import pair as pair_module
from natcore.peer.channel import Address, Channel, Credentials, parse_address
from natcore.peer.lease import Voter, clock
from natcore.peer.messages import Kind, Message
from natcore.peer.pair import Pair, PeerSettings
from natcore.peer.server import Server
from natcore.peer.voting import Voting
from natcore.testing import craft

LEASE = 0.5
POOL = "203.0.113.1"


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


class Node:
    """A gateway of a pair without interfaces: what `natcore run` does with one."""

    def __init__(self, settings: PeerSettings, state: Callable[[], float | None] | None = None) -> None:
        self.pair = Pair(settings, Gateway, state=state)
        self.gateway: Gateway | None = None
        self.stops = 0

    def begin(self) -> Gateway:
        """It was chosen."""
        until(self.pair.chosen.is_set)
        gateway = self.pair.take_over()
        if gateway is None:
            gateway = Gateway(max_sessions=1000)
            gateway.add(SnatEntry("10.0.0.0/24", POOL))
        self.pair.guard(gateway)
        self.gateway = gateway
        self.pair.forwards(gateway, self.stop)
        return gateway

    def stop(self) -> None:
        self.stops += 1

    def end(self) -> None:
        assert self.gateway is not None
        self.pair.stopped()
        self.gateway.close()
        self.gateway = None

    def close(self) -> None:
        if self.gateway is not None:
            self.end()
        self.pair.close()


@pytest.fixture
def nodes(credentials: Credentials) -> Iterator[Callable[..., tuple[Node, Node]]]:
    with ExitStack() as stack:

        def make(
            witness: Address | None = None, saved: tuple[float | None, float | None] | None = None, **more: object
        ) -> tuple[Node, Node]:
            one, other = (Address("127.0.0.1", port) for port in free_ports(2))
            common = {"credentials": credentials, "witness": witness, "lease": LEASE, **more}
            of_a = PeerSettings(name="a", peer_name="b", listen=one, peer=other, prefer=saved is not None, **common)  # type: ignore[arg-type]
            of_b = PeerSettings(name="b", peer_name="a", listen=other, peer=one, **common)  # type: ignore[arg-type]
            states = [None, None] if saved is None else [lambda when=when: when for when in saved]
            a, b = (Node(*each) for each in zip((of_a, of_b), states, strict=True))
            stack.callback(a.close)
            stack.callback(b.close)
            return a, b

        yield make


def out(gateway: Gateway, port: int, now: float) -> None:
    frame = craft.ether(craft.udp(("10.0.0.5", port), ("198.51.100.7", 53)))
    assert gateway.translate_one(frame, Side.INSIDE, now)[0].is_forwarded


def sessions_of(gateway: Gateway) -> list[tuple[int, ...]]:
    names = ("session", "inside_ip", "inside_port", "outside_ip", "outside_port", "remote_ip", "remote_port")
    return sorted(tuple(int(row[name]) for name in names) for row in gateway.sessions())


def in_step(a: Node, b: Node) -> Callable[[], bool]:
    return lambda: a.pair.connected and b.pair.has_image and a.pair.counters()["lag_records"] == 0


def test_a_switch_over_loses_no_session_and_the_old_one_comes_back_as_the_standby(
    nodes: Callable[..., tuple[Node, Node]],
) -> None:
    a, b = nodes()
    a.pair.activate(alone=True)
    gateway = a.begin()
    for port in range(300):
        out(gateway, 2000 + port, 1.0)
    until(in_step(a, b))
    out(gateway, 9000, 2.0)
    before = sessions_of(gateway)
    b.pair.activate()
    assert a.stops == 1
    assert a.pair.must_stop.is_set()
    assert not a.pair.may_translate
    promoted = b.begin()
    assert sessions_of(promoted) == before
    a.end()
    until(in_step(b, a))
    out(promoted, 9001, 3.0)
    until(lambda: b.pair.counters()["rows_sent"] >= 302)
    until(in_step(b, a))
    assert b.pair.counters()["snapshots_sent"] == 1
    assert a.pair.counters()["snapshots_received"] == 1
    assert a.pair.counters()["stream_failures"] == 0
    a.pair.activate()
    assert sessions_of(a.begin()) == sessions_of(promoted)


def test_a_change_of_entries_is_a_snapshot_and_the_stream_goes_on(nodes: Callable[..., tuple[Node, Node]]) -> None:
    a, b = nodes()
    a.pair.activate(alone=True)
    gateway = a.begin()
    until(in_step(a, b))
    gateway.add(SnatEntry("10.0.1.0/24", "203.0.113.2"))
    out(gateway, 2000, 1.0)
    until(lambda: b.pair.counters()["snapshots_received"] == 2)
    until(in_step(a, b))
    b.pair.activate()
    promoted = b.begin()
    assert [row.entry for row in promoted.entries()] == [row.entry for row in gateway.entries()]


def test_without_an_answer_a_standby_takes_over_only_if_the_other_one_is_known_to_be_off(
    nodes: Callable[..., tuple[Node, Node]],
) -> None:
    a, b = nodes()
    b.pair.close()
    with pytest.raises(PeerError, match="may be translating"):
        a.pair.activate()
    assert not a.pair.chosen.is_set()
    a.pair.activate(alone=True)
    assert a.pair.chosen.is_set()
    assert not b.pair.chosen.is_set()


def test_of_two_standbys_one_may_take_over_and_the_other_one_stays(nodes: Callable[..., tuple[Node, Node]]) -> None:
    a, b = nodes()
    until(lambda: _activated(a))
    assert a.pair.chosen.is_set()
    with pytest.raises(PeerError, match="may be translating"):  # a promised nothing, and is about to translate
        b.pair.activate()
    gateway = a.begin()
    out(gateway, 2000, 1.0)
    until(in_step(a, b))
    b.pair.activate()
    assert sessions_of(b.begin()) == sessions_of(gateway)


def _activated(node: Node) -> bool:
    with suppress(PeerError):  # the other one did not answer in time, on a busy machine
        node.pair.activate()
    return node.pair.chosen.is_set()


def test_of_two_that_are_told_to_take_over_at_once_one_does_at_most(nodes: Callable[..., tuple[Node, Node]]) -> None:
    a, b = nodes()
    for _ in range(5):
        threads = [Thread(target=_activated, args=(node,)) for node in (a, b)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not (a.pair.chosen.is_set() and b.pair.chosen.is_set())
        if a.pair.chosen.is_set():
            return
    assert a.pair.chosen.is_set(), "the first by name goes first"


def test_a_gateway_that_steps_down_has_a_successor_that_lost_nothing(nodes: Callable[..., tuple[Node, Node]]) -> None:
    a, b = nodes()
    with pytest.raises(PeerError, match="not the active one"):
        a.pair.step_down()
    a.pair.activate(alone=True)
    gateway = a.begin()
    until(in_step(a, b))
    out(gateway, 2000, 1.0)
    a.pair.step_down()
    assert a.stops == 1
    promoted = b.begin()
    assert sessions_of(promoted) == sessions_of(gateway)
    a.end()
    until(in_step(b, a))
    assert b.pair.lag_seconds is not None and b.pair.lag_seconds < 5
    assert a.pair.lag_seconds is not None
    a.pair.close()
    until(lambda: not b.pair.connected)
    with pytest.raises(PeerError, match="does not follow; this gateway goes on"):
        b.pair.step_down()
    assert b.pair.role == "active" and b.stops == 0


def test_a_gateway_of_another_name_is_not_followed(
    nodes: Callable[..., tuple[Node, Node]], credentials: Credentials
) -> None:
    a, _ = nodes()
    a.pair.activate(alone=True)
    a.begin()
    [port] = free_ports(1)
    listen = Address("127.0.0.1", port)
    settings = PeerSettings(
        name="c", peer_name="d", listen=listen, peer=a.pair._settings.listen, credentials=credentials
    )
    with closing(Node(settings)) as other:
        time.sleep(1.0)
        assert not other.pair.has_image
        assert not other.pair.connected


@pytest.mark.parametrize(("name", "lease"), [("b", LEASE), ("witness", 2 * LEASE)])
def test_a_voter_counts_only_if_it_is_the_one_that_is_meant_and_lends_for_the_same_time(
    credentials: Credentials, caplog: pytest.LogCaptureFixture, name: str, lease: float
) -> None:
    """Else a vote would count twice, or longer than it was lent."""
    own, third = (Address("127.0.0.1", port) for port in free_ports(2))
    started = clock() - 10
    with (
        Server(third, credentials, voter=Voter(name, lease, started), about=dict),
        Server(own, credentials, voter=Voter("a", LEASE, started), about=dict) as server,
        Voting("a", server, {"b": own, "witness": third}, credentials, LEASE, lambda until: None) as voting,
    ):
        voting.begin()
        until(lambda: "does not count" in caplog.text)
        time.sleep(2 * LEASE)
        assert voting.until < 0


@pytest.mark.parametrize(("command", "chosen"), [(("true",), True), (("false",), False), (("/nowhere",), False)])
def test_the_fence_command_says_whether_the_other_machine_is_off(
    nodes: Callable[..., tuple[Node, Node]], command: tuple[str, ...], chosen: bool
) -> None:
    a, b = nodes(fence=command)
    b.pair.close()
    if chosen:
        a.pair.activate()
    else:
        with pytest.raises(PeerError):
            a.pair.activate()
    assert a.pair.chosen.is_set() is chosen


def test_with_a_witness_the_standby_takes_over_by_itself_and_never_both_translate(
    nodes: Callable[..., tuple[Node, Node]], credentials: Credentials
) -> None:
    [port] = free_ports(1)
    at = Address("127.0.0.1", port)
    voter = Voter("witness", LEASE, clock())
    with Server(at, credentials, voter=voter, about=lambda: {"role": "witness"}):
        a, b = nodes(witness=at)
        until(lambda: a.pair.chosen.is_set() or b.pair.chosen.is_set())
        first, second = (a, b) if a.pair.chosen.is_set() else (b, a)
        gateway = first.begin()
        out(gateway, 2000, 1.0)
        until(in_step(first, second))
        assert first.pair.may_translate
        assert not second.pair.may_translate
        fence = Fence(parts_of(gateway).core.workers)
        assert 0 < fence.until_ns() / 1e9 - clock() < LEASE
        before = sessions_of(gateway)
        # the process is gone at once: it listens no more, and asks no more
        first.pair._closed.set()
        first.pair._server.close()
        assert first.pair._voting is not None
        first.pair._voting._closed.set()
        promoted = second.begin()
        assert second.pair.may_translate
        assert not first.pair.may_translate
        assert fence.until_ns() / 1e9 < clock()
        assert sessions_of(promoted) == before


@pytest.mark.parametrize(
    ("saved", "first"), [((1.0, 2.0), "b"), ((2.0, 1.0), "a"), ((None, 1.0), "b"), ((None, None), "a")]
)
def test_where_neither_has_an_image_the_one_with_the_newer_state_goes_first(
    nodes: Callable[..., tuple[Node, Node]],
    credentials: Credentials,
    monkeypatch: pytest.MonkeyPatch,
    saved: tuple[float | None, float | None],
    first: str,
) -> None:
    """a is the preferred one, where both have none."""
    monkeypatch.setattr(pair_module, "IMAGE_FIRST", 60.0)
    monkeypatch.setattr(pair_module, "PREFERRED_FIRST", 0.0)
    [port] = free_ports(1)
    at = Address("127.0.0.1", port)
    a, b = nodes(witness=at, saved=saved)
    voter = Voter("witness", LEASE, clock())
    with Server(at, credentials, voter=voter, about=lambda: {"role": "witness"}):
        until(lambda: a.pair.chosen.is_set() or b.pair.chosen.is_set())
        assert [node.pair.chosen.is_set() for node in (a, b)] == [first == "a", first == "b"]


def test_a_stranger_is_told_nothing(credentials: Credentials, other_credentials: Credentials) -> None:
    [port] = free_ports(1)
    at = Address("127.0.0.1", port)
    voter = Voter("witness", LEASE, clock() - 10)
    with Server(at, credentials, voter=voter, about=lambda: {"role": "witness"}):
        for theirs in (
            other_credentials,
            Credentials(other_credentials.certificate, other_credentials.key, credentials.authority),
        ):
            with pytest.raises((OSError, EOFError)):
                Channel.connect(at, theirs.context(server=False), {"want": "votes"}, 5.0)
        with Channel.connect(at, credentials.context(server=False), {"want": "votes"}, 5.0) as channel:
            assert channel.hello["role"] == "witness"
            channel.send(Message(Kind.ASK, 0, 0, b"[]"))
            with pytest.raises((OSError, EOFError)):
                channel.receive(5.0)
        with socket.create_connection(at) as plain:
            plain.sendall(b"\0" * 100)
            plain.settimeout(10)
            with suppress(ConnectionResetError):
                while plain.recv(4096):  # an alert, and the end
                    pass
    assert voter.holder(clock()) is None


@pytest.mark.parametrize(
    "text", ["", "192.0.2.1", ":7411", "192.0.2.1:0", "192.0.2.1:70000", "192.0.2.1:x", "192.0.2.1:٣"]
)
def test_an_address_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ConfigurationError, match="listen must be ADDRESS:PORT"):
        parse_address("listen", text)
    assert parse_address("listen", "[2001:db8::1]:7411") == Address("2001:db8::1", 7411)
