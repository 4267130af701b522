"""The files of a systemd service for one configuration file: unit, user, folders. The unit grants what the file needs."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from natcore.errors import ConfigurationError
from natcore.internal.files import replaced
from natcore.internal.redaction import show
from natcore.service.configuration_file import Settings, credential
from natcore.service.privileges import NEEDED

USER = "natcore"
STATE_FOLDER, LOG_FOLDER = "/var/lib/natcore", "/var/log/natcore"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# Each %-sign of systemd's is doubled by `_quoted` where a path comes from the configuration.
_UNIT = """\
# Written by `natcore service install {file}`; local changes belong into a drop-in (systemctl edit {unit}).
[Unit]
Description=natcore, a NAT44 gateway ({file})
Documentation=https://natcore.github.io/natcore/guide/service.html
After=network-online.target time-sync.target nftables.service
Wants=network-online.target time-sync.target
StartLimitIntervalSec=300
StartLimitBurst=20

[Service]
Type={type}
NotifyAccess=main
ExecStart={program} run {file_quoted}
{reload}
WatchdogSec=10
TimeoutStartSec=90
TimeoutStopSec=30
# Between two processes of `systemctl restart`: packet rings, in which packets wait ([state]).
FileDescriptorStoreMax=4096
Restart=on-failure
RestartSec=1
# 64: the command is wrong, 78: the configuration is: neither gets better by itself.
RestartPreventExitStatus=64 78

User={user}
Group={user}
UMask=0027
AmbientCapabilities={capabilities}
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
# The interfaces' locks and the control sockets, of all instances.
RuntimeDirectory=natcore
RuntimeDirectoryMode=0750
RuntimeDirectoryPreserve=yes
StateDirectory=natcore
StateDirectoryMode=0700
LogsDirectory=natcore
LogsDirectoryMode=0700
WorkingDirectory={state}
{credentials}{writable}
LimitNOFILE=65536
LimitMEMLOCK=infinity
LimitCORE=0
OOMScoreAdjust=-500

ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
PrivateDevices=yes
PrivateTmp=yes
PrivateIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET{families}
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
KeyringMode=private
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service{calls}
SystemCallFilter=~@clock @cpu-emulation @debug @keyring @module @mount @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""
_SYSUSERS = f"""\
# The user and the group of natcore's services; members of the group may use the control sockets.
u {USER} - "natcore NAT gateway" {STATE_FOLDER}
"""
_TMPFILES = f"""\
# Folders of natcore's services, which their units make too; the first is for `natcore` commands before any has started.
d /run/natcore 0750 {USER} {USER}
d {STATE_FOLDER} 0700 {USER} {USER}
d {LOG_FOLDER} 0700 {USER} {USER}
d /etc/natcore 0750 root {USER}
"""


@dataclass(frozen=True, slots=True)
class File:
    """A file to install: where, and its text."""

    path: Path
    text: str


def unit_name(file: Path) -> str:
    """Return the unit of a configuration file: natcore.service of gateway.toml, natcore-NAME.service of NAME.toml.

    Raises ConfigurationError: its name is not one of a unit's.
    """
    if not _NAME.fullmatch(file.stem):
        raise ConfigurationError(
            f"file must have a name of letters, digits, '.', '_' and '-', 64 at most, for its unit, got {show(file.name)}"
        )
    return "natcore.service" if file.stem == "gateway" else f"natcore-{file.stem}.service"


def files(
    settings: Settings,
    *,
    file: Path | None = None,
    program: str | None = None,
    user: str = USER,
    notify_reload: bool = True,
) -> list[File]:
    """Return the files of a service for a configuration, with their places. Raises ConfigurationError.

    file: where the service will read it; None: where it was read. program: the command; None: the one that runs.
    notify_reload: systemd is 253 or later, and knows Type=notify-reload.
    """
    file = file or settings.source.absolute()
    unit = unit_name(file)
    driver = (settings.plane or {}).get("driver", "af_packet")
    text = _UNIT.format(
        file=file, file_quoted=_quoted(file), unit=unit, user=user, state=STATE_FOLDER,
        program=_quoted(Path(program or _program())),
        type="notify-reload" if notify_reload else "notify",
        reload="ReloadSignal=SIGHUP" if notify_reload else "ExecReload=/bin/kill -HUP $MAINPID",
        capabilities=" ".join(NEEDED[driver]),
        credentials="".join(f"LoadCredential={credential(path)}:{_quoted(path)}\n" for path in secret_files(settings)),
        writable="".join(f"ReadWritePaths=-{_quoted(path)}\n" for path in _written(settings)),
        families=" AF_XDP" if driver == "af_xdp" else "",
        calls=" bpf" if driver == "af_xdp" else "",
    ).replace("\n\n\n", "\n\n")  # fmt: skip
    return [
        File(Path("/etc/systemd/system") / unit, text),
        File(Path("/etc/sysusers.d/natcore.conf"), _SYSUSERS),
        File(Path("/etc/tmpfiles.d/natcore.conf"), _TMPFILES),
    ]


def install(made: Iterable[File], root: Path) -> list[Path]:
    """Write the files below a folder, "/" or a package's; return where they are. Raises OSError."""
    written = []
    for each in made:
        path = root / each.path.relative_to("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path, private=False) as file:
            file.write(each.text.encode())
        path.chmod(0o644)
        written.append(path)
    return written


def secret_files(settings: Settings) -> list[Path]:
    """Return the files that the configuration's `…_file` keys name, each once."""
    found = dict.fromkeys(
        Path(value).absolute()
        for table in (*settings.raw.get("log", ()), settings.raw.get("peer", {}))
        for key, value in table.items()
        if key.endswith("_file") and isinstance(value, str)
    )
    return list(found)


def _written(settings: Settings) -> list[Path]:
    """Return the folders that logs and the state are written to, besides those which the unit has anyhow."""
    wanted = [table.get(key) for table in settings.raw.get("log", ()) for key in ("folder", "spool")]
    paths = [Path(STATE_FOLDER) / value for value in wanted if isinstance(value, str)]
    if settings.state is not None:
        paths.append((Path(STATE_FOLDER) / settings.state["path"]).parent)
    own = (STATE_FOLDER, LOG_FOLDER)
    return list(dict.fromkeys(path for path in paths if not any(path.is_relative_to(each) for each in own)))


def _program() -> str:
    """Return the path of the command `natcore` of this interpreter."""
    beside = Path(sys.executable).with_name("natcore")
    return str(beside) if beside.exists() else shutil.which("natcore") or "/usr/bin/natcore"


def _quoted(path: Path) -> str:
    """Return a path as a word in a unit: no specifier, no variable, no separator in it."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if re.search(r"[\s\"';\\]", text) else text


def lines(made: Iterable[File]) -> Iterator[str]:
    """Yield the files as text, each behind a line with its place."""
    for each in made:
        yield f"# {each.path}\n{each.text}"
