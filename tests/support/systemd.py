"""A real systemd as the first process of namespaces of its own, with the units of a test alone.

/run, /var, /srv and /root are empty there; /srv has what the test gives. The interpreter that runs the tests is at its place
again, also where that is in /root. The network has two links, lan0 and wan0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

SYSTEMD = Path("/lib/systemd/systemd")
PROGRAMS = ("unshare", "nsenter", "ip", "systemctl", "mount")
TARGETS = ("default", "basic", "sysinit", "shutdown", "umount", "final", "network-online", "time-sync", "exit")
_TARGET = "[Unit]\nDescription={}\nDefaultDependencies=no\nAllowIsolate=yes\n"
_START_SECONDS = 60.0

needs_systemd = pytest.mark.skipif(
    os.geteuid() != 0 or not SYSTEMD.exists() or not all(map(shutil.which, PROGRAMS)),
    reason="a systemd of its own needs root, systemd, util-linux and iproute2",
)

# As the first process: what others have is not touched, since all mounts are private.
_BEGIN = """
set -e
given=$1
mount --make-rprivate /
mkdir -p "$given/kept"
for folder in {kept}; do mkdir -p "$given/kept$folder" && mount --rbind "$folder" "$given/kept$folder"; done
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
for folder in /run /var /srv /root; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
mkdir -p /run/systemd /var/lib /var/log /var/tmp /var/cache
cp -r "$given/srv/." /srv
for folder in {kept}; do mkdir -p "$folder" && mount --rbind "$given/kept$folder" "$folder"; done
for file in passwd group; do mount --bind "$given/etc/$file" "/etc/$file"; done
ip link set lo up
ip link add lan0 type veth peer name host0
ip link add wan0 type veth peer name peer0
for link in lan0 host0 wan0 peer0; do ip link set "$link" up; done
ip address add 10.0.0.1/24 dev lan0
ip address add 198.18.0.1/24 dev wan0
export container=natcore-test SYSTEMD_UNIT_PATH=/srv/units SYSTEMD_LOG_TARGET=console
exec {systemd} --system --unit=default.target
"""


class Systemd:
    """A running one. pid: its first process, in this namespace."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program beside it."""
        done = subprocess.run(
            ["nsenter", "--all", f"--target={self.pid}", *command], capture_output=True, text=True, timeout=120
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit's."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()


@contextmanager
def systemd(folder: Path, units: Mapping[str, str], files: Mapping[str, str], user: str) -> Iterator[Systemd]:
    """Boot one. units: by name; files: below /srv. user: a user and group that are known there. Skips where none comes up."""
    given = folder / "given"
    for name, text in files.items():
        path = given / "srv" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (given / "srv/units").mkdir(parents=True, exist_ok=True)
    for target in TARGETS:
        (given / f"srv/units/{target}.target").write_text(_TARGET.format(target))
    for name, text in units.items():
        path = given / "srv/units" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (given / "etc").mkdir(parents=True)
    (given / "etc/passwd").write_text(Path("/etc/passwd").read_text() + f"{user}:x:977:977::/:/usr/sbin/nologin\n")
    (given / "etc/group").write_text(Path("/etc/group").read_text() + f"{user}:x:977:\n")
    kept = [prefix for prefix in {sys.prefix, sys.base_prefix} if Path(prefix).is_relative_to("/root")]
    script = _BEGIN.format(kept=" ".join(kept), systemd=SYSTEMD)
    with (folder / "systemd.log").open("w") as log:
        outer = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--cgroup", "--net", "--uts", "--ipc",
             "sh", "-c", script, "sh", str(given)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield _started(outer, folder / "systemd.log")
    finally:
        outer.kill()
        outer.wait(60)


def _started(outer: subprocess.Popen[bytes], log: Path) -> Systemd:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and outer.poll() is None:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        if children:
            made = Systemd(int(children[0]))
            asked = made.run("systemctl", "is-system-running", check=False).stdout.strip()
            if asked in ("running", "degraded"):
                return made
        time.sleep(0.1)
    pytest.skip(f"no systemd comes up in namespaces here: {log.read_text()[-300:]}")
