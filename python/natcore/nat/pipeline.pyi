"""The stages; nothing of it is for Python."""
