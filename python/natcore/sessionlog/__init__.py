"""The session log: rows from the core's journal to their destinations, with an account of each."""
