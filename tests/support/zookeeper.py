"""A ZooKeeper for ClickHouse's replicated tables, from Debian's libzookeeper-java."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from support.netns import until

_JARS = Path("/usr/share/java")
IS_HERE = shutil.which("java") is not None and (_JARS / "zookeeper.jar").exists()
_MAIN = "org.apache.zookeeper.server.ZooKeeperServerMain"
_NEEDED = (
    "zookeeper",
    "zookeeper-jute",
    "log4j-1.2",
    "slf4j-api",
    "slf4j-nop",
    "netty-all",
    "snappy-java",
    "metrics-core",
)


class ZooKeeper:
    """The server, until it is closed. folder: its data."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        settings = {
            "tickTime": 500, "dataDir": folder / "data", "clientPortAddress": "127.0.0.1", "clientPort": self.port,
            "admin.enableServer": "false",
        }  # fmt: skip
        (folder / "zoo.cfg").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        path = ":".join(str(_JARS / f"{name}.jar") for name in _NEEDED)
        self._process = subprocess.Popen(
            ["java", "-Xmx128m", "-cp", path, _MAIN, str(folder / "zoo.cfg")], cwd=folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
            probe.settimeout(5)
            probe.sendall(b"srvr")
            return b"Zookeeper version" in probe.recv(1000)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
