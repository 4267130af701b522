"""Network namespaces, each with a thread that lives in it, and the veth pairs between them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from pyroute2 import IPRoute, netns

from .errors import InterfaceError

P = ParamSpec("P")
T = TypeVar("T")


class Namespace:
    """A named network namespace, made here and removed by close(). IPv6 is off in it.

    Needs CAP_SYS_ADMIN and CAP_NET_ADMIN: raises InterfaceError without them, and where the name is taken.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            netns.create(name)
        except OSError as error:
            raise InterfaceError(error.errno, f"network namespace {name}: {error.strerror}") from None
        self._thread = ThreadPoolExecutor(1, f"netns-{name}", initializer=netns.setns, initargs=(name,))
        try:
            self.call(_prepare)
        except BaseException:
            self.close()
            raise

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run it in the namespace's thread. Sockets, child processes and threads made there belong to the namespace."""
        return self._thread.submit(function, *args, **kwargs)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it in the namespace's thread and wait for it."""
        return self.submit(function, *args, **kwargs).result()

    def close(self, *, keep: bool = False) -> None:
        """End the thread (after what runs in it) and remove the namespace with its links, unless it is to be kept."""
        self._thread.shutdown()
        if not keep:
            remove(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _prepare() -> None:
    for name in ("all", "default"):
        path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")  # follows the namespace of the thread that opens it
        if path.exists():
            path.write_text("1")
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")


def remove(name: str) -> None:
    """Remove a namespace by name; one that is not there is not an error."""
    with suppress(FileNotFoundError):
        netns.remove(name)


def names() -> list[str]:
    """The named network namespaces of this machine."""
    return list(netns.listnetns())


def join(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    """A veth pair between two namespaces; both ends down."""

    def make() -> None:
        with IPRoute() as route:
            route.link("add", ifname=left_name, kind="veth", peer={"ifname": right_name, "net_ns_fd": right.name})

    left.call(make)


def address(namespace: Namespace, interface: str, prefix: str, *, gateway: str | None = None) -> None:
    """Give an interface its address ("10.0.0.2/24"), bring it up, and route everything else to the gateway."""

    def configure() -> None:
        ip, _, length = prefix.partition("/")
        with IPRoute() as route:
            index = route.link_lookup(ifname=interface)[0]
            route.addr("add", index=index, address=ip, prefixlen=int(length))
            route.link("set", index=index, state="up")
            if gateway is not None:
                route.route("add", dst="default", gateway=gateway)

    namespace.call(configure)
