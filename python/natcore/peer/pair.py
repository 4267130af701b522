"""Pair: this gateway as one of two: it follows the active one, takes over from it, and makes way for it.

Theory of operation. Both gateways listen. The standby connects to the active one, gets a snapshot, then every `INTERVAL` what
has changed (natcore.peer.feed), and answers how far it is. Nothing that the standby does can delay a packet: changes wait as
bits of a table (natcore/workers/peer_feed.pxd), and a standby that is slow, or comes again, gets the rows as they are then.

Who translates, in either of two ways:

- With a witness (`Voting`): who has the votes of a majority. A standby that hears nothing of the active gateway for as long as
  a vote is lent asks for the votes; planes ask before each batch whether the time is over (`Fence`).
- Without: whoever was told to (`activate`). The standby asks the active gateway to yield; that one stops, tells what is left,
  and says so. One that is a standby too says that it stays one: it translates only if it asks in its turn. If it cannot be
  reached, a command of the user's (`fence`) must have switched it off, or the user says that it is (`alone`). A gateway begins
  as a standby, always.
"""

from __future__ import annotations

import logging
import random
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from natcore.api.peer import Fence
from natcore.errors import Error, PeerError
from natcore.internal import threads
from natcore.internal.closing import Closing
from natcore.internal.parts import parts_of
from natcore.internal.redaction import show
from natcore.internal.validation import MAX_TIME
from natcore.peer.channel import Address, Channel, Credentials
from natcore.peer.deferral import Deferral
from natcore.peer.feed import Feed
from natcore.peer.lease import Voter, clock
from natcore.peer.messages import ACK, Kind, Message
from natcore.peer.server import Server
from natcore.peer.standby import Standby
from natcore.peer.voting import WITNESS, Voting

if TYPE_CHECKING:
    from natcore.gateway import Gateway

INTERVAL = 0.02  # seconds between two looks for what has changed
DEFERRED_INTERVAL = 0.002  # the same, at least, while frames wait for the standby
DEFER_WAIT = 0.02
REFRESH_EVERY = 2.0  # seconds between two looks for sessions that packets have passed
RETRY = 0.2  # seconds between two attempts to connect
SILENCE = 2.0  # seconds without a word of the active gateway: the connection is given up
YIELD_SECONDS = 15.0  # that the active gateway has to stop and to tell what is left
PROMISE_SECONDS = 1.0  # that another standby has to say that it stays one
FENCE_SECONDS = 60.0  # that the command has to switch the other machine off
SOON = (
    0.5  # of the lease: a silence after which the standby asks for votes; it gets none before the active one's are over
)
IMAGE_FIRST = 3.0  # seconds by which a gateway without an image lets the other one go first
STATE_FIRST = 20.0  # the same for one that has neither an image nor a state, before it has heard the other one
PREFERRED_FIRST = 1.0  # the same for the one that is to go first where neither has one
FOR_EVER = 0  # of a Fence

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """One gateway of a pair.

    name: of this gateway, and peer_name of the other one; different. listen: where it answers the other one; peer: where the
    other one does. witness: a third place that votes, or None. lease: seconds that a vote is lent. prefer: with a witness, this
    one goes first where neither has sessions to go on with. fence: a command that ends well only if the other machine is off,
    or None. defer: seconds that a new session's first packet waits at most until the standby has the session, or None.
    """

    name: str
    peer_name: str
    listen: Address
    peer: Address
    credentials: Credentials
    witness: Address | None = None
    lease: float = 0.3
    prefer: bool = False
    fence: tuple[str, ...] | None = None
    defer: float | None = None


class Pair(Closing):
    """One of two gateways. gateway_type, changes: as for `Standby`. state: says when the state was saved from which this
    gateway would begin without an image, Unix seconds, or None; left out: it never has one. Raises OSError: it cannot listen.

    Its owner waits until it is `chosen`, calls `take_over`, opens the planes, and calls `forwards`; when `must_stop` is set it
    stops them, calls `stopped`, and waits anew.
    """

    def __init__(
        self, settings: PeerSettings, gateway_type: type[Gateway], *,
        state: Callable[[], float | None] | None = None, **changes: Any,
    ) -> None:  # fmt: skip
        self._settings, self._state = settings, state
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self.chosen, self.must_stop = threading.Event(), threading.Event()
        self.role = "standby"
        """"standby", "active", or "stopping": it has yielded or lost the majority."""
        self._standby = Standby(gateway_type, **changes)
        self._gateway: Gateway | None = None  # the active one
        self._fence: Fence | None = None
        self._stop_forwarding: Callable[[], object] | None = None
        self._told = threading.Event()  # everything that is left, to the standby
        self._stream: Channel | None = None  # the newest standby's
        self._followed: Channel | None = None  # the newest to the other gateway
        self._yield_asked = threading.Event()
        self._yielded = threading.Event()
        self._step_down_asked = threading.Event()
        self._promised = False  # to the other gateway, to stay a standby
        self._heard = time.monotonic()  # the active gateway
        self._started = time.monotonic()
        self._news = threading.Event()  # for _campaign: there is something to look at
        self._moments: dict[str, float] = {}  # of the take-over under way: CLOCK_MONOTONIC
        self._counters = dict.fromkeys(
            ("rows_sent", "bytes_sent", "rows_applied", "snapshots_sent", "snapshots_received", "stream_failures",
             "role_changes"), 0,
        )  # fmt: skip
        self._in_step = time.monotonic()  # the standby had everything that there was then
        self._unanswered: deque[tuple[int, float]] = deque()  # rows of the stream, and when they were taken
        self._sent = self._acknowledged = 0  # rows of the stream that runs
        self._messages = self._answers = 0  # of it: sent, and answered by the standby
        self._waiting: Callable[[], int] | None = None
        self.connected = False
        """Whether the stream runs now, in either direction."""
        self.handed_on = False
        """Whether the other gateway has the sessions that this one had when it was active last."""
        self._other_saved: float | None = None  # the other one's, by its last word as a standby
        self._other_heard = float("inf")  # when it was heard first, since this one is a standby
        voter = None if settings.witness is None else Voter(settings.name, settings.lease, clock())
        self._server = Server(
            settings.listen, settings.credentials, voter=voter, about=self._about, stream=self._serve_stream
        )
        self._voting: Voting | None = None
        if settings.witness is not None:
            others = {settings.peer_name: settings.peer, WITNESS: settings.witness}
            self._voting = Voting(
                settings.name, self._server, others, settings.credentials, settings.lease, self._majority
            )
        self._threads = [threads.start("natcore-peer", self._follow)]
        if self._voting is not None:
            self._threads.append(threads.start("natcore-peer", self._campaign))

    # ---- what its owner calls ---------------------------------------------------------------------------------------

    def take_over(self) -> Gateway | None:
        """Return the gateway that the image has become, not forwarding yet; None: there is none, the owner makes one. Call it
        once `chosen`, then `forwards`."""
        with self._lock:
            self._moments["chosen"] = time.monotonic()
            self.role = "active"
            self._counters["role_changes"] += 1
            self._step_down_asked.clear()
            self.must_stop.clear()
            self._told.clear()
            self.handed_on = False
            self._yielded.clear()
            if not self._standby.is_complete:
                return None
            elapsed = time.monotonic() - self._heard
            gateway = self._standby.promote(elapsed=elapsed, grace=REFRESH_EVERY + 1.0)
            self._moments["image"] = time.monotonic()
            return gateway

    @property
    def image(self) -> Gateway | None:
        """The gateway that `take_over` would return, which rows are applied to until then; None: there is none. Planes may be
        opened for it once it was held."""
        return self._standby.image

    @staticmethod
    def hold(image: Gateway) -> None:
        """Keep the planes of an image from translating, until `guard`."""
        Fence(parts_of(image).core.workers).set(_ns(float("-inf")))

    def guard(self, gateway: Gateway) -> None:
        """Let the gateway's planes translate from now on, while this gateway may. Call it with what `take_over` returned, or
        was made instead, before planes are opened that were not opened for the image."""
        with self._lock:
            self._fence = Fence(parts_of(gateway).core.workers)
            self._fence.set(FOR_EVER if self._voting is None else _ns(self._voting.until))

    def forwards(self, gateway: Gateway, stop: Callable[[], object]) -> None:
        """The gateway forwards now. stop: ends that at once, from any thread."""
        with self._lock:
            self._moments["forwards"] = time.monotonic()
            self._gateway, self._stop_forwarding = gateway, stop

    def stopped(self) -> None:
        """The gateway forwards no more, and will be closed: it is a standby again. Waits until what is left was told.
        Idempotent."""
        with self._lock:
            if self.role == "standby":
                return
            yielding, self.role = self.role == "stopping", "stopping"
        if yielding:
            self._told.wait(YIELD_SECONDS)
        with self._lock:
            self._gateway = self._stop_forwarding = self._fence = None
            self.chosen.clear()
            self._yield_asked.clear()
            if self._voting is not None:
                self._voting.end()
            self._heard = self._started = time.monotonic()
            self._other_saved, self._other_heard = None, float("inf")
            self._counters["role_changes"] += 1
            self.role = "standby"

    def activate(self, *, alone: bool = False) -> None:
        """Take over. alone: the caller knows that the other machine is off. Returns when this gateway is chosen; PeerError: it
        is not, and why."""
        if self.role == "active":
            return
        if self.role != "standby":
            raise PeerError("this gateway is just stopping; try again in a moment")
        self._yielded.clear()
        self._promised = False
        self._yield_asked.set()
        began = time.monotonic()
        while not (self._yielded.wait(0.01) or self.chosen.is_set()):
            patience = (
                YIELD_SECONDS if self.connected else 0.0 if self._voting is not None or alone else PROMISE_SECONDS
            )
            if time.monotonic() - began >= patience:
                break
        self._yield_asked.clear()
        if self._voting is not None:
            self._voting.begin()
            if not self.chosen.wait(YIELD_SECONDS):
                self._voting.end()
                raise PeerError(f"the votes that are needed are not to be had: they are lent to {self._voting.holders}")
            return
        if self.chosen.is_set() or self.role == "active":  # by what the other gateway said
            return
        if not (self._yielded.is_set() or alone or self._fenced()):
            raise PeerError(
                f"{self._settings.peer_name} at {self._settings.peer} does not answer, and may be translating: switch it off, "
                "then say --alone; or configure a witness or a fence command"
            )
        with self._lock:
            if self._promised:
                raise PeerError(f"{self._settings.peer_name} takes over, which was asked there at the same time")
            self.chosen.set()

    def step_down(self) -> None:
        """Let the standby take over; nothing is lost. Returns when everything was told to it; PeerError: this one goes on,
        and why."""
        if self.role != "active":
            raise PeerError(f"this gateway is not the active one: it is {self.role}")
        if not (self.connected and self._counters["snapshots_sent"]):
            raise PeerError(f"{self._settings.peer_name} does not follow; this gateway goes on")
        self._step_down_asked.set()
        if not self._told.wait(YIELD_SECONDS):
            self._step_down_asked.clear()
            raise PeerError(f"{self._settings.peer_name} could not be told in {YIELD_SECONDS:g} s")

    def _fenced(self) -> bool:
        """Whether the command says that the other machine is off."""
        command = self._settings.fence
        if command is None:
            return False
        try:
            return subprocess.run(command, timeout=FENCE_SECONDS, check=False, stdin=subprocess.DEVNULL).returncode == 0
        except (OSError, subprocess.SubprocessError) as error:
            _log.error("the fence command failed: %s", error)
            return False

    def counters(self) -> dict[str, int]:
        """Return rows, bytes and snapshots of the stream and changes of the role, cumulative, and the gauge lag_records: rows
        that the standby does not have yet."""
        waiting = self._waiting
        with self._lock:
            found = dict(self._counters)
            found["lag_records"] = self._sent - self._acknowledged
        if waiting is not None:
            with suppress(Error):  # the feed has just ended
                found["lag_records"] += waiting()
        return found

    @property
    def took_over(self) -> dict[str, float]:
        """Seconds from the last word of the other gateway until votes were "asked" for, this one was "chosen", had its "image"
        as a gateway, and "forwards"; what the last take-over was without is missing."""
        with self._lock:
            return {name: round(moment - self._heard, 4) for name, moment in self._moments.items()}

    @property
    def lag_seconds(self) -> float | None:
        """How long ago the standby had everything, told by either; None: no stream runs."""
        if not self.connected:
            return None
        return max(0.0, time.monotonic() - (self._heard if self.role == "standby" else self._in_step))

    @property
    def lease_seconds(self) -> float | None:
        """How long this gateway may translate unless more votes come; 0: it may not. None: there is no witness."""
        return None if self._voting is None else max(0.0, self._voting.until - clock())

    @property
    def holders(self) -> dict[str, str | None]:
        """Who has each voter's vote, by its last answer; empty: there is no witness."""
        return {} if self._voting is None else dict(self._voting.holders)

    @property
    def name(self) -> str:
        """The gateway's own name."""
        return self._settings.name

    @property
    def peer_name(self) -> str:
        """The other gateway's name."""
        return self._settings.peer_name

    @property
    def has_image(self) -> bool:
        """Whether it has a complete image of the active gateway."""
        return self._standby.is_complete

    @property
    def may_translate(self) -> bool:
        """Whether this gateway is active, and has the votes that it needs."""
        return self.role == "active" and (self._voting is None or clock() < self._voting.until)

    def close(self) -> None:
        """End. A gateway that forwards must have been stopped. Idempotent."""
        self._closed.set()
        self._server.close()
        for channel in (self._followed, self._stream):
            if channel is not None:
                channel.abort()
        for thread in self._threads:
            thread.join()
        if self._voting is not None:
            self._voting.close()
        self._standby.close()

    # ---- the active gateway -----------------------------------------------------------------------------------------

    def _about(self) -> dict[str, Any]:
        role = self.role if self._gateway is not None else "standby"
        return {"name": self._settings.name, "role": role, "saved": self._saved()}

    def _serve_stream(self, channel: Channel) -> None:
        """Tell a standby everything, until it ends or another one comes."""
        self._check_name(channel)
        with self._lock:
            gateway, self._stream = self._gateway, channel
        if gateway is None or self.role != "active":
            self._promise(channel)
            return
        feed = None
        while feed is None and self._is_served(channel):
            try:
                feed = Feed(gateway)
            except Error:  # the stream before notices that it has a successor
                time.sleep(INTERVAL)
        if feed is None:
            return
        with ExitStack() as stack:
            stack.enter_context(feed)
            wait = self._settings.defer
            deferral = None if wait is None else stack.enter_context(Deferral(gateway, wait))
            try:
                with self._lock:
                    self._sent = self._acknowledged = self._messages = self._answers = 0
                    self._unanswered.clear()
                self._waiting, self.connected = lambda: feed.waiting, True
                self._tell(feed, channel, deferral)
            finally:
                with self._lock:
                    if self._stream is channel:
                        self._waiting, self.connected = None, False

    def _check_name(self, channel: Channel) -> None:
        """Raise PeerError if it is not the other gateway that is there."""
        name = channel.hello.get("name")
        if name != self._settings.peer_name:
            raise PeerError(f"the other gateway must be {self._settings.peer_name!r}, got {show(name)}")

    def _promise(self, channel: Channel) -> None:
        """Say that this standby stays one, if that is asked and nothing else was decided; for two without a witness."""
        if self._voting is not None:
            return
        with suppress(EOFError, OSError):  # it asks nothing
            message = channel.receive(PROMISE_SECONDS)
            if message is None or message.kind != Kind.YIELD:
                return
            with self._lock:
                first = self._yield_asked.is_set() and self._settings.name < self._settings.peer_name
                if self.role != "standby" or self.chosen.is_set() or first or self._closed.is_set():
                    return
                self._promised = True
            channel.send(Message(Kind.YIELDED, 0, 0, b""))

    def _is_served(self, channel: Channel) -> bool:
        return self._stream is channel and self.role == "active" and not self._closed.is_set()

    def _tell(self, feed: Feed, channel: Channel, deferral: Deferral | None) -> None:
        refresh_at = 0.0
        wake = None if deferral is None else deferral.fileno()
        while self._is_served(channel):
            began = time.monotonic()
            if refresh_at == 0.0 or feed.is_outdated:
                self._send(channel, feed.snapshot(), deferral)
                self._counters["snapshots_sent"] += 1
                refresh_at = began + REFRESH_EVERY
            cycle = 0 if deferral is None else deferral.begin_cycle()
            self._send(channel, feed.changes(), deferral)
            if deferral is not None:
                deferral.end_cycle(cycle, self._messages, time.monotonic())
            with self._lock:
                self._unanswered.append((feed.rows, began))
            if began >= refresh_at:
                self._send(channel, feed.refreshes(), deferral)
                refresh_at = began + REFRESH_EVERY
            due = began + INTERVAL
            while self._is_served(channel):
                if self._step_down_asked.is_set():
                    self._yield(feed, channel, deferral)
                    return
                hurry = None if due < began + INTERVAL else wake
                message = channel.receive(max(0.0, due - time.monotonic()), hurry)
                if message is None and hurry is not None and time.monotonic() < due:
                    due = began + DEFERRED_INTERVAL  # a frame waits
                elif message is None:
                    break
                elif message.kind == Kind.YIELD:
                    self._yield(feed, channel, deferral)
                    return
                else:
                    self._note_acknowledged(message, deferral)

    def _send(self, channel: Channel, messages: Any, deferral: Deferral | None) -> None:
        """Send messages; first packets wait no longer where the standby takes none of them."""
        before = channel.sent_bytes
        stalled = (lambda: None) if deferral is None else deferral.release
        for message in messages:
            with self._lock:
                self._sent = message.number + message.rows
                self._messages += 1
            channel.send(message, stalled)
            with self._lock:
                self._counters["rows_sent"] += message.rows
                self._counters["bytes_sent"] += channel.sent_bytes - before
                before = channel.sent_bytes

    def _note_acknowledged(self, message: Message, deferral: Deferral | None) -> None:
        if message.kind != Kind.ACK or len(message.body) != ACK.size:
            raise PeerError(f"the standby sent a message of kind {message.kind}, which is none here")
        rows = ACK.unpack(message.body)[0]
        self._answers += 1
        if rows > self._sent or self._answers > self._messages:
            raise PeerError("the standby acknowledged what was not sent")
        if deferral is not None:
            deferral.note_answer(self._answers, time.monotonic())
        with self._lock:
            self._acknowledged = rows
            while self._unanswered and self._unanswered[0][0] <= self._acknowledged:
                self._in_step = self._unanswered.popleft()[1]

    def _yield(self, feed: Feed, channel: Channel, deferral: Deferral | None) -> None:
        """Stop, and tell what is left."""
        with self._lock:
            if self.role != "active" or self._stop_forwarding is None:
                return
            self.role, stop = "stopping", self._stop_forwarding
        self.must_stop.set()
        try:
            if deferral is not None:
                deferral.release()
            stop()
            if feed.is_outdated:
                self._send(channel, feed.snapshot(), None)
            self._send(channel, feed.changes(), None)
            self._send(channel, feed.refreshes(), None)
            if self._voting is not None:
                self._voting.end()
            channel.send(Message(Kind.YIELDED, 0, feed.rows, b""))
            self.handed_on = True
        finally:
            self._told.set()
        with suppress(Error, OSError, EOFError):  # a close with unread rows would take back what is on its way
            while channel.receive(SILENCE) is not None:
                pass

    # ---- the standby ------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Follow the active gateway whenever there is one and this one is a standby."""
        context = self._settings.credentials.context(server=False)
        hello = {"name": self._settings.name, "want": "stream"}
        failed = ""
        while not self._closed.is_set():
            if self.role == "standby" and not self.chosen.is_set():
                try:
                    with Channel.connect(self._settings.peer, context, hello, 1.0) as channel:
                        self._followed = channel
                        self._check_name(channel)
                        self._note_saved(channel.hello.get("saved"))
                        if channel.hello.get("role") == "active":
                            failed = ""
                            self._receive(channel)
                        elif self._yield_asked.is_set() and self._voting is None:
                            self._ask_promise(channel)
                except (Error, OSError, EOFError) as error:
                    if str(error) != failed:
                        failed = str(error)
                        _log.info("the other gateway cannot be followed: %s", error)
                except Exception:  # whatever the other gateway sends, it is followed again
                    _log.exception("the other gateway cannot be followed")
                finally:
                    if self.role == "standby":
                        self.connected = False
            self._closed.wait(RETRY)

    def _saved(self) -> float | None:
        return None if self._state is None else self._state()

    def _note_saved(self, saved: object) -> None:
        """Note when the other gateway's state was saved, by what it said."""
        is_time = isinstance(saved, int | float) and 0 <= saved <= MAX_TIME
        self._other_saved = float(saved) if is_time else None  # type: ignore[arg-type]
        self._other_heard = min(self._other_heard, time.monotonic())

    def _first_at(self) -> float:
        """When this gateway may ask for votes, without an image (time.monotonic). Where neither has one, the one with the newer
        state goes first, else the preferred one; who may have a state, and has not heard the other one, waits for it."""
        own, other = self._saved(), self._other_saved
        if self._state is not None and self._other_heard == float("inf"):
            return self._started + (IMAGE_FIRST if own is not None else STATE_FIRST)
        if other is not None and (own is None or other > own):
            return max(self._started, self._other_heard) + IMAGE_FIRST
        if own is not None and own != other:
            return self._started + PREFERRED_FIRST
        return self._started + (PREFERRED_FIRST if self._settings.prefer else IMAGE_FIRST)

    def _ask_promise(self, channel: Channel) -> None:
        """Ask the other standby to stay one."""
        channel.send(Message(Kind.YIELD, 0, 0, b""))
        message = channel.receive(PROMISE_SECONDS)
        if message is not None and message.kind == Kind.YIELDED:
            self._yielded.set()

    def _receive(self, channel: Channel) -> None:
        self._standby.begin()
        last = time.monotonic()
        self.connected = True
        asked = False
        while self.role == "standby" and not self.chosen.is_set() and not self._closed.is_set():
            if self._yield_asked.is_set() and not asked and self._standby.is_complete:
                channel.send(Message(Kind.YIELD, 0, 0, b""))
                asked = True
            message = channel.receive(0.01)
            if message is None:
                if time.monotonic() - last > SILENCE:
                    raise PeerError(f"no word of the active gateway for {SILENCE:g} s")
                continue
            last = time.monotonic()
            if message.kind == Kind.YIELDED:
                self._yielded.set()
                self._news.set()
                if self._voting is None:
                    self.chosen.set()
                return
            with self._lock:
                if self.role != "standby":
                    return
                try:
                    self._standby.receive(message)
                except PeerError:
                    self._counters["stream_failures"] += 1
                    raise
                self._heard = last
                self._counters["rows_applied"] += message.rows
                self._counters["snapshots_received"] = self._standby.snapshots
            channel.send(Message(Kind.ACK, 0, 0, ACK.pack(self._standby.applied)))

    # ---- votes ------------------------------------------------------------------------------------------------------

    def _majority(self, until: float) -> None:
        """For `Voting`: this gateway may translate until then."""
        fence = self._fence
        if fence is not None:
            fence.set(_ns(until))
        self._news.set()

    def _campaign(self) -> None:
        """Ask for the votes when the active gateway is silent; make way when another one has them."""
        voting, lease = self._voting, self._settings.lease
        assert voting is not None
        patience = lease * random.uniform(1.0, 1.3)  # of two without an image, that begin at once
        while not self._closed.is_set():
            self._news.wait(lease / 20)
            self._news.clear()
            now = time.monotonic()
            if self.role == "standby" and not self.chosen.is_set():
                at, silence = (0.0, lease * SOON) if self._standby.is_complete else (self._first_at(), patience)
                if self._yielded.is_set() or (now - self._heard > silence and now > at):
                    if voting.begin():
                        self._moments = {"asked": now}
                else:
                    voting.end()
                if voting.until > clock():
                    self.chosen.set()
            elif self.role == "standby" and clock() > voting.until:
                self.chosen.clear()  # its owner was not there in time
            elif self.role == "active" and clock() > voting.until + lease and self._is_replaced():
                with self._lock:
                    if self.role == "active":
                        self.role, self.handed_on = "stopping", True
                        self._told.set()
                self.must_stop.set()

    def _is_replaced(self) -> bool:
        """Whether the other gateway has votes."""
        voting = self._voting
        return voting is not None and self._settings.peer_name in voting.holders.values()


def _ns(until: float) -> int:
    """Return a moment of `lease.clock` as a fence; 1, which is over, for none."""
    return max(1, int(until * 1e9)) if until > 0 else 1
