"""What the other gateway, the witness and strangers send that no gateway does: it ends a connection, and nothing else."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from threading import Event, Thread

import pytest

from natcore import Gateway, PeerError, Side, SnatEntry
from natcore.peer import channel as channel_module
from natcore.peer.channel import Address, Channel, Credentials
from natcore.peer.feed import Feed
from natcore.peer.lease import Voter, clock
from natcore.peer.messages import ACK, HEADER, TIME, VERSION, Kind, Message
from natcore.peer.pair import Pair, PeerSettings
from natcore.peer.server import MOST_CONNECTIONS, Server
from natcore.peer.standby import Standby
from natcore.testing import craft

LEASE = 0.3
NESTED = b"[" * 4000


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


def hello(**fields: object) -> bytes:
    return json.dumps({"version": VERSION, **fields}).encode()


def exactly(connection: ssl.SSLSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += (got := connection.recv(size - len(data)))
        if not got:
            raise EOFError
    return bytes(data)


def read(connection: ssl.SSLSocket) -> None:
    exactly(connection, HEADER.unpack(exactly(connection, HEADER.size))[3])


class Hostile:
    """Listens with a certificate of the pair, says hello, and does as it likes."""

    def __init__(self, credentials: Credentials, hello: bytes, then: Callable[[ssl.SSLSocket], object]) -> None:
        self._context, self._hello, self._then = credentials.context(server=True), hello, then
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._socket.getsockname())
        self.connections = 0
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                raw, _ = self._socket.accept()
                self.connections += 1
                Thread(target=self._answer, args=(raw,), daemon=True).start()

    def _answer(self, raw: socket.socket) -> None:
        with suppress(OSError, EOFError), self._context.wrap_socket(raw, server_side=True) as connection:
            read(connection)
            connection.sendall(Message(Kind.HELLO, 0, 0, self._hello).head() + self._hello)
            self._then(connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def wait_for_end(connection: ssl.SSLSocket) -> None:
    connection.recv(1)


def answer_votes(body: bytes) -> Callable[[ssl.SSLSocket], None]:
    def then(connection: ssl.SSLSocket) -> None:
        while True:
            read(connection)
            connection.sendall(Message(Kind.VOTE, 0, 0, body).head() + body)

    return then


def free_port() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Address(*listener.getsockname())


@contextmanager
def pair_with(credentials: Credentials, peer: Address, witness: Address | None = None) -> Iterator[Pair]:
    settings = PeerSettings(
        name="a", peer_name="b", listen=free_port(), peer=peer, credentials=credentials, witness=witness, lease=LEASE
    )
    with Pair(settings, Gateway) as pair:
        yield pair


@pytest.mark.parametrize(
    "said",
    [NESTED, hello(name="b", role="standby", saved=10**400), hello(name="b", role="standby", saved=[]),
     hello(name="b", role="standby", saved=float("nan")), hello(name="\ud800", role="active"), b"1" * 4096, b"[1]"],
    ids=["nested", "long", "list", "nan", "surrogate", "number", "array"],
)  # fmt: skip
def test_whatever_the_other_gateway_says_of_itself_it_is_asked_again(credentials: Credentials, said: bytes) -> None:
    with ExitStack() as stack:
        hostile = Hostile(credentials, said, lambda _: None)
        stack.callback(hostile.close)
        pair = stack.enter_context(pair_with(credentials, hostile.address))
        until(lambda: hostile.connections >= 3)
        assert pair._other_saved is None


def vote(**fields: object) -> bytes:
    return json.dumps({"granted": True, "turn": 1, "holder": None, "left": 0.0, **fields}).encode()


@pytest.mark.parametrize(
    "body",
    [NESTED, vote(holder="\x1b[2J"), vote(holder="b" * 256), vote(left=float("nan")), vote(left=-1), vote(left=10**400),
     vote(turn=1.5), b" " * 5000 + vote()],
    ids=["nested", "escape", "long", "nan", "negative", "huge", "fraction", "padded"],
)  # fmt: skip
def test_a_witness_that_answers_nonsense_lends_nothing_and_is_asked_again(
    credentials: Credentials, body: bytes
) -> None:
    with ExitStack() as stack:
        said = hello(name="witness", voter="witness", lease=LEASE)
        hostile = Hostile(credentials, said, answer_votes(body))
        stack.callback(hostile.close)
        pair = stack.enter_context(pair_with(credentials, free_port(), hostile.address))
        assert pair._voting is not None
        pair._voting.begin()
        until(lambda: hostile.connections >= 3)
        assert not pair.chosen.is_set()
        assert set(pair.holders) <= {"a"}


@pytest.mark.parametrize(
    "asked",
    [NESTED, b'{"who": "b", "turn": 1' + b"0" * 4000 + b', "back": false}', b'{"who": "\\ud800", "turn": 1, "back": false}',
     b'{"who": "\\u001b[2J", "turn": 1, "back": false}', b'{"who": "b", "turn": -1, "back": false}'],
    ids=["nested", "long", "surrogate", "escape", "negative"],
)  # fmt: skip
def test_a_request_that_is_none_ends_its_connection_alone(credentials: Credentials, asked: bytes) -> None:
    voter = Voter("witness", LEASE, clock() - LEASE)
    with Server(Address("127.0.0.1", 0), credentials, voter=voter, about=dict) as server:
        context = credentials.context(server=False)
        to = Address("127.0.0.1", server.port)
        with Channel.connect(to, context, {"name": "b", "want": "votes"}, 60.0) as channel:
            channel.send(Message(Kind.ASK, 0, 0, asked))
            with pytest.raises((EOFError, OSError)):
                channel.receive(60.0)
        assert server.holder is None
        with Channel.connect(to, context, {"name": "b", "want": "votes"}, 60.0) as channel:
            channel.send(Message(Kind.ASK, 0, 0, b'{"who": "b", "turn": 1, "back": false}'))
            answer = channel.receive(60.0)
        assert answer is not None and json.loads(bytes(answer.body))["granted"]


def test_a_gateway_ends_though_the_other_one_sends_a_byte_now_and_then(credentials: Credentials) -> None:
    began = []

    def drip(connection: ssl.SSLSocket) -> None:
        connection.sendall(Message(Kind.BASE, 0, 0, bytes(1 << 20)).head())
        began.append(True)
        while True:
            connection.sendall(b"\0")
            select.select([connection], [], [], 0.2)

    with ExitStack() as stack:
        hostile = Hostile(credentials, hello(name="b", role="active", saved=None), drip)
        stack.callback(hostile.close)
        with pair_with(credentials, hostile.address) as pair:
            until(lambda: began and pair.connected)
            ending = Thread(target=pair.close, daemon=True)
            ending.start()
            until(lambda: not ending.is_alive(), 15.0)


def test_a_message_that_takes_too_long_ends_its_connection(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "STALL_SECONDS", 0.5)
    ended = []

    def drip(connection: ssl.SSLSocket) -> None:
        try:
            for byte in Message(Kind.TIME, 0, 0, bytes(24)).head() * 1000:
                connection.sendall(bytes([byte]))
                select.select([connection], [], [], 0.1)
        finally:
            ended.append(True)

    with ExitStack() as stack:
        hostile = Hostile(credentials, hello(name="b", role="active", saved=None), drip)
        stack.callback(hostile.close)
        stack.enter_context(pair_with(credentials, hostile.address))
        until(lambda: ended)


def test_a_sender_is_told_that_nothing_is_taken_and_loses_nothing_by_it(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that first packets do not wait for a standby that has stalled in the middle of a message."""
    monkeypatch.setattr(channel_module, "PATIENCE", 0.05)
    body = os.urandom(1 << 20) * 32  # more than both sides' buffers
    told, got = Event(), list[bytes]()

    def take(connection: ssl.SSLSocket) -> None:
        told.wait()
        exactly(connection, HEADER.size)
        got.append(hashlib.sha256(exactly(connection, len(body))).digest())
        connection.sendall(b"x")

    with closing(Hostile(credentials, hello(name="b"), take)) as other:
        context = credentials.context(server=False)
        with Channel.connect(other.address, context, {"name": "a", "want": "stream"}, 60.0) as channel:
            channel.send(Message(Kind.SESSIONS, 0, 0, body), told.set)
            until(lambda: got)
    assert told.is_set() and got == [hashlib.sha256(body).digest()]


def test_strangers_that_send_a_byte_now_and_then_do_not_keep_the_places(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "HELLO_SECONDS", 1.0)
    voter = Voter("witness", LEASE, clock())
    with ExitStack() as stack:
        server = stack.enter_context(Server(Address("127.0.0.1", 0), credentials, voter=voter, about=dict))
        to = Address("127.0.0.1", server.port)
        strangers = [stack.enter_context(socket.create_connection(to)) for _ in range(MOST_CONNECTIONS)]
        for stranger in strangers:
            stranger.sendall(b"\x16\x03\x01\x40\x00")  # a record of 16 KB begins
        until(lambda: not server._places.acquire(blocking=False) or server._places.release())
        context = credentials.context(server=False)

        def is_answered() -> bool:
            for stranger in strangers:
                with suppress(OSError):
                    stranger.sendall(b"\0")
            with suppress(OSError, EOFError), Channel.connect(to, context, {"name": "b", "want": "votes"}, 0.2):
                return True
            return False

        until(is_answered)


def test_the_number_of_a_descriptor_may_be_any(credentials: Credentials) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("needs 2000 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        few = os.open("/dev/null", os.O_RDONLY)
        stack.callback(os.close, few)
        at = few
        while at < 1500:
            at = fcntl.fcntl(few, fcntl.F_DUPFD_CLOEXEC, at + 1)
            stack.callback(os.close, at)
        with Server(Address("127.0.0.1", 0), credentials, voter=None, about=lambda: {"role": "standby"}) as server:
            to = Address("127.0.0.1", server.port)
            with Channel.connect(
                to, credentials.context(server=False), {"name": "b", "want": "votes"}, 60.0
            ) as channel:
                assert channel._socket.fileno() > 1024
                assert channel.hello["role"] == "standby"
                assert channel.receive(0.0) is None


def talkative() -> Gateway:
    gateway = Gateway(max_sessions=100)
    gateway.add(SnatEntry("10.0.0.0/24", "203.0.113.1"))
    frame = craft.ether(craft.udp(("10.0.0.5", 5000), ("198.51.100.7", 53)))
    assert gateway.translate_one(frame, Side.INSIDE, 1.0)[0].is_forwarded
    return gateway


@pytest.mark.parametrize(
    "told",
    [(2**64 - 1, 0, 1), (2**63, 0, 1), (10**9, 2**63 - 1, 1), (10**9, -(2**63), 1), (10**9, 0, 2**64 - 1),
     (10**9, 0, 2**48 - 1)],
)  # fmt: skip
def test_a_time_of_no_gateway_is_refused_and_the_image_takes_over_without_it(told: tuple[int, int, int]) -> None:
    standby = Standby(Gateway)
    with Feed(talkative()) as feed:
        for message in feed.snapshot():
            standby.receive(message)
    with pytest.raises(PeerError, match="no gateway has"):
        standby.receive(Message(Kind.TIME, 0, standby.applied, TIME.pack(*told)))
    with standby.promote(elapsed=1.0, grace=0.0) as gateway:
        assert gateway.now == 2.0
        assert gateway.sessions()["session"].tolist() == [1]


@pytest.mark.parametrize("lie", ["rows", "answers"])
def test_a_standby_that_acknowledges_what_was_not_sent_is_left(credentials: Credentials, lie: str) -> None:
    with ExitStack() as stack:
        pair = stack.enter_context(pair_with(credentials, free_port()))
        pair.activate(alone=True)
        assert pair.take_over() is None
        gateway = stack.enter_context(talkative())
        pair.guard(gateway)
        pair.forwards(gateway, lambda: None)
        to = Address("127.0.0.1", pair._server.port)
        context = credentials.context(server=False)
        with Channel.connect(to, context, {"name": "b", "want": "stream"}, 60.0) as channel:
            rows, answers = (2**63, 1) if lie == "rows" else (0, 10_000)
            with pytest.raises((EOFError, OSError)):
                while message := channel.receive(60.0):
                    assert message.kind != Kind.YIELDED
                    for _ in range(answers):
                        channel.send(Message(Kind.ACK, 0, 0, ACK.pack(rows)))
        until(lambda: not pair.connected)
        assert pair.counters()["lag_records"] >= 0
        pair.stopped()
