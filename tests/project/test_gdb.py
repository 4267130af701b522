"""The printers for gdb know the core's structs as they are: gdb shows one of each in words."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("Session", "Mapping", "Subscriber", "SnatRule", "DnatRule", "NoNatRule", "Worker")

# One of each struct, in a program that gdb only reads. TCP 10.0.0.5:40000 as 203.0.113.1:44110 to 198.51.100.7:443.
PROGRAM = """
#include "SOURCE"
Session session = {.ip = {0x0500000a, 0x076433c6, 0x017100cb}, .port = {0x409c, 0xbb01, 0x4eac}, .protocol = 6, .state = 1,
                   .last_seen = 1500, .packets = {3, 2}, .bytes = {180, 96}, .flags = 9};
Mapping mapping = {.inside_ip = 0x0500000a, .inside_port = 0x409c, .outside_ip = 0x017100cb, .outside_port = 0x4eac,
                   .protocol = 17, .sessions = 2, .entry = 1};
Subscriber subscriber = {.ip = 0x0500000a, .mappings = 4, .sessions = 5};
SnatRule snat = {.pool = {.entry = 1, .first = 0x0a000000, .size = 8}};
struct { unsigned ip, before; } targets[2] = {{0x0500000a, 0}, {0x0600000a, 1}};
DnatRule dnat = {.entry = 2, .outside_ip = 0x017100cb, .outside_port = 8443, .inside_port = 443, .target_count = 2,
                 .targets = (const void *)targets};
NoNatRule plain = {.entry = 3, .source = 0x0a000000, .source_mask = 0xffff0000, .destination = 0x0a000000,
                   .destination_mask = 0xff000000};
Worker worker = {.number = 1, .now_ns = 2500000000ull, .sessions = {.slots = {.live = 7}},
                 .mappings = {.mapping_slots = {.live = 6}}};
"""
SHOWN = {
    "session": "TCP 10.0.0.5:40000 as 203.0.113.1:44110 to 198.51.100.7:443, state 1, seen at 1500 ms, "
    "out 3/180 in 2/96 in this window; opened outside, hairpinned",
    "mapping": "UDP 10.0.0.5:40000 as 203.0.113.1:44110, 2 sessions, entry 1",
    "subscriber": "10.0.0.5: 4 mappings, 5 sessions",
    "snat": "entry 1: from 10.0.0.0 on, 8 outside addresses",
    "dnat": "entry 2: 203.0.113.1:8443 to 10.0.0.5, 10.0.0.6:443",
    "plain": "entry 3: 10.0.0.0/16 to 10.0.0.0/8, untranslated",
    "worker": "worker 1: 7 sessions, 6 mappings, now 2.500 s, free",
}


def transpiled() -> Path | None:
    """The C of the module that knows all structs, as the build left it."""
    found = sorted(ROOT.glob("build/**/nat_admission.c"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def test_gdb_shows_structs_in_words(tmp_path: Path) -> None:
    source = transpiled()
    if not (shutil.which("gdb") and shutil.which("cc") and source):
        pytest.skip("needs gdb, a C compiler and the build's C files")
    text, program = source.read_text(), PROGRAM.replace("SOURCE", str(source))
    for name in NAMES:
        (full,) = set(re.findall(rf"^struct (__pyx_t_7natcore_\w+_{name}) {{", text, re.M))
        program = re.sub(rf"^{name} ", f"struct {full} ", program, flags=re.M)
    (tmp_path / "structs.c").write_text(program)
    include = sysconfig.get_path("include")
    build = ["cc", "-g", "-O0", "-w", "-no-pie", "-nostdlib", f"-I{include}", f"-I{ROOT}", "structs.c", "-o", "structs"]
    build += ["-Wl,--unresolved-symbols=ignore-all", "-Wl,-e,0"]  # it never runs
    subprocess.run(build, cwd=tmp_path, check=True)
    command = ["gdb", "-batch", "-nx", "-x", str(ROOT / ".ci" / "gdb.py"), "structs"]
    for name in SHOWN:
        command += ["-ex", f"print {name}"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = re.findall(r"^\$\d+ = (.*)$", run.stdout, re.M)
    assert shown == list(SHOWN.values()), run.stderr
