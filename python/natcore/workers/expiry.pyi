"""Expiry and roll-over; nothing of it is for Python."""
