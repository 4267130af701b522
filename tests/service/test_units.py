"""The files of `natcore service install`: what they grant, that systemd takes them, and how exposed it finds the service."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from natcore import ConfigurationError
from natcore.cli import service
from natcore.cli.main import app
from natcore.service import privileges, units
from natcore.service.configuration_file import credential, load
from support.command_line import call

MOST_EXPOSED = 2.5  # of systemd-analyze security; 10 is a service without any of it
FILE = """
[[snat]]
source = "10.0.0.0/16"
pool = "203.0.113.1"
[plane]
inside = "lan0"
outside = "wan0"
"""
LOG = """
[[log]]
sink = "sls"
endpoint = "https://cn-hangzhou.log.aliyuncs.com"
project = "p"
logstore = "l"
spool = "/srv/natcore spool"
access_key_id_file = "{folder}/id"
access_key_secret_file = "{folder}/secret"
[[log]]
sink = "parquet"
folder = "sessions"
"""


def made(tmp_path: Path, more: str = "", name: str = "gateway.toml", **options: object) -> dict[str, str]:
    """The files by their names, for the configuration."""
    file = tmp_path / name
    file.write_text(FILE + more)
    found = units.files(load(file), program="/usr/bin/natcore", **options)  # type: ignore[arg-type]
    return {each.path.name: each.text for each in found}


def value(unit: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{key}=")]


def test_a_unit_grants_what_the_driver_needs_and_no_more(tmp_path: Path) -> None:
    plain = made(tmp_path)["natcore.service"]
    assert value(plain, "CapabilityBoundingSet") == value(plain, "AmbientCapabilities") == ["CAP_NET_RAW CAP_NET_ADMIN"]
    assert "AF_XDP" not in plain and "bpf" not in plain
    xdp = made(tmp_path, 'driver = "af_xdp"\n', "lab.toml")["natcore-lab.service"]
    assert value(xdp, "CapabilityBoundingSet") == ["CAP_NET_RAW CAP_NET_ADMIN CAP_BPF CAP_PERFMON CAP_IPC_LOCK"]
    assert value(xdp, "RestrictAddressFamilies")[0].endswith(" AF_PACKET AF_XDP")
    assert "@system-service bpf" in value(xdp, "SystemCallFilter")
    for driver, unit in (("af_packet", plain), ("af_xdp", xdp)):
        assert len(value(unit, "CapabilityBoundingSet")[0].split()) == len(privileges._kept(driver))


def test_a_unit_says_when_it_is_ready_started_anew_and_taken_for_dead(tmp_path: Path) -> None:
    unit = made(tmp_path)["natcore.service"]
    assert (value(unit, "Type"), value(unit, "ReloadSignal")) == (["notify-reload"], ["SIGHUP"])
    assert (value(unit, "WatchdogSec"), value(unit, "User")) == (["10"], ["natcore"])
    assert value(unit, "RestartPreventExitStatus") == ["64 78"]
    assert value(unit, "After") == ["network-online.target time-sync.target nftables.service"]
    assert value(unit, "StateDirectory") == value(unit, "RuntimeDirectory") == ["natcore"]
    assert value(unit, "ExecStart") == [f"/usr/bin/natcore run {tmp_path}/gateway.toml"]
    older = made(tmp_path, notify_reload=False)["natcore.service"]
    assert (value(older, "Type"), value(older, "ExecReload")) == (["notify"], ["/bin/kill -HUP $MAINPID"])


def test_secrets_are_loaded_and_folders_opened_as_the_file_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("id", "secret"):
        (tmp_path / name).write_text(f"{name} of the file")
    unit = made(tmp_path, LOG.format(folder=tmp_path))["natcore.service"]
    loaded = dict(each.split(":") for each in value(unit, "LoadCredential"))
    assert list(loaded.values()) == [f"{tmp_path}/id", f"{tmp_path}/secret"]
    assert value(unit, "ReadWritePaths") == ['-"/srv/natcore spool"']  # the other folder is in StateDirectory
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / credential(tmp_path / "secret")).write_text("as systemd loaded it\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    arguments = load(tmp_path / "gateway.toml").logs[0].arguments
    assert (arguments["access_key_secret"], arguments["access_key_id"]) == ("as systemd loaded it", "id of the file")


def test_a_file_s_name_is_its_unit_s(tmp_path: Path) -> None:
    assert units.unit_name(tmp_path / "ngw-1.toml") == "natcore-ngw-1.service"
    with pytest.raises(ConfigurationError, match="file must have a name of letters, digits"):
        units.unit_name(tmp_path / "a b.toml")


def test_install_writes_below_a_root_and_print_writes_nothing(tmp_path: Path) -> None:
    file, root = tmp_path / "gateway.toml", tmp_path / "root"
    file.write_text(FILE)
    shown = CliRunner().invoke(app, ["service", "install", str(file), "--root", str(root), "--print"])
    assert shown.exit_code == 0 and "# /etc/systemd/system/natcore.service" in shown.output and not root.exists()
    done = CliRunner().invoke(app, ["service", "install", str(file), "--root", str(root), "--reload", "notify"])
    assert done.exit_code == 0, done.output
    written = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert written == [
        "etc/systemd/system/natcore.service",
        "etc/sysusers.d/natcore.conf",
        "etc/tmpfiles.d/natcore.conf",
    ]
    assert (root / written[0]).stat().st_mode & 0o777 == 0o644
    assert "Type=notify-reload" in (root / written[0]).read_text()


def test_the_file_of_another_system_is_read_below_its_root(tmp_path: Path) -> None:
    there = tmp_path / "root/etc/natcore/lab.toml"
    there.parent.mkdir(parents=True)
    there.write_text(FILE + 'driver = "af_xdp"\n')
    call("service", "install", "/etc/natcore/lab.toml", "--root", tmp_path / "root", "--program", "/usr/bin/natcore")
    unit = (tmp_path / "root/etc/systemd/system/natcore-lab.service").read_text()
    assert value(unit, "ExecStart") == ["/usr/bin/natcore run /etc/natcore/lab.toml"] and "CAP_BPF" in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze (Debian: systemd)")
@pytest.mark.parametrize("notify_reload", [False, True])
@pytest.mark.parametrize("driver", ["af_packet", "af_xdp"])
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path: Path, driver: str, notify_reload: bool) -> None:
    unit = tmp_path / "natcore.service"
    text = made(tmp_path, f'driver = "{driver}"\n', notify_reload=notify_reload)["natcore.service"]
    unit.write_text(text.replace("/usr/bin/natcore", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    said = [line.partition(": ")[2] for line in verified.stderr.splitlines() if "natcore.service" in line]
    if (
        notify_reload and service._systemd_version() < service.NOTIFY_RELOAD_SINCE
    ):  # it says so of these two lines alone
        assert said == [
            "Failed to parse service type, ignoring: notify-reload",
            "Unknown key 'ReloadSignal' in section [Service], ignoring.",
        ]
    else:
        assert said == []
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit], capture_output=True, text=True
    )
    exposure = float(judged.stdout.split("Overall exposure level for natcore.service:")[1].split()[0])
    assert exposure <= MOST_EXPOSED, judged.stdout


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers (Debian: systemd)")
def test_systemd_takes_the_user_and_the_folders(tmp_path: Path) -> None:
    file, root = tmp_path / "gateway.toml", tmp_path / "root"
    file.write_text(FILE)
    units.install(units.files(load(file)), root)
    subprocess.run(["systemd-sysusers", f"--root={root}"], check=True, capture_output=True)
    assert "natcore:" in (root / "etc/passwd").read_text() and "natcore:" in (root / "etc/group").read_text()
    made_folders = subprocess.run(
        ["systemd-tmpfiles", f"--root={root}", "--create", "--prefix=/run", "--prefix=/var"],
        capture_output=True,
        text=True,
    )
    assert made_folders.returncode == 0, made_folders.stderr
    assert (root / "var/lib/natcore").stat().st_mode & 0o777 == 0o700
