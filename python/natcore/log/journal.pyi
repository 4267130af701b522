"""The ring of rows; nothing of it is for Python."""
