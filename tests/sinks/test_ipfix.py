"""IpfixSink: messages and templates by a strict decoder, over UDP and TCP, and by a real nfcapd and nfdump."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from natcore import ConfigurationError, DeliveryError
from natcore.capture import pcap
from natcore.dtypes import BLOCK_ALLOCATED, BLOCK_RELEASED, CREATE, END, EVENT, EVENT_COVER, REFUSAL, WINDOW
from natcore.events import LIMITS, reasons
from natcore.log.encode_ipfix import encode_messages
from natcore.sinks import Batch, IpfixSink
from natcore.sinks.base import row_tails
from natcore.sinks.ipfix import (
    _DETAILS,
    _NAT_EVENTS,
    BLOCK,
    BLOCK_TEMPLATE,
    EXHAUSTED,
    EXHAUSTED_TEMPLATE,
    NAT_EVENTS,
    QUOTA,
    QUOTA_TEMPLATE,
    THRESHOLD,
    THRESHOLD_TEMPLATE,
    _template,
    _user_name,
)
from natcore.testing import craft
from support.ipfix_decoder import Decoder, expected_of
from support.log_fakes import FakeClock, make_records
from support.receivers import Ipfix


def code(reason, limit):
    """`flags` of a row of a refusal or an event."""
    return next(number for number, name in reasons().items() if name == reason) | LIMITS.index(limit) << 8


CODES = {
    REFUSAL: [code(*words) for words, (event, _) in NAT_EVENTS.items() if event != 18],
    EVENT: [code(*words) for words, (event, _) in NAT_EVENTS.items() if event == 18],
}


def encode(records, sequence, domain, export_time, largest):
    return encode_messages(records, sequence, domain, export_time, largest, _NAT_EVENTS, _DETAILS)


def batch_of(count, first=0, kinds=(CREATE, WINDOW, END)):
    records = make_records(count, first)
    records["kind"] = np.resize(kinds, count)
    records["flags"] = np.arange(count) % 2
    for kind in (REFUSAL, EVENT):
        rows = np.flatnonzero(records["kind"] == kind)
        records["flags"][rows] = np.resize(CODES[kind], len(rows))
    return Batch("ngw-1", "vpc-1", "run1", records)


@pytest.fixture
def collector():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(60)
        yield receiver


def read_rows(collector, decoder, count):
    rows = []
    while len(rows) < count:
        rows += decoder.decode(collector.recv(65_536))
    return rows


@pytest.mark.parametrize("largest", [128, 300, 1400, 65_535])
@pytest.mark.parametrize(
    "kinds",
    [
        (WINDOW,),
        (CREATE, END),
        (CREATE, WINDOW, END),
        (WINDOW, WINDOW, END),
        (BLOCK_ALLOCATED, WINDOW, BLOCK_RELEASED),
        (REFUSAL, EVENT, WINDOW, REFUSAL),
    ],
)
def test_messages_hold_the_rows_in_order_and_no_more_than_fits(largest, kinds):
    batch = batch_of(2000, kinds=kinds)
    data, ends, count = encode(batch.records.view("u1"), 2**32 - 5, 9, 1_700_000_000, largest)
    assert count == 2000 and ends[-1] == len(data) and ends == sorted(set(ends))
    lengths = np.diff([0, *ends])
    assert lengths.max() <= largest
    if len(lengths) > 1:
        assert lengths[:-1].min() > largest - 110  # a message is closed only when the next record does not fit
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        assert int.from_bytes(data[start + 2 : start + 4]) == end - start


def test_the_sequence_number_wraps():
    records = make_records(10).view("u1")
    data, ends, _ = encode(records, 2**32 - 1, 1, 0, 128)
    starts = [0, *ends[:-1]]
    assert [int.from_bytes(data[at + 8 : at + 12]) for at in starts] == [2**32 - 1, *range(9)]


def test_rows_of_another_kind_have_no_place():
    records = make_records(4)
    records["kind"] = [3, WINDOW, 7, END]
    _, ends, count = encode(records.view("u1"), 0, 1, 0, 1400)
    assert count == 2 and len(ends) == 1
    assert encode(records[:1].copy().view("u1"), 0, 1, 0, 1400) == (b"", [], 0)


def test_a_port_block_s_record_is_as_rfc_8158_has_it():
    """Byte by byte: the template's elements by IANA's registry, and an allocation of ports 1024 to 1087."""
    record = make_records(1)
    record["kind"], record["session"] = BLOCK_ALLOCATED, 7
    record["pri_ip"], record["nat_ip"], record["nat_port"], record["pub_port"] = 0x0A000005, 0xCB007101, 1024, 1087
    record["start_time"] = record["end_time"] = 1_700_000_000_123_456
    data, _, count = encode(record.view("u1"), 0, 1, 0, 1400)
    moment = (1_700_000_000_123).to_bytes(8).hex()
    assert count == 1 and data[16:].hex() == (
        "0102" "0031"  # set 258, 49 bytes
        + moment * 3 + "0000000000000007" "0a000005" "cb007101" "0400" "043f" "10"
    )  # fmt: skip
    assert _template(BLOCK_TEMPLATE, BLOCK).hex() == (
        "0102" "0009"
        "01430008"  # 323 observationTimeMilliseconds
        "00980008" "00990008" "00940008"  # 152 and 153 flowStart and flowEndMilliseconds, 148 flowId
        "00080004" "00e10004"  # 8 sourceIPv4Address, 225 postNATSourceIPv4Address
        "01690002" "016a0002"  # 361 portRangeStart, 362 portRangeEnd
        "00e60001"  # 230 natEvent: 16 allocated, 17 de-allocated
    )  # fmt: skip
    record["kind"] = BLOCK_RELEASED
    assert encode(record.view("u1"), 0, 1, 0, 1400)[0][-1] == 17


def test_records_of_refusals_and_thresholds_are_as_rfc_8158_has_them():
    """Byte by byte: the templates' elements and the events' numbers by IANA's registry."""
    records = make_records(3)
    records["kind"], records["session"] = [REFUSAL, REFUSAL, EVENT], 7
    records["flags"] = [
        code("ports-exhausted", "pool"),
        code("session-limit", "max_subscribers"),
        code("ports-threshold", "pool"),
    ]
    records["pri_ip"], records["nat_ip"], records["pub_ip"], records["pub_port"] = (
        0x0A000005,
        0xCB007101,
        0xC6336407,
        53,
    )
    records["protocol"] = 17
    records["start_time"] = records["end_time"] = 1_700_000_000_123_456
    data, _, count = encode(records.view("u1"), 0, 1, 0, 1400)
    moment = (1_700_000_000_123).to_bytes(8).hex()
    refused = moment * 3 + "00000000000000070a000005c6336407003511"
    assert count == 3 and data[16:].hex() == (
        "0103" "0030" + refused + "0c"  # set 259, 48 bytes: natEvent 12, NAT ports exhausted
        + "0104" "0034" + refused + "0d" "00000004"  # 13, quota exceeded: 4, maximum active hosts or subscribers
        + "0105" "0026" + moment * 3 + "cb007101" "11" "12" "00000003"  # 18, threshold reached: 3, address and port mapping
    )  # fmt: skip
    common = "0143000800980008009900080002000800080004000c0004000b00020004000100e60001"
    assert _template(EXHAUSTED_TEMPLATE, EXHAUSTED).hex() == "01030009" + common
    assert _template(QUOTA_TEMPLATE, QUOTA).hex() == "0104000a" + common + "01d20004"  # 466 natQuotaExceededEvent
    assert _template(THRESHOLD_TEMPLATE, THRESHOLD).hex() == (
        "0105" "0007" "01430008" "00980008" "00990008" "00e10004" "00040001" "00e60001" "01d30004"  # 467 natThresholdEvent
    )  # fmt: skip


def test_what_the_registry_has_no_number_for_is_not_sent():
    records = make_records(4)
    records["kind"] = [REFUSAL, EVENT, EVENT_COVER, REFUSAL]
    records["flags"] = [
        code("rate-limit", "new_sessions_per_second"),
        code("sessions-threshold", "max_sessions"),
        1,
        0xFFFF,
    ]
    assert encode(records.view("u1"), 0, 1, 0, 1400) == (b"", [], 0)
    with pytest.raises(ValueError, match="must be 4096 bytes"):
        encode_messages(records.view("u1"), 0, 1, 0, 1400, b"", b"")


TEXTS = ("account 4711", None, 'Büro 3; "b" €', None, "x" * 300, "ü" * 200, "")


@pytest.mark.parametrize("kinds", [(CREATE, WINDOW, END), (BLOCK_ALLOCATED, REFUSAL, EVENT, WINDOW)])
def test_labels_are_user_names_of_the_records_with_an_inside_address(collector, kinds):
    batch = batch_of(300, kinds=kinds)
    labels = tuple(TEXTS[number % len(TEXTS)] for number in range(300))
    sink = IpfixSink("127.0.0.1", collector.getsockname()[1], transport="udp", label=True)
    sink.open()
    sink.deliver(dataclasses.replace(batch, labels=labels))
    sink.deliver(batch_of(3, 300))  # of a log without labels
    sink.close()
    rows = read_rows(collector, Decoder(), 303)
    for row, label, wanted in zip(rows[:300], labels, batch.rows(local=True), strict=True):
        if row.get("event") != 18:  # a threshold
            told = row.pop("user_name")
            assert (label or "").startswith(told) and len(told.encode()) == min(len((label or "").encode()), 254)
        assert row == expected_of(wanted)
    assert [row["user_name"] for row in rows[300:]] == ["", "", ""]


def test_a_record_with_its_label_fits_into_a_message():
    batch = batch_of(200, kinds=(WINDOW,))
    tails = row_tails(tuple("x" * (number % 60) for number in range(200)), _user_name)
    _, ends, count = encode_messages(batch.records.view("u1"), 0, 1, 0, 200, _NAT_EVENTS, _DETAILS, **tails)
    assert count == 200 and max(np.diff([0, *ends])) <= 200
    with pytest.raises(ValueError, match="largest must hold the longest record, 142 bytes, got 160"):
        encode_messages(batch.records.view("u1"), 0, 1, 0, 160, _NAT_EVENTS, _DETAILS, **tails)


@pytest.mark.parametrize("largest", [0, 127, 65_536])
def test_the_encoder_refuses_what_it_cannot_do(largest):
    with pytest.raises(ValueError, match="largest"):
        encode(make_records(1).view("u1"), 0, 1, 0, largest)


def test_udp_sends_templates_first_again_when_due_and_after_a_failure(collector):
    clock = FakeClock()
    sink = IpfixSink("127.0.0.1", collector.getsockname()[1], transport="udp", template_seconds=60, clock=clock,
                     wall=lambda: 1_700_000_000.9)  # fmt: skip
    decoder = Decoder()
    sink.open()
    for number, expected in enumerate([1, 1, 2, 2, 3]):
        batch = batch_of(100, 100 * number, (CREATE, WINDOW, END, BLOCK_ALLOCATED, BLOCK_RELEASED, REFUSAL, EVENT))
        sink.deliver(batch)
        assert read_rows(collector, decoder, 100) == [expected_of(row) for row in batch.rows(local=True)]
        assert decoder.template_messages == expected
        clock.now += 30
    assert set(decoder.export_times) == {1_700_000_000}
    port = collector.getsockname()[1]
    collector.close()
    with pytest.raises(DeliveryError, match="ECONNREFUSED"):
        for _ in range(20):  # the kernel tells of it at the send after
            sink.deliver(batch_of(1))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))
        again.settimeout(60)
        sink.deliver(batch_of(5))
        assert len(read_rows(again, Decoder(), 5)) == 5  # a new transport session: templates first, sequence from 0
    sink.close()


def test_tcp_begins_each_connection_with_the_templates(tmp_path):
    made = Ipfix(tmp_path)
    sink = made.make()
    for number in range(3):
        sink.deliver(batch_of(10, 10 * number))
        assert len(made.rows(10 * number + 10)) == 10 * number + 10
        made.take_away()  # the connection is closed by the peer, which the next delivery sees beforehand
        made.bring_back()
    assert made.receiver.connections == 3
    sink.close()
    made.close()


def test_a_tcp_receiver_that_reads_nothing_is_no_delivery():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sink = IpfixSink("127.0.0.1", server.getsockname()[1], timeout=0.2)
        with pytest.raises(DeliveryError, match="ETIMEDOUT"):
            sink.deliver(batch_of(100_000))
        sink.close()


def test_bad_arguments_are_refused():
    for arguments, more in (
        (("",), {}), (("h", 0), {}), (("h", 65_536), {}), (("h",), {"transport": "sctp"}),
        (("h",), {"observation_domain": -1}), (("h",), {"template_seconds": 0}), (("h",), {"timeout": 0}),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=" must "):
            IpfixSink(*arguments, **more)
    with pytest.raises(DeliveryError) as raised:
        IpfixSink("no.such.host.invalid").open()
    assert raised.value.action == "backoff"


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


class Nfcapd:
    """A real collector on loopback; its files are read by nfdump when it has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        command = ["nfcapd", "-w", str(folder), "-p", str(self.port), "-b", "127.0.0.1", "-t", "60", "-B", "4000000"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if "Startup nfcapd" in line:
                break

    def stop(self) -> str:
        """End it when it has read all that was sent; -> what it said."""
        wait_for(lambda: not self._waiting_bytes())
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=60)
        return "".join(self.said) + rest

    def _waiting_bytes(self) -> int:
        sockets = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
        return sum(int(line[4].split(":")[1], 16) for line in sockets if line[1].endswith(f":{self.port:04X}"))

    def flows(self, *options):
        command = ["nfdump", "-R", str(self.folder), "-o", "json", *options]
        found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TZ": "UTC"})
        return json.loads(found.stdout.replace("No matching flows", ""))


@pytest.mark.parametrize("has_labels", [False, True])
@pytest.mark.skipif(not (shutil.which("nfcapd") and shutil.which("nfdump")), reason="needs nfcapd (Debian: nfdump)")
def test_a_real_nfcapd_reads_flows_and_nat_events(tmp_path, has_labels):
    collector = Nfcapd(tmp_path)
    sink = IpfixSink("127.0.0.1", collector.port, transport="udp", label=has_labels)
    try:
        batch = batch_of(900)
        labels = tuple(f"account {number}" for number in range(900)) if has_labels else None
        sink.open()
        sink.deliver(dataclasses.replace(batch, labels=labels))
        sink.close()
    finally:
        said = collector.stop()
    assert "Flows: 900" in said and "Sequence Errors: 0" in said and "Bad Packets: 0" in said
    flows = collector.flows()
    within = collector.flows("-t", "2023/11/14.22:00:00-2023/11/14.23:00:00")  # what an auditor asks: by time
    assert [flow.get("nat_event_id") for flow in within] == [flow.get("nat_event_id") for flow in flows]
    assert collector.flows("-t", "2023/11/15.22:00:00-2023/11/15.23:00:00") == []
    for flow, row in zip(flows, batch.rows(local=True), strict=True):
        assert (flow["proto"], flow["src4_addr"], flow["src_port"]) == (17, row["pri_ip"], row["pri_port"])
        assert (flow["dst4_addr"], flow["dst_port"]) == (row["pub_ip"], row["pub_port"])
        assert (flow["src4_xlt_ip"], flow["src_xlt_port"]) == (row["nat_ip"], str(row["nat_port"]))
        assert (flow["dst4_xlt_ip"], flow["dst_xlt_port"]) == (row["pub_ip"], str(row["pub_port"]))
        if row["kind"] == "window":
            counts = (flow["in_bytes"], flow["in_packets"], flow["out_bytes"], flow["out_packets"])
            assert counts == tuple(row[f"{n}_from_{s}"] for s in ("vpc", "pub") for n in ("bytes", "pkts"))
            assert flow["first"] == iso(row["start_time"]) and flow["last"] == iso(row["end_time"])
        else:
            names = {"create": ("4", "NAT44 session create"), "end": ("5", "NAT44 session delete")}
            assert (flow["nat_event_id"], flow["nat_event"]) == names[row["kind"]]
            assert flow["t_event"][:19] == iso(row["end_time"])[:19]


@pytest.mark.skipif(not (shutil.which("nfcapd") and shutil.which("nfdump")), reason="needs nfcapd (Debian: nfdump)")
def test_a_real_nfcapd_reads_port_block_events(tmp_path):
    collector = Nfcapd(tmp_path)
    sink = IpfixSink("127.0.0.1", collector.port, transport="udp")
    batch = batch_of(300, kinds=(BLOCK_ALLOCATED, BLOCK_RELEASED))
    batch.records.base["pub_port"] = batch.records["nat_port"] + 511
    try:
        sink.open()
        sink.deliver(batch)
        sink.close()
    finally:
        said = collector.stop()
    assert "Sequence Errors: 0" in said and "Bad Packets: 0" in said
    flows = collector.flows()
    assert len(flows) == 300
    for flow, row in zip(flows, batch.rows(local=True), strict=True):
        assert (flow["src4_addr"], flow["src4_xlt_ip"]) == (row["pri_ip"], row["nat_ip"])
        names = {
            "block-allocated": ("16", "Port block allocation"),
            "block-released": ("17", "Port block de-allocation"),
        }
        assert (flow["nat_event_id"], flow["nat_event"]) == names[row["kind"]]  # its ports nfdump 1.7 does not tell


@pytest.mark.skipif(not (shutil.which("nfcapd") and shutil.which("nfdump")), reason="needs nfcapd (Debian: nfdump)")
def test_a_real_nfcapd_reads_refusals_and_thresholds(tmp_path):
    collector = Nfcapd(tmp_path)
    sink = IpfixSink("127.0.0.1", collector.port, transport="udp")
    batch = batch_of(300, kinds=(REFUSAL, REFUSAL, EVENT))
    try:
        sink.open()
        sink.deliver(batch)
        sink.close()
    finally:
        said = collector.stop()
    assert "Sequence Errors: 0" in said and "Bad Packets: 0" in said
    flows = collector.flows()
    assert len(flows) == 300
    for flow, row in zip(flows, map(expected_of, batch.rows(local=True)), strict=True):
        assert flow["nat_event_id"] == str(row["event"])  # nfdump 1.7 has no word for each, and tells no quota
        if row["event"] != 18:
            assert (flow["src4_addr"], flow["dst4_addr"], flow["dst_port"]) == (
                row["pri_ip"],
                row["pub_ip"],
                row["pub_port"],
            )
            assert flow["in_packets"] == row["pkts_from_vpc"]
        else:
            assert flow["src4_xlt_ip"] == row["nat_ip"]


NFACCTD = shutil.which("nfacctd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PRIMITIVES = {"port_range_start": (361, 2), "port_range_end": (362, 2), "quota": (466, 4), "threshold": (467, 4)}


@pytest.mark.parametrize("has_labels", [False, True])
@pytest.mark.skipif(not NFACCTD, reason="needs nfacctd (Debian: pmacct)")
def test_a_real_nfacctd_reads_every_event_with_its_details(tmp_path, has_labels):
    """pmacct has no words of its own for port ranges, quotas and thresholds: its file of primitives names the elements. It
    passes over a userName, which it prints as empty."""
    port = free_port()
    keys = "src_host, dst_host, src_port, dst_port, proto, nat_event, timestamp_start, timestamp_end, " + ", ".join(
        [f"post_nat_{side}_{what}" for side in ("src", "dst") for what in ("host", "port")] + list(PRIMITIVES)
    )
    (tmp_path / "primitives").write_text(
        "".join(
            f"name={name} field_type={element} len={length} semantics=u_int\n"
            for name, (element, length) in PRIMITIVES.items()
        )
    )
    (tmp_path / "conf").write_text(
        f"daemonize: false\nnfacctd_ip: 127.0.0.1\nnfacctd_port: {port}\nplugins: print\naggregate: {keys}\n"
        f"aggregate_primitives: {tmp_path}/primitives\nprint_output: json\nprint_output_file: {tmp_path}/rows\n"
        "print_output_file_append: true\nprint_refresh_time: 1\ntimestamps_since_epoch: true\n"
    )
    kinds = (WINDOW, CREATE, END, BLOCK_ALLOCATED, BLOCK_RELEASED, EVENT, *(REFUSAL,) * len(CODES[REFUSAL]))
    batch = batch_of(len(kinds) * 4, kinds=kinds)
    batch.records.base["pub_port"] = batch.records["nat_port"] + 511
    texts = tuple(None if number % 3 else f"account {number}" for number in range(len(batch)))
    batch = dataclasses.replace(batch, labels=texts if has_labels else None)
    rows = tmp_path / "rows"
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([NFACCTD, "-f", str(tmp_path / "conf")], stdout=said, stderr=said)
    try:
        # What comes before its plugin runs waits for long: the plugin says so when it has looked at its cache.
        ready = ("waiting for NetFlow/IPFIX data", "Purging cache - END")
        wait_for(lambda: all(words in (tmp_path / "said").read_text() for words in ready))
        sink = IpfixSink("127.0.0.1", port, transport="udp", label=has_labels)
        sink.open()
        sink.deliver(batch)
        sink.close()
        wait_for(lambda: rows.exists() and rows.read_text().count("\n") >= len(batch))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    told = sorted(map(json.loads, rows.read_text().splitlines()), key=lambda row: row["timestamp_start"])
    assert len(told) == len(batch)
    wanted = map(expected_of, dataclasses.replace(batch, labels=None).rows(local=True))
    for flow, kind, row in zip(told, batch.records["kind"], wanted, strict=True):
        assert flow["nat_event"] == row.get("event", 0)
        assert flow["timestamp_start"] == f"{row['start_ms'] / 1e3:.6f}"
        assert flow["timestamp_end"] == f"{row['end_ms'] / 1e3:.6f}"
        assert (flow["ip_src"], flow["post_nat_ip_src"]) == (row.get("pri_ip", ""), row.get("nat_ip", ""))
        assert (flow["ip_dst"], flow["port_dst"]) == (row.get("pub_ip", ""), row.get("pub_port", 0))
        details = {name: int(flow[name]) for name in PRIMITIVES}
        names = {"port_range_start": "first_port", "port_range_end": "last_port"}
        assert details == {name: row.get(names.get(name, name), 0) for name in PRIMITIVES}
        if kind in (WINDOW, CREATE, END):
            assert (flow["port_src"], flow["post_nat_port_src"]) == (row["pri_port"], row["nat_port"])
        if kind == WINDOW:
            assert (flow["packets"], flow["bytes"]) == (row["pkts_from_vpc"], row["bytes_from_vpc"])


@pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark")
def test_wireshark_names_every_event(collector, tmp_path):
    sink = IpfixSink("127.0.0.1", collector.getsockname()[1], transport="udp")
    batch = batch_of(12, kinds=(WINDOW, CREATE, END, BLOCK_ALLOCATED, BLOCK_RELEASED, EVENT))
    other = batch_of(len(CODES[REFUSAL]), 12, kinds=(REFUSAL,))
    sink.open()
    sink.deliver(batch)
    sink.deliver(other)
    sink.close()
    messages = [collector.recv(65_536) for _ in range(3)]
    frames = [craft.udp(("192.0.2.1", 4739), ("192.0.2.2", 4739), message) for message in messages]
    pcap.write(tmp_path / "ipfix.pcap", [pcap.Packet(0, craft.ether(frame)) for frame in frames])
    command = ["tshark", "-r", str(tmp_path / "ipfix.pcap"), "-d", "udp.port==4739,cflow", "-T", "pdml"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "malformed" not in told.lower() and "No template found" not in told
    shown = re.findall(
        r'name="cflow\.(nat_event|nat_quota_exceeded_event|nat_threshold_event)" showname="([^"]*)"', told
    )
    assert Counter(text for _, text in shown) == {
        "Nat Event: NAT44 session create (4)": 2, "Nat Event: NAT44 session delete (5)": 2,
        "Nat Event: Port block allocation (16)": 2, "Nat Event: Port block de-allocation (17)": 2,
        "Nat Event: Threshold Reached (18)": 2, "NAT Threshold Event: Address and port mapping high threshold event (3)": 2,
        "Nat Event: NAT ports exhausted (12)": 1, "Nat Event: Quota Exceeded (13)": 6,
        "NAT Quota Exceeded Event: Maximum session entries (1)": 1, "NAT Quota Exceeded Event: Maximum BIB entries (2)": 1,
        "NAT Quota Exceeded Event: Maximum active hosts or subscribers (4)": 1,
        "NAT Quota Exceeded Event: Maximum entries per user (3)": 3,
    }  # fmt: skip
    ranges = re.findall(r'showname="Port Range (Start|End): (\d+)"', told)
    blocks = [row for row in batch.rows(local=True) if row["kind"].startswith("block")]
    assert [int(port) for _, port in ranges] == [port for row in blocks for port in (row["nat_port"], row["pub_port"])]


def iso(microseconds):
    moment = datetime.fromtimestamp(microseconds // 1000 / 1000, UTC).replace(tzinfo=None)
    return moment.isoformat(timespec="milliseconds")
