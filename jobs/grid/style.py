"""The look that the figures of the studies share."""

from __future__ import annotations

from typing import Any, Final

#: Settings of matplotlib.
STYLE: Final[dict[Any, Any]] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E8E8E8",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
#: Dots per inch of a PNG.
DPI: Final = 110
