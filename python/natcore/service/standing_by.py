"""What `natcore run` does while its gateway is the standby: it translates nothing, keeps the kernel from it too, and answers.

Theory of operation. The image of the active gateway grows in the pair (natcore.peer.pair) and is no one else's. What a control
socket, metrics and a watchdog ask is answered by a small gateway without entries, which stands for this one until it takes
over. The kernel block lets the kernel forward nothing that comes by the interfaces; their locks are kept, so that no other
gateway takes them and `natcore clean` leaves the block alone.

A plane is opened for the image as soon as that is complete, with a fence that lets it translate, send and announce nothing:
opening takes some 0.2 s, and packets would wait for it. Whatever it drops meanwhile was not for this gateway. An image that
replaces another one gets a plane of its own; where none can be opened, or one ended, it is tried again and again.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING

from natcore.errors import Error, InterfaceError
from natcore.gateway import Gateway
from natcore.internal.closing import Closing
from natcore.peer.pair import Pair
from natcore.plane import kernel_bypass
from natcore.service.succession import rehearse

if TYPE_CHECKING:
    from natcore.control.server import ControlServer
    from natcore.metrics.endpoint import Endpoint
    from natcore.plane.plane import Plane
    from natcore.service.configuration_file import Settings
    from natcore.service.kept_state import KeptState

# Arguments of Gateway that are this machine's: the active gateway's own do not hold here.
OWN = ("instance", "workers", "inside", "outside", "huge_pages", "numa_node")
NAMED = ("instance", "vpc_id", "region", "kind")
FEW = 16  # sessions of the small gateway, which gets none
AGAIN_SECONDS = 2.0  # until it is tried again to open a plane


def pair_of(settings: Settings, kept: KeptState | None) -> Pair:
    """Return the pair of a file that has a [peer]. Raises OSError: it cannot listen there."""
    assert settings.peer is not None
    own = {name: settings.gateway[name] for name in OWN if name in settings.gateway}
    return Pair(settings.peer, Gateway, state=None if kept is None else kept.written, **own)


@cache
def rehearse_once() -> None:
    """Have everything imported that a take-over needs: packets wait for it."""
    rehearse()
    gc.enable()


class StandingBy(Closing):
    """This gateway as a standby, from its making until `close`. Raises InterfaceError: an interface is another gateway's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = plane = settings.plane or {}
        inside = plane.get("inside", ())
        self._names = [*([inside] if isinstance(inside, str) else inside), plane["outside"]]
        self._keep = plane.get("block_when_stopped")
        self._plane: Plane | None = None
        self._image: Gateway | None = None  # that the plane was opened for
        self._tried = 0.0
        self._why_not = ""
        self._stack = ExitStack()
        self._claims = ExitStack()
        self._forwards = False
        self.control: ControlServer | None = None
        self.endpoint: Endpoint | None = None
        with ExitStack() as stack:
            named = {name: settings.gateway[name] for name in NAMED if name in settings.gateway}
            self.gateway = stack.enter_context(Gateway(max_sessions=FEW, **named))
            self._claim()
            self._stack = stack.pop_all()

    def _claim(self) -> None:
        with ExitStack() as claims:
            for name in self._names:
                claims.callback(kernel_bypass.Claim(name).close)
                kernel_bypass.forward_nothing(name)
            self._claims = claims.pop_all()

    def release(self) -> None:
        """Release the interfaces for this process's plane; their blocks stay. Idempotent."""
        self._claims.close()

    def prepare(self, image: Gateway | None) -> str:
        """Have a plane open for the image; return why there can be none, when the reason is a new one."""
        if self._plane is not None and (image is not self._image or self._plane.state == "stopped"):
            self._close_plane()
        now = time.monotonic()
        if self._plane is not None or image is None or self._settings.get("fast_path"):
            return ""
        if image is self._image and now - self._tried < AGAIN_SECONDS:
            return ""
        self._image, self._tried = image, now
        from natcore.plane.plane import Plane

        Pair.hold(image)
        self.release()
        before, self._why_not = self._why_not, ""
        try:
            self._plane = Plane(image, **{**self._settings, "block_when_stopped": True}, standing_by=True)
        except (Error, OSError) as error:
            self._why_not = str(error)
            self._claim()
        return self._why_not if self._why_not != before else ""

    def take(self, gateway: Gateway) -> Plane | None:
        """Return the plane that was opened for this gateway when it was the image, and is the caller's now; None: there is
        none, and the interfaces are released."""
        plane = self._plane
        if plane is not None and self._image is gateway and plane.state != "stopped":
            self._plane = None
            return plane
        self._close_plane()
        self.release()
        return None

    def _close_plane(self) -> None:
        plane, self._plane = self._plane, None
        if plane is not None:
            plane.stop()
            self._claim()

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
        self._close_plane()
        for name in self._names:
            keep = kernel_bypass.forwards(name) if self._keep is None else self._keep
            if not keep:
                with suppress(InterfaceError):
                    kernel_bypass.remove(name)
        self._claims.close()
        self._stack.close()
