"""What `natcore run` gives up, and that it goes on to work without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from natcore.demo.namespaces import Network
from natcore.service import privileges
from support.netns import CLIENT, GATEWAY_INSIDE, SERVER, needs_root, ping
from support.service import file as file  # a fixture
from support.service import run

KEPT = {"af_packet": 1 << 12 | 1 << 13, "af_xdp": 1 << 12 | 1 << 13 | 1 << 14 | 1 << 38 | 1 << 39}


@needs_root
def test_run_keeps_what_opening_an_interface_again_takes_and_nothing_else(
    network: Network, file: Path, each_driver: str
) -> None:
    file.write_text(file.read_text() + f'driver = "{each_driver}"\n')
    process = run(network, file, "--json", stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["happened"] == "started"
    tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
    assert len(tasks) >= 6
    for task in tasks:
        status = dict(line.split(":\t") for line in (task / "status").read_text().splitlines() if ":\t" in line)
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert int(status[name], 16) == KEPT[each_driver], (name, (task / "comm").read_text())
        assert (int(status["CapInh"], 16), int(status["CapAmb"], 16)) == (0, 0)
        assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    network.remove("gw", "lan0")
    network.pair("in", "eth0", "gw", "lan0")
    network.up("in", "eth0", f"{CLIENT}/24")
    network.up("gw", "lan0", f"{GATEWAY_INSIDE}/24")
    network.route("in", "default", via=GATEWAY_INSIDE)
    assert ping(network, "in", SERVER)
    process.terminate()
    assert json.loads(process.stdout.read().splitlines()[-1])["logs"]["audit"]["lost"] == 0
    assert process.wait(60) == 0


CONFINED = """
import ctypes, errno, os, sys, tempfile, threading
from pathlib import Path
from natcore.service import privileges
assert privileges.confine(sys.argv[1]) == []
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, *arguments):
    ctypes.set_errno(0)
    return getattr(libc, call)(*arguments) == -1 and ctypes.get_errno() == errno.EPERM
found = [refused("ptrace", 0, 0, 0, 0), refused("mount", b"none", b"/mnt", b"tmpfs", 0, None), refused("unshare", 0),
         refused("setns", 0, 0), refused("swapoff", b"/none"), refused("syscall", 425, 1, None)]
import duckdb, numpy, pyarrow, pyarrow.parquet
threads = [threading.Thread(target=lambda: found.append(refused("unshare", 0))) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "x.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"x": list(range(100_000))}), path)
    assert duckdb.sql(f"SELECT sum(x) FROM '{path}'").fetchall() == [(4999950000,)]
print(found)
"""


@pytest.mark.parametrize("driver", ["af_packet", "af_xdp"])
def test_unused_system_calls_are_refused_and_libraries_work(driver: str) -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED, driver], capture_output=True, text=True)
    assert done.stdout == f"{[True] * 9}\n", done.stderr


def test_every_machines_table_has_the_same_calls() -> None:
    known = [set(table) for table in privileges._REFUSED.values()]
    assert known[0] - known[1] == {"iopl", "ioperm"} and known[1] <= known[0]
    assert os.uname().machine in privileges._MACHINES
