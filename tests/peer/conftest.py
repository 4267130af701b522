"""Certificates of two pairs."""

from __future__ import annotations

import shutil

import pytest

from natcore.peer.channel import Credentials
from support.certificates import made


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make certificates")
    return made(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def other_credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Those of another pair."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make certificates")
    return made(tmp_path_factory.mktemp("others"))
