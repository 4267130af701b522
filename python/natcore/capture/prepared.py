"""A batch of a capture as frames that a gateway takes: without link headers and tags, cut as the wire had them, with sides.

Only headers are kept: a gateway reads no more of a packet, but of an ICMP error, which is kept whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natcore.api.captured import Preparation
from natcore.capture.reader import Batch
from natcore.capture.sides import BETWEEN_INSIDE, LEAVES_OUTSIDE, NOT_GATEWAYS, NOT_NAMED, OTHER_HOSTS, Sides

ROW_BYTES = 144  # Ethernet 14, IPv4 60, TCP 60, and some
WINDOW_PACKETS = 65_536  # that a capture is sorted within
QUERIES = (0, 8, *range(13, 19))  # ICMP types that have an identifier
SUPER_FRAMES = "super-frames: cut into segments"
CUT = "cut by the snap length: filled with zeros"
CUT_HEADERS = "cut inside its headers by the snap length"
CUT_ERROR = "an ICMP error that the snap length cut: its checksum cannot be verified"
LENGTH_0 = "total length 0: the frame's length"
NO_IPV4_CHECKSUM = "IPv4 checksum left to the card: computed"
PARTIAL_CHECKSUM = "layer-4 checksum left to the card: the pseudo-header's sum"
TOO_LONG = "longer than the MTU, not TCP: an offload that the capture does not record"
LATE = "out of order by more than the window: taken later"
LONGER = "captured length above the original one: all bytes taken"

TAGS = (0x8100, 0x88A8, 0x9100)
MENDED = (CUT, LENGTH_0, NO_IPV4_CHECKSUM, SUPER_FRAMES, PARTIAL_CHECKSUM)  # by the core's number
LEFT_OUT = {
    1: "link type {}", 2: CUT_HEADERS, 3: "not IPv4", 5: "IP version {} in an IPv4 frame", 6: NOT_GATEWAYS, 7: BETWEEN_INSIDE,
    8: OTHER_HOSTS, 9: NOT_NAMED, 10: LEAVES_OUTSIDE, 11: CUT_ERROR, 12: TOO_LONG,
}  # fmt: skip
_ETHERTYPE = 4  # left out, with its number
_NAMES = {0x0806: "ARP", 0x86DD: "IPv6"}
_BY_PREFIX, _BY_MAC, _BY_INTERFACE = range(3)
_NAMED_INSIDE, _NAMED_OUTSIDE = 1, 2

FRAME = np.dtype(
    [
        ("time_ns", "i8"), ("source", "u4"), ("destination", "u4"), ("length", "u4"), ("message", "i4"), ("source_port", "u2"),
        ("destination_port", "u2"), ("ports", "u1"), ("protocol", "u1"), ("side", "u1"), ("l4", "u1"),
    ]
)  # fmt: skip


@dataclass(slots=True)
class Frames:
    """Frames in order of time.

    Attributes
    ----------
    rows
        uint8 (count, ROW_BYTES): an Ethernet header, then the packet's own.
    fields
        FRAME (count,): time_ns, nanoseconds since 1970; length, bytes of the whole frame; side, the `Side` that it came from;
        addresses and ports in host order; ports, 0: it has none, 1: TCP or UDP, 2: an ICMP query's identifier is in both; l4,
        where the layer-4 header begins in the row; message, place in `messages` of an ICMP error's whole frame, -1: it is none.
    messages
        Whole frames by number.
    """

    rows: NDArray[np.uint8]
    fields: NDArray[np.void]
    messages: dict[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def time_ns(self) -> NDArray[np.int64]:
        """Nanoseconds since 1970."""
        return self.fields["time_ns"]

    def take(self, which: Any) -> Frames:
        """Return the frames of an index or a slice."""
        return Frames(self.rows[which], self.fields[which], self.messages)


def joined(parts: list[Frames]) -> Frames:
    """Return frames one after the other, with the messages of these frames alone."""
    messages: dict[int, bytes] = {}
    for part in parts:
        numbers = part.fields["message"]
        messages |= {number: part.messages[number] for number in numbers[numbers >= 0].tolist()}
    rows, columns = (np.concatenate(each) for each in zip(*((part.rows, part.fields) for part in parts), strict=True))
    return Frames(rows, columns, messages)


class Preparer:
    """Prepares the batches of one capture and counts what it leaves out or takes otherwise than it stands there.

    Parameters
    ----------
    sides
        Which side a frame came from.
    mtu
        Bytes of an IPv4 packet: longer TCP packets are cut.
    """

    def __init__(self, sides: Sides, mtu: int) -> None:
        self.frames = 0
        self.skipped: Counter[str] = Counter()
        self.mended: Counter[str] = Counter()
        self._sides = sides
        how = _BY_INTERFACE if sides.by_interface else _BY_MAC if sides.gateway_macs else _BY_PREFIX
        prefixes = [(int(prefix.network_address), int(prefix.netmask)) for prefix in sides.inside]
        numbers = [
            (int(name), self._named(name)) for name in sides.from_inside | sides.from_outside if _is_number(name)
        ]
        self._core = Preparation(
            mtu, how, np.array(prefixes, np.uint32).reshape(-1, 2), np.array(sorted(sides.gateway_macs), np.uint64),
            np.array(numbers, np.int64).reshape(-1, 2),
        )  # fmt: skip

    def run(self, batches: Iterable[Batch]) -> Iterator[Frames]:
        """Yield the frames in order of time, as far as WINDOW_PACKETS reach."""
        waiting: list[Frames] = []
        count, last_ns = 0, -(1 << 63)
        for part in (part for batch in batches for part in self.prepare(batch)):
            if not _is_sorted(part.time_ns):
                part = part.take(np.argsort(part.time_ns, kind="stable"))
            if waiting and part.time_ns[0] < waiting[-1].time_ns[-1]:
                part = joined([*waiting, part])
                waiting, count = [part.take(np.argsort(part.time_ns, kind="stable"))], 0
                part = waiting.pop()
            waiting.append(part)
            count += len(part)
            while count > WINDOW_PACKETS:
                first = waiting[0]
                spare = count - WINDOW_PACKETS
                if len(first) > spare:
                    if spare < 4096:
                        break
                    waiting[0], first = first.take(slice(spare, None)), first.take(slice(spare))
                else:
                    waiting.pop(0)
                count -= len(first)
                yield self._not_before(first, last_ns)
                last_ns = max(last_ns, int(first.time_ns[-1]))
        for part in waiting:
            yield self._not_before(part, last_ns)
            last_ns = max(last_ns, int(part.time_ns[-1]))

    def _not_before(self, frames: Frames, last_ns: int) -> Frames:
        late = frames.time_ns < last_ns
        if late.any():
            self.mended[LATE] += int(late.sum())
            frames.fields["time_ns"] = np.maximum(frames.time_ns, last_ns)
        return frames

    def prepare(self, batch: Batch) -> Iterator[Frames]:
        """Yield a batch's frames, in its order: in parts where a few captured bytes claim to be very many frames."""
        self.frames += len(batch)
        if batch.longer:
            self.mended[LONGER] += len(batch.longer)
        links = np.array([each.link for each in batch.interfaces], np.uint16)
        named = np.array([self._named(each.name or str(each.number)) for each in batch.interfaces], np.uint8)
        waiting = [(0, len(batch))]
        while waiting:
            begin, end = waiting.pop()
            part = slice(begin, end)
            count = self._core.look(
                batch.data, batch.start[part], batch.captured[part], batch.original[part], batch.interface[part],
                batch.direction[part], links, named,
            )  # fmt: skip
            if count > WINDOW_PACKETS and end - begin > 1:
                self._core.take_mended()  # they are looked at again
                middle = (begin + end) // 2
                waiting += [(middle, end), (begin, middle)]
                continue
            frames = Frames(np.empty((count, ROW_BYTES), np.uint8), np.empty(count, FRAME))
            frames.messages = self._core.fill(batch.time_ns[part], frames.rows, frames.fields)
            self._count_left_out(end - begin)
            for name, mended in zip(MENDED, self._core.take_mended(), strict=True):
                if mended:
                    self.mended[name] += mended
            if count:
                yield frames

    def _named(self, name: str) -> int:
        return _NAMED_INSIDE * (name in self._sides.from_inside) | _NAMED_OUTSIDE * (name in self._sides.from_outside)

    def _count_left_out(self, count: int) -> None:
        left_out = np.empty((count, 2), np.uint32)
        left_out = left_out[: self._core.left_out(left_out)]
        if not len(left_out):
            return
        kinds, counts = np.unique(left_out, axis=0, return_counts=True)
        for (reason, value), often in zip(kinds.tolist(), counts.tolist(), strict=True):
            name = kind_name(value) if reason == _ETHERTYPE else LEFT_OUT[reason].format(value)
            self.skipped[name] += often


def kind_name(kind: int) -> str:
    """Return what a frame of another EtherType is called."""
    return _NAMES.get(kind) or ("802.3" if kind < 0x600 else f"EtherType 0x{kind:04x}")


def _is_number(name: str) -> bool:
    return name.isdecimal() and name.isascii() and len(name) <= 10 and str(int(name)) == name


def _is_sorted(times: NDArray[np.int64]) -> bool:
    return bool((times[1:] >= times[:-1]).all())
