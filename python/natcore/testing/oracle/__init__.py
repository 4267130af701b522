"""The oracle: a NAT in plain Python, written for a reader who wants to learn from it what natcore has to do.

`Nat` predicts verdicts, frames byte for byte, generated frames, counters, events and rows of the session log. It begins in
`model.py`, with the decisions in the order of a packet's way; every search in it is in full, for clarity.

Its limits:

- It is as slow as plain Python: about a thousand packets a second, fewer with hundreds of sessions.
- It knows one worker, IPv4, and no interfaces: neighbors, links and offloads are the plane's.
- What a NAT is free to choose (`Choices`: outside endpoints, targets of entries with several, identifications) it takes
  from the NAT that it is compared with, and checks that it keeps every promise; without any it chooses itself.
- Where a table is full, natcore looks at a bounded number of sessions for one that is dead, the oracle at all: they agree
  in tables of about a hundred sessions.
- An address from an interface (`OutsideInterface`) is unknown to it.
"""

from natcore.testing.oracle.model import Nat
from natcore.testing.oracle.packets import Packet, parse
from natcore.testing.oracle.tables import Choices

__all__ = ["Choices", "Nat", "Packet", "parse"]
