"""A strict reader of IPFIX (RFC 7011): what it does not expect is an AssertionError."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

from natcore.events import words_of
from natcore.sinks.ipfix import NAT_EVENTS

NAMES = {
    (152, 0): "start_ms", (153, 0): "end_ms", (148, 0): "session", (1, 0): "bytes_from_vpc", (2, 0): "pkts_from_vpc",
    (1, 29305): "bytes_from_pub", (2, 29305): "pkts_from_pub", (8, 0): "pri_ip", (12, 0): "pub_ip",
    (225, 0): "nat_ip", (226, 0): "post_pub_ip", (7, 0): "pri_port", (11, 0): "pub_port", (227, 0): "nat_port",
    (361, 0): "first_port", (362, 0): "last_port", (466, 0): "quota", (467, 0): "threshold",
    (228, 0): "post_pub_port", (4, 0): "protocol", (239, 0): "direction", (323, 0): "observed_ms", (230, 0): "event",
    (371, 0): "user_name",
}  # fmt: skip


class Decoder:
    """The state of one transport session: its templates, and how many data records there were."""

    def __init__(self, domain: int = 1) -> None:
        self.domain = domain
        self.templates: dict[int, list[tuple[str, int]]] = {}
        self.template_messages = 0
        self.records = 0
        self.export_times: list[int] = []

    def decode(self, message: bytes) -> Iterator[dict[str, Any]]:
        version, length, export_time, sequence, domain = struct.unpack_from(">HHIII", message)
        assert (version, length, domain) == (10, len(message), self.domain)
        assert sequence == self.records, "the sequence number is the data records before"
        self.export_times.append(export_time)
        at = 16
        while at < len(message):
            set_id, set_length = struct.unpack_from(">HH", message, at)
            body = message[at + 4 : at + set_length]
            assert set_length > 4 and at + set_length <= len(message)
            at += set_length
            if set_id == 2:
                self._learn(body)
                self.template_messages += 1
            else:
                yield from self._data(set_id, body)

    def _learn(self, body: bytes) -> None:
        at = 0
        while at < len(body):
            number, count = struct.unpack_from(">HH", body, at)
            assert number >= 256
            at += 4
            fields = []
            for _ in range(count):
                element, length = struct.unpack_from(">HH", body, at)
                at += 4
                enterprise = 0
                if element & 0x8000:
                    (enterprise,) = struct.unpack_from(">I", body, at)
                    at += 4
                fields.append((NAMES[element & 0x7FFF, enterprise], length))
            known = self.templates.setdefault(number, fields)
            assert known == fields, "a template changes only after it was withdrawn"

    def _data(self, set_id: int, body: bytes) -> Iterator[dict[str, Any]]:
        fields, at = self.templates[set_id], 0
        while at < len(body):
            row = {}
            for name, length in fields:
                if length == 65_535:  # of variable length
                    length, at = body[at], at + 1
                    assert length < 255 and at + length <= len(body)
                    row[name] = body[at : at + length].decode()
                else:
                    assert at + length <= len(body)
                    value: Any = int.from_bytes(body[at : at + length])
                    row[name] = socket.inet_ntoa(value.to_bytes(4)) if name.endswith("_ip") else value
                at += length
            self.records += 1
            yield row


def expected_of(row: dict[str, Any]) -> dict[str, Any]:
    """What a local row looks like to a collector."""
    names = ["session", "pri_ip", "pub_ip", "nat_ip", "pri_port", "pub_port", "nat_port", "protocol"]
    seen = {name: row[name] for name in names}
    seen |= {"post_pub_ip": row["pub_ip"], "post_pub_port": row["pub_port"]}
    seen |= {"start_ms": row["start_time"] // 1000, "end_ms": row["end_time"] // 1000}
    if row["kind"] in ("refusal", "event"):
        nat_event, detail = NAT_EVENTS[words_of(row["flags"])]
        named = {name: seen[name] for name in ("start_ms", "end_ms", "protocol")}
        named |= {"observed_ms": row["end_time"] // 1000, "event": nat_event}
        if nat_event == 18:
            return named | {"nat_ip": row["nat_ip"], "threshold": detail}
        named |= {"pkts_from_vpc": row["session"], **{name: row[name] for name in ("pri_ip", "pub_ip", "pub_port")}}
        return named | ({"quota": detail} if nat_event == 13 else {})
    if row["kind"].startswith("block"):
        event = {"block-allocated": 16, "block-released": 17}[row["kind"]]
        named = {name: seen[name] for name in ("session", "pri_ip", "nat_ip", "start_ms", "end_ms")}
        ports = {"first_port": row["nat_port"], "last_port": row["pub_port"]}
        return named | ports | {"observed_ms": row["end_time"] // 1000, "event": event}
    if row["kind"] != "window":
        return seen | {"observed_ms": row["end_time"] // 1000, "event": {"create": 4, "end": 5}[row["kind"]]}
    seen |= {name: row[name] for name in ("bytes_from_vpc", "pkts_from_vpc", "bytes_from_pub", "pkts_from_pub")}
    return seen | {"direction": 2 if row["flags"] & 1 else 1}
