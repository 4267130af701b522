"""The machine's memory, NUMA nodes and processors, and checks of arguments against them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from natcore import choices
from natcore.errors import ConfigurationError
from natcore.internal.redaction import show
from natcore.internal.validation import as_integer, check_choice

HUGE_PAGES: tuple[choices.HugePages, ...] = get_args(choices.HugePages)  # HugePages of natcore/workers/table_memory.pxd
ROOT = "/"
Root = str | os.PathLike[str]  # the folder that stands for /, in tests; pathlib would be slow to import


def memory_arguments(huge_pages: str, numa_node: int | None, root: Root = ROOT) -> dict[str, Any]:
    """Return Core's arguments about memory. ConfigurationError: another word, or a missing node."""
    huge_pages = check_choice("huge_pages", huge_pages, HUGE_PAGES)
    limit, name = memory(root)
    if numa_node is not None:
        nodes = _numbers(os.path.join(root, "sys/devices/system/node/online"))
        given, numa_node = numa_node, as_integer(numa_node)
        if numa_node is None or numa_node not in nodes:
            there = ", ".join(str(node) for node in nodes) or "none"
            raise ConfigurationError(f"numa_node must be None or a node of this machine ({there}), got {show(given)}")
        total = _meminfo(os.path.join(root, f"sys/devices/system/node/node{numa_node}/meminfo"))
        if total is not None and total < limit:
            limit, name = total, f"all memory of NUMA node {numa_node} (its MemTotal)"
    return {
        "huge_pages": HUGE_PAGES.index(huge_pages),
        "numa_node": -1 if numa_node is None else numa_node,
        "memory_bytes": limit,
        "memory_name": name,
    }


def memory(root: Root = ROOT) -> tuple[int, str]:
    """Return (most bytes of this process, the reason): the machine's memory, or a control group's limit."""
    total = _meminfo(os.path.join(root, "proc/meminfo"))
    best = (total if total is not None else (1 << 64) - 1, "all memory of this machine (MemTotal in /proc/meminfo)")
    for path in _limits(root):
        try:
            limit = int(_text(path))
        except (OSError, ValueError):  # missing, unreadable, or "max"
            continue
        if limit < best[0]:
            best = limit, f"the limit of this process's control group (/{os.path.relpath(path, root)})"
    return best


def _limits(root: Root) -> Iterator[str]:
    """Yield the limit files of this process's control group and of its parents; versions 2 and 1."""
    try:
        lines = _text(os.path.join(root, "proc/self/cgroup")).splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, name = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in group.split("/") if part]
        for depth in range(len(parts), -1, -1):
            yield os.path.join(root, top, *parts[:depth], name)


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _meminfo(path: str) -> int | None:
    """Return MemTotal of a machine or a node, in bytes; None where the file has none."""
    try:
        lines = _text(path).splitlines()
    except OSError:
        return None
    return next((int(line.split()[-2]) * 1024 for line in lines if "MemTotal:" in line), None)


def _numbers(path: str) -> list[int]:
    """Return the numbers of a list such as "0-1,4"; none where the file is missing."""
    try:
        parts = [part.split("-") for part in _text(path).strip().split(",") if part]
    except OSError:
        return []
    return [number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)]


def check_cpus(cpus: Sequence[int] | None, threads: bool, workers: int = 1) -> tuple[int, ...]:
    """Return a processor for each worker's thread; (): the system chooses. ConfigurationError names the usable ones."""
    if cpus is None:
        return ()
    if not threads:
        raise ConfigurationError(
            f"cpus must be None with threads=False, got {show(cpus)}; pin the thread that calls step() yourself"
        )
    allowed = sorted(os.sched_getaffinity(0))
    chosen = [as_integer(cpu) for cpu in cpus] if isinstance(cpus, list | tuple | range) else []
    if len(chosen) != workers or not all(cpu in allowed for cpu in chosen):
        text = ", ".join(str(cpu) for cpu in allowed)
        raise ConfigurationError(f"cpus must be one for each worker ({workers}), out of {text}, got {show(cpus)}")
    return tuple(cpu for cpu in chosen if cpu is not None)
