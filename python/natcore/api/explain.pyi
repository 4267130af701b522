"""What would become of a packet, as a copy of this process finds it."""

from typing import Any

from natcore.api.workers import Workers

def explain(workers: Workers, frame: bytes, side: int, now_ns: int) -> dict[str, Any]: ...
