"""The documents' programs run: the asyncio gateway forwards real packets between namespaces."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from natcore.demo.namespaces import Network
from support import certificates
from support.command_line import call

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"

SERVER = """
import socket
listener = socket.create_server(("198.51.100.7", 8080))
print("listening", flush=True)
for _ in range(3):
    connection, (address, port) = listener.accept()
    connection.sendall(connection.recv(100) + f" from {address}".encode())
    connection.close()
"""
CLIENT = """
import socket, sys
with socket.create_connection(("198.51.100.7", 8080), timeout=60) as connection:
    connection.sendall(sys.argv[1].encode())
    print(b"".join(iter(lambda: connection.recv(100), b"")).decode())
"""


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces and raw sockets")
    with Network(f"natcore-example-{os.getpid()}-", ["host", "gateway", "server"]) as network:
        network.pair("host", "eth0", "gateway", "lan0")
        network.pair("server", "eth0", "gateway", "wan0")
        network.up("host", "eth0", "10.0.0.5/24")
        network.up("gateway", "lan0", "10.0.0.1/24")
        network.up("gateway", "wan0", "198.51.100.1/24")
        network.up("server", "eth0", "198.51.100.7/24")
        network.route("host", "default", via="10.0.0.1")
        network.route("server", "203.0.113.0/24", via="198.51.100.1")
        yield network


def await_line(process: subprocess.Popen[str], expected: str) -> None:
    """The program's first line; a program that says nothing is ended after 20 s."""
    assert process.stdout is not None
    watch = threading.Timer(20.0, process.kill)
    watch.start()
    try:
        line = process.stdout.readline()
    finally:
        watch.cancel()
    assert line.strip() == expected, line + process.communicate(timeout=5)[0]


def test_the_asyncio_gateway_forwards(network: Network) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    server = network.popen("server", [sys.executable, "-c", SERVER], **pipes)
    await_line(server, "listening")
    program = [sys.executable, str(EXAMPLES / "asyncio_gateway.py"), "lan0", "wan0", "10.0.0.0/24", "203.0.113.1"]
    gateway = network.popen("gateway", program, **pipes)
    await_line(gateway, "forwarding")
    for word in ("one", "two", "three"):
        said = network.run("host", [sys.executable, "-c", CLIENT, word], timeout=60).stdout.strip()
        assert said == f"{word} from 203.0.113.1"
    gateway.send_signal(signal.SIGTERM)
    output, _ = gateway.communicate(timeout=60)
    assert gateway.returncode == 0, output
    result = re.fullmatch(r"forwarded (\d+) dropped (\d+) sessions (\d+)", output.strip())
    assert result is not None, output
    assert int(result[1]) >= 3 * 8 and int(result[3]) == 3


def test_the_tun_gateway_forwards() -> None:
    """Two TUN devices, each then moved to the namespace of its side; connections, and an error of the gateway's own."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("needs root and /dev/net/tun")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with Network(f"natcore-tun-{os.getpid()}-", ["host", "gateway", "server"]) as network:
        program = [sys.executable, str(EXAMPLES / "tun_gateway.py"), "tun-in", "tun-out", "10.0.0.0/24", "203.0.113.1"]
        gateway = network.popen("gateway", program, **pipes)
        await_line(gateway, "forwarding")
        for name, tun, address, away in (("host", "tun-in", "10.0.0.5/24", "default"),
                                         ("server", "tun-out", "198.51.100.7/24", "203.0.113.0/24")):  # fmt: skip
            network.run("gateway", ["ip", "link", "set", tun, "netns", network.name(name)])
            network.run(name, ["ip", "address", "add", address, "dev", tun])
            network.run(name, ["ip", "link", "set", tun, "up"])
            network.run(name, ["ip", "route", "add", away, "dev", tun])
        server = network.popen("server", [sys.executable, "-c", SERVER], **pipes)
        await_line(server, "listening")
        for word in ("one", "two", "three"):
            said = network.run("host", [sys.executable, "-c", CLIENT, word], timeout=60).stdout.strip()
            assert said == f"{word} from 203.0.113.1"
        expired = network.run("host", ["ping", "-c", "1", "-t", "1", "-W", "5", "198.51.100.7"], check=False).stdout
        assert "Time to live exceeded" in expired
        gateway.send_signal(signal.SIGTERM)
        output, _ = gateway.communicate(timeout=60)
        assert gateway.returncode == 0, output
        result = re.fullmatch(r"forwarded (\d+) dropped (\d+) sessions (\d+)", output.strip())
        assert result is not None, output
        assert int(result[1]) >= 3 * 8 and int(result[3]) == 3


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_the_documents_python_is_python(document: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.S | re.M):
        compile(block, str(document), "exec")


def test_the_guides_settings_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    guide = "".join(path.read_text() for path in sorted((ROOT / "docs" / "guide").glob("*.md")))
    blocks = re.findall(r"^```toml\n(.*?)^```$", guide, re.S | re.M)
    assert blocks
    made = certificates.made(tmp_path)
    files = {"certificate_file": made.certificate, "key_file": made.key, "authority_file": made.authority}
    for block in blocks:
        rest = "" if "[plane]" in block else '\n[plane]\ninside = "lan0"\noutside = "wan0"\n'
        groups = re.sub(r'(?m)^((?:write_)?group = )"\w+"', r"\1 0", block)  # that an operator makes first
        pems = re.sub(r'(?m)^(\w+_file) = "[^"]+"', lambda match: f'{match[1]} = "{files[match[1]]}"', groups)
        (tmp_path / "gateway.toml").write_text(pems + rest)
        call("check", "gateway.toml")
