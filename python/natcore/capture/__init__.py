"""Packet captures: reading, writing and replaying them."""
