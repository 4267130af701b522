"""[peer] of the configuration file: which gateway of a pair this is, and how the two reach and trust each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.internal.validation import check_choice, check_number, check_path, is_text
from natcore.peer.channel import Address, Credentials, parse_address
from natcore.peer.pair import DEFER_WAIT, PeerSettings
from natcore.peer.voting import WITNESS

FILES = ("certificate_file", "key_file", "authority_file")
SHORTEST_LEASE, LONGEST_LEASE = 0.1, 60.0  # seconds
SHORTEST_WAIT, LONGEST_WAIT = 0.001, 1.0  # the same
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MOST_WORDS = 64  # of the fence command


def settings_of(
    *,
    name: str = "name",
    peer_name: str = "peer-name",
    listen: str = "192.0.2.1:1",
    peer: str = "192.0.2.2:1",
    certificate_file: str = "certificate",
    key_file: str = "key",
    authority_file: str = "authority",
    witness: str | None = None,
    lease: float = 0.3,
    prefer: bool = False,
    fence: Sequence[str] | None = None,
    defer: str | None = None,
    defer_wait: float | None = None,
) -> PeerSettings:
    """Return the settings; arguments as in the file, which has all those that are strings but witness: these defaults stand in
    for wrong ones, so that the others are looked at. Raises ConfigurationError."""
    for field, value in (("name", name), ("peer_name", peer_name)):
        if not _NAME.fullmatch(value):
            raise ConfigurationError(f"{field} must be 1 to 64 letters, digits, '.', '_' and '-', got {show(value)}")
        if value == WITNESS:
            raise ConfigurationError(f"{field} must be another one than the witness's, got {show(value)}")
    if peer_name == name:
        raise ConfigurationError(f"peer_name must be the other gateway's name, got this one's: {show(peer_name)}")
    own, other = parse_address("listen", listen), parse_address("peer", peer)
    third = None if witness is None else parse_address("witness", witness)
    if other == own:
        raise ConfigurationError(f"peer must be where the other gateway answers, got listen's: {show(peer)}")
    if third in (own, other):
        raise ConfigurationError(f"witness must be at a third place, got that of a gateway: {show(witness)}")
    check_number("lease", lease, SHORTEST_LEASE, LONGEST_LEASE, unit="seconds")
    check_choice("prefer", prefer, (True, False))
    if prefer and third is None:
        raise ConfigurationError("prefer must be false without a witness: nothing is decided by itself then, got True")
    if defer is not None:
        check_choice("defer", defer, ("ack",))
    if defer_wait is not None:
        check_number("defer_wait", defer_wait, SHORTEST_WAIT, LONGEST_WAIT, unit="seconds")
        if defer is None:
            raise ConfigurationError('defer_wait must be left out without defer = "ack": no packet waits then')
    files = _credentials(certificate_file, key_file, authority_file)
    return PeerSettings(
        name=name, peer_name=peer_name, listen=own, peer=other, credentials=files,
        witness=third, lease=lease, prefer=prefer, fence=_fence(fence, third),
        defer=None if defer is None else DEFER_WAIT if defer_wait is None else defer_wait,
    )  # fmt: skip


def _credentials(certificate_file: str, key_file: str, authority_file: str) -> Credentials:
    given = dict(zip(FILES, (certificate_file, key_file, authority_file), strict=True))
    return Credentials(*(Path(check_path(name, value)) for name, value in given.items()))


def _fence(command: Sequence[str] | None, witness: Address | None) -> tuple[str, ...] | None:
    if command is None:
        return None
    if witness is not None:
        raise ConfigurationError("fence must be left out with a witness, by which it is decided who translates")
    words = tuple(command)
    if (
        not 1 <= len(words) <= _MOST_WORDS
        or not all(is_text(word) and "\0" not in word for word in words)
        or not words[0]
    ):
        raise ConfigurationError(f"fence must be a command and its arguments, got {show(command)}")
    if not words[0].startswith("/"):
        raise ConfigurationError(f"fence must begin with the command's whole path, got {show(words[0])}")
    return words


def check_files(*, credentials: Credentials) -> None:
    """Raise ConfigurationError if a file cannot be read, or is not what it should be."""
    for name, path in zip(FILES, credentials, strict=True):
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            raise ConfigurationError(f"{name}: cannot be read: {error.strerror or error}") from None
    credentials.context(server=True)
