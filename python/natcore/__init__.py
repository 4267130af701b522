"""natcore: a NAT44 data plane that is imported."""

from .changes import Add, Applied, Plan, Remove, Replace
from .config import Behaviour, DeliveryPolicy, DnatEntry, Eip, Link, NoNatEntry, Policy, SnatEntry, Timeouts
from .entries import Entry
from .errors import CapacityError, ConfigurationError, DeliveryError, Error, InterfaceError, UntrustedFileError
from .flowlog import FLOW, FlowLog
from .gateway import Gateway
from .notices import Event, Generated
from .records import BLOCKS, MAPPING, PORTS, RECORD, SESSION, format_ipv4
from .verdict import Side, Verdict

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
