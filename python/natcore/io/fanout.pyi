"""Fan-out groups of packet sockets."""

from collections.abc import Sequence

__pyx_capi__: dict[str, object]

def join(fds: Sequence[int], program: bytes) -> None: ...
def listen(fd: int, program: bytes) -> None: ...
