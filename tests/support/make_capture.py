"""Makes python/natcore/data/demo.pcap: what a link of inside hosts carries. `python tests/support/make_capture.py [FILE]`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/

import sys
from collections.abc import Iterator

from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet as Layer
from scapy.packet import Raw

from natcore.capture import pcap

START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
GATEWAY_MAC = "02:00:00:00:00:01"
SHIPPED = Path(__file__).resolve().parents[2] / "python" / "natcore" / "demo" / "data" / "demo.pcap"

Step = tuple[bool, Layer]  # from the inside host?, what is above IPv4


class Host:
    """An inside host: the frames of its conversations as its link carries them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.mac = "02:00:00:00:01:" + f"{int(address.rsplit('.', 1)[1]):02x}"

    def conversation(self, server: str, steps: Iterator[Step], start_ms: float) -> Iterator[pcap.Packet]:
        """Outbound packets 1 ms apart, answers 12 ms after what they answer."""
        time_ms, identification = start_ms, int(start_ms) & 0xFFFF
        for outbound, layer in steps:
            time_ms += 1 if outbound else 12
            identification += 1
            if outbound:
                link, packet = Ether(src=self.mac, dst=GATEWAY_MAC), IP(src=self.address, dst=server, ttl=64)
            else:
                link, packet = Ether(src=GATEWAY_MAC, dst=self.mac), IP(src=server, dst=self.address, ttl=57)
            packet.id = identification
            yield pcap.Packet(START_NS + round(time_ms * 1_000_000), bytes(link / packet / layer))


def web(port: int, request: int, answer: int, *, server_port: int = 80, mss: int = 1460) -> Iterator[Step]:
    """A whole TCP connection: handshake, a request, an answer in segments, both FINs (lengths in bytes)."""
    client, server = 1_000_000 + port, 5_000_000 + port

    def out(flags: str, data: int = 0) -> Step:
        return True, TCP(sport=port, dport=server_port, seq=client, ack=0 if flags == "S" else server,
                         flags=flags, window=64240) / Raw(b"q" * data)  # fmt: skip

    def back(flags: str, data: int = 0) -> Step:
        return False, TCP(sport=server_port, dport=port, seq=server, ack=client, flags=flags, window=65160) / Raw(
            b"a" * data
        )

    yield out("S")
    client += 1
    yield back("SA")
    server += 1
    yield out("A")
    yield out("PA", request)
    client += request
    yield back("A")
    for offset in range(0, answer, mss):
        segment = min(mss, answer - offset)
        yield back("PA" if offset + segment == answer else "A", segment)
        server += segment
        yield out("A")
    yield out("FA")
    client += 1
    yield back("FA")
    server += 1
    yield out("A")


def lookup(port: int, name: str, address: str, identifier: int) -> Iterator[Step]:
    """A DNS query over UDP and its answer."""
    question = DNSQR(qname=name)
    yield True, UDP(sport=port, dport=53) / DNS(id=identifier, rd=1, qd=question)
    record = DNSRR(rrname=name, rdata=address, ttl=300)
    yield False, UDP(sport=53, dport=port) / DNS(id=identifier, qr=1, rd=1, ra=1, qd=question, an=record)


def ping(identifier: int, count: int) -> Iterator[Step]:
    """Echo requests and replies with 56 bytes of data."""
    for sequence in range(1, count + 1):
        for kind in (8, 0):
            yield kind == 8, ICMP(type=kind, id=identifier, seq=sequence) / Raw(bytes(range(56)))


def packets() -> list[pcap.Packet]:
    """Every packet, in the order of time."""
    first, second = Host("10.0.0.21"), Host("10.0.0.22")
    shop, api, resolver = "198.51.100.80", "198.51.100.43", "198.51.100.53"
    arp = Ether(src=first.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=first.address, pdst="10.0.0.1", hwsrc=first.mac)
    conversations = [
        iter([pcap.Packet(START_NS, bytes(arp))]),
        first.conversation(resolver, lookup(40001, "shop.example.com", shop, 101), 5),
        first.conversation(shop, web(47176, request=120, answer=24_000), 30),
        first.conversation(shop, web(47178, request=98, answer=5_321), 41),
        second.conversation(resolver, lookup(40002, "api.example.com", api, 102), 60),
        second.conversation(api, web(47176, request=640, answer=900, server_port=443), 90),
        first.conversation(shop, ping(7, 4), 200),
        second.conversation(shop, ping(7, 3), 230),
    ]
    return sorted((packet for conversation in conversations for packet in conversation), key=lambda p: p.time_ns)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    print(f"{target}: {pcap.write(target, packets())} packets")
