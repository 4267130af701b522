"""Port maps; nothing of it is for Python."""
