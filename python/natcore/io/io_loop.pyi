"""The loop of a plane; nothing of it is for Python."""

__pyx_capi__: dict[str, object]
