"""SyslogSink: the messages' form and limits, and what a real rsyslogd makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import ConfigurationError
from natcore.dtypes import CREATE, END, WINDOW
from natcore.log.encode_syslog import encode_frames
from natcore.sinks import Batch, SyslogSink
from support.log_fakes import make_records
from support.netns import until
from support.receivers_more import parse_frames, read_message

RSYSLOGD = shutil.which("rsyslogd", path="/usr/sbin:/usr/bin:/sbin")


def batch_of(count, instance="ngw-1", vpc_id="vpc-1"):
    records = make_records(count)
    records["kind"] = np.resize([CREATE, WINDOW, END], count)
    return Batch(instance, vpc_id, "run1", records)


def test_a_message_is_what_the_rfc_says():
    data = SyslogSink("h", hostname="gw.example", facility=16, severity=5).encode(batch_of(2))
    length, rest = data.split(b" ", 1)
    first = rest[: int(length)].decode()
    assert first == (
        '<133>1 2023-11-14T22:23:20.000000Z gw.example natcore run1 create [natcore@32473 instance="ngw-1" '
        'vpc_id="vpc-1" protocol="17" pri_ip="10.0.0.0" pri_port="1024" pub_ip="198.51.100.0" pub_port="53" '
        'nat_ip="203.0.113.1" nat_port="2048" bytes_from_pub="200" pkts_from_pub="2" bytes_from_vpc="100" '
        'pkts_from_vpc="1" start_time="1700000000000000" end_time="1700000600000000" session="0" number="0" flags="0"]'
    )
    assert rest[int(length) :].startswith(str(len(first) + 20).encode()) or b'eip="203.0.113.99"' in rest


@given(st.integers(0, 253_402_300_799_999_999))
def test_timestamps_are_the_calendars(microseconds):
    batch = batch_of(1)
    batch.records.base["end_time"] = microseconds
    text = SyslogSink("h", hostname="h").encode(batch).split(b" ")[2].decode()
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(microsecond=microseconds % 1_000_000)
    assert text == moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from(['"', "\\", "]", '\\"', "]]"]))
def test_what_must_be_escaped_is(text, hard):
    batch = batch_of(1, instance=text + hard, vpc_id=hard + text)
    (row,) = parse_frames(bytearray(SyslogSink("h", hostname="h").encode(batch)))
    assert (row["instance"], row["vpc_id"]) == (text + hard, hard + text)


def test_a_kind_without_a_word_still_is_a_message():
    batch = batch_of(3)
    batch.records.base["kind"] = [13, 200, WINDOW]
    assert [row["kind"] for row in parse_frames(bytearray(SyslogSink("h", hostname="h").encode(batch)))] == [
        "-",
        "-",
        "window",
    ]


def test_the_encoder_refuses_other_shapes():
    records = make_records(1).view("u1")
    with pytest.raises(ValueError, match="middles must be 14"):
        encode_frames(records, b"", [b""], [b""] * 17)
    with pytest.raises(ValueError, match="names 17"):
        encode_frames(records, b"", [b""] * 14, [b"n" * 33] * 17)
    with pytest.raises(ValueError, match="whole records"):
        encode_frames(records[:95], b"", [b""] * 14, [b""] * 17)


def test_bad_arguments_are_refused():
    for arguments, more in (
        (("",), {}), (("h", 0), {}), (("h",), {"facility": 24}), (("h",), {"severity": 8}), (("h",), {"timeout": 0}),
        (("h",), {"hostname": "two words"}), (("h",), {"app_name": "x" * 49}), (("h",), {"structured_data": 'a"b'}),
        (("h",), {"structured_data": ""}),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=" must "):
            SyslogSink(*arguments, **more)


CONFIGURATION = """
module(load="imtcp")
input(type="imtcp" port="0" listenPortFileName="{port}" address="127.0.0.1")
template(name="whole" type="string" string="{whole}\\n")
action(type="omfile" file="{file}" template="whole")
"""
WHOLE = "<%pri%>1 %timestamp:::date-utc,date-rfc3339% %hostname% %app-name% %procid% %msgid% %structured-data%"


@pytest.mark.skipif(RSYSLOGD is None, reason="needs rsyslogd (Debian: rsyslog)")
def test_a_real_rsyslogd_keeps_every_row(tmp_path):
    file, configuration, pid, port = (tmp_path / name for name in ("kept", "rsyslog.conf", "pid", "port"))
    configuration.write_text(CONFIGURATION.format(port=port, file=file, whole=WHOLE))
    server = subprocess.Popen([RSYSLOGD, "-n", "-f", str(configuration), "-i", str(pid)])
    try:
        until(lambda: port.exists() and port.read_text())
        sink = SyslogSink("127.0.0.1", int(port.read_text()), hostname="here")
        batch = batch_of(5000, instance='ngw "1"')
        sink.open()
        sink.deliver(batch)
        sink.close()
        until(lambda: file.exists() and file.read_bytes().count(b"\n") >= 5000)
    finally:
        server.terminate()
        server.wait(60)
    rows = [read_message(re.sub(r"(\.\d{6})\+00:00", r"\1Z", line)) for line in file.read_text().splitlines()]
    for row, expected in zip(rows, batch.rows(local=True), strict=True):
        assert row.pop("header")[0::2] == ("110", "here")
        assert row == expected
