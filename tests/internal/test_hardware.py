"""Memory, huge pages, NUMA nodes and processors: what a machine has, what is refused, and where tables and threads lie."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from natcore import CapacityError, ConfigurationError, Gateway, Side, SnatEntry, Verdict
from natcore.internal import hardware
from natcore.internal.hardware import check_cpus, memory, memory_arguments
from support.frames import HOST, REMOTE, udp
from support.netns import Network, at, gateway, needs_root, network, until

__all__ = ["network"]  # a fixture

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
own_tables = pytest.mark.skipif(SANITIZED, reason="under a sanitizer tables come from its own allocator")
HUGE_BYTES = 2 << 20


def machine_of(root: Path, files: dict[str, str]) -> Path:
    """A machine that has these files."""
    for name, text in {"proc/meminfo": "MemTotal:       1000 kB\nMemFree: 1 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/a/b\n"}
V1 = {"proc/self/cgroup": "3:cpu,cpuacct:/\n4:memory:/a\n0::/\n"}


@pytest.mark.parametrize(
    "files, limit, words",
    [
        ({}, 1_024_000, "MemTotal"),
        ({**V2, "sys/fs/cgroup/a/b/memory.max": "max\n"}, 1_024_000, "MemTotal"),
        ({**V2, "sys/fs/cgroup/a/b/memory.max": "500000\n"}, 500_000, "/sys/fs/cgroup/a/b/memory.max"),
        ({**V2, "sys/fs/cgroup/a/memory.max": "400000\n"}, 400_000, "/sys/fs/cgroup/a/memory.max"),  # of one above it
        ({**V2, "sys/fs/cgroup/memory.max": "300000\n"}, 300_000, "/sys/fs/cgroup/memory.max"),  # a container's root
        ({**V2, "sys/fs/cgroup/a/memory.max": "9000000\n"}, 1_024_000, "MemTotal"),  # more than there is
        ({**V2, "sys/fs/cgroup/c/memory.max": "1\n"}, 1_024_000, "MemTotal"),  # another group's
        ({**V1, "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, 1_024_000, "MemTotal"),
        (
            {**V1, "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "200000\n"},
            200_000,
            "/memory/a/memory.limit_in_bytes",
        ),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, files: dict[str, str], limit: int, words: str) -> None:
    found, name = memory(machine_of(tmp_path, files))
    assert found == limit
    assert words in name


NODES = {
    "sys/devices/system/node/online": "0-1,4\n",
    "sys/devices/system/node/node1/meminfo": "Node 1 MemTotal:      300 kB\nNode 1 MemFree: 1 kB\n",
    "sys/devices/system/node/node4/meminfo": "Node 4 MemTotal:     9000 kB\n",
}


def test_a_node_s_own_memory_is_a_limit_too(tmp_path: Path) -> None:
    root = machine_of(tmp_path, NODES)
    one = memory_arguments("auto", 1, root)
    assert (one["numa_node"], one["memory_bytes"]) == (1, 307_200)
    assert "NUMA node 1" in one["memory_name"]
    assert memory_arguments("never", 4, root)["memory_bytes"] == 1_024_000
    assert memory_arguments("auto", None, root)["numa_node"] == -1


@pytest.mark.parametrize("node", [2, -1, 5, True, "0", 1.5])
def test_a_node_that_is_not_there_is_refused(tmp_path: Path, node: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"numa_node must be None or .*\(0, 1, 4\), got {node!r}$"):
        memory_arguments("auto", node, machine_of(tmp_path, NODES))


def test_a_machine_without_nodes_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"numa_node must .*\(none\), got 0"):
        memory_arguments("auto", 0, machine_of(tmp_path, {}))
    with pytest.raises(ConfigurationError, match=r"numa_node must .*, got 4711"):
        Gateway(max_sessions=10, numa_node=4711)


def test_another_word_for_huge_pages_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"huge_pages must be 'auto', 'never' or 'explicit', got 'always'"):
        Gateway(max_sessions=10, huge_pages="always")


# ---- capacity --------------------------------------------------------------------------------------------------------


def limit_memory(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(hardware, "memory", lambda root: (limit, "what the test says"))


def full_bytes(made: Gateway) -> int:
    return sum(made._core.tables().values())


def test_tables_beyond_the_memory_are_refused_by_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    need = full_bytes(Gateway(max_sessions=200_000))
    limit_memory(monkeypatch, need)
    Gateway(max_sessions=200_000).close()
    limit_memory(monkeypatch, need - 1)
    with pytest.raises(CapacityError) as caught:
        Gateway(max_sessions=200_000)
    for words in ("max_sessions=200000", "max_mappings=200000", f"{need:,} bytes", f"{need - 1:,}", "the test says"):
        assert words in str(caught.value)


@own_tables
def test_the_machine_s_own_memory_is_what_counts() -> None:
    with pytest.raises(
        CapacityError, match=r"max_sessions=1073741824: .* bytes, more than [\d,]+, (all memory|the limit)"
    ):
        Gateway(max_sessions=1 << 30, max_mappings=16, max_subscribers=16)


@pytest.mark.skipif(SANITIZED, reason="under a sanitizer tables are filled at once")
def test_gateways_that_fit_alone_may_be_many() -> None:
    """Idle ones cost next to nothing, so each is looked at by itself."""
    small = full_bytes(Gateway(max_sessions=1_000_000))
    sessions = int(0.8e6 * memory()[0] / small)
    gateways = [Gateway(max_sessions=sessions) for _ in range(8)]
    assert sum(full_bytes(made) for made in gateways) > 2 * memory()[0]


def test_every_table_is_listed_with_its_size() -> None:
    made = Gateway(max_sessions=2_000_000, max_mappings=1_000_000, max_subscribers=500_000, records=100_000)
    tables = made._core.tables()
    for name, size in {
        "sessions": 64 * 2_000_000,
        "sessions, cold lines": 64 * 2_000_000,
        "outbound index": 64 * 400_000,
        "mappings": 48 * 1_000_000,
        "subscribers": 32 * 500_000,
        "journal": 96 * 100_000,
    }.items():
        assert size <= tables[name] < size + 4096, name
    assert "sessions by filter" not in tables
    assert "port maps" not in tables
    made.add(SnatEntry("10.0.0.0/8", pool="203.0.113.1-203.0.113.4"))
    assert made._core.tables()["port maps"] >= 4 * 3 * 65_536 * 8


# ---- where tables lie ------------------------------------------------------------------------------------------------


def flags() -> Counter[str]:
    """VmFlags (proc_pid_smaps(5)) of this process's mappings, of each the KB that have it."""
    found: Counter[str] = Counter()
    size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1])
        elif line.startswith("VmFlags:"):
            found.update(dict.fromkeys(line.split()[1:], size))
    return found


def passes(made: Gateway) -> bool:
    """A packet is translated over an outside address of its own."""
    made.add(SnatEntry("10.0.0.0/8", pool="203.0.113.1"))
    verdict, _ = made.translate_one(udp(HOST, 1000, REMOTE, 53), Side.INSIDE, now=0.0)
    return verdict == Verdict.OUTBOUND


@own_tables
def test_transparent_huge_pages_are_asked_for_unless_never() -> None:
    gc.collect()
    before = flags()
    auto = Gateway(max_sessions=1_000_000)
    with_auto = flags()
    assert with_auto["hg"] - before["hg"] > 200_000  # KB; of the larger tables' 232 MB
    never = Gateway(max_sessions=1_000_000, huge_pages="never")
    with_never = flags()
    assert with_never["hg"] == with_auto["hg"]
    assert with_never["nh"] - with_auto["nh"] > 200_000
    assert passes(auto)
    assert passes(never)


@pytest.fixture
def huge_pages() -> Iterator[int]:
    """So many free huge pages, set aside for the test where there are fewer."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    wanted = 40
    before = setting.read_text() if setting.exists() else ""
    told = [line for line in Path("/proc/meminfo").read_text().splitlines() if "HugePages_Free" in line]
    free = int(told[0].split()[1]) if told else 0
    if free < wanted:
        try:
            setting.write_text(str(int(before or 0) + wanted - free))
        except OSError as error:
            pytest.skip(f"huge pages cannot be set aside here: {error}")
        if int(setting.read_text()) < int(before) + wanted - free:
            setting.write_text(before)
            pytest.skip("no huge pages are to be had here")
    yield wanted
    gc.collect()
    setting.write_text(before)


@own_tables
def test_explicit_huge_pages_are_taken_whole_and_given_back(huge_pages: int) -> None:
    made = Gateway(max_sessions=100_000, records=10_000, huge_pages="explicit")
    assert flags()["ht"] >= 2 * HUGE_BYTES // 1024
    assert passes(made)
    with pytest.raises(CapacityError, match=r"huge_pages='explicit': the tables need [\d,]+ bytes .*HugePages_Free"):
        Gateway(max_sessions=40 * HUGE_BYTES // 64, huge_pages="explicit")
    assert passes(Gateway(max_sessions=100_000))
    del made
    gc.collect()
    assert flags()["ht"] == 0


def bound_bytes() -> int:
    """Return the bytes of this process's memory that may lie on node 0 alone."""
    ends = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = line.split()[0].split("-")
        ends[start.lstrip("0")] = int(end, 16)
    nodes = [line.split()[:2] for line in Path("/proc/self/numa_maps").read_text().splitlines()]
    return sum(ends[start.lstrip("0")] - int(start, 16) for start, policy in nodes if policy == "bind:0")


@own_tables
@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="a kernel without NUMA")
def test_every_table_is_bound_to_the_node() -> None:
    gc.collect()
    before = bound_bytes()
    made = Gateway(max_sessions=1_000_000, numa_node=0)
    assert bound_bytes() - before == full_bytes(made)
    assert passes(made)  # the outside address has tables too
    assert bound_bytes() - before == full_bytes(made)
    del made
    gc.collect()
    assert bound_bytes() == before


# ---- processors ------------------------------------------------------------------------------------------------------


def test_processors_are_checked_against_those_of_the_process() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    assert check_cpus(None, threads=False) == ()
    assert check_cpus([allowed[-1]], threads=True) == (allowed[-1],)
    assert check_cpus(allowed[:1] * 2, threads=True, workers=2) == (allowed[0],) * 2
    for wrong in ([], [allowed[-1] + 1], [-1], allowed[:1] * 2, "0", 0, [0.0], [True]):
        with pytest.raises(ConfigurationError, match=r"cpus must be one for each worker \(1\), out of .*, got "):
            check_cpus(wrong, threads=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="threads=False"):
        check_cpus(allowed[:1], threads=False)


@needs_root
@pytest.mark.parametrize("which", [0, -1])
def test_the_worker_s_thread_is_bound(network: Network, which: int) -> None:
    cpu = sorted(os.sched_getaffinity(0))[which]
    everywhere = os.sched_getaffinity(0)
    with gateway() as made, at(network, "gw"), made.forward("lan0", "wan0", cpus=[cpu]):
        thread = next(each.native_id for each in threading.enumerate() if each.name == "natcore-w0")
        assert thread is not None
        until(lambda: os.sched_getaffinity(thread) == {cpu})
        assert os.sched_getaffinity(0) == everywhere  # no other thread's
