"""The plot beside a card's page: tokens per second, and where the time of a step goes.

Rows of measurements become a PNG with two panels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

_OURS, _OTHER = "#1b6ca8", "#e3a857"
_BAR_INCHES = 0.27


def draw(rows: list[dict[str, Any]], card: str, dry_run: bool, path: Path) -> bool:
    """Write the plot.

    Args:
        rows: values of the tasks that measured a contender.
        card: its name.
        dry_run: whether shapes were small, which the title then says.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    speeds = [row for row in rows if "tokens_per_second" in row]
    profiled = [row for row in rows if "kernels" in row]
    if not speeds:
        return False
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    height = 1.8 + _BAR_INCHES * max(len(speeds), len(profiled))
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, height))
    _draw_speeds(left, speeds)
    _draw_shares(right, profiled)
    figure.suptitle(f"{card}: dry run with small shapes, no measurement" if dry_run else card)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _draw_speeds(axis: Any, rows: list[dict[str, Any]]) -> None:
    places = list(range(len(rows)))
    colors = [_OURS if "raydpo" in row["contender"] else _OTHER for row in rows]
    axis.barh(places, [row["tokens_per_second"] for row in rows], color=colors, height=0.75)
    _label(axis, rows)
    axis.set_xlabel("tokens a second, each prompt counted once")


def _draw_shares(axis: Any, rows: list[dict[str, Any]]) -> None:
    ends = [0.0] * len(rows)
    for family in rows[0]["kernels"] if rows else ():
        shares = [100 * row["kernels"][family] for row in rows]
        axis.barh(list(range(len(rows))), shares, left=ends, height=0.75, label=family)
        ends = [end + share for end, share in zip(ends, shares, strict=True)]
    _label(axis, rows)
    axis.set_xlabel("share of a profiled step, %")
    if rows:
        axis.legend(fontsize=6, loc="lower right")


def _label(axis: Any, rows: list[dict[str, Any]]) -> None:
    names = [f"{row['scenario']}  {row['contender']}" for row in rows]
    axis.set_yticks(list(range(len(rows))), names, fontsize=7)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
