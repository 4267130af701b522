"""Network namespaces with real programs, for tests of a plane."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar

from natcore.choices import Driver
from natcore.demo import demo
from natcore.demo.clients import Clients, Outcome
from natcore.demo.namespaces import inside
from natcore.demo.servers import Servers
from natcore.errors import InterfaceError
from natcore.internal.closing import Closing

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from natcore.gateway import Gateway
    from natcore.plane.plane import Plane


def why_not() -> str | None:
    """Return why this process can have no `Lab`; None: it can."""
    return None if os.geteuid() == 0 else "network namespaces need root (CAP_SYS_ADMIN, CAP_NET_ADMIN)"


class Lab(Closing):
    """An inside host, a gateway's namespace and an outside server, joined by veth pairs, until `close`.

    ``10.0.0.2 eth0 - lan0 10.0.0.1 (gateway) 198.51.100.1 wan0 - eth0 198.51.100.2``. The server answers HTTP, TCP and UDP
    echo and DNS, and iperf3 where it is installed; it has no route to the inside: what reaches it untranslated gets no
    answer. A context manager. A process has one at a time.

    Attributes
    ----------
    network
        The namespaces: "inside", "gateway" and "outside".
    servers
        What the server runs; `peers` has the addresses of the clients that it saw.

    Raises
    ------
    InterfaceError
        This process may not make namespaces.

    Examples
    --------
    >>> with Lab() as lab, Gateway() as gateway:  # doctest: +SKIP
    ...     gateway.add(SnatEntry("10.0.0.0/24", pool=lab.POOL))
    ...     lab.start(gateway)
    ...     assert all(outcome.ok for outcome in lab.run_clients())
    ...     assert lab.servers.peers == {lab.POOL}
    """

    INSIDE: ClassVar[str] = demo.INSIDE
    GATEWAY_INSIDE: ClassVar[str] = demo.GATEWAY_INSIDE
    GATEWAY_OUTSIDE: ClassVar[str] = demo.GATEWAY_OUTSIDE
    SERVER: ClassVar[str] = demo.SERVER
    POOL: ClassVar[str] = demo.POOL

    def __init__(self) -> None:
        if (reason := why_not()) is not None:
            raise InterfaceError(1, reason)
        with ExitStack() as stack:
            self.network = stack.enter_context(demo.make_network())
            with inside(self.network.name("outside")):
                self.servers = Servers(self.SERVER)
            stack.callback(self.servers.close)
            self._open = stack.pop_all()

    def start(self, gateway: Gateway, *, driver: Driver = "af_packet") -> Plane:
        """Forward between the two links through a gateway: `Gateway.forward`, stopped by `close` at the latest."""
        with inside(self.network.name("gateway")):
            return self._open.enter_context(gateway.forward(inside="lan0", outside="wan0", driver=driver))

    def run(self, member: str, command: Sequence[str], *, timeout: float = 60.0) -> CompletedProcess[str]:
        """Run a program in a namespace to its end.

        Parameters
        ----------
        member
            "inside", "gateway" or "outside".
        command
            The program and its arguments.
        timeout
            Seconds that it may take.

        Returns
        -------
        subprocess.CompletedProcess
            Its exit status and output as text; a status that is not 0 is no error here.
        """
        return self.network.run(member, command, timeout=timeout, check=False)

    def run_clients(self) -> list[Outcome]:
        """Run curl, ping, dig and others from the inside host, one after the other, and return what came of each."""
        with inside(self.network.name("inside")):
            return list(Clients(self.SERVER).run())

    def close(self) -> None:
        """Stop planes and servers, and remove the namespaces."""
        self._open.close()
