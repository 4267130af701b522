"""natcore: a NAT44 data plane that is imported."""

from typing import TYPE_CHECKING

from natcore.config import (
    Behaviour,
    DeliveryPolicy,
    DnatEntry,
    Eip,
    Link,
    NoNatEntry,
    OutsideInterface,
    Policy,
    SnatEntry,
    Timeouts,
)
from natcore.dtypes import (
    BLOCKS,
    MAPPING,
    PORTS,
    RECORD,
    SESSION,
    SUBSCRIBER_RATE,
    GapReason,
    RecordFlag,
    RecordKind,
    SessionState,
    format_ipv4,
)
from natcore.entries.changes import Add, Applied, Modify, Plan, Remove, Replace
from natcore.entries.table import Entry
from natcore.errors import (
    CapacityError,
    ConfigurationError,
    ControlError,
    DeliveryError,
    Error,
    InterfaceError,
    MissingExtraError,
    PeerError,
    RestartNeededError,
    RfcWarning,
    SecurityWarning,
    StateError,
    UntrustedFileError,
)
from natcore.events import Event, Generated
from natcore.gateway import Gateway
from natcore.internal.late import late_names
from natcore.verdict import Side, Verdict

if TYPE_CHECKING:
    from natcore.c_interface import ABI_VERSION, C_API, get_include
    from natcore.explain import Explanation, Step
    from natcore.flowlog import FLOW, FlowLog
    from natcore.plane.async_plane import AsyncPlane
    from natcore.plane.plane import Plane
    from natcore.ranking import SessionRanking
    from natcore.sessionlog.session_log import DeliveryStatus, SessionLog
    from natcore.sinks.base import Batch, Sink
    from natcore.subscriber_rates import SubscriberRates

__version__ = "0.1.0"

_LATE = {  # imported when they are first named: they are slow to import, or seldom wanted
    "ABI_VERSION": "natcore.c_interface",
    "C_API": "natcore.c_interface",
    "AsyncPlane": "natcore.plane.async_plane",
    "DeliveryStatus": "natcore.sessionlog.session_log",
    "Explanation": "natcore.explain",
    "FLOW": "natcore.flowlog",
    "FlowLog": "natcore.flowlog",
    "Plane": "natcore.plane.plane",
    "SessionLog": "natcore.sessionlog.session_log",
    "SessionRanking": "natcore.ranking",
    "SubscriberRates": "natcore.subscriber_rates",
    "Batch": "natcore.sinks.base",
    "Sink": "natcore.sinks.base",
    "Step": "natcore.explain",
    "get_include": "natcore.c_interface",
}

__all__ = [
    "ABI_VERSION",
    "BLOCKS",
    "C_API",
    "FLOW",
    "MAPPING",
    "PORTS",
    "RECORD",
    "SESSION",
    "SUBSCRIBER_RATE",
    "Add",
    "Applied",
    "AsyncPlane",
    "Batch",
    "Behaviour",
    "CapacityError",
    "ConfigurationError",
    "ControlError",
    "DeliveryError",
    "DeliveryPolicy",
    "DeliveryStatus",
    "DnatEntry",
    "Eip",
    "Entry",
    "Error",
    "Event",
    "Explanation",
    "FlowLog",
    "GapReason",
    "Gateway",
    "Generated",
    "InterfaceError",
    "Link",
    "MissingExtraError",
    "Modify",
    "NoNatEntry",
    "OutsideInterface",
    "PeerError",
    "Plan",
    "Plane",
    "Policy",
    "RecordFlag",
    "RecordKind",
    "Remove",
    "Replace",
    "RestartNeededError",
    "RfcWarning",
    "SecurityWarning",
    "SessionLog",
    "SessionRanking",
    "SessionState",
    "Side",
    "Sink",
    "SnatEntry",
    "StateError",
    "Step",
    "SubscriberRates",
    "Timeouts",
    "UntrustedFileError",
    "Verdict",
    "format_ipv4",
    "get_include",
]


__getattr__, __dir__ = late_names(__name__, _LATE)
