"""The session table; nothing of it is for Python."""
