"""What is refused before a plane begins: arguments, rights, addresses of the host."""

from __future__ import annotations

import errno
import socket
import warnings
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import get_args

from natcore import choices
from natcore.config import check_choice, check_integer
from natcore.errors import ConfigurationError, InterfaceError, SecurityWarning
from natcore.internal.hardware import check_cpus
from natcore.internal.redaction import show
from natcore.internal.validation import is_text
from natcore.plane import kernel_bypass
from natcore.plane.drivers import DRIVERS
from natcore.plane.links import INTERFACES_MOST

OFFLOADED_LIMIT = 5_000_000  # sessions of a fast path: 1 GB of the kernel's memory


def check_arguments(
    inside: str | Sequence[str], outside: str, *, driver: str = "af_packet", favour: str = "throughput",
    threads: bool = True, cpus: Sequence[int] | None = None, block_when_stopped: bool | None = None, workers: int = 1,
    framing: str = "ethernet", fast_path: bool | int = False, decrement_ttl: bool = True, steering: str = "none",
) -> tuple[tuple[str, ...], str, tuple[int, ...]]:  # fmt: skip
    """Return the inside interfaces, the outside one and the workers' processors. Raises ConfigurationError.

    workers, framing, decrement_ttl: the gateway's.
    """
    insides, (outside,) = _names("inside", inside, INTERFACES_MOST - 1), _names("outside", outside, 1)
    if outside in insides:
        raise ConfigurationError(f"outside must be none of the inside interfaces, got {outside!r}")
    check_choice("driver", driver, DRIVERS)
    check_choice("favour", favour, get_args(choices.Favour))
    check_choice("threads", threads, (True, False))
    check_choice("block_when_stopped", block_when_stopped, (None, True, False))
    processors = check_cpus(cpus, threads, workers)
    if framing != "ethernet":
        raise ConfigurationError(f"framing must be 'ethernet' for a plane, got {framing!r}")
    _check_fast_path(fast_path, driver, workers, decrement_ttl)
    check_choice("steering", steering, get_args(choices.Steering))
    if steering != "none" and driver != "af_xdp":
        raise ConfigurationError(f"driver must be 'af_xdp' for steering={steering!r}, got {driver!r}")
    return insides, outside, processors


def _check_fast_path(fast_path: bool | int, driver: str, workers: int, decrement_ttl: bool) -> None:
    if not isinstance(fast_path, bool):
        check_integer("fast_path", fast_path, 1, OFFLOADED_LIMIT)
    if fast_path and driver != "af_xdp":
        raise ConfigurationError(f"driver must be 'af_xdp' for a fast_path, got {driver!r}")
    if fast_path and workers != 1:
        raise ConfigurationError(f"workers must be 1 for a fast_path, got {workers}")
    if fast_path and not decrement_ttl:
        raise ConfigurationError("decrement_ttl must be True for a fast_path, got False")


def _names(field: str, value: object, most: int) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(is_text(name) and 1 <= len(name.encode()) <= 15 for name in names):
        raise ConfigurationError(f"{field} must be names of 1 to 15 bytes, got {show(value)}")
    if len(names) > most:
        raise ConfigurationError(
            f"{field} must be at most {most} interface{'s'[: most - 1]}, got {len(names)}: {show(value)}"
        )
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{field} must name each interface once, got {show(value)}")
    return names


def refuse_own(addresses: Iterable[int], own: Mapping[int, int], names: Sequence[str], outside: int) -> None:
    """Raise ConfigurationError if one of these is the host's, but for the outside interface's. own: the number of the interface
    that has an address; names: by number."""
    for address in sorted(addresses):
        if own.get(address, outside) != outside:
            raise ConfigurationError(
                f"pool must be addresses that this host does not have, got {str(IPv4Address(address))!r} of "
                f"{names[own[address]]}: the host would be cut off from it; take it off the interface, "
                "natcore answers ARP for outside addresses itself"
            )


def warn_of_forwarding(names: Sequence[str]) -> None:
    """Warn if the kernel forwards on one of these interfaces."""
    on = [name for name in names if kernel_bypass.forwards(name)]
    if on:
        warnings.warn(
            f"{', '.join(on)}: the kernel's forwarding is on, so that nothing but natcore's nf_tables block keeps packets from "
            "leaving untranslated; natcore does not need it (sysctl net.ipv4.ip_forward=0)",
            SecurityWarning,
            stacklevel=4,
        )


def check_capabilities() -> None:
    """Raise InterfaceError, which names the missing capabilities, if this thread cannot run a plane."""
    missing = []
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except PermissionError:
        missing.append("CAP_NET_RAW (to open packet rings)")
    try:
        kernel_bypass.check()
    except PermissionError:
        missing.append("CAP_NET_ADMIN (to keep the kernel's own stack off the interfaces)")
    if missing:
        raise InterfaceError(errno.EPERM, f"forwarding needs {' and '.join(missing)}: run as root, or grant it")
