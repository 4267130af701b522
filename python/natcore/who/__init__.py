"""Questions to the session log: who had an address and port at a time, and what the log says of itself."""
