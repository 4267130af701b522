"""`natcore witness`: the third vote of a pair, at a third place; it knows nothing of packets or sessions."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from natcore.peer.channel import Address, Credentials
from natcore.peer.lease import Voter, clock
from natcore.peer.server import Server
from natcore.peer.voting import WITNESS
from natcore.service.notify import Notifier

POLL = 0.2  # seconds between looks at the vote
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

Report = Callable[[str, dict[str, Any]], None]


def run(listen: Address, credentials: Credentials, lease: float, report: Report) -> None:
    """Lend the vote until SIGTERM, SIGINT or SIGQUIT. In the main thread.

    report: called with what happened ("started", "vote", "stopped") and its fields. Raises ConfigurationError: a certificate
    cannot be used; OSError: it cannot listen there.
    """
    asked = threading.Event()
    for number in STOP:
        signal.signal(number, lambda *_: asked.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    notifier = Notifier()
    voter = Voter(WITNESS, lease, clock())
    with Server(listen, credentials, voter=voter, about=lambda: {"name": WITNESS, "role": WITNESS}) as server:
        report("started", {"listen": f"{listen.host}:{server.port}", "lease": lease})
        notifier.ready()
        before: str | None = None
        while not asked.wait(POLL):
            holder = server.holder
            if holder != before:
                before = holder
                report("vote", {"lent_to": holder or "no one"})
            notifier.status(f"the vote is lent to {holder or 'no one'}")
            notifier.pet(lambda: True)
        notifier.stopping()
    report("stopped", {})
