"""The plot of the noise study.

Results become a PNG. It has a row for each kind of corruption and a panel for each setting, accuracy
against the rate, and one for the judge's scores if there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noise.contenders import Result, contenders, in_order
from noise.estimates import Values, mean, right, score
from noise.labels import CORRUPTIONS, Noise
from noise.tables import TITLES, by_cell, of_axis

_ORDER: Final = list(contenders(Noise("flips", 0.0), beta=1.0))
_MARKERS: Final = "osv^D*XP"
_SCORE: Final = "demo model, judge score of samples"
_RATES: Final = {
    "flips": "share of labels turned round",
    "outliers": "share of labels drawn at random",
}


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the PNG; settings and corruptions without results have no panel."""
    shown = [c for c in CORRUPTIONS if any(r.corruption == c for r in results)] or ["none"]
    settings = [s for s in TITLES if any(r.setting == s for r in results)]
    panels = [(TITLES[setting], setting, right) for setting in settings]
    if any(r.scores for r in results):
        panels.append((_SCORE, "model", score))
    figure = Figure(
        figsize=(4.2 * len(panels), 3.4 * len(shown) + 0.6), dpi=80, layout="constrained"
    )
    for row, corruption in enumerate(shown):
        for column, (title, setting, values) in enumerate(panels):
            axes = figure.add_subplot(len(shown), len(panels), row * len(panels) + column + 1)
            _lines(axes, of_axis(results, setting, corruption), values)
            axes.axhline(0.5, color="#999999", linestyle=":")
            axes.set_title(title, fontsize=9)
            axes.set_xlabel(_RATES.get(corruption, "share of labels corrupted"))
            axes.set_ylabel("judge score" if values is score else "pairs in the true order")
    legends = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(legends.values(), legends.keys(), loc="outside lower center", ncols=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


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
