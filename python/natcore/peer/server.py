"""Server: listens for the other gateway, and lends it the vote of this place; the witness is this alone."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from natcore.errors import Error, PeerError
from natcore.internal import threads
from natcore.internal.closing import Closing
from natcore.peer.channel import Address, Channel, Credentials
from natcore.peer.lease import Ballot, Voter, clock
from natcore.peer.messages import Kind, Message, is_name, parse_json

MOST_CONNECTIONS = 16
POLL = 0.2  # seconds between looks at whether it is closed
SILENCE = 5.0  # seconds without a request for a vote: the connection is given up

_log = logging.getLogger(__name__)


class Server(Closing):
    """Answers connections, each in a thread of its own, until `close`.

    voter: lends the vote of this place; None: there are no votes. about: what it says of itself in the greeting. stream: serves
    a standby's connection until it ends. Raises OSError: it cannot listen there.
    """

    def __init__(
        self,
        listen: Address,
        credentials: Credentials,
        *,
        voter: Voter | None,
        about: Callable[[], dict[str, Any]],
        stream: Callable[[Channel], None] | None = None,
    ) -> None:
        self._context = credentials.context(server=True)
        self._voter, self._about, self._stream = voter, about, stream
        self._voter_lock = threading.Lock()
        self._closed = threading.Event()
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        self._socket = socket.create_server(listen, family=socket.AF_INET6 if ":" in listen.host else socket.AF_INET)
        self._socket.settimeout(POLL)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threads.start("natcore-peer", self._run)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                raw, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError as error:  # no descriptor left, or closed
                if not self._closed.wait(POLL):
                    _log.warning("the listener for the other gateway: %s", error)
                continue
            if not self._places.acquire(blocking=False):
                raw.close()
                continue
            try:
                threads.start("natcore-peer", self._answer, raw)
            except Error:
                self._places.release()
                raw.close()

    def _answer(self, raw: socket.socket) -> None:
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with Channel.accept(raw, self._context, lambda _: self._greeting()) as channel:
                if channel.hello.get("want") == "votes":
                    self._vote(channel)
                elif channel.hello.get("want") == "stream" and self._stream is not None:
                    self._stream(channel)
        except (Error, OSError, EOFError, ssl.SSLError) as error:
            _log.info("a connection of the other gateway ended: %s", error)
        finally:
            raw.close()
            self._places.release()

    def _greeting(self) -> dict[str, Any]:
        voter = self._voter
        return self._about() | ({} if voter is None else {"voter": voter.name, "lease": voter.duration})

    def _vote(self, channel: Channel) -> None:
        heard = time.monotonic()
        while not self._closed.is_set() and time.monotonic() - heard < SILENCE:
            message = channel.receive(POLL)
            if message is None:
                continue
            heard = time.monotonic()
            who, turn, back = asked_of(message)
            ballot, holder = self.ask(who, turn, back=back)
            said = {
                "voter": ballot.voter,
                "granted": ballot.granted,
                "turn": turn,
                "holder": holder,
                "left": ballot.left,
            }
            channel.send(Message(Kind.VOTE, 0, 0, json.dumps(said).encode()))

    def ask(self, who: str, turn: int, *, back: bool = False) -> tuple[Ballot, str | None]:
        """Ask the vote of this place, or give it back; return the answer, and who has the vote."""
        with self._voter_lock:
            if self._voter is None:
                return Ballot("", False, turn), None
            now = clock()
            if back:
                self._voter.give_back(who, turn, now)
                return Ballot(self._voter.name, False, turn), self._voter.holder(now)
            return self._voter.ask(who, turn, now), self._voter.holder(now)

    @property
    def holder(self) -> str | None:
        """Who has the vote of this place now; None: none, or none that it knows."""
        with self._voter_lock:
            return None if self._voter is None else self._voter.holder(clock())

    def close(self) -> None:
        """Listen no more; connections end. Idempotent."""
        self._closed.set()
        self._thread.join()
        with suppress(OSError):
            self._socket.close()

    @property
    def is_closed(self) -> bool:
        """Whether connections are to end."""
        return self._closed.is_set()


def asked_of(message: Message) -> tuple[str, int, bool]:
    """Return who asks for a vote, the number of the request, and whether it is given back. Raises PeerError."""
    said = parse_json(message.body) if message.kind == Kind.ASK else {}
    who, turn, back = said.get("who"), said.get("turn"), said.get("back")
    if not (is_name(who) and type(turn) is int and 0 <= turn < 1 << 63 and isinstance(back, bool)):
        raise PeerError("a request for a vote is none")
    return str(who), turn, back
