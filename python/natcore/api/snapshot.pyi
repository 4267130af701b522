"""Copies for looking; nothing of it is for Python."""
