"""The plot of the report.

Measured rows become a PNG with two panels: how many times longer the others' steps take than
ours, and the memory of a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from .results import Measured

_COLORS = {
    "raydpo": "#1b6ca8",
    "trl_stock": "#c9c9c9",
    "trl_tuned": "#e3a857",
    "trl_compact": "#b5482f",
}
_OTHER = "#6a4c93"


def draw(rows: list[Measured], path: Path) -> None:
    """Write the plot; panels without data are left out."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    speed = [row for row in rows if row.times_ours is not None and row.times_ours != 1]
    memory = [row for row in rows if row.step_megabytes is not None]
    panels = [(kind, values) for kind, values in (("speed", speed), ("memory", memory)) if values]
    if not panels:
        return
    bars = max(len(values) for _, values in panels)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.5 * len(panels), 1.6 + 0.27 * bars), squeeze=False
    )
    for axis, (kind, values) in zip(axes[0], panels, strict=True):
        _bars(axis, values, kind)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bars(axis: Any, rows: list[Measured], kind: str) -> None:
    """Horizontal bars, the scenarios from top to bottom."""
    lengths = [row.times_ours if kind == "speed" else row.step_megabytes for row in rows]
    colors = [_COLORS.get(row.contender, _OTHER) for row in rows]
    positions = list(range(len(rows)))
    axis.barh(positions, lengths, color=colors, height=0.75)
    axis.set_yticks(positions, [f"{row.scenario}  {row.contender}" for row in rows], fontsize=7)
    axis.invert_yaxis()
    for position, length in zip(positions, lengths, strict=True):
        text = f"{length:.1f}x" if kind == "speed" else f"{length:.0f}"
        axis.text(length or 0, position, f" {text}", va="center", fontsize=7)
    if kind == "speed":
        axis.axvline(1, color=_COLORS["raydpo"], linewidth=1)
        axis.set_xlabel("time over raydpo's (median of interleaved turns)")
    else:
        axis.set_xlabel("memory of a step beyond model and optimizer, MB")
    axis.spines[["top", "right"]].set_visible(False)
