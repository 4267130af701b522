"""A batch of a capture as frames that a gateway takes: without link headers and tags, cut as the wire had them, with sides.

Only headers are kept: a gateway reads no more of a packet, but of an ICMP message, which is kept whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natcore.capture.reader import COOKED, COOKED_2, ETHERNET, INCOMING, OUTGOING, RAW, UNKNOWN, Batch
from natcore.capture.sides import NOT_GATEWAYS, Sides
from natcore.internal.protocols import ICMP, TCP, UDP
from natcore.verdict import Side

HEADER_BYTES = 144  # of a row: Ethernet 14, IPv4 60, TCP 60, and some
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

_ROW = np.dtype((np.void, HEADER_BYTES))
TAGS = (0x8100, 0x88A8, 0x9100)
_NAMES = {0x0806: "ARP", 0x86DD: "IPv6"}
_U2 = np.dtype(">u2")
_ADDRESSES = np.dtype([("to_high", ">u4"), ("to_low", ">u2"), ("from_high", ">u4"), ("from_low", ">u2")])
_IPV4 = np.dtype(
    [
        ("version", "u1"), ("tos", "u1"), ("total", ">u2"), ("id", ">u2"), ("fragment", ">u2"), ("ttl", "u1"),
        ("protocol", "u1"), ("checksum", ">u2"), ("source", ">u4"), ("destination", ">u4"),
    ]
)  # fmt: skip
_L4 = np.dtype([("first", ">u2"), ("second", ">u2"), ("third", ">u2"), ("fourth", ">u2"), ("fifth", ">u4"),
                ("offset", "u1"), ("flags", "u1"), ("window", ">u2"), ("checksum", ">u2")])  # fmt: skip

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Frames:
    """Frames in order of time.

    Attributes
    ----------
    time_ns
        int64 (count,): nanoseconds since 1970.
    rows
        uint8 (count, HEADER_BYTES): an Ethernet header, then the packet's own.
    length
        int64 (count,): bytes of the whole frame.
    side
        uint8 (count,): the `Side` that it came from.
    protocol, source, destination, source_port, destination_port
        int64 (count,), in host order; ports are -1 where there are none, and an identifier in both for ICMP queries.
    l4
        int64 (count,): where the layer-4 header begins in the row.
    whole
        int64 (count,): place in `messages` of an ICMP message's whole frame, -1: it is none.
    """

    time_ns: Ints
    rows: NDArray[np.uint8]
    length: Ints
    side: NDArray[np.uint8]
    protocol: Ints
    source: Ints
    destination: Ints
    source_port: Ints
    destination_port: Ints
    l4: Ints
    whole: Ints
    messages: dict[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time_ns)

    def take(self, which: Any) -> Frames:
        """Return the frames of an index or a slice."""
        columns = {name: getattr(self, name)[which] for name in _COLUMNS}
        return Frames(**columns, messages=self.messages)


_COLUMNS = [each.name for each in fields(Frames)][:-1]


def joined(parts: list[Frames]) -> Frames:
    """Return frames one after the other."""
    messages: dict[int, bytes] = {}
    for part in parts:
        messages |= part.messages
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    return Frames(**columns, messages=messages)


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
        self.sides = sides
        self.mtu = mtu
        self.frames = 0
        self.skipped: Counter[str] = Counter()
        self.mended: Counter[str] = Counter()
        self._next_message = 0

    def run(self, batches: Iterable[Batch]) -> Iterator[Frames]:
        """Yield the frames in order of time, as far as WINDOW_PACKETS reach."""
        waiting: list[Frames] = []
        count, last_ns = 0, -(1 << 63)
        for batch in batches:
            part = self.prepare(batch)
            if not len(part):
                continue
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
            frames.time_ns = np.maximum(frames.time_ns, last_ns)
        return frames

    def prepare(self, batch: Batch) -> Frames:
        """Return a batch's frames, in its order."""
        count = len(batch)
        self.frames += count
        if batch.longer:
            self.mended[LONGER] += batch.longer
        keep = np.ones(count, bool)
        network, kind, direction = self._links(batch, keep)
        end = batch.start + batch.captured
        for _ in range(4):  # tags, stacked
            tagged = keep & np.isin(kind, TAGS) & (network + 4 <= end)
            if not tagged.any():
                break
            kind[tagged] = batch.records(_U2, network[tagged] + 2)
            network[tagged] += 4
        self._leave_out(keep, keep & (kind != 0x0800), lambda at: kind_name(int(kind[at])))
        captured, original = end - network, batch.start + batch.original - network
        self._leave_out(keep, keep & (captured < 20), lambda at: CUT_HEADERS if original[at] >= 20 else "not IPv4")
        rows = batch.records(_ROW, network - 14)
        ip = _at_14(rows)
        version = ip["version"] >> 4
        self._leave_out(keep, keep & (version != 4), lambda at: f"IP version {version[at]} in an IPv4 frame")
        side = self._side(batch, ip, direction, keep)
        chosen = np.flatnonzero(keep)
        return self._frames(
            batch, chosen, network[chosen], captured[chosen], original[chosen], side[chosen], rows[chosen]
        )

    def _leave_out(self, keep: NDArray[np.bool_], wrong: NDArray[np.bool_], name: Any) -> None:
        if wrong.any():
            self.skipped.update(name(at) for at in np.flatnonzero(wrong).tolist())
            keep[wrong] = False

    def _links(self, batch: Batch, keep: NDArray[np.bool_]) -> tuple[Ints, Ints, NDArray[np.uint8]]:
        """Return where the network header begins, the EtherType, and the direction."""
        network, kind = batch.start.copy(), np.zeros(len(batch), np.int64)
        direction = batch.direction
        for number in np.unique(batch.interface).tolist():
            link = batch.interfaces[number].link
            mine = keep & (batch.interface == number)
            size = {ETHERNET: 14, COOKED: 16, COOKED_2: 20}.get(link, 1 if link in RAW else 0)
            if not size:
                self.skipped[f"link type {link}"] += int(mine.sum())
                keep &= ~mine
                continue
            cut = mine & (batch.captured < size)
            self._leave_out(
                keep, cut, lambda at: CUT_HEADERS if batch.original[at] > batch.captured[at] else "not IPv4"
            )
            mine &= ~cut
            start = batch.start[mine]
            if link in RAW:
                kind[mine] = np.where(batch.data[start] >> 4 == 6, 0x86DD, 0x0800)
                continue
            network[mine] += size
            kind[mine] = batch.records(_U2, start + (0 if link == COOKED_2 else size - 2))
            if link != ETHERNET:
                packet_type = batch.data[start + 10] if link == COOKED_2 else batch.records(_U2, start)
                told = np.select([packet_type <= 2, packet_type == 4], [INCOMING, OUTGOING], UNKNOWN)
                direction = direction.copy()
                direction[mine] = np.where(direction[mine] == UNKNOWN, told, direction[mine])
        return network, kind, direction

    def _side(self, batch: Batch, ip: Any, direction: NDArray[np.uint8], keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the sides; frames that have none are left out."""
        sides, count = self.sides, len(batch)
        side = np.zeros(count, np.uint8)
        if sides.by_interface:
            names = np.array([each.name or str(each.number) for each in batch.interfaces])[batch.interface].astype(
                object
            )
            cooked = np.array([each.link == COOKED_2 for each in batch.interfaces])[batch.interface] & keep
            if cooked.any():
                names[cooked] = batch.records(np.dtype(">u4"), batch.start[cooked] + 4).astype(str)
            found = [sides.of_interface(str(name), way) for name, way in zip(names, direction.tolist(), strict=True)]
            none = np.array([isinstance(each, str) for each in found], bool)
            self._leave_out(keep, keep & none, lambda at: found[at])
            side[~none] = [each for each in found if not isinstance(each, str)]
            return side
        if sides.gateway_macs:
            link = np.array([each.link for each in batch.interfaces])[batch.interface]
            lies = batch.records(_ADDRESSES, batch.start)
            macs = np.array(sorted(sides.gateway_macs), np.int64)
            to = (lies["to_high"].astype(np.int64) << 16) + lies["to_low"]
            source = (lies["from_high"].astype(np.int64) << 16) + lies["from_low"]
            for kind, place in ((COOKED, 6), (COOKED_2, 12)):
                mine = link == kind
                if mine.any():
                    lies = batch.records(np.dtype([("high", ">u4"), ("low", ">u2")]), batch.start[mine] + place)
                    source[mine] = (lies["high"].astype(np.int64) << 16) + lies["low"]
            to[link != ETHERNET] = 0
            source[np.isin(link, RAW)] = 0
            from_inside, from_outside = np.isin(to, macs), np.isin(source, macs)
            self._leave_out(keep, keep & ~from_inside & ~from_outside, lambda at: NOT_GATEWAYS)
            return np.where(from_inside, Side.INSIDE, Side.OUTSIDE).astype(np.uint8)
        from_inside, to_inside = (self._is_inside(ip[name]) for name in ("source", "destination"))
        both = from_inside & to_inside
        self._leave_out(
            keep, keep & (from_inside == to_inside), lambda at: "between inside hosts" if both[at] else "of other hosts"
        )
        return np.where(from_inside, Side.INSIDE, Side.OUTSIDE).astype(np.uint8)

    def _is_inside(self, addresses: NDArray[Any]) -> NDArray[np.bool_]:
        addresses = addresses.astype(np.int64)
        found = np.zeros(len(addresses), bool)
        for prefix in self.sides.inside:
            found |= addresses & int(prefix.netmask) == int(prefix.network_address)
        return found

    def _frames(
        self,
        batch: Batch,
        chosen: Ints,
        network: Ints,
        captured: Ints,
        original: Ints,
        side: NDArray[np.uint8],
        kept: Any,
    ) -> Frames:
        """Return the chosen frames as the wire had them."""
        ip = _at_14(kept)
        total, header = ip["total"].astype(np.int64), (ip["version"] & 15).astype(np.int64) * 4
        protocol, fragment = ip["protocol"].astype(np.int64), ip["fragment"].astype(np.int64)
        no_length = (total == 0) & (original > 20)
        length = np.where(no_length, original, total)
        is_first = fragment & 0x1FFF == 0
        l4 = _at_34(kept) if (header == 20).all() else batch.records(_L4, network + header)
        is_tcp, is_udp, is_icmp = ((protocol == number) & is_first for number in (TCP, UDP, ICMP))
        needed = header + np.select([is_tcp, is_udp | is_icmp], [20, 8], 0)
        keep = np.ones(len(chosen), bool)
        self._leave_out(keep, (captured < needed) & (original >= needed), lambda at: CUT_HEADERS)
        has_ports = captured >= needed
        icmp_type = l4["first"] >> 8
        is_query = is_icmp & has_ports & np.isin(icmp_type, QUERIES)
        is_error = is_icmp & has_ports & ~is_query
        cut = captured < np.minimum(original, length)
        self._leave_out(keep, keep & cut & is_error, lambda at: CUT_ERROR)
        self._mend(CUT, keep & cut)
        ports = (is_tcp | is_udp) & has_ports
        sources = np.select([ports, is_query], [l4["first"].astype(np.int64), l4["third"].astype(np.int64)], -1)
        destinations = np.select([ports, is_query], [l4["second"].astype(np.int64), l4["third"].astype(np.int64)], -1)
        ip = ip.copy()  # rows are changed now
        l4 = l4.copy()
        rows = kept.view(np.uint8).reshape(-1, HEADER_BYTES)
        rows[:, :12], rows[:, 12], rows[:, 13] = 0, 8, 0
        short = np.flatnonzero(captured < HEADER_BYTES - 14)
        rows[short] *= np.arange(HEADER_BYTES) < 14 + captured[short, None]
        self._mend(LENGTH_0, keep & no_length)
        wrong = no_length.copy()
        unset = (ip["checksum"] == 0) & (captured >= header) & (header >= 20)
        unset[unset] = _sums(rows[unset], header[unset]) != 0xFFFF
        self._mend(NO_IPV4_CHECKSUM, keep & unset & ~no_length)
        wrong |= unset
        above = length > self.mtu
        is_super = above & is_tcp & has_ports & (fragment & 0x3FFF == 0)
        self._leave_out(
            keep, keep & above & ~is_super & ((length > 65_535) | (fragment & 0x4000 > 0)), lambda at: TOO_LONG
        )
        self._mend(SUPER_FRAMES, keep & is_super)
        ip_payload = length - header
        pseudo = sum(
            (ip[name].astype(np.int64) >> shift) & 0xFFFF for name in ("source", "destination") for shift in (0, 16)
        )
        pseudo = _folded(pseudo + protocol + ip_payload)
        field_ = np.where(is_tcp, l4["checksum"], l4["fourth"]).astype(np.int64)
        whole = (is_tcp | is_udp) & has_ports & (fragment & 0x3FFF == 0) & ~is_super
        self._mend(PARTIAL_CHECKSUM, keep & whole & (field_ == pseudo))
        time_ns = batch.time_ns[chosen]
        found = Frames(
            time_ns, rows, 14 + np.minimum(length, original), side, protocol, ip["source"].astype(np.int64),
            ip["destination"].astype(np.int64), sources, destinations, 14 + header, np.full(len(chosen), -1, np.int64),
        )  # fmt: skip
        found.rows[wrong, 16] = found.length[wrong] - 14 >> 8
        found.rows[wrong, 17] = found.length[wrong] - 14 & 0xFF
        _set_checksums(found.rows, found.l4 - 14, wrong & ~is_super)
        for at in np.flatnonzero(is_error & keep).tolist():
            begin = int(network[at])
            packet = batch.data[begin : begin + int(captured[at])].tobytes()
            head = int(found.l4[at])
            found.messages[self._next_message] = bytes(found.rows[at, :head]) + packet[head - 14 :]
            found.whole[at] = self._next_message
            self._next_message += 1
        if is_super.any() or not keep.all():
            parts = np.ones(len(chosen), np.int64)
            parts[~keep] = 0
            data_at = header + (l4["offset"] >> 4).astype(np.int64).clip(5) * 4
            size = np.maximum(self.mtu - data_at, 1)
            parts[keep & is_super] = np.maximum(-(-(length - data_at) // size), 1)[keep & is_super]
            found = _cut(found, parts, is_super, data_at, size)
        return found

    def _mend(self, name: str, which: NDArray[np.bool_]) -> None:
        if count := int(which.sum()):
            self.mended[name] += count


def _at_14(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the IPv4 headers of rows, where they lie."""
    return rows.view(np.uint8).reshape(-1, HEADER_BYTES)[:, 14:34].view(_IPV4)[:, 0]


def _at_34(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the layer-4 headers behind IPv4 headers without options, where they lie."""
    return rows.view(np.uint8).reshape(-1, HEADER_BYTES)[:, 34:52].view(_L4)[:, 0]


def kind_name(kind: int) -> str:
    """Return what a frame of another EtherType is called."""
    return _NAMES.get(kind) or ("802.3" if kind < 0x600 else f"EtherType 0x{kind:04x}")


def _is_sorted(times: Ints) -> bool:
    return bool((times[1:] >= times[:-1]).all())


def _folded(total: Any) -> Any:
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


def _sums(rows: NDArray[np.uint8], header: Ints) -> Ints:
    """Return the one's complement sums of IPv4 headers."""
    words = rows[:, 14:74].astype(np.int64)
    words *= np.arange(60) < header[:, None]
    folded: Ints = _folded((words[:, ::2] << 8).sum(axis=1) + words[:, 1::2].sum(axis=1))
    return folded


def _set_checksums(rows: NDArray[np.uint8], header: Ints, which: NDArray[np.bool_]) -> None:
    """Compute the IPv4 checksums of these rows."""
    if which.any():
        part = rows[which]
        part[:, 24:26] = 0
        checksum = ~_sums(part, header[which]) & 0xFFFF
        part[:, 24], part[:, 25] = checksum >> 8, checksum & 0xFF
        rows[which] = part


def _cut(found: Frames, parts: Ints, is_super: NDArray[np.bool_], data_at: Ints, size: Ints) -> Frames:
    """Return the frames with super-frames cut into the segments that a card makes; parts: how many of each."""
    source = np.repeat(np.arange(len(found)), parts)
    number = np.arange(len(source)) - np.repeat(np.cumsum(parts) - parts, parts)
    made = found.take(source)
    which = np.flatnonzero(is_super[source])
    if not len(which):
        return made
    origin, turn = source[which], number[which]
    ahead, step = data_at[origin], size[origin]
    data = found.length[origin] - 14 - ahead
    is_last = turn == parts[origin] - 1
    length = ahead + np.where(is_last, data - turn * step, step)
    rows = made.rows[which]
    flat, l4 = rows.reshape(-1), made.l4[which] + np.arange(len(which)) * HEADER_BYTES
    made.length[which] = 14 + length
    identification = ((rows[:, 18].astype(np.int64) << 8) + rows[:, 19] + turn) & 0xFFFF
    for at, value in ((16, length), (18, identification)):
        rows[:, at], rows[:, at + 1] = value >> 8, value & 0xFF
    sequence = sum(flat[l4 + 4 + at].astype(np.int64) << 8 * (3 - at) for at in range(4)) + turn * step
    for at in range(4):
        flat[l4 + 4 + at] = sequence >> 8 * (3 - at) & 0xFF
    flat[l4 + 13] &= np.where(is_last, 0xFF, 0xF6).astype(np.uint8)  # FIN and PSH belong to the last segment
    flat[l4 + 13] &= np.where(turn == 0, 0xFF, 0x7F).astype(np.uint8)  # CWR belongs to the first segment
    made.rows[which] = rows
    is_part = np.zeros(len(made), bool)
    is_part[which] = True
    _set_checksums(made.rows, made.l4 - 14, is_part)
    return made
