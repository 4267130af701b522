"""The classic BPF program by which a fan-out group picks a frame's worker. It is a hint: it decides only how fast.

Inside frames go by their source address (worker_of_inside in natcore/workers/worker.pxd); outside frames by their destination
port, or an echo reply's identifier, as worker_preferring in natcore/tables/ports.pxd. Of what has no port (fragments, errors,
other protocols) those from one remote go together. What is not IPv4 is the first worker's.
"""

from __future__ import annotations

import struct

from natcore.internal.affinity import LANES, SHIFTS
from natcore.internal.protocols import ICMP, TCP, UDP
from natcore.verdict import Side

# linux/filter.h, linux/bpf_common.h
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30  # into A, from a place
_LOAD_HALF_FROM_X, _LOAD_BYTE_FROM_X = 0x48, 0x50  # from a place counted from X
_HEADER_INTO_X = 0xB1  # 4 times the lower half of a byte: the length of an IPv4 header
_DIVIDE, _MODULO, _SHIFT_RIGHT = 0x34, 0x94, 0x74  # A by a constant
_INTO_X, _TOGGLE_X = 0x07, 0xAC  # A into X; A exclusive or X
_IF_EQUAL, _IF_ANY_BIT = 0x15, 0x45  # jumps: A and a constant
_RETURN, _RETURN_A = 0x06, 0x16
_NETWORK, _ETHERTYPE = 0xFFF00000, 0xFFFFF000  # SKF_NET_OFF: the IPv4 header; SKF_AD_OFF + SKF_AD_PROTOCOL

_IPV4 = 0x0800
_FRAGMENT = 0x3FFF  # more fragments follow, or an offset
_ECHO_REPLY = 0
_WHOLE = 1 << 18  # bytes of a frame that are received: all

_Line = (
    str | tuple[int, int] | tuple[int, int, str, str]
)  # a label; code, constant; and where a jump leads if so, if not


def steering(side: Side, workers: int, port_unit: int) -> bytes:
    """The program for an interface of a side; it returns the number of a worker. port_unit: Core.port_unit."""
    ipv4: list[_Line] = [(_LOAD_HALF, _ETHERTYPE), (_IF_EQUAL, _IPV4, "ipv4", ""), (_RETURN, 0), "ipv4"]
    by_port: list[_Line] = [
        (_LOAD_HALF, _NETWORK + 6),
        (_IF_ANY_BIT, _FRAGMENT, "source", ""),
        (_HEADER_INTO_X, _NETWORK),
        (_LOAD_BYTE, _NETWORK + 9),
        (_IF_EQUAL, TCP, "port", ""),
        (_IF_EQUAL, UDP, "port", ""),
        (_IF_EQUAL, ICMP, "", "source"),
        (_LOAD_BYTE_FROM_X, _NETWORK),
        (_IF_EQUAL, _ECHO_REPLY, "", "source"),
        (_LOAD_HALF_FROM_X, _NETWORK + 4),
        (_IF_ANY_BIT, 0, "", "home"),  # always
        "port",
        (_LOAD_HALF_FROM_X, _NETWORK + 2),
        "home",
        (_DIVIDE, port_unit),
        (_MODULO, LANES),
        (_MODULO, workers),
        (_RETURN_A, 0),
    ]
    by_source: list[_Line] = [
        "source",
        (_LOAD_WORD, _NETWORK + 12),
        *(line for shift in SHIFTS for line in ((_INTO_X, 0), (_SHIFT_RIGHT, shift), (_TOGGLE_X, 0))),
        (_MODULO, LANES),
        (_MODULO, workers),
        (_RETURN_A, 0),
    ]
    return _assembled(ipv4 + by_source if side is Side.INSIDE else ipv4 + by_port + by_source)


def for_shared_addresses() -> bytes:
    """The program of a socket beside an XDP program: it receives fragments and ICMP, which that leaves to the kernel for an
    address that gateway and host share."""
    return _assembled(
        [
            (_LOAD_HALF, _ETHERTYPE),
            (_IF_EQUAL, _IPV4, "", "no"),
            (_LOAD_HALF, _NETWORK + 6),
            (_IF_ANY_BIT, _FRAGMENT, "yes", ""),
            (_LOAD_BYTE, _NETWORK + 9),
            (_IF_EQUAL, ICMP, "yes", "no"),
            "yes",
            (_RETURN, _WHOLE),
            "no",
            (_RETURN, 0),
        ]
    )


def _assembled(program: list[_Line]) -> bytes:
    """Instructions of 8 bytes. A label's jumps go forward; none: to the next instruction."""
    places: dict[str, int] = {}
    code: list[tuple[int, int, str, str]] = []
    for line in program:
        if isinstance(line, str):
            places[line] = len(code)
        else:
            code.append(line if len(line) == 4 else (*line, "", ""))
    found = b""
    for at, (operation, constant, if_so, if_not) in enumerate(code):
        yes, no = (places[label] - at - 1 if label else 0 for label in (if_so, if_not))
        found += struct.pack("=HBBI", operation, yes, no, constant)
    return found
