"""For tests: packet builders, the oracle (a NAT in plain Python), random lives of a NAT, and a strict Simple Log Service.

It needs the extra `testing`; what a name needs is imported when the name is first used.
"""

from typing import TYPE_CHECKING

from natcore.internal.late import late_names

if TYPE_CHECKING:
    from natcore.testing.checker import Checker, Sent, leaving, released
    from natcore.testing.configurations import Configuration
    from natcore.testing.data_path import DataPath, NotSupportedError
    from natcore.testing.frame_differences import assert_checksums, assert_translation, describe, differences
    from natcore.testing.gates import Gate
    from natcore.testing.lab import Lab
    from natcore.testing.load import Load
    from natcore.testing.machine import NatMachine
    from natcore.testing.scapy_bridge import frames, scapy_packets
    from natcore.testing.scapy_pipe import GatewayDrain
    from natcore.testing.sls_server import SlsServer

__all__ = [
    "Checker",
    "Configuration",
    "DataPath",
    "Gate",
    "GatewayDrain",
    "Lab",
    "Load",
    "NatMachine",
    "NotSupportedError",
    "Sent",
    "SlsServer",
    "assert_checksums",
    "assert_translation",
    "describe",
    "differences",
    "frames",
    "leaving",
    "released",
    "scapy_packets",
]

_LATE = {
    "Checker": "natcore.testing.checker",
    "Configuration": "natcore.testing.configurations",
    "DataPath": "natcore.testing.data_path",
    "Gate": "natcore.testing.gates",
    "GatewayDrain": "natcore.testing.scapy_pipe",
    "Lab": "natcore.testing.lab",
    "Load": "natcore.testing.load",
    "NatMachine": "natcore.testing.machine",
    "NotSupportedError": "natcore.testing.data_path",
    "Sent": "natcore.testing.checker",
    "SlsServer": "natcore.testing.sls_server",
    "assert_checksums": "natcore.testing.frame_differences",
    "assert_translation": "natcore.testing.frame_differences",
    "describe": "natcore.testing.frame_differences",
    "differences": "natcore.testing.frame_differences",
    "frames": "natcore.testing.scapy_bridge",
    "leaving": "natcore.testing.checker",
    "released": "natcore.testing.checker",
    "scapy_packets": "natcore.testing.scapy_bridge",
}

__getattr__, __dir__ = late_names(__name__, _LATE)
