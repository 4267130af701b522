"""The control socket of a running gateway: its protocol, server, client, and the verbs that it answers.

`Gateway.serve_control` starts a server; `Client` asks one. A verb is a function with the
decorator `natcore.control.verb.verb`.
"""

from typing import TYPE_CHECKING

from natcore.internal.late import late_names

if TYPE_CHECKING:
    from natcore.control.client import Client
    from natcore.control.server import ControlServer
    from natcore.control.verb import Context, Verb

_LATE = {
    "Client": "natcore.control.client",
    "Context": "natcore.control.verb",
    "ControlServer": "natcore.control.server",
    "Verb": "natcore.control.verb",
}

__all__ = ["Client", "Context", "ControlServer", "Verb"]

__getattr__, __dir__ = late_names(__name__, _LATE)
