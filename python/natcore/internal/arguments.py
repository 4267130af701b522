"""Arguments converted for the core: checked arrays, times in its units, secrets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from natcore.config import FILTERINGS, IP_OPTIONS, MAPPINGS, POOLINGS, PORT_POLICIES, Policy, Timeouts
from natcore.dtypes import RECORD, SESSION
from natcore.errors import ConfigurationError
from natcore.internal.redaction import show, show_text
from natcore.internal.validation import MAX_TIME, as_integer, check_integer, is_text
from natcore.verdict import Side, Verdict
from natcore.workers.configuration import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FRAME = 1 << 20  # bytes: more than a super-frame with its headers
PART_FRAMES, PART_BYTES = 512, 4 << 20  # of frames that are translated at once
NOT_FORWARDED = 255
UINT8, UINT32 = np.dtype(np.uint8), np.dtype(np.uint32)  # comparing with a dtype is faster than with its type

# By Side that a frame came from, and Verdict: the Side that it leaves by, or NOT_FORWARDED.
EGRESS = np.full((2, 256), NOT_FORWARDED, np.uint8)
for _side in Side:
    for _verdict in Verdict:
        if (_leaves_by := _verdict.egress(_side)) is not None:
            EGRESS[_side, _verdict] = _leaves_by


def secret(seed: int | None, purpose: str) -> bytes:
    """Return 32 random bytes for a purpose; repeatable if a seed is given."""
    if seed is None:
        return os.urandom(32)
    import hashlib  # 3 ms, for tests alone

    return hashlib.sha256(f"natcore {purpose} {seed}".encode()).digest()


def timeouts_ms(timeouts: Timeouts) -> list[int]:
    """Return the time-outs in ms, in the order of TimeoutClass in natcore/tables/sessions.pxd."""
    order = ("udp", "tcp_transitory", "tcp_established", "icmp", "unreplied", "other", "fragment")
    return [max(1, round(getattr(timeouts, name) * 1000)) for name in order]


def threshold(policy: Policy, total: int) -> tuple[int, int]:
    """Return the counts at which the threshold event fires and is armed again; (0, 0): never."""
    if policy.warn_at is None or total < 100:
        return 0, 0
    return math.ceil(policy.warn_at * total), math.ceil(policy.rearm_at * total)


def settings_of(
    policy: Policy, timeouts: Timeouts, *, max_sessions: int, window_ns: int, ethernet: bool, decrement_ttl: bool
) -> Settings:
    """Return what a gateway's workers are configured with: numbers for words, protocols in the order of the port spaces."""
    behaviours = [policy.behaviour(protocol) for protocol in ("tcp", "udp", "icmp")]
    drawn = sum(last - first + 1 for first, last in policy.drawn_ranges)
    return Settings(
        ethernet=ethernet,
        decrement_ttl=decrement_ttl,
        timeouts_ms=timeouts_ms(timeouts),
        window_ns=window_ns,
        outside_cap=max(1, max_sessions // 4),
        mapping=[MAPPINGS.index(own.mapping or "") for own in behaviours],
        filtering=[FILTERINGS.index(own.filtering or "") for own in behaviours],
        port_policy=PORT_POLICIES.index(policy.ports),
        blocks=policy.blocks if policy.ports == "block" else 0,
        hold_down_ms=round(policy.hold_down * 1000),
        parity=policy.parity,
        pooling=POOLINGS.index(policy.pooling),
        sessions_per_subscriber=limit(policy.sessions_per_subscriber),
        ports_per_subscriber=limit(policy.ports_per_subscriber),
        new_per_second=limit(policy.new_sessions_per_second),
        gateway_per_second=limit(policy.gateway_new_sessions_per_second),
        warn_sessions=threshold(policy, max_sessions),
        warn_ports=threshold(policy, drawn // policy.block_size if policy.ports == "block" else drawn),
        icmp_rate=policy.icmp_rate,
        inbound_refresh=policy.inbound_refresh,
        tcp_pickup=policy.tcp_pickup,
        hairpin=policy.hairpin,
        icmp_unreachable=policy.icmp_unreachable,
        unique_ids=policy.ip_id == "unique",
        echo_only=policy.icmp_queries == "echo",
        reverse_path_filter=policy.reverse_path_filter,
        mss=policy.mss or 0,
        unsolicited=policy.unsolicited_syn == "icmp",
        link_local=policy.link_local,
        class_e=policy.class_e,
        ip_options=IP_OPTIONS.index(policy.ip_options),
    )


def limit(value: int | None) -> int:
    """Return the limit as the core has it: 2^32 - 1 stands for None."""
    return 0xFFFFFFFF if value is None else value


def check_texts(**texts: object) -> None:
    """Check the cloud's names, which every row of the log carries."""
    for name, text in texts.items():
        if not is_text(text) or len(text.encode()) > 1024:
            raise ConfigurationError(f"{name} must be a str of at most 1,024 bytes of UTF-8, got {show(text, name)}")


def check_kinds(**values: tuple[object, type]) -> None:
    """Check that each value is None or of its type."""
    for name, (value, kind) in values.items():
        if value is not None and not isinstance(value, kind):
            raise ConfigurationError(f"{name} must be a {kind.__name__}, got {show(value, name)}")


def check_worker(worker: int | None, workers: int) -> int:
    """Return the worker's number; -1 for None."""
    if worker is None:
        return -1
    return check_integer("worker", worker, 0, workers - 1)


def check_side(side: object) -> int:
    """Return the side as 0 or 1."""
    number = as_integer(side)
    if number != 0 and number != 1:
        raise ConfigurationError(f"side must be Side.INSIDE (0) or Side.OUTSIDE (1), got {show(side)}")
    return number


def sides_of(side: int | NDArray[np.uint8], count: int) -> tuple[NDArray[np.uint8] | None, int]:
    """Return (the side of each of count frames, 0), or (None, the side of all)."""
    if not isinstance(side, np.ndarray):
        return None, check_side(side)
    check_array("side", side, UINT8, 1, count, writable=False)
    if count:
        check_side(int(side.max()))
    return side, 0


def frame_bytes(frame: object, name: str = "frame") -> bytes | memoryview:
    """The bytes of any contiguous buffer; a view of them where it is not bytes already."""
    if isinstance(frame, bytes):
        found: bytes | memoryview = frame
    else:
        try:
            view = memoryview(frame)  # type: ignore[arg-type]
            if not view.c_contiguous:
                raise ConfigurationError(f"{name} must be contiguous, got strides {view.strides} of shape {view.shape}")
            if "O" in view.format:
                raise ConfigurationError(f"{name} must be a buffer of bytes, got one of Python objects")
            found = view.cast("B") if view.nbytes else b""
        except (TypeError, ValueError, BufferError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(f"{name} must be a buffer of bytes, got {show(frame)}: {error}") from None
    if len(found) > MAX_FRAME:
        raise ConfigurationError(f"{name} must have at most {MAX_FRAME:,} bytes, got {len(found):,}")
    return found


def parts_of(frames: Sequence[bytes | memoryview]) -> Iterator[slice]:
    """Parts of the frames, in order, which are small enough as rows of one length."""
    first = longest = 0
    for i, frame in enumerate(frames):
        longest = max(longest, len(frame))
        if i > first and (i - first >= PART_FRAMES or (i + 1 - first) * longest > PART_BYTES):
            yield slice(first, i)
            first, longest = i, len(frame)
    if first < len(frames):
        yield slice(first, len(frames))


def rows_of(frames: Sequence[bytes | memoryview]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Copies of the frames as uint8 (count, stride), and their lengths."""
    lengths = np.array([len(frame) for frame in frames], np.uint32)
    stride = max(1, int(lengths.max()))
    rows = bytearray().join(bytes(frame).ljust(stride, b"\0") for frame in frames)
    return np.frombuffer(rows, np.uint8).reshape(len(frames), stride), lengths


def check_egress(egress: Any, count: int, **others: Any) -> None:
    """uint8 (count,) that shares no memory with the others of the call."""
    check_array("egress", egress, UINT8, 1, count)
    for name, other in others.items():
        if isinstance(other, np.ndarray) and np.may_share_memory(egress, other):
            raise ConfigurationError(f"egress must not share memory with {name}")


def check_array(
    name: str, value: Any, dtype: np.dtype[Any], dimensions: int, count: int | None = None, *, writable: bool = True
) -> int:
    """Return the array's length; ConfigurationError unless the core can use it without a copy."""
    fits = isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim == dimensions
    if not fits or value.dtype.fields != dtype.fields:  # equal fields may have other offsets
        got = f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ConfigurationError(
            f"{name} must be {kind_of(dtype)} array of {dimensions} dimension{'s'[: dimensions - 1]}, got {show_text(got)}"
        )
    flags = value.flags
    if not flags.c_contiguous or not flags.aligned or (writable and not flags.writeable):
        got = "a read-only one" if flags.c_contiguous and flags.aligned else f"strides {value.strides}"
        raise ConfigurationError(
            f"{name} must be an aligned, C-contiguous{', writable' if writable else ''} array, got {got}"
        )
    if count is not None and len(value) != count:
        raise ConfigurationError(f"{name} must have {count} rows, as frames has, got {len(value)}")
    return len(value)


def kind_of(dtype: np.dtype[Any]) -> str:
    """Return the dtype in words."""
    names = {id(RECORD): "a RECORD", id(SESSION): "a SESSION"}
    return names.get(id(dtype), f"a {dtype.name}")


def check_rows(frames: Any, lengths: Any, *, writable: bool = True) -> int:
    """Return the number of frames: uint8 (count, stride), with their lengths, uint32 (count,)."""
    count = check_array("frames", frames, UINT8, 2)
    if count and not frames.shape[1]:
        raise ConfigurationError(f"frames must have rows of 1 byte or more, got shape {frames.shape}")
    check_array("lengths", lengths, UINT32, 1, count, writable=writable)
    return count


def bytes_for(out: NDArray[np.uint8] | None, count: int) -> NDArray[np.uint8]:
    """Return out, or a new array: uint8 (count,)."""
    if out is None:
        return np.empty(count, np.uint8)
    check_array("out", out, UINT8, 1, count)
    return out


def nows_ns(now: NDArray[np.float64], count: int) -> NDArray[np.uint64]:
    """Return the times of count frames, rounded to nanoseconds once."""
    if now.dtype != np.float64 or now.shape != (count,):
        raise ConfigurationError(f"now must be float64({count},), got {show_text(str(now.dtype))}{now.shape}")
    now = now.copy()  # the caller may change the array meanwhile
    if count and not (np.isfinite(now).all() and now.min() >= 0 and now.max() <= MAX_TIME):
        raise ConfigurationError(
            f"now must be finite seconds between 0 and {MAX_TIME:g}, got {now.min():g} to {now.max():g}"
        )
    whole = np.floor(now)
    return whole.astype(np.uint64) * np.uint64(1_000_000_000) + np.rint((now - whole) * 1e9).astype(np.uint64)
