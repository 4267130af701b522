"""Mappings and subscribers; nothing of it is for Python."""
