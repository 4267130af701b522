"""The loop of a plane; nothing of it is for Python."""
