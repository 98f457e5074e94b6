"""The plot of the noise study.

Results become a PNG. It has a row for each kind of corruption, and columns for what a policy misses
on worlds, for accuracies, and for the judge's scores, all against the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noise.contenders import Result, contenders, in_order
from noise.estimates import Values, mean, missing, right, score
from noise.labels import CORRUPTIONS, Noise
from noise.tables import TITLES, by_cell, of_axis

_ORDER: Final = list(contenders(Noise("flips", 0.0), beta=1.0))
_MARKERS: Final = "osv^D*XP"
_RATES: Final = {
    "flips": "share of labels turned round",
    "outliers": "share of labels drawn at random",
}


@dataclass(frozen=True)
class _Panel:
    """What a column of panels shows; `chance` is where a dotted line goes."""

    setting: str
    values: Values
    label: str
    chance: float | None = 0.5


_PANELS: Final = (
    # All but `hinge` order all pairs right there: what differs is what a policy misses.
    _Panel("exact", missing, "missed regularized reward", None),
    _Panel("world", right, "pairs in the true order"),
    _Panel("model", right, "pairs in the true order"),
    _Panel("model", score, "judge score of samples"),
)


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the PNG; settings and corruptions without results have no panel."""
    shown = [c for c in CORRUPTIONS if any(r.corruption == c for r in results)]
    panels = [panel for panel in _PANELS if any(r.setting == panel.setting for r in results)]
    figure = Figure(
        figsize=(4.2 * len(panels), 3.3 * len(shown) + 0.5), dpi=68, layout="constrained"
    )
    for row, corruption in enumerate(shown):
        for column, panel in enumerate(panels):
            mine = of_axis(results, panel.setting, corruption)
            if any(r.corruption == corruption for r in mine):
                place = row * len(panels) + column + 1
                axes = figure.add_subplot(len(shown), len(panels), place)
                _fill(axes, panel, mine, corruption)
    legends = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(legends.values(), legends.keys(), loc="outside lower center", ncols=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _fill(axes: Axes, panel: _Panel, results: Sequence[Result], corruption: str) -> None:
    _lines(axes, results, panel.values)
    if panel.chance is not None:
        axes.axhline(panel.chance, color="#999999", linestyle=":")
    axes.set_xlim(-0.03, max(r.rate for r in results) + 0.04)
    axes.set_title(TITLES[panel.setting], fontsize=9)
    axes.set_xlabel(_RATES[corruption])
    axes.set_ylabel(panel.label)


def _lines(axes: Axes, results: Sequence[Result], values: Values) -> None:
    cells = by_cell(results)
    for name in in_order(results):
        number = _ORDER.index(name)
        rates = sorted(rate for objective, rate in cells if objective == name)
        found = [mean(cells[name, rate], values) for rate in rates]
        axes.errorbar(
            # Side by side, so that error bars can be told apart.
            [rate + 0.003 * (number - 3.5) for rate in rates],
            [one.mean for one in found],
            yerr=[one.standard_error or 0.0 for one in found],
            label=name,
            color=f"C{number}",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1,
            capsize=2,
        )
