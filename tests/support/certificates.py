"""Certificates of a pair: an authority of its own, and one certificate that all of it show."""

from __future__ import annotations

import subprocess
from pathlib import Path

from natcore.peer.channel import Credentials


def made(folder: Path) -> Credentials:
    """Make an authority, and a certificate that it signed."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    paths = {name: folder / f"{name}.pem" for name in ("ca", "ca-key", "key", "request", "certificate")}
    for command in (
        ["req", "-x509", *curve, "-days", "2", "-subj", "/CN=pair", "-keyout", paths["ca-key"], "-out", paths["ca"]],
        ["req", "-new", *curve, "-subj", "/CN=gateway", "-keyout", paths["key"], "-out", paths["request"]],
        ["x509", "-req", "-in", paths["request"], "-CA", paths["ca"], "-CAkey", paths["ca-key"], "-CAcreateserial", "-days",
         "2", "-out", paths["certificate"]],
    ):  # fmt: skip
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
    return Credentials(paths["certificate"], paths["key"], paths["ca"])
