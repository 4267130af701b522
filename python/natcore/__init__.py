"""natcore: a NAT44 data plane that is imported."""

from natcore.config import Behaviour, DeliveryPolicy, DnatEntry, Eip, Link, NoNatEntry, Policy, SnatEntry, Timeouts
from natcore.dtypes import BLOCKS, MAPPING, PORTS, RECORD, SESSION, format_ipv4
from natcore.entries.changes import Add, Applied, Plan, Remove, Replace
from natcore.entries.table import Entry
from natcore.errors import (
    CapacityError,
    ConfigurationError,
    DeliveryError,
    Error,
    InterfaceError,
    MissingExtraError,
    UntrustedFileError,
)
from natcore.events import Event, Generated
from natcore.flowlog import FLOW, FlowLog
from natcore.gateway import Gateway
from natcore.verdict import Side, Verdict

__version__ = "0.1.0"

__all__ = [
    "BLOCKS",
    "FLOW",
    "MAPPING",
    "PORTS",
    "RECORD",
    "SESSION",
    "Add",
    "Applied",
    "Behaviour",
    "CapacityError",
    "ConfigurationError",
    "DeliveryError",
    "DeliveryPolicy",
    "DnatEntry",
    "Eip",
    "Entry",
    "Error",
    "Event",
    "FlowLog",
    "Gateway",
    "Generated",
    "InterfaceError",
    "Link",
    "MissingExtraError",
    "NoNatEntry",
    "Plan",
    "Policy",
    "Remove",
    "Replace",
    "Side",
    "SnatEntry",
    "Timeouts",
    "UntrustedFileError",
    "Verdict",
    "format_ipv4",
]
