"""The plot of the noise study.

Results become a PNG. It has a panel for each setting, accuracy against the flip rate, and one for
the judge's scores if there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noise.contenders import Result
from raydpo.evaluation.metrics import Estimate

_MARKERS: Final = "osv^D*"
_SCORE = "demo model, judge score of samples on held-out prompts"


def draw(results: list[Result], titles: Mapping[str, str], path: Path) -> None:
    """Write the PNG; settings without results have no panel."""
    panels = [
        (title, mine, _accuracy)
        for setting, title in titles.items()
        if (mine := [r for r in results if r.setting == setting])
    ]
    if scored := [r for r in results if r.scores]:
        panels.append((_SCORE, scored, _score))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.5 * columns, 4 * rows + 0.6), dpi=100, layout="constrained")
    for place, (title, mine, estimate) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        _lines(axes, mine, estimate)
        axes.axhline(0.5, color="#999999", linestyle=":")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("share of training labels turned round")
        axes.set_ylabel("judge score" if estimate is _score else "pairs in the true order")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _lines(axes: Axes, results: list[Result], estimate: Callable[[Result], Estimate]) -> None:
    for number, name in enumerate(dict.fromkeys(r.objective for r in results)):
        mine = sorted((r for r in results if r.objective == name), key=lambda r: r.flip_rate)
        found = [estimate(r) for r in mine]
        axes.errorbar(
            # Side by side, so that error bars can be told apart.
            [r.flip_rate + 0.003 * (number - 2.5) for r in mine],
            [one.mean for one in found],
            yerr=[one.standard_error or 0.0 for one in found],
            label=name,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1,
            capsize=2,
        )


def _accuracy(result: Result) -> Estimate:
    return result.accuracy


def _score(result: Result) -> Estimate:
    return result.score
