"""An interface's XDP program: it takes IPv4 from the kernel and gives it to AF_XDP sockets, assembled here, without a compiler.

It is attached as long as its process lives; where no socket is (the process is ending), it drops what it would have
given to one. After that the kernel bypass (kernel_bypass.py) holds, so that nothing leaves untranslated.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from natcore.io import bpf
from natcore.plane.bpf_assembler import (
    DIFFERS,
    EQUAL,
    GREATER,
    LESS,
    MAP_LOOKUP,
    MAP_VALUE,
    NOT_EQUAL,
    REDIRECT_MAP,
    SAME,
    XDP_DROP,
    XDP_PASS,
    Assembler,
    word,
)  # fmt: skip
from natcore.plane.xdp_fast_path import InterfaceMaps, translate_offloaded

_VALUE_BYTES = 8
MOST_ADDRESSES = 1 << 20
TO_KERNEL, ANSWER_ARP = 1, 2  # of an address: its packets are left to the kernel; the plane answers ARP requests for it
SHARED = 3  # and above, SHARED + n: TCP and UDP to ports that the host has not (n-th part of the map ports) are ours
SHARED_MOST = 64  # addresses that gateway and host share
_WORDS = 2 * 1024  # of a shared address in the map ports: a bit for each TCP port, then for each UDP port


def assemble(
    addresses: int, sockets: int, mac: int, passed: int, ports: int, fast_path: InterfaceMaps | None = None
) -> bytes:
    """The program's instructions. addresses, sockets, mac, passed, ports: descriptors of its maps. fast_path: it translates
    packets of offloaded sessions itself.

    IPv4 to the interface's own link address is taken, but for TO_KERNEL addresses; so are ARP requests for ANSWER_ARP ones. Of
    SHARED ones TCP and UDP to the gateway's ports are taken, where they are whole; a packet socket brings the rest.
    """
    context, frame = 6, 8
    program = Assembler()
    program.copy(context, 1)
    program.load(4, 2, context, 0)  # data
    program.load(4, 3, context, 4)  # the frame's end
    program.copy(frame, 2)
    program.copy(4, 2)
    program.add(4, 14)
    program.jump("pass", GREATER, 4, 3)
    program.load(2, 5, 2, 12)
    program.jump("tag", EQUAL, 5, value=word("8100"))
    program.jump("no tag", NOT_EQUAL, 5, value=word("88a8"))
    program.label("tag")
    program.copy(4, 2)
    program.add(4, 18)
    program.jump("pass", GREATER, 4, 3)
    program.load(2, 5, 2, 14)
    program.mask(5, word("0fff"))
    program.jump("pass", NOT_EQUAL, 5)  # a VLAN; its number 0 is a priority tag alone
    program.add(2, 4)
    program.load(2, 5, 2, 12)
    program.label("no tag")
    program.jump("ipv4", EQUAL, 5, value=word("0800"))
    program.jump("pass", NOT_EQUAL, 5, value=word("0806"))

    program.copy(4, 2)  # ARP
    program.add(4, 42)
    program.jump("pass", GREATER, 4, 3)
    program.load(2, 5, 2, 20)
    program.jump("pass", NOT_EQUAL, 5, value=word("0001"))  # no request
    program.load(4, 5, 2, 38)  # the address that is asked for
    program.load(4, 4, 2, 28)  # by
    program.jump("pass", SAME, 4, 5)  # gratuitous: the sender asks for its own address
    program.store(4, 10, -4, 5)
    _look_up(program, addresses)
    program.jump("pass", EQUAL, 0)
    program.load(1, 5, 0, 0)
    program.jump("pass", NOT_EQUAL, 5, value=ANSWER_ARP)
    program.set(3, XDP_PASS)
    program.jump("redirect")

    program.label("ipv4")
    program.copy(7, 2)
    program.map(1, mac, MAP_VALUE)
    for size, offset in ((4, 0), (2, 4)):
        program.load(size, 4, frame, offset)
        program.load(size, 5, 1, offset)
        program.jump("pass", DIFFERS, 4, 5)
    if fast_path is not None:
        translate_offloaded(program, fast_path)
        program.copy(2, 7)
        program.load(4, 3, context, 4)
    program.copy(4, 2)
    program.add(4, 34)
    program.jump("take", GREATER, 4, 3)  # no whole header: the gateway drops and counts it
    program.load(1, 5, 2, 23)  # a DHCP answer: UDP, no options, no fragment, from port 67 to 68
    program.jump("no dhcp", NOT_EQUAL, 5, value=17)
    program.load(1, 5, 2, 14)
    program.jump("no dhcp", NOT_EQUAL, 5, value=0x45)
    program.load(2, 5, 2, 20)
    program.mask(5, word("3fff"))
    program.jump("no dhcp", NOT_EQUAL, 5)
    program.copy(4, 2)
    program.add(4, 42)
    program.jump("no dhcp", GREATER, 4, 3)
    program.load(4, 5, 2, 34)
    program.jump("pass", EQUAL, 5, value=word("00430044"))
    program.label("no dhcp")
    program.load(4, 5, 2, 30)
    program.store(4, 10, -4, 5)
    _look_up(program, addresses)
    program.jump("take", EQUAL, 0)
    program.load(1, 5, 0, 0)
    program.jump("pass", EQUAL, 5, value=TO_KERNEL)
    program.jump("take", LESS, 5, value=SHARED)

    program.add(5, -SHARED)
    program.shift_left(5, 1)
    program.load(1, 4, 7, 23)
    program.jump("port", EQUAL, 4, value=6)
    program.jump("pass", NOT_EQUAL, 4, value=17)
    program.add(5, 1)
    program.label("port")
    program.shift_left(5, 10)
    program.load(2, 4, 7, 20)
    program.mask(4, word("3fff"))
    program.jump("pass", NOT_EQUAL, 4)  # a fragment
    program.load(1, 4, 7, 14)
    program.mask(4, 15)
    program.shift_left(4, 2)
    program.copy(2, 7)
    program.add_register(2, 4)
    program.copy(4, 2)
    program.add(4, 18)
    program.load(4, 3, context, 4)
    program.jump("pass", GREATER, 4, 3)
    program.load(2, 9, 2, 16)
    program.from_network(9, 16)
    program.copy(4, 9)
    program.shift_right(4, 6)
    program.either(5, 4)
    program.store(4, 10, -4, 5)
    _look_up(program, ports)
    program.jump("take", EQUAL, 0)
    program.load(8, 5, 0, 0)
    program.mask(9, 63)
    program.shift_right_by(5, 9)
    program.mask(5, 1)
    program.jump("pass", NOT_EQUAL, 5)

    program.label("take")
    program.set(3, XDP_DROP)
    program.label("redirect")  # to the socket of the queue; where there is none, register 3 says what becomes of it
    program.load(4, 2, context, 16)
    program.map(1, sockets)
    program.call(REDIRECT_MAP)
    program.end()

    program.label("pass")
    program.map(1, passed, MAP_VALUE)
    program.set(2, 1)
    program.count(1, 0, 2)
    program.set(0, XDP_PASS)
    program.end()
    return program.code()


def _look_up(program: Assembler, addresses: int) -> None:
    """Look the address on the stack up; register 0 points to its value, or is zero."""
    program.copy(2, 10)
    program.add(2, -4)
    program.map(1, addresses)
    program.call(MAP_LOOKUP)


class Program:
    """The XDP program of one interface, attached from its making until `close` or the end of the process.

    index: the interface's number in this network namespace. mac: its link address, 6 bytes. queues: how many it has.
    to_kernel, arp_addresses, shared: as for set_addresses. fast_path: it translates packets of offloaded sessions itself.
    Raises OSError: EPERM without CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, EBUSY where another XDP program is, EOPNOTSUPP
    without XDP.
    """

    def __init__(
        self, index: int, mac: bytes, queues: int, to_kernel: Iterable[int] = (), arp_addresses: Iterable[int] = (),
        shared: Mapping[int, bytes] = MappingProxyType({}), fast_path: InterfaceMaps | None = None,
    ) -> None:  # fmt: skip
        self._fds: list[int] = []
        self._known: dict[bytes, bytes] = {}
        self._places: dict[int, int] = {}  # of shared addresses in the map ports
        self._ports_known: dict[int, bytes] = {}  # by place
        try:
            self._addresses = self._keep(bpf.table(MOST_ADDRESSES, 4, 1))
            self._sockets = self._keep(bpf.sockets(queues))
            self._mac = self._keep(bpf.array(1, _VALUE_BYTES))
            self._passed = self._keep(bpf.array(1, _VALUE_BYTES))
            self._ports = self._keep(bpf.array(SHARED_MOST * _WORDS, 8))
            self.set_mac(mac)
            self.set_addresses(to_kernel, arp_addresses, shared)
            code = assemble(self._addresses, self._sockets, self._mac, self._passed, self._ports, fast_path)
            self._keep(bpf.link(self._keep(bpf.program(code)), index))
        except BaseException:
            self.close()
            raise

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def set_mac(self, mac: bytes) -> None:
        """Set the link address that frames must be for."""
        bpf.set_element(self._mac, bytes(4), mac.ljust(_VALUE_BYTES, b"\0"))

    def set_socket(self, queue: int, fd: int) -> None:
        """Send the queue's frames to the AF_XDP socket, until that is closed."""
        bpf.set_element(self._sockets, struct.pack("=I", queue), struct.pack("=I", fd))

    def set_addresses(
        self, to_kernel: Iterable[int], arp_addresses: Iterable[int], shared: Mapping[int, bytes] = MappingProxyType({})
    ) -> None:
        """Set the addresses (host order) that the kernel keeps, those for which the plane answers ARP, and those of which the
        kernel has some ports (PlaneLoop.shared)."""
        for address in self._places.keys() - shared.keys():
            del self._places[address]
        for address, ports in shared.items():
            if address not in self._places:
                self._places[address] = min(set(range(SHARED_MOST)) - set(self._places.values()))
            self._set_ports(self._places[address], ports)
        wanted = {address.to_bytes(4): bytes([ANSWER_ARP]) for address in arp_addresses}
        wanted |= {address.to_bytes(4): bytes([TO_KERNEL]) for address in to_kernel}
        wanted |= {address.to_bytes(4): bytes([SHARED + place]) for address, place in self._places.items()}
        for key, value in wanted.items() - self._known.items():
            bpf.set_element(self._addresses, key, value)
        for key in self._known.keys() - wanted.keys():
            bpf.delete_element(self._addresses, key)
        self._known = wanted

    def _set_ports(self, place: int, ports: bytes) -> None:
        before = self._ports_known.get(place, bytes(len(ports)))
        for at in range(0, len(ports), 8):
            if ports[at : at + 8] != before[at : at + 8]:
                bpf.set_element(self._ports, struct.pack("=I", place * _WORDS + at // 8), ports[at : at + 8])
        self._ports_known[place] = ports

    def passed(self) -> int:
        """Return the frames that were left to the kernel."""
        return int.from_bytes(bpf.get_element(self._passed, bytes(4), _VALUE_BYTES), sys.byteorder)

    def close(self) -> None:
        """Give the interface back to the kernel. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())
