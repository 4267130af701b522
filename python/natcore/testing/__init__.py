"""For users' tests: SlsServer, a strict Simple Log Service on 127.0.0.1 that fails on request."""

from natcore.testing.sls_server import SlsServer

__all__ = ["SlsServer"]
