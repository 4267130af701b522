"""What `natcore run` gives up once it knows the driver: capabilities, the right to gain new privileges, some system calls.

What remains is what opening an interface again takes. Capabilities are a thread's own, so this comes before other threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# linux/capability.h
_NUMBERS = {
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
_SYS_ADMIN, _PERFMON, _BPF = (_NUMBERS[name] for name in ("CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"))
NEEDED = {  # capabilities, by the driver
    "af_packet": ("CAP_NET_RAW", "CAP_NET_ADMIN"),  # packet sockets; nf_tables, neighbours, buffers
    # programs and maps, and in programs offsets that vary (the verifier's rule without CAP_PERFMON); memory for frames
    "af_xdp": ("CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_IPC_LOCK"),
}
_VERSION = 0x20080522  # of capset: 64 capabilities

# linux/prctl.h, linux/seccomp.h
_CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL, _RAISE = 24, 38, 47, 4, 2
_SET_FILTER, _ALL_THREADS = 1, 1
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _MACHINE_AT = 0, 4  # in struct seccomp_data
_X32_BIT = 0x40000000  # x86-64: in the number of each system call of x32

# Unused system calls: other processes, namespaces, mounts, the kernel, its clock and its keys.
_REFUSED = {
    "x86_64": {
        "ptrace": 101, "pivot_root": 155, "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165,
        "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172,
        "ioperm": 173, "init_module": 175, "delete_module": 176, "quotactl": 179, "clock_settime": 227, "kexec_load": 246,
        "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
        "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
        "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
    },
    "aarch64": {
        "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "quotactl": 60, "acct": 89, "unshare": 97,
        "kexec_load": 104, "init_module": 105, "delete_module": 106, "clock_settime": 112, "ptrace": 117, "reboot": 142,
        "sethostname": 161, "setdomainname": 162, "settimeofday": 170, "adjtimex": 171, "add_key": 217,
        "request_key": 218, "keyctl": 219, "swapon": 224, "swapoff": 225, "perf_event_open": 241,
        "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271,
        "finit_module": 273, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
    },
}  # fmt: skip
_REFUSED_EVERYWHERE = {
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}  # AUDIT_ARCH_…, the number of seccomp()


def confine(driver: str) -> list[str]:
    """Drop what a plane with the driver does not need; return what could not be dropped, and why."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = _kept(driver)
    failed = []
    for capability in range(_last_capability() + 1):
        if capability not in kept:
            # It fails without CAP_SETPCAP. Then no_new_privs, below, keeps every program from gaining the capability.
            libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    if libc.capset(*_capabilities(_permitted() & sum(1 << each for each in kept))):
        failed.append(f"capabilities: {os.strerror(ctypes.get_errno())}")
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return [*failed, f"no new privileges: {os.strerror(ctypes.get_errno())}"]
    reason = _filter(libc, driver)
    return failed if reason is None else [*failed, f"system calls: {reason}"]


def pass_on() -> None:
    """Let programs that this thread starts have its capabilities, as a successor needs: a user's are gone otherwise."""
    libc = ctypes.CDLL(None, use_errno=True)
    permitted = _permitted()
    if os.geteuid() == 0 or libc.capset(*_capabilities(permitted, permitted)):
        return
    for capability in _NUMBERS.values():
        if permitted >> capability & 1:
            libc.prctl(_CAP_AMBIENT, _RAISE, capability, 0, 0)


def _kept(driver: str) -> set[int]:
    kept = {_NUMBERS[name] for name in NEEDED.get(driver, NEEDED["af_packet"])}
    return kept if _BPF not in kept or _last_capability() >= _BPF else kept - {_BPF, _PERFMON} | {_SYS_ADMIN}


def _last_capability() -> int:
    with suppress(OSError, ValueError):
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return 40


def _status(name: str) -> str:
    with suppress(OSError):
        for line in Path("/proc/thread-self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return line.partition(":")[2].strip()
    return ""


def _permitted() -> int:
    return int(_status("CapPrm") or "0", 16)


def _capabilities(kept: int, inheritable: int = 0) -> tuple[bytes, bytes]:
    """Return capset's arguments: permitted and effective capabilities, and inheritable ones."""
    low, high = kept & 0xFFFFFFFF, kept >> 32
    passed = inheritable & 0xFFFFFFFF, inheritable >> 32
    return struct.pack("=Ii", _VERSION, 0), struct.pack("=6I", low, low, passed[0], high, high, passed[1])


def _filter(libc: ctypes.CDLL, driver: str) -> str | None:
    """Have system calls refused (EPERM) in all threads; return None, or why not. A present filter, a unit's, is enough."""
    if _status("Seccomp") == "2":
        return None
    machine = platform.machine()
    if machine not in _MACHINES:
        return f"which they are is not known on {machine}"
    architecture, number = _MACHINES[machine]
    refused = {**_REFUSED[machine], **_REFUSED_EVERYWHERE}
    if driver == "af_xdp":
        del refused["bpf"]
    code = _program(architecture, sorted(refused.values()), x32=machine == "x86_64")
    program = ctypes.create_string_buffer(code)
    description = struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
    if libc.syscall(number, _SET_FILTER, _ALL_THREADS, description):
        return os.strerror(ctypes.get_errno())
    return None


def _program(architecture: int, refused: Iterable[int], *, x32: bool) -> bytes:
    """Classic BPF over struct seccomp_data."""
    numbers = list(refused)
    checks = len(numbers) + x32  # instructions; before them the number is loaded, behind them stand the two verdicts
    lines = [(_LOAD, 0, 0, _MACHINE_AT), (_EQUAL, 0, checks + 2, architecture), (_LOAD, 0, 0, _NUMBER_AT)]
    if x32:
        lines.append((_AT_LEAST, len(numbers) + 1, 0, _X32_BIT))
    for at, number in enumerate(numbers):
        lines.append((_EQUAL, len(numbers) - at, 0, number))
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
