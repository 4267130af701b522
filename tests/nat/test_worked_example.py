"""The worked example of the session log's page: one session row, four flow-log rows."""

from __future__ import annotations

from natcore import Gateway
from natcore.sinks import MemorySink
from natcore.testing import craft
from natcore.testing.oracle.packets import Endpoint
from support.worked_example import EIP, HOST, HOST_PORT, NAT, NAT_PORT, SERVER, SERVER_PORT, Flow, converse
from support.worked_example import gateway as gateway


def endpoint(ip: str, port: int) -> Endpoint:
    return craft.address(ip), port


def test_the_flow_log_has_four_rows(gateway: Gateway) -> None:
    packets, lengths = converse(gateway)
    host, server, nat = endpoint(HOST, HOST_PORT), endpoint(SERVER, SERVER_PORT), endpoint(NAT, NAT_PORT)
    rows: list[Flow] = [
        ("inside", "in", host, server),
        ("outside", "out", nat, server),
        ("outside", "in", server, nat),
        ("inside", "out", server, host),
    ]
    assert packets == dict(zip(rows, (6, 6, 4, 4), strict=True))
    assert lengths[rows[0]] == lengths[rows[1]] and lengths[rows[2]] == lengths[rows[3]]


def test_the_session_log_has_one_row(gateway: Gateway) -> None:
    sink = MemorySink()
    log = gateway.start_session_log(sink)
    _, lengths = converse(gateway)
    gateway.advance(1000)
    assert gateway.stop_session_log(log) == 0
    rows = [row for row in sink.rows(local=True) if row["kind"] == "window"]
    assert len(rows) == 1
    sent = next(v for (interface, way, *_), v in lengths.items() if (interface, way) == ("inside", "in"))
    received = next(v for (interface, way, *_), v in lengths.items() if (interface, way) == ("outside", "in"))
    expected = {
        "instance": "ngw-1",
        "vpc_id": "vpc-1",
        "protocol": 6,
        "pri_ip": HOST,
        "pri_port": HOST_PORT,
        "pub_ip": SERVER,
        "pub_port": SERVER_PORT,
        "nat_ip": NAT,  # bind mode NAT: the EIP's private address
        "nat_port": NAT_PORT,
        "bytes_from_pub": received,
        "pkts_from_pub": 4,
        "bytes_from_vpc": sent,
        "pkts_from_vpc": 6,
        "start_time": 0,
        "end_time": 240_090_000,  # both have finished: the last packet and the transitory time-out
    }
    assert list(rows[0].items())[:15] == list(expected.items())
    assert rows[0]["eip"] == EIP
