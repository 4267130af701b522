"""For tests: the oracle (a NAT in plain Python), packet builders, Hypothesis strategies, and a strict Simple Log Service."""

from typing import TYPE_CHECKING

from natcore.internal.late import late_names

if TYPE_CHECKING:
    from natcore.testing.sls_server import SlsServer

__all__ = ["SlsServer"]

__getattr__, __dir__ = late_names(__name__, {"SlsServer": "natcore.testing.sls_server"})
