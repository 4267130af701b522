"""Random packets and clock steps, drawn to meet every branch of a NAT: limits, edges, damage.

Everything takes a random.Random, so that one seed is one run; `strategies.py` makes Hypothesis strategies of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from random import Random
from typing import Any

from natcore.config import DnatEntry
from natcore.testing import craft
from natcore.testing.configurations import FOREIGN, HOSTS, INSIDE_ADDRESS, OUTSIDE_ADDRESS, PORTS, REMOTES
from natcore.testing.oracle.entries import Row, targets
from natcore.testing.oracle.fragments import split
from natcore.testing.oracle.model import Nat
from natcore.testing.oracle.packets import (
    ACK,
    ECHO_REPLY,
    ECHO_REQUEST,
    FIN,
    ICMP,
    RST,
    SYN,
    TCP,
    UDP,
    Endpoint,
    checksum,
    parse,
)
from natcore.testing.oracle.sessions import MS, Session
from natcore.verdict import Side, Verdict

ANY_PROTOCOL: list[int] = [0, 50, 132, 134, 145, 255, *range(256)]
ODD = [
    craft.address(a) for a in ("0.0.0.1", "169.254.169.254", "127.0.0.1", "224.0.0.5", "255.255.255.255", "240.1.2.3")
]

NAMING = 18  # bytes of a payload that names its sender's address
CROWD = 120  # sessions

_LETTERS = {"S": SYN, "A": ACK, "F": FIN, "R": RST}
_STEPS = [  # after the first segment or datagram; those from outside in capitals, P is data
    each.split()
    for each in (
        "", "SA a", "SA a stranger", "stranger SA a pa PA", "SA a pa PA A stranger error", "S sa SA a", "SA a fa FA a",
        "SA a FA fa A stranger", "SA a r PA", "RA stranger", "SA a R pa PA stranger", "error SA a", "SA a error PA error pa",
        "stranger stranger stranger",
    )
]  # fmt: skip

# The clock


def clock(random: Random, model: Nat) -> int:
    """The next moment, ns: soon, or about where something is due, or long after, or back."""
    draw = random.random()
    if draw < 0.5:
        return model.now + random.choice([0, 1, 999, 1_000, MS, 40 * MS])
    due = [session.deadline for session in model.sessions]
    due += [s.window_start + s.window for s in model.sessions if s.window_start is not None]
    due += [until for _, until in model.held.values() if until > model.now]
    due.append((model.now // 1_000_000_000 + 1) * 1_000_000_000)
    if draw < 0.85:
        return max(0, random.choice(due) + random.choice([-MS, -1_000, -1, 0, 1, MS]))
    if draw < 0.9:
        return model.now + random.randrange(20_000_000_000)
    if draw < 0.91:  # hours, in which no sweep comes by
        return model.now + random.randrange(80_000) * 1_000_000_000
    return max(0, model.now - random.choice([0, 1, MS, 5_000_000_000]))


# Packets


@dataclass
class Intent:
    """What a packet is to be, before it is built."""

    protocol: int
    source: Endpoint
    destination: Endpoint
    side: Side
    fields: dict[str, Any] = field(default_factory=dict)


def frame(random: Random, model: Nat) -> tuple[bytes, Side]:
    """A frame and the side it comes from."""
    draw = random.random()
    forwards = [row for row in model.entries.rows if isinstance(row.entry, DnatEntry)]
    if model.sessions and draw < 0.5:
        intent = _of_session(random, random.choice(model.sessions))
    elif draw < 0.75:
        intent = _fresh(random, forwards)
    elif model.mappings and draw < 0.84:
        intent = _to_mapping(random, model)
    elif draw < 0.92 and forwards:
        intent = _to_entry(random, model, random.choice(forwards))
    else:
        intent = _odd(random, model)
    if random.random() < 0.12:
        intent.fields.update(_unusual(random))
    data = _built(random, intent)
    if random.random() < 0.12:
        data = _error_about(random, model, intent, data)
    if model.framing == "ethernet":
        tags = random.choice([(), (), (), (), (5,), (5, 6), (5, 6, 7)] if random.random() < 0.3 else [()])
        ethertype = 0x0800 if random.random() < 0.99 else random.choice([0x0806, 0x86DD, 0])
        data = craft.ether(data, *tags, ethertype=ethertype)
    if random.random() < 0.15:
        data += bytes(random.randrange(20))  # padding, as short frames have
    if random.random() < 0.04:
        data = _damaged(random, data)
    return data, intent.side if random.random() < 0.97 else Side(1 - intent.side)


def fragments(random: Random, model: Nat) -> list[tuple[bytes, Side]]:
    """A frame in fragments, and the side: in order or not, now and then with one missing or twice."""
    data, side = frame(random, model)
    packet = parse(data, model.framing, side)
    if isinstance(packet, Verdict):
        return [(data, side)]
    ip = bytearray(packet.ip)
    if random.random() < 0.6 and packet.protocol in (TCP, UDP):
        ip += random.randbytes(random.choice([8, 30, 200, 1400]))  # a checksum that is wrong then stays as wrong
        ip[2:4] = len(ip).to_bytes(2, "big")
    ip[4:6] = random.choice([0, 1, random.getrandbits(16)]).to_bytes(2, "big")
    ip[6:8] = random.choice([0, 0, 0, 0, 0x2000, 0x8000]).to_bytes(2, "big")
    ip[10:12] = b"\0\0"
    ip[10:12] = checksum(ip[: packet.header]).to_bytes(2, "big")
    payload = random.choice([8, 16, 24, 24, 32, 40, 64, 512])
    pieces = split(packet.frame[: packet.link] + bytes(ip), packet.link, packet.header + payload)
    if random.random() < 0.6:
        random.shuffle(pieces)
    if random.random() < 0.15:
        pieces.insert(random.randrange(len(pieces) + 1), random.choice(pieces))
    if random.random() < 0.15:
        pieces.pop(random.randrange(len(pieces)))
    return [(piece, side) for piece in pieces[:40]]


def crowd(random: Random, model: Nat) -> list[tuple[bytes, Side]]:
    """Frames of many flows at once, from one inside host to one remote: what fills pools, tables and quotas."""
    host, remote, first = random.choice(HOSTS), (random.choice(REMOTES), 443), random.randrange(1024, 60000)
    packets = (
        craft.udp((host, first + n), remote) for n in range(CROWD if model.max_sessions > CROWD else CROWD // 10)
    )
    return [(craft.ether(each) if model.framing == "ethernet" else each, Side.INSIDE) for each in packets]


def conversation(random: Random, model: Nat) -> Iterator[tuple[bytes, Side]]:
    """Frames of an inside endpoint that speaks to one or more remotes, of these, of strangers and of routers between them.

    Each is made when the one before it has been put through the model: an answer goes to the outside endpoint that it found.
    TCP opens with a handshake or from both ends at once, and closes, resets or stays open; remotes have inside hosts'
    addresses too.
    """
    protocol, inside = random.choice([TCP, TCP, UDP, UDP, ICMP]), (random.choice(HOSTS), random.choice(PORTS[1:]))
    places = random.sample([*REMOTES, *(host for host in HOSTS if host != inside[0])], random.choice([1, 2, 2, 3]))
    port = random.choice(PORTS[1:])
    for place in places:
        remote = place, port if random.random() < 0.7 else random.choice(PORTS[1:])
        if model.mappings and random.random() < 0.15:  # to another inside endpoint, by its outside one
            remote = random.choice(model.mappings).outside
        yield from _dialogue(random, model, protocol, inside, remote)


def _dialogue(
    random: Random, model: Nat, protocol: int, inside: Endpoint, remote: Endpoint
) -> Iterator[tuple[bytes, Side]]:
    """What an inside endpoint and a remote one say, and others to it."""
    numbers = {Side.INSIDE: random.getrandbits(32), Side.OUTSIDE: random.getrandbits(32)}  # TCP's next of either end

    def said(side: Side, outside: Endpoint, flags: int = ACK, size: int = 0, sender: Endpoint | None = None) -> bytes:
        ends = (inside, remote) if side is Side.INSIDE else (sender or remote, outside)
        payload = random.randbytes(size)
        if protocol == UDP:
            return craft.udp(*ends, payload)
        if protocol == ICMP:
            kind, identifier = (ECHO_REQUEST, inside[1]) if side is Side.INSIDE else (ECHO_REPLY, outside[1])
            return craft.icmp(ends[0][0], ends[1][0], kind, identifier=identifier, payload=payload)
        sequence, acknowledgement = numbers[side], numbers[Side(1 - side)] if flags & ACK else 0
        numbers[side] = sequence + size + bool(flags & SYN) + bool(flags & FIN) & 0xFFFFFFFF
        return craft.tcp(*ends, flags, payload, sequence=sequence, acknowledgement=acknowledgement)

    def framed(packet: bytes, side: Side) -> tuple[bytes, Side]:
        return craft.ether(packet) if model.framing == "ethernet" else packet, side

    yield framed(said(Side.INSIDE, inside, SYN, 0 if protocol == TCP else random.choice([0, 5, 100])), Side.INSIDE)
    outside = _outside_of(model, protocol, inside, remote)
    if outside is None:
        return
    for step in random.choice(_STEPS):
        if step == "stranger":
            place = random.choice([remote[0], random.choice(REMOTES)])
            sender = place, remote[1] if place != remote[0] else random.choice(PORTS)
            before = dict(numbers)
            yield framed(said(Side.OUTSIDE, outside, SYN, sender=sender), Side.OUTSIDE)
            numbers.update(before)
        elif step == "error":
            if protocol == ICMP:
                quoted = craft.icmp(outside[0], remote[0], ECHO_REQUEST, identifier=outside[1])
            else:
                quoted = craft.udp(outside, remote) if protocol == UDP else craft.tcp(outside, remote, ACK)
            kind, code = random.choice([(3, 1), (3, 3), (11, 0)])
            yield framed(craft.icmp(random.choice(REMOTES), outside[0], kind, code, 0, 0, quoted), Side.OUTSIDE)
        else:
            side = Side.OUTSIDE if step.isupper() else Side.INSIDE
            flags = sum(_LETTERS[letter] for letter in step.upper() if letter in _LETTERS)
            yield framed(said(side, outside, flags, random.choice([1, 40]) if "P" in step.upper() else 0), side)


def _outside_of(model: Nat, protocol: int, inside: Endpoint, remote: Endpoint) -> Endpoint | None:
    """The outside endpoint by which an inside one speaks to a remote."""
    for session in model.sessions:
        same = session.remote[0] == remote[0] if protocol == ICMP else session.remote == remote
        if same and session.protocol == protocol and session.mapping.inside == inside:
            return session.mapping.outside
    return None


def unsolicited(random: Random, model: Nat) -> tuple[bytes, Side]:
    """A SYN from outside to an outside address, mostly to a port that no host has."""
    port = random.choice([*PORTS[1:], random.randrange(1024, 65536)])
    packet = craft.tcp(
        (random.choice(REMOTES), random.choice(PORTS[1:])), (random.choice(sorted(model.eips)), port), SYN
    )
    return craft.ether(packet) if model.framing == "ethernet" else packet, Side.OUTSIDE


def anybody(random: Random, model: Nat) -> int:
    """A source: a remote mostly, else an address that no remote has."""
    if random.random() < 0.9:
        return random.choice(REMOTES)
    return random.choice([*ODD, *HOSTS, FOREIGN, *model.eips, INSIDE_ADDRESS, OUTSIDE_ADDRESS])


def _fresh(random: Random, forwards: list[Row]) -> Intent:
    """An inside host speaks to an outside host."""
    host = random.choice(HOSTS) if random.random() < 0.95 else FOREIGN
    source, destination = (host, random.choice(PORTS)), (random.choice(REMOTES), random.choice(PORTS))
    protocol = _protocol(random)
    if forwards and random.random() < 0.3:  # a target speaks first
        row = random.choice(forwards)
        first, last, inside_first = row.entry.ports  # type: ignore[union-attr]
        source = random.choice(list(targets(row))), random.choice([inside_first, inside_first + last - first])
        protocol = random.choice(row.spaces())
    return Intent(protocol, source, destination, Side.INSIDE, {"flags": _flags(random, SYN)})


def _of_session(random: Random, session: Session) -> Intent:
    """A packet of a session, from either end; TCP at the sequence expected or anywhere."""
    side = Side(random.getrandbits(1))
    inside, outside, remote = session.mapping.inside, session.mapping.outside, session.remote
    ends = (inside, remote) if side is Side.INSIDE else (remote, outside)
    fields: dict[str, Any] = {"flags": _flags(random, ACK)}
    expected = [v for v in (session.sent.get(side), session.ack.get(Side(1 - side))) if v is not None]
    if expected and random.random() < 0.8:
        fields["sequence"] = random.choice(expected)
    if (theirs := session.sent.get(Side(1 - side))) is not None and random.random() < 0.8:
        fields["acknowledgement"] = theirs
    if session.protocol == ICMP and session.opened_outside:  # the request came from outside
        fields["kind"] = (
            random.choice([ECHO_REPLY, ECHO_REQUEST])
            if side is Side.INSIDE
            else random.choice([ECHO_REQUEST, ECHO_REQUEST, ECHO_REPLY])
        )
    return Intent(session.protocol, *ends, side, fields)


def _to_mapping(random: Random, model: Nat) -> Intent:
    """A packet to an outside endpoint in use, or its neighbour: from a stranger, or from an inside host (a hairpin)."""
    mapping = random.choice(model.mappings)
    address, port = mapping.outside
    destination = (address, port if random.random() < 0.9 else (port + 1) & 0xFFFF)
    fields = {"flags": _flags(random, SYN)}
    if random.random() < 0.5:
        return Intent(mapping.protocol, (random.choice(HOSTS), random.choice(PORTS)), destination, Side.INSIDE, fields)
    source = (anybody(random, model), 0 if mapping.protocol == ICMP else random.choice(PORTS))
    protocol = mapping.protocol
    if random.random() < 0.1:  # a number near it is another protocol's, whatever a table adds to numbers
        protocol ^= random.choice([0x80, 0x40, 1, protocol])
    return Intent(protocol, source, destination, Side.OUTSIDE, fields)


def _to_entry(random: Random, model: Nat, row: Row) -> Intent:
    """A packet to a DNAT entry's endpoint, or its neighbour: from an outside host, or from an inside host (a hairpin)."""
    first, last, _ = row.entry.ports  # type: ignore[union-attr]
    port = min(65535, random.choice([first, last, random.choice(PORTS) if row.whole else first, last + 1]))
    protocol = (
        _protocol(random) if row.whole else random.choice([*row.spaces(), random.choice([TCP, UDP, 0, 134, 145])])
    )
    destination, fields = (next(iter(row.wires)), port), {"flags": _flags(random, SYN), "kind": ECHO_REQUEST}
    if random.random() < 0.25:
        return Intent(protocol, (random.choice(HOSTS), random.choice(PORTS)), destination, Side.INSIDE, fields)
    source = (anybody(random, model), 0 if protocol == ICMP else random.choice(PORTS))
    return Intent(protocol, source, destination, Side.OUTSIDE, fields)


def _odd(random: Random, model: Nat) -> Intent:
    """Spoofed, for the gateway itself, to no host, or of a protocol or an ICMP type that is not translated."""
    side = Side(random.getrandbits(1))
    anywhere = [*ODD, *HOSTS[:2], *REMOTES[:2], *model.eips, INSIDE_ADDRESS, OUTSIDE_ADDRESS]
    source, destination = ((random.choice(anywhere), random.choice(PORTS)) for _ in range(2))
    protocol = random.choice([TCP, UDP, ICMP, ICMP, 0, 33, 51, 136, random.randrange(256)])
    if random.random() < 0.1:  # to itself
        destination = source
    kind = random.choice([8, 8, 0, 3, 5, 11, 13, 14, 15, 18, 30])
    return Intent(protocol, source, destination, side, {"flags": _flags(random, SYN), "kind": kind})


def _error_about(random: Random, model: Nat, intent: Intent, data: bytes) -> bytes:
    """An ICMP error about a packet that the other side sent, quoted in part; now and then damaged or misaddressed."""
    header = (data[0] & 15) * 4
    sender = random.choice([intent.source[0]] * 5 + [REMOTES[0], HOSTS[0], ODD[1], *model.eips][:9])
    quoted = _turned(data, header) if len(data) >= header + 8 >= 28 else data
    payload = quoted[: random.choice([len(quoted), header + 8, header + 8, header + 18, header + 7, 20, 8])]
    if random.random() < 0.05:
        payload = payload[:2] + random.randbytes(1) + payload[3:]
    fields: dict[str, Any] = {"ttl": random.choice([64, 64, 64, 1]), "l4_damage": random.choice([0] * 9 + [5])}
    to = random.choice([intent.destination[0]] * 5 + [INSIDE_ADDRESS, OUTSIDE_ADDRESS])
    kind = random.choice([3, 3, 11, 12, 4])
    return craft.icmp(sender, to, kind, random.randrange(16), 0, 0, payload, **fields)


def _turned(data: bytes, header: int) -> bytes:
    """The packet the other way round, its checksums right again as far as the header goes."""
    ip, rest = bytearray(data[:header]), bytearray(data[header:])
    ip[12:20] = ip[16:20] + ip[12:16]
    ip[10:12] = b"\0\0"
    ip[10:12] = checksum(ip).to_bytes(2, "big")
    if ip[9] in (TCP, UDP):
        rest[0:4] = rest[2:4] + rest[0:2]
    elif ip[9] == ICMP:
        rest[0] = 8 - rest[0] if rest[0] in (0, 8) else (rest[0] - 1 ^ 1) + 1 if 13 <= rest[0] <= 18 else rest[0]
    return bytes(ip + rest)


def _protocol(random: Random) -> int:
    return random.choice([TCP, TCP, TCP, UDP, UDP, UDP, ICMP, ICMP, 47, random.choice(ANY_PROTOCOL)])


def _flags(random: Random, usual: int) -> int:
    draw = random.random()
    if draw < 0.5:
        return usual
    if draw < 0.95:
        return random.choice([SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, 0])
    return random.getrandbits(6)


def _unusual(random: Random) -> dict[str, Any]:
    """Header fields out of the ordinary, most of them legal."""
    return random.choice(
        [
            {"ttl": random.choice([0, 1, 2])},
            {"size": random.choice([72, 73, 100, 548, 549, 1472, 1473, 2000]), "dont_fragment": random.random() < 0.6},
            {"ip_options": ip_options(random)},
            {"ip_options": ip_options(random)},
            {"fragment": random.choice([0x2000, 0x0001, 0x4000, 0x8000])},
            {"tos": random.getrandbits(8), "identification": random.getrandbits(16)},
            {"damage": 1 << random.randrange(16)},
            {"l4_damage": random.choice([0xFFFF, 1 << random.randrange(16)])},
            {"no_checksum": True},
            {"total": random.choice([0, 19, 20, 27, 28, 39, 40, 65535])},
            {"ihl": random.choice([0, 4, 6, 15]), "version": random.choice([4, 4, 6])},
            {"length": random.choice([0, 7, 8, 9, 65535])},
            {"offset": random.choice([0, 4, 6, 15])},
        ]
    )


def ip_options(random: Random) -> bytes:
    """IPv4 options: what hosts send, source routes, obsolete and unknown ones, and lengths that cannot be."""
    kind = random.choice([7, 11, 12, 15, 25, 30, 68, 82, 94, 130, 131, 131, 133, 134, 136, 137, 148, 148, 151, 200])
    sound = bytes([kind, 4, 4, 0])
    area = random.choice([bytes(4), b"\1" * 4, sound, b"\1" + sound, sound + bytes([148, 4, 0, 0]), b"\0" + sound,
                          bytes([kind, random.choice([0, 1, 2, 3, 5, 41, 255])]), b"\1\1\1" + bytes([kind])])  # fmt: skip
    return area + bytes(-len(area) % 4)


def _built(random: Random, intent: Intent) -> bytes:
    """The IPv4 packet; a field that its protocol does not have is left out."""
    fields = dict(intent.fields)
    size = fields.pop("size", random.choice([0, 0, 1, 5, NAMING]))
    payload = random.randbytes(size)
    if size == NAMING:  # as applications name their endpoints, in dots or commas
        text = str(IPv4Address(intent.source[0]))
        payload = (text if payload[0] % 2 else text.replace(".", ",")).encode().ljust(size, b" ")
    flags, kind = fields.pop("flags", 0), fields.pop("kind", None)
    tcp_only = {name: fields.pop(name) for name in ("sequence", "acknowledgement", "offset") if name in fields}
    udp_only = {name: fields.pop(name) for name in ("no_checksum", "length") if name in fields}
    if intent.protocol == TCP:
        for name in ("sequence", "acknowledgement"):
            tcp_only.setdefault(name, random.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, random.getrandbits(32)]))
        options = b"" if "offset" in tcp_only or random.random() < 0.6 else _tcp_options(random)
        return craft.tcp(intent.source, intent.destination, flags, payload, options=options, **fields, **tcp_only)
    if intent.protocol == UDP:
        return craft.udp(intent.source, intent.destination, payload, **fields, **udp_only)
    if intent.protocol == ICMP:
        inside = intent.side is Side.INSIDE
        kind = (8 if inside else ECHO_REPLY) if kind is None else kind
        if kind in (0, 8) and random.random() < 0.15:
            kind = random.choice((13, 15, 17) if kind else (14, 16, 18))
        identifier = intent.source[1] if inside else intent.destination[1]
        return craft.icmp(
            intent.source[0], intent.destination[0], kind, identifier=identifier, payload=payload, **fields
        )
    fields.pop("l4_damage", None)
    return craft.ipv4(intent.protocol, intent.source[0], intent.destination[0], payload, **fields)


def _tcp_options(random: Random) -> bytes:
    """A maximum segment size among others, or twice, or behind something that cannot be."""
    size = random.choice([100, 536, 537, 1460, 65535]).to_bytes(2, "big")
    mss = b"\x02\x04" + size
    options = random.choice(
        [mss, b"\1" + mss, mss + b"\4\2" + mss, b"\5\1" + mss, b"\2\3" + size, b"\0" + mss, bytes(12)]
    )
    return options + bytes(-len(options) % 4)


def _damaged(random: Random, data: bytes) -> bytes:
    """Cut short, or a byte changed; a header with its checksum fixed afterwards is nastier."""
    if random.random() < 0.4:
        return data[: random.randrange(len(data) + 1)]
    changed = bytearray(data)
    if changed:
        changed[random.randrange(min(len(changed), 60))] = random.getrandbits(8)
    return bytes(changed)
