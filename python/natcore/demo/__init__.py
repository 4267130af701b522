"""`natcore demo`: real programs through a gateway, and the session log beside the interfaces' counters."""
