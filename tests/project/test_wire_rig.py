"""The wire's rig: it takes no frame for what it is not, and measures what it says between namespaces of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from natcore.io import bpf
from natcore.plane.bpf_assembler import XDP_DROP, XDP_PASS
from support.frames import udp
from support.netns import needs_root, xdp_missing
from wire.programs import FRAME_BYTES, maker, redirect
from wire.rig import Wrong, check_frame, missing_tools
from wire.run import Row

RUN = Path(__file__).resolve().parents[2] / "benchmarks" / "wire" / "run.py"
XDP_REDIRECT = 4
DISTURBED = 3  # its exit status where other work left nothing to measure
SECTIONS = {
    "established": "64-byte frames, 64 flows",
    "new": "new sessions",
    "workers": "64-byte frames, 65,536 flows, two processors",
    "tcp": "TCP, one stream, GSO on",
    "latency": "ping, light load",
}
FLOW = 65  # the second one of the second host
OWN = (0x0A010001, 1024 + FLOW)
POOLED = 0xC6120105  # 198.18.1.5


def frame(source: int, port: int, *, remote: int = 0xC6120002, remote_port: int = 9, flow: int = FLOW) -> bytearray:
    """What the sender's frame of a flow looks like from an endpoint."""
    ends = [str(IPv4Address(address)) for address in (source, remote)]
    return bytearray(udp(ends[0], port, ends[1], remote_port, load=flow.to_bytes(4, "big") + bytes(14)))


def test_a_frame_as_it_must_be_is_taken() -> None:
    assert check_frame(bytes(frame(*OWN)), translated=False) == (FLOW, OWN)
    assert check_frame(bytes(frame(POOLED, 4711)), translated=True) == (FLOW, (POOLED, 4711))


@pytest.mark.parametrize("at", [24, 26, 34, 40, 43, 59])
def test_a_damaged_frame_is_noticed(at: int) -> None:
    damaged = frame(POOLED, 4711)
    damaged[at] ^= 1
    with pytest.raises(Wrong):
        check_frame(bytes(damaged), translated=True)


@pytest.mark.parametrize(
    "wrong, translated",
    [
        (frame(*OWN), True),  # not translated at all
        (frame(POOLED, 4711), False),  # by a forwarder that does nothing
        (frame(0xC6120201, 4711), True),  # beyond the pool
        (frame(OWN[0], OWN[1] + 1), False),  # another flow's endpoint
        (frame(POOLED, 4711, remote=0xC6120003), True),
        (frame(POOLED, 4711, remote_port=10), True),
    ],
)
def test_another_frame_is_noticed(wrong: bytearray, translated: bool) -> None:
    with pytest.raises(Wrong):
        check_frame(bytes(wrong), translated)


@needs_root
@pytest.mark.skipif(bool(xdp_missing()), reason=xdp_missing())
def test_frames_that_the_kernel_makes_are_those_of_all_flows() -> None:
    flows, macs = 1 << 12, bytes(range(12))
    made = maker(1, macs, 0xC6120002, flows)
    made.begin(rate=1e9)
    seen = set()
    for _ in range(flows):
        action, sent = bpf.test_run(made.program, bytes([0xA5]) * FRAME_BYTES)  # as it was left by another gateway
        assert (action, len(sent), sent[:14]) == (XDP_REDIRECT, FRAME_BYTES, macs + b"\x08\x00")
        flow, _ = check_frame(sent, translated=False)
        seen.add(flow)
    assert len(seen) == flows == made.made()


@needs_root
@pytest.mark.skipif(bool(xdp_missing()), reason=xdp_missing())
def test_frames_are_made_no_faster_than_asked() -> None:
    made = maker(1, bytes(12), 0xC6120002, 64)
    made.begin(rate=0.001)
    actions = [bpf.test_run(made.program, bytes(FRAME_BYTES))[0] for _ in range(3)]
    assert actions == [XDP_REDIRECT, XDP_DROP, XDP_DROP] and made.made() == 1


@needs_root
@pytest.mark.skipif(bool(xdp_missing()), reason=xdp_missing())
def test_the_program_that_only_redirects_changes_link_addresses_alone() -> None:
    macs, sent = bytes(range(12)), bytes(12) + b"\x08\x00" + bytes(range(46))
    program = redirect(1, macs)
    assert bpf.test_run(program, sent) == (XDP_REDIRECT, macs + sent[12:])
    arp = bytes(12) + b"\x08\x06" + bytes(46)
    assert bpf.test_run(program, arp) == (XDP_PASS, arp)


def test_ratios_are_those_of_the_rounds() -> None:
    """Not of the medians: what disturbed a round disturbed both."""
    ours, null = Row("s", "ours", "packets/s", [10, 100, 30]), Row("s", "null", "packets/s", [20, 100, 20], [1, 2, 3])
    assert ours.ratio(null) == ours.against["null"] == 1.0
    ours.cpu_ns = [4.0, 3.0, 8.0]
    assert ours.dearer_ns(null) == 3.0
    ours.aim("one", True)
    assert ours.ok
    ours.aim("two", False)
    ours.aim("three", True)
    assert ours.ok is False and ours.goal == "one; two; three"


@needs_root
@pytest.mark.skipif(bool(missing_tools()), reason=f"missing here: {' '.join(missing_tools())}")
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("section", SECTIONS)
def test_a_short_run_shows_a_section(tmp_path: Path, section: str) -> None:
    if section == "workers" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    file = tmp_path / "figures"
    run = subprocess.run(
        [sys.executable, str(RUN), "--rounds", "1", "--seconds", "0.1", "--tcp-seconds", "1", "--flows", "64",
         "--drivers", "af_packet", "--only", f"^{section}$", "--json", str(file)],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    if run.returncode == DISTURBED:
        pytest.skip(run.stderr)
    assert run.returncode == 0, run.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {row["section"] for row in rows} == {SECTIONS[section]}
    for row in rows:
        assert len(row["figures"]) == 1 and row["figures"][0] > 0, row
        if row["name"].startswith("natcore"):
            assert row["against"]["kernel"] > 0, row
