"""Entries of a running gateway: what they compile to, which may stand together, and how they change."""
