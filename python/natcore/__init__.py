"""natcore: a NAT44 data plane that is imported."""

from .config import Behaviour, DeliveryPolicy, Eip, Link, Policy, SnatEntry, Timeouts
from .entries import Entry
from .errors import CapacityError, ConfigurationError, DeliveryError, Error, InterfaceError
from .gateway import Gateway
from .notices import Event, Generated
from .records import MAPPING, PORTS, RECORD, SESSION, format_ipv4
from .verdict import Side, Verdict

__version__ = "0.1.0"

__all__ = [
    "MAPPING",
    "PORTS",
    "RECORD",
    "SESSION",
    "Behaviour",
    "CapacityError",
    "ConfigurationError",
    "DeliveryError",
    "DeliveryPolicy",
    "Eip",
    "Entry",
    "Error",
    "Event",
    "Gateway",
    "Generated",
    "InterfaceError",
    "Link",
    "Policy",
    "Side",
    "SnatEntry",
    "Timeouts",
    "Verdict",
    "format_ipv4",
]
