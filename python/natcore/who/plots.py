"""Plots of port usage: block characters for a terminal, and PNG or SVG files (matplotlib, extra natcore[plot])."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from natcore.errors import ConfigurationError
from natcore.internal.extras import extra
from natcore.internal.files import replaced
from natcore.internal.protocols import protocol_name
from natcore.internal.redaction import show
from natcore.who.usage import PortUsage

BLOCKS = " ▁▂▃▄▅▆▇█"
SUFFIXES = (".png", ".svg")


def blocks(peaks: Sequence[int], highest: int, width: int) -> str:
    """Return a line of at most `width` blocks, each as high as the peak of its part; `highest` is a full block."""
    parts = min(width, len(peaks))
    line = ""
    for part in range(parts):
        most = max(peaks[part * len(peaks) // parts : max(part + 1, (part + 1) * len(peaks) // parts)])
        line += BLOCKS[-(-most * (len(BLOCKS) - 1) // max(1, highest))]
    return line


def check_picture(path: str | os.PathLike[str]) -> Path:
    """Return the path. ConfigurationError: another ending; MissingExtraError: matplotlib is missing."""
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ConfigurationError(f"plot must end in {' or '.join(SUFFIXES)}, got {show(str(path))}")
    with extra("plot"):
        import matplotlib  # noqa: F401
    return target


def save(usages: Sequence[PortUsage], path: str | os.PathLike[str], *, ports: int = 64_512) -> None:
    """Draw the ports in use over time, a line for each outside address and protocol. ports: of an address, at most."""
    target = check_picture(path)
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="time (UTC)", ylabel="ports in use", title="SNAT ports in use")
    for usage in usages:
        label = f"{usage.address} {protocol_name(usage.protocol)}"
        axes.step(usage.times, usage.peaks, where="post", label=label)
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    share = axes.secondary_yaxis("right", functions=(lambda used: used / ports * 100, lambda part: part * ports / 100))
    share.set_ylabel(f"% of {ports:,}")
    if usages:
        axes.legend(fontsize="small", ncols=1 + len(usages) // 16)
    with replaced(target, private=False) as file:
        figure.savefig(file, format=target.suffix[1:], dpi=130)
