"""Frames of a plane that wait; nothing of it is for Python."""

__pyx_capi__: dict[str, object]
