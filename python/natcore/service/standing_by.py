"""What `natcore run` does while its gateway is the standby: it translates nothing, keeps the kernel from it too, and answers.

Theory of operation. The image of the active gateway grows in the pair (natcore.peer.pair) and is no one else's. What a control
socket, metrics and a watchdog ask is answered by a small gateway without entries, which stands for this one until it takes
over. The kernel block lets the kernel forward nothing that comes by the interfaces; their locks are kept, so that no other
gateway takes them and `natcore clean` leaves the block alone.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING

from natcore.errors import InterfaceError
from natcore.gateway import Gateway
from natcore.internal.closing import Closing
from natcore.peer.pair import Pair
from natcore.plane import kernel_bypass
from natcore.service.succession import rehearse

if TYPE_CHECKING:
    from natcore.control.server import ControlServer
    from natcore.metrics.endpoint import Endpoint
    from natcore.service.configuration_file import Settings

# Arguments of Gateway that are this machine's: the active gateway's own do not hold here.
OWN = ("instance", "workers", "inside", "outside", "huge_pages", "numa_node")
NAMED = ("instance", "vpc_id", "region", "kind")
FEW = 16  # sessions of the small gateway, which gets none


def pair_of(settings: Settings) -> Pair:
    """Return the pair of a file that has a [peer]. Raises OSError: it cannot listen there."""
    assert settings.peer is not None
    return Pair(settings.peer, Gateway, **{name: settings.gateway[name] for name in OWN if name in settings.gateway})


@cache
def rehearse_once() -> None:
    """Have everything imported that a take-over needs: packets wait for it."""
    rehearse()
    gc.enable()


class StandingBy(Closing):
    """This gateway as a standby, from its making until `close`. Raises InterfaceError: an interface is another gateway's."""

    def __init__(self, settings: Settings) -> None:
        plane = settings.plane or {}
        inside = plane.get("inside", ())
        self._names = [*([inside] if isinstance(inside, str) else inside), plane["outside"]]
        self._keep = plane.get("block_when_stopped")
        self._stack = ExitStack()
        self._claims = ExitStack()
        self._forwards = False
        self.control: ControlServer | None = None
        self.endpoint: Endpoint | None = None
        with ExitStack() as stack:
            named = {name: settings.gateway[name] for name in NAMED if name in settings.gateway}
            self.gateway = stack.enter_context(Gateway(max_sessions=FEW, **named))
            claims = stack.enter_context(ExitStack())
            for name in self._names:
                claims.callback(kernel_bypass.Claim(name).close)
                kernel_bypass.forward_nothing(name)
            self._claims = claims.pop_all()
            self._stack = stack.pop_all()

    def release(self) -> None:
        """Release the interfaces for this process's plane; their blocks stay. Idempotent."""
        self._claims.close()

    def replaced(self) -> None:
        """The gateway forwards now: the control socket and the metrics are to be another one's; requests are answered still."""
        self._forwards = True
        control, self.control = self.control, None
        endpoint, self.endpoint = self.endpoint, None
        if endpoint is not None:
            endpoint.stop()
        if control is None:
            self._stack.close()
        else:
            control.close_when_answered(self._stack.close)

    def close(self) -> None:
        """End; the kernel may forward again, unless the file says otherwise, or the gateway forwards now. Idempotent."""
        if self._forwards:
            return
        if self.endpoint is not None:
            self.endpoint.stop()
        for name in self._names:
            keep = kernel_bypass.forwards(name) if self._keep is None else self._keep
            if not keep:
                with suppress(InterfaceError):
                    kernel_bypass.remove(name)
        self._claims.close()
        self._stack.close()
