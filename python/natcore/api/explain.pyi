"""What would become of a packet, as a copy of this process finds it."""

from typing import Any

from natcore.api.gateway import Core

def explain(core: Core, frame: bytes, side: int, now_ns: int) -> dict[str, Any]: ...
