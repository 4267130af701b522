"""Pictures of figures, the same bytes for the same figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from natcore.internal.files import replaced


def save(figure: Any, picture: Path) -> None:
    """Write matplotlib's figure as the path's suffix says."""
    own: dict[str, Any] = {"metadata": {"Date": None}} if picture.suffix == ".svg" else {}
    with replaced(picture, private=False) as file:
        figure.savefig(file, format=picture.suffix[1:], dpi=130, **own)
