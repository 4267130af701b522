"""A receive ring that hands over frame by frame; nothing of it is for Python."""

__pyx_capi__: dict[str, object]
